"""What the role `backup` has written on this host: the repository, and a file for each source."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from databackup.errors import Failed

FOLDER = Path("/etc/databackup")


@dataclass(frozen=True)
class Repository:
    """Where backups are. Secrets are in files that root alone may read."""

    location: str
    password_file: str
    # Further environment of restic, such as AWS_ACCESS_KEY_ID: NAME=value lines.
    environment_file: str = ""
    # Of restic's -o, such as sftp.command=…
    options: list[str] = field(default_factory=list)
    cache: str = "/var/cache/databackup"
    # KiB per second; 0 is no limit.
    limit_upload: int = 0
    limit_download: int = 0
    # Seconds to wait for another one's lock on the repository, and for an answer of its host.
    lock_timeout: float = 300.0
    timeout: float = 60.0
    # restic's own words for what to keep, and for how much of the data a check reads.
    retention: list[str] = field(default_factory=list)
    check: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """One set of data on this host. `options` are those of its kind."""

    name: str
    kind: str
    environment: str
    host: str
    options: dict[str, Any]
    # Status, spool and metrics.
    state: str = "/var/lib/databackup"
    # Where node_exporter's textfile collector looks; beside the status where there is none.
    metrics: str = ""
    # A backup that is older than so many seconds is late.
    max_age: int = 3600

    @property
    def start_timeout(self) -> float:
        """Seconds in which what uses the data has to come up."""
        return float(self.options.get("start_timeout", 120))


def _load(path: Path, kind: type[Any]) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name for item in fields(kind)}
        unknown = set(values) - known
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return kind(**values)
    except FileNotFoundError:
        raise Failed(f"{path}: there is no such file; the role backup writes it (playbooks/backup.yml)") from None
    except (OSError, ValueError, TypeError) as error:
        raise Failed(f"{path}: {error}; the role backup writes it (playbooks/backup.yml)") from None


def repository(folder: Path = FOLDER, other: Path | None = None) -> Repository:
    """Return this host's repository, or another one that was lent; raises Failed where its file is missing or broken."""
    loaded: Repository = _load(other or folder / "repository.json", Repository)
    return loaded


def source(name: str, folder: Path = FOLDER) -> Source:
    """Return a source by its name; raises Failed where there is none."""
    path = folder / f"source-{name}.json"
    if not path.exists():
        raise Failed(f"there is no source {name!r} on this host; there are: {', '.join(names(folder)) or 'none'}")
    loaded: Source = _load(path, Source)
    return loaded


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of this host's sources."""
    return sorted(path.stem.removeprefix("source-") for path in folder.glob("source-*.json"))

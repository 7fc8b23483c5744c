"""The kinds of sources, each with the same few verbs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from databackup import files, postgresql, sqlite, steps
from databackup.errors import Failed
from databackup.redis import backup as redis_backup
from databackup.redis import log
from databackup.redis.proof import Foreign
from databackup.redis.repair import Repair
from databackup.redis.restore import Target, restore
from databackup.redis.server import reach
from databackup.restic import Restic
from databackup.service import Unit
from databackup.settings import Source

Say = Callable[[str], None]


class Kind(Protocol):
    """What a kind of source can do. All raise Failed with a message for an operator."""

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup and return its manifest."""

    def check(self, manifest: dict[str, Any], environment: str) -> None:
        """Refuse a backup that does not fit; changes nothing."""

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Say what a restore would do."""

    def restore(
        self, restic: Restic, backup: str, manifest: dict[str, Any], environment: str, full: bool
    ) -> dict[str, Any]:
        """Restore a backup, or leave everything as it was."""

    def recover(self) -> str:
        """Undo a restore that was cut off; return what was done, or nothing."""


class Redis:
    """A Redis server."""

    def __init__(self, source: Source, say: Say) -> None:
        self.source = source
        self.say = say

    def _target(self) -> Target:
        options = self.source.options
        return Target(self.source, Unit(options["unit"], options["command"]), self.say)

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup, unless a replica does."""
        target = self._target()
        if target.cut_off:
            raise Failed(target.journal.refusal)
        return redis_backup.backup(self.source, restic, self.say, target.owner, target.prove)

    def check(self, manifest: dict[str, Any], environment: str) -> None:
        """Refuse a backup of another environment, of a newer Redis, or one that does not fit memory or disk."""
        steps.fits(self.source, manifest, environment)
        self._target().check(manifest, environment)

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Say what a restore would do."""
        data, unit = self.source.options["data"], self.source.options["unit"]
        return [
            f"fetch {manifest['bytes']} bytes into {data} and compare their SHA-256",
            f"stop {unit}",
            f"move what is in {data} into a folder before-restore-… in it",
            f"start {unit} out of its clients' reach and compare {manifest['items']} keys and their digest",
            "let the clients in; or, if anything is wrong, put back what was there",
        ]

    def restore(
        self, restic: Restic, backup: str, manifest: dict[str, Any], environment: str, full: bool
    ) -> dict[str, Any]:
        """Restore a backup, or leave everything as it was."""
        steps.fits(self.source, manifest, environment)
        return restore(self._target(), restic, backup, manifest, environment, full)

    def recover(self) -> str:
        """Undo a restore that was cut off."""
        target = self._target()
        done = target.recover()
        log.note_sizes(target)
        return done

    def inspect(self) -> dict[str, list[str]]:
        """Return what the server has put where it is not trusted, and who has its port instead of it."""
        target = self._target()
        processes = []
        try:
            # No password is sent.
            reach(self.source.options["server"], prove=target.prove).close()
        except Foreign as failure:
            processes.append(str(failure))
        except Failed as failure:
            self.say(f"{self.source.name}: {failure}")
        return {"journals": target.planted, "names": target.configuration.paths(), "processes": processes}

    def repair(self) -> Repair:
        """Return what finds damage, and repairs it."""
        return Repair(self._target())


KINDS: dict[str, Callable[[Source, Say], Kind]] = {
    "redis": Redis,
    "sqlite": lambda source, say: sqlite.Sqlite(source, say, steps.units(source.options.get("unit", ""))),
    "postgresql": lambda source, say: postgresql.Postgresql(source, say, steps.units(source.options.get("unit", ""))),
    "files": files.Files,
}
# What the data of each are called in the repository.
SUFFIXES = {"redis": "rdb", "sqlite": sqlite.SUFFIX, "postgresql": postgresql.SUFFIX, "files": files.SUFFIX}


def of(source: Source, say: Say) -> Kind:
    """Return the kind of a source; raises Failed for an unknown one."""
    if source.kind not in KINDS:
        raise Failed(f"source {source.name}: found kind {source.kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[source.kind](source, say)


def inspect(source: Source, say: Say) -> dict[str, list[str]]:
    """Return what could mislead this program: planted journals, names that are paths, ports that another process has."""
    kind = of(source, say)
    if isinstance(kind, Redis):
        return kind.inspect()
    if isinstance(kind, sqlite.Sqlite):
        return {"journals": kind.planted, "names": kind.links}
    return {}


def repair(source: Source, say: Say) -> Repair:
    """Return what finds and repairs damage in a source; raises Failed for a kind that has no such thing."""
    kind = of(source, say)
    if not isinstance(kind, Redis):
        raise Failed(
            f"source {source.name} is of kind {source.kind}; expected redis, whose files alone are looked through here. A "
            f"backup brings others back: databackup restore {source.name}"
        )
    return kind.repair()


def fetch(restic: Restic, manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write a backup's data into a file that was not there, and compare size and SHA-256."""
    if manifest["kind"] not in SUFFIXES:
        raise Failed(f"the backup is of kind {manifest['kind']!r}; expected one of {', '.join(SUFFIXES)}")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    hashed = hashlib.sha256()
    size = 0
    try:
        with partial.open("xb") as file:
            for chunk in restic.read(str(manifest["data"]), f"/{manifest['source']}.{SUFFIXES[manifest['kind']]}"):
                file.write(chunk)
                hashed.update(chunk)
                size += len(chunk)
        if (size, hashed.hexdigest()) != (int(manifest["bytes"]), manifest["sha256"]):
            raise Failed(
                f"the backup is damaged: found {size} bytes with SHA-256 {hashed.hexdigest()[:12]}…, expected "
                f"{manifest['bytes']} with {str(manifest['sha256'])[:12]}…; choose another backup"
            )
        os.link(partial, path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return {"path": str(path), "bytes": size}

"""The kinds of sources that there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from databackup import restore
from databackup.errors import Failed
from databackup.files import Files
from databackup.journal import Say
from databackup.kind import Kind
from databackup.postgresql.database import Postgresql
from databackup.redis.kind import Redis
from databackup.redis.repair import Repair
from databackup.restic import Restic
from databackup.service import units
from databackup.settings import Source
from databackup.sqlite import Sqlite

KINDS: dict[str, Callable[[Source, Say], Kind]] = {
    "redis": Redis,
    "sqlite": lambda source, say: Sqlite(source, say, units(source.options.get("unit", ""))),
    "postgresql": lambda source, say: Postgresql(source, say, units(source.options.get("unit", ""))),
    "files": Files,
}
# What the data of each are called in the repository.
SUFFIXES = {"redis": Redis.suffix, "sqlite": Sqlite.suffix, "postgresql": Postgresql.suffix, "files": Files.suffix}


def of(source: Source, say: Say) -> Kind:
    """Return the kind of a source; raises Failed for an unknown one."""
    if source.kind not in KINDS:
        raise Failed(f"source {source.name}: found kind {source.kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[source.kind](source, say)


def repair(source: Source, say: Say) -> Repair:
    """Return what finds and repairs damage in a source; raises Failed for a kind that has no such thing."""
    kind = of(source, say)
    if not isinstance(kind, Redis):
        raise Failed(
            f"source {source.name} is of kind {source.kind}; expected redis, whose files alone are looked through here. A "
            f"backup brings others back: databackup restore {source.name}"
        )
    return kind.repair()


def fetch(restic: Restic, manifest: dict[str, Any], path: Path, say: Say) -> dict[str, Any]:
    """Write a backup's data into a file that was not there, and compare size and SHA-256."""
    if manifest["kind"] not in SUFFIXES:
        raise Failed(f"the backup is of kind {manifest['kind']!r}; expected one of {', '.join(SUFFIXES)}")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("xb") as file:
            size, sha256 = restore.save(restore.stored(restic, manifest, SUFFIXES[manifest["kind"]]), file, say)
        restore.intact(manifest, size, sha256)
        os.link(partial, path)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return {"path": str(path), "bytes": size}

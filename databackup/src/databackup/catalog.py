"""What is in the repository: a backup is a snapshot with the data, and one with a manifest that names it.

Both have the same time. The manifest comes last: data without one are of a run that was interrupted, and no backup.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from databackup.errors import Failed
from databackup.restic import Restic, Writer
from databackup.settings import Source

# The first tag of all that is written here; the second says what a snapshot is.
PROGRAM = "databackup"
RESTIC_TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Backup:
    """A backup as the repository lists it."""

    id: str
    time: datetime
    host: str
    # What its tags say: source, environment, kind, items, digest, data.
    facts: dict[str, str]
    # It came by `restic copy`, which gives snapshots new ids: its data have another one than it says.
    copied: bool = False

    @property
    def line(self) -> str:
        """Return it as a line of a list."""
        when = self.time.strftime("%Y-%m-%dT%H:%M:%SZ")
        return (
            f"{self.id[:8]}  {when}  {self.facts.get('environment', '?'):<12} {self.host:<12} "
            f"{self.facts.get('source', '?'):<12} {self.facts.get('items', '?'):>10}  {self.facts.get('bytes', '?'):>12}"
        )


HEADING = f"{'ID':<8}  {'TIME':<20}  {'ENVIRONMENT':<12} {'HOST':<12} {'SOURCE':<12} {'ITEMS':>10}  {'BYTES':>12}"


def parse_time(text: str) -> datetime:
    """Return a time as restic or an operator writes it; without a zone it is UTC. Raises Failed for anything else."""
    try:
        when = datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise Failed(f"found {text!r}; expected a time such as 2026-01-31T14:00:00Z") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def backups(restic: Restic, *tags: str) -> list[Backup]:
    """Return the backups with all these tags, the oldest first."""
    found = []
    for item in restic.snapshots(PROGRAM, "manifest", *tags):
        facts = dict(tag.split("=", 1) for tag in item.get("tags") or [] if "=" in tag)
        found.append(Backup(item["id"], parse_time(item["time"]), item["hostname"], facts, "original" in item))
    return found


def choose(found: list[Backup], wanted: str, as_of: str, name: str) -> Backup:
    """Return the backup that is asked for: `latest`, an id or its beginning, or the last one up to a time."""
    if not found:
        raise Failed(f"there is no backup of {name} in the repository; was one ever made, and in this environment?")
    if as_of:
        # Of a date alone, it would be the midnight before that day.
        if ":" not in as_of:
            raise Failed(f"found {as_of!r}; expected a date with its time, such as 2026-01-31T14:00:00Z")
        limit = parse_time(as_of)
        before = [backup for backup in found if backup.time <= limit]
        if not before:
            raise Failed(
                f"there is no backup of {name} up to {as_of}; the first is {found[0].id[:8]} of {found[0].time:%Y-%m-%dT%H:%M:%SZ}"
            )
        return before[-1]
    if wanted != "latest":
        fitting = [backup for backup in found if backup.id.startswith(wanted)]
        if len(wanted) < 4 or len(fitting) != 1:
            many = "several backups begin so" if len(fitting) > 1 and len(wanted) >= 4 else "there is no such backup"
            raise Failed(
                f"backup {wanted!r} of {name}: {many}; expected one of {', '.join(b.id[:8] for b in found[-10:])}"
            )
        return fitting[0]
    last = found[-1]
    full = [backup for backup in found if backup.facts.get("items", "0") != "0"]
    if full and last.facts.get("items") == "0":
        # A host that was rebuilt and backed up before it was restored.
        raise Failed(
            f"the latest backup of {name} is empty ({last.id[:8]}, {last.time:%Y-%m-%dT%H:%M:%SZ}). The last one with data "
            f"is {full[-1].id[:8]} of {full[-1].time:%Y-%m-%dT%H:%M:%SZ}, {full[-1].facts['items']} items: "
            "name the one to restore by its id"
        )
    return last


def open_data(restic: Restic, source: Source, suffix: str, when: datetime) -> Writer:
    """Return what takes a source's data."""
    tags = [PROGRAM, "data", f"source={source.name}", f"environment={source.environment}"]
    return restic.writer(f"/{source.name}.{suffix}", source.host, tags, when.strftime(RESTIC_TIME))


def write_manifest(restic: Restic, source: Source, manifest: dict[str, Any], when: datetime) -> str:
    """Make data a backup, and return its id."""
    tags = [PROGRAM, "manifest", f"source={source.name}", f"environment={source.environment}"]
    for name in ("kind", "items", "bytes", "digest"):
        tags.append(f"{name}={manifest[name]}")
    tags.append(f"data={manifest['data']}")
    writer = restic.writer(f"/{source.name}.json", source.host, tags, when.strftime(RESTIC_TIME))
    try:
        writer.write(json.dumps(manifest, indent=2).encode() + b"\n")
        return writer.commit()
    finally:
        writer.abort()


def complete(restic: Restic, source: Source, facts: dict[str, Any], when: datetime) -> dict[str, Any]:
    """Make data a backup, and return its manifest: what all have, the facts of its kind, and its `id`."""
    manifest = {
        "kind": source.kind,
        "source": source.name,
        "environment": source.environment,
        "host": source.host,
        "time": when.isoformat(),
        **facts,
    }
    return {**manifest, "id": write_manifest(restic, source, manifest, when)}


def manifest(restic: Restic, backup: Backup) -> dict[str, Any]:
    """Return the manifest of a backup; raises Failed when it cannot be read."""
    text = b"".join(restic.read(backup.id, f"/{backup.facts.get('source', '')}.json"))
    try:
        loaded: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise Failed(f"the manifest of backup {backup.id[:8]} is damaged: {error}; choose another backup") from None
    if backup.copied:
        loaded["data"] = _copy_of(restic, str(loaded["data"]), backup)
    return loaded


def _copy_of(restic: Restic, data: str, backup: Backup) -> str:
    for item in restic.snapshots(PROGRAM, "data", f"source={backup.facts.get('source', '')}"):
        if str(item.get("original", item["id"])).startswith(data):
            return str(item["id"])
    raise Failed(
        f"backup {backup.id[:8]} is a copy, and its data ({data[:8]}) were not copied; copy all of the repository, or "
        "choose another backup"
    )


def orphans(restic: Restic, older_than: datetime) -> list[str]:
    """Return the ids of data that no manifest names: of runs that were interrupted."""
    # restic 0.14 tells the first eight digits only of what it made.
    named = tuple(backup.facts.get("data", "none") for backup in backups(restic))
    return [
        item["id"]
        for item in restic.snapshots(PROGRAM, "data")
        if not str(item.get("original", item["id"])).startswith(named) and parse_time(item["time"]) < older_than
    ]

"""A Redis server as a source, beside those of other kinds."""

from __future__ import annotations

from typing import Any

from databackup.errors import Failed
from databackup.kind import Kind
from databackup.redis import backup, log
from databackup.redis.proof import Foreign
from databackup.redis.repair import Repair
from databackup.redis.restore import SUFFIX, FromBackup, Replacement, Target
from databackup.redis.server import reach
from databackup.restic import Restic
from databackup.service import Unit


class Redis(Kind):
    """A Redis server."""

    suffix = SUFFIX

    @property
    def target(self) -> Target:
        """The server as it is now."""
        return Target(self.source, Unit(self.options["unit"], self.options["command"]), self.say)

    def backup(self, restic: Restic) -> dict[str, Any]:
        """Write a backup, unless a replica does."""
        target = self.target
        if target.cut_off:
            raise Failed(target.journal.refusal)
        return backup.backup(self.source, restic, self.say, target.owner, target.prove)

    def accept(self, manifest: dict[str, Any]) -> None:
        """Raise Failed for a backup of a newer Redis, or one that does not fit memory or disk."""
        self.target.accept(manifest)

    def would(self, manifest: dict[str, Any]) -> list[str]:
        """Report what a restore would do."""
        data, unit = self.options["data"], self.options["unit"]
        return [
            f"fetch {manifest['bytes']} bytes into {data} and compare their SHA-256",
            f"stop {unit}",
            f"move what is in {data} into a folder before-restore-… in it",
            f"start {unit} out of its clients' reach and compare {manifest['items']} keys and their digest",
            "let the clients in; or, if anything is wrong, put the present data back",
        ]

    def replacement(self, restic: Restic, backup: str, manifest: dict[str, Any], *, full: bool) -> Replacement:
        """Return what puts a backup into the place of the server's data."""
        return FromBackup(self.target, restic, backup, manifest, full=full)

    def recover(self) -> str:
        """Undo a restore that was interrupted."""
        target = self.target
        done = target.recover()
        log.note_sizes(target)
        return done

    def inspect(self) -> dict[str, list[str]]:
        """Return what the server has put where it is not trusted, and who has its port instead of it."""
        target = self.target
        processes = []
        try:
            # No password is sent.
            reach(self.options["server"], prove=target.prove).close()
        except Foreign as failure:
            processes.append(str(failure))
        except Failed as failure:
            self.say(f"{self.source.name}: {failure}")
        return {"journals": target.planted, "names": target.configuration.paths(), "processes": processes}

    def repair(self) -> Repair:
        """Return what finds damage, and repairs it."""
        return Repair(self.target)

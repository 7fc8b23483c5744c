"""Bring a damaged Redis server back, by a way that plan.py has chosen.

Each way ends in the same exchange as a restore: see restore.py. This server never becomes a replica's primary, so a server
that lost its data cannot empty it. All files are copied and linked with the rights of the server's user, whose folder it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from databackup import programs, restore
from databackup.errors import Failed
from databackup.redis import digest, plan, scan
from databackup.redis.diagnose import Diagnosis, Examination
from databackup.redis.replica import Replica
from databackup.redis.restore import REPAIR, Replacement, Target
from databackup.restore import MARGIN, Phase


class Repair:
    """A server that may have lost its data."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.say = target.say
        self.service = target.service
        self.files = Examination(target)

    def diagnose(self) -> Diagnosis:
        """Return what is wrong with the server's files; changes nothing."""
        return self.files.diagnose()

    def plan(self, found: Diagnosis, address: str, way: str, find: Callable[[], dict[str, Any]]) -> plan.Plan:
        """Return which way a repair takes, and what each one costs; see plan.choose."""
        return plan.choose(found, Replica(address, self.target) if address else None, way, find)

    def prepare(self, found: Diagnosis) -> None:
        """Stop a server that does nothing but try to start."""
        undone = self.target.recover()
        if undone:
            self.say(undone)
        if not found.serving and self.service.active():
            self.say(f"Stopping {self.files.unit}, which does not come up")
            self.service.stop()

    def from_replica(self, address: str) -> dict[str, Any]:
        """Put a snapshot of a replica in place, or leave everything as it was."""
        return FromReplica(self.files, Replica(address, self.target)).run()

    def fix(self, found: Diagnosis) -> dict[str, Any]:
        """Cut the append-only file off where the damage begins, in a copy, or leave everything as it was."""
        return Fixed(self.files, found).run()


class FromReplica(Replacement):
    """The data of a replica.

    It is asked for its data as for a backup, and for nothing else. This server is never made its primary: a replica would
    throw its data away for those of its primary, which has none.
    """

    what = "the replica's data"

    def __init__(self, files: Examination, replica: Replica) -> None:
        super().__init__(files.target, REPAIR, {})
        self.files = files
        self.replica = replica

    def fetch(self) -> None:
        """Bring a snapshot of the replica here, checked as one of a backup is."""
        what = f"the snapshot of {self.replica.address}"
        self.say(f"Fetching a snapshot of {self.replica.address}")
        self.path, size, sha256 = self.target.receive(self.replica.snapshot(), what)
        digester = digest.of_file(self.path, self.target.owner)
        try:
            summary = digester.result()
        finally:
            digester.close()
        if problem := self.files.check_rdb(self.path):
            raise Failed(f"redis-check-rdb refuses {what} at byte {problem[0]}: {problem[1]}")
        if not summary.keys:
            raise Failed(f"{what} is empty; expected one with the data")
        self.manifest = {"items": summary.keys, "digest": summary.digest, "bytes": size, "sha256": sha256}


class Fixed(Replacement):
    """What is whole of the server's own data."""

    what = "the fixed files"

    def __init__(self, files: Examination, found: Diagnosis) -> None:
        super().__init__(files.target, REPAIR, {})
        self.files = files
        self.found = found

    def phases(self) -> Iterable[Phase]:
        """Return what is done: there is nothing to compare the data with."""
        return [("fetch", self.fetch), ("exchange", self.exchange), ("load", self.open)]

    def fetch(self) -> None:
        """Copy the files, and cut the copy off where the damage begins."""
        found = self.found
        self.say(f"Copying {found.file}, and cutting the copy off at byte {found.whole}")
        self._copy(found.file)
        self.path = self.target.new / self.target.log / f"{self.files.name}.manifest"
        done = self.target.tool("redis-check-aof", "--fix", str(self.path), answer="y\n")
        if done.returncode != 0:
            raise Failed(f"redis-check-aof --fix: {' / '.join(done.stdout.strip().splitlines()[-3:])}")

    def open(self) -> None:
        """Have Redis load them, see what it has then, and let the clients in."""
        apart = self.target.start_apart()
        live = self.target.live(apart)
        self.report = {"found": {"keys": live.keys, "digest": live.digest}, "dropped": self.found.dropped}
        self.target.open(apart)

    def _copy(self, damaged: str) -> None:
        """Make the folder again beside it: what is cut off is copied, the rest has a second name."""
        target = self.target
        with target.owner.acting():
            size = (self.files.folder / damaged).stat().st_size
        restore.room(target.data, size + MARGIN, f"a copy of {damaged}")
        folder = target.new / target.log
        manifest = f"{self.files.name}.manifest"
        try:
            target.make_new(folder)
            for name in (manifest, *(scan.manifest_files(self.files.manifest_text()) or ())):
                if name in (manifest, damaged):
                    # Blocks are shared where the file system can.
                    command = ["cp", "--reflink=auto", "--", str(self.files.folder / name), str(folder / name)]
                    done = programs.run(command, umask=0o077, **target.owner.identity)
                    if done.returncode != 0:
                        raise Failed(f"{name} cannot be copied: {done.stderr.strip()}")
                else:
                    with target.owner.acting():
                        os.link(self.files.folder / name, folder / name, follow_symlinks=False)
        except OSError as error:
            raise Failed(f"{folder}: {error.strerror}; nothing else was touched") from None

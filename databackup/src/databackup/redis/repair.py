"""Bring a damaged Redis server back, by a way that plan.py has chosen.

Each way ends in the same exchange as a restore: see restore.py. This server never becomes a replica's primary, so a server
that lost its data cannot empty it. All files are copied and linked with the rights of the server's user, whose folder it is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from databackup import programs
from databackup.errors import Failed
from databackup.redis import digest, plan, rdb, scan
from databackup.redis.diagnose import Diagnosis, Examination
from databackup.redis.replica import Replica
from databackup.redis.replication import Snapshot
from databackup.redis.restore import MARGIN, REPAIR, Apart, Seconds, Target, proven, replace
from databackup.redis.server import connect, credentials


class Repair:
    """A server that may have lost its data."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.say = target.say
        self.service = target.service
        self.owner = target.owner
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
        """Put a snapshot of a replica in place, or leave everything as it was.

        The replica is asked for its data as for a backup, and for nothing else. This server is never made its primary:
        a replica would throw its data away for those of its primary, which has none.
        """
        manifest: dict[str, Any] = {}

        def fetch() -> Path:
            self.say(f"Fetching a snapshot of {address}")
            path, size, sha256 = self.target.receive(
                Replica(address, self.target).snapshot(), f"the snapshot of {address}"
            )
            digester = digest.of_file(path, self.owner)
            try:
                summary = digester.result()
            finally:
                digester.close()
            if problem := self.files.check_rdb(path):
                raise Failed(f"redis-check-rdb refuses the snapshot of {address} at byte {problem[0]}: {problem[1]}")
            if not summary.keys:
                raise Failed(f"the snapshot of {address} is empty; expected one with the data")
            manifest.update(items=summary.keys, digest=summary.digest, bytes=size, sha256=sha256)
            return path

        def load(path: Path, seconds: Seconds) -> tuple[Apart, dict[str, Any]]:
            return proven(self.target, path, manifest, True, seconds)

        return replace(self.target, REPAIR, "the replica's data", fetch, load)

    def fix(self, found: Diagnosis) -> dict[str, Any]:
        """Cut the append-only file off where the damage begins, in a copy, or leave everything as it was."""
        target = self.target

        def fetch() -> Path:
            self.say(f"Copying {found.file}, and cutting the copy off at byte {found.whole}")
            self._copy(found.file)
            path = target.new / target.log / f"{self.files.name}.manifest"
            done = self.target.tool("redis-check-aof", "--fix", str(path), answer="y\n")
            if done.returncode != 0:
                raise Failed(f"redis-check-aof --fix: {' / '.join(done.stdout.strip().splitlines()[-3:])}")
            return path

        def load(_path: Path, seconds: Seconds) -> tuple[Apart, dict[str, Any]]:
            began = time.monotonic()
            apart = target.start_apart()
            seconds["load"] = round(time.monotonic() - began, 2)
            login = credentials(target.options["admin_credentials_file"])
            with connect(apart, login, prove=target.prove) as client:
                try:
                    live = rdb.summarize(Snapshot(client).chunks())
                except rdb.Damaged as error:
                    raise Failed(f"what Redis has cannot be read back: {error}") from None
            return apart, {"found": {"keys": live.keys, "digest": live.digest}, "dropped": found.dropped}

        return replace(target, REPAIR, "the fixed files", fetch, load)

    def _copy(self, damaged: str) -> None:
        """Make the folder again beside it: what is cut off is copied, the rest has a second name."""
        target = self.target
        with self.owner.acting():
            needed = (self.files.folder / damaged).stat().st_size + MARGIN
        free = shutil.disk_usage(target.data).free
        if free < needed:
            raise Failed(
                f"{target.data}: found {free >> 20} MiB free; expected room for a copy of {damaged}, {needed >> 20} MiB"
            )
        folder = target.new / target.log
        manifest = f"{self.files.name}.manifest"
        try:
            target.make_new(folder)
            for name in (manifest, *(scan.manifest_files(self.files.manifest_text()) or ())):
                if name in (manifest, damaged):
                    # Blocks are shared where the file system can.
                    command = ["cp", "--reflink=auto", "--", str(self.files.folder / name), str(folder / name)]
                    done = programs.run(command, umask=0o077, **self.owner.identity)
                    if done.returncode != 0:
                        raise Failed(f"{name} cannot be copied: {done.stderr.strip()}")
                else:
                    with self.owner.acting():
                        os.link(self.files.folder / name, folder / name, follow_symlinks=False)
        except OSError as error:
            raise Failed(f"{folder}: {error.strerror}; nothing else was touched") from None

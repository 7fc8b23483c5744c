"""How an old server runs that an adoption takes over: as a unit of systemd, or as a process without one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Protocol

from databackup import programs, service
from databackup.errors import Failed
from databackup.redis.adoption_plan import Plan
from databackup.service import Unit

# Seconds in which a stopped server must have ended.
STOP = 600.0


class Old(service.Service, Protocol):
    """What runs the old server."""

    def disable(self) -> None: ...
    def enable(self) -> None: ...


class Loose:
    """An old server without a unit. It is started again with its file, or with the settings that it had."""

    def __init__(self, pid: int, command: list[str], user: str, folder: str, name: str) -> None:
        """`command` starts it again, as `user` and in `folder`."""
        self.pid = pid
        self.command = command
        self.user = user
        self.folder = folder
        self.unit = f"redis-before-{name}.service"

    def _started_again(self) -> bool:
        done = subprocess.run(["systemctl", "is-active", "--quiet", self.unit], check=False)
        return done.returncode == 0

    def _lives(self) -> bool:
        try:
            return (
                Path(f"/proc/{self.pid}/comm")
                .read_text(encoding="utf-8", errors="replace")
                .startswith(("redis", "valkey", "keydb"))
            )
        except OSError:
            return False

    def active(self) -> bool:
        """Return whether it runs."""
        return self._lives() or self._started_again()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        if self._started_again():
            subprocess.run(["systemctl", "stop", self.unit], check=False)
        if not self._lives():
            return
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP
        while self._lives():
            if time.monotonic() > deadline:
                raise Failed(f"the old server, process {self.pid}, does not end after {STOP:.0f} s")
            time.sleep(0.02)

    def start(self, seconds: float) -> None:
        """Start it as a transient unit of systemd's; raises Failed when that is refused."""
        done = programs.run(
            [
                *("systemd-run", "--quiet", "--collect", f"--unit={self.unit}", f"--uid={self.user}"),
                *(f"--working-directory={self.folder}", "--property=Type=exec", *self.command, "--daemonize", "no"),
            ]
        )
        if done.returncode != 0:
            raise Failed(f"the old server cannot be started again: {done.stderr.strip()}")

    def disable(self) -> None:
        """Do nothing: no boot starts it."""

    def enable(self) -> None:
        """Do nothing, likewise."""


def old_of(plan: Plan) -> Old:
    """Return what runs the old server of a plan."""
    old = plan.old
    # A transient unit is gone when it ends: such a server is started again as one without a unit.
    if old.get("unit", "").endswith(".service") and not str(old.get("unit_file", "")).startswith("/run/"):
        return Unit(old["unit"], [])
    program = Path(old["program"].removesuffix(" (deleted)"))
    # Debian's server is a link to redis-check-rdb, which does something else under its own name.
    named = program.with_name("redis-server")
    command = [str(named if program.name == "redis-check-rdb" and named.exists() else program)]
    if old["config_file"]:
        command.append(old["config_file"])
    else:
        for name, value in old["settings"].items():
            for line in value if isinstance(value, list) else [value]:
                command += [f"--{name}", *re.split(r"\s+", str(line))]
    return Loose(old["pid"], command, old["user"], old["cwd"], plan.name)

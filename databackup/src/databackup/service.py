"""A unit of systemd that a restore stops, starts apart from its clients, and gives back."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

from databackup import peer, programs
from databackup.errors import Failed

RUNTIME = Path("/run/systemd/system")


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return programs.run(["systemctl", *words])


class Service(Protocol):
    """What uses the data and is stopped for a restore."""

    def active(self) -> bool: ...
    def stop(self) -> None: ...
    def start(self, seconds: float) -> None: ...


class Unit:
    """What is asked of the system that runs a server; tests that have no systemd bring their own."""

    # At boot nothing runs yet, and systemd starts what is to run after this program: there is nothing to stop and to start.
    booting: ClassVar[bool] = False

    def __init__(self, name: str, command: list[str]) -> None:
        """`command` is what the unit starts, to which `start_apart` adds arguments."""
        self.name = name
        self.command = command
        self.drop_in = RUNTIME / f"{name}.d" / "restore.conf"

    def state(self) -> str:
        """Return its state in systemd's words; `activating`, too, where it is only about to."""
        told = _systemctl("show", "--property", "ActiveState,Job", self.name).stdout.split()
        values = dict(item.split("=", 1) for item in told if "=" in item)
        # A job that waits for its turn has not changed the state yet.
        return "activating" if values.get("Job", "0") not in ("", "0") else values.get("ActiveState", "unknown")

    def active(self) -> bool:
        """Return whether it runs or is about to."""
        return _systemctl("is-active", self.name).stdout.strip() in ("active", "activating", "reloading")

    def failed(self) -> bool:
        """Return whether it has ended, and will not start by itself."""
        return self.state() in ("failed", "inactive")

    def main_pid(self) -> int:
        """Return its process; 0 where it does not run."""
        return peer.main_pid(self.name)

    def stop(self) -> None:
        """Stop it, and wait until it has ended; raises Failed when it does not."""
        if self.booting:
            return
        done = _systemctl("stop", self.name)
        if done.returncode != 0:
            raise Failed(f"{self.name} does not stop: {done.stderr.strip()}")
        _systemctl("reset-failed", self.name)

    def start_apart(self, arguments: list[str]) -> None:
        """Start it with further arguments, without waiting and without a second try when it fails."""
        # It is in /run: a host that goes down now comes back with the unit as it was.
        self.drop_in.parent.mkdir(parents=True, exist_ok=True)
        # Type=exec: systemd's own waiting would end when the server is loaded, and with a limit of its own.
        self.drop_in.write_text(
            "[Service]\nRestart=no\nTimeoutStartSec=infinity\nExecStart=\n"
            f"ExecStart={' '.join([*self.command, *arguments])}\n",
            encoding="utf-8",
        )
        _systemctl("daemon-reload")
        done = _systemctl("start", "--no-block", self.name)
        if done.returncode != 0:
            raise Failed(f"{self.name} cannot be started: {done.stderr.strip()}")

    def apart(self) -> dict[str, Any] | None:
        """Return the way into a server that `start_apart` started on a port of its own; None where there is none."""
        try:
            port = re.search(r"--port ([0-9]+)", self.drop_in.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return {"host": "127.0.0.1", "port": int(port[1])} if port and self.active() else None

    def settle(self) -> None:
        """Make the unit as it was before `start_apart`; what runs goes on."""
        if self.drop_in.exists():
            self.drop_in.unlink()
            # Somebody else may have one there.
            with suppress(OSError):
                self.drop_in.parent.rmdir()
            _systemctl("daemon-reload")

    def start(self, seconds: float) -> None:
        """Start it as it is, and wait until it serves; raises Failed with its last words when it does not."""
        if self.booting:
            return
        self.settle()
        _systemctl("reset-failed", self.name)
        _systemctl("start", "--no-block", self.name)
        deadline = time.monotonic() + seconds
        while True:
            state = self.state()
            if state == "active":
                return
            if state in ("failed", "inactive") or time.monotonic() > deadline:
                raise Failed(f"{self.name} does not start ({state}): {self.last_words()}")
            time.sleep(0.1)

    def reload(self) -> None:
        """Have systemd read all units again."""
        _systemctl("daemon-reload")

    def enable(self) -> None:
        """Start it at every boot; raises Failed."""
        self._boot("enable")

    def disable(self) -> None:
        """Start it at no boot; raises Failed."""
        self._boot("disable")

    def _boot(self, verb: str) -> None:
        done = _systemctl(verb, "--quiet", self.name)
        if done.returncode != 0:
            raise Failed(f"systemctl {verb} {self.name}: {done.stderr.strip()}")

    def last_words(self) -> str:
        """Return the last lines of its journal."""
        done = programs.run(["journalctl", "--unit", self.name, "--lines", "5", "--no-pager", "--output", "cat"])
        return " / ".join(done.stdout.strip().splitlines()[-5:])


class Nothing:
    """No unit is to be stopped."""

    def active(self) -> bool:
        """Report that nothing runs."""
        return False

    def stop(self) -> None:
        """Do nothing."""

    def start(self, seconds: float) -> None:
        """Do nothing."""


class Units(Unit):
    """A unit of systemd, or a target with the instances and sockets that are part of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [])

    def _members(self, *properties: str) -> list[str]:
        if not self.name.endswith(".target"):
            return []
        told = _systemctl("show", "--property", ",".join(properties), "--value", self.name).stdout.split()
        return sorted({unit for unit in told if unit.endswith((".service", ".socket"))})

    def active(self) -> bool:
        """Return whether it, or a part of it, runs."""
        return super().active() or any(Unit(unit, []).active() for unit in self._members("ConsistsOf"))

    def stop(self) -> None:
        """Stop it with all its parts, and wait until they have ended."""
        if self.booting:
            return
        # In a rebuild the data come before what uses them.
        if _systemctl("show", "--property", "LoadState", "--value", self.name).stdout.strip() == "not-found":
            return
        # A target alone ends at once, before those that are part of it.
        units = [self.name, *self._members("Wants", "Requires", "ConsistsOf")]
        done = _systemctl("stop", *units)
        if done.returncode != 0:
            raise Failed(f"{self.name} does not stop: {done.stderr.strip()}")
        _systemctl("reset-failed", *units)

    def start(self, seconds: float) -> None:
        """Start it, and wait until it and all that it wants are active."""
        if self.booting:
            return
        deadline = time.monotonic() + seconds
        super().start(seconds)
        # A target is active whatever became of its parts.
        for name in self._members("Wants", "Requires"):
            member = Unit(name, [])
            while (state := member.state()) != "active":
                if state in ("failed", "inactive") or time.monotonic() > deadline:
                    raise Failed(f"{name} does not start ({state}): {member.last_words()}")
                time.sleep(0.1)


def units(name: str) -> Service:
    """Return the unit with this name; for no name nothing is stopped."""
    return Units(name) if name else Nothing()

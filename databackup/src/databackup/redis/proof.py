"""Proof that a connection ends at a unit's own process, before a password is sent through it.

Any user of the host may listen on a port that the server has not taken yet, or has lost. A probe beforehand proves nothing
of the next connection, so it is the connected one whose other end is looked up: the kernel tells which process holds it,
and systemd which process is the unit's.
"""

from __future__ import annotations

import socket
import time
from typing import Protocol

from databackup import peer
from databackup.errors import Failed
from databackup.owner import Owner

# Seconds: for a server that is busy to accept the connection, and for systemd to know the process of a unit that starts.
ACCEPT, START = 10.0, 1.0
STEP = 0.02


class Foreign(Failed):
    """Another process has the port."""


class Process(Protocol):
    """What runs the server."""

    def main_pid(self) -> int: ...


class Proof:
    """What is known of the process of one unit."""

    def __init__(self, service: Process, owner: Owner, name: str) -> None:
        """`owner` is the process' user, and `name` the unit's name for messages."""
        self.service = service
        self.owner = owner
        self.name = name

    def __call__(self, connection: socket.socket) -> None:
        """Raise Foreign unless the unit's own process holds the other end of a connection."""
        where = "{}:{}".format(*connection.getpeername()[:2])
        accept, start = time.monotonic() + ACCEPT, time.monotonic() + START
        while True:
            pid = self.service.main_pid()
            # As its user: who may see the files of another user's process could stop it, too.
            with self.owner.acting():
                if peer.held_by(connection, pid):
                    return
            if time.monotonic() > (start if _accepted(connection) else accept):
                raise Foreign(
                    f"{where} is held by another process than that of {self.name} ({f'process {pid}' if pid else 'which does not run'})"
                    "; no password was sent to it. Find out who listens there: ss -Hltnp"
                )
            time.sleep(STEP)

    def listening(self, port: int) -> list[str]:
        """Return the addresses at which the unit's process listens on a port."""
        pid = self.service.main_pid()
        with self.owner.acting():
            return peer.listening(pid, port) if pid else []


def _accepted(connection: socket.socket) -> bool:
    """Return whether some process of this host has the other end, or it is not on this host."""
    return peer.other_end(connection) != {peer.PENDING}

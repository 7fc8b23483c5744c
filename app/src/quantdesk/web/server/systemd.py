"""Sockets from systemd, and notifications to it (sd_listen_fds(3), sd_notify(3))."""

import contextlib
import os
import socket
from typing import Final

# The first of the sockets that systemd passes on.
LISTEN_FDS_START: Final = 3


def passed_sockets() -> list[socket.socket] | None:
    """Return the listening sockets that systemd holds for this process, None if there are none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + count)
    return [socket.socket(fileno=fd) for fd in fds] or None


def notify(state: str) -> None:
    """Notify systemd of a change (sd_notify(3)); without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.send(state.encode())

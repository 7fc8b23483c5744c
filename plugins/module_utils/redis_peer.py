"""Whether the other end of a connection is a unit's own process on this host.

A server goes on showing the certificate that it was started with when its files were replaced. A client that verifies
with the new files cannot log in then, not even to have the server read them. On its own host there is another proof:
the kernel reports which process holds the other end of a connection, and systemd which process is the unit's.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# proc(5), /proc/net/tcp: the columns, and the state of a connection.
LOCAL, REMOTE, STATE, INODE = 1, 2, 3, 9
ESTABLISHED, LISTENING = "01", "0A"
# The socket of a connection that nobody has accepted yet.
PENDING = "0"
# Seconds.
GRACE, STEP = 1.0, 0.01
Address = tuple[str, int]


class Foreign(ConnectionError):
    """Another process has the other end of a connection."""


def readable(host: str, port: int) -> Address:
    """Return an address in one form: IPv4 within IPv6, as a socket for both has it, is IPv4."""
    address = ipaddress.ip_address(host.split("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def decode(word: str) -> Address:
    """Return an address of /proc/net/tcp, such as 0100007F:18EC, whose words are in the host's order."""
    digits, port = word.split(":")
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    return readable(str(ipaddress.ip_address(b"".join(words))), int(port, 16))


def inodes(text: str, local: Address, remote: Address) -> set[str]:
    """Return the sockets of a connection from `local` to `remote` in the text of /proc/net/tcp."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {
        row[INODE]
        for row in rows
        if row[STATE] == ESTABLISHED and decode(row[LOCAL]) == local and decode(row[REMOTE]) == remote
    }


def holds(pid: int, sockets: set[str]) -> bool:
    """Return whether a process has one of the sockets; root alone may ask that of another user's process."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        try:
            link = os.readlink(f"{folder}/{name}")
        except OSError:
            continue
        if link.startswith("socket:[") and link[len("socket:[") : -1] in sockets:
            return True
    return False


def other_end(connection: socket.socket) -> set[str]:
    """Return the sockets at the other end of a TCP connection; none where it is closed, or not on this host."""
    try:
        own, peer = connection.getsockname(), connection.getpeername()
    except OSError:
        # It is closed.
        return set()
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/net/{table}").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found |= inodes(text, readable(*peer[:2]), readable(*own[:2]))
    return found


def listening(pid: int, port: int) -> list[str]:
    """Return the addresses at which a process of this host listens on a port."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/net/{table}").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for row in [line.split() for line in text.splitlines()[1:]]:
            address, at = decode(row[LOCAL])
            if row[STATE] == LISTENING and at == port and holds(pid, {row[INODE]}):
                found.append(address)
    return found


def held_by(connection: socket.socket, pid: int) -> bool:
    """Return whether a process of this host holds the other end of a TCP connection."""
    return pid > 0 and holds(pid, other_end(connection) - {PENDING})


def prove(connection: socket.socket, unit: str, seconds: float) -> None:
    """Raise Foreign unless a unit's own process holds the other end of a connection; other OSErrors where none does.

    It is the connection that is proven, not the port: who listens there may be another one a moment later. `seconds` is
    how long a busy server may take to accept it.
    """
    accept, grace = time.monotonic() + seconds, time.monotonic() + GRACE
    while True:
        # First: of a connection that is accepted by then, systemd knows the process that has accepted it.
        sockets = other_end(connection)
        pid = main_pid(unit)
        if pid and holds(pid, sockets - {PENDING}):
            return
        pending = sockets == {PENDING}
        if not pid or (sockets and not pending and time.monotonic() > grace):
            raise Foreign(f"the other end is no process of {unit}")
        if not sockets:
            # As a server does that has too many clients.
            raise ConnectionResetError("the connection was closed")
        if pending and time.monotonic() > accept:
            raise TimeoutError(f"the connection was not accepted within {seconds:g} s")
        time.sleep(STEP)


def main_pid(unit: str) -> int:
    """Return the process of a unit; 0 where there is none, or no systemd."""
    try:
        words = ["systemctl", "show", unit, "--property", "MainPID", "--value"]
        english = {**os.environ, "LC_ALL": "C"}
        return int(subprocess.run(words, capture_output=True, env=english, check=False).stdout.strip() or 0)
    except (OSError, ValueError):
        return 0


def older_than(pid: int, paths: list[Any]) -> bool:
    """Return whether a process started before one of the files was last changed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        boot = next(
            line
            for line in Path("/proc/stat").read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("btime ")
        )
        started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return any(os.stat(path).st_mtime > started for path in paths if path)
    except (OSError, StopIteration):
        return False

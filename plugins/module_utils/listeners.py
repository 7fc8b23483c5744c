"""Who listens on this host, and where an ssh session came from: read from /proc, which takes milliseconds."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.quantdesk.redis.plugins.module_utils import programs

PROC = Path("/proc")
LISTEN = "0A"
SYSTEMD = 1
# A unit, or the scope of a container.
UNIT = re.compile(r"(?:^|/)([^/]+\.service|(?:docker|libpod|cri-containerd)-[^/]+\.scope)(?=/|$)")


@dataclass(frozen=True)
class Listener:
    """A listening socket. `pid` is 0, and `program` and `unit` are empty, where only root may see whose it is."""

    port: int
    address: str
    pid: int
    program: str
    unit: str


def read(path: Path) -> str:
    """Return a file of /proc, or nothing when the process has gone or is another user's."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def address_of(text: str) -> str:
    """Return `127.0.0.1` for 0100007F: words of 32 bits in the processor's own order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    address = socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
    mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    return str(mapped or address)


def sockets(proc: Path = PROC) -> dict[str, tuple[str, int]]:
    """Return address and port of each listening TCP socket, by its inode."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in read(proc / "self/net" / name).splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                address, port = fields[1].split(":")
                found[fields[9]] = (address_of(address), int(port, 16))
    return found


def targets(folder: Path) -> Iterator[str]:
    """Return what the files of a process are, without those that it closes meanwhile."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        # It has gone, or it is another user's.
        return
    for entry in entries:
        try:
            yield os.readlink(entry.path)
        except OSError:
            # A busy server closes connections at any moment; its other files are as they were.
            continue


def holders(inodes: set[str], proc: Path = PROC) -> dict[str, int]:
    """Return who has each socket open: the first process that is not systemd, which keeps sockets for its services."""
    found: dict[str, int] = {}
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        for target in targets(proc / str(pid) / "fd"):
            inode = target[len("socket:[") : -1]
            if target.startswith("socket:[") and inode in inodes and found.get(inode, SYSTEMD) == SYSTEMD:
                found[inode] = pid
    return found


def unit_of(pid: int, proc: Path = PROC) -> str:
    """Return the unit that a process belongs to, or nothing for one that was started by hand."""
    for line in read(proc / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd") and (units := UNIT.findall(path)):
            return str(units[-1])
    return ""


def socket_units() -> dict[int, str]:
    """Return the unit of each port that systemd itself listens on."""
    command = ["systemctl", "list-sockets", "--all", "--plain", "--no-legend", "--full"]
    try:
        lines = programs.run(command, timeout=10).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    words = [line.split() for line in lines]
    return {int(port): unit for where, unit, *_ in words if (port := where.rsplit(":", 1)[-1]).isdigit()}


def listeners(proc: Path = PROC) -> Iterator[Listener]:
    """Return all listening TCP sockets of this host, by port."""
    open_sockets = sockets(proc)
    pids = holders(set(open_sockets), proc)
    if missing := set(open_sockets) - set(pids):
        # A server that is just being replaced has given its socket to a process that was not there yet.
        pids |= holders(missing, proc)
    activated = socket_units() if SYSTEMD in pids.values() else {}
    for inode, (address, port) in sorted(open_sockets.items(), key=lambda item: (item[1][1], item[1][0])):
        pid = pids.get(inode, 0)
        program = read(proc / str(pid) / "comm").strip() if pid else ""
        unit = activated.get(port, "") if pid == SYSTEMD else unit_of(pid, proc) if pid else ""
        yield Listener(port, address, pid, program, unit)


def ssh_connection(proc: Path = PROC) -> str:
    """Return "client port server port" of the ssh session that this process runs in, or nothing.

    sudo and the like drop the variable, but their own process and the login's shell still have it.
    """
    pid = str(os.getpid())
    while pid not in ("", "0"):
        for word in read(proc / pid / "environ").split("\0"):
            if word.startswith("SSH_CONNECTION="):
                return word.partition("=")[2]
        pid = "".join(re.findall(r"^PPid:\s+(\d+)$", read(proc / pid / "status"), re.MULTILINE))
    return ""

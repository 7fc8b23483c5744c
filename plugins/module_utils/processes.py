"""The processes of a host, with their units, containers and listening sockets, as the kernel and systemd know them.

Whatever cannot be read is left out, never a failure: a process may end at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs

# Where containers are in the tree of control groups.
CONTAINERS = (
    (re.compile(r"kubepods"), "kubernetes"),
    (re.compile(r"(^|/)docker[-/][0-9a-f]{12}"), "docker"),
    (re.compile(r"(^|/)libpod-(conmon-)?[0-9a-f]{12}"), "podman"),
    (re.compile(r"(^|/)(cri-containerd|nerdctl|containerd)[-/:]"), "containerd"),
    (re.compile(r"(^|/)crio-[0-9a-f]{12}"), "cri-o"),
    (re.compile(r"(^|/)lxc(\.payload)?[./]"), "lxc"),
    (re.compile(r"(^|/)machine\.slice/(machine-|systemd-nspawn@)"), "nspawn"),
)
# Bytes of a file of the kernel's.
LIMIT = 4 << 20
# setns(2): a network namespace.
CLONE_NEWNET = 0x40000000


@dataclass
class Process:
    """The kernel's report on a process."""

    pid: int
    name: str = ""
    program: str = ""
    parent: int = 0
    uid: int = 0
    cwd: str = "/"
    # Words of its command line while they can be read: Redis writes its title over them.
    words: list[str] = field(default_factory=list)
    # Path in the tree of control groups, below that of process 1.
    group: str = ""
    # Which namespaces it is in, as `/proc/PID/ns` names them.
    network: str = ""
    mounts: str = ""
    # Its root directory, as this process sees it.
    root: str = "/"
    container: str = ""

    def path(self, path: str) -> str:
        """Return where a file of the process is for this one; links are followed within its own root."""
        if self.root == "/" and self.mounts == link("/proc/self/ns/mnt"):
            return path
        return within(f"/proc/{self.pid}/root", path)


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket."""

    address: str
    port: int
    inode: str

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def read(path: str, limit: int = LIMIT) -> str:
    """Return a file of the kernel's or of systemd's, empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode(errors="surrogateescape")
    except OSError:
        return ""


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def within(root: str, path: str) -> str:
    """Return where a path of another root directory is, with every link followed below that root and nowhere else."""
    left = [part for part in path.split("/") if part]
    done: list[str] = []
    for _ in range(400):
        if not left:
            break
        part = left.pop(0)
        if part == ".":
            continue
        if part == "..":
            done = done[:-1]
            continue
        target = link("/".join([root, *done, part]))
        if not target:
            done.append(part)
            continue
        if target.startswith("/"):
            done = []
        left = [part for part in target.split("/") if part] + left
    return "/".join([root, *done])


def control_group(text: str) -> str:
    """Return the path in which systemd keeps a process, from /proc/PID/cgroup of version 1, 2 or both."""
    paths = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for controllers in ("name=systemd", ""):
        for _, name, path in paths:
            if name == controllers and path != "/":
                return path
    # Without systemd: wherever a container's engine has put it.
    return next((path for _, _, path in paths if path != "/"), "")


def below(path: str, root: str) -> str:
    """Return a control group relative to process 1's: this host may be a container itself."""
    root = re.sub(r"/init\.scope$", "", root).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def container_of(group: str) -> str:
    """Return what runs the container that a control group belongs to; empty for none."""
    return next((name for pattern, name in CONTAINERS if pattern.search(group)), "")


def unit_of(group: str) -> str:
    """Return the system's unit of a control group; empty for sessions, users' own units and containers."""
    units = re.findall(r"[^/]+\.service(?=/|$)", group)
    # A unit of somebody's own is no unit of the system's, and systemctl does not find it.
    return units[-1] if units and not re.match(r"user@\d+\.service", units[0]) else ""


def process(pid: int, first_group: str = "", own_namespace: str = "") -> Process | None:
    """Return a process; None when it is gone. The group is process 1's, the namespace that of this process."""
    status = dict(line.split(":\t", 1) for line in read(f"/proc/{pid}/status").splitlines() if ":\t" in line)
    if not status:
        return None
    group = below(control_group(read(f"/proc/{pid}/cgroup")), first_group)
    container = container_of(group)
    namespace = link(f"/proc/{pid}/ns/pid")
    if not container and own_namespace and namespace not in ("", own_namespace):
        container = "unknown"
    root = link(f"/proc/{pid}/root")
    cwd = link(f"/proc/{pid}/cwd").removesuffix(" (deleted)")
    if len(root) > 1 and f"{cwd}/".startswith(f"{root}/"):
        cwd = cwd[len(root) :] or "/"
    return Process(
        pid=pid,
        name=status.get("Name", ""),
        program=link(f"/proc/{pid}/exe").removesuffix(" (deleted)"),
        parent=int(status.get("PPid", "0")),
        uid=int(status.get("Uid", "0").split()[0]),
        cwd=cwd,
        words=command_line(read(f"/proc/{pid}/cmdline")),
        group=group,
        network=link(f"/proc/{pid}/ns/net"),
        mounts=link(f"/proc/{pid}/ns/mnt"),
        root=root,
        container=container,
    )


def command_line(text: str) -> list[str]:
    """Return the words that a process was started with; none when its title stands there instead."""
    words = text.rstrip("\0").split("\0")
    return words if len(words) > 1 else []


def _address(text: str) -> str:
    """Return an address of /proc/net/tcp or tcp6: words of 32 bits in the processor's own order."""
    packed = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def parse_listeners(lines: Iterable[str]) -> Iterator[Listener]:
    """Yield the listening sockets of /proc/net/tcp or tcp6."""
    for line in lines:
        fields = line.split()
        if len(fields) < 10 or fields[0] == "sl":
            continue
        if fields[3] != "0A":
            # The kernel lists them first, and a busy host has very many others.
            return
        address, port = fields[1].split(":")
        yield Listener(_address(address), int(port, 16), fields[9])


def listeners_of(pid: int | str) -> list[Listener]:
    """Return the listening sockets in a process' network namespace."""
    result = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}", encoding="utf-8") as file:
            result += list(parse_listeners(file))
    return result


def sockets_of(pid: int, wanted: set[str] | None = None) -> set[str]:
    """Return the inodes of a process' sockets, as far as they are among those that are wanted."""
    result = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = link(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:[") and (wanted is None or target[8:-1] in wanted):
                result.add(target[8:-1])
    return result


def unix_socket_of(one: Process, inodes: set[str]) -> str:
    """Return the path of the Unix socket on which a process listens."""
    for line in read(f"/proc/{one.pid}/net/unix", 64 << 20).splitlines():
        fields = line.split(None, 7)
        # SO_ACCEPTCON
        if len(fields) == 8 and fields[6] in inodes and int(fields[3], 16) & 0x10000:
            return os.path.join(one.cwd, fields[7])
    return ""


def all_listeners(known: Mapping[int, set[str]]) -> list[dict[str, Any]]:
    """Return all listening TCP sockets of the host with their processes; those of `known` processes are at hand."""
    here = listeners_of("self")
    missing = {listener.inode for listener in here}
    owner: dict[str, int] = {}
    others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in known)
    for pid in [*known, *others]:
        if not missing:
            break
        for inode in (known[pid] if pid in known else sockets_of(pid, missing)) & missing:
            owner[inode] = pid
            missing.discard(inode)
    first_group = control_group(read("/proc/1/cgroup"))
    result = []
    for listener in here:
        pid = owner.get(listener.inode, 0)
        group = below(control_group(read(f"/proc/{pid}/cgroup")), first_group) if pid else ""
        program = link(f"/proc/{pid}/exe").removesuffix(" (deleted)") or read(f"/proc/{pid}/comm").strip()
        result.append(
            {
                "port": listener.port,
                "address": listener.address,
                "pid": pid,
                "program": program,
                "unit": "" if container_of(group) else unit_of(group),
            }
        )
    return sorted(result, key=lambda item: (item["port"], item["address"]))


def show_units(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return systemd's report on units, by name; empty where there is no systemd."""
    wanted = sorted(set(names) - {""})
    if not wanted:
        return {}
    properties = "Id,Names,LoadState,FragmentPath,UnitFileState,MainPID,ExecStart,WorkingDirectory"
    try:
        output = programs.run(["systemctl", "show", "--property", properties, "--", *wanted], timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    result = {}
    for block in output.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for name in {values.get("Id", ""), *values.get("Names", "").split()} - {""}:
            result[name] = values
    return result


@contextlib.contextmanager
def network_of(one: Process) -> Iterator[None]:
    """Be in a process' network namespace; nothing where it is this one's."""
    if not one.network or one.network == link("/proc/self/ns/net"):
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if library.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{one.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            enter(back)
    finally:
        os.close(back)

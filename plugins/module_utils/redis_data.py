"""Find Redis' data in the data folders of a host: snapshots and append-only files."""

from __future__ import annotations

import glob
import os
import re
import stat
import time
from collections.abc import Iterable
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.processes import Process, link, read
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_started import USUAL, arguments, load

# In every unit file that the role redis has ever written.
OURS = "What is in this file counts from the next start on"
OUR_UNIT = re.compile(r"/etc/systemd/system/redis-server(@[^/]+)?\.service")
UNITS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
DATA = ("/var/lib/redis*", "/var/lib/valkey*", "/var/lib/keydb*")
# Bytes of what begins a file, and files of a folder.
HEAD = 512
FILES = 500


def is_ours(unit_file: str) -> bool:
    """Return whether a unit file is one that the role redis has written."""
    return bool(OUR_UNIT.fullmatch(unit_file)) and OURS in read(unit_file)


def configured_folders() -> set[str]:
    """Return the data folders that units and configurations of this host name."""
    files = {path for pattern in USUAL for path in glob.glob(pattern)}
    places = dict[str, str]()
    for folder in UNITS:
        for path in glob.glob(f"{folder}/*.service") + glob.glob(f"{folder}/*.wants/*.service"):
            if not re.match(r"(redis|valkey|keydb)", os.path.basename(path)):
                continue
            text = read(path)
            instance = re.sub(r"^[^@]*@?|\.service$", "", os.path.basename(path))
            for started in re.findall(r"^ExecStart=[-@:+!]*(.+)$", text, re.MULTILINE):
                file = arguments(started.split())[0].replace("%i", instance).replace("%I", instance)
                working = re.search(r"^WorkingDirectory=-?(/.*)$", text, re.MULTILINE)
                if file.startswith("/"):
                    files.add(file)
                    places[file] = working[1].strip() if working else ""
    result = set[str]()
    here = Process(os.getpid(), mounts=link("/proc/self/ns/mnt"))
    for path in files:
        config = load(here, path)
        lines = config.lines("dir")
        folder = os.path.join(places.get(path, ""), lines[-1][0] if lines and lines[-1] else "")
        if folder.startswith("/"):
            result.add(os.path.realpath(folder))
    return result


def data_files(used: Iterable[str]) -> list[dict[str, Any]]:
    """Return the snapshots and append-only files in data folders, but for those that a running server uses."""
    folders = configured_folders() | {os.path.realpath(path) for pattern in DATA for path in glob.glob(pattern)}
    taken = {os.path.realpath(path) for path in used if path}
    result = []
    for folder in sorted(folders - taken):
        for path in _listed(folder):
            if entry := _data_file(path):
                result.append({**entry, "ours": _our_folder(folder)})
    return result


def _listed(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))[:FILES]]
    except OSError:
        return []


def _our_folder(folder: str) -> bool:
    """Return whether a data folder is that of an instance which the role redis has set up."""
    match = re.fullmatch(r"/var/lib/redis(?:-(.+))?", folder)
    name = f"@{match[1]}" if match and match[1] else ""
    return bool(match) and is_ours(f"/etc/systemd/system/redis-server{name}.service")


def _data_file(path: str) -> dict[str, Any] | None:
    """Return what a snapshot, an append-only file or a folder with one is; None for anything else."""
    try:
        about = os.lstat(path)
        if stat.S_ISDIR(about.st_mode):
            return _log_folder(path)
        if not stat.S_ISREG(about.st_mode) or os.path.basename(path).startswith("temp-"):
            return None
        version, redis, empty = head(path)
    except OSError:
        return None
    log = path.endswith(".aof")
    if not version and not (log and about.st_size):
        return None
    # What follows the snapshot that a log may begin with is not looked at.
    return _file(path, "aof" if log else "rdb", version, redis, empty and not log, about.st_size, about.st_mtime)


def _log_folder(path: str) -> dict[str, Any] | None:
    """Return what an append-only file of several parts is; the version is that of its base."""
    parts = [entry for entry in os.scandir(path) if entry.is_file(follow_symlinks=False)]
    if not any(part.name.endswith(".manifest") for part in parts):
        return None
    version, redis, empty = next((head(part.path) for part in parts if part.name.endswith(".base.rdb")), (0, "", False))
    sizes = [part.stat() for part in parts]
    empty = empty and not any(part.stat().st_size for part in parts if part.name.endswith(".incr.aof"))
    return _file(path, "aof", version, redis, empty, sum(a.st_size for a in sizes), max(a.st_mtime for a in sizes))


def _file(path: str, kind: str, version: int, redis: str, empty: bool, size: int, modified: float) -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(modified))
    return {
        "path": path,
        "kind": kind,
        "rdb_version": version,
        "redis_version": redis,
        "empty": empty,
        "bytes": size,
        "modified": moment,
    }


def head(path: str) -> tuple[int, str, bool]:
    """Return a snapshot's format, which Redis has written it, and whether it is without keys and functions.

    The format of a file that is no snapshot is 0.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        begin = file.read(HEAD)
    match = re.match(rb"(?:REDIS|VALKEY)(\d{3,4})", begin)
    if not match:
        return 0, "", False
    about, end = _notes(begin, match.end())
    # The opcode for the end of the file.
    return int(match[1]), about.get("redis-ver") or about.get("valkey-ver", ""), begin[end : end + 1] == b"\xff"


def _notes(begin: bytes, at: int) -> tuple[dict[str, str], int]:
    """Return the facts about a snapshot at its beginning, and the place behind them.

    Pairs of texts, each with its length before it, or a number in one of three sizes.
    """
    notes = {}
    while begin[at : at + 1] == b"\xfa":
        at += 1
        pair = []
        for _ in range(2):
            first = begin[at] if at < len(begin) else 0
            start, size = at + 1, first & 0x3F
            if first >> 6 == 1:
                start, size = at + 2, (first & 0x3F) << 8 | int.from_bytes(begin[at + 1 : at + 2], "big")
            elif first >> 6 == 3:
                size = {0xC0: 1, 0xC1: 2, 0xC2: 4}.get(first, HEAD)
            elif first >> 6 == 2:
                size = HEAD
            pair.append(begin[start : start + size].decode("ascii", "replace"))
            at = start + size
        notes[pair[0]] = pair[1]
    return notes, at

"""Jinja filters for hosts that have a Redis which this bundle did not set up; values are those of redis_survey."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Server = Mapping[str, Any]
# The first version whose clients can be made to wait with their writes alone: CLIENT PAUSE … WRITE.
OLDEST = (6, 2)
# What the takeover asks the old server for.
NEEDED = ("CLIENT", "INFO", "PING", "PSYNC", "REPLCONF")
# Of data that Redis counts, its own buffers are a part.
SLACK = 1.1


class Obstacle(NamedTuple):
    """Why a server cannot be taken over: the thing, the value found, and what is expected."""

    name: str
    found: str
    expected: str


def label(server: Server) -> str:
    """Return in words which server it is and what it has."""
    keys = "an unknown number of keys" if server["keys"] is None else f"{server['keys']} keys"
    data = server["data"]
    file = (
        f"{data['dir']}/{data['appenddirname']}"
        if data.get("appendonly")
        else f"{data.get('dir')}/{data.get('dbfilename')}"
    )
    where = server["unit"] or f"process {server['pid']}, without a unit"
    place = f", in a container ({server['container']})" if server["container"] else ""
    listens = ", ".join(server["addresses"]) or server["socket"] or "no port"
    return f"{server['kind']} {server['version'] or '(version unknown)'} on {listens} ({where}{place}), {keys}, {file}"


def version(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, such as `5:7.0.15-1~deb12u10`; none where there are none."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+)\.([0-9]+)", text)
    return (int(match[1]), int(match[2])) if match else ()


def choose(servers: Iterable[Server], port: Any, claimed: Iterable[Any]) -> list[Server]:
    """Return the servers that an instance may mean: those on `port`, or, without one, those that no other claims."""
    if str(port):
        return [server for server in servers if str(server["port"]) == str(port)]
    taken = {str(item) for item in claimed}
    return [server for server in servers if str(server["port"]) not in taken]


def obstacles(server: Server, ours: str, maxmemory: int, mode: str) -> list[Obstacle]:
    """Return why a server cannot be taken over (`keep`) or set aside (`replace`); none if it can.

    `ours` is the version that will run, `maxmemory` the new server's, in bytes.
    """
    found: list[Obstacle] = []

    def refuse(name: str, value: str, expected: str) -> None:
        found.append(Obstacle(f"old server's {name}", value, expected))

    if server["container"]:
        refuse(
            "container",
            f"{server['container']}",
            "a server of the host itself: nothing here can stop that one and keep it stopped. Stop its container, and "
            "restore a backup of it",
        )
    if server["kind"] != "redis":
        refuse("kind", server["kind"], "redis")
    if server.get("cluster"):
        refuse("cluster mode", "cluster-enabled yes", "a server without cluster mode, as the new one has none")
    if server["role"] == "slave":
        refuse(
            "role",
            f"a replica of {server['primary']}",
            "a primary. Take its primary over; or, if that is gone, make this one a primary (REPLICAOF NO ONE)",
        )
    if server["login"] in ("refused", "unreachable"):
        refuse(
            "login",
            server["login_problem"] or server["login"],
            "redis_adopt_username and redis_adopt_password that log in there",
        )
        return found
    if server["loading"]:
        refuse("data", "still being loaded", "a server that has loaded its data; run this again when it has")
    if not server["port"]:
        refuse("port", "no port in plaintext", "one on loopback, for the time of the takeover: CONFIG SET port 6379")
    if server["modules"]:
        refuse(
            "modules",
            ", ".join(server["modules"]),
            "none: modules are off in the new server, which could not load their data",
        )
    known = version(server["version"])
    if known and known < OLDEST:
        refuse("version", server["version"], "6.2 or newer, whose clients can be made to wait. Upgrade it first")
    if mode == "keep" and known and version(ours) and known > version(ours):
        refuse(
            "version",
            server["version"],
            f"{'.'.join(map(str, version(ours)))} or older: the new server cannot read the data of a newer one",
        )
    renamed = {name.upper(): new for name, new in server["renamed"].items()}
    for name in NEEDED:
        if name in renamed:
            refuse(f"command {name}", "renamed" if renamed[name] else "switched off", "that name: it is needed here")
    # Not what they are called now: such names are kept secret.
    others = [name for name, new in sorted(renamed.items()) if new and name not in NEEDED]
    if others and mode == "keep":
        refuse(
            "renamed commands",
            ", ".join(others),
            "none that clients may use by another name, which the new server lacks. Change the clients, and take "
            'the lines out, or switch the commands off (rename-command NAME "")',
        )
    used = int(server["used_memory"] or 0)
    if mode == "keep" and maxmemory and used > maxmemory * SLACK:
        refuse(
            "data",
            f"{used >> 20} MiB in memory",
            f"that they fit into redis_maxmemory, {maxmemory >> 20} MiB: keys would be thrown away",
        )
    return found


def staged(files: Iterable[Mapping[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Return files as write_files takes them, each under its own name in `folder`."""
    return [{**file, "path": f"{folder}/{os.path.basename(file['path'])}", "mode": "0600"} for file in files]


def places(files: Iterable[Mapping[str, Any]], folder: str) -> list[dict[str, str]]:
    """Return where each of the files that `staged` prepared is to be, and whose it is."""
    return [
        {
            "staged": f"{folder}/{os.path.basename(file['path'])}",
            "path": str(file["path"]),
            "owner": str(file.get("owner", "root")),
            "group": str(file.get("owner", "root")),
            "mode": str(file.get("mode", "0644")),
        }
        for file in files
    ]


def as_checks(found: Iterable[Obstacle]) -> list[dict[str, Any]]:
    """Return obstacles as failed checks of the action plugin `checks`."""
    return [{"name": item.name, "problem": item.found, "expected": item.expected} for item in found]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "adoption_label": label,
            "adoption_choose": choose,
            "adoption_staged": staged,
            "adoption_places": places,
            "adoption_obstacles": lambda *words: as_checks(obstacles(*words)),
        }

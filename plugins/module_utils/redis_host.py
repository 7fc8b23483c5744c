"""Find the Redis servers of a host, of any origin, and say what each is. Changes nothing.

The kernel knows which processes there are, what they listen on and where they keep their data; systemd knows their
units; the server itself and its configuration say the rest.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import redis_acl
from ansible_collections.quantdesk.redis.plugins.module_utils.processes import (
    Process,
    all_listeners,
    control_group,
    link,
    listeners_of,
    process,
    read,
    show_units,
    sockets_of,
    unit_of,
    unix_socket_of,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_answers import Answers, reach, ways
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (
    HIDDEN,
    OWNED,
    SECRETS,
    STARTUP,
    ConfError,
    default,
    from_live,
    same,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_data import data_files, is_ours
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_defaults import DEFAULTS
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_started import (
    SERVER,
    Configuration,
    by_looks,
    configuration,
    is_server,
    load,
    text_of,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.sendable import sendable

SHELLS = {"sh", "bash", "dash", "ash", "busybox"}
# Clients that are told of.
CLIENTS = 1000
# From this number on there are people's accounts, or those of nobody's containers.
PEOPLE = 1000
ACCOUNTS = {"root", "redis", "valkey", "keydb"}


def servers(pids: Iterable[int] | None = None) -> list[Process]:
    """Return the server processes of this host, without the children that they fork to write their files."""
    candidates = [int(name) for name in os.listdir("/proc") if name.isdigit()] if pids is None else list(pids)
    first_group = control_group(read("/proc/1/cgroup"))
    namespace = link("/proc/self/ns/pid")
    result = {}
    for pid in candidates:
        program = link(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        if is_server(read(f"/proc/{pid}/comm").strip(), program) and (one := process(pid, first_group, namespace)):
            result[pid] = one
    return [one for pid, one in sorted(result.items()) if one.parent not in result]


def runs(unit: Mapping[str, str], one: Process) -> bool:
    """Return whether a unit is what starts a process: cron or sshd may be where somebody has started it by hand."""
    main = int(unit.get("MainPID") or 0)
    if main == one.pid or re.search(r"(redis|valkey|keydb)", unit.get("ExecStart", "")):
        return True
    return main == one.parent != 0 and read(f"/proc/{main}/comm").strip() in SHELLS


def _users(answers: Answers, one: Process, config: Configuration) -> list[dict[str, str]]:
    """Return the users, with hashes of their passwords, as the server says or, failing that, its files."""
    lines = answers.users
    if not lines and not answers.info:
        lines = [" ".join(["user", *words]) for words in config.lines("user")]
        if path := config.value("aclfile"):
            with contextlib.suppress(OSError):
                lines += text_of(one.path(os.path.join(one.cwd, path))).splitlines()
        password = config.value("requirepass")
        if password and not any(line.split()[1:2] == ["default"] for line in lines):
            lines.append(f"user default on >{password} ~* &* +@all")
    users = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "user":
            continue
        # A file may hold passwords in clear; `<` takes one back.
        rules = [f"#{redis_acl.digest(word[1:])}" if word[0] == ">" else word for word in words[2:] if word[0] != "<"]
        users.append({"name": words[1], "rules": " ".join(rules)})
    return users


def _settings(answers: Answers, config: Configuration) -> dict[str, str]:
    """Return what differs from the defaults of Redis 7, and what is set although those have no such directive."""
    named = config.names()
    values = answers.config or {name: config.value(name) for name in named}
    result = {}
    for name, value in sorted(values.items()):
        if name in STARTUP | OWNED | {"dir", "pidfile"} or (name not in DEFAULTS and name not in named):
            continue
        # An odd value is one that differs.
        with contextlib.suppress(ConfError):
            if same(name, from_live(name, value), default(name)) or (name == "logfile" and not value):
                continue
        result[name] = HIDDEN if name in SECRETS and value else value
    return result


def _clients(answers: Answers, tls_port: int) -> list[dict[str, Any]]:
    """Return who is connected, once for each host, user, name, database and library."""
    result = dict[tuple[Any, ...], dict[str, Any]]()
    for client in answers.clients:
        local = client.get("laddr", "").rpartition(":")[2]
        address = client.get("addr", "")
        entry = {
            # The port is another one for each connection.
            "address": address.rpartition(":")[0].strip("[]"),
            "name": client.get("name", ""),
            "user": client.get("user", ""),
            "db": int(client.get("db", "0")),
            "tls": bool(tls_port) and local == str(tls_port),
            "library": " ".join(filter(None, [client.get("lib-name", ""), client.get("lib-ver", "")])),
        }
        result.setdefault(tuple(entry.values()), {**entry, "connections": 0})["connections"] += 1
    return list(result.values())[:CLIENTS]


def _kind(one: Process, answers: Answers, config: Configuration) -> str:
    words = [*one.words, read(f"/proc/{one.pid}/cmdline")]
    if "sentinel" in one.name or answers.info.get("redis_mode") == "sentinel":
        return "sentinel"
    if "--sentinel" in words or words[-1].rstrip("\0").endswith("[sentinel]") or config.lines("sentinel"):
        return "sentinel"
    if answers.info.get("server_name") == "valkey":
        return "valkey"
    match = SERVER.match(one.name) or SERVER.match(os.path.basename(one.program))
    return match[1] if match else "redis"


def _user(one: Process) -> str:
    """Return the name of a process' user; its number where this host's names do not count."""
    if not one.container:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(one.uid).pw_name
    return str(one.uid)


def trusted(one: Process, unit: str, login: Mapping[str, Any], ports: set[int]) -> bool:
    """Return whether a server may be shown a login: anybody can run a program by the name of redis-server."""
    if login.get("password") is None:
        return False
    if login.get("port"):
        return int(login["port"]) in ports
    if one.container:
        return bool(one.container != "unknown" and one.uid < PEOPLE)
    return bool(unit) or _user(one) in ACCOUNTS


def _own_logins(one: Process, unit: str, config: Configuration) -> list[dict[str, Any]]:
    """Return the logins in a server's configuration; none where it may only pretend that the file is its own."""
    logins: list[dict[str, Any]] = config.logins()
    with contextlib.suppress(OSError):
        # What it includes may be somebody else's.
        if config.file and os.stat(one.path(config.file)).st_uid == one.uid and not config.lines("include"):
            return logins
    return [login for login in logins if trusted(one, unit, login, set())]


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d+", text) else 0


def describe(
    one: Process, unit: str, shown: Mapping[str, str], sockets: set[str], logins: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return everything about one server."""
    listening = [listener for listener in listeners_of(one.pid) if listener.inode in sockets]
    socket_path = unix_socket_of(one, sockets)
    ports = {listener.port for listener in listening}
    config = configuration(one, shown)
    if not config.file:
        config = by_looks(one, config, ports, socket_path)
    allowed = [login for login in logins if trusted(one, unit, login, ports)]
    answers = reach(one, ways(socket_path, listening, config), config, [*_own_logins(one, unit, config), *allowed])
    file = answers.info.get("config_file", config.file)
    if not file:
        config = Configuration(given=config.given)
    elif file != config.file:
        again = load(one, file)
        config = Configuration(file, again.problem, again.entries, config.given)
        if not answers.config and config.renamed().get("CONFIG"):
            # Only now is it known by which name it goes.
            answers = reach(
                one, ways(socket_path, listening, config), config, [*_own_logins(one, unit, config), *allowed]
            )
    info, live = answers.info, answers.config

    def value(name: str) -> str:
        return str(live[name] if name in live else config.value(name))

    renamed = config.renamed()
    if "unknown command" in answers.refusals.get("CONFIG GET *", ""):
        renamed.setdefault("CONFIG", "")
    port, tls_port = _number(value("port")), _number(value("tls-port"))
    if not live and not config.names():
        # The way in is all that is known of its ports.
        tls_port = answers.port if answers.tls else 0
        port = min(ports - {tls_port}, default=0)
    loading = info.get("loading") == "1"
    databases = {name[2:]: _number(re.sub(r"keys=(\d+).*", r"\1", text)) for name, text in info.items() if _is_db(name)}
    primary = [info.get("master_host", ""), info.get("master_port", "")] if info else value("replicaof").split()
    replicas = [
        dict(word.split("=", 1) for word in text.split(",")) for name, text in info.items() if _is_replica(name)
    ]
    role = info.get("role", "slave" if primary[:1] not in ([], [""]) else "master")
    return {
        "pid": one.pid,
        "program": one.program,
        "version": info.get("valkey_version") or info.get("redis_version", ""),
        "kind": _kind(one, answers, config),
        "unit": unit,
        "unit_file": shown.get("FragmentPath", "") if unit else "",
        "unit_enabled": bool(unit) and shown.get("UnitFileState") in ("enabled", "enabled-runtime", "generated"),
        "ours": bool(unit) and is_ours(shown.get("FragmentPath", "")),
        "container": one.container,
        "user": _user(one),
        "cwd": one.cwd,
        "config_file": config.file,
        "config_problem": config.problem,
        "port": port,
        "tls_port": tls_port,
        "addresses": sorted(map(str, listening)),
        "socket": socket_path,
        "login": answers.login,
        "login_as": answers.login_as,
        "login_problem": answers.problem,
        "loading": loading,
        "role": "slave" if role == "slave" else "master",
        "primary": ":".join(primary) if role == "slave" else "",
        "replicas": [f"{replica.get('ip', '')}:{replica.get('port', '')}" for replica in replicas],
        "cluster": info.get("cluster_enabled", "1" if value("cluster-enabled") == "yes" else "0") == "1",
        "keys": sum(databases.values()) if info and not loading else None,
        "databases": databases if info and not loading else {},
        "used_memory": _number(info.get("used_memory", "0")),
        "modules": answers.modules if info else _module_files(config),
        "functions": _number(info.get("number_of_functions", "0")),
        "renamed": renamed,
        "users": _users(answers, one, config),
        "data": {
            # Redis goes there when it starts.
            "dir": one.cwd or value("dir"),
            "dbfilename": value("dbfilename"),
            "appendonly": value("appendonly").lower() == "yes",
            # Before Redis 7 it is one file, beside the snapshot.
            "appenddirname": live.get("appenddirname", "") if live else config.value("appenddirname"),
            "appendfilename": value("appendfilename"),
            "save": value("save"),
        },
        "settings": _settings(answers, config),
        "clients": _clients(answers, tls_port),
    }


def _is_db(name: str) -> bool:
    return re.fullmatch(r"db\d+", name) is not None


def _is_replica(name: str) -> bool:
    return re.fullmatch(r"slave\d+", name) is not None


def _module_files(config: Configuration) -> list[str]:
    """Return the modules that a configuration loads, by the names of their files."""
    return [os.path.basename(words[0]) for words in config.lines("loadmodule") if words]


def survey(logins: list[dict[str, Any]], pids: Iterable[int] | None = None) -> dict[str, Any]:
    """Return the servers of this host, data that no server has, and all listeners; of servers only those of `pids`."""
    processes = servers(pids)
    sockets = {one.pid: sockets_of(one.pid) for one in processes}
    named = {one.pid: "" if one.container else unit_of(one.group) for one in processes}
    shown = show_units(named.values())
    described = []
    for one in processes:
        unit = named[one.pid]
        if unit and not runs(shown.get(unit, {}), one):
            unit = ""
        described.append(describe(one, unit, shown.get(unit, {}), sockets[one.pid], logins))
    used = [server["data"]["dir"] for server in described if not server["container"]]
    result: dict[str, Any] = sendable(
        {"servers": described, "files": data_files(used), "listeners": all_listeners(sockets)}
    )
    return result

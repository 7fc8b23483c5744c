"""The directives of a server as inputs of the role redis: those with an input of their own, and redis_settings."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import redis_defaults
from ansible_collections.quantdesk.redis.plugins.test import inputs

from .defaults import default_text, role_defaults
from .model import Adopted, Input
from .survey import Server, appends, bind_of, buffer_limits_of, number, save_points_of, value_of
from .words import failing, one_line, size_text

MIB = 2**20
# By directive: the input of the role redis that stands for it. Written for each server, in this order.
INPUTS = {
    "port": "port",
    "tls-port": "tls_port",
    "tls-auth-clients": "tls_auth_clients",
    "bind": "bind",
    "maxmemory": "maxmemory",
    "maxmemory-policy": "maxmemory_policy",
    "appendonly": "appendonly",
    "appendfsync": "appendfsync",
    "save": "save",
    "maxclients": "maxclients",
    "tcp-keepalive": "tcp_keepalive",
    "client-output-buffer-limit": "client_output_buffer_limits",
    "io-threads": "io_threads",
}
# Directives that the role sets and has no input for; the controls that another value fails.
FIXED: dict[str, tuple[int, ...]] = {
    "protected-mode": (27,),
    "enable-debug-command": (26,),
    "enable-module-command": (26,),
    "enable-protected-configs": (26,),
    "tls-replication": (13,),
    "tls-protocols": (6,),
    "tls-ciphers": (7,),
    "tls-prefer-server-ciphers": (),
    "tcp-backlog": (),
    "timeout": (),
    "acllog-max-len": (),
    "acl-pubsub-default": (),
    "aof-use-rdb-preamble": (),
    "stop-writes-on-bgsave-error": (),
    "repl-diskless-sync-delay": (),
    "loglevel": (),
}
# Where things are; the bundle has places of its own, and the data are moved there.
PLACES = {
    *("dir", "dbfilename", "appenddirname", "appendfilename", "pidfile", "logfile", "aclfile", "daemonize"),
    *("supervised", "tls-ca-cert-file", "tls-cert-file", "tls-key-file"),
}
# Directives that are not taken over, and why. No value of theirs is ever shown: some are passwords.
LEFT_OUT = {
    "masterauth": "topology standalone has no primary to log in to",
    "masteruser": "topology standalone has no primary to log in to",
    "replicaof": "Redis itself writes it",
    "slaveof": "Redis itself writes it",
    "rename-command": "users may or may not run a command",
    "include": "what it includes is described here",
    "loadmodule": "modules are switched off",
    "user": "users are in extra_users",
    "min-replicas-to-write": "without replicas every write would be refused",
    "cluster-enabled": "topology standalone is no cluster",
    "tls-ca-cert-dir": "the role certificates brings the authority's certificate",
    "tls-client-cert-file": "topology standalone connects to no other server",
    "tls-client-key-file": "topology standalone connects to no other server",
    "tls-client-key-file-pass": "topology standalone connects to no other server",
    "tls-key-file-pass": "the role certificates brings a key without a password",
    "tls-dh-params-file": "the ciphers of the bundle need none",
}
CONTROLS_OF_PLAINTEXT = (3, 5)


def suggested_maxmemory(server: Server, memory: int) -> int:
    """Return a limit, in bytes, for a server that has none: twice what it uses, within three quarters of the host.

    `memory` is the host's, in MiB, or 0 where it is unknown. In large steps, so that a second look at the same server
    does not differ.
    """
    step = 256 * MIB
    wanted = max(512 * MIB, -(-2 * number(server.get("used_memory")) // step) * step)
    return max(MIB, min(wanted, memory * 3 // 4 * MIB)) if memory else wanted


def directive_inputs(server: Server, tls_port: int, memory: int) -> list[Input]:
    """Return the inputs that stand for directives, as the server has them, or the nearest that the role takes.

    `tls_port` is for a server without TLS, `memory` the host's in MiB, or 0.
    """
    port, old_tls = number(server.get("port")), number(server.get("tls_port"))
    appendonly, save = appends(server), save_points_of(server)
    policy = str(value_of(server, "maxmemory-policy")).lower()
    limit = number(value_of(server, "maxmemory"))
    values: dict[str, Any] = {
        "port": port,
        "tls_port": old_tls or tls_port,
        "tls_auth_clients": str(value_of(server, "tls-auth-clients")).lower() == "yes",
        "bind": bind_of(server),
        "maxmemory": size_text(limit or suggested_maxmemory(server, memory)),
        "maxmemory_policy": policy,
        "appendonly": appendonly,
        "appendfsync": str(value_of(server, "appendfsync")).lower(),
        "save": save,
        "maxclients": number(value_of(server, "maxclients")),
        "tcp_keepalive": number(value_of(server, "tcp-keepalive")),
        "client_output_buffer_limits": buffer_limits_of(server),
        "io_threads": number(value_of(server, "io-threads")),
    }
    if not old_tls:
        del values["tls_auth_clients"]
    found = {name: Input(name, value, default_text(name)) for name, value in values.items()}
    if port:
        found["port"].fails = CONTROLS_OF_PLAINTEXT
        found["port"].note = "0 once no client uses it"
    if not old_tls:
        found["tls_port"].note = "new, beside the plaintext port"
    if not limit:
        found["maxmemory"].note = "it has no limit today, and the bundle requires one"
    elif limit < MIB:
        found["maxmemory"].value = "1mb"
        found["maxmemory"].note = f"today {limit} bytes, and 1mb is the least"
    if not appendonly and not save and policy == "noeviction":
        found["appendonly"].value = True
        found[
            "appendonly"
        ].note = "today false, but without snapshots a restart would lose all, which noeviction forbids"
    if not values["tcp_keepalive"]:
        found["tcp_keepalive"].value = role_defaults()["tcp_keepalive"]
        found["tcp_keepalive"].note = "today 0 (off), which the bundle does not have"
    for item in found.values():
        # A comment that says nothing is none.
        if item.value == role_defaults().get(item.name) and not item.fails and not item.note:
            item.default = "the same"
    return list(found.values())


def typed(value: Any) -> Any:
    """Return a directive's value as YAML shows it best: a number, a truth value or a text."""
    if isinstance(value, (list, tuple)):
        return [typed(item) for item in value]
    text = str(value)
    if text in ("yes", "no"):
        return text == "yes"
    return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else text


def socket_setting(server: Server, name: str, directive: str, value: Any) -> tuple[Any, str]:
    """Return the setting for a directive of the Unix socket, or None and in words why there is none, if that is new."""
    folder = str(value_of(server, "unixsocket")).removeprefix("/var").rpartition("/")[0]
    if folder == "/run/redis" and not name:
        return (typed(value) if directive == "unixsocket" else str(value)), ""
    if directive == "unixsocket":
        return None, f"unixsocket {one_line(value)}: the unit may not write there; clients use the port"
    return None, ""


def further_settings(server: Server, name: str) -> Adopted:
    """Return redis_settings for an instance of a name: the directives without an input that the role can keep."""
    kept: dict[str, Any] = {}
    changes: list[str] = []
    for directive, value in sorted((server.get("settings") or {}).items()):
        if directive in INPUTS or directive in PLACES:
            continue
        shown = one_line(directive)
        if directive in FIXED:
            fails = failing(FIXED[directive])
            changes.append(
                f"{shown}: today {one_line(value) or 'empty'}; the bundle sets its own value"
                + (f" ({fails})" if fails else "")
            )
        elif directive == "requirepass":
            changes.append(
                "requirepass: its file holds the password in clear (control 34 fails today), and a hash from now on"
            )
        elif directive in LEFT_OUT:
            changes.append(f"{shown}: not taken over, as {LEFT_OUT[directive]}")
        elif directive in ("unixsocket", "unixsocketperm"):
            setting, problem = socket_setting(server, name, directive, value)
            if setting is not None:
                kept[directive] = setting
            changes += [problem] if problem else []
        elif directive not in redis_defaults.DEFAULTS:
            changes.append(f"{shown}: Redis 7 does not know it")
        elif not inputs.is_redis_value(typed(value)):
            changes.append(f"{shown}: its value cannot be in one line of a file")
        else:
            kept[directive] = typed(value)
    note = "further directives that differ from Redis' defaults"
    return Adopted([Input("settings", kept, "none", note=note)] if kept else [], changes)

"""Describe the Redis servers of a host that this bundle did not make, as host_vars for it: a file on the controller.

    adoption_file:
      host: redis1
      survey: "{{ redis_survey's result }}"
      folder: output/adoption    # for HOST.yml
      memory: 3900               # the host's, in MiB, for servers without a limit
      version: 7.0.15            # the Redis that the role installs

The file describes each server as it is, in the inputs of the role redis; beside each line stand the bundle's default
and the controls of docs/controls.md that the old server fails. What cannot be kept, or not adopted at all, is named
there and on the terminal. Passwords are never in it. A file that is there already and differs is left alone: the new
one is HOST.yml.new.

Nothing here asks a host. What a host has said is data: no text of it becomes a template, a line of its own, or a path.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.quantdesk.redis.plugins.filter import adoption
from ansible_collections.quantdesk.redis.plugins.module_utils import redis_acl, redis_defaults
from ansible_collections.quantdesk.redis.plugins.test import inputs

PROJECT = Path(__file__).resolve().parents[2]
WIDTH = 118
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
# Users of the role's own. The old password of the first ones stays accepted: it opens no more than it did.
OWN_USERS = ("default", "app", "exporter", "admin", "backup", "replica", "sentinel")
KEPT_USERS = ("default", "app", "exporter")
CONTROLS_OF_OPEN_DEFAULT = (17,)
CONTROLS_OF_PLAINTEXT = (3, 5)


@cache
def role_defaults() -> dict[str, Any]:
    """Return the role's defaults by the names that an instance has for them."""
    values = yaml.safe_load((PROJECT / "roles/redis/defaults/main.yml").read_text(encoding="utf-8"))
    return {name.removeprefix("redis_"): value for name, value in values.items()}


def one_line(value: Any) -> str:
    """Return a text as one line that can stand in a comment or on a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(value).split()))


def scalar(value: Any) -> str:
    """Return a value as YAML, in one line; a text that Ansible would take for a template is marked as none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9/.][A-Za-z0-9/. _+-]*[A-Za-z0-9/]|[A-Za-z]", text) and yaml.safe_load(text) == text:
        return text
    mark = "!unsafe " if re.search(r"\{[{%#]", text) else ""
    return mark + json.dumps(text).replace("\x7f", "\\x7f")


def flow(value: Any) -> str:
    """Return a value as YAML in one line, lists and mappings included."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    return scalar(value)


def block(key: str, value: Any, indent: int) -> list[str]:
    """Return the lines of `key: value`, in one line where it fits."""
    margin = " " * indent
    short = f"{margin}{key}: {flow(value)}"
    if not value or not isinstance(value, (Mapping, list)) or (len(short) <= WIDTH and not nested(value)):
        return [short]
    lines = [f"{margin}{key}:"]
    if isinstance(value, Mapping):
        for name, item in value.items():
            lines += block(scalar(name), item, indent + 2)
        return lines
    for item in value:
        if isinstance(item, Mapping):
            first, *rest = [line for name, part in item.items() for line in block(scalar(name), part, indent + 4)]
            lines += [f"{margin}  - {first.strip()}", *rest]
        else:
            lines.append(f"{margin}  - {flow(item)}")
    return lines


def nested(value: Any) -> bool:
    """Tell whether a list or mapping is better read in several lines."""
    if isinstance(value, Mapping):
        return True
    return any(isinstance(item, (Mapping, list)) for item in value)


def size(count: int) -> str:
    """Return bytes as Redis writes them, in the largest unit that is exact."""
    for unit, factor in (("gb", 2**30), ("mb", 2**20), ("kb", 2**10)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def readable(count: float) -> str:
    """Return bytes for a reader."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def number(text: Any) -> int:
    """Return a whole number, 0 for what is none."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,19}", str(text)) else 0


def plural(count: int, noun: str) -> str:
    """Return `1 key` or `2 keys`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def controls(numbers: Iterable[int]) -> str:
    """Return `control 3 fails today`, or nothing."""
    found = sorted(set(numbers))
    if not found:
        return ""
    many = len(found) > 1
    return f"control{'s' if many else ''} {', '.join(map(str, found))} {'fail' if many else 'fails'} today"


def where(server: Mapping[str, Any]) -> str:
    """Return how a server is told from others on its host."""
    ports = [str(port) for port in (server.get("port"), server.get("tls_port")) if port]
    if ports:
        return f"port {' and '.join(ports)}"
    return f"socket {one_line(server['socket'])}" if server.get("socket") else f"process {server.get('pid')}"


def value_of(server: Mapping[str, Any], directive: str) -> Any:
    """Return what holds for a directive: what differs from Redis' default, or the default."""
    settings = server.get("settings") or {}
    if directive in settings:
        return settings[directive]
    return redis_defaults.DEFAULTS.get(directive, "")


def words(value: Any) -> list[str]:
    """Return the words of a directive's value, which may be a list of lines."""
    lines = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(map(str, lines)).split()


def truth(value: Any) -> bool:
    """Return yes or no as a truth value."""
    return value is True or str(value).lower() in ("yes", "true", "1")


def obstacles(server: Mapping[str, Any], version: str) -> list[str]:
    """Return why a server cannot be adopted, as the role itself would refuse it; nothing where it can."""
    limit = number(value_of(server, "maxmemory"))
    found = adoption.obstacles(server, version, limit, "keep")
    return [one_line(f"{item.name}: found {item.found}; expected {item.expected}").rstrip(".") for item in found]


@dataclass
class Line:
    """An input of an instance: its value, the bundle's default in words, and what fails today."""

    key: str
    value: Any
    default: str = ""
    fails: tuple[int, ...] = ()
    note: str = ""

    def comment(self) -> str:
        """Return what stands beside it."""
        parts = [f"bundle: {self.default}" if self.default else "", controls(self.fails), self.note]
        return "; ".join(part for part in parts if part)

    def lines(self, indent: int) -> list[str]:
        """Return its lines in the file, with the comment beside the first one, or above where there is no room."""
        first, *rest = block(self.key, self.value, indent)
        comment = self.comment()
        if not comment:
            return [first, *rest]
        if len(first) + 4 + len(comment) <= WIDTH:
            return [f"{first}  # {comment}", *rest]
        return [*remark(comment, indent), first, *rest]


@dataclass
class Instance:
    """An old server as an instance of the role redis."""

    server: Mapping[str, Any]
    name: str
    lines: list[Line] = field(default_factory=list)
    # What will be otherwise, in words.
    otherwise: list[str] = field(default_factory=list)


def remark(text: str, indent: int = 0) -> list[str]:
    """Return a comment of as many lines as it takes."""
    margin = " " * indent + "# "
    lines, line = [], margin
    for word in text.split():
        if len(line) + len(word) > WIDTH and line != margin:
            lines.append(line.rstrip())
            line = margin
        line += f"{word} "
    return [*lines, line.rstrip()]


def instance_names(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each server: none for the only one, else after its unit or file, else its port."""
    if len(servers) == 1:
        return [""]
    names: list[str] = []
    for server in servers:
        texts = [
            str(server.get("unit") or "").removesuffix(".service"),
            Path(str(server.get("config_file") or "")).stem,
        ]
        parts = [re.sub(r"^(redis|server|sentinel|[^a-z]+)+", "", text.lower()) for text in texts]
        clean = [re.sub("[^a-z0-9]", "", part)[:21] for part in parts]
        fallback = f"port{server.get('port') or server.get('tls_port') or server.get('pid')}"
        names.append(next((name for name in clean if name and name not in (*names, "conf")), fallback))
    return names


def bind_of(server: Mapping[str, Any]) -> list[str]:
    """Return the addresses that a server listens on, as addresses: Redis' stars are those of every interface."""
    stars = {"*": "0.0.0.0", "-*": "-0.0.0.0", "::*": "::", "-::*": "-::"}
    return [stars.get(word, word) for word in words(value_of(server, "bind"))] or ["0.0.0.0", "-::"]


def limits_of(server: Mapping[str, Any]) -> list[str]:
    """Return the limits of output buffers, one class in a text."""
    flat = words(value_of(server, "client-output-buffer-limit"))
    groups = [flat[at : at + 4] for at in range(0, len(flat) - len(flat) % 4, 4)]
    by_class = {("replica" if group[0] == "slave" else group[0]): group[1:] for group in groups}
    return [
        " ".join([kind, *(size(number(word)) if word.isdigit() else word for word in group[:2]), group[2]])
        for kind, group in by_class.items()
    ]


def save_of(server: Mapping[str, Any]) -> list[str]:
    """Return the save points, one pair in a text."""
    data = server.get("data") or {}
    flat = words(data["save"] if "save" in data else value_of(server, "save"))
    return [f"{seconds} {changes}" for seconds, changes in zip(flat[::2], flat[1::2], strict=False)]


def suggested_memory(server: Mapping[str, Any], memory: int) -> int:
    """Return a limit, in bytes, for a server that has none: twice what it uses, within three quarters of the host.

    In large steps, so that a second look at the same server does not differ.
    """
    step = 256 * MIB
    wanted = max(512 * MIB, -(-2 * number(server.get("used_memory")) // step) * step)
    return max(MIB, min(wanted, memory * 3 // 4 * MIB)) if memory else wanted


def default_text(key: str) -> str:
    """Return the bundle's default for an input, in words."""
    value = role_defaults().get(key)
    if key == "bind":
        return "127.0.0.1 and private_address"
    if key == "default_rules":
        return "this environment's keys and channels, no scripts"
    if value == 0 and key.endswith("port"):
        return "0 (off)"
    return flow(value) if value != [] else "none"


def directive_lines(server: Mapping[str, Any], tls_port: int, memory: int) -> list[Line]:
    """Return the inputs that stand for directives, as the server has them."""
    port, old_tls = number(server.get("port")), number(server.get("tls_port"))
    data = server.get("data") or {}
    appendonly = truth(data["appendonly"] if "appendonly" in data else value_of(server, "appendonly"))
    save, policy = save_of(server), str(value_of(server, "maxmemory-policy")).lower()
    limit = number(value_of(server, "maxmemory"))
    values: dict[str, Any] = {
        "port": port,
        "tls_port": old_tls or tls_port,
        "tls_auth_clients": str(value_of(server, "tls-auth-clients")).lower() == "yes",
        "bind": bind_of(server),
        "maxmemory": size(limit or suggested_memory(server, memory)),
        "maxmemory_policy": policy,
        "appendonly": appendonly,
        "appendfsync": str(value_of(server, "appendfsync")).lower(),
        "save": save,
        "maxclients": number(value_of(server, "maxclients")),
        "tcp_keepalive": number(value_of(server, "tcp-keepalive")),
        "client_output_buffer_limits": limits_of(server),
        "io_threads": number(value_of(server, "io-threads")),
    }
    if not old_tls:
        del values["tls_auth_clients"]
    lines = {key: Line(key, value, default_text(key)) for key, value in values.items()}
    if port:
        lines["port"].fails = CONTROLS_OF_PLAINTEXT
        lines["port"].note = "0 once no client uses it"
    if not old_tls:
        lines["tls_port"].note = "new, beside the plaintext port"
    if not limit:
        lines["maxmemory"].note = "it has no limit today, and the bundle requires one"
    elif limit < MIB:
        lines["maxmemory"].value, lines["maxmemory"].note = "1mb", f"today {limit} bytes, and 1mb is the least"
    if not appendonly and not save and policy == "noeviction":
        lines["appendonly"].value = True
        lines[
            "appendonly"
        ].note = "today false, but without snapshots a restart would lose all, which noeviction forbids"
    if not values["tcp_keepalive"]:
        lines["tcp_keepalive"].value = role_defaults()["tcp_keepalive"]
        lines["tcp_keepalive"].note = "today 0 (off), which the bundle does not have"
    for line in lines.values():
        # A comment that says nothing is none.
        if line.value == role_defaults().get(line.key) and not line.fails and not line.note:
            line.default = "the same"
    return list(lines.values())


def rules_of(user: Any, disabled: Sequence[str]) -> str:
    """Return what a user may, as the role takes it; commands that the server had switched off are taken away."""
    channels = ["&*"] if user.channels == {"&*"} else ["resetchannels", *sorted(user.channels)]
    taken = [f"-{name.lower()}" for name in disabled]
    return " ".join([*(sorted(user.keys) or ["resetkeys"]), *channels, *user.commands, *taken])


def user_lines(server: Mapping[str, Any], otherwise: list[str]) -> list[Line]:
    """Return the inputs for users: their rights and the hashes of their passwords; notes what cannot be kept."""
    disabled = sorted(name for name, new in (server.get("renamed") or {}).items() if not new)
    if disabled:
        otherwise.append(
            f"{', '.join(map(one_line, disabled))}: switched off for everybody today (rename-command); from now on for"
            " the users below, while admin may"
        )
    disabled = [name for name in disabled if inputs.is_acl_command(name.lower())]
    hashes: dict[str, list[str]] = {}
    extra: list[dict[str, Any]] = []
    lines: list[Line] = []
    for item in server.get("users") or []:
        name, text = str(item.get("name")), str(item.get("rules"))
        shown = f"user {one_line(name)}"
        try:
            user = redis_acl.parse(text if text.startswith("user ") else f"user {name} {text}")
        except redis_acl.AclError:
            otherwise.append(f"{shown}: its rules are not understood, so it is left out")
            continue
        rules = rules_of(user, disabled)
        if user.open and user.enabled:
            otherwise.append(
                f"{shown}: logs in without a password today (control 17 fails), and needs one from now on. AUTH"
                f" {one_line(name)} PASSWORD is accepted today with any password: change the clients first"
            )
        if name == "default":
            lines += default_lines(user, rules, inputs.is_acl_rules(rules), otherwise)
        if name in KEPT_USERS and user.hashes:
            hashes[name] = sorted(user.hashes)
        if name in OWN_USERS:
            if name != "default":
                kept = "its old password stays accepted" if name in hashes else "its old password is not accepted"
                otherwise.append(f"{shown}: the bundle has one of this name, with rights of its own; {kept}")
            continue
        reason = (
            "it may do things by selectors, which the role does not have"
            if user.selectors
            else "its rules or its name are not what the role takes"
            if not inputs.is_acl_users([{"name": name, "password": "x", "rules": rules}])
            else "it has no password"
            if not user.hashes
            else ""
        )
        if reason:
            otherwise.append(f"{shown}: left out, as {reason}")
            continue
        if user.unsanitized:
            otherwise.append(f"{shown}: what it sends with RESTORE is checked from now on")
        extra.append({"name": name, "password_hashes": sorted(user.hashes), "rules": rules})
        if not user.enabled:
            extra[-1]["enabled"] = False
    if hashes:
        lines.append(Line("previous_hashes", hashes, "none", note="old passwords stay accepted beside the new ones"))
    if extra:
        lines.append(Line("extra_users", extra, "none"))
    if not server.get("users"):
        otherwise.append(
            "its users are unknown, as it has no ACL LIST: where it has a password, make that redis_password for the"
            " first run"
        )
    return lines


def default_lines(user: Any, rules: str, good: bool, otherwise: list[str]) -> list[Line]:
    """Return the inputs for the user default; notes rights that cannot be kept."""
    fails = CONTROLS_OF_OPEN_DEFAULT if user.open and user.enabled else ()
    lines = [Line("default_user", user.enabled, default_text("default_user"), fails)]
    if not good or user.selectors:
        otherwise.append("user default: its rules are not what the role takes, so it gets the bundle's")
    else:
        lines.append(Line("default_rules", rules, default_text("default_rules")))
    return lines


def setting(value: Any) -> Any:
    """Return a directive's value as YAML shows it best: a number, a truth value or a text."""
    if isinstance(value, (list, tuple)):
        return [setting(item) for item in value]
    text = str(value)
    if text in ("yes", "no"):
        return text == "yes"
    return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else text


def setting_lines(server: Mapping[str, Any], name: str, otherwise: list[str]) -> list[Line]:
    """Return what goes into redis_settings; notes what cannot be kept."""
    known = redis_defaults.DEFAULTS
    kept: dict[str, Any] = {}
    for directive, value in sorted((server.get("settings") or {}).items()):
        if directive in INPUTS or directive in PLACES:
            continue
        shown = one_line(directive)
        if directive in FIXED:
            fails = controls(FIXED[directive])
            otherwise.append(
                f"{shown}: today {one_line(value) or 'empty'}; the bundle sets its own value"
                + (f" ({fails})" if fails else "")
            )
        elif directive == "requirepass":
            otherwise.append(
                "requirepass: its file holds the password in clear (control 34 fails today), and a hash from now on"
            )
        elif directive in LEFT_OUT:
            otherwise.append(f"{shown}: not taken over, as {LEFT_OUT[directive]}")
        elif directive in ("unixsocket", "unixsocketperm"):
            folder = str(value_of(server, "unixsocket")).removeprefix("/var").rpartition("/")[0]
            if folder == "/run/redis" and not name:
                kept[directive] = setting(value) if directive == "unixsocket" else str(value)
            elif directive == "unixsocket":
                otherwise.append(f"unixsocket {one_line(value)}: the unit may not write there; clients use the port")
        elif directive not in known:
            otherwise.append(f"{shown}: Redis 7 does not know it")
        elif not inputs.is_redis_value(setting(value)):
            otherwise.append(f"{shown}: its value cannot be in one line of a file")
        else:
            kept[directive] = setting(value)
    return [Line("settings", kept, "none", note="further directives that differ from Redis' defaults")] if kept else []


def address_of(client: Mapping[str, Any]) -> str:
    """Return the address that a client comes from; nothing for this host itself."""
    text = str(client.get("address") or "")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # A socket's path.
        return ""
    mapped = getattr(address, "ipv4_mapped", None) or address
    return "" if mapped.is_loopback else str(mapped)


def client_text(client: Mapping[str, Any]) -> str:
    """Return a client in words, without what changes with each connection."""
    parts = [
        address_of(client) or "this host",
        f"as {one_line(client.get('user') or 'default')}",
        "over TLS" if client.get("tls") else "in plaintext",
        f"database {one_line(client['db'])}" if str(client.get("db") or 0) != "0" else "",
        f"named {one_line(client['name'])}" if client.get("name") else "",
        f"with {one_line(client['library'])}" if client.get("library") else "",
    ]
    return ", ".join(part for part in parts if part)


def own_addresses(servers: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return addresses that are the host's own: servers listen there."""
    return {
        str(address).rpartition(":")[0].strip("[]") for server in servers for address in server.get("addresses") or []
    }


def foreign_clients(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the addresses of clients on other hosts."""
    found = {address_of(client) for server in servers for client in server.get("clients") or []}
    return sorted(found - {""} - own_addresses(servers), key=lambda text: (":" in text, ipaddress.ip_address(text)))


def free_tls_ports(survey: Mapping[str, Any]) -> Iterable[int]:
    """Yield ports for TLS that nobody on the host has, from the runbook's on."""
    servers = survey.get("servers") or []
    taken = {number(item.get("port")) for item in survey.get("listeners") or []}
    taken |= {number(server.get(key)) for server in servers for key in ("port", "tls_port")}
    return (port for port in range(6380, 65536) if port not in taken)


@dataclass
class Description:
    """What is to be said of a host, and the text of its file, where one of its servers can be adopted."""

    host: str
    summary: list[str]
    text: str | None
    adoptable: list[str]
    refused: list[str]


def describe(host: str, survey: Mapping[str, Any], memory: int = 0, version: str = "7.0") -> Description:
    """Describe a host's servers; the text of the file is the same as long as they are."""
    foreign = [server for server in survey.get("servers") or [] if not server.get("ours")]
    foreign.sort(
        key=lambda server: (number(server.get("port")) or number(server.get("tls_port")), str(server.get("socket")))
    )
    reasons = {id(server): obstacles(server, version) for server in foreign}
    servers = [server for server in foreign if not reasons[id(server)]]
    ports = iter(free_tls_ports(survey))
    instances = []
    for server, name in zip(servers, instance_names(servers), strict=True):
        tls_port = number(server.get("tls_port")) or next(ports)
        instance = Instance(server, name)
        instance.lines = [
            Line("name", name, note="" if not name else "names its unit, its files and its folders"),
            Line("adopt", "keep"),
            Line("adopt_from", number(server.get("port")) or number(server.get("tls_port")) or ""),
            *directive_lines(server, tls_port, memory),
            *user_lines(server, instance.otherwise),
            *setting_lines(server, name, instance.otherwise),
        ]
        instance.otherwise += other_changes(server, name)
        instances.append(instance)
    left = [(server, reasons[id(server)]) for server in foreign if reasons[id(server)]]
    return Description(
        host,
        summary(host, survey, foreign, instances, left),
        file_text(host, instances, left) if instances else None,
        [where(server) for server in servers],
        [where(server) for server, _ in left],
    )


def other_changes(server: Mapping[str, Any], name: str) -> list[str]:
    """Return what will be otherwise and is no directive and no user."""
    found = []
    if server.get("replicas"):
        found.append(
            f"its replicas ({', '.join(map(one_line, server['replicas']))}) are cut off, as topology standalone has"
            " none"
        )
    if server.get("tls_port"):
        found.append(
            "its certificate is another one: give clients the authority's ca.crt first, or bring today's files with"
            " certificates_source: files"
        )
    user = f"redis-{name}" if name else "redis"
    if server.get("user") not in ("redis", user, None, ""):
        found.append(f"it runs as {one_line(server['user'])} today, and as {user} from now on (control 31 fails today)")
    elif server.get("user") not in (user, None, ""):
        found.append(f"it runs as {one_line(server['user'])} today, and as {user} from now on, which is its alone")
    if server.get("config_problem"):
        found.append(f"its file is not understood in full: {one_line(server['config_problem'])}")
    return found


def summary(
    host: str,
    survey: Mapping[str, Any],
    foreign: Sequence[Mapping[str, Any]],
    instances: Sequence[Instance],
    left: Sequence[tuple[Mapping[str, Any], list[str]]],
) -> list[str]:
    """Return what was found, as lines for a terminal."""
    own = sum(bool(server.get("ours")) for server in survey.get("servers") or [])
    head = f"{plural(len(foreign), 'server')} that this bundle did not make" if foreign else "no Redis found"
    if own:
        head += f"{', and ' if foreign else ' but '}{plural(own, 'instance')} of its own"
    lines = [f"{one_line(host)}: {head}"]
    by_server = {id(instance.server): instance for instance in instances}
    reasons = {id(server): found for server, found in left}
    for server in foreign:
        lines += [f"  {line}" for line in about(server)]
        if id(server) in reasons:
            lines += [f"    cannot be adopted: {reason}" for reason in reasons[id(server)]]
            continue
        instance = by_server[id(server)]
        named = f"instance {instance.name}" if instance.name else "only instance, without a name"
        lines.append(f"    can be adopted, as the {named}")
        if instance.otherwise:
            lines.append("    will be otherwise after the first run:")
            lines += [f"      - {text}" for text in instance.otherwise]
    for file in survey.get("files") or []:
        if not file.get("ours"):
            known = f", format {file['rdb_version']}" if file.get("rdb_version") else ""
            kind = f"{'an append-only file' if file.get('kind') == 'aof' else 'a snapshot'}{known}"
            of = f", of Redis {one_line(file['redis_version'])}" if file.get("redis_version") else ""
            lines.append(
                f"  data without a server: {one_line(file['path'])} ({kind}{of}, {readable(number(file.get('bytes')))})"
            )
    return lines


def about(server: Mapping[str, Any]) -> list[str]:
    """Return what a server is."""
    kind = str(server.get("kind") or "redis").capitalize()
    started = one_line(server.get("unit") or f"started by hand, process {server.get('pid')}")
    file = one_line(server.get("config_file") or "no configuration file")
    lines = [
        f"{where(server)}: {one_line(kind)} {one_line(server.get('version') or '')}".rstrip() + f", {started}, {file}"
    ]
    data = server.get("data") or {}
    facts = []
    if server.get("keys") is not None:
        facts.append(
            f"{plural(number(server['keys']), 'key')}, {readable(number(server.get('used_memory')))} of memory"
        )
    if data:
        kept = "append-only file" if truth(data.get("appendonly")) else "no append-only file"
        kept += f", snapshots to {one_line(data.get('dbfilename') or '')}" if data.get("save") else ", no snapshots"
        facts.append(f"{kept}, in {one_line(data.get('dir') or 'an unknown folder')}")
    clients = server.get("clients") or []
    if clients:
        plain = sum(not client.get("tls") for client in clients)
        facts.append(f"{plural(len(clients), 'client')}, {plain} in plaintext")
    return lines + [f"  {fact}" for fact in facts]


def file_text(host: str, instances: Sequence[Instance], left: Sequence[tuple[Mapping[str, Any], list[str]]]) -> str:
    """Return the text of a host's file."""
    lines = ["---", *remark(f"{one_line(host)}, as playbooks/adopt.yml found it; nothing was changed there.")]
    lines += remark(
        "Go through it and copy it into your inventory, as the host's file in host_vars; docs/adoption.md has the"
        " steps. Beside each line stand the bundle's default and the controls of docs/controls.md that the server fails"
        " today. A line that you take out gets what your inventory says for all hosts, or the default."
    )
    lines += remark(
        "Passwords are not in this file. In the vault must be: vault_redis_password, a new one for the user default,"
        " and vault_redis_admin_password, for the bundle's own user admin."
    )
    for server, reasons in left:
        lines += remark(f"Not adopted: {where(server)}: {'; '.join(reasons)}.")
    lines.append("redis_instances:")
    for instance in instances:
        server = instance.server
        started = one_line(server.get("unit") or "started by hand")
        lines += remark(
            f"{where(server)}: Redis {one_line(server.get('version') or '')}, {started}".rstrip(", ") + ".", 2
        )
        for text in instance.otherwise:
            lines += remark(f"Otherwise: {text}.", 2)
        first, *rest = [line for item in instance.lines for line in item.lines(4)]
        lines += [f"  - {first.strip()}", *rest]
    return "\n".join([*lines, "", *client_lines([instance.server for instance in instances])]) + "\n"


def client_lines(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return who may connect: those that do, beside those of the inventory."""
    lines = remark(
        "Clients, as CLIENT LIST showed them. The firewall and the unit let no others in: add those that were not"
        " connected."
    )
    for server in servers:
        texts = sorted({client_text(client) for client in server.get("clients") or []})
        lines += [line for text in texts for line in remark(f"{where(server)}: {text}")]
    seen = foreign_clients(servers)
    if not seen:
        return [*lines, "# No client on another host: redis_clients stays what your inventory says."]
    return [
        *lines,
        *block("redis_clients_seen", seen, 0),
        "redis_clients: >-",
        "  {{ (redis_clients_seen + (groups['redis'] + groups['app'] | default([]))",
        "     | map('extract', hostvars, 'private_address') | list) | unique }}",
    ]


def write(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def place(folder: Path, host: str, text: str, check: bool) -> tuple[Path, str]:
    """Put a host's file into a folder; return its path and `written`, `unchanged` or `beside`, for one that differs."""
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', host).lstrip('.') or 'host'}.yml"
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else None
        if old == text:
            return path, "unchanged"
        target = path if old is None else path.with_name(f"{path.name}.new")
        if not check:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write(target, text)
        return target, "written" if old is None else "beside"
    except (OSError, UnicodeDecodeError) as error:
        raise AnsibleActionFail(
            f"adopt_folder: {path} cannot be written: {getattr(error, 'strerror', None) or 'it is no text'}"
        ) from error


def steps(description: Description, path: Path, outcome: str, check: bool) -> list[str]:
    """Return where the file is and what comes next."""
    verb = (
        "would be written to"
        if check and outcome != "unchanged"
        else "unchanged:"
        if outcome == "unchanged"
        else "written to"
    )
    lines = [f"  {verb} {path}"]
    if outcome == "beside":
        lines.append(f"    as {path.with_suffix('').name} is there and differs; it was left alone")
    host = one_line(description.host)
    return [
        *lines,
        f"  next: go through it, copy it to host_vars/{host}.yml in your inventory, put the passwords into the vault,"
        " and run playbooks/preflight.yml; docs/adoption.md has all steps",
    ]


class ActionModule(ActionBase):
    """Runs on the controller alone."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("host", "survey", "folder", "memory", "version"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print what was found and write the file; raises AnsibleActionFail where it cannot be written."""
        super().run(tmp, task_vars)
        arguments = self._task.args
        description = describe(
            str(arguments["host"]),
            arguments["survey"],
            number(arguments.get("memory", 0)),
            str(arguments.get("version") or "7.0"),
        )
        lines, path, outcome = list(description.summary), None, "nothing to write"
        if description.text is not None:
            check = bool(self._task.check_mode)
            folder = Path(os.path.normpath(Path(str(arguments["folder"])).expanduser()))
            path, outcome = place(folder, description.host, description.text, check)
            lines += steps(description, path, outcome, check)
        # At once, so that hosts do not mix.
        self._display.display("\n".join(["", *lines]))
        return {
            # The file is on the controller, but it was not there before.
            "changed": outcome in ("written", "beside"),
            "file": str(path or ""),
            "outcome": outcome,
            "adoptable": description.adoptable,
            "refused": description.refused,
            "summary": description.summary,
        }

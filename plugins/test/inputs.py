"""Jinja tests for inputs that several roles take: `redis_maxmemory is redis_size`."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import redis_text

PASSWORD = re.compile(r"[!#-&(-\[\]-~]+")
# How a user of redis_extra_users may log in: with either or both.
LOGIN = {"password", "password_hashes"}


def is_port(value: Any) -> bool:
    """Return whether a value is a TCP port from 1 to 65535; digits in quotes, as `-e` gives them, are one too."""
    return (
        not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,5}", str(value)) is not None and 1 <= int(value) <= 65535
    )


def is_port_or_off(value: Any) -> bool:
    """Return whether a value is a TCP port, or 0 for "do not listen"."""
    return is_port(value) or (not isinstance(value, bool) and str(value) == "0")


def is_redis_size(value: Any) -> bool:
    """Return whether a value is a size as Redis writes it (`512mb`, `1gb`, plain bytes) and above zero."""
    return bool(redis_text.size(str(value)))


def is_address(value: Any) -> bool:
    """Return whether a value is an IPv4 or IPv6 address; none with a zone, which Python takes any text for."""
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return "%" not in str(value)


def is_host_name(value: Any) -> bool:
    """Tell whether a value can be a host's name, in a certificate and as the name of a file: an address is one, too."""
    pattern = r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    text = str(value)
    named = isinstance(value, (str, int)) and ".." not in text and re.fullmatch(pattern, text) is not None
    return is_address(value) or (named and len(text) <= 253)


def is_network(value: Any) -> bool:
    """Return whether a value is an address or a network without host bits (`10.0.0.0/8`)."""
    try:
        ipaddress.ip_network(str(value))
    except ValueError:
        return False
    return "%" not in str(value)


def is_one_line(value: Any) -> bool:
    """Return whether a value is a text of at least one character without line breaks or other control characters."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def is_password(value: Any, minimum: int | str = 16) -> bool:
    """Return whether a value can be a password in every file it ends up in.

    At least `minimum` characters, printable ASCII, without blanks, quotes and backslashes: those mean different
    things to redis.conf, to systemd's environment files and to a URL.
    """
    return isinstance(value, str) and len(value) in range(int(minimum), 513) and PASSWORD.fullmatch(value) is not None


def is_covering(networks: Any, address: Any) -> bool:
    """Return whether an address lies in one of the networks."""
    return any(ipaddress.ip_address(str(address)) in ipaddress.ip_network(str(n)) for n in networks)


def is_true_or_false(value: Any) -> bool:
    """Return whether a value is true or false, or a text that the filter `bool` understands, as `-e` gives it."""
    words = {"true", "yes", "on", "1", "false", "no", "off", "0"}
    return isinstance(value, (bool, int, str)) and str(value).lower() in words


def as_moment(value: Any) -> datetime | None:
    """Return a date with its time, in UTC where no zone is said; nothing for a date alone, or for anything else."""
    text = str(value)
    if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}", text) is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def is_past(value: Any) -> bool:
    """Return whether a value is a date with its time, or seconds since 1970, that is not still to come."""
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]{10}([.][0-9]+)?", str(value)):
        return float(value) <= time.time()
    moment = as_moment(value)
    return moment is not None and moment <= datetime.now(UTC)


def is_label(value: Any) -> bool:
    """Return whether a value can stand in quotes in a generated file: letters, digits, blanks, dashes, underscores."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9 _-]{1,60}", value) is not None


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number above zero."""
    return not isinstance(value, bool) and re.fullmatch(r"[1-9][0-9]{0,9}", str(value)) is not None


def is_absolute_path(value: Any) -> bool:
    """Return whether a value is an absolute path without blanks, quotes or control characters."""
    return isinstance(value, str) and re.fullmatch(r"/[A-Za-z0-9._@+/-]+", value) is not None


def is_save_point(value: Any) -> bool:
    """Return whether a value is a save point of Redis: seconds and changes, as in `3600 1`."""
    return isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,9} [1-9][0-9]{0,9}", value) is not None


def is_acl_pattern(value: Any) -> bool:
    """Return whether a value can be a pattern of keys or channels in an ACL: no blanks, quotes or parentheses."""
    return isinstance(value, str) and re.fullmatch(r"[!-&*-~]+", value) is not None and not set(value) & set("\"'\\")


def is_acl_command(value: Any) -> bool:
    """Return whether a value names a command of Redis, with or without a subcommand: `get`, `client|setname`."""
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_-]*(\|[a-z][a-z0-9_-]*)?", value) is not None


def is_acl_rules(value: Any) -> bool:
    """Return whether a value gives keys, channels and commands, and nothing that has an input of its own.

    Passwords (`>`, `<`, `#`, `!`, nopass), `on`, `off` and `reset` are no rules in this sense; selectors in parentheses
    are not supported. After https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
    """
    if not isinstance(value, str) or not value.isprintable():
        return False
    words = {"allkeys", "allchannels", "allcommands", "nocommands", "resetkeys", "resetchannels"}
    rules = value.split(" ")
    return all(
        rule in words
        or re.fullmatch(r"[+-](@[a-z]+|[a-z][a-z0-9_-]*(\|[a-z][a-z0-9_-]*)?)", rule) is not None
        or (re.match(r"~|&|%(R|W|RW)~", rule) is not None and is_acl_pattern(rule))
        for rule in rules
    )


def is_password_hashes(value: Any) -> bool:
    """Return whether a value is a list of SHA-256 hashes in small hexadecimal digits, as Redis prints them."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and re.fullmatch("[0-9a-f]{64}", item) is not None for item in value)
    )


def is_acl_users(values: Any, taken: Iterable[str] = ()) -> bool:
    """Tell whether a value is a list of users with name, rules and password or hashes, none twice or among `taken`."""
    if not isinstance(values, list) or not all(isinstance(user, Mapping) for user in values):
        return False
    names = [user.get("name") for user in values]
    return (
        len(set(map(str, names))) == len(names)
        and not {str(name) for name in names} & set(taken)
        and all({"name", "rules"} <= set(user) <= {"name", "rules", "enabled", *LOGIN} for user in values)
        and all(set(user) & LOGIN and isinstance(user.get("enabled", True), bool) for user in values)
        and all(is_password_hashes(user.get("password_hashes", ["0" * 64])) for user in values)
        and all(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", name) for name in names)
        and all(is_acl_rules(user["rules"]) for user in values)
    )


def is_output_buffer_limit(value: Any) -> bool:
    """Return whether a value limits the output of a class of clients: `pubsub 32mb 8mb 60`."""
    words = value.split(" ") if isinstance(value, str) else []
    return (
        len(words) == 4
        and words[0] in ("normal", "replica", "pubsub")
        and all(redis_text.size(word) is not None for word in words[1:3])
        and words[3].isdigit()
    )


def is_redis_directive(value: Any) -> bool:
    """Return whether Redis 7 has a directive of this name, old names included; the module's own table says so."""
    # Seldom asked for, and Ansible compiles what a plugin imports in each task anew.
    from ansible_collections.quantdesk.redis.plugins.module_utils import redis_defaults as table

    name = re.sub("slave", "replica", str(value).lower())
    file_only = {"include", "loadmodule", "rename-command", "user", "slaveof", "dir", "logfile", "pidfile", "replicaof"}
    return name in table.DEFAULTS or name in table.HOST or str(value).lower() in file_only


def is_unencrypted_file(value: Any) -> bool:
    """Return whether a file on the controller is not one that ansible-vault has encrypted."""
    with Path(str(value)).open("rb") as file:
        return not file.read(14).startswith(b"$ANSIBLE_VAULT")


def is_redis_value(value: Any) -> bool:
    """Return whether a value can stand in redis.conf: a text in one line, a number, a truth value, none, or a list."""
    if isinstance(value, list):
        return all(is_redis_value(part) and not isinstance(part, list) for part in value)
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.isprintable())


def environment_problems(values: Any) -> list[str]:
    """Return the names of variables that no environment file can hold: bad names, empty or broken values.

    Of a time without quotes YAML makes an object, whose text is another one.
    """
    if not isinstance(values, Mapping):
        return ["not a mapping"]
    return [
        str(name)
        for name, value in values.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) is None
        or not isinstance(value, (str, int, float))
        or not is_one_line(str(value))
    ]


def every(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the test that holds for a list when `test` holds for each item; no text is a list."""

    def holds(values: Any) -> bool:
        return isinstance(values, Iterable) and not isinstance(values, (str, Mapping)) and all(map(test, values))

    return holds


class TestModule:
    """What Ansible loads."""

    def tests(self) -> dict[str, Callable[..., bool]]:
        """Return the tests by the names that templates use."""
        return {
            "port": is_port,
            "port_or_off": is_port_or_off,
            "redis_size": is_redis_size,
            "address": is_address,
            "host_name": is_host_name,
            "network": is_network,
            "one_line": is_one_line,
            "password": is_password,
            "covering": is_covering,
            "label": is_label,
            "count": is_count,
            "true_or_false": is_true_or_false,
            "moment": lambda value: as_moment(value) is not None,
            "past": is_past,
            "environment": lambda values: not environment_problems(values),
            "absolute_path": is_absolute_path,
            "acl_rules": is_acl_rules,
            "acl_users": is_acl_users,
            "all_password_hashes": every(is_password_hashes),
            "redis_value": is_redis_value,
            "unencrypted_file": is_unencrypted_file,
            "redis_directive": is_redis_directive,
            "all_acl_pattern": every(is_acl_pattern),
            "all_acl_command": every(is_acl_command),
            "all_output_buffer_limit": every(is_output_buffer_limit),
            "all_save_point": every(is_save_point),
            "all_port": every(is_port),
            "all_host_name": every(is_host_name),
            "all_network": every(is_network),
            "all_address": every(is_address),
            "all_label": every(is_label),
        }

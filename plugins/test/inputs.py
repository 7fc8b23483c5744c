"""Jinja tests for inputs that several roles take: `redis_maxmemory is redis_size`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PASSWORD = re.compile(r"[!#-&(-\[\]-~]+")
SIZE = re.compile(r"([0-9]+)(b|k|kb|m|mb|g|gb)?", re.IGNORECASE)


def is_port(value: Any) -> bool:
    """Tell whether a value is a TCP port from 1 to 65535; digits in quotes, as `-e` gives them, are one too."""
    return (
        not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,5}", str(value)) is not None and 1 <= int(value) <= 65535
    )


def is_port_or_off(value: Any) -> bool:
    """Tell whether a value is a TCP port, or 0 for "do not listen"."""
    return is_port(value) or (not isinstance(value, bool) and str(value) == "0")


def is_redis_size(value: Any) -> bool:
    """Tell whether a value is a size as Redis writes it (`512mb`, `1gb`, plain bytes) and above zero.

    Units after https://redis.io/docs/latest/operate/oss_and_stack/management/config-file/
    """
    match = SIZE.fullmatch(str(value))
    return match is not None and not isinstance(value, (bool, float)) and int(match[1]) > 0


def is_address(value: Any) -> bool:
    """Tell whether a value is an IPv4 or IPv6 address; none with a zone, which Python takes any text for."""
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return "%" not in str(value)


def is_network(value: Any) -> bool:
    """Tell whether a value is an address or a network without host bits (`10.0.0.0/8`)."""
    try:
        ipaddress.ip_network(str(value))
    except ValueError:
        return False
    return "%" not in str(value)


def is_one_line(value: Any) -> bool:
    """Tell whether a value is a text of at least one character without line breaks or other control characters."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def is_password(value: Any, minimum: int = 16) -> bool:
    """Tell whether a value can be a password in every file it ends up in.

    At least `minimum` characters, printable ASCII, without blanks, quotes and backslashes: those mean different
    things to redis.conf, to systemd's environment files and to a URL.
    """
    return isinstance(value, str) and len(value) in range(minimum, 513) and PASSWORD.fullmatch(value) is not None


def is_covering(networks: Any, address: Any) -> bool:
    """Tell whether an address lies in one of the networks."""
    return any(ipaddress.ip_address(str(address)) in ipaddress.ip_network(str(n)) for n in networks)


def is_label(value: Any) -> bool:
    """Tell whether a value can stand in quotes in a generated file: letters, digits, blanks, dashes, underscores."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9 _-]{1,60}", value) is not None


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number above zero."""
    return not isinstance(value, bool) and re.fullmatch(r"[1-9][0-9]{0,9}", str(value)) is not None


def is_absolute_path(value: Any) -> bool:
    """Tell whether a value is an absolute path without blanks, quotes or control characters."""
    return isinstance(value, str) and re.fullmatch(r"/[A-Za-z0-9._@+/-]+", value) is not None


def is_save_point(value: Any) -> bool:
    """Tell whether a value is a save point of Redis: seconds and changes, as in `3600 1`."""
    return isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,9} [1-9][0-9]{0,9}", value) is not None


def environment_problems(values: Any) -> list[str]:
    """Return the names of variables that no environment file can hold: bad names, empty or broken values."""
    if not isinstance(values, Mapping):
        return ["not a mapping"]
    return [
        str(name)
        for name, value in values.items()
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)) is None or value is None or not is_one_line(str(value))
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
            "network": is_network,
            "one_line": is_one_line,
            "password": is_password,
            "covering": is_covering,
            "label": is_label,
            "count": is_count,
            "environment": lambda values: not environment_problems(values),
            "absolute_path": is_absolute_path,
            "all_save_point": every(is_save_point),
            "all_port": every(is_port),
            "all_network": every(is_network),
            "all_address": every(is_address),
            "all_label": every(is_label),
        }

"""Jinja filter of the preflight: which ports that a role wants belong to another program."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

EVERYWHERE = ("0.0.0.0", "::", "*")


def overlap(one: str, others: Iterable[str]) -> bool:
    """Tell whether a socket on an address keeps another one from the same port of others."""
    return one in EVERYWHERE or any(other in (*EVERYWHERE, one) for other in others)


def describe(listener: Mapping[str, Any]) -> str:
    """Return `3002 (nginx, process 812 of nginx.service, on 0.0.0.0)`."""
    program = listener["program"] or "unknown program"
    process = f", process {listener['pid']}" if listener["pid"] else ""
    unit = f" of {listener['unit']}" if listener["unit"] else ""
    return f"{listener['port']} ({program}{process}{unit}, on {listener['address']})"


def taken_ports(
    listeners: Iterable[Mapping[str, Any]], ports: Iterable[Any], addresses: Iterable[str], ours: str
) -> list[str]:
    """Return in words which of the ports another program listens on, at one of the addresses.

    `ours` is a regular expression for the name of the program or of its unit, which has to match from the beginning.
    """
    wanted = {int(port) for port in ports}
    places = [str(address).removeprefix("-") for address in addresses]
    found = [
        describe(listener)
        for listener in listeners
        if listener["port"] in wanted
        and overlap(listener["address"], places)
        and not any(re.match(ours, name) for name in (listener["program"], listener["unit"]) if name)
    ]
    return list(dict.fromkeys(found))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"taken_ports": taken_ports}

"""Jinja filters about ports: which belong to another program, and which are closed to a host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

EVERYWHERE = ("0.0.0.0", "::", "*")


def overlap(one: str, others: Iterable[str]) -> bool:
    """Return whether a socket on an address keeps another one from the same port of others."""
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


def closed_doors(hosts: Iterable[Mapping[str, Any]], address: str, fact: str) -> list[dict[str, Any]]:
    """Return the ports of hosts that they open to others and not to an address, for redis_command.

    `hosts` are the variables of hosts. Their rules, a `firewall_allow` each, are in a fact; who lacks it opens nothing.
    """
    own = ip_address(address)
    doors = {}
    for host in hosts:
        there = host.get("private_address", address)
        if there == address:
            continue
        rules = host.get(fact, [])
        letting = [rule for rule in rules if any(own in ip_network(net) for net in rule["from"])]
        opened, open_to_it = ({int(port) for rule in some for port in rule["ports"]} for some in (rules, letting))
        for port in sorted(opened - open_to_it):
            name = f"{host['inventory_hostname']}:{port}"
            doors[name] = {"name": name, "host": there, "port": port}
    return list(doors.values())


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"taken_ports": taken_ports, "closed_doors": closed_doors}

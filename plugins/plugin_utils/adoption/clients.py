"""The clients of servers, as CLIENT LIST showed them: in words, and their addresses for the firewall."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .survey import Server
from .words import one_line

Client = Mapping[str, Any]


def address_of(client: Client) -> str:
    """Return the address that a client comes from; nothing for this host itself."""
    text = str(client.get("address") or "")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        # A socket's path.
        return ""
    mapped = getattr(address, "ipv4_mapped", None) or address
    return "" if mapped.is_loopback else str(mapped)


def description(client: Client) -> str:
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


def descriptions(server: Server) -> list[str]:
    """Return the clients of a server in words, each once."""
    return sorted({description(client) for client in server.get("clients") or []})


def in_plaintext(clients: Iterable[Client]) -> int:
    """Return how many clients do not use TLS."""
    return sum(not client.get("tls") for client in clients)


def own_addresses(servers: Iterable[Server]) -> set[str]:
    """Return addresses that are the host's own: servers listen there."""
    return {
        str(address).rpartition(":")[0].strip("[]") for server in servers for address in server.get("addresses") or []
    }


def foreign_addresses(servers: Sequence[Server]) -> list[str]:
    """Return the addresses of clients on other hosts, those of IPv4 first."""
    found = {address_of(client) for server in servers for client in server.get("clients") or []}
    return sorted(found - {""} - own_addresses(servers), key=lambda text: (":" in text, ipaddress.ip_address(text)))

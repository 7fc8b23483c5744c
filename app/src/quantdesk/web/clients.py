"""Which client a request is of: by its address, or the one that a trusted proxy reports."""

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from litestar.types import Scope

_WITH_PORT: Final = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?|([^:]+\.[^:]+):[0-9]{1,5}")


def identifier(proxies: tuple[str, ...]) -> Callable[[Scope], str]:
    """Return a function that names a request's client, by address or as a trusted proxy reports it.

    All addresses of an IPv6 network (64 bits) are one client.
    """

    networks = [ipaddress.ip_network(proxy) for proxy in proxies]

    @lru_cache(maxsize=8192)
    def trusted(address: str) -> bool:
        ip = _address(address)
        return ip is not None and any(ip in network for network in networks)

    @lru_cache(maxsize=8192)
    def name(address: str) -> str:
        ip = _address(address)
        if isinstance(ip, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((ip, 64), strict=False).network_address)
        return "unknown" if ip is None else str(ip)

    def identify(scope: Scope) -> str:
        peer = scope["client"]
        address = peer[0] if peer else ""
        if proxies and trusted(address):
            # Each proxy adds the address that it was reached from at the end: the last that is no
            # proxy of ours is the client; those before it are only claims of the client.
            for hop in reversed(_forwarded(scope)):
                address = hop
                if not trusted(hop):
                    break
        return name(address)

    return identify


def _forwarded(scope: Scope) -> list[str]:
    values = [value for key, value in scope["headers"] if key == b"x-forwarded-for"]
    hops = b",".join(values).decode("latin-1").split(",")
    return [_without_port(hop) for text in hops if (hop := text.strip())][-16:]


def _without_port(hop: str) -> str:
    """Return a hop's address without the port that some proxies add, a new one each time."""
    found = _WITH_PORT.fullmatch(hop)
    return (found[1] or found[2]) if found else hop


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a socket that speaks both.
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip

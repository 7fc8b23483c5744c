"""Hosts in settings: IP addresses and names."""

import ipaddress
import re
from typing import Final

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.?", re.ASCII)


def is_host(text: str) -> bool:
    """Return whether a text is an IP address or a host name."""
    return _ip(text) is not None or _NAME.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

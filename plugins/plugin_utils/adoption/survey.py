"""What the module redis_survey has returned of a server, read as values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import redis_defaults

from .words import one_line, size_text

Server = Mapping[str, Any]
# The first port that is proposed for TLS: the runbook's.
TLS_PORT = 6380
# Redis' stars, as addresses: those of every interface.
EVERY_INTERFACE = {"*": "0.0.0.0", "-*": "-0.0.0.0", "::*": "::", "-::*": "-::"}


def number(text: Any) -> int:
    """Return a whole number, 0 for a text that is none."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,19}", str(text)) else 0


def truth(value: Any) -> bool:
    """Return yes or no as a truth value."""
    return value is True or str(value).lower() in ("yes", "true", "1")


def label(server: Server) -> str:
    """Return how a server is told from others on its host: by its ports, its socket or its process."""
    ports = [str(port) for port in (server.get("port"), server.get("tls_port")) if port]
    if ports:
        return f"port {' and '.join(ports)}"
    return f"socket {one_line(server['socket'])}" if server.get("socket") else f"process {server.get('pid')}"


def value_of(server: Server, directive: str) -> Any:
    """Return the value of a directive: the server's own, or Redis' default, or nothing."""
    settings = server.get("settings") or {}
    if directive in settings:
        return settings[directive]
    return redis_defaults.DEFAULTS.get(directive, "")


def split(value: Any) -> list[str]:
    """Return the words of a directive's value, which may be a list of lines."""
    lines = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(map(str, lines)).split()


def bind_of(server: Server) -> list[str]:
    """Return the addresses that a server listens on."""
    return [EVERY_INTERFACE.get(word, word) for word in split(value_of(server, "bind"))] or ["0.0.0.0", "-::"]


def buffer_limits_of(server: Server) -> list[str]:
    """Return the limits of output buffers, one class in a text."""
    flat = split(value_of(server, "client-output-buffer-limit"))
    groups = [flat[at : at + 4] for at in range(0, len(flat) - len(flat) % 4, 4)]
    by_class = {("replica" if group[0] == "slave" else group[0]): group[1:] for group in groups}
    return [
        " ".join([kind, *(size_text(number(word)) if word.isdigit() else word for word in group[:2]), group[2]])
        for kind, group in by_class.items()
    ]


def save_points_of(server: Server) -> list[str]:
    """Return the save points, one pair of seconds and changes in a text."""
    data = server.get("data") or {}
    flat = split(data["save"] if "save" in data else value_of(server, "save"))
    return [f"{seconds} {changes}" for seconds, changes in zip(flat[::2], flat[1::2], strict=False)]


def appends(server: Server) -> bool:
    """Tell whether a server keeps an append-only file."""
    data = server.get("data") or {}
    return truth(data["appendonly"] if "appendonly" in data else value_of(server, "appendonly"))


def free_tls_ports(survey: Mapping[str, Any]) -> Iterable[int]:
    """Yield ports for TLS that no process of the host listens on, from TLS_PORT on."""
    servers = survey.get("servers") or []
    taken = {number(item.get("port")) for item in survey.get("listeners") or []}
    taken |= {number(server.get(key)) for server in servers for key in ("port", "tls_port")}
    return (port for port in range(TLS_PORT, 65536) if port not in taken)

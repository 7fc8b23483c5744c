"""Texts of a host as Ansible takes them: names of files, values and comments need not be UTF-8."""

from __future__ import annotations

from typing import Any


def sendable(value: Any) -> Any:
    """Return a value with a replacement character for each byte that is no UTF-8; read with `surrogateescape`."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {sendable(name): sendable(part) for name, part in value.items()}
    return [sendable(part) for part in value] if isinstance(value, list) else value

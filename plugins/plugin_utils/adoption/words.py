"""How values are written for a reader: one line that is safe to print, sizes, counts and numbers of controls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_text import UNITS
from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean


def one_line(value: Any) -> str:
    """Return a text as one line that can stand in a comment or on a terminal, with single blanks."""
    return clean(" ".join(str(value).split()))


def size_text(count: int) -> str:
    """Return bytes as Redis writes them, in the largest binary unit that is exact."""
    for unit in ("gb", "mb", "kb"):
        if count and count % UNITS[unit] == 0:
            return f"{count // UNITS[unit]}{unit}"
    return str(count)


def readable(count: float) -> str:
    """Return bytes for a reader, in the largest binary unit up to GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def plural(count: int, noun: str) -> str:
    """Return `1 key` or `2 keys`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def failing(controls: Iterable[int]) -> str:
    """Return `control 3 fails today` for numbers of docs/controls.md, or nothing."""
    found = sorted(set(controls))
    if not found:
        return ""
    many = len(found) > 1
    return f"control{'s' if many else ''} {', '.join(map(str, found))} {'fail' if many else 'fails'} today"

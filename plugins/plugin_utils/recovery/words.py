"""How values are written in a report: times, sizes and counts for a reader."""

from __future__ import annotations

from datetime import UTC, datetime

# From here on seconds alone tell a person little.
MINUTES = 120
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def clipped(value: str, width: int) -> str:
    """Return a text that is no longer than a width."""
    return value if len(value) <= width else value[: width - 1] + "…"


def clock(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def seconds(value: float) -> str:
    """Return seconds with one decimal."""
    return f"{value:.1f} s"


def span(value: float) -> str:
    """Return seconds as the two largest units: `1 h 12 min`."""
    left = round(value)
    parts: list[str] = []
    for size, unit in UNITS:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def duration(value: float) -> str:
    """Return seconds, and what they are in minutes or more from where few can tell."""
    return seconds(value) if value < MINUTES else f"{seconds(value)} ({span(value)})"


def rounded(value: float) -> str:
    """Return seconds or, from two minutes on, the two largest units alone."""
    return seconds(value) if value < MINUTES else span(value)


def mebibytes(count: int) -> str:
    """Return bytes in MiB."""
    return f"{count / 1048576:.1f} MiB"


def percent(share: float) -> str:
    """Return a share of 1 as a whole percentage."""
    return f"{share:.0%}"


def plural(count: int, noun: str) -> str:
    """Return `1 item` or `2 items`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def limit(value: float, most: float | None) -> str:
    """Return a limit in seconds, and whether a number of seconds has kept it."""
    return "no limit set" if most is None else f"limit {duration(most)}: {'kept' if value <= most else 'NOT kept'}"


def exact_limit(value: float, most: float | None) -> str:
    """Return a limit, after exact seconds where `rounded` has none."""
    return (f"{seconds(value)}, " if value >= MINUTES else "") + limit(value, most)

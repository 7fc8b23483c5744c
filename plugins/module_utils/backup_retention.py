"""Which backups of a host stay, by when they arrived: the host's own word for the time of a backup is not asked for.

A host that lies about times could otherwise put backups of its own in place of those of last month, or, with one from
the future, have all others count as too old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

UNITS = {"y": 366 * 86400, "m": 31 * 86400, "d": 86400, "h": 3600}
# What a period is called at a time. `last` has one of each backup.
PERIODS = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y"}


class Arrived(NamedTuple):
    """A backup, and when it came here."""

    id: str
    # What it is a backup of.
    series: str
    at: float


def seconds(duration: str) -> int:
    """Return a duration such as 90d or 1y6m in seconds."""
    total, digits = 0, ""
    for letter in duration:
        if letter.isdigit():
            digits += letter
        else:
            total += int(digits) * UNITS[letter]
            digits = ""
    return total


def kept(backups: Iterable[Arrived], policy: Mapping[str, object]) -> set[str]:
    """Return the ids of the backups that a policy such as {daily: 7} keeps, of each series by itself."""
    series: dict[str, list[Arrived]] = {}
    for backup in sorted(backups, key=lambda backup: (backup.at, backup.id), reverse=True):
        series.setdefault(backup.series, []).append(backup)
    return {
        name for each in series.values() for word, value in policy.items() for name in _kept(each, word, str(value))
    }


def _kept(newest_first: list[Arrived], word: str, value: str) -> list[str]:
    if word == "within":
        limit = newest_first[0].at - seconds(value)
        return [backup.id for backup in newest_first if backup.at >= limit]
    if word == "last":
        return [backup.id for backup in newest_first[: int(value)]]
    period: Callable[[Arrived], str] = lambda backup: time.strftime(PERIODS[word], time.gmtime(backup.at))  # noqa: E731 - short
    # The last one of each period, of as many periods as there are to be, whether in a row or not.
    last: dict[str, str] = {}
    for backup in newest_first:
        last.setdefault(period(backup), backup.id)
    return list(last.values())[: int(value)]

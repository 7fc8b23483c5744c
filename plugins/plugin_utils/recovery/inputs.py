"""What a task is given, checked and typed; an error names item and key, what was found and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean

from .model import Contents, Rebuild, Restored, Work
from .words import clipped, clock

# The last second that datetime can hold.
LAST = 253402300799
SHOWN = 60
RESULT = "source, backup, host, time, items, bytes, in_backup, expected, found, compared, seconds"
A_TIME = "a time such as 2026-01-31T14:00:00Z, or seconds since 1970"


class BadInput(ValueError):
    """Input that is no report."""


def refuse(where: str, found: Any, expected: str) -> BadInput:
    """Return the error for a value that is not what it should be."""
    shown = (
        "nothing" if found is None else f"'{clipped(clean(found if isinstance(found, str) else repr(found)), SHOWN)}'"
    )
    return BadInput(f"{where}: found {shown}; expected {expected}")


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """Return a text, which may be empty only where that is said."""
    if not isinstance(value, str) or not (value or empty):
        raise refuse(where, value, "a text")
    return str(value)


def mapping(value: Any, where: str, keys: str) -> dict[str, Any]:
    """Return a mapping with all these keys."""
    if not isinstance(value, dict):
        raise refuse(where, value, f"a mapping with {keys}")
    for key in keys.split(", "):
        if value.get(key) is None:
            raise refuse(f"{where}.{key}", None, f"a value: the keys are {keys}")
    return value


def sequence(value: Any, where: str, what: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, (list, tuple)):
        raise refuse(where, value, f"a list of {what}")
    return list(value)


def number(value: Any, where: str) -> float:
    """Return seconds, 0 or more; digits in quotes, as `-e` gives them, are some too."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = -1.0
        if math.isfinite(found) and found >= 0:
            return found
    raise refuse(where, value, "seconds, 0 or more")


def whole(value: Any, where: str) -> int:
    """Return a whole number of 0 or more."""
    if not isinstance(value, bool) and isinstance(value, (int, str)) and re.fullmatch("[0-9]{1,18}", str(value)):
        return int(value)
    raise refuse(where, value, "a whole number, 0 or more")


def moment(value: Any, where: str) -> float:
    """Return a time as seconds since the epoch; without a zone it is UTC."""
    found: datetime | None = None
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        # YAML makes a date of one that stands without quotes.
        found = datetime(value.year, value.month, value.day)
    elif isinstance(value, str) and not re.fullmatch(r"[0-9.]+(e[+]?[0-9]+)?", value, re.IGNORECASE):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            found = None
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = -1.0
        if 0 <= seconds <= LAST:
            return seconds
    if found is None or found.year < 1970:
        raise refuse(where, value, A_TIME)
    try:
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise refuse(where, value, A_TIME) from None


def contents(value: Any, where: str) -> Contents:
    """Return a number of keys with their digest."""
    given = mapping(value, where, "keys, digest")
    return Contents(whole(given["keys"], f"{where}.keys"), text(given["digest"], f"{where}.digest", empty=True))


def work(value: Any) -> tuple[Work, ...]:
    """Return the phases, the first one first."""
    parts = []
    for place, item in enumerate(sequence(value, "phases", "phases")):
        where = f"phases[{place}]"
        given = mapping(item, where, "name, began, ended")
        name = text(given["name"], f"{where}.name")
        where = f"{where} ({clipped(clean(name), SHOWN)})"
        part = Work(name, moment(given["began"], f"{where}.began"), moment(given["ended"], f"{where}.ended"))
        if part.ended < part.began:
            raise refuse(f"{where}.ended", given["ended"], f"not before its beginning, {given['began']}")
        parts.append(part)
    if not parts:
        raise refuse("phases", [], "one phase at least")
    return tuple(sorted(parts, key=lambda part: part.began))


def restored(value: Any, until: float) -> tuple[Restored, ...]:
    """Return what was restored, one entry for each source of each host, with its age at a moment."""
    entries = []
    for place, item in enumerate(sequence(value, "restored", "results with their hosts")):
        where = f"restored[{place}]"
        given = mapping(item, where, "host, result")
        host = text(given["host"], f"{where}.host")
        where = f"{where}.result"
        result = mapping(given["result"], where, RESULT)
        compared = result["compared"]
        if compared not in ("digest", "count"):
            raise refuse(f"{where}.compared", compared, "digest or count")
        seconds = mapping(result["seconds"], f"{where}.seconds", "total")
        at = moment(result["time"], f"{where}.time")
        entries.append(
            Restored(
                host=host,
                source=text(result["source"], f"{where}.source"),
                backup=text(result["backup"], f"{where}.backup"),
                backup_of=text(result["host"], f"{where}.host"),
                at=at,
                items=whole(result["items"], f"{where}.items"),
                bytes=whole(result["bytes"], f"{where}.bytes"),
                in_backup=contents(result["in_backup"], f"{where}.in_backup"),
                expected=contents(result["expected"], f"{where}.expected"),
                found=contents(result["found"], f"{where}.found"),
                compared="count" if compared == "count" else "digest",
                kept=text(result.get("kept") or "", f"{where}.kept", empty=True),
                seconds={str(step): number(took, f"{where}.seconds.{step}") for step, took in seconds.items()},
                age=round(until - at, 1),
            )
        )
    return tuple(entries)


def read(arguments: Mapping[str, Any]) -> Rebuild:
    """Return the rebuild that a task reports; raises BadInput for what is none."""

    def given(key: str) -> Any:
        # An expression of a playbook leaves a text without letters for what was not said.
        value = arguments.get(key)
        return None if isinstance(value, str) and not value else value

    environment = text(arguments.get("environment"), "environment")
    title = text(arguments.get("title") or f"Rebuild of {environment}", "title")
    parts = work(arguments.get("phases"))
    lost_at = None if given("lost_at") is None else moment(given("lost_at"), "lost_at")
    rebuild = Rebuild(
        environment=environment,
        title=title,
        work=parts,
        restored=restored(arguments.get("restored") or [], parts[0].began if lost_at is None else lost_at),
        expect_data=arguments.get("expect_data", True),
        lost_at=lost_at,
        rto_limit=None if given("rto_limit") is None else number(given("rto_limit"), "rto_limit"),
        rpo_limit=None if given("rpo_limit") is None else number(given("rpo_limit"), "rpo_limit"),
    )
    if lost_at is not None and lost_at > rebuild.ended:
        raise refuse("lost_at", clock(lost_at), f"a time before the end of the rebuild, {clock(rebuild.ended)}")
    return rebuild

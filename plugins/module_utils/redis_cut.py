"""What the last start of Redis has dropped of an append-only file that was cut, by its log.

How much that was, Redis does not say; a host that has backups notes the sizes when it comes up.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from ansible_collections.quantdesk.redis.plugins.module_utils.redis_files import NotPlain, read_bytes

# Of a large log, its end: a start of today is in it.
END = 1_000_000
# Whatever language the host speaks, Redis writes these.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
STARTED = "Redis is starting"
TRUNCATED = re.compile(
    r"^\S+ (?P<day>\d+) (?P<month>[A-Z][a-z]{2}) (?P<year>\d{4}) "
    r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\S* \S+ "
    r"!!! Truncating the AOF (?P<file>\S+) at offset (?P<offset>\d+) !!!"
)
# Seconds from the note to the start that it is for.
SOON = 600


@dataclass(frozen=True)
class Cut:
    """A file that was cut at its end."""

    text: str
    # Seconds since then.
    age: float


def last_cut(log: str, sizes: str) -> Cut | None:
    """Return what the last start has dropped; None where it dropped nothing. Raises OSError."""
    try:
        text = (read_bytes(log, END) or b"").decode(errors="replace")
    except NotPlain:
        return None
    found = None
    for line in text.splitlines():
        if STARTED in line:
            found = None
        match = TRUNCATED.match(line)
        found = match or found
    if found is None or found["month"] not in MONTHS:
        return None
    month, day = MONTHS.index(found["month"]) + 1, int(found["day"])
    clock = (int(found["hour"]), int(found["minute"]), int(found["second"]))
    at = time.mktime((int(found["year"]), month, day, *clock, 0, 0, -1))
    offset, noted = int(found["offset"]), _noted(sizes, found["file"], at)
    dropped = f"{noted - offset} bytes were" if noted > offset else "what was"
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    text = f"cut at its end: {dropped} dropped behind byte {offset} of {found['file']} at {when}"
    return Cut(text, time.time() - at)


def _noted(sizes: str, file: str, at: float) -> int:
    """Return how long a file was when it was noted right before a start; 0 where that was not noted."""
    with suppress(OSError, ValueError):
        if 0 <= at - int(os.stat(sizes).st_mtime) < SOON:
            for line in (read_bytes(sizes) or b"").decode(errors="replace").splitlines():
                name, _, size = line.partition(" ")
                if name == file:
                    return int(size)
    return 0

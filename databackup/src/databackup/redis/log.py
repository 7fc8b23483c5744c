"""What Redis says in its log of its last start, and how much of its files it has dropped then."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from databackup.errors import Failed
from databackup.owner import plain
from databackup.redis.restore import Target

# Bytes that are read of a log.
LOG = 1 << 20
# Seconds from the note of the sizes to the start that it belongs to.
FRESH = 600
START = "Redis is starting"
TRUNCATED = re.compile(r"!!! Truncating the AOF (.+) at offset ([0-9]+) !!!")
# What Redis says last when it does not take its files.
REFUSED = re.compile(
    r"# ((?:Bad file format|Unknown command .* reading the append only file|Short read or OOM loading DB"
    r"|Wrong signature trying to load DB|Wrong RDB checksum|Internal error in RDB|Can't handle RDB format"
    r"|Terminating server after rdb|Invalid AOF manifest|Unable to obtain the AOF file"
    r"|Fatal error: the truncated file).*)"
)


@dataclass
class Cut:
    """What Redis has dropped at its last start: all of a file behind `offset`."""

    file: str
    offset: int
    # When, as far as the log tells: see times_of.
    times: list[int]
    # None where nobody has noted how long the file was.
    bytes: int | None = None

    @property
    def text(self) -> str:
        """Return it as a sentence."""
        size = "what was" if self.bytes is None else f"{self.bytes} bytes"
        when = " or ".join(datetime.fromtimestamp(at, UTC).isoformat() for at in self.times) or "an unknown time"
        return f"At its start of {when} Redis found {self.file} cut and dropped {size} behind byte {self.offset}."


def note_sizes(target: Target) -> None:
    """Note how long the append-only files of a server that does not run are.

    Redis says where it cut one off at its start, and not how much that was. A host that comes up after a crash notes it
    before Redis starts.
    """
    if target.service.active():
        return
    # A name that is a path is told where it is needed.
    with suppress(OSError, Failed):
        with target.owner.acting():
            logs = sorted((target.data / target.log).glob("*.aof"))
            lines = [f"{path.name} {path.stat().st_size}\n" for path in logs if plain(path.name)]
        sizes_file(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes_file(target).write_text("".join(lines), encoding="utf-8")


def sizes_file(target: Target) -> Path:
    """Return where the sizes are noted."""
    return Path(target.source.state) / f"{target.source.name}.aof-sizes"


def last_start(target: Target) -> tuple[str, Cut | None]:
    """Return of the last start why Redis refused its files, and what it has dropped."""
    name = target.configuration.values.get("logfile", "").strip("\"'")
    path = target.data / name
    try:
        with target.owner.open(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG))
            text = file.read(LOG).decode(errors="replace")
    except OSError:
        text = target.service.last_words()
    lines = text.rpartition(START)[2].splitlines()
    refusal, cut = "", None
    for line in lines:
        if match := REFUSED.search(line):
            # The first is the cause: others follow from it.
            refusal = refusal or match[1]
        if match := TRUNCATED.search(line):
            cut = Cut(match[1], int(match[2]), times_of(line))
            cut.bytes = _noted(target, cut)
    return refusal, cut


def _noted(target: Target, cut: Cut) -> int | None:
    """Return how much a start has dropped, if the file's length was noted before it."""
    try:
        path = sizes_file(target)
        # What was noted long before another start says nothing of this one.
        noted = int(path.stat().st_mtime)
        if not any(0 <= at - noted < FRESH for at in cut.times):
            return None
        sizes = dict(line.rsplit(" ", 1) for line in path.read_text(encoding="utf-8").splitlines())
        dropped = int(sizes.get(cut.file, 0)) - cut.offset
        return dropped if dropped > 0 else None
    except (OSError, ValueError):
        return None


def times_of(line: str) -> list[int]:
    """Return the time of a line of Redis' log, in seconds since the epoch; two in the hour that a clock shows twice.

    The log has the host's own time without its zone. Empty where the line has no time.
    """
    match = re.search(r"([0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8})", line)
    if match is None:
        return []
    local = datetime.strptime(match[1], "%d %b %Y %H:%M:%S")
    return sorted({int(local.replace(fold=fold).timestamp()) for fold in (0, 1)})

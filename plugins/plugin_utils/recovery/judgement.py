"""Whether a rebuild is as it should be: its problems, what an operator should know besides, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean

from .model import Contents, Rebuild, Restored
from .words import clock, duration, plural

DIGEST_WIDTH = 12


@dataclass(frozen=True)
class Report:
    """A rebuild and the judgement on it."""

    rebuild: Rebuild
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return not self.problems

    @property
    def facts(self) -> str:
        """In one sentence how long it took and how old the data are."""
        rebuild, oldest = self.rebuild, self.rebuild.oldest
        words = f"Rebuilt in {duration(rebuild.rto_seconds)}"
        if oldest is None:
            return f"{words}; no data were restored" + (", and none were expected" if self.ok else "")
        which = f" (the oldest, of {oldest.name})" if len({entry.time for entry in rebuild.restored}) > 1 else ""
        age = duration(oldest.rpo_seconds)
        return f"{words}; the data are as of {oldest.time}{which}, {age} before {rebuild.since}"

    @property
    def verdict(self) -> str:
        """The one line that is read first."""
        if len(self.problems) == 1:
            return f"FAILED: {self.problems[0]}."
        if self.problems:
            return f"FAILED: {len(self.problems)} problems."
        words = self.facts
        if restored := self.rebuild.restored:
            words += "; nothing else is missing"
            if any(entry.compared == "count" for entry in restored):
                words += " by count"
            if gone := sum(entry.expired for entry in restored):
                words += f", except {plural(gone, 'key')} that {'has' if gone == 1 else 'have'} expired since"
        return f"{words}."

    def document(self) -> dict[str, Any]:
        """Return the whole report for JSON and for Ansible."""
        rebuild = self.rebuild
        return {
            "report": rebuild.title,
            "environment": rebuild.environment,
            "ok": self.ok,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "began": clock(rebuild.began),
            "ended": clock(rebuild.ended),
            "lost_at": None if rebuild.lost_at is None else clock(rebuild.lost_at),
            "data_as_of": None if rebuild.oldest is None else rebuild.oldest.time,
            "rto_seconds": rebuild.rto_seconds,
            "rto_limit": rebuild.rto_limit,
            "rpo_limit": rebuild.rpo_limit,
            "rpo_seconds": rebuild.rpo_seconds,
            "outage_seconds": rebuild.outage_seconds,
            "phases": [vars(phase).copy() for phase in rebuild.phases],
            "restored": [entry.document() for entry in rebuild.restored],
            "verdict": self.verdict,
        }


def in_words(contents: Contents) -> str:
    """Return a number of items with their digest."""
    digest = clean(contents.digest[:DIGEST_WIDTH]) or "(none)"
    return f"{plural(contents.keys, 'item')} with digest {digest}"


def problems_of(entry: Restored, rebuild: Rebuild) -> list[str]:
    """Return what is wrong with the data of one source."""
    problems = []
    if not entry.equal:
        problems.append(f"{entry.name}: found {in_words(entry.found)}; expected {in_words(entry.expected)}")
    if rebuild.rpo_limit is not None and entry.rpo_seconds > rebuild.rpo_limit:
        problems.append(
            f"{entry.name}: the data are from {duration(entry.rpo_seconds)} before {rebuild.since}; "
            f"expected {duration(rebuild.rpo_limit)} at most (rpo_limit)"
        )
    return problems


def notes_of(entry: Restored, rebuild: Rebuild) -> list[str]:
    """Return what an operator should know of the data of one source, although it is no fault."""
    notes = []
    if gone := entry.expired:
        notes.append(
            f"{entry.name}: {gone} of the {plural(entry.in_backup.keys, 'key')} in the backup "
            f"{'has' if gone == 1 else 'have'} expired since, or will within seconds; "
            f"{plural(entry.expected.keys, 'key')} were expected."
        )
    if entry.compared == "count":
        notes.append(f"{entry.name}: items were only counted; their content was not compared.")
    if entry.in_backup.keys == 0:
        notes.append(f"{entry.name}: the backup is empty.")
    if entry.ahead:
        notes.append(
            f"{entry.name}: the backup was made {duration(entry.ahead)} after {rebuild.since}: "
            "that was later than told, or clocks differ."
        )
    if entry.backup_of != entry.host:
        notes.append(f"{entry.name}: the backup is one of {clean(entry.backup_of)}.")
    if entry.kept:
        notes.append(f"{entry.name}: the earlier data are kept in {clean(entry.kept)}.")
    return notes


def judge(rebuild: Rebuild) -> Report:
    """Return the report of a rebuild. Limits are held against seconds as shown, with one decimal."""
    problems: list[str] = []
    if rebuild.rto_limit is not None and rebuild.rto_seconds > rebuild.rto_limit:
        problems.append(
            f"rebuilt in {duration(rebuild.rto_seconds)}; expected {duration(rebuild.rto_limit)} at most (rto_limit)"
        )
    problems += (problem for entry in rebuild.restored for problem in problems_of(entry, rebuild))
    if not rebuild.restored and rebuild.expect_data:
        problems.append("no data were restored; expected those of one source at least (expect_data)")
    notes = (note for entry in rebuild.restored for note in notes_of(entry, rebuild))
    return Report(rebuild, tuple(problems), tuple(notes))

"""What an audit returns: a row for each check of a host, judged where the answers are.

A check is a function with a name, and a number in docs/controls.md where it has one. It returns a verdict from what was
seen. One that cannot be judged is a failed row with the reason, not the end of the audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

OK, FAILED, NOT_APPLICABLE = "ok", "FAILED", "n/a"
Seen = TypeVar("Seen")


class Unknown(Exception):
    """The subject of a check is not known; the message has the reason."""


@dataclass(frozen=True)
class Verdict:
    """What a check has found, in the words of the table."""

    found: str
    expected: str
    state: str


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    subject: str
    name: str
    # Numbers in docs/controls.md.
    control: list[int]
    found: str
    expected: str
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row as the plugin `checks` reports it."""
        return asdict(self)


def plain(value: Any) -> str:
    """Return a value as one readable line; strings in quotes, so that blanks and emptiness show."""
    return " ".join((repr(value) if isinstance(value, str) else str(value)).split())


def equals(found: Any, wanted: Any) -> Verdict:
    """Return the verdict on a value that is to be a certain one."""
    return Verdict(plain(found), plain(wanted), OK if found == wanted else FAILED)


def holds(condition: bool, found: Any, expected: str) -> Verdict:
    """Return the verdict on a value that something is asked of; `expected` says what."""
    return Verdict(plain(found), expected, OK if condition else FAILED)


def not_applicable(reason: str, expected: str = "") -> Verdict:
    """Return the verdict of a check that has no place here."""
    return Verdict(reason, expected, NOT_APPLICABLE)


@dataclass(frozen=True)
class Check(Generic[Seen]):
    """A check: `more` adds to its name what depends on the host."""

    name: str
    control: int | None
    judge: Callable[[Seen], Verdict]
    more: Callable[[Seen], str] | None = None

    def row(self, subject: str, seen: Seen) -> Row:
        """Return the row of a subject."""
        numbers = [] if self.control is None else [self.control]
        name = self.name + (self.more(seen) if self.more else "")
        try:
            verdict = self.judge(seen)
        except (Unknown, OSError, ValueError) as error:
            verdict = Verdict(f"nothing ({error})", "a value", FAILED)
        return Row(subject, name, numbers, verdict.found, verdict.expected, verdict.state)

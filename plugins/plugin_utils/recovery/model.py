"""A rebuild as it was measured: its phases, and what was restored, with the numbers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from ansible_collections.quantdesk.redis.plugins.plugin_utils.printable import clean

from .words import clock

BETWEEN = "between"
# Less than this between two phases would be shown as 0.0 s.
LEAST_GAP = 0.05


@dataclass(frozen=True)
class Work:
    """A named piece of work; its times are seconds since the epoch."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Phase:
    """A part of the rebuild, or a gap between two; `at` and `seconds` have one decimal, `share` is of 1."""

    name: str
    gap: bool
    at: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Contents:
    """The number of items in a place, and the digest of all of them."""

    keys: int
    digest: str


@dataclass(frozen=True)
class Restored:
    """What `databackup restore` has reported of one source of a host."""

    host: str
    source: str
    backup: str
    # The host that the backup is of.
    backup_of: str
    # When the backup was made, in seconds since the epoch.
    at: float
    items: int
    bytes: int
    in_backup: Contents
    expected: Contents
    found: Contents
    compared: Literal["digest", "count"]
    kept: str
    # By step, with their total.
    seconds: dict[str, float]
    # From the backup to the loss, with one decimal; less than 0 for a backup that was made after it.
    age: float

    @property
    def name(self) -> str:
        """Which source of which host this is."""
        return clean(f"{self.source} on {self.host}")

    @property
    def time(self) -> str:
        """When the backup was made, in UTC."""
        return clock(self.at)

    @property
    def rpo_seconds(self) -> float:
        """How much time of writes is lost."""
        return max(0.0, self.age)

    @property
    def ahead(self) -> float:
        """How long after the loss the backup was made; 0 for nearly all."""
        return max(0.0, -self.age)

    @property
    def equal(self) -> bool:
        """Whether the data found are those expected, as far as they were compared."""
        return self.found.keys == self.expected.keys and (
            self.compared == "count" or self.found.digest == self.expected.digest
        )

    @property
    def expired(self) -> int:
        """How many keys of the backup are no longer expected, as their time is over."""
        return max(0, self.in_backup.keys - self.expected.keys)

    def document(self) -> dict[str, Any]:
        """Return this for JSON and for Ansible."""
        document: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "at":
                document["time"] = self.time
            elif isinstance(value, Contents):
                document[field.name] = vars(value).copy()
            elif field.name != "age":
                document[field.name] = value
        return document | {"rpo_seconds": self.rpo_seconds, "ahead": self.ahead, "equal": self.equal}


@dataclass(frozen=True)
class Rebuild:
    """A whole rebuild; times are seconds since the epoch."""

    environment: str
    title: str
    # One at least, the first one first.
    work: tuple[Work, ...]
    restored: tuple[Restored, ...]
    # Whether data ought to be restored.
    expect_data: bool = True
    # When the outage began, where that is known.
    lost_at: float | None = None
    rto_limit: float | None = None
    rpo_limit: float | None = None

    @property
    def began(self) -> float:
        """When the first phase began."""
        return self.work[0].began

    @cached_property
    def ended(self) -> float:
        """When the last phase ended."""
        return max(part.ended for part in self.work)

    @property
    def until(self) -> float:
        """Up to when the age of data counts: the loss, or the beginning of the rebuild."""
        return self.began if self.lost_at is None else self.lost_at

    @property
    def since(self) -> str:
        """That moment in words."""
        return "the rebuild began" if self.lost_at is None else "the loss"

    @property
    def rto_seconds(self) -> float:
        """How long it took."""
        return round(self.ended - self.began, 1)

    @cached_property
    def oldest(self) -> Restored | None:
        """The source with the oldest data."""
        return min(self.restored, key=lambda entry: entry.at, default=None)

    @property
    def rpo_seconds(self) -> float | None:
        """How much time of writes is lost at most."""
        return None if self.oldest is None else self.oldest.rpo_seconds

    @property
    def outage_seconds(self) -> float | None:
        """How long it was out of service."""
        return None if self.lost_at is None else round(self.ended - self.lost_at, 1)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, with the gaps between them; those that overlap follow one another by their beginnings."""
        whole = self.ended - self.began

        def phase(name: str, began: float, ended: float, *, gap: bool) -> Phase:
            share = (ended - began) / whole if whole else 0.0
            return Phase(name, gap, round(began - self.began, 1), round(ended - began, 1), round(share, 4))

        phases = []
        reached = self.began
        for part in self.work:
            if part.began - reached >= LEAST_GAP:
                phases.append(phase(BETWEEN, reached, part.began, gap=True))
            phases.append(phase(part.name, part.began, part.ended, gap=False))
            reached = max(reached, part.ended)
        return tuple(phases)

    @property
    def longest(self) -> Phase:
        """The phase that took the most time."""
        return max((phase for phase in self.phases if not phase.gap), key=lambda phase: phase.seconds)

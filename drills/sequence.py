"""Running numbers on channels: what is missing, what was told to be missing, and what came twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# How many holes are remembered, for people.
EXAMPLES: Final = 5


@dataclass(slots=True)
class Tally:
    """What subscribers received. Holes count messages: those that a gap message told of, and the others."""

    messages: int = 0
    told: int = 0
    untold: int = 0
    duplicates: int = 0
    gaps: int = 0
    closed: int = 0
    # The first few that are wrong.
    examples: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add another's figures to these."""
        self.messages += other.messages
        self.told += other.told
        self.untold += other.untold
        self.duplicates += other.duplicates
        self.gaps += other.gaps
        self.closed += other.closed
        self.examples = [*self.examples, *other.examples][:EXAMPLES]


class Checker:
    """What one subscriber sees. Each channel's messages count from 1."""

    def __init__(self, channels: Iterable[str]) -> None:
        self.tally: Final = Tally()
        # The number that is due next on each channel, and channels on which a gap was told since the last message.
        self._due = dict.fromkeys(channels, 1)
        self._gaps: set[str] = set()

    @property
    def channels(self) -> Iterable[str]:
        """The channels."""
        return self._due.keys()

    @property
    def progress(self) -> int:
        """How many messages were received or are known to be missing."""
        return sum(self._due.values()) - len(self._due)

    def message(self, channel: str, number: int) -> None:
        """Take a message."""
        self.tally.messages += 1
        due = self._due[channel]
        if number == due:
            self._due[channel] = number + 1
            if self._gaps:
                self._gaps.discard(channel)
        elif number < due:
            self.tally.duplicates += 1
            self._example(f"{channel}: {number} after {due - 1}")
        else:
            self._hole(channel, number - due, f"{channel}: {number} after {due - 1}")
            self._due[channel] = number + 1
            self._gaps.discard(channel)

    def gap(self, channel: str) -> None:
        """Take a message that tells of a gap before what comes next on a channel."""
        self.tally.gaps += 1
        self._gaps.add(channel)

    def finish(self, last: dict[str, int]) -> None:
        """Count what is missing at the end, given each channel's last number."""
        for channel, number in last.items():
            missing = number + 1 - self._due[channel]
            if missing > 0:
                self._hole(channel, missing, f"{channel}: the last {missing} of {number}")

    def _hole(self, channel: str, size: int, text: str) -> None:
        if channel in self._gaps:
            self.tally.told += size
        else:
            self.tally.untold += size
            self._example(text)

    def _example(self, text: str) -> None:
        if len(self.tally.examples) < EXAMPLES:
            self.tally.examples.append(text)

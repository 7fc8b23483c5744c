"""The statistics of the cache."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Hits and misses count reads; errors and sets count operations on Redis."""

    hits: int = 0
    misses: int = 0
    errors: int = 0
    sets: int = 0

    @property
    def requests(self) -> int:
        """Reads that queried the cache."""
        return self.hits + self.misses

    @property
    def ratio(self) -> float | None:
        """The share of reads that were hits, 0 to 1; None before the first read."""
        return self.hits / self.requests if self.requests else None


class Stats:
    """Counts since the start, for Prometheus, and since the last reset, for people."""

    def __init__(self) -> None:
        self.total = Counts()
        self._base = Counts()

    @property
    def current(self) -> Counts:
        """Counts since the last reset."""
        return Counts(
            self.total.hits - self._base.hits,
            self.total.misses - self._base.misses,
            self.total.errors - self._base.errors,
            self.total.sets - self._base.sets,
        )

    def reset(self) -> None:
        """Begin counting anew; the totals go on."""
        self._base = Counts(self.total.hits, self.total.misses, self.total.errors, self.total.sets)

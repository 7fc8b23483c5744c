"""Bars over an axis of time: where they begin, how wide they are and what is written there, for any size of a page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .model import Phase, Rebuild
from .words import UNITS, clock, percent, plural, rounded, seconds

# The characters of a bar in a text.
BAR_WIDTH = 30
# Steps of an axis, in seconds, that a clock has.
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
MOST_TICKS = 6


@dataclass(frozen=True)
class Row:
    """A row to draw: from where to where, in seconds, and what stands over it."""

    label: str
    # A class of the style sheet: phase, gap or loss.
    look: str
    start: float
    end: float
    value: str


@dataclass(frozen=True)
class Bar:
    """A row as drawn; its place is in percent of the width."""

    label: str
    look: str
    start: float
    width: float
    value: str


@dataclass(frozen=True)
class Tick:
    """A line of the axis; its place is in percent of the width."""

    at: float
    words: str
    # Where its words are, seen from the line, as SVG says it: start, middle or end.
    anchor: str
    strong: bool


@dataclass(frozen=True)
class Picture:
    """Bars over one axis; the name makes its parts' ids."""

    name: str
    title: str
    description: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Loss:
    """A row of what time was lost, with the times that it is between."""

    row: Row
    began: float
    ended: float
    seconds: float


def axis(low: float, high: float) -> list[tuple[float, str]]:
    """Return positions of an axis and how they are called, at most seven, counted from 0."""
    step = next((step for step in STEPS if (high - low) / step <= MOST_TICKS), 0.0)
    if not step:
        step = 86400.0
        while (high - low) / step > MOST_TICKS:
            step *= 2
    unit_size, unit = next((pair for pair in UNITS if step >= pair[0]), UNITS[-1])
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        (i * step, f"{i * step / unit_size:g} {unit}".replace("-", "\N{MINUS SIGN}")) for i in range(first, last + 1)
    ]


def draw(name: str, title: str, description: str, rows: list[Row], zero: str = "") -> Picture:
    """Return the picture of rows; `zero` stands at the axis' 0 in place of its number."""
    low, high = min(row.start for row in rows), max(row.end for row in rows)
    length = (high - low) or 1.0

    def tick(at: float, words: str) -> Tick:
        share = (at - low) / length * 100
        strong = bool(zero) and at == 0
        return Tick(
            share, zero if strong else words, "start" if share < 4 else "end" if share > 96 else "middle", strong
        )

    def bar(row: Row) -> Bar:
        # What is too short to be seen is half a percent wide.
        width = min(max((row.end - row.start) / length * 100, 0.5), 100.0)
        return Bar(row.label, row.look, min((row.start - low) / length * 100, 100 - width), width, row.value)

    ticks = tuple(tick(at, words) for at, words in axis(low, high))
    return Picture(name, title, description, tuple(map(bar, rows)), ticks)


def phases(rebuild: Rebuild) -> Picture:
    """Return the picture of the phases."""
    rows = [
        Row(
            phase.name,
            "gap" if phase.gap else "phase",
            phase.at,
            phase.at + phase.seconds,
            f"{seconds(phase.seconds)} · {percent(phase.share)}",
        )
        for phase in rebuild.phases
    ]
    longest = rebuild.longest
    description = (
        f"{plural(len(rebuild.work), 'phase')} in {rebuild.rto_seconds:.1f} seconds. "
        f"The longest is {longest.name}, with {longest.seconds:.1f} seconds. The table has every number."
    )
    return draw("phases", "Phases of the rebuild", description, rows)


def losses(rebuild: Rebuild) -> list[Loss]:
    """Return what time was lost: the writes of each source, the wait for the rebuild, and the rebuild."""
    zero = rebuild.until

    def loss(label: str, look: str, began: float, ended: float, took: float) -> Loss:
        return Loss(Row(label, look, began - zero, ended - zero, rounded(took)), began, ended, took)

    found = [
        loss(f"{entry.source} on {entry.host}: writes lost", "loss", min(entry.at, zero), zero, entry.rpo_seconds)
        for entry in rebuild.restored
    ]
    if rebuild.began > zero:
        waited = rebuild.began - zero
        found.append(loss("out of service, not yet rebuilding", "gap", zero, rebuild.began, waited))
    return [*found, loss("rebuild", "phase", rebuild.began, rebuild.ended, rebuild.rto_seconds)]


def loss(rebuild: Rebuild) -> Picture:
    """Return the picture of what time was lost, around the moment of the loss."""
    description = (
        f"The data are as of {rebuild.oldest.time}, {rebuild.oldest.rpo_seconds:.1f} seconds before {rebuild.since}. "
        if rebuild.oldest
        else ""
    ) + f"The rebuild ended at {clock(rebuild.ended)}. The table has every number."
    rows = [each.row for each in losses(rebuild)]
    return draw("loss", "What time was lost", description, rows, "begin" if rebuild.lost_at is None else "loss")


def text_bar(phase: Phase, whole: float) -> str:
    """Return where a phase lies in the whole, as characters."""
    if not whole:
        return f"[{'#' * BAR_WIDTH}]"
    start = min(round(phase.at / whole * BAR_WIDTH), BAR_WIDTH - 1)
    end = max(min(round((phase.at + phase.seconds) / whole * BAR_WIDTH), BAR_WIDTH), start + 1)
    mark = "." if phase.gap else "#"
    return f"[{' ' * start}{mark * (end - start)}{' ' * (BAR_WIDTH - end)}]"

"""What a drill or bench says at its end: tables, aims, files, and the machine and versions that it ran with."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from drills.servers import PROJECT, postgres_binaries, redis_binary

OUTPUT: Final = PROJECT / "output"
# What is missed by more than this factor is missed by far.
FAR: Final = 3.0


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure, and what it should be: at most, or at least, so much."""

    name: str
    value: float
    limit: float
    unit: str = ""
    at_least: bool = False
    # From where on it is missed by far, where that is not FAR times the limit.
    far: float | None = None

    @property
    def met(self) -> bool:
        """Whether it was reached. What could not be measured was not."""
        if math.isnan(self.value):
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def missed_by_far(self) -> bool:
        """Whether it was missed by more than a factor of FAR, or by as much as `far` says."""
        if self.met:
            return False
        if math.isnan(self.value) or self.limit == 0:
            return True
        if self.at_least:
            return self.value < (self.limit / FAR if self.far is None else self.far)
        return self.value > (self.limit * FAR if self.far is None else self.far)

    def line(self) -> str:
        """Return it as a line of text."""
        verdict = "ok" if self.met else "short, by far" if self.missed_by_far else "short"
        wanted = f"{'at least' if self.at_least else 'at most'} {number(self.limit)}{self.unit}"
        return f"{self.name}: {number(self.value)}{self.unit} (aim: {wanted}) {verdict}"

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "value": None if math.isnan(self.value) else self.value,
            "limit": self.limit,
            "unit": self.unit.strip(),
            "at_least": self.at_least,
            "met": self.met,
        }


def number(value: float | str | None) -> str:
    """Return a figure as people read it: about three digits that count, thousands set apart."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[float | str | None]]) -> str:
    """Return a Markdown table, aligned so that it reads as text too. The first column is text."""
    cells = [[number(cell) for cell in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 3) for i, name in enumerate(head)]
    rule = [("-" * widths[0])] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = [[name.ljust(widths[i]) for i, name in enumerate(head)], rule]
    lines += [[c.ljust(widths[0]) if i == 0 else c.rjust(widths[i]) for i, c in enumerate(row)] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(folder: str, name: str, data: Mapping[str, Any], text: str = "") -> Path:
    """Write NAME.json, and NAME.md where there is text, below output/FOLDER; return that folder."""
    path = OUTPUT / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.json").write_text(json.dumps(_finite(data), indent=1) + "\n", encoding="utf-8")
    if text:
        (path / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return path


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def surroundings(packages: Sequence[str], folder: Path) -> dict[str, str]:
    """Return what a figure depends on besides the code: the machine, its load now, and versions."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    versions["processors"] = f"{os.cpu_count()} of {_processor()}"
    versions["load average at the start"] = f"{os.getloadavg()[0]:.2f}"
    versions["redis-server"] = says([redis_binary(folder), "--version"], r"v=(\S+)")
    binaries = postgres_binaries()
    if binaries is not None:
        versions["postgres"] = says([str(binaries / "postgres"), "--version"], r"(\d\S*)")
    versions["commit"] = _commit()
    for package in packages:
        versions[package] = metadata.version(package)
    return versions


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else platform.machine()


def says(words: Sequence[str], pattern: str) -> str:
    """Return what a program prints that matches a pattern's group."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def _commit() -> str:
    """Return the checkout's commit, and whether the application's code differs from it."""
    head = says(["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"], r"(\w+)")
    changed = subprocess.run(
        ["git", "-C", str(PROJECT), "status", "--porcelain", "app"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return head if not changed.stdout.strip() else f"{head} with changes"


def version_lines(versions: Mapping[str, str]) -> str:
    """Return versions as text."""
    return "\n".join(f"- {name}: {value}" for name, value in versions.items())


def finish(aims: Sequence[Aim], failures: Sequence[str]) -> int:
    """Print the aims and what failed; return the exit code: 1 when anything failed or was missed by far."""
    for aim in aims:
        print(aim.line())
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures or any(aim.missed_by_far for aim in aims) else 0

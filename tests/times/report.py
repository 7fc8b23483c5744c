"""Print where the time of the last `make test` went: by part, by minute, by test, by playbook run and by task.

python tests/times/report.py [OUTPUT]     the folder that `make test` left, output/ unless named
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent.parent
# Lines of each list.
LONGEST = 15


@dataclass
class Run:
    """A run of ansible-playbook: times are seconds since the epoch."""

    playbook: str
    # The test that started it, or the scenario's step.
    by: str
    began: float
    ended: float
    tasks: list[tuple[str, float]]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON; none without the file. A line that was cut off ends them."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def read_run(path: Path) -> Run | None:
    """Return what the callback has recorded of one run."""
    lines = read(path)
    if not lines or lines[0]["kind"] != "run":
        return None
    tasks = [
        (line["name"], following["at"] - line["at"]) for line, following in pairwise(lines) if line["kind"] == "task"
    ]
    by = lines[0]["test"] or f"{lines[0]['scenario'] or 'controller'}, by itself"
    return Run(Path(lines[0]["playbook"]).name, by, lines[0]["at"], lines[-1]["at"], tasks)


def table(title: str, head: str, rows: Iterable[str]) -> None:
    """Print a list with a title."""
    print(f"\n{title}\n  {head}")
    for row in rows:
        print(f"  {row}")


def processors(samples: list[dict[str, Any]]) -> None:
    """Print how busy the processors were, by minute."""
    if len(samples) < 2:
        return
    first, last = samples[0], samples[-1]
    wall, busy = last["at"] - first["at"], last["busy"] - first["busy"]
    share = busy / (last["total"] - first["total"])
    print(f"\n{wall / 60:.1f} minutes, {busy:.0f} seconds of processor on this machine in all, {share:.0%} busy")
    start = first
    for sample in samples:
        if sample["at"] - start["at"] >= 60 or sample is last:
            share = (sample["busy"] - start["busy"]) / max(sample["total"] - start["total"], 0.01)
            minute = (start["at"] - first["at"]) / 60
            print(f"  minute {minute:4.0f}  {share:4.0%}  {'#' * round(40 * share)}")
            start = sample


def cases(folder: Path) -> list[tuple[float, str]]:
    """Return seconds and name of each test, from the JUnit files of all parts."""
    return [
        (float(case.get("time", 0)), f"{path.stem}: {case.get('classname', '').split('.')[-1]}::{case.get('name')}")
        for path in folder.glob("*.xml")
        for case in ET.parse(path).getroot().iter("testcase")
    ]


def main(folder: Path) -> int:
    """Print the report; return 1 when there is nothing to report."""
    times = folder / "times"
    parts = read(times / "parts.jsonl")
    runs = [run for path in times.glob("ansible-*.jsonl") if (run := read_run(path))]
    if not parts and not runs:
        print(f"{times} has no records; expected those of a `make test`", file=sys.stderr)
        return 1
    processors(read(times / "processor.jsonl"))
    table(
        "Parts (processor: of the controller's own processes, without the lab's hosts)",
        "  from    to  seconds  processor  part",
        (
            f"{part['began']:6.0f} {part['ended']:5.0f} {part['ended'] - part['began']:8.0f} {part['cpu']:10.0f}"
            f"  {part['part']}"
            for part in parts
        ),
    )
    tests = sorted(cases(folder), reverse=True)
    table(f"Tests: {len(tests)}", "seconds  test", (f"{seconds:7.1f}  {name}" for seconds, name in tests[:LONGEST]))
    playbooks: defaultdict[str, list[float]] = defaultdict(list)
    starters: defaultdict[str, list[float]] = defaultdict(list)
    tasks: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        playbooks[run.playbook].append(run.seconds)
        starters[run.by.rpartition("/")[2]].append(run.seconds)
        for name, seconds in run.tasks:
            tasks[name].append(seconds)
    for title, head, found in (
        ("Playbook runs", "playbook", playbooks),
        ("Playbook runs by what started them", "test, or step of a scenario", starters),
        ("Tasks, over all runs", "task", tasks),
    ):
        ranked = sorted(found.items(), key=lambda item: -sum(item[1]))[:LONGEST]
        count = sum(map(len, found.values()))
        table(
            f"{title}: {count}",
            f"seconds  count   mean  {head}",
            (f"{sum(all_):7.1f} {len(all_):6} {sum(all_) / len(all_):6.1f}  {name}" for name, all_ in ranked),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "output"))

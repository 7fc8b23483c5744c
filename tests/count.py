"""Add up the tests of all parts from their JUnit files, and fail if a part ran none.

    count.py FOLDER PART…

molecule passes when its verifier finds no tests; this does not.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def count(file: Path) -> tuple[int, int, int]:
    """Return how many tests of a JUnit file passed, failed (errors included) and were skipped; none without a file."""
    if not file.exists():
        return 0, 0, 0
    suites = ET.parse(file).getroot().iter("testsuite")
    passed = failed = skipped = 0
    for suite in suites:
        wrong = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        left_out = int(suite.get("skipped", 0))
        passed += int(suite.get("tests", 0)) - wrong - left_out
        failed += wrong
        skipped += left_out
    return passed, failed, skipped


def main(folder: Path, parts: list[str]) -> int:
    """Print a line for each part and the sum; return 0 if every part passed at least one test and failed none."""
    counts = {part: count(folder / f"{part}.xml") for part in parts}
    for part, (passed, failed, skipped) in counts.items():
        print(f"{part:12} {passed} passed, {failed} failed, {skipped} skipped" + ("" if passed else " - NO TEST RAN"))
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped")
    return 0 if all(passed and not failed for passed, failed, _ in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

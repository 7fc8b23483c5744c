"""What stands between a host and its packages: which are missing, who holds apt's locks, which sources do not answer.

The action plugin `packages` sends this file to the host as a program, `python3 - JSON`, so it needs the standard
library alone. It prints one line of JSON, and changes nothing but apt's lists.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# A source that does not answer must not hold a run up for minutes: apt's own limits are 30 s, four times.
PATIENCE = ["-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15", "-o", "Acquire::Retries=1"]
FOLDERS = {"status": "Dir::State::status/f", "lists": "Dir::State::lists/d", "archives": "Dir::Cache::archives/d"}
SOURCES = {"list": "Dir::Etc::sourcelist/f", "parts": "Dir::Etc::sourceparts/d"}
HELD = re.compile(r"Could not get lock (\S+?)\.?(?: It is held by process (\d+) \((.*?)\))?(?: - .*)?$")
FAILED = (
    re.compile(r"^[EW]: Failed to fetch (?P<source>\S+) +(?P<reason>.+)$"),
    re.compile(r"^E: The repository '(?P<source>[^']+)' (?P<reason>.+?)\.?$"),
    re.compile(r"^W: GPG error: (?P<source>\S+ \S+ \S+): (?P<reason>.+)$"),
    re.compile(r"^E: Release file for (?P<source>\S+) (?P<reason>is .+)$"),
)
# Says of the lines above, and of no source, that there were some.
SUMMARY = re.compile(r"^[EW]: (Some index files failed|Problem unlinking)|^N: ")


def run(*command: str) -> tuple[int, str]:
    """Run a program in plain English, and return its exit code and all that it printed."""
    done = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C", "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def places() -> dict[str, Path]:
    """Return where apt keeps what; raises OSError where there is no apt."""
    wanted = {**FOLDERS, **SOURCES}
    _, shown = run("apt-config", "shell", *(word for pair in wanted.items() for word in pair))
    return {name: Path(path) for name, path in re.findall(r"^(\w+)='(.*)'$", shown, re.MULTILINE)}


def missing(names: Iterable[str], status: Path) -> list[str]:
    """Return the packages that are not installed, or not wholly."""
    admin = f"--admindir={status.parent}"
    return [
        name
        for name in names
        if not run("dpkg-query", admin, "--show", "--showformat=${db:Status-Status} ", name)[1].startswith("installed ")
    ]


def without_candidate(names: Iterable[str]) -> list[str]:
    """Return the packages that apt cannot install, as no list has them."""
    # A name may have a version or a release behind it.
    plain = {name: re.split("[=/]", name)[0] for name in names}
    if not plain:
        return []
    shown = run("apt-cache", "policy", *plain.values())[1]
    known = set(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (?!\(none\))", shown, re.MULTILINE))
    # A name that other packages provide has no version of its own, and which one it will be is apt's to say.
    return [
        name
        for name in plain
        if plain[name] not in known
        and not run("apt-cache", "showpkg", plain[name])[1].partition("Provides:\n")[2].strip()
    ]


def holder(lock: Path) -> dict[str, Any] | None:
    """Return who holds a lock, or None; pid 0 is one whom this host does not see."""
    try:
        with lock.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    except OSError:
        return None
    kind, _, _, _, pid = struct.unpack("hhqqi4x", answer)
    return None if kind == fcntl.F_UNLCK else describe(str(lock), max(pid, 0))


def describe(lock: str, pid: int, program: str = "") -> dict[str, Any]:
    """Return a lock with the process that holds it, and the unit that the process belongs to."""
    unit = ""
    try:
        program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip() if pid else program
        found = (
            re.findall(r"/([^/]+\.service)", Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace"))
            if pid
            else []
        )
        unit = found[-1] if found else ""
    except OSError:
        # It has just gone.
        pass
    return {"lock": lock, "pid": pid, "program": program, "unit": unit}


def age(lists: Path) -> float:
    """Return how many seconds ago apt's lists were brought up to date."""
    stamps = (lists, lists.parent / "periodic/update-success-stamp")
    times = [stamp.stat().st_mtime for stamp in stamps if stamp.exists()]
    # A folder that holds nothing is as old as the system.
    filled = lists.is_dir() and any(entry.is_file() and entry.name != "lock" for entry in lists.iterdir())
    return time.time() - max(times) if times and filled else float("inf")


def configured_in(source: str, found: dict[str, Path]) -> str:
    """Return the file that names a source, or nothing."""
    parts = found.get("parts", Path("/nonexistent"))
    files = [found.get("list", Path("/nonexistent")), *(sorted(parts.iterdir()) if parts.is_dir() else [])]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        uris = re.findall(r"\b[a-z+]+:/\S+", re.sub(r"(?m)^\s*#.*", "", text))
        if any(source.startswith(uri.rstrip("/")) for uri in uris):
            return str(file)
    return ""


def failures(output: str, found: dict[str, Path]) -> list[dict[str, str]]:
    """Return which sources failed, and why, from what apt-get printed; one entry for each place and reason."""
    result: dict[tuple[str, str], dict[str, str]] = {}
    for line in output.splitlines():
        if SUMMARY.match(line) or not re.match("[EW]: ", line):
            continue
        entry = {"source": "", "reason": line[3:].strip()}
        for form in FAILED:
            if match := form.match(line):
                entry = {"source": match["source"], "reason": " ".join(match["reason"].split())}
                break
        else:
            if line.startswith("W: "):
                continue
        place = re.match(r"[a-z+]+:/*[^/ ]+", entry["source"])
        entry["file"] = configured_in(entry["source"], found)
        result.setdefault((place[0] if place else "", entry["file"] or entry["reason"]), entry)
    return list(result.values())


def look(names: list[str], state: str, valid: float, may_update: bool) -> dict[str, Any]:
    """Return what is missing, and who or what stands against installing it; brings apt's lists up to date."""
    found = places()
    absent = missing(names, found["status"])
    answer: dict[str, Any] = {"missing": absent, "locked": None, "failed": [], "unknown": [], "updated": False}
    if state == "present" and not absent:
        return answer
    answer["unknown"] = without_candidate(absent)
    if not may_update:
        return answer
    update = age(found["lists"]) > valid or bool(answer["unknown"])
    dpkg = found["status"].parent
    locks = [dpkg / "lock-frontend", dpkg / "lock", found["archives"] / "lock"]
    for lock in [*locks, *([found["lists"] / "lock"] if update else [])]:
        if (taken := holder(lock)) is not None:
            return {**answer, "locked": taken}
    if update:
        code, output = run("apt-get", "--quiet", *PATIENCE, "update")
        if held := next(filter(None, map(HELD.search, output.splitlines())), None):
            return {**answer, "locked": describe(held[1], int(held[2] or 0), held[3] or "")}
        answer["failed"] = failures(output, found)
        if code and not answer["failed"]:
            answer["failed"] = [{"source": "", "reason": output.strip()[-300:], "file": ""}]
        answer["updated"] = True
        if found["lists"].is_dir():
            # apt leaves the time alone where nothing was new, and the next task would ask all sources again.
            os.utime(found["lists"])
        answer["unknown"] = without_candidate(absent)
    return answer


def main() -> None:
    """Run as a program."""
    try:
        answer = look(**json.loads(sys.argv[1]))
    except (OSError, KeyError) as error:
        answer = {"problem": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

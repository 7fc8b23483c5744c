"""What stands between a host and its packages: which are missing, who holds apt's locks, which sources do not answer.

The action plugin `packages` sends this file to the host as a program, `python3 - JSON`, so it needs the standard
library alone. It prints one line of JSON, and changes nothing but apt's lists. The role `redis` sends it, too, with
`offers` in that JSON: what apt offers of Redis, now and with a repository that is still to be added. That changes
nothing at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from pathlib import Path
from typing import Any

# A source that does not answer must not hold a run up for minutes: apt's own limits are 30 s, four times.
PATIENCE = ["-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15", "-o", "Acquire::Retries=1"]
FOLDERS = {"status": "Dir::State::status/f", "lists": "Dir::State::lists/d", "archives": "Dir::Cache::archives/d"}
SOURCES = {"list": "Dir::Etc::sourcelist/f", "parts": "Dir::Etc::sourceparts/d"}
SETTINGS = {"etc": "Dir::Etc/d", "preferences": "Dir::Etc::preferencesparts/d"}
HELD = re.compile(r"Could not get lock (\S+?)\.?(?: It is held by process (\d+) \((.*?)\))?(?: - .*)?$")
FAILED = (
    re.compile(r"^[EW]: Failed to fetch (?P<source>\S+) +(?P<reason>.+)$"),
    re.compile(r"^E: The repository '(?P<source>[^']+)' (?P<reason>.+?)\.?$"),
    re.compile(r"^W: GPG error: (?P<source>\S+ \S+ \S+): (?P<reason>.+)$"),
    re.compile(r"^E: Release file for (?P<source>\S+) (?P<reason>is .+)$"),
)
# Says of the lines above, and of no source, that there were some.
SUMMARY = re.compile(r"^[EW]: (Some index files failed|Problem unlinking)|^N: ")
# What the role writes, by where apt looks for it.
OWN = {
    "sources": ("parts", "managed-redis.sources"),
    "key": ("etc", "keyrings/managed-redis.asc"),
    "preferences": ("preferences", "managed-redis.pref"),
}


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


@cache
def asked(*command: str) -> str:
    """Return what a program of apt's prints, which takes it a third of a second; until the lists are new ones."""
    return run(*command)[1]


def places() -> dict[str, Path]:
    """Return where apt keeps what; raises OSError where there is no apt."""
    wanted = {**FOLDERS, **SOURCES, **SETTINGS}
    _, shown = run("apt-config", "shell", *(word for pair in wanted.items() for word in pair))
    return {name: Path(path) for name, path in re.findall(r"^(\w+)='(.*)'$", shown, re.MULTILINE)}


def missing(names: Iterable[str], status: Path) -> list[str]:
    """Return the packages that are not installed, or not wholly, or not in the version that `name=version` asks for."""
    absent = []
    for name in names:
        package, _, version = name.partition("=")
        found = installed_version(package, status)
        if not found or (version and version != found):
            absent.append(name)
    return absent


def installed_version(package: str, status: Path) -> str:
    """Return the version of a package that is installed, or nothing."""
    form = "--showformat=${db:Status-Status} ${Version}\\n"
    for line in run("dpkg-query", f"--admindir={status.parent}", "--show", form, package)[1].splitlines():
        if line.startswith("installed "):
            return line.split()[1]
    return ""


def without_candidate(names: Iterable[str]) -> list[str]:
    """Return the packages that apt cannot install, as no list has them, or not in the version that is asked for."""
    # A name may have a version or a release behind it.
    plain = {name: re.split("[=/]", name)[0] for name in names}
    versions = {name: name.partition("=")[2] for name in plain if "=" in name}
    lost = [
        name
        for name, version in versions.items()
        if version not in [one["version"] for one in version_table(plain.pop(name)) if one["sources"]]
    ]
    if not plain:
        return lost
    shown = run("apt-cache", "policy", *plain.values())[1]
    known = set(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (?!\(none\))", shown, re.MULTILINE))
    # A name that other packages provide has no version of its own, and which one it will be is apt's to say.
    return lost + [
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
        asked.cache_clear()
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


def older(one: str, other: str) -> bool:
    """Return whether a version is older than another one, in dpkg's order."""
    return run("dpkg", "--compare-versions", one, "lt", other)[0] == 0


def upstream(version: str) -> str:
    """Return a version without the epoch: 7.2.11-1 of 6:7.2.11-1."""
    return version.partition(":")[2] or version


def of_line(version: str, line: str) -> bool:
    """Return whether a version is one of a line: 6:7.2.11-1 is one of 7 and of 7.2."""
    return upstream(version).startswith(f"{line}.")


def version_table(package: str, options: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the versions of a package that apt knows, newest first, each with the sources that have it."""
    table: list[dict[str, Any]] = []
    for line in asked("apt-cache", *options, "policy", package).splitlines():
        if match := re.match(r" (?:\*{3}| {3}) (\S+) -?\d+$", line):
            table.append({"version": match[1], "sources": []})
        elif table and (match := re.match(r" +-?\d+ (\S+) (\S+) (?:\S+ )?Packages$", line)):
            # `bookworm/main`, or a path that ends with a slash.
            table[-1]["sources"].append(f"{match[1].rstrip('/')} {match[2]}")
    return table


def candidate(package: str, options: Iterable[str] = ()) -> str:
    """Return the version of a package that apt would install, or nothing."""
    found = re.search(r"^  Candidate: (.+)$", asked("apt-cache", *options, "policy", package), re.MULTILINE)
    return "" if not found or found[1] == "(none)" else found[1]


def releases(options: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return what the Release files say of each source, by its address, suite and component."""
    fields = ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "LABEL", "SUITE", "CODENAME", "ARCHITECTURE", "FILENAME")
    form = "|".join(f"$({field})" for field in fields)
    found: dict[str, dict[str, Any]] = {}
    for line in asked("apt-get", *options, "indextargets", "--format", form, "Created-By: Packages").splitlines():
        if line.count("|") != len(fields) - 1:
            continue
        # Where there is none, apt leaves the name of the field.
        uri, suite, component, origin, label, name, code, architecture, file = (
            "" if value.startswith("$(") else value for value in line.split("|")
        )
        index = f"{component.replace('/', '_')}_binary-{architecture}_"
        stem = re.sub(rf"({re.escape(index)})?Packages(\.\w+)?$", "", file)
        found[f"{uri.rstrip('/')} {suite if suite.endswith('/') else f'{suite}/{component}'}"] = {
            "uri": uri.rstrip("/"),
            "suite": suite,
            "component": component,
            "origin": origin,
            "label": label,
            "name": name,
            "code": code,
            "date": release_date(stem),
        }
    return found


def release_date(stem: str) -> float | None:
    """Return the date in a source's Release file, in seconds, or None; it is signed, unlike the times of files."""
    for name in ("InRelease", "Release"):
        try:
            with Path(stem + name).open(encoding="utf-8", errors="replace") as file:
                text = file.read(10000)
        except OSError:
            continue
        if (match := re.search(r"^Date: (.+)$", text, re.MULTILINE)) and (date := parsedate_tz(match[1])):
            return mktime_tz(date)
    return None


def security_archives(known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the sources that bring a distribution's security fixes, such as bookworm-security and noble-security."""
    return {key: one for key, one in known.items() if "-security " in f"{one['name']} {one['code']} "}


def archive_problems(archives: dict[str, dict[str, Any]], components: set[str], days: float) -> list[str]:
    """Return why it is not known whether the security archive has something newer."""
    if not archives:
        return ["there is no security archive among apt's sources"]
    suited = [one for one in archives.values() if not components or one["component"] in components]
    if not suited:
        there = ", ".join(sorted({one["component"] for one in archives.values()}))
        return [f"of the security archive, apt has {there} and not {', '.join(sorted(components))}, where Redis is"]
    newest = max(suited, key=lambda one: one["date"] or 0)
    place = f"{newest['uri']} {newest['suite']}"
    if newest["date"] is None:
        return [f"apt has no index of {place}"]
    age = (time.time() - newest["date"]) / 86400
    return [f"the index of {place} is {age:.0f} days old"] if age > days else []


def known_bad(version: str, table: Iterable[dict[str, str]], of: str) -> list[str]:
    """Return what is known against a version, by the first with the fixes of its line; `of` is who made it."""
    compared = upstream(version) if of == "upstream" else version
    return [
        f"it lacks the security fixes of {row['fixed']}"
        for row in table
        if row["of"] == of and of_line(version, row["line"]) and older(compared, row["fixed"])
    ]


def has_source(text: str, uri: str, suite: str) -> bool:
    """Return whether a file of apt's sources names a source, with whatever key."""
    plain = re.sub(r"(?m)^\s*#.*", "", text)
    places = {found.rstrip("/") for found in re.findall(r"\b[a-z+]+:/\S+", plain)}
    return uri.rstrip("/") in places and suite in plain.split()


def pinned(packages: str, pin: str, priority: int, why: str) -> str:
    """Return a paragraph of apt's preferences."""
    return f"\nExplanation: {why}\nPackage: {packages}\nPin: {pin}\nPin-Priority: {priority}\n"


class Offers:
    """What apt offers of Redis. Where the host's own lists cannot tell, apt is asked in a folder that goes again."""

    # The server first, and what has its version besides.
    PACKAGES = ("redis-server", "redis-tools")
    PINNED = "redis redis-server redis-sentinel redis-tools"

    def __init__(
        self,
        distribution: str,
        kind: str,
        days: float,
        bad: list[dict[str, str]],
        upgrade: bool = False,
        header: str = "",
        repository: dict[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.days = days
        self.bad = bad
        self.distribution = distribution
        self.upgrade = upgrade
        self.header = f"{header.rstrip()}\n"
        # url, suite, version, and the texts of two files: sources, which lacks the line on the key, and the key.
        self.repository = repository or {}
        self.found = places()
        self.own = {name: self.found[folder] / file for name, (folder, file) in OWN.items()}
        if self.repository:
            self.wanted = {"sources": self.signed_by(self.own["key"]), "key": self.repository["key"]}
        else:
            self.wanted = {"sources": "", "key": ""}
        self.texts = {name: self.read(path) for name, path in self.own.items()}
        self.server = self.PACKAGES[0]
        self.installed = installed_version(self.server, self.found["status"])
        self.options: list[str] = []
        self.failed: list[dict[str, str]] = []
        self.problems: list[dict[str, str]] = []

    @staticmethod
    def read(path: Path) -> str:
        """Return a file's text, or nothing."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def signed_by(self, key: Path) -> str:
        """Return the repository as a source of apt's, with a file for its key."""
        return f"{self.repository['sources']}Signed-By: {key}\n"

    def refuse(self, name: str, found: str, expected: str) -> None:
        """Note what stands against a run, in the form of the plugin `checks`."""
        self.problems.append({"name": name, "problem": found, "expected": expected})

    def answer(self) -> dict[str, Any]:
        """Return what apt offers, which files of the role's it wants for that, and what stands against a run."""
        with tempfile.TemporaryDirectory(prefix="apt-") as folder:
            self.folder = Path(folder)
            # The host's own lists do not have what is told here.
            fetched = (self.kind == "package" or bool(self.repository)) and not self.suffices()
            if fetched:
                self.prepare()
            result = self.judge()
        # As the role writes them; without a repository that can be asked, what is there stays.
        files = {str(self.own[name]): text for name, text in result.pop("files").items()}
        return {
            **result,
            "installed": self.installed,
            "fetched": fetched,
            "failed": [f"{one['source']}: {one['reason']}" if one["source"] else one["reason"] for one in self.failed],
            "problems": self.problems,
            "files": files,
            "differ": [path for path, text in files.items() if self.read(Path(path)) != text],
            "left": [str(path) for path in self.own.values() if path.exists() and str(path) not in files],
        }

    def suffices(self) -> bool:
        """Return whether the host's own sources, pins and lists tell what there is to know."""
        if any(self.texts[name] != text for name, text in self.wanted.items()) or self.stale():
            return False
        return not self.repository or bool(self.of_repository(version_table(self.server)))

    def stale(self) -> bool:
        """Return whether lists are missing, or those of the security archive are too old."""
        if not version_table(self.server, self.options):
            return True
        dates = [one["date"] or 0 for one in security_archives(releases(self.options)).values()]
        # What another repository has, it does not tell of.
        return self.kind == "package" and bool(dates) and max(dates) < time.time() - self.days * 86400

    def prepare(self) -> None:
        """Fill the folder with the sources, pins and lists that there will be, and bring the lists up to date."""
        folder = self.folder
        # apt reads it as a user of its own.
        folder.chmod(0o755)
        for name in ("lists", "parts", "preferences"):
            (folder / name).mkdir(mode=0o755)
            for file in self.found[name].iterdir() if self.found[name].is_dir() else []:
                if file.is_file() and file not in self.own.values() and file.name != "lock":
                    shutil.copy2(file, folder / name / file.name)
        source = folder / "parts" / self.own["sources"].name
        if not self.repository and self.texts["preferences"] == self.only_seven():
            self.pin(self.only_seven())
        if self.repository:
            key = folder / "key.asc"
            key.write_text(self.repository["key"], encoding="utf-8")
            key.chmod(0o644)
            source.write_text(self.signed_by(key), encoding="utf-8")
        settings = {
            "Dir::State::Lists": f"{folder}/lists",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourceparts": f"{folder}/parts",
            "Dir::Etc::preferencesparts": f"{folder}/preferences",
        }
        only = {"Dir::Etc::sourcelist": source, "Dir::Etc::sourceparts": "-", "APT::Get::List-Cleanup": "0"}
        self.options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        alone: list[str] = []
        if not self.stale():
            if not self.repository:
                return
            alone = [word for name, value in only.items() for word in ("-o", f"{name}={value}")]
        output = run("apt-get", *self.options, *alone, *PATIENCE, "-qq", "update")[1]
        asked.cache_clear()
        self.failed = failures(output, self.found)

    def pin(self, text: str) -> None:
        """Write the role's pins into the folder."""
        (self.folder / "preferences" / self.own["preferences"].name).write_text(text, encoding="utf-8")

    def of_repository(self, table: list[dict[str, Any]]) -> list[str]:
        """Return the versions that the repository has, newest first."""
        uri = self.repository["url"].rstrip("/")
        return [one["version"] for one in table if any(key.startswith(f"{uri} ") for key in one["sources"])]

    def judge(self) -> dict[str, Any]:
        """Return what is offered, what is to be there, what is known against it, and the role's files for it."""
        if self.repository:
            return self.judge_repository(releases(self.options), version_table(self.server, self.options))
        if self.kind == "package":
            return self.judge_package(releases(self.options), version_table(self.server, self.options))
        # Built from source, or what is to be there is not known yet.
        return {"offered": "", "target": "", "lacks": {}, "archive": [], "newer": "", "files": {}}

    def only_seven(self) -> str:
        """Return the pins that go with the distribution's own package."""
        why = (
            "Redis 8 is not installed unasked, not even by an upgrade of the whole host: a Redis 7 does not read "
            "what it has written."
        )
        return self.header + pinned(self.PINNED, r"version /^([0-9]+:)?([89]|[1-9][0-9]+)\./", -1, why)

    def judge_package(self, known: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> dict[str, Any]:
        """Judge the distribution's own package, by its security archive and by what is known of versions."""
        archives = security_archives(known)
        origins = {one["origin"] for one in archives.values()}
        theirs = [one for one in table if any(known.get(key, {}).get("origin") in origins for key in one["sources"])]
        components = {
            known[key]["component"] for one in theirs for key in one["sources"] if key in known and key not in archives
        }
        archive = archive_problems(archives, components, self.days)
        fixes = [one["version"] for one in table if any(key in archives for key in one["sources"])]
        sevens = [one["version"] for one in theirs if of_line(one["version"], "7")]
        offered = candidate(self.server, self.options)

        def lacks(version: str) -> list[str]:
            newer = [fix for fix in fixes if of_line(fix, "7") and older(version, fix)][:1]
            reasons = [f"the security archive has {fix}" for fix in newer]
            reasons += known_bad(version, self.bad, self.distribution)
            # Without the archive it is not known whose a version is.
            if not archive and not sevens:
                reasons.append("the distribution has no Redis 7, and publishes no fixes for one")
            elif not archive and older(sevens[0], version):
                reasons.append(f"it is not the distribution's, which has {sevens[0]} and publishes fixes for no other")
            return reasons

        return {
            "offered": offered,
            "target": offered if self.upgrade or not self.installed else self.installed,
            "lacks": {version: lacks(version) for version in {offered, self.installed} if version},
            "archive": archive,
            "newer": "",
            "theirs": theirs[0]["version"] if theirs else "",
            "files": {"preferences": self.only_seven()},
        }

    def choose(self, versions: list[str]) -> str:
        """Return which version of the repository is to be there: the named one, or the newest of its line."""
        version = self.repository["version"] or "7"
        if not re.fullmatch(r"7(\.\d+)?", version):
            return version if version in [*versions, self.installed] else ""
        # What an earlier run has chosen is held, also when the repository has something newer.
        held = f"Pin: version {self.installed}\nPin-Priority: 990\n" in self.texts["preferences"]
        if held and of_line(self.installed, version) and not self.upgrade:
            return self.installed
        return next((one for one in versions if of_line(one, version)), "")

    def judge_repository(self, known: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> dict[str, Any]:
        """Judge a repository of somebody else, which has to answer, and the version of it that is to be held."""
        uri, suite, version = (self.repository[name] for name in ("url", "suite", "version"))
        uri = uri.rstrip("/")
        release = next((one for one in known.values() if one["uri"] == uri and one["suite"] == suite), None)
        versions = self.of_repository(table)
        sevens = [one for one in versions if of_line(one, "7")]
        target = self.choose(versions)
        failed = [one["reason"] for one in self.failed if f"{one['source']} ".startswith((f"{uri}/", f"{uri} "))]
        for file in [self.found["list"], *sorted(self.found["parts"].glob("*"))]:
            if file != self.own["sources"] and has_source(self.read(file), uri, suite):
                self.refuse(
                    "redis_repository.url",
                    f"{uri} {suite}, which {file} has already",
                    "a repository of this role alone: take it out of that file, as apt refuses one with two keys",
                )
        if self.problems:
            release = None
        elif failed or not release or release["date"] is None:
            self.refuse(
                "redis_repository",
                f"{uri} {suite}: {'; '.join(failed) or 'apt has no index of it'}",
                "a repository that answers, and whose Release file redis_repository.key has signed",
            )
            release = None
        elif not (release["origin"] or release["label"]):
            self.refuse(
                "redis_repository",
                f"{uri} {suite}, whose Release file has no Origin and no Label",
                "one of them, by which apt keeps the repository's other packages off this host",
            )
        elif alike := self.alike(release, known):
            self.refuse(
                "redis_repository",
                f"{uri} {suite}, whose Release file has Origin, Label and Suite of {alike}",
                "others: by them apt keeps the repository's other packages off this host",
            )
        elif not target:
            self.refuse(
                "redis_repository.version",
                f"{version or 'no version'}, where the repository has {', '.join(versions[:5]) or f'no {self.server}'}",
                "a version that it has, or the beginning of one, such as 7.2; or none for its newest Redis 7",
            )
        elif self.installed and older(target, self.installed):
            self.refuse(
                "redis_repository.version",
                f"{target}, where {self.installed} is installed",
                "that one or a newer one, as an older Redis may not read its files",
            )
        files = dict(self.wanted)
        if release and target:
            files["preferences"] = self.held(target, release)
            if target != self.installed and not self.problems:
                self.try_out(target, files["preferences"])
        elif self.texts["preferences"]:
            files["preferences"] = self.texts["preferences"]
        line = ".".join(upstream(target).split(".")[:2])
        return {
            "offered": sevens[0] if sevens else "",
            "target": target,
            "lacks": {one: known_bad(one, self.bad, "upstream") for one in {target, self.installed} if one},
            "archive": [],
            # Of its line alone: what a site wants besides is its own choice.
            "newer": next((one for one in sevens if target and of_line(one, line) and older(target, one)), ""),
            "files": files,
        }

    @staticmethod
    def alike(release: dict[str, Any], known: dict[str, dict[str, Any]]) -> str:
        """Return another source that apt cannot tell from the repository, or nothing."""
        for one in known.values():
            if one["uri"] != release["uri"] and all(
                one[name] == release[name] for name in ("origin", "label", "name", "code")
            ):
                return f"{one['uri']} {one['suite']}"
        return ""

    def held(self, version: str, release: dict[str, Any]) -> str:
        """Return the pins that hold a version of the repository, and take nothing else from there."""
        fields = {"o": "origin", "l": "label", "a": "name", "n": "code"}
        # A comma would end the field; ? stands for any character.
        words = {key: re.sub(r"[^\w .+:~/-]", "?", release[name]) for key, name in fields.items() if release[name]}
        return "".join(
            (
                self.header,
                pinned(self.PINNED, f"version {version}", 990, "The version that is held, from redis_repository."),
                pinned(
                    self.PINNED,
                    "release *",
                    -1,
                    "No other one, wherever it is: the role redis alone moves it (redis_repository, redis_upgrade).",
                ),
                pinned(
                    "*",
                    "release " + ",".join(f"{key}={word}" for key, word in words.items()),
                    -1,
                    "Nothing but Redis is taken from that repository.",
                ),
            )
        )

    def try_out(self, version: str, pins: str) -> None:
        """Check with apt whether it could install a version, with all that it needs, from where it may take it."""
        if not self.options:
            self.prepare()
        self.pin(pins)
        code, output = run(
            *("apt-get", *self.options, "--simulate", "--yes", "--quiet", "--no-install-recommends"),
            # It would keep a log of what it has planned.
            *(
                "-o",
                f"Dir::Log={self.folder}",
                "-o",
                "Debug::NoLocking=1",
                "install",
                *(f"{package}={version}" for package in self.PACKAGES),
            ),
        )
        if code:
            lines = [" ".join(line.split()) for line in output.splitlines()]
            told = [line for line in lines if re.search(r"(Depends|Breaks|Conflicts): |^E: ", line)]
            self.refuse(
                "redis_repository.version",
                f"{version}, which apt cannot install: {'; '.join(told or lines)[-300:]}",
                "a package for this distribution, whose dependencies the host's other sources have",
            )


def main() -> None:
    """Run as a program."""
    # apt reads its folders as a user of its own, whatever the login's umask.
    os.umask(0o022)
    try:
        asked = json.loads(sys.argv[1])
        answer = Offers(sys.argv[2], **asked["offers"]).answer() if "offers" in asked else look(**asked)
    except (OSError, KeyError) as error:
        answer = {"problem": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

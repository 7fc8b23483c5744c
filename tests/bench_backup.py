"""Time databackup on a gigabyte in Redis against the bare work, and ask what a client of Redis notices of it.

    make bench-backup OPTIONS="[--keys N] [--rounds N] [--seconds S]"

All on loopback, with a repository in a folder, a fresh one for each backup, so that nothing is in it already:

- a backup against `redis-cli --rdb FILE` and `restic backup FILE`, one after the other;
- a restore, which compares all data or counts them, against what must be done at least: the file copied, or fetched by
  `restic dump`, and loaded by Redis; to compare all data, they must be read back, as by `redis-cli --rdb`;
- a client's latency at a fixed rate, from when its request was due: with nothing else, during a backup as the timer
  makes it (of lower priority), and during the bare work of the same priority.

A ratio is the median of each round's. Writes backup.json and backup.md below output/bench. Needs restic, redis-tools,
and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from databackup.redis.resp import Client
from host import REDIS_PASSWORD, Host

from drills import report, servers
from drills.servers import say

PROJECT: Final = Path(__file__).resolve().parent.parent
PATH: Final = f"{PROJECT}:{PROJECT}/databackup/src:{PROJECT}/tests"
VALUE: Final = 950
RATE: Final = 2000
# Of one key: its value, and what Redis keeps besides.
KEY_BYTES: Final = VALUE + 130
AIM: Final = 1.5
# Above this load, the figures are those of something else.
QUIET: Final = 1.5
# As the unit databackup@.service.
NICE: Final = 10


class Refused(RuntimeError):
    """The bench cannot run here, or what it measured says nothing."""


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes, begun with a disk at rest."""
    os.sync()
    began = time.monotonic()
    act()
    return time.monotonic() - began


def run(words: Sequence[str | Path], nice: int = 0, **named: Any) -> None:
    """Run a program; raises Refused when it fails."""
    politely = ["nice", "-n", str(nice)] if nice else []
    done = subprocess.run([*politely, *words], stderr=subprocess.PIPE, check=False, text=True, **named)
    if done.returncode != 0:
        raise Refused(f"{words[0]} failed: {done.stderr[-500:]}")


def noise(size: int) -> str:
    """Return a text that nobody packs by much."""
    return b64encode(os.urandom(size)).decode()[:size]


class Site(Host):
    """A host with as many keys as are asked for."""

    def __init__(self, folder: Path, keys: int) -> None:
        # An append-only file that is rewritten just then would be measured with whatever runs.
        rewrite = {"auto-aof-rewrite-percentage": "0"}
        super().__init__(folder, None, appendfsync="everysec", maxmemory="0", save='""', **rewrite)
        self.restic.run("init", what="init")
        (folder / "repository").rename(folder / "template")
        self.file = folder / "copied.rdb"
        say(f"writing {keys:,} keys")
        self._write(keys)
        self.keys = keys

    def _write(self, keys: int) -> None:
        half = VALUE // 2
        with self.client() as client:
            for first in range(0, keys, 500):
                # A half that packs well, and one that does not.
                client.pipeline(
                    [
                        ("SET", f"key:{number}", noise(half) + f"{number:010}" * (half // 10))
                        for number in range(first, min(first + 500, keys))
                    ]
                )

    def fresh(self) -> None:
        """Begin with an empty repository."""
        for name in ("repository", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "template", self.folder / "repository")

    @property
    def environment(self) -> dict[str, str]:
        """That of the bare programs."""
        return {**os.environ, **self.restic.environment, "REDISCLI_AUTH": REDIS_PASSWORD}

    def databackup(self, *words: str, nice: int = 0) -> dict[str, Any]:
        """Run databackup, and return what it found."""
        self.file.unlink(missing_ok=True)
        command = [sys.executable, str(PROJECT / "databackup/tests/host.py"), "-", str(self.folder)]
        done = subprocess.run(
            [*(["nice", "-n", str(nice)] if nice else []), *command, "--config", str(self.etc), "--json", *words],
            env={**os.environ, "PYTHONPATH": PATH},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(f"databackup {words[0]} failed: {done.stderr[-500:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def copy_bare(self, nice: int = 0) -> None:
        """Have redis-cli write a file."""
        self.file.unlink(missing_ok=True)
        words: list[str | Path] = ["redis-cli", "-p", str(self.port), "--rdb", self.file]
        run(words, nice, env=self.environment, stdout=subprocess.DEVNULL)

    def store_bare(self, nice: int = 0) -> None:
        """Have restic store it."""
        run(["restic", "backup", "--quiet", self.file], nice, env=self.environment)

    def fetch_bare(self, path: Path) -> None:
        """Have restic bring it back."""
        with path.open("wb") as out:
            run(["restic", "dump", "latest", str(self.file)], env=self.environment, stdout=out)

    def load_bare(self, path: Path) -> None:
        """Have another Redis load a file, until it serves."""
        port = servers.free_port()
        words = [str(self.binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(
            [*words, "--dir", str(path.parent), "--dbfilename", path.name], stdout=subprocess.DEVNULL
        )
        try:
            while b"PONG" not in ping(port):
                if process.poll() is not None:
                    raise Refused("redis-server ended while it loaded the file")
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()

    def forget_kept(self) -> None:
        """Remove what a restore has kept."""
        for name in self.left_over():
            shutil.rmtree(self.data / name)


def ping(port: int) -> bytes:
    """Return a server's answer to PING; nothing when there is none yet."""
    done = subprocess.run(["redis-cli", "-p", str(port), "PING"], capture_output=True, check=False)
    return done.stdout


# --- A client ---


def be_client(port: int, keys: int) -> None:
    """Send a GET or SET at a fixed rate, until SIGTERM; then print each one's time and latency as JSON."""
    going = True

    def end(_number: int, _frame: Any) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, end)
    chance = random.Random(5)
    value = noise(VALUE)
    found: list[tuple[float, float]] = []
    with Client("127.0.0.1", port, timeout=60) as client:
        client.call("AUTH", REDIS_PASSWORD)
        print("ready", flush=True)
        due = replied = time.monotonic()
        while going:
            due += 1 / RATE
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            # Held up by the one before, it has waited since it was due; woken up late, that is not Redis' doing.
            began = due if replied > due else time.monotonic()
            name = f"key:{chance.randrange(keys)}"
            client.call(*(("GET", name) if chance.random() < 0.5 else ("SET", name, value)))
            replied = time.monotonic()
            found.append((began, replied - began))
    json.dump(found, sys.stdout)


@contextmanager
def client(site: Site) -> Iterator[list[tuple[float, float]]]:
    """Have a client send all the while; its requests are in the list afterwards."""
    found: list[tuple[float, float]] = []
    words = [sys.executable, __file__, "--client", str(site.port), "--keys", str(site.keys)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PATH})
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise Refused("the client did not start")
        yield found
        process.terminate()
        found += [(began, latency) for began, latency in json.load(process.stdout)]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def latencies(site: Site, act: Callable[[], object]) -> dict[str, float]:
    """Return a client's latencies in milliseconds while something is done."""
    os.sync()
    with client(site) as found:
        time.sleep(1)
        began = time.monotonic()
        act()
        ended = time.monotonic()
    within = sorted(latency * 1000 for at, latency in found if began <= at <= ended)
    if len(within) < 1000:
        raise Refused(f"a client sent {len(within)} requests only; are there enough keys?")
    return {
        "requests": len(within),
        "seconds": ended - began,
        "p50": within[len(within) // 2],
        "p99": within[int(len(within) * 0.99)],
        "p999": within[int(len(within) * 0.999)],
        "max": within[-1],
    }


# --- The measurements ---


def one_round(site: Site, pause: float) -> dict[str, Any]:
    """Measure all once."""
    found: dict[str, Any] = {}

    def both() -> None:
        site.copy_bare(NICE)
        site.store_bare(NICE)

    say("latency: nothing else, then a backup, then the bare work")
    found["latency"] = {"nothing else": latencies(site, lambda: time.sleep(pause))}
    site.fresh()
    found["latency"]["databackup"] = latencies(site, lambda: site.databackup("backup", "redis", nice=NICE))
    site.fresh()
    found["latency"]["redis-cli and restic"] = latencies(site, both)

    say("backup: bare, then databackup")
    site.fresh()
    found["redis-cli --rdb"] = seconds(site.copy_bare)
    found["restic backup"] = seconds(site.store_bare)
    found["bytes"] = site.file.stat().st_size

    say("restore: bare")
    copy = site.folder / "bare.rdb"
    found["restic dump"] = seconds(lambda: site.fetch_bare(copy))
    found["cp"] = seconds(lambda: shutil.copyfile(site.file, copy))
    found["Redis' load"] = seconds(lambda: site.load_bare(copy))
    copy.unlink()

    site.fresh()
    found["backup"] = seconds(lambda: site.databackup("backup", "redis"))
    for how in ("digest", "count"):
        say(f"restore: databackup, --verify {how}")
        done: dict[str, Any] = {}
        words = ("restore", "redis", "--verify", how)
        found[f"restore, {how}"] = seconds(lambda words=words, done=done: done.update(site.databackup(*words)))  # type: ignore[misc]
        if done["found"] != done["expected"] or done["found"]["keys"] != site.keys:
            raise Refused(f"a restore brought {done['found']}, and not {done['expected']}")
        found[f"phases, {how}"] = done["seconds"]
        site.forget_kept()
    return found


COMPARED: Final = (
    ("backup", ("redis-cli --rdb", "restic backup")),
    ("restore, digest", ("restic dump", "Redis' load")),
    ("restore, count", ("restic dump", "Redis' load")),
    ("restore, digest", ("restic dump", "Redis' load", "redis-cli --rdb")),
    ("restore, digest", ("cp", "Redis' load")),
    ("restore, count", ("cp", "Redis' load")),
)


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(list(values))


def ratio(rounds: Sequence[Mapping[str, Any]], name: str, bare: Sequence[str]) -> float:
    """Return the median of each round's ratio."""
    return median(found[name] / sum(found[part] for part in bare) for found in rounds)


def conclude(rounds: Sequence[Mapping[str, Any]], keys: int, versions: Mapping[str, str]) -> int:
    """Print and write what was found; return the exit code."""

    def middle(name: str) -> float:
        return median(found[name] for found in rounds)

    rows: list[list[float | str | None]] = []
    for name, bare in COMPARED:
        rows.append([name, middle(name), " + ".join(bare), sum(map(middle, bare)), ratio(rounds, name, bare)])
    places = list(rounds[0]["latency"])
    waits: dict[str, dict[str, float]] = {
        place: {
            which: median(found["latency"][place][which] for found in rounds) for which in ("p50", "p99", "p999", "max")
        }
        for place in places
    }
    p99 = {
        place: median(found["latency"][place]["p99"] / found["latency"][places[0]]["p99"] for found in rounds)
        for place in places
    }
    aims = [
        report.Aim(f"{name} against {' + '.join(bare)}", ratio(rounds, name, bare), AIM) for name, bare in COMPARED[:3]
    ]
    text = "\n\n".join(
        [
            f"# Backup and restore of {keys:,} keys, {int(middle('bytes')) >> 20} MiB as a snapshot\n\n"
            f"{len(rounds)} rounds, medians, in seconds; a repository in a folder.",
            report.table(["what", "s", "bare", "s ", "ratio"], rows),
            "Bare, in seconds: "
            + ", ".join(
                f"{name} {report.number(middle(name))}"
                for name in ("redis-cli --rdb", "restic backup", "restic dump", "cp", "Redis' load")
            ),
            "A restore's phases in the last round: "
            + "; ".join(
                f"{how}: " + ", ".join(f"{phase} {value:g}" for phase, value in rounds[-1][f"phases, {how}"].items())
                for how in ("digest", "count")
            ),
            f"## A client's latency in ms, {RATE:,} requests a second on one connection",
            report.table(
                ["during", "p50", "p99", "p99.9", "max", "p99 ratio"],
                [[place, *waits[place].values(), p99[place]] for place in places],
            ),
            "\n".join(f"- {aim.line()}" for aim in aims),
            f"## Versions\n\n{report.version_lines(versions)}",
        ]
    )
    print(text)
    data = {
        "keys": keys,
        "rounds": rounds,
        "ratios": [{"of": n, "to": list(b), "ratio": round(ratio(rounds, n, b), 3)} for n, b in COMPARED],
        "latency": waits,
        "p99_ratios": p99,
        "aims": [aim.plain() for aim in aims],
        "versions": versions,
    }
    folder = report.write("bench", "backup", data, text)
    print(f"\nWritten: {folder}/backup.json, backup.md")
    return 1 if any(aim.missed_by_far for aim in aims) else 0


def ask_for_room(folder: Path, keys: int) -> None:
    """Raise Refused where there is too little memory or disk."""
    # Two servers, one of them with a child that copies what is written; and on the disk the append-only file, a
    # snapshot, a copy of it, a repository, the spool, and what a restore keeps.
    for what, needed, free in (
        ("memory", keys * KEY_BYTES * 3, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        ("disk", keys * KEY_BYTES * 8, shutil.disk_usage(folder).free),
    ):
        if free < needed:
            raise Refused(f"found {free >> 20:,} MiB of {what} free; expected {needed >> 20:,} (fewer --keys?)")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000, help="of 950 bytes each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of the client's time without a backup")
    parser.add_argument("--busy", action="store_true", help="measure although other things run on this machine")
    parser.add_argument("--client", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    given = parse(arguments)
    if given.client:
        be_client(given.client, given.keys)
        return 0
    servers.end_on_signals()
    for name in ("restic", "redis-cli", "redis-check-rdb"):
        if shutil.which(name) is None:
            raise Refused(f"found no {name}; install restic and redis-tools")
    load = os.getloadavg()[0]
    if load > QUIET and not given.busy:
        raise Refused(
            f"found a load of {load:.1f}; expected a quiet machine, below {QUIET}: what else runs here (the tests? the "
            "lab?) would be measured, too. Come back when it has ended, or say --busy"
        )
    with servers.workspace() as workspace:
        ask_for_room(workspace.folder, given.keys)
        versions = report.surroundings((), workspace.folder)
        versions["restic"] = report.says(["restic", "version"], r"restic (\S+)")
        folder = workspace.folder / "host"
        folder.mkdir()
        site = None
        try:
            site = Site(folder, given.keys)
            rounds = []
            for number in range(given.rounds):
                say(f"round {number + 1} of {given.rounds}")
                rounds.append(one_round(site, given.seconds))
        finally:
            if site:
                site.service.end(signal.SIGKILL)
    return conclude(rounds, given.keys, versions)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, servers.NotStarted) as error:
        sys.exit(f"FAILED: {error}")

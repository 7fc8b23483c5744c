"""A thousand requests at once for a price that is not cached: how often are the database and Redis asked?

    python -m drills.cold [--requests N] [--rounds N] [--database postgresql|sqlite]

The requests are sent while the application's processes are stopped, so that all of them wait in its sockets when it
goes on; a second series sends them to running processes. The database's own record tells how often it was read:
PostgreSQL's log of all statements, or SQLite's trace. Redis' MONITOR tells each GET.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from drills import report, servers
from drills.client import Answer, Connection, percentile, read_request
from drills.report import Aim
from drills.servers import HOST, App, Redis, Workspace, say

Arrival = Literal["while stopped", "while running"]

TTL: Final = 300
PATIENCE: Final = 30.0
# Seconds that records get to be written.
SETTLE: Final = 0.3
PACKAGES: Final = ("quantdesk", "uvicorn", "uvloop", "httptools", "hiredis", "sqlalchemy", "asyncpg", "aiosqlite")
READS: Final = re.compile(r"\bSELECT\b[^;]*?\bFROM\s+prices\b", re.IGNORECASE)


class Database(Protocol):
    """A database with a record of its own of what it was asked."""

    @property
    def url(self) -> str:
        """Where it is, as the application takes it."""
        ...

    @property
    def environment(self) -> dict[str, str]:
        """What the application's environment needs for the record."""
        ...

    def record(self) -> str:
        """Return all statements so far."""
        ...


class RecordedPostgres:
    """PostgreSQL, which logs every statement."""

    def __init__(self, workspace: Workspace) -> None:
        self._server = workspace.postgres(log_statements=True)
        self.url: Final = self._server.url
        self.environment: Final[dict[str, str]] = {}

    def record(self) -> str:
        """Return all statements so far."""
        return self._server.log.read_text(encoding="utf-8", errors="replace")


class RecordedSqlite:
    """SQLite, whose trace each process writes."""

    def __init__(self, workspace: Workspace) -> None:
        self._trace = workspace.folder / "trace.sql"
        self._trace.touch()
        self.url: Final = workspace.sqlite_url()
        folder = Path(__file__).resolve().parent / "trace"
        self.environment: Final = {"PYTHONPATH": str(folder), "DRILL_TRACE": str(self._trace)}

    def record(self) -> str:
        """Return all statements so far."""
        return self._trace.read_text(encoding="utf-8")


class Monitor:
    """What Redis is asked by clients, not by scripts, from now on."""

    def __init__(self, redis: Redis) -> None:
        self._link = socket.create_connection((HOST, redis.port), 5)
        self._link.sendall(b"MONITOR\r\n")
        self._link.recv(16)

    def commands(self, key: str) -> Counter[str]:
        """Return how often each command was sent with this key; ends the watch."""
        self._link.settimeout(SETTLE)
        received = bytearray()
        with suppress(TimeoutError), self._link:
            while chunk := self._link.recv(1 << 20):
                received += chunk
        pattern = re.compile(rf'\[\d+ [^\]]*:\d+\] "(\w+)"[^\r]*"{re.escape(key)}"')
        return Counter(found[1].upper() for found in pattern.finditer(received.decode("utf-8", "replace")))


@dataclass(frozen=True, slots=True)
class Round:
    """One herd: what it was answered, and what was asked for it."""

    database: str
    processes: int
    arrival: Arrival
    requests: int
    errors: int
    outcomes: dict[str, int]
    database_reads: int
    redis_gets: int
    p50_ms: float
    longest_ms: float


class Herd:
    """Connections to all processes, in turn."""

    def __init__(self, apps: Sequence[App], size: int) -> None:
        self._apps = apps
        self._size = size
        self._connections: list[Connection] = []

    async def connect(self, symbol: str) -> None:
        """Open the connections, and have each answer once."""
        for start in range(0, self._size, 100):
            ports = [self._apps[i % len(self._apps)].port for i in range(start, min(start + 100, self._size))]
            self._connections += await asyncio.gather(*(Connection.connect(port) for port in ports))
        for connection in self._connections:
            await connection.ask(read_request(symbol))

    async def stampede(self, symbol: str, stopped: bool) -> list[tuple[float, Answer | None]]:
        """Send a read over each connection at once; return the answers with their milliseconds, None for an error."""
        request = read_request(symbol)
        if stopped:
            self._signal(signal.SIGSTOP)
        begin = time.perf_counter()
        for connection in self._connections:
            connection.send(request)
        if stopped:
            # Written to the kernel by now, but for what a full socket would have kept: it is far from full.
            await asyncio.sleep(0.05)
            self._signal(signal.SIGCONT)
            begin = time.perf_counter()
        return await asyncio.gather(*(self._answer(connection, begin) for connection in self._connections))

    @staticmethod
    async def _answer(connection: Connection, begin: float) -> tuple[float, Answer | None]:
        answer = None
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                answer = await connection.receive()
        return (time.perf_counter() - begin) * 1000, answer

    def _signal(self, number: signal.Signals) -> None:
        for app in self._apps:
            app.process.signal(number)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()


def run(kind: str, processes: int, requests: int, rounds: int) -> list[Round]:
    """Run the rounds on servers of their own."""
    say(f"{kind}, {processes} process{'es' * (processes > 1)}: starting")
    with servers.workspace() as workspace:
        redis = workspace.redis()
        database: Database = RecordedPostgres(workspace) if kind == "postgresql" else RecordedSqlite(workspace)
        environment = {"REDIS_URL": redis.url, "CACHE_TTL_PRICE": str(TTL), **database.environment}
        apps = [workspace.app(f"quantdesk-{i}", database.url, environment) for i in range(processes)]
        return asyncio.run(herds(kind, redis, database, apps, requests, rounds))


async def herds(
    kind: str, redis: Redis, database: Database, apps: Sequence[App], requests: int, rounds: int
) -> list[Round]:
    """Send herd after herd, each for a price of its own."""
    apps[0].put_price("WARM", "1")
    herd = Herd(apps, requests)
    found: list[Round] = []
    try:
        await herd.connect("WARM")
        arrivals: tuple[Arrival, ...] = ("while stopped", "while running")
        for arrival in arrivals:
            for number in range(rounds):
                symbol = f"COLD-{arrival[6]}-{number}".upper()
                apps[0].put_price(symbol, "1")
                await asyncio.sleep(SETTLE)
                before, monitor = len(database.record()), Monitor(redis)
                answers = await herd.stampede(symbol, arrival == "while stopped")
                await asyncio.sleep(SETTLE)
                reads = len(READS.findall(database.record()[before:]))
                gets = monitor.commands(f"qd:drill:price:{symbol}")["GET"]
                found.append(summary(kind, len(apps), arrival, answers, reads, gets))
                say(f"{arrival}, round {number + 1}: {reads} reads of the database, {gets} GETs")
    finally:
        herd.close()
    return found


def summary(
    kind: str, processes: int, arrival: Arrival, answers: Sequence[tuple[float, Answer | None]], reads: int, gets: int
) -> Round:
    """Return what a herd showed."""
    good = [answer for _, answer in answers if answer is not None and answer.status == 200]
    latencies = [latency for latency, _ in answers]
    return Round(
        database=kind,
        processes=processes,
        arrival=arrival,
        requests=len(answers),
        errors=len(answers) - len(good),
        outcomes=dict(Counter(answer.cache for answer in good)),
        database_reads=reads,
        redis_gets=gets,
        p50_ms=percentile(latencies, 0.5),
        longest_ms=max(latencies),
    )


def aims(rounds: Sequence[Round]) -> list[Aim]:
    """Return what is asked of all rounds together: the worst of each kind counts."""
    found = [Aim("errors", sum(r.errors for r in rounds), 0)]
    for processes in sorted({r.processes for r in rounds}):
        own = [r for r in rounds if r.processes == processes]
        where = f"{processes} process{'es' * (processes > 1)}"
        found.append(Aim(f"database reads of a herd, {where}", max(r.database_reads for r in own), processes))
        # Those who come later than the first answer ask Redis for themselves.
        gets = max(r.redis_gets for r in own if r.arrival == "while stopped")
        found.append(Aim(f"GETs of a herd that arrives at once, {where}", gets, processes))
    # None at all would mean that the record is blind.
    found.append(Aim("fewest database reads of a herd", min(r.database_reads for r in rounds), 1, at_least=True))
    return found


def table(rounds: Sequence[Round]) -> str:
    """Return the report's table."""
    head = (
        "database",
        "processes",
        "arrival",
        "requests",
        "errors",
        "db reads",
        "GETs",
        "X-Cache",
        "p50 ms",
        "longest ms",
    )
    rows = [
        (
            r.database,
            str(r.processes),
            r.arrival,
            r.requests,
            r.errors,
            r.database_reads,
            r.redis_gets,
            " ".join(f"{name} {count}" for name, count in sorted(r.outcomes.items())),
            r.p50_ms,
            r.longest_ms,
        )
        for r in rounds
    ]
    return report.table(head, rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of a herd")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), help="default: all that this machine has")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds, print and write what was found; return the exit code."""
    given = parse(arguments)
    servers.end_on_signals()
    if servers.raise_file_limit() < given.requests + 100:
        raise servers.NotStarted(f"{given.requests} connections need more open files than this process may have")
    there = ["sqlite"] if servers.postgres_binaries() is None else ["postgresql", "sqlite"]
    with servers.workspace() as workspace:
        versions = report.surroundings(PACKAGES, workspace.folder)
    rounds: list[Round] = []
    for kind in [given.database] if given.database else there:
        for processes in (1, 2):
            rounds += run(kind, processes, given.requests, given.rounds)
    goals = aims(rounds)
    text = f"# {given.requests:,} requests at once for a price that is not cached\n\n{table(rounds)}"
    print(f"{text}\n")
    code = report.finish(goals, [])
    data = {
        "rounds": [asdict(r) for r in rounds],
        "aims": [aim.plain() for aim in goals],
        "versions": versions,
    }
    lines = "\n".join(f"- {aim.line()}" for aim in goals)
    folder = report.write("drills", "cold", data, f"{text}\n\n{lines}\n\n{report.version_lines(versions)}")
    print(f"\nWritten: {folder}/cold.json, cold.md")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except servers.NotStarted as error:
        sys.exit(f"FAILED: {error}")

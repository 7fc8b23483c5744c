"""Time a cached price's read through the whole application against other ways to the same answer.

    python tests/bench_app.py [--quick] [--rounds N] [--seconds S] [--connections C ...] [--part cache|limits]

Each server is one process on uvicorn with uvloop and httptools, and answers with the same body from Redis, which it was
put into from the same data; wrk asks. Rounds alternate between the servers, and a ratio is the median of each round's
ratio. Every run is refused in which a response was no success, a socket failed, or a read missed the cache.

Writes JSON, the tables and a plot below output/bench. Needs `requirements/install bench`, and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from drills import report, servers
from drills.servers import App, Process, Redis, Workspace, say

HERE: Final = Path(__file__).resolve().parent / "bench" / "app"
TTL: Final = 300
OURS: Final = "quantdesk"
PACKAGES: Final = (
    "quantdesk",
    "uvicorn",
    "uvloop",
    "httptools",
    "redis",
    "hiredis",
    "msgspec",
    "litestar",
    "fastapi",
    "starlette",
    "pydantic",
    "fastapi-cache2",
    "orjson",
    "cashews",
    "limits",
    "slowapi",
)
# The headers that uvicorn adds by itself.
SERVERS_OWN: Final = ("date", "content-length")


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server that is compared. `module` is the one of tests/bench/app, None for the installed application."""

    name: str
    module: str | None
    environment: Mapping[str, str]
    # Whether it reads from Redis, and whether requests at the same time share one such read.
    cached: bool = True
    shares: bool = False


CACHES: Final = (
    Contestant(OURS, None, {}),
    Contestant("FastAPI + fastapi-cache2", "fastapi_cache2", {}),
    Contestant("FastAPI + fastapi-cache2 (orjson)", "fastapi_cache2", {"BENCH_ORJSON": "1"}),
    Contestant("FastAPI + cashews", "fastapi_cashews", {}, shares=True),
    Contestant("bare ASGI + redis-py", "bare_redis", {}),
    Contestant("bare ASGI, no look-up (the limit)", "bare", {}, cached=False),
)
LIMITERS: Final = (
    Contestant(f"{OURS}: cached read and limit", None, {"TRUSTED_PROXIES": servers.HOST}),
    Contestant("bare ASGI + limits: limit alone", "limited_bare", {}, cached=False),
    Contestant("bare ASGI: neither", "bare", {}, cached=False),
    Contestant("FastAPI + slowapi: limit alone", "limited_slowapi", {}, cached=False),
    Contestant("FastAPI: neither", "fastapi_alone", {}, cached=False),
)
# Ours over theirs, and what it should be at least.
RATIOS: Final = (
    ("FastAPI + fastapi-cache2", 5.0),
    ("FastAPI + fastapi-cache2 (orjson)", 0.0),
    ("FastAPI + cashews", 0.0),
    ("bare ASGI + redis-py", 1.3),
    ("bare ASGI, no look-up (the limit)", 0.6),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk does: over how many connections, to how many symbols, from how many clients (0: no proxy)."""

    connections: int
    symbols: int
    clients: int = 0

    def __str__(self) -> str:
        keys = f"{self.symbols:,} key{'s' * (self.symbols > 1)}, c{self.connections}"
        return keys + (f", {self.clients:,} client{'s' * (self.clients > 1)}" if self.clients else "")


@dataclass(frozen=True, slots=True)
class Run:
    """One round of one server. Latencies in milliseconds, processor time in microseconds a request."""

    rate: float
    p50: float
    p99: float
    server_cpu: float
    redis_cpu: float
    errors: int


@dataclass(frozen=True, slots=True)
class Options:
    """How long and how often."""

    rounds: int
    seconds: float
    warm_up: float
    pin: bool

    @property
    def server_cpus(self) -> str | None:
        """The processor of the server that is measured."""
        return "0" if self.pin else None

    @property
    def other_cpus(self) -> str | None:
        """Those of wrk and Redis."""
        return f"1-{(os.cpu_count() or 1) - 1}" if self.pin else None


class Refused(RuntimeError):
    """A measurement that says nothing: errors, or reads that the cache did not answer."""


class Competitor:
    """A contestant's running server."""

    def __init__(self, contestant: Contestant, port: int, process: Process) -> None:
        self.contestant: Final = contestant
        self.name: Final = contestant.name
        self.port: Final = port
        self.process: Final = process

    @property
    def ours(self) -> bool:
        """Whether it is the application."""
        return self.contestant.module is None

    def read(self, symbol: str) -> tuple[int, dict[str, str], bytes]:
        """Read a price; return the status, the headers in small letters, and the body."""
        return servers.fetch(self.port, "GET", f"/api/prices/{symbol}")

    def hits_and_misses(self, redis: Redis) -> tuple[int, int]:
        """Return how many reads the cache has answered and not answered: by our own count, or by Redis'."""
        if self.ours:
            counts = json.loads(servers.fetch(self.port, "GET", "/api/redis/stats")[2])["data"]["cache"]
            return counts["hits"], counts["misses"]
        stats = redis.info("stats")
        return int(stats["keyspace_hits"]), int(stats["keyspace_misses"])


def symbol(index: int) -> str:
    """Return a symbol's name, as prices.lua makes it."""
    return f"S{index:04d}"


def seed(app: App, database: Path, symbols: int) -> None:
    """Write prices to the application, and its answers' data to the others' database."""
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE bench (symbol TEXT PRIMARY KEY, price TEXT, updated_at TEXT)")
        for index in range(symbols):
            app.put_price(symbol(index), f"{50000 + index}.10")
            data = json.loads(app.get(f"/api/prices/{symbol(index)}")[2])["data"]
            connection.execute("INSERT INTO bench VALUES (?, ?, ?)", (data["symbol"], data["price"], data["updatedAt"]))
    connection.close()


def template(app: App) -> str:
    """Return an answer's headers and body of ours, for the server that looks nothing up."""
    _, headers, body = app.get(f"/api/prices/{symbol(0)}")
    kept = {name: value for name, value in headers.items() if name not in SERVERS_OWN}
    return json.dumps({"headers": kept, "body": body.decode().split(symbol(0))})


class Field:
    """All servers of one table, on one Redis."""

    def __init__(self, workspace: Workspace, contestants: Sequence[Contestant], tls: bool, options: Options) -> None:
        self._options = options
        self._workspace = workspace
        self.redis: Final = workspace.redis(tls=tls, cpus=options.other_cpus)
        url = self.redis.tls_url if tls else self.redis.url
        ca = {"REDIS_CA_FILE": str(workspace.certificates.ca)} if tls else {}
        own = {"REDIS_URL": url, "CACHE_TTL_PRICE": str(TTL), **ca}
        database = workspace.folder / "others.db"
        self.competitors: Final[list[Competitor]] = []
        for contestant in contestants:
            if contestant.module is None:
                app = workspace.app(
                    "quantdesk", workspace.sqlite_url(), {**own, **contestant.environment}, options.server_cpus
                )
                seed(app, database, 1000)
                shape = template(app)
                self.competitors.append(Competitor(contestant, app.port, app.process))
                continue
            environment = {
                **os.environ,
                "BENCH_CA_FILE": ca.get("REDIS_CA_FILE", ""),
                "BENCH_DATABASE": str(database),
                "BENCH_RATE_LIMIT": servers.UNLIMITED,
                "BENCH_REDIS_URL": url,
                "BENCH_TEMPLATE": shape,
                "BENCH_TTL": str(TTL),
                **contestant.environment,
            }
            self.competitors.append(self._start(contestant, contestant.module, environment))

    def _start(self, contestant: Contestant, module: str, environment: Mapping[str, str]) -> Competitor:
        port = servers.free_port()
        words: list[str | Path] = [sys.executable, HERE / "serve.py", module, str(port)]
        process = self._workspace.process(
            words, f"{module}-{port}", environment=environment, cpus=self._options.server_cpus
        )
        competitor = Competitor(contestant, port, process)
        process.wait_until(lambda: answers(competitor), contestant.name)
        return competitor

    def measure(self, competitor: Competitor, load: Load) -> Run:
        """Fill the cache anew, warm up, and measure once; raise Refused when the figures would mean nothing."""
        options = self._options
        self.redis.ask("FLUSHALL")
        for index in range(load.symbols):
            competitor.read(symbol(index))
        wrk(competitor.port, load, options.warm_up, options.other_cpus)
        hits, misses = competitor.hits_and_misses(self.redis)
        server_cpu, redis_cpu = competitor.process.cpu_seconds, self.redis.process.cpu_seconds
        result = wrk(competitor.port, load, options.seconds, options.other_cpus)
        server_cpu = competitor.process.cpu_seconds - server_cpu
        redis_cpu = self.redis.process.cpu_seconds - redis_cpu
        requests = result["requests"]
        later = competitor.hits_and_misses(self.redis)
        if competitor.contestant.cached:
            self._check(competitor, requests, later[0] - hits, later[1] - misses)
        return Run(
            rate=requests / result["seconds"],
            p50=result["p50_us"] / 1000,
            p99=result["p99_us"] / 1000,
            server_cpu=server_cpu / requests * 1e6,
            redis_cpu=redis_cpu / requests * 1e6,
            errors=result["refused"] + result["socket_errors"],
        )

    def _check(self, competitor: Competitor, requests: int, hits: int, misses: int) -> None:
        if misses or hits < (1 if competitor.contestant.shares else requests):
            raise Refused(f"{competitor.name}: of {requests} reads the cache answered {hits}, and not {misses}")
        _, headers, _ = competitor.read(symbol(0))
        told = headers.get("x-cache") or headers.get("x-fastapi-cache") or "HIT"
        if told != "HIT":
            raise Refused(f"{competitor.name} says {told} of a cached price")

    def check_bodies(self) -> None:
        """Raise Refused unless all competitors give the same answers."""
        for index in (0, 999):
            for competitor in self.competitors:
                competitor.read(symbol(index))
            bodies = {competitor.name: competitor.read(symbol(index))[2] for competitor in self.competitors}
            sizes = {name: len(body) for name, body in bodies.items()}
            if len(set(sizes.values())) != 1:
                raise Refused(f"the bodies differ in size: {sizes}")


def answers(competitor: Competitor) -> bool:
    """Return whether a server answers a read."""
    try:
        return competitor.read(symbol(0))[0] == 200
    except OSError:
        return False


def wrk(port: int, load: Load, seconds: float, cpus: str | None) -> dict[str, Any]:
    """Run wrk once; return what prices.lua prints at its end."""
    pin = [] if cpus is None else ["taskset", "--cpu-list", cpus]
    command = ["setpriv", "--pdeathsig", "KILL", *pin, "wrk", "-t1", f"-c{load.connections}"]
    command += [f"-d{seconds:g}s", "--timeout", "5s", "-s", str(HERE / "prices.lua"), f"http://{servers.HOST}:{port}"]
    done = subprocess.run(
        command,
        env={**os.environ, "LUA_SYMBOLS": str(load.symbols), "LUA_CLIENTS": str(load.clients)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 30,
    )
    if done.returncode != 0:
        raise Refused(f"wrk ended with {done.returncode}: {done.stderr[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@dataclass(frozen=True, slots=True)
class Cell:
    """All rounds of one server under one load."""

    name: str
    transport: str
    load: Load
    runs: tuple[Run, ...]

    def median(self, field: str) -> float:
        """Return the median of one of Run's fields."""
        values: list[float] = [getattr(run, field) for run in self.runs]
        return statistics.median(values)

    @property
    def errors(self) -> int:
        """Responses that were no success, and sockets that failed."""
        return sum(run.errors for run in self.runs)

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        fields = ("rate", "p50", "p99", "server_cpu", "redis_cpu")
        return {
            "server": self.name,
            "transport": self.transport,
            "connections": self.load.connections,
            "keys": self.load.symbols,
            "clients": self.load.clients,
            **{field: round(self.median(field), 3) for field in fields},
            "rates": [round(run.rate) for run in self.runs],
            "errors": self.errors,
        }


def race(field: Field, transport: str, loads: Sequence[Load], options: Options) -> list[Cell]:
    """Measure every competitor under every load, in alternating rounds."""
    runs: dict[tuple[str, Load], list[Run]] = {}
    for load in loads:
        for number in range(options.rounds):
            # Each round begins with another server, so that none is always first.
            turn = number % len(field.competitors)
            for competitor in [*field.competitors[turn:], *field.competitors[:turn]]:
                run = field.measure(competitor, load)
                where = f"{transport}, {load}, round {number + 1} of {options.rounds}"
                say(f"{where}: {competitor.name}: {run.rate:,.0f} requests/s")
                runs.setdefault((competitor.name, load), []).append(run)
    return [Cell(name, transport, load, tuple(found)) for (name, load), found in runs.items()]


def ratio(cells: Sequence[Cell], other: Cell) -> float:
    """Return ours over another's rate: the median of the rounds' ratios."""
    return statistics.median(a.rate / b.rate for a, b in zip(ours(cells, other).runs, other.runs, strict=True))


def cpu_ratio(cells: Sequence[Cell], other: Cell) -> float:
    """Return another's processor time a request over ours: what `ratio` is where nothing else uses processors."""
    return other.median("server_cpu") / ours(cells, other).median("server_cpu")


def ours(cells: Sequence[Cell], other: Cell) -> Cell:
    """Return our cell of the same transport and load."""
    (own,) = (c for c in cells if c.name == OURS and c.transport == other.transport and c.load == other.load)
    return own


def aims(cells: Sequence[Cell]) -> list[report.Aim]:
    """Compare the ratios with what they should be."""
    found = []
    for name, wanted in RATIOS:
        for cell in cells:
            if cell.name == name and wanted:
                what = f"ratio to {name} ({cell.transport}, {cell.load})"
                found.append(report.Aim(what, ratio(cells, cell), wanted, at_least=True))
    return found


def cache_table(cells: Sequence[Cell]) -> str:
    """Return the first table."""
    head = (
        "server",
        "Redis over",
        "keys",
        "c",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU µs",
        "errors",
        "ours / it",
        "by CPU",
    )
    rows = [
        (
            c.name,
            c.transport,
            str(c.load.symbols),
            str(c.load.connections),
            c.median("rate"),
            c.median("p50"),
            c.median("p99"),
            c.median("server_cpu"),
            str(c.errors),
            None if c.name == OURS else ratio(cells, c),
            None if c.name == OURS else cpu_ratio(cells, c),
        )
        for c in cells
    ]
    return report.table(head, rows)


def limit_table(cells: Sequence[Cell]) -> str:
    """Return the second table."""
    head = ("server", "clients", "requests/s", "p50 ms", "p99 ms", "server CPU µs", "Redis CPU µs", "errors")
    rows = [
        (
            c.name,
            str(c.load.clients),
            c.median("rate"),
            c.median("p50"),
            c.median("p99"),
            c.median("server_cpu"),
            c.median("redis_cpu"),
            str(c.errors),
        )
        for c in cells
    ]
    return report.table(head, rows)


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Draw the first table's rates as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys((c.transport, c.load) for c in cells))
    names = list(dict.fromkeys(c.name for c in cells))
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        own = {(c.transport, c.load): c for c in cells if c.name == name}
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(groups))]
        rates = [own[group].median("rate") for group in groups]
        low = [rate - min(r.rate for r in own[g].runs) for g, rate in zip(groups, rates, strict=True)]
        high = [max(r.rate for r in own[g].runs) - rate for g, rate in zip(groups, rates, strict=True)]
        axes.bar(places, rates, width, label=name, yerr=[low, high], capsize=2)
    axes.set_xticks(range(len(groups)), [f"{transport}\n{load}" for transport, load in groups])
    axes.set_ylabel("requests/s (median; lines: all rounds)")
    axes.set_title("A cached price's read through the whole application, one process")
    axes.legend(fontsize="small")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def bench_caches(options: Options, connections: Sequence[int]) -> list[Cell]:
    """Measure the first table."""
    loads = [Load(c, symbols) for c in connections for symbols in (1, 1000)]
    cells: list[Cell] = []
    for transport in ("plaintext", "TLS"):
        say(f"Redis over {transport}: starting {len(CACHES)} servers")
        with servers.workspace() as workspace:
            field = Field(workspace, CACHES, transport == "TLS", options)
            field.check_bodies()
            cells += race(field, transport, loads, options)
    return cells


def bench_limiters(options: Options, connections: int) -> list[Cell]:
    """Measure the second table."""
    say(f"rate limits: starting {len(LIMITERS)} servers")
    with servers.workspace() as workspace:
        field = Field(workspace, LIMITERS, False, options)
        return race(field, "plaintext", [Load(connections, 1, clients) for clients in (1, 1000)], options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[32])
    parser.add_argument("--part", choices=("all", "cache", "limits"), default="all")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: to see that it works")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose processors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    given = parse(arguments)
    servers.end_on_signals()
    servers.raise_file_limit()
    if shutil.which("wrk") is None:
        raise SystemExit("no wrk: run requirements/install bench")
    pin = not given.no_pin and (os.cpu_count() or 1) > 1
    rounds, seconds = (1, 2.0) if given.quick else (given.rounds, given.seconds)
    options = Options(rounds, seconds, min(1.0, seconds / 2), pin)
    with servers.workspace() as workspace:
        versions = report.surroundings(PACKAGES, workspace.folder)
    versions["wrk"] = report.says(["wrk", "--version"], r"wrk (\S+)")
    cells = bench_caches(options, given.connections) if given.part != "limits" else []
    limits = bench_limiters(options, given.connections[0]) if given.part != "cache" else []
    return conclude(cells, limits, options, versions)


def conclude(cells: Sequence[Cell], limits: Sequence[Cell], options: Options, versions: Mapping[str, str]) -> int:
    """Print and write what was found; return the exit code: 1 when there were errors."""
    how = f"{options.rounds} rounds of {options.seconds:g} s after {options.warm_up:g} s of warm-up, medians"
    placed = "the server on a processor of its own" if options.pin else "processors not pinned"
    parts = [f"# Reads of a cached price, one process\n\nwrk -t1, {how}; {placed}."]
    goals = aims(cells)
    if cells:
        parts += [cache_table(cells), "\n".join(f"- {aim.line()}" for aim in goals)]
    if limits:
        parts += [
            "## Rate limits\n\n"
            "Ours reads the price from Redis besides. All are told by X-Forwarded-For who a client is.",
            limit_table(limits),
        ]
    parts.append(f"## Versions\n\n{report.version_lines(versions)}")
    text = "\n\n".join(parts)
    print(text)
    data = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "pinned": options.pin,
        "cache": [cell.plain() for cell in cells],
        "ratios": [
            {
                "to": c.name,
                "transport": c.transport,
                "keys": c.load.symbols,
                "connections": c.load.connections,
                "ratio": round(ratio(cells, c), 3),
                "cpu_ratio": round(cpu_ratio(cells, c), 3),
            }
            for c in cells
            if c.name != OURS
        ],
        "aims": [aim.plain() for aim in goals],
        "limits": [cell.plain() for cell in limits],
        "versions": versions,
    }
    folder = report.write("bench", "app", data, text)
    if cells:
        plot(cells, folder / "app.png")
    print(f"\nWritten: {folder}/app.json, app.md{', app.png' if cells else ''}")
    failed = [f"{c.name}: {c.errors} errors" for c in (*cells, *limits) if c.errors]
    for failure in failed:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, servers.NotStarted) as error:
        sys.exit(f"FAILED: {error}")

"""The application under a steady load while Redis is killed, frozen, or out of reach.

    python -m drills.outage [killed] [frozen] [unreachable] [--rate R] [--down SECONDS]

A client sends requests at fixed times over keep-alive connections: reads of prices that nobody writes, and writes of
others with reads of what was written. In the middle Redis goes away, and comes back. The report tells what the client
saw, the log lines of the application, and how soon it read from Redis again; a plot shows each request's latency. The
same load on an application without Redis comes first: it tells what the database's answers cost by themselves.

`unreachable` drops the packets to Redis. It runs in a network namespace of its own, where that asks for no rights, and
is left out where there are none to be had.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from drills import report, servers
from drills.client import Connection, percentile, read_request, write_request
from drills.report import Aim
from drills.servers import App, Redis, Workspace, say

Kind = Literal["read", "write", "read after write"]
KINDS: Final[tuple[Kind, ...]] = ("read", "write", "read after write")
SCENARIOS: Final = ("killed", "frozen", "unreachable")

LOST: Final = "Redis connection failed, continuing without Redis"
FOUND: Final = "Redis connected"
# Symbols that are only read, and symbols that are written and read.
READ: Final = tuple(f"READ-{index:02d}" for index in range(20))
WRITTEN: Final = tuple(f"WRITTEN-{index}" for index in range(5))
# Long enough for every read before the outage to be a hit: what the outage adds is seen against those.
TTL: Final = 300
WARM_UP: Final = 2.0
# Seconds to wait for one response, before it counts as an error.
PATIENCE: Final = 15.0
SLOW_MS: Final = 100.0
# What a request may take longer at most once the breaker is open, on a machine that does other things too.
FAR_MS: Final = 5.0
PACKAGES: Final = ("quantdesk", "uvicorn", "uvloop", "httptools", "hiredis", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `start` in seconds on perf_counter, and the latency from then: from when it was due.

    `queued` tells that it was not sent then, because its connection's request before was not answered yet.
    """

    connection: int
    start: float
    latency_ms: float
    kind: Kind
    status: int
    cache: str
    queued: bool
    stale: bool = False

    def row(self, zero: float) -> list[float | str | bool]:
        """Return it for JSON, with seconds since `zero`."""
        return [round(self.start - zero, 4), round(self.latency_ms, 3), self.kind, self.status, self.cache, self.queued]


@dataclass(slots=True)
class Timeline:
    """Seconds on perf_counter: when Redis went, when it answered again, and when the log told of either."""

    began: float = 0.0
    gone: float = 0.0
    back: float = 0.0
    opened: float = float("nan")
    closed: float = float("nan")
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests per second over so many connections; seconds before, during and after."""

    rate: float
    connections: int
    before: float
    down: float
    after: float

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return self.before + self.down + self.after


class Client:
    """The load. Each connection has its own times at which its requests are due."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._port = port
        self._plan = plan
        self.samples: Final[list[Sample]] = []
        # What was written and answered, by symbol: a read that begins later must see it, or something newer.
        self._acknowledged = dict.fromkeys(WRITTEN, 0)
        self._counter = 0
        self._reads = [read_request(symbol) for symbol in READ]

    async def run(self, started: Callable[[float], None]) -> None:
        """Send all of it; `started` is called with the time at which the recorded part begins."""
        begin = time.perf_counter() + 0.2
        asyncio.get_running_loop().call_later(0.2 + WARM_UP, started, begin + WARM_UP)
        async with asyncio.TaskGroup() as group:
            for index in range(self._plan.connections):
                group.create_task(self._worker(index, begin))

    async def _worker(self, index: int, begin: float) -> None:
        plan = self._plan
        total = int((WARM_UP + plan.seconds) * plan.rate)
        connection: Connection | None = None
        free = 0.0
        for number in range(index, total, plan.connections):
            due = begin + number / plan.rate
            await asyncio.sleep(due - time.perf_counter())
            # What is late because the one before took long is the application's doing; a late timer is ours.
            queued = free > due
            start = due if queued else time.perf_counter()
            connection, sample = await self._one(connection, number, start, queued)
            free = time.perf_counter()
            if due >= begin + WARM_UP:
                self.samples.append(sample)
        if connection is not None:
            connection.close()

    async def _one(
        self, connection: Connection | None, number: int, start: float, queued: bool
    ) -> tuple[Connection | None, Sample]:
        """Send the request of this number: of 20, one writes and three read what was written."""
        place = number % 20
        kind: Kind = "write" if place == 7 else "read after write" if place in (3, 11, 17) else "read"
        # The symbols that are written take turns; each has one write at a time.
        symbol = WRITTEN[(number // 20) % len(WRITTEN)]
        least, written = self._acknowledged[symbol], 0
        if kind == "read":
            request = self._reads[number % len(READ)]
        elif kind == "read after write":
            request = read_request(symbol)
        else:
            self._counter += 1
            written = self._counter
            request = write_request(symbol, str(written))
        index = number % self._plan.connections
        try:
            async with asyncio.timeout(PATIENCE):
                connection = connection or await Connection.connect(self._port)
                answer = await connection.ask(request)
        except (OSError, EOFError, TimeoutError):
            if connection is not None:
                connection.close()
            return None, Sample(index, start, (time.perf_counter() - start) * 1000, kind, 0, "", queued)
        latency = (time.perf_counter() - start) * 1000
        stale = False
        if answer.status == 200 and kind == "write":
            self._acknowledged[symbol] = max(self._acknowledged[symbol], written)
        elif answer.status == 200 and kind == "read after write":
            stale = int(json.loads(answer.body)["data"]["price"]) < least
        return connection, Sample(index, start, latency, kind, answer.status, answer.cache, queued, stale)


def killed(redis: Redis, down: float, timeline: Timeline) -> None:
    """Kill Redis, and start it again, empty."""
    timeline.gone = time.perf_counter()
    redis.kill()
    sleep_until(timeline.gone + down)
    redis.start()
    timeline.back = time.perf_counter()


def frozen(redis: Redis, down: float, timeline: Timeline) -> None:
    """Stop Redis, so that its host takes connections and it does not answer, and let it go on."""
    timeline.gone = time.perf_counter()
    redis.process.signal(signal.SIGSTOP)
    sleep_until(timeline.gone + down)
    redis.process.signal(signal.SIGCONT)
    timeline.back = when_it_answers(redis)


def unreachable(redis: Redis, down: float, timeline: Timeline) -> None:
    """Drop what is sent to Redis' port. In a network namespace of our own only."""
    nft("add table inet drill", "add chain inet drill input { type filter hook input priority 0; }")
    timeline.gone = time.perf_counter()
    nft(f"add rule inet drill input tcp dport {redis.port} drop")
    sleep_until(timeline.gone + down)
    nft("delete table inet drill")
    timeline.back = when_it_answers(redis)


def nft(*commands: str) -> None:
    """Change the firewall of this network namespace."""
    subprocess.run(["nft", "-f", "-"], input="\n".join(commands), text=True, check=True, timeout=10)


def sleep_until(moment: float) -> None:
    """Sleep until a time on perf_counter."""
    time.sleep(max(0.0, moment - time.perf_counter()))


def when_it_answers(redis: Redis) -> float:
    """Return the time of the first answered PING from now."""
    servers.wait_for(lambda: redis.answers(0.05), 10, pause=0.002)
    return time.perf_counter()


BREAKS: Final[dict[str, Callable[[Redis, float, Timeline], None]]] = {
    "killed": killed,
    "frozen": frozen,
    "unreachable": unreachable,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scenario showed."""

    scenario: str
    timeline: Timeline
    samples: list[Sample]
    lost_lines: int
    found_lines: int
    # All that the application logged from then on: seconds since Redis went, and what.
    log: list[tuple[float, str]]
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, phase: str, *kinds: Kind) -> list[float]:
        """Return the latencies (milliseconds) of a phase's requests of some kinds, or of all."""
        begin, end = self.phases[phase]
        return [s.latency_ms for s in self.samples if begin <= s.start < end and (not kinds or s.kind in kinds)]

    @property
    def errors(self) -> int:
        """Requests that were not answered with success."""
        return sum(sample.status != 200 for sample in self.samples)

    @property
    def stale(self) -> int:
        """Reads that did not show a write that was answered before they began."""
        return sum(sample.stale for sample in self.samples)

    @property
    def added_ms(self) -> float:
        """Milliseconds that reads' p99 grew by, once the breaker was open."""
        return percentile(self.of("down", "read"), 0.99) - percentile(self.of("before", "read"), 0.99)

    @property
    def to_first_hit(self) -> float:
        """Seconds from Redis' return to the first read that it answered."""
        hits = [
            s.start + s.latency_ms / 1000 for s in self.samples if s.cache == "HIT" and s.start > self.timeline.back
        ]
        return min(hits) - self.timeline.back if hits else float("nan")

    def aims(self) -> list[Aim]:
        """Return what is asked of it."""
        return [
            Aim(f"{self.scenario}: errors", self.errors, 0),
            Aim(f"{self.scenario}: reads that missed an answered write", self.stale, 0),
            Aim(f"{self.scenario}: p99 of reads added after the breaker opened", self.added_ms, 1.0, " ms", far=FAR_MS),
            Aim(f"{self.scenario}: from Redis' return to the first hit", self.to_first_hit, 2.0, " s"),
            Aim(f"{self.scenario}: more or fewer than one line '{LOST}'", abs(self.lost_lines - 1), 0),
            Aim(f"{self.scenario}: more or fewer than one line '{FOUND}'", abs(self.found_lines - 1), 0),
        ]

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        zero = self.timeline.gone
        return {
            "scenario": self.scenario,
            "requests": len(self.samples),
            "errors": self.errors,
            "stale": self.stale,
            "p99_ms": {f"{p}, {k}": percentile(self.of(p, k), 0.99) for p in self.phases for k in KINDS},
            "added_ms": self.added_ms,
            "longest_ms": max(s.latency_ms for s in self.samples),
            "over_100_ms": sum(s.latency_ms > SLOW_MS for s in self.samples),
            "to_first_hit_s": self.to_first_hit,
            "lost_lines": self.lost_lines,
            "found_lines": self.found_lines,
            "log": self.log,
            "timeline_s": {name: value - zero for name, value in asdict(self.timeline).items()},
            "samples": [
                [round(s.start - zero, 4), round(s.latency_ms, 3), s.kind, s.status, s.cache, s.queued]
                for s in self.samples
            ],
        }


def run(scenario: str, plan: Plan) -> Outcome:
    """Run one scenario on servers of its own."""
    say(f"{scenario}: starting Redis and the application")
    with servers.workspace() as workspace:
        redis = workspace.redis()
        app = workspace.app("quantdesk", workspace.sqlite_url(), {"REDIS_URL": redis.url, "CACHE_TTL_PRICE": str(TTL)})
        for symbol in (*READ, *WRITTEN):
            app.put_price(symbol, "1")
            app.get(f"/api/prices/{symbol}")
        timeline, samples = load_and_break(app, redis, scenario, plan)
        return outcome(scenario, app, timeline, samples)


def without_redis(plan: Plan) -> float:
    """Return reads' p99 (milliseconds) where there is no Redis at all."""
    say("reference: the application without Redis")
    with servers.workspace() as workspace:
        app = workspace.app("quantdesk", workspace.sqlite_url(), {})
        for symbol in (*READ, *WRITTEN):
            app.put_price(symbol, "1")
        client = Client(app.port, replace(plan, down=0, after=0))
        collect(client, lambda _: None)
    return percentile([s.latency_ms for s in client.samples if s.kind == "read"], 0.99)


def load_and_break(app: App, redis: Redis, scenario: str, plan: Plan) -> tuple[Timeline, list[Sample]]:
    """Send the load, and let Redis go and come back meanwhile."""
    timeline = Timeline()
    client = Client(app.port, plan)
    failure: list[BaseException] = []

    def break_it() -> None:
        try:
            sleep_until(timeline.began + plan.before)
            say(f"{scenario}: Redis goes away for {plan.down:g} s")
            BREAKS[scenario](redis, plan.down, timeline)
            say(f"{scenario}: Redis is back")
        except BaseException as error:  # it is raised again, in the thread that waits
            failure.append(error)

    breaker = threading.Thread(target=break_it, name="breaker", daemon=True)

    def started(moment: float) -> None:
        timeline.began = moment
        breaker.start()

    say(f"{scenario}: {plan.rate:g} requests/s over {plan.connections} connections for {plan.seconds:g} s")
    collect(client, started)
    timeline.ended = time.perf_counter()
    breaker.join(30)
    if failure:
        raise failure[0]
    return timeline, client.samples


def collect(client: Client, started: Callable[[float], None]) -> None:
    """Send a client's load. A garbage collection in it would look like a slow response."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        asyncio.run(client.run(started))
    finally:
        gc.enable()
        gc.unfreeze()


def outcome(scenario: str, app: App, timeline: Timeline, samples: list[Sample]) -> Outcome:
    """Draw the conclusions, with what the application's log says."""
    offset = time.time() - time.perf_counter()
    lines = [(moment - offset, text) for moment, text in app.messages()]
    # The log has whole milliseconds.
    lost = [moment for moment, text in lines if text == LOST and moment > timeline.gone - 0.002]
    found = [moment for moment, text in lines if text == FOUND and moment > timeline.gone]
    timeline.opened = lost[0] if lost else float("nan")
    timeline.closed = found[-1] if found else float("nan")
    opened = timeline.opened if lost else timeline.back
    caught_up = when_caught_up(samples, opened)
    phases = {
        "before": (timeline.began, timeline.gone),
        "opening": (timeline.gone, opened),
        "catching up": (opened, caught_up),
        "down": (caught_up, timeline.back),
        "after": (timeline.back, timeline.ended),
    }
    log = [(round(moment - timeline.gone, 3), text) for moment, text in lines if moment > timeline.gone - 0.002]
    return Outcome(scenario, timeline, samples, len(lost), len(found), log, phases)


def when_caught_up(samples: Sequence[Sample], opened: float) -> float:
    """Return when every connection had sent what had become due while it waited for the breaker."""
    first_in_time: dict[int, float] = {}
    for sample in samples:
        if sample.start >= opened and not sample.queued:
            first_in_time.setdefault(sample.connection, sample.start)
    late = {sample.connection for sample in samples if sample.start >= opened and sample.queued}
    return max((first_in_time.get(connection, opened) for connection in late), default=opened)


def print_outcome(found: Outcome, reference: float) -> str:
    """Return the scenario's table and figures as text. `reference`: reads' p99 without any Redis, milliseconds."""
    rows: list[list[float | str | None]] = []
    for phase, (begin, end) in found.phases.items():
        for kind in KINDS:
            latencies = found.of(phase, kind)
            if latencies:
                rows.append(
                    [
                        f"{phase} ({max(0.0, end - begin):.2f} s)",
                        kind,
                        len(latencies),
                        *(percentile(latencies, share) for share in (0.5, 0.99)),
                        max(latencies),
                        len([x for x in latencies if x > SLOW_MS]),
                    ]
                )
    head = ("phase", "requests", "count", "p50 ms", "p99 ms", "longest ms", f"over {SLOW_MS:g} ms")
    line = found.timeline
    figures = [
        f"requests {len(found.samples):,}, errors {found.errors}, stale reads {found.stale}",
        f"breaker opened {1000 * (line.opened - line.gone):.0f} ms after Redis went; "
        f"closed {1000 * (line.closed - line.back):.0f} ms after it answered again",
        f"p99 of reads with the breaker open: {found.added_ms:+.2f} ms against reads from Redis before, "
        f"{percentile(found.of('down', 'read'), 0.99) - reference:+.2f} ms against an application without Redis",
        f"log lines of the loss {found.lost_lines}, of the return {found.found_lines}",
    ]
    return f"## Redis {found.scenario}\n\n{report.table(head, rows)}\n\n" + "\n".join(f"- {text}" for text in figures)


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw each request's latency over time, one picture a scenario."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        len(outcomes), figsize=(11, 3.4 * len(outcomes)), layout="constrained", squeeze=False
    )
    for found, axes in zip(outcomes, grid[:, 0], strict=True):
        zero = found.timeline.gone
        for kind in KINDS:
            own = [s for s in found.samples if s.kind == kind]
            axes.plot([s.start - zero for s in own], [s.latency_ms for s in own], ".", markersize=2, label=kind)
        axes.axvspan(0, found.timeline.back - zero, color="red", alpha=0.08, label="Redis away")
        for moment, text in ((found.timeline.opened, "breaker opens"), (found.timeline.closed, "Redis in use again")):
            axes.axvline(moment - zero, color="grey", linewidth=0.8, linestyle="--", label=text)
        axes.set_yscale("log")
        axes.set_ylabel("latency, ms")
        axes.set_title(f"Redis {found.scenario}: {len(found.samples):,} requests, {found.errors} errors")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", loc="upper right", markerscale=4)
    grid[-1, 0].set_xlabel("seconds since Redis went away")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


# A network namespace in which one may drop packets without rights outside of it.
NAMESPACE: Final = ("unshare", "--user", "--map-root-user", "--net")


def can_drop_packets() -> bool:
    """Return whether this machine gives us such a namespace, with nft in it."""
    command = [*NAMESPACE, "sh", "-c", "ip link set lo up && nft list tables"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run_in_namespace(plan: Plan, workspace: Workspace) -> Outcome | None:
    """Run the scenario `unreachable` in a network namespace of its own; None where there is none to be had."""
    if not can_drop_packets():
        say("unreachable: left out, because this machine gives us no network namespace in which to drop packets")
        return None
    result = workspace.folder / "unreachable.json"
    words = [sys.executable, "-m", "drills.outage", "--inside", str(result), *as_options(plan)]
    inner = "ip link set lo up && exec " + '"$@"'
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "TERM", *NAMESPACE, "sh", "-c", inner, "sh", *words],
        cwd=servers.PROJECT,
        check=False,
        timeout=plan.seconds + 120,
    )
    if done.returncode != 0:
        raise servers.NotStarted(f"the scenario in its network namespace ended with {done.returncode}")
    data = json.loads(result.read_text(encoding="utf-8"))
    return Outcome(
        data["scenario"],
        Timeline(**data["timeline"]),
        [Sample(**sample) for sample in data["samples"]],
        data["lost_lines"],
        data["found_lines"],
        data["log"],
        {name: (begin, end) for name, (begin, end) in data["phases"].items()},
    )


def as_options(plan: Plan) -> list[str]:
    """Return the command line that makes this plan."""
    return [word for name, value in asdict(plan).items() for word in (f"--{name}", str(value))]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--rate", type=float, default=300, help="requests per second")
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--before", type=float, default=5, help="seconds before the outage")
    parser.add_argument("--down", type=float, default=5, help="seconds of the outage")
    parser.add_argument("--after", type=float, default=5, help="seconds after the outage")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios, print and write what was found; return the exit code."""
    given = parse(arguments)
    servers.end_on_signals()
    servers.raise_file_limit()
    plan = Plan(given.rate, given.connections, given.before, given.down, given.after)
    if given.inside is not None:
        given.inside.write_text(json.dumps(asdict(run("unreachable", plan))), encoding="utf-8")
        return 0
    outcomes: list[Outcome] = []
    with servers.workspace() as workspace:
        versions = report.surroundings(PACKAGES, workspace.folder)
        reference = without_redis(plan)
        for scenario in given.scenarios or SCENARIOS:
            found = run_in_namespace(plan, workspace) if scenario == "unreachable" else run(scenario, plan)
            if found is not None:
                outcomes.append(found)
    return conclude(outcomes, reference, plan, versions)


def conclude(outcomes: Sequence[Outcome], reference: float, plan: Plan, versions: dict[str, str]) -> int:
    """Print and write what was found; return the exit code."""
    if not outcomes:
        print("No scenario could run.")
        return 0
    aims = [aim for found in outcomes for aim in found.aims()]
    title = f"# Redis away, under {plan.rate:g} requests/s over {plan.connections} connections"
    parts = [title, *(print_outcome(found, reference) for found in outcomes)]
    print("\n\n".join(parts))
    print()
    code = report.finish(aims, [f"{found.scenario}: {found.errors} errors" for found in outcomes if found.errors])
    parts += ["\n".join(f"- {aim.line()}" for aim in aims), report.version_lines(versions)]
    data = {
        "plan": asdict(plan),
        "p99_without_redis_ms": reference,
        "outcomes": [found.plain() for found in outcomes],
        "aims": [aim.plain() for aim in aims],
        "versions": versions,
    }
    folder = report.write("drills", "outage", data, "\n\n".join(parts))
    plot(outcomes, folder / "outage.png")
    print(f"\nWritten: {folder}/outage.json, outage.md, outage.png")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except servers.NotStarted as error:
        sys.exit(f"FAILED: {error}")

"""Price updates through two instances of the application, to WebSocket subscribers of both.

    python -m drills.fanout [--updates N] [--subscribers N] [--writers N] [--database postgresql|sqlite]

Each writer sends updates of a symbol of its own, one after the other, whose prices count 1, 2, 3 and so on; every
subscriber listens to all symbols. So each subscriber can tell whether anything is missing, or came twice. Then comes a
shorter run in whose middle Redis cuts its subscriptions: each subscriber must be told by a gap message what that loses.

The same run measures what redis-py's own listener needs to receive messages of that size and do nothing with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import uvloop

from drills import report, servers
from drills.client import write_request
from drills.report import Aim
from drills.sequence import Tally
from drills.servers import HOST, App, Redis, say

# How many updates the slowest subscriber may be behind the writers: less than what the application lets wait for it.
WINDOW: Final = 2000
# Of the reference: enough to measure, and no more than it takes some seconds to receive.
REFERENCE_MESSAGES: Final = 200_000
# Updates of a run without subscribers, and of one with a cut, at least; a quarter as many come first, unmeasured.
FEWEST: Final = 2000
# Seconds: for a process to subscribe, for what was sent to arrive, and for all updates.
SUBSCRIBE_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 60.0
LOAD_SECONDS: Final = 1800.0
PACKAGES: Final = ("quantdesk", "uvicorn", "uvloop", "httptools", "websockets", "hiredis", "redis", "picows", "asyncpg")


class Failed(RuntimeError):
    """A run that did not come to its end."""


class Listeners:
    """A process of subscribers to one instance."""

    def __init__(self, app: App, count: int, channels: Sequence[str]) -> None:
        words = [sys.executable, "-m", "drills.listeners", str(app.port), str(count), *channels]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            cwd=servers.PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.least = 0
        self.closed = 0
        self.ready = threading.Event()
        self.result: Tally | None = None
        # When the last message came, on the monotonic clock.
        self.last = 0.0
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            fields = json.loads(line)
            if "least" in fields:
                self.least, self.closed = fields["least"], fields["closed"]
            elif "ready" in fields:
                self.ready.set()
            else:
                self.result, self.last = Tally(**fields["result"]), fields["last"]

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def finish(self, last: dict[str, int]) -> Tally:
        """Tell it how far the channels went, and return what it received."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(last) + "\n")
        self._process.stdin.flush()
        self._reading.join(DRAIN_SECONDS)
        if self.result is None:
            raise Failed("subscribers did not come to their end")
        return self.result

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Writer(asyncio.Protocol):
    """One connection that writes a symbol's prices in turn, as long as `may_go_on` says so."""

    def __init__(self, symbol: str, count: int, may_go_on: Callable[[], bool]) -> None:
        self.symbol: Final = symbol
        self.count: Final = count
        self.answered = 0
        self.done: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self._may_go_on = may_go_on
        self._waiting = False
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        """Take one response, and send the next update."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or not _complete(head, body):
            return
        if head[9:12] != b"200":
            self._fail(f"{self.symbol}: {self._received[:300]!r}")
            return
        self._received = b""
        self.answered += 1
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless all is done."""
        self._fail(f"{self.symbol}: the connection ended after {self.answered} updates ({exc})")

    def nudge(self) -> None:
        """Go on, if it waited for subscribers."""
        if self._waiting and self._may_go_on():
            self._waiting = False
            self._next()

    def _next(self) -> None:
        if self.done.done() or self._transport is None:
            return
        if self.answered == self.count:
            self.done.set_result(None)
            self._transport.close()
        elif self._may_go_on():
            self._transport.write(write_request(self.symbol, str(self.answered + 1)))
        else:
            self._waiting = True

    def _fail(self, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(Failed(text))


def _complete(head: bytes, body: bytes) -> bool:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
    return True


@dataclass(frozen=True, slots=True)
class Load:
    """So many updates in all, by so many writers an instance, of symbols with this prefix."""

    prefix: str
    updates: int
    writers: int

    def symbols(self, instance: int) -> list[str]:
        """Return the symbols that are written through an instance."""
        return [f"{self.prefix}-{instance}-{number:02d}" for number in range(self.writers)]

    def each(self, instances: int) -> int:
        """Return how many updates each writer sends."""
        return -(-self.updates // (self.writers * instances))


async def write(apps: Sequence[App], load: Load, listeners: Sequence[Listeners], half_way: Callable[[], None]) -> int:
    """Send all updates, no faster than the subscribers take them; return how many."""
    writers: list[Writer] = []
    sent = 0

    def may_go_on() -> bool:
        sent = sum(writer.answered for writer in writers)
        return all(sent - group.least < WINDOW for group in listeners)

    loop = asyncio.get_running_loop()
    for instance, app in enumerate(apps):
        for symbol in load.symbols(instance):
            writer = Writer(symbol, load.each(len(apps)), may_go_on)
            writers.append(writer)
            await loop.create_connection(lambda writer=writer: writer, HOST, app.port)  # type: ignore[misc]
    finished = asyncio.gather(*(writer.done for writer in writers))
    total = sum(writer.count for writer in writers)
    pending = [half_way]
    async with asyncio.timeout(LOAD_SECONDS):
        while not finished.done():
            await asyncio.wait({finished}, timeout=0.01)
            for writer in writers:
                writer.nudge()
            sent = sum(writer.answered for writer in writers)
            if pending and sent >= total // 2:
                pending.pop()()
            if any(not group.running for group in listeners):
                raise Failed("a process of subscribers ended")
    await finished
    return total


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Processor times in seconds."""

    updates: int
    subscribers: int
    seconds: float
    tally: Tally
    app_cpu: tuple[float, ...]
    redis_cpu: float
    # Megabytes at the end.
    app_memory: tuple[float, ...]

    @property
    def expected(self) -> int:
        """How many messages all subscribers should receive."""
        return self.updates * self.subscribers

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "expected": self.expected}


def run(
    apps: Sequence[App], redis: Redis, load: Load, subscribers: int, half_way: Callable[[], None] | None = None
) -> Result:
    """Subscribe, write, and count what arrived. `half_way` is called once, in the middle."""
    channels = [f"price:{symbol}" for instance in range(len(apps)) for symbol in load.symbols(instance)]
    share = subscribers // len(apps)
    listeners = [Listeners(app, share, channels) for app in apps] if share else []
    try:
        for group in listeners:
            if not group.ready.wait(SUBSCRIBE_SECONDS):
                raise Failed("the subscribers could not subscribe")
        cpu = [app.process.cpu_seconds for app in apps]
        redis_cpu = redis.process.cpu_seconds
        began = time.monotonic()
        updates = uvloop.run(write(apps, load, listeners, half_way or (lambda: None)))
        last = dict.fromkeys(channels, load.each(len(apps)))
        tally = Tally()
        for group in listeners:
            tally.add(group.finish(last))
        ended = max((group.last for group in listeners), default=time.monotonic())
        return Result(
            updates=updates,
            subscribers=share * len(apps),
            seconds=ended - began,
            tally=tally,
            app_cpu=tuple(app.process.cpu_seconds - before for app, before in zip(apps, cpu, strict=True)),
            redis_cpu=redis.process.cpu_seconds - redis_cpu,
            app_memory=tuple(app.process.memory_mb for app in apps),
        )
    finally:
        for group in listeners:
            group.stop()


@dataclass(frozen=True, slots=True)
class Reference:
    """What redis-py's listener needed for so many messages of this size."""

    messages: int
    size: int
    cpu: float
    seconds: float

    @property
    def each_us(self) -> float:
        """Microseconds of processor time a message."""
        return self.cpu / self.messages * 1e6


def message_size(redis: Redis, app: App) -> int:
    """Return the bytes of an update as one instance publishes it for the others."""
    with socket.create_connection((HOST, redis.port), 5) as link:
        link.sendall(b"PSUBSCRIBE *:ws:*\r\n")
        link.recv(1024)
        app.put_price("SIZE", "12345")
        received = link.recv(4096)
    # The message is the last bulk string of the push: $SIZE, and then the bytes.
    return int(received.rsplit(b"\r\n", 3)[-3].lstrip(b"$"))


def measure_reference(redis: Redis, size: int, messages: int) -> Reference:
    """Let redis-py's listener receive messages; they are published in batches, so that it never has to wait."""
    words = [sys.executable, "-m", "drills.pubsub_reference", str(redis.port), "reference", str(messages)]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words],
        cwd=servers.PROJECT,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        publish(redis, "reference", size, messages)
        found = json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
    return Reference(messages, size, found["cpu"], found["seconds"])


def publish(redis: Redis, channel: str, size: int, messages: int) -> None:
    """Publish that many messages, no more than 1,000 ahead of Redis."""
    name = channel.encode()
    command = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, size, b"x" * size)
    with socket.create_connection((HOST, redis.port), 30) as link, link.makefile("rb") as replies:
        left = messages
        while left:
            batch = min(left, 1000)
            link.sendall(command * batch)
            for _ in range(batch):
                replies.readline()
            left -= batch


def runs_table(*runs: tuple[str, Result]) -> str:
    """Return the runs' figures, a column each."""
    rows: tuple[tuple[str, Callable[[Result], float | str]], ...] = (
        ("updates", lambda r: r.updates),
        ("subscribers", lambda r: r.subscribers),
        ("seconds", lambda r: r.seconds),
        ("updates/s", lambda r: r.updates / r.seconds),
        ("deliveries", lambda r: r.tally.messages),
        ("deliveries/s", lambda r: r.tally.messages / r.seconds),
        ("lost, told by a gap message", lambda r: r.tally.told),
        ("lost, not told", lambda r: r.tally.untold),
        ("twice or out of order", lambda r: r.tally.duplicates),
        ("gap messages", lambda r: r.tally.gaps),
        ("connections closed by the application", lambda r: r.tally.closed),
        ("CPU s of the instances", lambda r: " + ".join(f"{cpu:.1f}" for cpu in r.app_cpu)),
        ("CPU s of Redis", lambda r: r.redis_cpu),
        ("MB of the instances", lambda r: " + ".join(f"{size:.0f}" for size in r.app_memory)),
    )
    head = ("", *(name for name, _ in runs))
    return report.table(head, [(name, *(figure(result) for _, result in runs)) for name, figure in rows])


def costs(alone: Result, clean: Result, reference: Reference) -> dict[str, float]:
    """Return what a delivery costs the instances, and what redis-py needs to receive as many messages."""
    an_update = sum(alone.app_cpu) / alone.updates
    fan_out = sum(clean.app_cpu) - an_update * clean.updates
    received = reference.each_us * clean.tally.messages / 1e6
    return {
        "an update without subscribers, both instances, us": an_update * 1e6,
        "all deliveries, updates and all, s": sum(clean.app_cpu),
        "the deliveries alone, s": fan_out,
        "a delivery alone, us": fan_out / max(1, clean.tally.messages) * 1e6,
        f"redis-py receives a message of {reference.size} bytes, us": reference.each_us,
        "redis-py receives one message for each update, s": reference.each_us * clean.updates / 1e6,
        "redis-py would receive one for each delivery (by the figure above), s": received,
        "the deliveries alone over that": fan_out / received if received else float("nan"),
    }


def aims(clean: Result, cut: Result) -> list[Aim]:
    """Return what is asked of the runs."""
    return [
        Aim("whole run: deliveries that are missing", clean.expected - clean.tally.messages, 0),
        Aim("whole run: twice or out of order", clean.tally.duplicates, 0),
        Aim("whole run: connections closed", clean.tally.closed, 0),
        Aim("subscriptions cut: lost and not told", cut.tally.untold, 0),
        Aim("subscriptions cut: twice or out of order", cut.tally.duplicates, 0),
        Aim("subscriptions cut: connections closed", cut.tally.closed, 0),
        # Otherwise nothing was shown.
        Aim("subscriptions cut: lost and told", cut.tally.told, 1, at_least=True),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--subscribers", type=int, default=200, help="on both instances together")
    parser.add_argument("--writers", type=int, default=16, help="connections to each instance")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), help="default: PostgreSQL, if there is one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write what was found; return the exit code."""
    given = parse(arguments)
    servers.end_on_signals()
    servers.raise_file_limit()
    kind = given.database or ("sqlite" if servers.postgres_binaries() is None else "postgresql")
    with servers.workspace() as workspace:
        versions = report.surroundings(PACKAGES, workspace.folder)
        redis = workspace.redis()
        database = workspace.sqlite_url() if kind == "sqlite" else workspace.postgres().url
        apps = [workspace.app(f"quantdesk-{i}", database, {"REDIS_URL": redis.url}) for i in range(2)]
        size = message_size(redis, apps[0])
        say(f"redis-py's listener: {REFERENCE_MESSAGES:,} messages of {size} bytes")
        reference = measure_reference(redis, size, REFERENCE_MESSAGES)
        few = max(FEWEST, given.updates // 10)
        run(apps, redis, Load("FIRST", FEWEST // 4, given.writers), 0)
        say(f"{few:,} updates without subscribers, on {kind}")
        alone = run(apps, redis, Load("ALONE", few, given.writers), 0)
        say(f"{given.updates:,} updates to {given.subscribers} subscribers")
        clean = run(apps, redis, Load("WHOLE", given.updates, given.writers), given.subscribers)
        say(f"{few:,} updates to {given.subscribers} subscribers, with the subscriptions cut in the middle")
        cut = run(apps, redis, Load("CUT", few, given.writers), given.subscribers, lambda: cut_subscriptions(redis))
    return conclude(kind, alone, clean, cut, reference, versions)


def cut_subscriptions(redis: Redis) -> None:
    """Have Redis cut every subscriber's connection."""
    say(f"cut {redis.ask('CLIENT', 'KILL', 'TYPE', 'pubsub')} subscriptions")


def conclude(
    kind: str, alone: Result, clean: Result, cut: Result, reference: Reference, versions: dict[str, str]
) -> int:
    """Print and write what was found; return the exit code."""
    cpu = costs(alone, clean, reference)
    where = "SQLite" if kind == "sqlite" else "PostgreSQL (fsync off)"
    title = f"# Updates through two instances to the subscribers of both, on {where}"
    runs = runs_table(("without subscribers", alone), ("whole run", clean), ("subscriptions cut", cut))
    text = f"{title}\n\n{runs}\n\n{report.table(('processor time', 'value'), list(cpu.items()))}"
    print(f"{text}\n")
    goals = aims(clean, cut)
    code = report.finish(goals, [f"for example: {text}" for text in (*clean.tally.examples, *cut.tally.examples)])
    data = {
        "database": kind,
        "without_subscribers": alone.plain(),
        "whole": clean.plain(),
        "cut": cut.plain(),
        "cpu": cpu,
        "reference": {**asdict(reference), "each_us": reference.each_us},
        "aims": [aim.plain() for aim in goals],
        "versions": versions,
    }
    lines = "\n".join(f"- {aim.line()}" for aim in goals)
    folder = report.write("drills", "fanout", data, f"{text}\n\n{lines}\n\n{report.version_lines(versions)}")
    print(f"\nWritten: {folder}/fanout.json, fanout.md")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, servers.NotStarted) as error:
        sys.exit(f"FAILED: {error}")

"""Reads through the cache: all who read one key at once share one lookup and one load."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import msgspec

from quantdesk.database.versioned import Versioned
from quantdesk.redis.errors import RedisUnavailable
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.keys import GUARD, Keys, Kind
from quantdesk.redis.scripts import FILL
from quantdesk.redis.statistics import Stats
from quantdesk.redis.wire import Reply, pack

T = TypeVar("T")

# Seconds that a read may take at most and still fill: its guard must outlive it.
MAX_READ: Final = GUARD - 1.0


class Outcome(StrEnum):
    """How a read was answered; the value of the X-Cache header."""

    HIT = "HIT"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T]):
    """A read's answer: the value and its JSON, None if the source has none, and where from."""

    value: T | None
    data: bytes | None
    outcome: Outcome


Load = Callable[[], Awaitable[Versioned[T] | None]]


@dataclass(slots=True, eq=False)
class _Read:
    """One read under way, which all readers of the same key share.

    `connection` is the gateway's when it began. `late` are readers who came when the load was
    under way: it may not have seen what another instance changed before they came.
    """

    kind: Kind
    key: str
    decoder: "msgspec.json.Decoder[Any]"
    load: "Load[Any]"
    began: float
    connection: int
    waiters: "list[asyncio.Future[Lookup[Any]]]"
    late: "list[asyncio.Future[Lookup[Any]]]" = field(default_factory=list)
    loading: bool = False
    stale: bool = False


class SharedReads:
    """The reads under way in one Redis, by key."""

    def __init__(self, gateway: Gateway, keys: Keys, stats: Stats) -> None:
        self._gateway = gateway
        self._keys = keys
        self._stats = stats
        self._reads: dict[str, _Read] = {}
        self._loads: set[asyncio.Task[None]] = set()

    def start(
        self, kind: Kind, name: str, decoder: "msgspec.json.Decoder[T]", load: "Load[T]"
    ) -> "asyncio.Future[Lookup[T]]":
        """Begin a `read`, or join one that is under way, without waiting; `count` what it gives."""
        key = self._keys.entry(kind, name)
        loop = asyncio.get_running_loop()
        # A future for each reader: one that goes away must not take the others' answer with it.
        waiter: asyncio.Future[Lookup[T]] = loop.create_future()
        read = self._reads.get(key)
        if read is None:
            connection = self._gateway.connections
            read = _Read(kind, key, decoder, load, loop.time(), connection, [waiter])
            self._look_up(read)
        elif read.loading:
            read.late.append(waiter)
        else:
            read.waiters.append(waiter)
        return waiter

    def drop(self, key: str) -> None:
        """Keep a read under way from filling, and let later readers begin anew."""
        read = self._reads.pop(key, None)
        if read is not None:
            read.stale = True

    def drop_all(self) -> None:
        """Drop all reads under way."""
        for key in list(self._reads):
            self.drop(key)

    async def finish(self) -> None:
        """Wait for loads that are under way, whether or not a reader still waits for them."""
        while self._loads:
            await asyncio.wait(self._loads)

    def _look_up(self, read: _Read) -> None:
        self._reads[read.key] = read
        try:
            self._gateway.submit(pack("GET", read.key), lambda reply: self._looked_up(read, reply))
        except RedisUnavailable:
            self._start_load(read, Outcome.BYPASS)

    def _looked_up(self, read: _Read, reply: Reply) -> None:
        """Take Redis' reply to a read's GET."""
        outcome = Outcome.MISS
        if isinstance(reply, bytes):
            try:
                self._answer(read, Lookup(read.decoder.decode(reply), reply, Outcome.HIT))
            except (msgspec.DecodeError, UnicodeDecodeError):
                # Not an entry of ours; filling replaces it.
                self._stats.total.errors += 1
            else:
                return
        elif isinstance(reply, Exception):
            self._stats.total.errors += 1
            if isinstance(self._gateway.judge(reply), RedisUnavailable):
                outcome = Outcome.BYPASS
        self._start_load(read, outcome)

    def _start_load(self, read: _Read, outcome: Outcome) -> None:
        """Load from the source, for all who share the read."""
        task = asyncio.create_task(self._load(read, outcome))
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, read: _Read, outcome: Outcome) -> None:
        read.loading = True
        try:
            loaded = await read.load()
        except Exception as error:  # noqa: BLE001  # the readers get it
            self._end(read)
            for waiter in (*read.waiters, *read.late):
                if not waiter.done():
                    waiter.set_exception(error)
            return
        except BaseException:
            self._end(read)
            for waiter in (*read.waiters, *read.late):
                waiter.cancel()
            raise
        if loaded is None:
            lookup: Lookup[Any] = Lookup(None, None, outcome)
        else:
            lookup = Lookup(loaded.value, msgspec.json.encode(loaded.value), outcome)
        if loaded is not None and self._may_fill(read, outcome):
            self._fill(read, loaded, lookup)
        else:
            self._answer(read, lookup)
            self._answer_late(read, lookup, current=not self._gateway.available)

    def _may_fill(self, read: _Read, outcome: Outcome) -> bool:
        """Return whether Redis still knows of every change since the read began."""
        if outcome is not Outcome.MISS or read.stale:
            return False
        took = asyncio.get_running_loop().time() - read.began
        return took <= MAX_READ and read.connection == self._gateway.connections

    def _fill(self, read: _Read, loaded: Versioned[Any], lookup: Lookup[Any]) -> None:
        """Keep what the source had, unless Redis knows better; then answer.

        In this order, so that a reader who has the answer finds the entry in Redis.
        """

        def filled(reply: Reply) -> None:
            if isinstance(reply, Exception):
                current = isinstance(self._gateway.judge(reply), RedisUnavailable)
                self._stats.total.errors += 1
            else:
                current = reply == 1
                self._stats.total.sets += reply
            self._answer(read, lookup)
            self._answer_late(read, lookup, current=current)

        words = (loaded.version, self._keys.seconds(read.kind, loaded), lookup.data or b"")
        try:
            FILL.submit(self._gateway, filled, read.key, self._keys.guard(read.key), *words)
        except RedisUnavailable:
            self._answer(read, lookup)
            self._answer_late(read, lookup, current=True)

    def _answer(self, read: _Read, lookup: Lookup[Any]) -> None:
        self._end(read)
        for waiter in read.waiters:
            if not waiter.done():
                waiter.set_result(lookup)

    def _answer_late(self, read: _Read, lookup: Lookup[Any], *, current: bool) -> None:
        """Give late readers what was loaded if that is current; else read once more for them."""
        late = [waiter for waiter in read.late if not waiter.done()]
        if not late:
            return
        if current:
            for waiter in late:
                waiter.set_result(lookup)
            return
        other = self._reads.get(read.key)
        if other is not None:
            (other.late if other.loading else other.waiters).extend(late)
            return
        now = asyncio.get_running_loop().time()
        connection = self._gateway.connections
        again = _Read(read.kind, read.key, read.decoder, read.load, now, connection, late)
        self._look_up(again)

    def _end(self, read: _Read) -> None:
        """Let later readers begin a read of their own."""
        if self._reads.get(read.key) is read:
            del self._reads[read.key]

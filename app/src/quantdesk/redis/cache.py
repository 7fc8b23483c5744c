"""The cache in front of the database: keys, cache-aside reads, single flight, statistics."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from quantdesk.database.versioned import Versioned
from quantdesk.redis.gateway import Gateway, RedisUnavailable
from quantdesk.redis.scripts import FILL, INVALIDATE, PUT, Script
from quantdesk.redis.wire import Reply, Wire, Word, pack
from quantdesk.settings import CacheTtls

T = TypeVar("T")
Kind = Literal["price", "portfolio", "order", "session", "presence"]

# What an operator may clear: the rest is not a cache to those whom it concerns.
CLEARABLE: Final[tuple[Kind, ...]] = ("price", "portfolio", "order")
SCAN_BATCH: Final = 500
# Seconds that a change guards its entry against reads that began before it, and the longest that
# such a read may take and still fill.
GUARD: Final = 10
MAX_FLIGHT: Final = GUARD - 1.0
# Seconds of changes before the loss of a connection that are sent again on the next one: the server
# behind that may be a replica that had not received them.
RECALL: Final = 10.0
# The version of an entry that is gone for good. Lua's numbers are exact up to here.
DELETED: Final = 2**53 - 1


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


@dataclass(slots=True)
class Counts:
    """Hits and misses count reads; errors and sets count operations on Redis."""

    hits: int = 0
    misses: int = 0
    errors: int = 0
    sets: int = 0

    @property
    def requests(self) -> int:
        """Reads that asked the cache."""
        return self.hits + self.misses

    @property
    def ratio(self) -> float | None:
        """The share of reads that were hits, 0 to 1; None before the first read."""
        return self.hits / self.requests if self.requests else None


class Stats:
    """Counts since the start, for Prometheus, and since the last reset, for people."""

    def __init__(self) -> None:
        self.total = Counts()
        self._base = Counts()

    @property
    def current(self) -> Counts:
        """Counts since the last reset."""
        return Counts(
            self.total.hits - self._base.hits,
            self.total.misses - self._base.misses,
            self.total.errors - self._base.errors,
            self.total.sets - self._base.sets,
        )

    def reset(self) -> None:
        """Begin counting anew; the totals go on."""
        self._base = Counts(self.total.hits, self.total.misses, self.total.errors, self.total.sets)


Load = Callable[[], Awaitable[Versioned[T] | None]]


@dataclass(slots=True, eq=False)
class _Flight:
    """One read under way, which everyone who asks for the same key shares.

    `connection` is the gateway's when it began. `late` are those who came when the load was under
    way: it may not have seen what another instance changed before they came.
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


class Cache:
    """Cache-aside reads and their invalidation, for the keys of one environment in one Redis.

    No method but `clear` fails because Redis does.
    """

    def __init__(self, gateway: Gateway, env_name: str, ttl: CacheTtls, stats: Stats) -> None:
        self.stats: Final = stats
        self._gateway = gateway
        self._prefix: Final = f"qd:{env_name}:"
        self._ttl: Final[dict[str, int]] = {
            "price": ttl.price,
            "portfolio": ttl.portfolio,
            "order": ttl.order,
            "session": ttl.session,
            "presence": ttl.presence,
        }
        self._clearable = tuple(f"{self._prefix}{kind}:".encode() for kind in CLEARABLE)
        self._flights: dict[str, _Flight] = {}
        self._loads: set[asyncio.Task[None]] = set()
        # Versions that were committed while Redis was away, each until the entry that Redis may
        # still hold has expired. The oldest first.
        self._owed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        # The same for versions that Redis knows since this time, RECALL before the latest at most.
        self._known: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        gateway.on_recovery(self._pay)

    def key(self, kind: Kind, name: str) -> str:
        """Return the key of an entry."""
        return f"{self._prefix}{kind}:{name}"

    async def read(
        self, kind: Kind, name: str, decoder: "msgspec.json.Decoder[T]", load: "Load[T]"
    ) -> Lookup[T]:
        """Return the entry, or what `load` returns, which is then kept.

        Concurrent reads of one entry share one lookup and one `load`. None is not kept.

        Raises:
            Exception: what `load` raises, to every reader that shares it.
        """
        lookup = await self.start(kind, name, decoder, load)
        self.count(lookup)
        return lookup

    def start(
        self, kind: Kind, name: str, decoder: "msgspec.json.Decoder[T]", load: "Load[T]"
    ) -> "asyncio.Future[Lookup[T]]":
        """Begin a `read`, or join one that is under way, without waiting; `count` what it gives."""
        key = f"{self._prefix}{kind}:{name}"
        loop = asyncio.get_running_loop()
        # A future for each reader: one that goes away must not take the others' answer with it.
        waiter: asyncio.Future[Lookup[T]] = loop.create_future()
        flight = self._flights.get(key)
        if flight is None:
            connection = self._gateway.connections
            flight = _Flight(kind, key, decoder, load, loop.time(), connection, [waiter])
            self._depart(flight)
        elif flight.loading:
            flight.late.append(waiter)
        else:
            flight.waiters.append(waiter)
        return waiter

    def count(self, lookup: Lookup[Any]) -> None:
        """Add a read's answer to the statistics."""
        if lookup.outcome is Outcome.HIT:
            self.stats.total.hits += 1
        elif lookup.outcome is Outcome.MISS:
            self.stats.total.misses += 1

    async def invalidate(self, kind: Kind, name: str, version: int) -> None:
        """Remove an entry whose source has changed, here and in reads under way anywhere.

        Call it after the change is committed, with the version that it made. Reads that begin later
        see the change, and no read that began earlier can write back what it read.
        """
        key = self.key(kind, name)
        self._drop([key])
        self._owe(kind, key, version)
        if await self._run(INVALIDATE, key, self._guard(key), version, GUARD) is not None:
            self._settle(key, version)

    async def put(self, kind: Kind, name: str, loaded: Versioned[Any]) -> None:
        """Write an entry through, after its change is committed."""
        key = self.key(kind, name)
        self._drop([key])
        self._owe(kind, key, loaded.version)
        data = msgspec.json.encode(loaded.value)
        words = (loaded.version, self._seconds(kind, loaded), data, GUARD)
        kept = await self._run(PUT, key, self._guard(key), *words)
        if kept is not None:
            self.stats.total.sets += kept
            self._settle(key, loaded.version)

    async def clear(self, pattern: str) -> int:
        """Remove the entries of the cache kinds whose key below the prefix matches `pattern`.

        `pattern` is a glob as of Redis' SCAN. It may match keys of other kinds: those stay.

        Returns:
            How many entries were removed.

        Raises:
            RedisUnavailable: Redis is not usable, or went away before the end.
            RedisRefused: Redis refused SCAN or UNLINK.
        """
        self._drop(list(self._flights))
        match = escape_glob(self._prefix) + pattern
        cleared = 0
        cursor: Word = 0
        while True:
            words = ("SCAN", cursor, "MATCH", match, "COUNT", SCAN_BATCH)
            cursor, found = await self._gateway.call(*words)
            keys = [key for key in found if key.startswith(self._clearable)]
            if keys:
                cleared += await self._gateway.call("UNLINK", *keys)
            if int(cursor) == 0:
                return cleared

    async def finish(self) -> None:
        """Wait for loads that are under way, whether or not anybody still waits for them."""
        while self._loads:
            await asyncio.wait(self._loads)

    # A flight: from Redis' answer to the source, and back.

    def _depart(self, flight: _Flight) -> None:
        self._flights[flight.key] = flight
        try:
            self._gateway.submit(pack("GET", flight.key), lambda reply: self._found(flight, reply))
        except RedisUnavailable:
            self._source(flight, Outcome.BYPASS)

    def _found(self, flight: _Flight, reply: Reply) -> None:
        """Take Redis' answer to a flight's GET."""
        outcome = Outcome.MISS
        if isinstance(reply, bytes):
            try:
                self._land(flight, Lookup(flight.decoder.decode(reply), reply, Outcome.HIT))
            except (msgspec.DecodeError, UnicodeDecodeError):
                # Not an entry of ours; filling replaces it.
                self.stats.total.errors += 1
            else:
                return
        elif isinstance(reply, Exception):
            self.stats.total.errors += 1
            if isinstance(self._gateway.judge(reply), RedisUnavailable):
                outcome = Outcome.BYPASS
        self._source(flight, outcome)

    def _source(self, flight: _Flight, outcome: Outcome) -> None:
        """Go to the source for everybody on the flight."""
        task = asyncio.create_task(self._load(flight, outcome))
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, flight: _Flight, outcome: Outcome) -> None:
        flight.loading = True
        try:
            loaded = await flight.load()
        except Exception as error:  # noqa: BLE001  # it is for those who wait
            self._take_off(flight)
            for waiter in (*flight.waiters, *flight.late):
                if not waiter.done():
                    waiter.set_exception(error)
            return
        except BaseException:
            self._take_off(flight)
            for waiter in (*flight.waiters, *flight.late):
                waiter.cancel()
            raise
        if loaded is None:
            lookup: Lookup[Any] = Lookup(None, None, outcome)
        else:
            lookup = Lookup(loaded.value, msgspec.json.encode(loaded.value), outcome)
        if loaded is not None and self._may_fill(flight, outcome):
            self._fill(flight, loaded, lookup)
        else:
            self._land(flight, lookup)
            self._land_late(flight, lookup, current=not self._gateway.available)

    def _may_fill(self, flight: _Flight, outcome: Outcome) -> bool:
        """Tell whether Redis still knows of every change since the flight began."""
        if outcome is not Outcome.MISS or flight.stale:
            return False
        took = asyncio.get_running_loop().time() - flight.began
        return took <= MAX_FLIGHT and flight.connection == self._gateway.connections

    def _fill(self, flight: _Flight, loaded: Versioned[Any], lookup: Lookup[Any]) -> None:
        """Keep what the source had, unless Redis knows better; then answer.

        In this order, so that whoever has the answer finds the entry in Redis.
        """

        def filled(reply: Reply) -> None:
            if isinstance(reply, Exception):
                current = isinstance(self._gateway.judge(reply), RedisUnavailable)
                self.stats.total.errors += 1
            else:
                current = reply == 1
                self.stats.total.sets += reply
            self._land(flight, lookup)
            self._land_late(flight, lookup, current=current)

        words = (loaded.version, self._seconds(flight.kind, loaded), lookup.data or b"")
        try:
            FILL.submit(self._gateway, filled, flight.key, self._guard(flight.key), *words)
        except RedisUnavailable:
            self._land(flight, lookup)
            self._land_late(flight, lookup, current=True)

    def _land(self, flight: _Flight, lookup: Lookup[Any]) -> None:
        self._take_off(flight)
        for waiter in flight.waiters:
            if not waiter.done():
                waiter.set_result(lookup)

    def _land_late(self, flight: _Flight, lookup: Lookup[Any], *, current: bool) -> None:
        """Give those who came late what was loaded if that is current; else they go once more."""
        late = [waiter for waiter in flight.late if not waiter.done()]
        if not late:
            return
        if current:
            for waiter in late:
                waiter.set_result(lookup)
            return
        other = self._flights.get(flight.key)
        if other is not None:
            (other.late if other.loading else other.waiters).extend(late)
            return
        now = asyncio.get_running_loop().time()
        connection = self._gateway.connections
        again = _Flight(flight.kind, flight.key, flight.decoder, flight.load, now, connection, late)
        self._depart(again)

    def _take_off(self, flight: _Flight) -> None:
        """Let later readers begin a flight of their own."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def _drop(self, keys: Iterable[str]) -> None:
        """Keep reads under way from filling, and let later readers begin anew."""
        for key in keys:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.stale = True

    # Writing.

    async def _run(self, script: Script, *words: Word) -> int | None:
        """Run a script; return its reply, None where Redis did not run it. Failures are counted."""
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._gateway.judge(reply)
                self.stats.total.errors += 1
            if not answer.done():
                answer.set_result(None if isinstance(reply, Exception) else reply)

        try:
            script.submit(self._gateway, done, *words)
        except RedisUnavailable:
            return None
        return await answer

    def _owe(self, kind: Kind, key: str, version: int) -> None:
        """Note a change before Redis is told: it may fail, and recover, before anybody hears."""
        if not self._gateway.enabled:
            return
        now = asyncio.get_running_loop().time()
        known, _ = self._owed.pop(key, (0, 0.0))
        # A read from before may have filled up to this late.
        self._owed[key] = max(version, known), now + GUARD + self._ttl[kind]
        while next(iter(self._owed.values()))[1] < now:
            self._owed.popitem(last=False)

    def _settle(self, key: str, version: int) -> None:
        owed = self._owed.get(key)
        if owed is None or owed[0] > version:
            return
        del self._owed[key]
        now = asyncio.get_running_loop().time()
        self._known.pop(key, None)
        self._known[key] = *owed, now
        while next(iter(self._known.values()))[2] < now - RECALL:
            self._known.popitem(last=False)

    async def _pay(self, wire: Wire) -> None:
        """Remove what changed while Redis was away, or just before, before anybody reads it."""
        now = asyncio.get_running_loop().time()
        for key, (version, end, _) in self._known.items():
            if end > now:
                known, later = self._owed.get(key, (0, 0.0))
                self._owed[key] = max(version, known), max(end, later)
        self._known.clear()
        while self._owed:
            batch = [(key, owed[0]) for key, owed in islice(self._owed.items(), SCAN_BATCH)]
            await asyncio.gather(
                *(
                    INVALIDATE.call(wire, key, self._guard(key), version, GUARD)
                    for key, version in batch
                )
            )
            for key, version in batch:
                self._settle(key, version)

    def _guard(self, key: str) -> str:
        # The braces keep it in the entry's slot, should Redis be a cluster one day.
        return f"{self._prefix}guard:{{{key}}}"

    def _seconds(self, kind: Kind, loaded: Versioned[Any]) -> int:
        longest = self._ttl[kind]
        return longest if loaded.ttl is None else max(1, min(longest, loaded.ttl))


def escape_glob(text: str) -> str:
    """Return a pattern that matches `text` and nothing else (the rules of Redis' KEYS and SCAN)."""
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)

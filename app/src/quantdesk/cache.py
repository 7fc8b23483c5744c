"""The cache in front of the database: keys, cache-aside reads, single flight, statistics."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from quantdesk.bus import Bus
from quantdesk.gateway import Gateway, RedisRefused, RedisUnavailable

T = TypeVar("T")
Kind = Literal["price", "portfolio", "order"]

KINDS: Final[tuple[Kind, ...]] = ("price", "portfolio", "order")
SCAN_BATCH: Final = 500


class Outcome(StrEnum):
    """How a read was answered; the value of the X-Cache header."""

    HIT = "HIT"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T]):
    """A read's answer: the value, None if the source has none, and where it came from."""

    value: T | None
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


@dataclass(slots=True, eq=False)
class _Flight:
    """One read under way, which everyone who asks for the same key shares."""

    task: "asyncio.Task[Lookup[Any]]" = field(init=False)
    stale: bool = False
    filling: bool = False


class Cache:
    """Cache-aside reads and their invalidation, for the keys of one environment.

    No method fails because Redis does.
    """

    def __init__(self, gateway: Gateway, bus: Bus, env_name: str) -> None:
        self.stats: Final = Stats()
        self._gateway = gateway
        self._bus = bus
        self._prefix = f"qd:{env_name}:"
        self._kinds = tuple(f"{self._prefix}{kind}:".encode() for kind in KINDS)
        self._flights: dict[str, _Flight] = {}
        # Keys written while Redis was away. Each names an entry that Redis may still hold.
        self._owed: set[str] = set()
        gateway.on_recovery(self._pay)
        bus.listen("invalidate", self._abandon)
        bus.listen("reset-stats", lambda _: self.stats.reset())

    def key(self, kind: Kind, name: str) -> str:
        """Return the key of an entry."""
        return f"{self._prefix}{kind}:{name}"

    async def read(
        self,
        key: str,
        ttl: int,
        decoder: msgspec.json.Decoder[T],
        load: Callable[[], Awaitable[T | None]],
    ) -> Lookup[T]:
        """Return the entry, or what `load` returns, which is then kept for `ttl` seconds.

        Concurrent reads of one key share one lookup and one `load`. None is not kept.

        Raises:
            Exception: what `load` raises, to every reader that shares it.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._fly(flight, key, ttl, decoder, load))
            flight.task.add_done_callback(_retrieve)
        # Shielded: a reader that goes away must not take the others' answer with it.
        lookup: Lookup[T] = await asyncio.shield(flight.task)
        if lookup.outcome is Outcome.HIT:
            self.stats.total.hits += 1
        elif lookup.outcome is Outcome.MISS:
            self.stats.total.misses += 1
        return lookup

    async def invalidate(self, key: str) -> None:
        """Remove an entry whose source has changed, here and in reads under way.

        Call it after the change is committed. Reads that begin later see the change.
        """
        await self._land(self._drop([key]))
        message = self._bus.encode("invalidate", key)

        async def unlink(redis: Redis) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                pipeline.unlink(key)
                pipeline.publish(self._bus.channel, message)
                replies = await pipeline.execute(raise_on_error=False)
            # The other instances' entries expire by themselves: only UNLINK has to work.
            if isinstance(replies[0], Exception):
                raise replies[0]

        # Owed beforehand: a recovery may come before this task hears of its own failure.
        self._owed.add(key)
        try:
            await self._gateway.run(unlink)
        except RedisUnavailable as error:
            self._owed.add(key)
            self.stats.total.errors += error.attempted
        except RedisRefused:
            self.stats.total.errors += 1
        else:
            self._owed.discard(key)

    async def clear(self, pattern: str) -> int:
        """Remove the entries of the cache kinds whose key below the prefix matches `pattern`.

        `pattern` is a glob as of Redis' SCAN. It may match keys of other kinds: those stay.

        Returns:
            How many entries were removed.

        Raises:
            RedisUnavailable: Redis is not usable, or went away before the end.
            RedisRefused: Redis refused SCAN or UNLINK.
        """
        await self._land(self._drop(list(self._flights)))
        match = escape_glob(self._prefix) + pattern
        cleared = 0
        cursor = 0
        while True:
            cursor, found = await self._scan(cursor, match)
            keys = [key for key in found if key.startswith(self._kinds)]
            for start in range(0, len(keys), SCAN_BATCH):
                cleared += await self._unlink(keys[start : start + SCAN_BATCH])
            if cursor == 0:
                return cleared

    async def _scan(self, cursor: int, match: str) -> tuple[int, list[bytes]]:
        following, found = await self._gateway.run(
            lambda redis: redis.scan(cursor, match=match, count=SCAN_BATCH)
        )
        return following, [key for key in found if isinstance(key, bytes)]

    async def _unlink(self, keys: list[bytes]) -> int:
        return await self._gateway.run(lambda redis: redis.unlink(*keys))

    async def _fly(
        self,
        flight: _Flight,
        key: str,
        ttl: int,
        decoder: msgspec.json.Decoder[T],
        load: Callable[[], Awaitable[T | None]],
    ) -> Lookup[T]:
        try:
            outcome = Outcome.MISS
            try:
                raw = await self._gateway.run(lambda redis: redis.get(key))
                if raw is not None:
                    return Lookup(decoder.decode(raw), Outcome.HIT)
            except RedisUnavailable as error:
                self.stats.total.errors += error.attempted
                outcome = Outcome.BYPASS
            except (RedisRefused, msgspec.DecodeError, UnicodeDecodeError):
                # Not an entry of ours; filling replaces it.
                self.stats.total.errors += 1
            value = await load()
            if value is not None and outcome is Outcome.MISS and not flight.stale:
                flight.filling = True
                await self._fill(key, ttl, msgspec.json.encode(value))
            return Lookup(value, outcome)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _fill(self, key: str, ttl: int, data: bytes) -> None:
        try:
            await self._gateway.run(lambda redis: redis.set(key, data, ex=ttl))
            self.stats.total.sets += 1
        except RedisUnavailable as error:
            self.stats.total.errors += error.attempted
        except RedisRefused:
            self.stats.total.errors += 1

    def _drop(self, keys: Iterable[str]) -> list[_Flight]:
        """Keep reads under way from filling, and let later readers begin anew."""
        dropped = [self._flights.pop(key) for key in keys if key in self._flights]
        for flight in dropped:
            flight.stale = True
        return dropped

    def _abandon(self, key: str) -> None:
        self._drop([key])

    @staticmethod
    async def _land(flights: list[_Flight]) -> None:
        """Wait for fills already sent: on another connection, UNLINK could overtake them."""
        filling = [flight.task for flight in flights if flight.filling]
        if filling:
            await asyncio.wait(filling)

    async def _pay(self, redis: Redis) -> None:
        while self._owed:
            batch = list(self._owed)[:SCAN_BATCH]
            await redis.unlink(*batch)
            self._owed.difference_update(batch)


def escape_glob(text: str) -> str:
    """Return a pattern that matches `text` and nothing else (the rules of Redis' KEYS and SCAN)."""
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)


def _retrieve(task: "asyncio.Task[Lookup[Any]]") -> None:
    # Every reader may have gone away; their error is nobody's then, and not worth a warning.
    if not task.cancelled():
        task.exception()

"""The cache in front of the database: cache-aside reads, and changes that remove entries."""

import asyncio
from typing import Any, Final, TypeVar

import msgspec

from quantdesk.database.versioned import Versioned
from quantdesk.redis import keys as entries
from quantdesk.redis.errors import RedisUnavailable
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.invalidations import Invalidations
from quantdesk.redis.keys import Keys, Kind, escape_glob
from quantdesk.redis.reads import Load, Lookup, Outcome, SharedReads
from quantdesk.redis.scripts import INVALIDATE, PUT, Script
from quantdesk.redis.statistics import Stats
from quantdesk.redis.wire import Reply, Word
from quantdesk.settings import CacheTtls

T = TypeVar("T")

SCAN_BATCH: Final = 500


class Cache:
    """Cache-aside reads and their invalidation, for the keys of one environment in one Redis.

    No method but `clear` fails because Redis does.
    """

    def __init__(self, gateway: Gateway, env_name: str, ttl: CacheTtls, stats: Stats) -> None:
        self.stats: Final = stats
        self._gateway = gateway
        self._keys = Keys(env_name, ttl)
        self._reads = SharedReads(gateway, self._keys, stats)
        self._invalidations = Invalidations(gateway, self._keys)

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
        return self._reads.start(kind, name, decoder, load)

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
        key = self._keys.entry(kind, name)
        self._reads.drop(key)
        self._invalidations.note(kind, key, version)
        if (
            await self._run(INVALIDATE, key, self._keys.guard(key), version, entries.GUARD)
            is not None
        ):
            self._invalidations.confirm(key, version)

    async def put(self, kind: Kind, name: str, loaded: Versioned[Any]) -> None:
        """Write an entry through, after its change is committed."""
        key = self._keys.entry(kind, name)
        self._reads.drop(key)
        self._invalidations.note(kind, key, loaded.version)
        data = msgspec.json.encode(loaded.value)
        words = (loaded.version, self._keys.seconds(kind, loaded), data, entries.GUARD)
        kept = await self._run(PUT, key, self._keys.guard(key), *words)
        if kept is not None:
            self.stats.total.sets += kept
            self._invalidations.confirm(key, loaded.version)

    async def clear(self, pattern: str) -> int:
        """Remove the entries of the cache kinds whose key below the prefix matches `pattern`.

        `pattern` is a glob as of Redis' SCAN. It may match keys of other kinds: those stay.

        Returns:
            How many entries were removed.

        Raises:
            RedisUnavailable: Redis is not usable, or went away before the end.
            RedisRefused: Redis refused SCAN or UNLINK.
        """
        self._reads.drop_all()
        match = escape_glob(self._keys.prefix) + pattern
        cleared = 0
        cursor: Word = 0
        while True:
            words = ("SCAN", cursor, "MATCH", match, "COUNT", SCAN_BATCH)
            cursor, found = await self._gateway.call(*words)
            keys = [key for key in found if key.startswith(self._keys.clearable)]
            if keys:
                cleared += await self._gateway.call("UNLINK", *keys)
            if int(cursor) == 0:
                return cleared

    async def finish(self) -> None:
        """Wait for loads that are under way, whether or not a reader still waits for them."""
        await self._reads.finish()

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

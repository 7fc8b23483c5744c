"""The probe: it connects to Redis, and finds out whether Redis is usable."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from quantdesk.redis.availability import Availability
from quantdesk.redis.connector import Connector
from quantdesk.redis.errors import CONNECTION_ERRORS, describe
from quantdesk.redis.sentinel import NoPrimary
from quantdesk.redis.wire import ReplyError, Wire, WireFull, WireLost

log = logging.getLogger(__name__)

PROBE_INTERVAL_UP: Final = 1.0
PROBE_INTERVAL_DOWN: Final = 0.25
# Connection attempts overlap while Redis is down: the first packet of each may be dropped, and
# waiting for one attempt's timeout would make the return of Redis go unnoticed for that long.
MAX_ATTEMPTS: Final = 12
# Seconds without a sign of life while a reply is due, after which Redis counts as down (or sooner,
# as the command timeout says): a cached answer is not worth waiting longer for.
STALL: Final = 0.5
STALL_CHECK: Final = 0.05
# Seconds between two questions to Sentinel whether the primary is still the same.
SENTINEL_INTERVAL: Final = 2.0

Hook = Callable[[Wire], Awaitable[None]]


class Probe:
    """Background tasks that keep a connection, ping on it, and report in `state`."""

    def __init__(self, connector: Connector, state: Availability, env_name: str) -> None:
        self._connector = connector
        self._settings = connector.settings
        self._state = state
        # UNLINK of a key that never exists writes nothing, but is refused by a replica, a full
        # disk or a missing right, where PING alone would promise a cache that can't be written.
        self._words = (("PING",), ("UNLINK", f"qd:{env_name}:probe"))
        self._tasks: list[asyncio.Task[None]] = []
        # Run on each new connection, before any other command uses it.
        self.hooks: Final[list[Hook]] = []

    async def start(self, patience: float) -> None:
        """Start, and wait up to `patience` seconds for the first finding."""
        self._tasks = [
            asyncio.create_task(self._supervise(), name="redis-probe"),
            asyncio.create_task(self._watch_for_stalls(), name="redis-stalls"),
        ]
        if self._settings.sentinels:
            self._tasks.append(asyncio.create_task(self._follow(), name="redis-sentinel"))
        try:
            async with asyncio.timeout(patience):
                await self._state.known.wait()
        except TimeoutError:
            log.info("Redis has not answered yet, serving without it meanwhile")

    async def stop(self) -> None:
        """End the tasks, and close the connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._state.wire is not None:
            self._state.wire.close()

    async def _supervise(self) -> None:
        while True:
            wire = await self._reach()
            try:
                await self._ping_on(wire)
            finally:
                self._state.release()
                wire.close()

    async def _reach(self) -> Wire:
        """Try until Redis answers and the recovery hooks are through; return the connection in use.

        A first attempt that fails marks Redis down; so does one that takes too long.
        """
        loop = asyncio.get_running_loop()
        attempts: set[asyncio.Task[tuple[Wire, float]]] = set()
        try:
            while True:
                if len(attempts) < MAX_ATTEMPTS:
                    attempts.add(asyncio.create_task(self._attempt()))
                turn_ends = loop.time() + PROBE_INTERVAL_DOWN
                while attempts and (left := turn_ends - loop.time()) > 0:
                    done, _ = await asyncio.wait(
                        attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for attempt in done:
                        attempts.discard(attempt)
                        try:
                            wire, latency = attempt.result()
                        except CONNECTION_ERRORS as error:
                            self._state.mark_down(describe(error))
                            continue
                        if await self._recovered(wire):
                            self._state.mark_up(wire, latency)
                            return wire
                if self._state.known.is_set():
                    self._state.mark_down("no answer")
                await asyncio.sleep(max(0.0, turn_ends - loop.time()))
        finally:
            for attempt in attempts:
                attempt.cancel()
            for outcome in await asyncio.gather(*attempts, return_exceptions=True):
                if isinstance(outcome, tuple):
                    outcome[0].close()

    async def _attempt(self) -> tuple[Wire, float]:
        address = await self._connector.locate()
        wire = await self._connector.open(Wire, address)
        try:
            async with asyncio.timeout(self._settings.command_timeout):
                latency = await self._ping(wire)
        except BaseException:
            wire.close()
            raise
        self._state.address = address
        return wire, latency

    async def _recovered(self, wire: Wire) -> bool:
        try:
            async with asyncio.timeout(self._settings.command_timeout):
                for hook in self.hooks:
                    await hook(wire)
        except CONNECTION_ERRORS as error:
            wire.close()
            self._state.mark_down(describe(error))
            return False
        except BaseException:
            wire.close()
            raise
        return True

    async def _ping_on(self, wire: Wire) -> None:
        """Ping until the connection ends."""
        while True:
            await asyncio.wait({wire.ended}, timeout=PROBE_INTERVAL_UP)
            if wire.ended.done():
                return
            try:
                # No timeout: a reply that does not come is a stall, which ends the connection.
                self._state.latency = await self._ping(wire)
            except ReplyError as error:
                self._state.mark_down(error.code)
                return
            except (WireLost, WireFull):
                if wire.ended.done():
                    return

    async def _watch_for_stalls(self) -> None:
        limit = min(self._settings.command_timeout, STALL)
        suspect: Wire | None = None
        while True:
            await asyncio.sleep(STALL_CHECK)
            wire = self._state.wire
            if wire is None or wire.stalled < limit:
                suspect = None
            elif wire is not suspect:
                # Once more round the loop: it may be this process that stood still, with the reply
                # waiting in the socket.
                suspect = wire
            else:
                self._state.mark_down("no answer")
                wire.close("no answer")

    async def _follow(self) -> None:
        """Leave a former primary, though it may still answer."""
        while True:
            await asyncio.sleep(SENTINEL_INTERVAL)
            wire, address = self._state.wire, self._state.address
            try:
                primary = await self._connector.locate()
            except NoPrimary:
                continue
            if wire is not None and wire is self._state.wire and address != primary:
                log.info("Sentinel names another primary", extra={"redis": primary[0]})
                wire.close("Sentinel names another primary")

    async def _ping(self, wire: Wire) -> float:
        """Return how many milliseconds a PING took, and try a write right after it."""
        # Not the loop's clock: uvloop's counts whole milliseconds.
        started = time.perf_counter()
        ping, write = (asyncio.ensure_future(wire.call(*words)) for words in self._words)
        try:
            await ping
            latency = round((time.perf_counter() - started) * 1000, 3)
            await write
        finally:
            for answer in (ping, write):
                answer.cancel()
            await asyncio.gather(ping, write, return_exceptions=True)
        return latency

"""The one way to a Redis: commands, as long as it is usable."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from quantdesk.redis.availability import Availability, Health
from quantdesk.redis.connector import Connector
from quantdesk.redis.errors import RedisRefused, RedisUnavailable
from quantdesk.redis.probe import Hook, Probe
from quantdesk.redis.sentinel import NoPrimary
from quantdesk.redis.wire import (
    Done,
    Reply,
    ReplyError,
    Subscription,
    Wire,
    WireFull,
    WireLost,
    Word,
    pack,
)
from quantdesk.settings import RedisSettings

log = logging.getLogger(__name__)

# Seconds between two looks at a connection that has just ended.
CONNECTED_CHECK: Final = 0.05

# Replies after which no other command would fare better, so that Redis counts as down.
_DOWN_REPLIES: Final = frozenset(
    {
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOREPLICAS",
        "READONLY",
        "WRONGPASS",
    }
)


class Gateway:
    """A Redis, and the state that decides whether a request may use it.

    A probe in the background pings Redis and owns the connection. One that ends or stalls, and a
    reply that says so, mark Redis down; from then on no request touches it until the probe has
    found it usable again.
    """

    def __init__(self, settings: RedisSettings | None, env_name: str) -> None:
        # Where Sentinel names the server, its address is not known before.
        named = settings is not None and not settings.sentinels
        self._state = Availability((settings.host, settings.port) if settings and named else None)
        self._connector: Connector | None = None
        self._probe: Probe | None = None
        if settings is not None:
            self._connector = Connector(settings)
            self._probe = Probe(self._connector, self._state, env_name)

    @property
    def enabled(self) -> bool:
        """Whether a Redis is configured at all."""
        return self._connector is not None

    @property
    def available(self) -> bool:
        """Whether commands reach Redis now."""
        return self._state.up

    @property
    def connections(self) -> int:
        """How many connections there have been. What Redis knew on an earlier one may be lost."""
        return self._state.connections

    @property
    def scripts(self) -> set[str]:
        """Digests of the scripts that were sent on the connection in use."""
        return self._state.scripts

    @property
    def health(self) -> Health:
        """What the latest probe or command found; costs no round trip."""
        return self._state.health if self.enabled else Health("disabled", None, False)

    def on_recovery(self, hook: Hook) -> None:
        """Have `hook` run on each new connection, before any other command uses it.

        What `hook` raises from Redis makes the connection count as failed.
        """
        if self._probe is not None:
            self._probe.hooks.append(hook)

    async def start(self, patience: float) -> None:
        """Start the probe and wait up to `patience` seconds for its first finding."""
        if self._probe is not None:
            await self._probe.start(patience)

    async def stop(self) -> None:
        """End the probe and close the connection."""
        if self._probe is not None:
            await self._probe.stop()

    def submit(self, packed: bytes, done: Done) -> None:
        """Send a packed command without waiting; `done` gets its reply, as by `Wire.send`.

        `done` hands the reply to `judge` when it is an exception.

        Raises:
            RedisUnavailable: nothing was sent.
        """
        wire = self._state.wire
        if wire is None:
            raise RedisUnavailable(attempted=False)
        try:
            wire.send(packed, done)
        except (WireLost, WireFull):
            raise RedisUnavailable(attempted=False) from None

    def judge(self, error: Exception) -> RedisUnavailable | RedisRefused:
        """Draw the consequences of a reply that is an exception; return the error for callers."""
        if not isinstance(error, ReplyError):
            return RedisUnavailable(attempted=True)
        if error.code in _DOWN_REPLIES:
            self._state.mark_down(error.code)
            if self._state.wire is not None:
                self._state.wire.close(error.code)
            return RedisUnavailable(attempted=True)
        if error.code not in self._state.refusals:
            # Once per code and connection: a full Redis refuses every request's SET.
            self._state.refusals.add(error.code)
            log.warning("Redis refuses commands", extra={"reason": error.code})
        return RedisRefused(error.code)

    async def call(self, *words: Word) -> Reply:
        """Send one command and return its reply.

        Raises:
            RedisUnavailable: Redis is disabled or down, or went down meanwhile.
            RedisRefused: Redis answered with an error that concerns this command alone.
        """
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            outcome = self.judge(reply) if isinstance(reply, Exception) else reply
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        self.submit(pack(*words), done)
        return await answer

    async def connected(self) -> Wire:
        """Wait until Redis is usable; return its connection, whose `ended` tells until when."""
        while True:
            await self._state.connected.wait()
            if self._state.wire is not None and self._state.wire.usable:
                return self._state.wire
            await asyncio.sleep(CONNECTED_CHECK)

    async def subscription(self, received: Callable[[list[Reply]], None]) -> Subscription:
        """Open a connection of its own to the server in use, for a subscriber.

        Raises:
            OSError, TimeoutError, ReplyError, WireLost, NoPrimary: there is no connection.
        """
        if self._connector is None or self._state.address is None:
            raise NoPrimary
        wire = await self._connector.open(lambda: Subscription(received), self._state.address)
        assert isinstance(wire, Subscription)  # noqa: S101  # what the factory made
        return wire

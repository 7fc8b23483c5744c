"""Rate limits: how many requests a client may make in a window of time.

A window begins with a client's first request. Redis counts, in one round trip and for all instances
together; while it is away, each instance counts by itself.
"""

import asyncio
import math
import time
from collections import OrderedDict
from typing import Final, NamedTuple

from quantdesk.redis.errors import RedisUnavailable
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.scripts import TAKE
from quantdesk.redis.wire import Reply
from quantdesk.settings import RateLimit

# Clients that are remembered in memory at most; past it, the oldest windows are forgotten.
MAX_CLIENTS: Final = 50_000


class Decision(NamedTuple):
    """Whether a request may pass, how many more may, and in how many seconds all may again."""

    allowed: bool
    remaining: int
    reset: int


class _Batch:
    """Requests of one client in one turn of the event loop, which share one command to Redis."""

    __slots__ = ("takers", "watchers")

    def __init__(self) -> None:
        self.takers: list[asyncio.Future[Decision]] = []
        self.watchers: list[asyncio.Future[Decision]] = []


class Limiter:
    """Counts the requests of each client. It never fails: without Redis it counts here."""

    def __init__(
        self, gateway: Gateway, env_name: str, limit: RateLimit, counted: str = ""
    ) -> None:
        """Count what `counted` names; without it, requests."""
        self.limit: Final = limit.requests
        self._period = float(limit.period)
        self._gateway = gateway
        self._prefix = f"qd:{env_name}:ratelimit:{counted and counted + ':'}"
        self._batches: dict[str, _Batch] = {}
        # Windows that are counted here, and those that Redis reports as used up (with the limit as
        # count): a client that is refused is refused until its window ends, so that a flood costs
        # Redis nothing.
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def take(self, client: str) -> "Decision | asyncio.Future[Decision]":
        """Count one request of a client. Where Redis must be queried, the result is awaitable."""
        return self._decide_locally(client, 1) or self._query(client, counted=True)

    def look(self, client: str) -> "Decision | asyncio.Future[Decision]":
        """Return what a client has left, without counting a request."""
        return self._decide_locally(client, 0) or self._query(client, counted=False)

    def _decide_locally(self, client: str, wanted: int) -> Decision | None:
        """Decide without Redis where possible; None where Redis must be queried."""
        used, ends = self._windows.get(client, (0, 0.0))
        left = ends - time.monotonic()
        if left > 0 and used >= self.limit:
            return Decision(wanted == 0, 0, math.ceil(left))
        return None if self._gateway.available else self._count(client, wanted)

    def _query(self, client: str, *, counted: bool) -> "asyncio.Future[Decision]":
        loop = asyncio.get_running_loop()
        batch = self._batches.get(client)
        if batch is None:
            batch = self._batches[client] = _Batch()
            if len(self._batches) == 1:
                loop.call_soon(self._send)
        waiter: asyncio.Future[Decision] = loop.create_future()
        (batch.takers if counted else batch.watchers).append(waiter)
        return waiter

    def _send(self) -> None:
        batches, self._batches = self._batches, {}
        for client, batch in batches.items():
            self._submit(client, batch)

    def _submit(self, client: str, batch: _Batch) -> None:
        def done(reply: Reply) -> None:
            if isinstance(reply, Exception):
                self._gateway.judge(reply)
                self._settle_locally(client, batch)
            else:
                self._settle(client, batch, *reply)

        words = (len(batch.takers), self.limit, int(self._period * 1000))
        try:
            TAKE.submit(self._gateway, done, self._prefix + client, *words)
        except RedisUnavailable:
            self._settle_locally(client, batch)

    def _settle(self, client: str, batch: _Batch, taken: int, used: int, left_ms: int) -> None:
        reset = max(1, math.ceil(left_ms / 1000))
        if used >= self.limit:
            self._remember(client, used, time.monotonic() + left_ms / 1000)
        for index, waiter in enumerate(batch.takers):
            if not waiter.done():
                remaining = max(0, self.limit - used + taken - index - 1)
                waiter.set_result(Decision(index < taken, remaining, reset))
        for waiter in batch.watchers:
            if not waiter.done():
                waiter.set_result(Decision(True, max(0, self.limit - used), reset))

    def _settle_locally(self, client: str, batch: _Batch) -> None:
        for waiter in batch.takers:
            if not waiter.done():
                waiter.set_result(self._count(client, 1))
        for waiter in batch.watchers:
            if not waiter.done():
                waiter.set_result(self._count(client, 0))

    def _count(self, client: str, wanted: int) -> Decision:
        now = time.monotonic()
        used, ends = self._windows.get(client, (0, 0.0))
        if ends <= now:
            used, ends = 0, now + self._period
        reset = math.ceil(ends - now)
        if wanted and used >= self.limit:
            return Decision(False, 0, reset)
        if wanted:
            used += 1
            self._remember(client, used, ends)
        return Decision(True, self.limit - used, reset)

    def _remember(self, client: str, used: int, ends: float) -> None:
        known = self._windows.get(client)
        self._windows[client] = (used, ends)
        if known is not None and known[1] != ends:
            self._windows.move_to_end(client)
        if len(self._windows) > MAX_CLIENTS:
            self._windows.popitem(last=False)

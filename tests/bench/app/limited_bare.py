"""A bare ASGI application behind the library limits: a fixed window in Redis, asked by redis-py for each request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import bare
import source
from limits import parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

_storage = RedisStorage(f"async+{source.REDIS_URL}", implementation="redispy")
_limiter = FixedWindowRateLimiter(_storage)
_limit = parse(source.RATE_LIMIT)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Serve one request."""
    if scope["type"] == "http" and not await _limiter.hit(_limit, source.client(scope)):
        await send({"type": "http.response.start", "status": 429, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    await bare.app(scope, receive, send)

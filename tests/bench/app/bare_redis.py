"""A bare ASGI application with redis-py: one GET for each request, of the finished body."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import source
from redis.asyncio import Redis

PREFIX = "/api/prices/"
_redis: Redis = Redis.from_url(source.REDIS_URL, **source.redis_options())

Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    """Serve one request."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    symbol = scope["path"].removeprefix(PREFIX)
    key = f"bare:price:{symbol}"
    body: Any = await _redis.get(key)
    outcome = b"HIT"
    if body is None:
        outcome = b"MISS"
        answer = await source.price(symbol)
        if answer is None:
            await _answer(send, 404, b"{}", outcome)
            return
        body = json.dumps(answer, separators=(",", ":")).encode()
        await _redis.set(key, body, ex=source.TTL)
    await _answer(send, 200, body, outcome)


async def _answer(send: Send, status: int, body: bytes, outcome: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-cache", outcome),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await _redis.aclose()
    await send({"type": "lifespan.shutdown.complete"})

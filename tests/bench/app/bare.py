"""The limit: a bare ASGI application that answers with our application's body and headers, and looks nothing up."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

PREFIX = "/api/prices/"
# The headers of an answer of ours, and its body before and behind the symbol.
_TEMPLATE = json.loads(os.environ["BENCH_TEMPLATE"])
_HEADERS = [(name.encode(), value.encode()) for name, value in _TEMPLATE["headers"].items()]
_BEFORE, _BEHIND = (part.encode() for part in _TEMPLATE["body"])


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Serve one request."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = _BEFORE + scope["path"].removeprefix(PREFIX).encode() + _BEHIND
    headers = [*_HEADERS, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

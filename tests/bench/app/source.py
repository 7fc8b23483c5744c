"""What stands for the database of the applications that ours is compared with, and their settings."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import MutableMapping
from functools import cache
from typing import Any

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "")
CA_FILE = os.environ.get("BENCH_CA_FILE", "")
DATABASE = os.environ.get("BENCH_DATABASE", "")
RATE_LIMIT = os.environ.get("BENCH_RATE_LIMIT", "999999999/minute")
ANY_TIME = "2026-01-01T00:00:00.000000Z"
# Whether fastapi-cache2 uses orjson in place of its own coder.
ORJSON = bool(os.environ.get("BENCH_ORJSON"))
# Seconds.
TTL = int(os.environ.get("BENCH_TTL", "300"))


@cache
def _connection() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, check_same_thread=False)


def answer(symbol: str, price: str, updated_at: str) -> dict[str, Any]:
    """Return the answer to a read of a price, in our application's form."""
    return {"success": True, "data": {"symbol": symbol, "price": price, "updatedAt": updated_at}}


def client(scope: MutableMapping[str, Any]) -> str:
    """Return who a request is from: what the proxy says, or else the peer."""
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            return str(value, "latin-1")
    return str(scope["client"][0])


def _query(symbol: str) -> dict[str, Any] | None:
    found = _connection().execute("SELECT price, updated_at FROM bench WHERE symbol = ?", (symbol,)).fetchone()
    if found is None:
        return None
    return answer(symbol, found[0], found[1])


_one_at_a_time = asyncio.Lock()


async def price(symbol: str) -> dict[str, Any] | None:
    """Return the answer to a read of a price, from the database; None if it has none."""
    async with _one_at_a_time:
        return await asyncio.to_thread(_query, symbol)


def redis_options() -> dict[str, Any]:
    """Return what redis-py needs besides the URL: which authority to trust, over TLS."""
    return {"ssl_ca_certs": CA_FILE} if REDIS_URL.startswith("rediss") else {}

"""FastAPI with cashews, as its documentation shows it: the route decorated, Redis behind it."""

from __future__ import annotations

from typing import Any

import source
from cashews import cache
from fastapi import FastAPI, HTTPException

cache.setup(source.REDIS_URL, **source.redis_options())
app = FastAPI()


@app.get("/api/prices/{symbol}")
@cache(ttl=source.TTL, key="price:{symbol}")
async def read_price(symbol: str) -> dict[str, Any]:
    """Answer with the latest price."""
    answer = await source.price(symbol)
    if answer is None:
        raise HTTPException(404)
    return answer

"""FastAPI with fastapi-cache2, as its documentation shows it: the route decorated, Redis behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import source
from fastapi import FastAPI, HTTPException
from fastapi.encoders import jsonable_encoder
from fastapi_cache import Coder, FastAPICache, JsonCoder
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from redis import asyncio as aioredis


class ORJsonCoder(Coder):
    """The faster coder that the documentation shows."""

    @classmethod
    def encode(cls, value: Any) -> bytes:
        """Return what is kept in Redis."""
        options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
        encoded: bytes = orjson.dumps(value, default=jsonable_encoder, option=options)
        return encoded

    @classmethod
    def decode(cls, value: bytes) -> Any:
        """Return what was kept."""
        return orjson.loads(value)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Connect the cache."""
    redis = aioredis.from_url(source.REDIS_URL, **source.redis_options())
    coder = ORJsonCoder if source.ORJSON else JsonCoder
    FastAPICache.init(RedisBackend(redis), prefix=f"fastapi-cache-{coder.__name__}", coder=coder)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/api/prices/{symbol}")
@cache(expire=source.TTL)
async def read_price(symbol: str) -> dict[str, Any]:
    """Answer with the latest price."""
    answer = await source.price(symbol)
    if answer is None:
        raise HTTPException(404)
    return answer

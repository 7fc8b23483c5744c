"""FastAPI with slowapi, as its documentation shows it; it asks Redis by a client that blocks the event loop."""

from __future__ import annotations

from typing import Any

import source
from fastapi import FastAPI, Request
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded


def _client(request: Request) -> str:
    return source.client(request.scope)


limiter = Limiter(key_func=_client, storage_uri=source.REDIS_URL)
app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)


@app.get("/api/prices/{symbol}")
@limiter.limit(source.RATE_LIMIT)
async def read_price(request: Request, symbol: str) -> dict[str, Any]:
    """Answer with a price that nothing was asked for."""
    return source.answer(symbol, "50000.10", source.ANY_TIME)

"""FastAPI without a limiter or cache, to tell what one costs."""

from __future__ import annotations

from typing import Any

import source
from fastapi import FastAPI

app = FastAPI()


@app.get("/api/prices/{symbol}")
async def read_price(symbol: str) -> dict[str, Any]:
    """Answer with a price that nothing was asked for."""
    return source.answer(symbol, "50000.10", source.ANY_TIME)

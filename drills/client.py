"""A cheap HTTP client of one keep-alive connection, for loads that shall not measure their client."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from drills.servers import HOST, TOKEN

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CACHE: Final = re.compile(rb"\r\nx-cache: *(\w+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status, its X-Cache header (empty if none) and its body."""

    status: int
    cache: str
    body: bytes


def read_request(symbol: str, *headers: str) -> bytes:
    """Return the bytes of a price's read."""
    lines = (f"GET /api/prices/{symbol} HTTP/1.1", f"Host: {HOST}", *headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def write_request(symbol: str, price: str) -> bytes:
    """Return the bytes of a price's write."""
    body = json.dumps({"price": price})
    lines = (
        f"PUT /api/prices/{symbol} HTTP/1.1",
        f"Host: {HOST}",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class Connection:
    """One connection, with one request under way at most. Made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Connect to a loopback port."""
        return cls(*await asyncio.open_connection(HOST, port))

    def send(self, request: bytes) -> None:
        """Send a request; `receive` gets its response."""
        self._writer.write(request)

    async def receive(self) -> Answer:
        """Return the next response.

        Raises:
            OSError, EOFError: there is none.
        """
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await self._reader.readexactly(int(length[1])) if length else b""
        cache = _CACHE.search(head)
        return Answer(int(head[9:12]), cache[1].decode() if cache else "", body)

    async def ask(self, request: bytes) -> Answer:
        """Send a request and return its response; errors as `receive`."""
        self.send(request)
        return await self.receive()

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of all does not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]

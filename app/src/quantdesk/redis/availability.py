"""Whether Redis is usable now, and by which connection. Each change is logged once."""

import asyncio
import logging
from typing import Final, Literal

import msgspec

from quantdesk.redis.wire import Wire

log = logging.getLogger(__name__)

Status = Literal["healthy", "unhealthy", "disabled"]


class Health(msgspec.Struct, frozen=True):
    """What is known about Redis. `latency` in milliseconds, null unless available."""

    status: Status
    latency: float | None
    available: bool


class Availability:
    """The connection in use, if there is one, and what is known of it.

    The probe and the replies of commands change it; see `Gateway`.
    """

    def __init__(self, address: tuple[str, int] | None) -> None:
        self.wire: Wire | None = None
        self.address = address
        self.up = False
        self.latency: float | None = None
        # How many connections there have been. What Redis knew on an earlier one may be lost.
        self.connections = 0
        # Digests of the scripts that were sent on the connection in use, and the codes of errors
        # that were logged for it.
        self.scripts: Final[set[str]] = set()
        self.refusals: Final[set[str]] = set()
        # Set when the first attempt has ended, and while there is a connection.
        self.known: Final = asyncio.Event()
        self.connected: Final = asyncio.Event()

    @property
    def health(self) -> Health:
        """What the latest probe or command found."""
        if not self.up:
            return Health("unhealthy", None, False)
        return Health("healthy", self.latency, True)

    def mark_down(self, reason: str) -> None:
        """Note that Redis is not usable; without effect while it is down already."""
        if self.known.is_set() and not self.up:
            return
        self.up = False
        self.latency = None
        self.connected.clear()
        self.known.set()
        log.warning(
            "Redis connection failed, continuing without Redis",
            extra={"reason": reason, **self._where()},
        )

    def mark_up(self, wire: Wire, latency: float) -> None:
        """Note a new connection, on which Redis is usable."""
        self.wire = wire
        self.connections += 1
        self.latency = latency
        self.refusals.clear()
        self.scripts.clear()
        self.connected.set()
        if self.up:
            # The connection was replaced before Redis counted as down.
            return
        self.up = True
        self.known.set()
        log.info("Redis connected", extra={"latency_ms": latency, **self._where()})

    def release(self) -> None:
        """Note that the connection is not used any more."""
        self.wire = None
        self.connected.clear()

    def _where(self) -> dict[str, str]:
        if self.address is None:
            return {}
        return {"redis": f"{self.address[0]}:{self.address[1]}"}

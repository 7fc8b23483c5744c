"""A stop that clients do not notice: announced first, then carried out."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from quantdesk.web.server.http import LimitedHttp
from quantdesk.web.server.systemd import notify

log = logging.getLogger(__name__)

# Seconds that connections get, after SIGTERM, to send one more request and be told to close; that
# the latest of them get, when no more are accepted; and that requests under way get after that.
DRAIN: Final = 2.0
LAST_CALL: Final = 0.5
GRACE: Final = 10


class Server(uvicorn.Server):
    """uvicorn, stopping in two steps.

    On SIGTERM it serves on for a while, and tells each connection with its next response to close,
    so that a client learns of the end from an answer, not from a reset. Then it accepts no more
    connections, finishes the requests under way and closes WebSockets with 1012.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.listen(sockets)
        if self.started:
            log.info("Serving", extra={"host": self.config.host, "port": self.config.port})
            notify("READY=1")

    async def listen(self, sockets: list[socket.socket] | None) -> None:
        """Start the application, and accept connections on the sockets or as configured."""
        await super().startup(sockets)

    def occupied(self) -> bool:
        """Tell whether an HTTP connection is open."""
        return any(isinstance(c, LimitedHttp) for c in self.server_state.connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which raises the signal once more at the end: a stop is no failure.
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("Stopping")
        notify("STOPPING=1")
        self._drain()
        await self.until_closed(DRAIN)
        for server in self.servers:
            server.close()
        await self.until_closed(LAST_CALL)
        await super().shutdown(sockets)

    async def until_closed(self, seconds: float) -> None:
        """Wait until no HTTP connection is open or begins, for so many seconds at most."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline and not self.force_exit:
            if not self.occupied():
                return
            await asyncio.sleep(0.02)

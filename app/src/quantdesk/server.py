"""The HTTP server: uvicorn, with limits on what a client may do, and a way to stop unnoticed."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from quantdesk.errors import ErrorBody, ErrorDetail
from quantdesk.settings import Settings
from quantdesk.sockets import FRAMES

log = logging.getLogger(__name__)

# Seconds that a client has to send a request's head, and how many bytes that may be.
HEAD_TIMEOUT: Final = 10.0
MAX_HEAD: Final = 32 * 1024
# Bytes of one WebSocket message; a longer one closes with 1009.
MAX_MESSAGE: Final = 64 * 1024
# Seconds that connections get, after SIGTERM, to send one more request and be told to close; that
# those which came last get, when no more are taken; and that requests under way get after that.
DRAIN: Final = 2.0
LAST_CALL: Final = 0.5
GRACE: Final = 10
# The first of the sockets that systemd passes on (sd_listen_fds(3)).
LISTEN_FDS_START: Final = 3

_REASONS: Final = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


class _Corked(asyncio.Transport):
    """A transport that sends what is written in one turn of the event loop in one go.

    uvicorn writes a response's head and body apart, and each would be a system call of its own:
    with a cached answer those are what a request costs most.
    """

    __slots__ = ("_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(bytes(data))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._written.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: object = None) -> Any:  # noqa: ANN401  # asyncio's own type
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def _flush(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            if not self._transport.is_closing():
                self._transport.write(data)


class LimitedHttp(HttpToolsProtocol):
    """HTTP/1.1 that does not wait for ever for a head, nor take one of any size."""

    _head_bytes = 0
    _in_head = True
    _completed = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(_Corked(transport, asyncio.get_running_loop()))
        self._timer = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._completed = False
        super().data_received(data)
        if not self._in_head or self._completed:
            # What follows a whole request in the same piece is uvicorn's keep-alive's to end.
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD:
            self._refuse(431, "The head of the request is too large")
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = self._completed = True
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, text: str) -> None:
        if self.transport.is_closing():
            return
        code = "bad_request" if status == 400 else "head_too_large"
        body = msgspec.json.encode(ErrorBody(error=ErrorDetail(code, text)))
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), body)
        )
        self.transport.close()

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DirectFrames(WebSocketsSansIOProtocol):
    """A WebSocket whose application may also write frames that it has encoded once for many."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            # The application's task has been made, but has not begun.
            scope["extensions"][FRAMES] = self

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.fail(1007, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def write(self, data: bytes) -> None:
        """Send finished frames, unless the connection is ending."""
        if not (self.close_sent or self.transport.is_closing()):
            self.transport.write(data)

    def waiting(self) -> int:
        """Return how many bytes the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Cut the connection: a closing handshake would wait behind all that was not read."""
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn, stopping in two steps.

    On SIGTERM it goes on serving for a while, and tells each connection with its next response to
    close; whoever has a connection open thus learns of the end from an answer, not from a reset.
    Then it takes no more, finishes what is under way and closes WebSockets with 1012.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("Serving", extra={"host": self.config.host, "port": self.config.port})
            notify("READY=1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's, which raises the signal once more at the end: a stop is no failure.
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("Stopping")
        notify("STOPPING=1")
        self._drain()
        await self._until_closed(DRAIN)
        for server in self.servers:
            server.close()
        await self._until_closed(LAST_CALL)
        await super().shutdown(sockets)

    async def _until_closed(self, seconds: float) -> None:
        """Wait until no HTTP connection is left, but not longer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline and not self.force_exit:
            if not any(isinstance(c, LimitedHttp) for c in self.server_state.connections):
                return
            await asyncio.sleep(0.02)


def serve(app: ASGIApp, settings: Settings, drain: Callable[[], None]) -> bool:
    """Serve until a signal; return whether it got as far as serving."""
    _raise_open_files()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=LimitedHttp,
        ws=DirectFrames,
        ws_max_size=MAX_MESSAGE,
        # A frame goes to many sockets: compressing it for each would cost more than it saves.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        # Whose word on a client's address counts is decided in front.py.
        proxy_headers=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=GRACE,
        backlog=2048,
    )
    server = Server(config, drain)
    server.run(sockets=passed_sockets())
    return server.started


def passed_sockets() -> list[socket.socket] | None:
    """Return the listening sockets that systemd holds for this process, None if there are none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    fds = range(LISTEN_FDS_START, LISTEN_FDS_START + count)
    return [socket.socket(fileno=fd) for fd in fds] or None


def notify(state: str) -> None:
    """Tell systemd about a change (sd_notify(3)); without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.send(state.encode())


def _raise_open_files() -> None:
    """Allow as many open sockets as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

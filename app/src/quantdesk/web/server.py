"""The HTTP server: uvicorn, with limits on what a client may do, and a way to stop unnoticed."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import StatusLike

from quantdesk.settings import Settings, TlsSettings
from quantdesk.web.bodies import BODY_TIMEOUT
from quantdesk.web.errors import ErrorBody, ErrorDetail
from quantdesk.web.sockets import FRAMES, MAX_CHANNELS

log = logging.getLogger(__name__)

# Seconds that a client has to send a request's head, and how many bytes that may be.
HEAD_TIMEOUT: Final = 10.0
MAX_HEAD: Final = 32 * 1024
# Seconds that it has for a body after which it is cut, whether anybody waits for the body or not:
# more than those who do, and who answer before that.
BODY_LIMIT: Final = BODY_TIMEOUT + 2.0
# Seconds that a client has to read what it was told last, once the connection is closing.
LINGER: Final = 3.0
# Over TLS, which a client cannot be told the end of while it may go on sending: seconds without
# anything from it after which it has been told enough.
QUIET: Final = 0.25
# Bytes of one WebSocket message; a longer one closes with 1009.
MAX_MESSAGE: Final = 64 * 1024
# Seconds between two pings of a WebSocket, and for its answer to each.
PING_INTERVAL: Final = 20.0
PING_TIMEOUT: Final = 20.0
# WebSocket frames that a client may send at once, and per second after that: so many that it can
# leave all its channels for others. Who sends more would keep everybody else waiting: 1008.
FRAME_BURST: Final = 4 * MAX_CHANNELS
FRAME_RATE: Final = 100
# Bytes of frames that are parsed before they are counted.
PIECE: Final = 8 * 1024
# Seconds that connections get, after SIGTERM, to send one more request and be told to close; that
# those which came last get, when no more are taken; and that requests under way get after that.
DRAIN: Final = 2.0
LAST_CALL: Final = 0.5
GRACE: Final = 10
# The first byte of a TLS connection: a record of a handshake.
HANDSHAKE: Final = b"\x16"
# Ciphers of TLS 1.2, as Redis and the balancer offer them.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
# The first of the sockets that systemd passes on (sd_listen_fds(3)).
LISTEN_FDS_START: Final = 3

_TOO_LARGE: Final = "The head of the request is too large"


def _error(status: HTTPStatus, text: str) -> bytes:
    code = "head_too_large" if status == 431 else status.name.lower()
    return msgspec.json.encode(ErrorBody(error=ErrorDetail(code, text)))


class _Deaf(asyncio.Protocol):
    """Reads what a client goes on sending, unheeded, until it has closed or its time is up."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LINGER, transport.abort)
        self._quiet: asyncio.TimerHandle | None = None
        if transport.can_write_eof():
            transport.write_eof()
        else:
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        if not self._transport.can_write_eof():
            self._stop_waiting()
            self._quiet = self._loop.call_later(QUIET, self._transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._stop_waiting()
        self._protocol.connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()


class _Corked(asyncio.Transport):
    """A transport that sends what is written in one turn of the event loop in one go.

    uvicorn writes a response's head and body apart, and each would be a system call of its own:
    with a cached answer those are what a request costs most.
    """

    __slots__ = ("_closing", "_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(bytes(data))

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size() or not self._transport.can_write_eof():
            # Whoever does not read, or does not answer the end of TLS, would keep it open.
            self._loop.call_later(LINGER, self._transport.abort)

    def close_while_sent_to(self, protocol: asyncio.Protocol) -> None:
        """Close towards a client that may be in the middle of sending.

        With input that nobody read, a close is a reset, for which the client may drop what it was
        told last: the reason.
        """
        if self.is_closing():
            return
        self._closing = True
        self._flush()
        self._transport.set_protocol(_Deaf(self._transport, protocol))
        self._transport.resume_reading()

    def abort(self) -> None:
        self._closing = True
        self._written.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

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
    """HTTP/1.1 that does not wait for ever for a request, nor take a head of any size."""

    _corked: _Corked
    # Bytes of the head under way that came in earlier pieces, and of the piece being parsed.
    _head_bytes = 0
    _piece_bytes = 0
    _in_head = True
    _completed = False
    _too_large = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._corked = _Corked(transport, asyncio.get_running_loop())
        super().connection_made(self._corked)
        self._allow(HEAD_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._completed = False
        self._piece_bytes = len(data)
        super().data_received(data)
        if not self._in_head:
            self._allow(BODY_LIMIT)
        elif not self._completed:
            # (What follows a whole request in the same piece is uvicorn's keep-alive's to end.)
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)
            else:
                self._allow(HEAD_TIMEOUT)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self._head_bytes + self._piece_bytes > MAX_HEAD and self._head_size() > MAX_HEAD:
            self._too_large = True
            raise ValueError(_TOO_LARGE)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = self._completed = True
        self._head_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        body = _error(status, text)
        self._corked.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, status.phrase.encode(), len(body), body)
        )
        self._corked.close_while_sent_to(self)

    def _allow(self, seconds: float) -> None:
        """Cut the connection after so many seconds, unless the time is running already."""
        if self._timer is None and not self._corked.is_closing():
            self._timer = self.loop.call_later(seconds, self._corked.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Handshake(ServerProtocol):
    """The server's side of a WebSocket, whose refusals are JSON like all errors."""

    def reject(self, status: StatusLike, text: str) -> Response:
        response = super().reject(status, text)
        response.body = _error(HTTPStatus(status), text.strip())
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(response.body))),
        ):
            del response.headers[name]
            response.headers[name] = value
        return response


class DirectFrames(WebSocketsSansIOProtocol):
    """A WebSocket whose application may also write frames that it has encoded once for many."""

    transport: _Corked

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # passed on
        super().__init__(*args, **kwargs)
        self.conn = _Handshake(max_size=self.config.ws_max_size, logger=self.logger)
        self._allowance = float(FRAME_BURST)
        self._counted = self.loop.time()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            super().data_received(data[start : start + PIECE])
            if self.transport.is_closing():
                return
        if not self.handshake_initiated:
            # The head comes whole from the HTTP protocol, which is less strict.
            self._refuse_handshake()

    def handle_events(self) -> None:
        if self._within_allowance(len(self.conn.events)):
            super().handle_events()
        else:
            self._fail(1008, "too many messages")

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            # The application's task has been made, but has not begun.
            scope["extensions"][FRAMES] = self

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(1007, "not UTF-8")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        told = self.conn.close_sent
        code = 1006 if told is None else told.code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": None})
        self.frames = []
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close_while_sent_to(self)

    async def send(self, message: Any) -> None:  # noqa: ANN401  # uvicorn's type is private
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # That was an answer, too: uvicorn would log an error.
            self.handshake_complete = True

    def shutdown(self) -> None:
        # uvicorn would fail with one that is closing already, and leave the others open.
        if not self.transport.is_closing():
            super().shutdown()

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

    def _within_allowance(self, frames: int) -> bool:
        now = self.loop.time()
        refilled = self._allowance + (now - self._counted) * FRAME_RATE
        self._allowance = min(FRAME_BURST, refilled) - frames
        self._counted = now
        return self._allowance >= 0

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _refuse_handshake(self) -> None:
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        output = b"".join(self.conn.data_to_send())
        if not output:
            output = self.conn.reject(400, "The handshake is not valid").serialize()
        self.transport.write(output)
        self.transport.close_while_sent_to(self)


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return what the listener shows: TLS 1.2 or newer, HTTP/1.1.

    Raises:
        OSError: a file cannot be read, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    return context


class TlsListener:
    """Takes TLS on a socket, and plaintext as well for as long as a balancer is being changed over.

    asyncio's own server does not tell of connections whose handshake is under way, and a stop has
    to wait for those, too: their client sends a request as soon as it can.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext,
        required: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._required = required
        self.beginning: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self.beginning, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                # As asyncio's own server does, when there are no more files to open.
                log.error("A connection cannot be taken", extra={"reason": str(error)})
                await asyncio.sleep(1)
                continue
            task = self._loop.create_task(self._begin(connection))
            self.beginning.add(task)
            task.add_done_callback(self.beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(HEAD_TIMEOUT):
                plain = not self._required and await self._peek(connection) != HANDSHAKE
                tls = None if plain else self._tls
                await self._loop.connect_accepted_socket(self._protocol, connection, ssl=tls)
        except (OSError, TimeoutError):
            connection.close()

    async def _peek(self, connection: socket.socket) -> bytes:
        """Return the first byte that comes, which stays where it is."""
        readable = asyncio.Event()
        self._loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(connection)
        return connection.recv(1, socket.MSG_PEEK)


class Server(uvicorn.Server):
    """uvicorn, stopping in two steps.

    On SIGTERM it goes on serving for a while, and tells each connection with its next response to
    close; whoever has a connection open thus learns of the end from an answer, not from a reset.
    Then it takes no more, finishes what is under way and closes WebSockets with 1012.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], None], tls: TlsSettings | None = None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._tls = tls
        # What is shown, and the listener's, which hands each handshake over to it.
        self.tls_listeners: list[TlsListener] = []
        self._shown = self._context = tls_context(tls) if tls else None
        if self._context is not None:
            self._context.sni_callback = self._show

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None or self._context is None:
            await super().startup(sockets)
        else:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
            await self._take_tls(
                sockets or [_bound(self.config)], self._context, self._tls.required
            )
        if self.started:
            log.info("Serving", extra={"host": self.config.host, "port": self.config.port})
            notify("READY=1")

    def _show(self, connection: ssl.SSLObject, _name: str | None, first: ssl.SSLContext) -> None:
        """Have a handshake show the certificate that was loaded last, whatever name it asks for."""
        if self._shown is not None and self._shown is not first:
            connection.context = self._shown

    def reload(self) -> None:
        """Take a new certificate over, for connections to come; those that are there go on."""
        if self._tls is None:
            return
        try:
            # In a context of its own: one keeps a certificate for each kind of key, and would go on
            # showing one of another kind; and half of a new pair must not replace the old one.
            self._shown = tls_context(self._tls)
        except OSError as error:
            log.error(
                "The certificate cannot be loaded, the old one stays", extra={"reason": str(error)}
            )
        else:
            log.info("Certificate loaded", extra={"file": str(self._tls.cert_file)})

    async def _take_tls(
        self, sockets: list[socket.socket], tls: ssl.SSLContext, required: bool
    ) -> None:
        """Start as uvicorn does, with sockets that take TLS, and plaintext if not required."""
        # An empty list, which is not None: it listens nowhere by itself.
        await super().startup([])
        config, state = self.config, self.server_state

        def protocol() -> LimitedHttp:
            return LimitedHttp(config=config, server_state=state, app_state=self.lifespan.state)

        for listener in sockets:
            self.tls_listeners.append(TlsListener(listener, protocol, tls, required))
        self.servers += self.tls_listeners  # type: ignore[arg-type]  # servers, not asyncio's

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
        """Wait until no HTTP connection is left or begins, but not longer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline and not self.force_exit:
            beginning = any(listener.beginning for listener in self.tls_listeners)
            if not beginning and not any(
                isinstance(c, LimitedHttp) for c in self.server_state.connections
            ):
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
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=PING_TIMEOUT,
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
    server = Server(config, drain, settings.tls)
    server.run(sockets=passed_sockets())
    return server.started


def _bound(config: uvicorn.Config) -> socket.socket:
    """Return a socket that listens where the settings say."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=config.backlog)


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

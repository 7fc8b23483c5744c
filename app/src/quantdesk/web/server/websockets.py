"""WebSockets with limits on messages, and frames that are encoded once for many."""

from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import StatusLike

from quantdesk.web.server.http import error_body
from quantdesk.web.server.transport import BufferedTransport
from quantdesk.web.sockets import FRAMES, MAX_CHANNELS

# Bytes of one WebSocket message; a longer one closes with 1009.
MAX_MESSAGE: Final = 64 * 1024
# Seconds between two pings of a WebSocket, and for its answer to each.
PING_INTERVAL: Final = 20.0
PING_TIMEOUT: Final = 20.0
# WebSocket frames that a client may send at once, and per second after that: so many that it can
# leave all its channels for others. A client that sends more would keep all others waiting: 1008.
FRAME_BURST: Final = 4 * MAX_CHANNELS
FRAME_RATE: Final = 100
# Bytes of frames that are parsed before they are counted.
PIECE: Final = 8 * 1024


class _Handshake(ServerProtocol):
    """The server's side of a WebSocket. Its refusals are JSON like all errors."""

    def reject(self, status: StatusLike, text: str) -> Response:
        response = super().reject(status, text)
        response.body = error_body(HTTPStatus(status), text.strip())
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(response.body))),
        ):
            del response.headers[name]
            response.headers[name] = value
        return response


class DirectFrames(WebSocketsSansIOProtocol):
    """A WebSocket whose application may also write frames that it has encoded once for many."""

    transport: BufferedTransport

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
        sent = self.conn.close_sent
        code = 1006 if sent is None else sent.code
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": None})
        self.frames = []
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close_while_sent_to(self)

    async def send(self, message: Any) -> None:  # noqa: ANN401  # uvicorn's type is private
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # The handshake is answered: uvicorn would log an error otherwise.
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

"""HTTP/1.1 with limits on the time and the size of a request."""

import asyncio
from http import HTTPStatus
from typing import Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quantdesk.web.bodies import BODY_TIMEOUT
from quantdesk.web.errors import ErrorBody, ErrorDetail
from quantdesk.web.server.transport import BufferedTransport

# Seconds that a client has to send a request's head, and how many bytes that may be.
HEAD_TIMEOUT: Final = 10.0
MAX_HEAD: Final = 32 * 1024
# Seconds that it has for a body after which it is cut, whether a handler waits for the body or not:
# more than handlers wait, which answer before that.
BODY_LIMIT: Final = BODY_TIMEOUT + 2.0

_TOO_LARGE: Final = "The head of the request is too large"


def error_body(status: HTTPStatus, text: str) -> bytes:
    """Return the JSON of an error that the framework never sees."""
    code = "head_too_large" if status == 431 else status.name.lower()
    return msgspec.json.encode(ErrorBody(error=ErrorDetail(code, text)))


class LimitedHttp(HttpToolsProtocol):
    """HTTP/1.1 that limits how long a request may take, and the size of its head."""

    _buffered: BufferedTransport
    # Bytes of the head under way that came in earlier pieces, and of the piece being parsed.
    _head_bytes = 0
    _piece_bytes = 0
    _in_head = True
    _completed = False
    _too_large = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        self._buffered = BufferedTransport(transport, asyncio.get_running_loop())
        super().connection_made(self._buffered)
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
        body = error_body(status, text)
        self._buffered.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, status.phrase.encode(), len(body), body)
        )
        self._buffered.close_while_sent_to(self)

    def _allow(self, seconds: float) -> None:
        """Cut the connection after so many seconds, unless the time is running already."""
        if self._timer is None and not self._buffered.is_closing():
            self._timer = self.loop.call_later(seconds, self._buffered.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

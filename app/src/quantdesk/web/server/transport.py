"""How bytes leave: together, and to the last one when a connection closes."""

import asyncio
from typing import Any, Final

# Seconds that a client has to read the last answer, once the connection is closing.
LINGER: Final = 3.0
# Over TLS, where this side cannot announce its end while the client goes on sending: seconds
# without input after which the connection is closed.
QUIET: Final = 0.25


class _Discard(asyncio.Protocol):
    """Discards what a client goes on sending, until it has closed or its time is up."""

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


class BufferedTransport(asyncio.Transport):
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
            # A client that does not read, or does not answer the end of TLS, would keep it open.
            self._loop.call_later(LINGER, self._transport.abort)

    def close_while_sent_to(self, protocol: asyncio.Protocol) -> None:
        """Close a connection whose client may be in the middle of sending.

        With unread input, a close is a reset, at which the client may drop the last answer: the
        reason.
        """
        if self.is_closing():
            return
        self._closing = True
        self._flush()
        self._transport.set_protocol(_Discard(self._transport, protocol))
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

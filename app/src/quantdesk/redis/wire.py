"""One connection to Redis that pipelines by itself.

Commands of one turn of the event loop leave in one write, and replies resolve in the order of
their commands (RESP2, parsed by hiredis). That is 10 to 20 times the commands per second of a pool
in which every command waits for its own round trip.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import hiredis

log = logging.getLogger(__name__)

# Commands under way, and bytes that wait for the peer to read on. Beyond either, none is taken.
MAX_PENDING: Final = 65_536
MAX_UNSENT: Final = 16 * 1024 * 1024

Word: TypeAlias = str | bytes | int
# What Redis answered: bytes, int, None, a list of replies, or an exception of this module.
Reply: TypeAlias = Any
Done: TypeAlias = Callable[[Reply], None]


class WireLost(Exception):
    """The connection ended before the reply came: whether Redis ran the command is not known."""


class WireFull(Exception):
    """Too much is under way already; the command was not sent."""


class ReplyError(Exception):
    """Redis answered a command with an error. `code` is the first word of it, such as WRONGTYPE."""

    def __init__(self, text: str = "") -> None:
        word = text.split(" ", 1)[0]
        well_formed = word.isascii() and word.isalpha() and word.isupper() and 1 < len(word) <= 32
        self.code = word if well_formed else "ERR"
        # The rest may quote what was sent, a password among it.
        super().__init__(self.code)


class _ProtocolError(Exception):
    """The peer does not speak RESP."""


# hiredis returns this one object where it needs more bytes.
_INCOMPLETE: Final = object()


def pack(*words: Word) -> bytes:
    """Return a command as it goes over the wire."""
    return cast("bytes", hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub allows one word only


class Wire(asyncio.Protocol):
    """A connection. Made by `open_wire`; ends by `close`, or by itself, and is then not used again.

    `ended` resolves with the reason when it is over.
    """

    def __init__(self) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self.ended: Final[asyncio.Future[str]] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._reader: Final = hiredis.Reader(
            protocolError=_ProtocolError, replyError=ReplyError, notEnoughData=_INCOMPLETE
        )
        self._pending: Final[deque[Done]] = deque()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._flushing = False
        self._paused = False
        # When the peer last sent something, or when a command was sent after a time of silence.
        self._since = 0.0

    # What callers use.

    @property
    def usable(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self.ended.done()

    @property
    def stalled(self) -> float:
        """Seconds without a sign of life while a reply is due; 0 when none is due."""
        return self._loop.time() - self._since if self._pending else 0.0

    def send(self, packed: bytes, done: Done) -> None:
        """Queue a packed command; `done` is called with its reply, or with why there is none.

        Raises:
            WireLost: the connection has ended.
            WireFull: too much is under way; nothing was queued.
        """
        if self.ended.done():
            raise WireLost
        if len(self._pending) >= MAX_PENDING or self._unsent_bytes > MAX_UNSENT:
            raise WireFull
        if not self._pending:
            self._since = self._loop.time()
        self._pending.append(done)
        self._queue(packed)

    async def call(self, *words: Word) -> Reply:
        """Send one command and return its reply.

        Raises:
            ReplyError: Redis answered with an error.
            WireLost, WireFull: as `send`.
        """
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def done(reply: Reply) -> None:
            # A caller that gave up has cancelled its future; its reply is taken off all the same.
            if answer.done():
                return
            if isinstance(reply, Exception):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)

        self.send(pack(*words), done)
        return await answer

    def close(self, reason: str = "closed") -> None:
        """End the connection at once; commands under way get WireLost."""
        self._end(reason)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._since = self._loop.time()
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                self._take(reply)
                if self.ended.done():
                    return
        except _ProtocolError:
            self._end("not the protocol of Redis")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end((isinstance(exc, OSError) and exc.strerror) or "connection closed by Redis")

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._unsent:
            self._flush()

    # The inside.

    def _take(self, reply: Reply) -> None:
        """Hand a reply to the command that waits for it."""
        if not self._pending:
            self._end("a reply that nobody asked for")
            return
        self._resolve(self._pending.popleft(), reply)

    def _resolve(self, done: Done, reply: Reply) -> None:
        try:
            done(reply)
        except Exception as error:  # noqa: BLE001  # one caller's error must not affect others' replies
            context = {"message": "A callback of a reply from Redis failed", "exception": error}
            self._loop.call_exception_handler(context)

    def _queue(self, packed: bytes) -> None:
        self._unsent.append(packed)
        self._unsent_bytes += len(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._paused or self._transport is None or self.ended.done():
            return
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        self._transport.write(data)

    def _end(self, reason: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._transport is not None:
            self._transport.abort()
        self._unsent.clear()
        pending = list(self._pending)
        self._pending.clear()
        for done in pending:
            self._resolve(done, WireLost(reason))


class Subscription(Wire):
    """A connection in the state of a subscriber: every reply goes to one callback."""

    def __init__(self, received: Callable[[list[Any]], None]) -> None:
        super().__init__()
        self._received = received
        self._listening = False

    def subscribe(self, *words: Word) -> None:
        """Send SUBSCRIBE or PSUBSCRIBE. From now on every reply goes to the callback."""
        self._listening = True
        self._queue(pack(*words))

    def _take(self, reply: Reply) -> None:
        if not self._listening:
            super()._take(reply)
        elif isinstance(reply, list):
            self._resolve(self._received, reply)
        else:
            # An error reply: the subscription was refused.
            self._end(reply.code if isinstance(reply, ReplyError) else "an unexpected reply")


async def open_wire(
    make: Callable[[], Wire],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    within: float,
    greetings: list[tuple[Word, ...]],
) -> Wire:
    """Connect within so many seconds, and send the greetings (AUTH, SELECT), which must succeed.

    Raises:
        OSError, TimeoutError: there is no connection (ssl.SSLError: no trust).
        ReplyError: Redis refused a greeting.
        WireLost: it hung up.
    """
    loop = asyncio.get_running_loop()
    wire: Wire | None = None

    def protocol() -> Wire:
        nonlocal wire
        wire = make()
        return wire

    try:
        async with asyncio.timeout(within):
            await loop.create_connection(
                protocol, host, port, ssl=tls, server_hostname=host if tls else None
            )
            assert wire is not None  # noqa: S101  # create_connection has called the factory
            # All in one write; the first that is refused decides.
            await asyncio.gather(*(wire.call(*words) for words in greetings))
            return wire
    except BaseException:
        # Whatever ended the attempt, cancellation included: its socket must not stay open.
        if wire is not None:
            wire.close()
        raise

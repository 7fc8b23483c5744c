"""The WebSockets of this process: their subscriptions, and the delivery of messages."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

# Bytes that may wait for a reader. One that falls behind further is dropped rather than let grow.
MAX_BEHIND: Final = 1024 * 1024


class Frames(Protocol):
    """Where a socket's finished frames go."""

    def write(self, data: bytes) -> None:
        """Send frames."""

    def waiting(self) -> int:
        """Return how many bytes wait to be sent."""
        ...

    def abort(self) -> None:
        """Cut the connection."""


def text_frame(text: bytes) -> bytes:
    """Return a server's WebSocket frame with a whole text message (RFC 6455, section 5.2)."""
    size = len(text)
    if size < 126:
        return b"\x81" + bytes((size,)) + text
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + text
    return b"\x81\x7f" + size.to_bytes(8, "big") + text


class Subscriber:
    """One WebSocket. What is pushed in one turn of the event loop leaves in one write.

    `ended` is called when the session that it was opened with ends.
    """

    __slots__ = ("channels", "ended", "frames", "outbox")

    def __init__(self, frames: Frames, ended: Callable[[], None] = lambda: None) -> None:
        self.frames: Final = frames
        self.ended: Final = ended
        self.outbox: list[bytes] = []
        self.channels: set[str] = set()


class Hub:
    """Delivers messages to the subscribers of this process."""

    def __init__(self) -> None:
        self.open = 0
        self.delivered = 0
        self.dropped = 0
        self._channels: dict[str, set[Subscriber]] = {}
        # Subscribers by the name of their session.
        self.sessions: dict[str, set[Subscriber]] = {}
        # For each handshake under way, the names of the sessions that have ended meanwhile.
        self._handshakes: list[set[str]] = []
        self._dirty: list[Subscriber] = []

    def join_session(self, subscriber: Subscriber, session: str) -> None:
        """Have a subscriber end together with its session."""
        self.sessions.setdefault(session, set()).add(subscriber)

    def leave_session(self, subscriber: Subscriber, session: str) -> None:
        """Take a subscriber out of its session."""
        members = self.sessions.get(session)
        if members is not None:
            members.discard(subscriber)
            if not members:
                del self.sessions[session]

    @contextmanager
    def collect_ended(self) -> Iterator[set[str]]:
        """Collect the sessions that end meanwhile: a socket about to join one misses its end."""
        ended: set[str] = set()
        self._handshakes.append(ended)
        try:
            yield ended
        finally:
            # By identity: sets with the same names are equal.
            self._handshakes = [noted for noted in self._handshakes if noted is not ended]

    def end_session(self, session: str) -> None:
        """End the subscribers of a session."""
        for ended in self._handshakes:
            ended.add(session)
        for subscriber in list(self.sessions.get(session, ())):
            subscriber.ended()

    def subscribe(self, subscriber: Subscriber, channel: str) -> None:
        """Have a subscriber receive a channel's messages; again changes nothing."""
        subscriber.channels.add(channel)
        self._channels.setdefault(channel, set()).add(subscriber)

    def unsubscribe(self, subscriber: Subscriber, channel: str) -> None:
        """Undo `subscribe`; without a subscription nothing happens."""
        subscriber.channels.discard(channel)
        listeners = self._channels.get(channel)
        if listeners is not None:
            listeners.discard(subscriber)
            if not listeners:
                del self._channels[channel]

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a subscriber."""
        for channel in list(subscriber.channels):
            self.unsubscribe(subscriber, channel)
        subscriber.outbox.clear()

    def deliver(self, channel: str, text: bytes) -> None:
        """Send a message to all subscribers of a channel. It is encoded once for all of them."""
        listeners = self._channels.get(channel)
        if not listeners:
            return
        frame = text_frame(text)
        self.delivered += len(listeners)
        for subscriber in listeners:
            self._push(subscriber, frame)

    def broadcast(self, message: Callable[[str], bytes]) -> None:
        """Send every subscriber of every channel what `message` makes of the channel's name."""
        for channel in list(self._channels):
            self.deliver(channel, message(channel))

    def answer(self, subscriber: Subscriber, text: bytes) -> None:
        """Send a message to one subscriber, behind what it is being sent already."""
        self._push(subscriber, text_frame(text))

    def _push(self, subscriber: Subscriber, frame: bytes) -> None:
        if not subscriber.outbox:
            if not self._dirty:
                asyncio.get_running_loop().call_soon(self._flush)
            self._dirty.append(subscriber)
        subscriber.outbox.append(frame)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for subscriber in dirty:
            outbox = subscriber.outbox
            if not outbox:
                continue
            subscriber.outbox = []
            if subscriber.frames.waiting() > MAX_BEHIND:
                self.dropped += 1
                self.leave(subscriber)
                subscriber.frames.abort()
            else:
                subscriber.frames.write(b"".join(outbox))

"""Messages between the instances of one environment, over Redis' pub/sub.

Every message carries its sender and a number that grows by one, so that a receiver sees when one is
missing; a heartbeat carries the number in times of silence. Delivery is at most once: a missing
message is not sent again, but subscribers are notified of the gap.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from quantdesk.redis.errors import CONNECTION_ERRORS, RedisUnavailable, describe
from quantdesk.redis.gateway import Gateway
from quantdesk.redis.keys import escape_glob
from quantdesk.redis.wire import Reply, Subscription, pack
from quantdesk.web.hub import Hub

log = logging.getLogger(__name__)

RESUBSCRIBE_DELAY: Final = 0.25
HEARTBEAT: Final = 1.0
# Seconds after which a subscription that does not even receive its own heartbeat is replaced, and
# after which another instance without a heartbeat counts as gone.
SILENCE: Final = 3.5
# Seconds after which an instance that has gone is forgotten.
MEMORY: Final = 3600.0

RESET_STATS: Final = b"reset-stats"
# About the name of a session that was ended before its time.
SESSION_ENDED: Final = b"session-ended"
_BEAT: Final = b"beat"
# The sender, the message's number, and its content. Anything else on the channels is ignored.
_MESSAGE: Final = re.compile(rb"([0-9a-f]{16}) ([0-9]{1,18}) (.+)", re.DOTALL)


class _Peer:
    """Another instance, as known from its messages."""

    __slots__ = ("certain", "number", "seen")

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen = time.monotonic()
        # False after an interruption, until its next message.
        self.certain = True


class Bus:
    """The channels below an environment's prefix: `control`, and `ws:…` for subscribers' messages.

    Subscribers of this process get messages without Redis; those of other instances through it.
    """

    def __init__(self, gateway: Gateway, hub: Hub, env_name: str) -> None:
        self._prefix: Final = f"qd:{env_name}:"
        self._pattern: Final = f"{escape_glob(f'qd:{env_name}')}:*"
        self._control: Final = f"{self._prefix}control"
        self._relayed: Final = f"{self._prefix}ws:".encode()
        self._gateway = gateway
        self._hub = hub
        self._source: Final = uuid.uuid4().hex[:16].encode()
        self._number = 0
        self._peers: dict[bytes, _Peer] = {}
        self._echo = 0.0
        # Since when it is subscribed without a break, and whether there were subscribers before.
        self._since = 0.0
        self._late = False
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._refused = False
        self.subscribed = False
        self.received = 0
        self.gaps = 0

    def listen(self, topic: bytes, listener: Callable[[bytes], None]) -> None:
        """Have `listener` called with the subject of each announcement of another instance."""
        self._listeners[topic] = listener

    def publish(self, channel: str, text: bytes) -> None:
        """Deliver a subscribers' message here at once, and on the other instances through Redis."""
        self._hub.deliver(channel, text)
        self._number += 1
        self._send(f"{self._prefix}ws:{channel}", text)

    def announce(self, topic: bytes, about: bytes = b"") -> None:
        """Send an announcement to the other instances, as far as Redis reaches them."""
        self._number += 1
        self._send(self._control, b"%b %b" % (topic, about) if about else topic)

    async def start(self) -> None:
        """Subscribe now, and again whenever Redis has been away."""
        if self._gateway.enabled:
            self._tasks = [
                asyncio.create_task(self._stay_subscribed(), name="redis-bus"),
                asyncio.create_task(self._beat(), name="redis-heartbeat"),
            ]

    async def stop(self) -> None:
        """End the subscription."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Sending.

    def _send(self, channel: str, body: bytes) -> None:
        def done(reply: Reply) -> None:
            # A message that was not sent leaves a gap in the numbers, which receivers detect.
            if isinstance(reply, Exception):
                self._gateway.judge(reply)

        message = b"%b %d %b" % (self._source, self._number, body)
        try:
            self._gateway.submit(pack("PUBLISH", channel, message), done)
        except RedisUnavailable:
            return

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            self._send(self._control, _BEAT)
            self._review_peers()

    def _review_peers(self) -> None:
        now = time.monotonic()
        for source, peer in list(self._peers.items()):
            if self.subscribed and not peer.certain and now - peer.seen > SILENCE:
                # It has gone, and its last messages may have been lost.
                peer.certain = True
                self._report_gap(None)
            if now - peer.seen > MEMORY:
                del self._peers[source]

    # Receiving.

    async def _stay_subscribed(self) -> None:
        while True:
            wire = await self._gateway.connected()
            subscription: Subscription | None = None
            try:
                subscription = await self._gateway.subscription(self._handle)
                subscription.subscribe("PSUBSCRIBE", self._pattern)
                self._echo = time.monotonic()
                while not (wire.ended.done() or subscription.ended.done()):
                    ends = {wire.ended, subscription.ended}
                    await asyncio.wait(ends, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                    if time.monotonic() - self._echo > SILENCE:
                        break
                if subscription.ended.done() and subscription.ended.result() == "NOPERM":
                    self._log_refusal("NOPERM")
            except CONNECTION_ERRORS as error:
                self._log_refusal(describe(error))
            finally:
                self._interrupted()
                if subscription is not None:
                    subscription.close()
            await asyncio.sleep(RESUBSCRIBE_DELAY)

    def _log_refusal(self, reason: str) -> None:
        if not self._refused:
            self._refused = True
            log.warning("There is no subscription to Redis", extra={"reason": reason})

    def _interrupted(self) -> None:
        self.subscribed = False
        for peer in self._peers.values():
            peer.certain = False

    def _handle(self, reply: list[Reply]) -> None:
        if reply[0] == b"pmessage":
            self._message(reply[2], reply[3])
        elif reply[0] == b"psubscribe":
            self.subscribed = True
            self._refused = False
            self._since = time.monotonic()
            self._late = self._hub.open > 0
            for peer in self._peers.values():
                peer.seen = self._since

    def _message(self, channel: bytes, message: bytes) -> None:
        found = _MESSAGE.fullmatch(message)
        if found is None:
            log.debug("A message could not be read")
            return
        source, number, body = found.groups()
        if source == self._source:
            self._echo = time.monotonic()
            return
        self._follow(source, int(number), beat=body == _BEAT)
        if body == _BEAT:
            return
        self.received += 1
        if channel.startswith(self._relayed):
            self._hub.deliver(channel[len(self._relayed) :].decode(errors="replace"), body)
            return
        topic, _, about = body.partition(b" ")
        if (listener := self._listeners.get(topic)) is not None:
            listener(about)

    def _follow(self, source: bytes, number: int, *, beat: bool) -> None:
        """Compare a message's number with the one before; report a gap."""
        now = time.monotonic()
        peer = self._peers.get(source)
        if peer is None:
            self._peers[source] = _Peer(number)
            sent_before = number > (0 if beat else 1)
            if sent_before and (self._late or now - self._since > SILENCE):
                # Not new, though unknown here: subscribers may have missed its earlier messages.
                self._report_gap(None)
            return
        missed = number - peer.number - (0 if beat else 1)
        peer.number, peer.seen, peer.certain = max(number, peer.number), now, True
        if missed > 0:
            self._report_gap(missed)

    def _report_gap(self, missed: int | None) -> None:
        """Notify every subscriber: the channels of the lost messages are not known."""
        self.gaps += 1
        log.warning("Messages of another instance were lost", extra={"missed": missed})
        self._hub.broadcast(
            lambda channel: msgspec.json.encode(
                {"channel": channel, "event": "gap", "data": {"missed": missed}}
            )
        )

"""What the instances of one environment tell each other through Redis' pub/sub."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Final, Literal

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError, ResponseError

from quantdesk.gateway import Gateway, RedisRefused, RedisUnavailable, describe

log = logging.getLogger(__name__)

RESUBSCRIBE_DELAY: Final = 0.5

Topic = Literal["invalidate", "reset-stats"]


class Announcement(msgspec.Struct, frozen=True):
    """One message: who sent it, what it is about, and which key it concerns, if any."""

    source: str
    topic: Topic
    key: str = ""


_decoder = msgspec.json.Decoder(Announcement)


class Bus:
    """A channel below the environment's prefix.

    Delivery is at most once: nothing that must be right may depend on it alone.
    """

    def __init__(self, gateway: Gateway, env_name: str) -> None:
        self.channel: Final = f"qd:{env_name}:control"
        self._gateway = gateway
        self._source = uuid.uuid4().hex
        self._listeners: dict[Topic, Callable[[str], None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._refused = False

    def listen(self, topic: Topic, listener: Callable[[str], None]) -> None:
        """Have `listener` called with the key of each announcement of another instance."""
        self._listeners[topic] = listener

    def encode(self, topic: Topic, key: str = "") -> bytes:
        """Return the message that announces `topic`, to be published on `channel`."""
        return msgspec.json.encode(Announcement(self._source, topic, key))

    async def announce(self, topic: Topic, key: str = "") -> bool:
        """Tell the other instances; return whether Redis took the message."""
        message = self.encode(topic, key)
        try:
            await self._gateway.run(lambda redis: redis.publish(self.channel, message))
        except (RedisUnavailable, RedisRefused):
            return False
        return True

    async def start(self) -> None:
        """Subscribe now, and again whenever Redis has been away."""
        self._task = asyncio.create_task(self._stay_subscribed(), name="redis-bus")

    async def stop(self) -> None:
        """End the subscription."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _stay_subscribed(self) -> None:
        while True:
            redis = await self._gateway.wait_up()
            try:
                await self._listen(redis)
            except (RedisError, OSError, TimeoutError) as error:
                # A lost connection is the gateway's to judge and report; a missing right is not.
                if not isinstance(error, ResponseError):
                    self._gateway.suspect()
                elif not self._refused:
                    self._refused = True
                    log.warning("Redis refuses the subscription", extra={"reason": describe(error)})
                await asyncio.sleep(RESUBSCRIBE_DELAY)

    async def _listen(self, redis: Redis) -> None:
        """Listen until Redis goes down.

        The gateway's probe decides when that is: a subscription whose peer has vanished hears
        nothing, and would go on hearing nothing.
        """
        pubsub = redis.pubsub()
        reading = asyncio.create_task(self._read(pubsub))
        down = asyncio.create_task(self._gateway.wait_down())
        try:
            await asyncio.wait({reading, down}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            down.cancel()
            await asyncio.gather(reading, down, return_exceptions=True)
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # untyped in redis-py

    async def _read(self, pubsub: PubSub) -> None:
        await pubsub.subscribe(self.channel)
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["type"] == "subscribe":
                self._refused = False
            elif message["type"] == "message":
                self._hear(message["data"])

    def _hear(self, data: bytes) -> None:
        try:
            announcement = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            log.debug("An announcement could not be read")
            return
        listener = self._listeners.get(announcement.topic)
        if listener is not None and announcement.source != self._source:
            listener(announcement.key)

"""Many WebSocket subscribers in one process, each of which checks what it is sent: the clients of drills.fanout.

    python -m drills.listeners PORT SUBSCRIBERS CHANNEL...

Each subscriber subscribes to all channels. A message's price is its channel's running number, so a subscriber sees
what is missing, and whether it was told (a message with `"event": "gap"` on that channel beforehand). Lines of JSON go
to standard output: one when all are subscribed, one now and then with how far the slowest is, and the result. A line on
standard input, with each channel's last number, ends the run as soon as all has come, or nothing comes any more.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict
from typing import Final

import msgspec
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from drills.sequence import Checker, Tally
from drills.servers import HOST, TOKEN

# Seconds between two lines on how far the slowest subscriber is.
REPORT_INTERVAL: Final = 0.05
# Seconds without a message after which what is missing is missing; heartbeats tell a gap sooner.
SILENCE: Final = 6.0
FENCE: Final = json.dumps({"action": "fence", "channel": "price:NONE"}).encode()


class _Data(msgspec.Struct):
    price: str = ""


class _Message(msgspec.Struct):
    channel: str = ""
    event: str = ""
    success: bool = True
    data: _Data | None = None


_decoder = msgspec.json.Decoder(_Message)


class Subscriber(WSListener):
    """One WebSocket."""

    def __init__(self, channels: list[str]) -> None:
        self.checker: Final = Checker(channels)
        self.ready: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe; the error that answers the last message shows that all before it was heard."""
        for channel in self.checker.channels:
            transport.send(WSMsgType.TEXT, json.dumps({"action": "subscribe", "channel": channel}).encode())
        transport.send(WSMsgType.TEXT, FENCE)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Check one message."""
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = _decoder.decode(frame.get_payload_as_memoryview())
        if message.event == "gap":
            self.checker.gap(message.channel)
        elif message.data is not None:
            self.checker.message(message.channel, int(message.data.price))
        elif not message.success and not self.ready.done():
            self.ready.set_result(None)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Count a connection that the application closed."""
        self.checker.tally.closed += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed before it was subscribed"))


async def subscribe(port: int, count: int, channels: list[str]) -> list[Subscriber]:
    """Open and subscribe that many."""
    subscribers: list[Subscriber] = []
    for _ in range(count):
        _, listener = await ws_connect(
            lambda: Subscriber(channels),
            f"ws://{HOST}:{port}/ws",
            extra_headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert isinstance(listener, Subscriber)
        subscribers.append(listener)
    async with asyncio.timeout(30):
        await asyncio.gather(*(subscriber.ready for subscriber in subscribers))
    return subscribers


def tell(**fields: object) -> None:
    """Write one line."""
    print(json.dumps(fields), flush=True)


async def run(port: int, count: int, channels: list[str]) -> None:
    """Subscribe, report, and end as standard input says."""
    subscribers = await subscribe(port, count, channels)
    # What there is now lives until the end; a collection would only stop the reading.
    gc.collect()
    gc.freeze()
    tell(ready=True)
    ending = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    last: dict[str, int] | None = None
    changed, total = time.monotonic(), -1
    while True:
        await asyncio.sleep(REPORT_INTERVAL)
        progress = [subscriber.checker.progress for subscriber in subscribers]
        tell(least=min(progress), closed=sum(subscriber.checker.tally.closed for subscriber in subscribers))
        if sum(progress) != total:
            changed, total = time.monotonic(), sum(progress)
        if last is None and ending.done():
            if not ending.result():
                return
            last = json.loads(ending.result())
        if last is not None and (min(progress) >= sum(last.values()) or time.monotonic() - changed > SILENCE):
            break
    result = Tally()
    for subscriber in subscribers:
        closed = subscriber.checker.tally.closed
        subscriber.checker.finish(last)
        result.add(subscriber.checker.tally)
        if closed:
            result.examples.append("a connection was closed by the application")
    tell(result=asdict(result), last=changed)


def main() -> None:
    """Read the command line and run."""
    port, count, *channels = sys.argv[1:]
    uvloop.run(run(int(port), int(count), channels))


if __name__ == "__main__":
    main()

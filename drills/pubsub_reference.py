"""What redis-py's own asyncio listener costs: receive messages by `pubsub.listen()`, and do nothing with them.

    python -m drills.pubsub_reference PORT CHANNEL COUNT

Prints `ready` when it is subscribed, and JSON with its seconds of processor time when COUNT messages have come.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import uvloop
from redis.asyncio import Redis

from drills.servers import HOST


def cpu_seconds() -> float:
    """Return this process' processor time so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run(port: int, channel: str, count: int) -> None:
    """Receive."""
    redis = Redis(host=HOST, port=port)
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(channel)
    print("ready", flush=True)
    received, began, cpu = 0, 0.0, 0.0
    async for _ in pubsub.listen():
        if not received:
            began, cpu = time.monotonic(), cpu_seconds()
        received += 1
        if received == count:
            break
    print(json.dumps({"cpu": cpu_seconds() - cpu, "seconds": time.monotonic() - began}), flush=True)
    await pubsub.aclose()
    await redis.aclose()


if __name__ == "__main__":
    uvloop.run(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

"""Time the takeover of a large server against a bare restart of the same one.

    python tests/bench_adoption.py [MEGABYTES]      1024 unless said; twice that is written to the disk

Both on this machine, one after the other, with real servers and random values, which do not compress. Prints how long
writes waited and their ratio to the restart, with the data compared by digest and by count.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adoption_host import ADMIN, OLD, Host

SIZE = 4096
BATCH = 1000


def fill(host: Host, megabytes: int) -> None:
    """Write so many megabytes of random values."""
    with host.old() as client:
        for first in range(0, megabytes * 256, BATCH):
            client.pipeline([["SET", f"key:{first + n}", os.urandom(SIZE // 2).hex()] for n in range(BATCH)])


def gap(ready: Callable[[], bool], work: Callable[[], object]) -> float:
    """Return the longest time in seconds for which `ready` was false while the work was done."""
    longest, stop = [0.0], threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while True:
            if ready():
                longest[0] = max(longest[0], time.monotonic() - last)
                last = time.monotonic()
                if stop.is_set():
                    return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    stop.set()
    watcher.join()
    return longest[0]


def serves(host: Host) -> bool:
    """Return whether one of the two servers answers with its data."""
    return host.asks(host.old_port, OLD) or host.asks(host.new_port, ADMIN, "admin")


def restart(host: Host) -> None:
    """Restart the old server as systemd does."""
    host.old_service.stop()
    host.old_service.start(60)


def measure(folder: Path, megabytes: int, verify: str) -> str:
    """Return in words how long a restart and a takeover took."""
    host = Host(folder, old_settings={"save": "3600 1"}, together=True, maxmemory=f"{megabytes * 2}mb")
    try:
        print(f"Writing {megabytes} MB", flush=True)
        fill(host, megabytes)
        bare = gap(lambda: serves(host), lambda: restart(host))
        adoption = host.adoption()
        adoption.plan.verify = verify
        adoption.plan.old["used_memory"] = megabytes << 20
        results: list[dict[str, Any]] = []
        silent = gap(lambda: serves(host), lambda: results.append(adoption.run()))
    finally:
        host.reap()
    seconds = results[0]["seconds"]
    return (
        f"compared by {verify}: a bare restart is {bare:.1f} s; the takeover: nobody is served for {silent:.1f} s "
        f"({silent / bare:.2f} times that), writes wait {seconds['writes_waited']:.1f} s "
        f"({seconds['writes_waited'] / bare:.2f} times); {seconds}"
    )


def main(megabytes: int) -> None:
    """Measure and print."""
    for verify in ("digest", "count"):
        with tempfile.TemporaryDirectory(prefix="bench-adoption.") as name:
            print(measure(Path(name), megabytes, verify), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)

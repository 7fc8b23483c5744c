"""Record how busy the machine is and what each part costs, and have each run of Ansible record its tasks."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType


def processor() -> tuple[float, float]:
    """Return the seconds that all processors have worked and could have worked since the boot (proc(5), /proc/stat)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    # idle and iowait are the fourth and fifth; guest time is in user time already.
    total, idle = sum(ticks[:8]), ticks[3] + ticks[4]
    hertz = os.sysconf("SC_CLK_TCK")
    return (total - idle) / hertz, total / hertz


class Recorder:
    """Writes to a folder, until the block ends: samples of the processors, parts, and Ansible's tasks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a run of Ansible must have in its environment; besides, record_tasks among its callbacks."""
        return {"TEST_TIMES": str(self._folder)}

    def part(self, name: str, began: float, ended: float, cpu: float) -> None:
        """Record that a part has ended: seconds since the start, and seconds of processor on the controller."""
        self._write("parts", {"part": name, "began": began, "ended": ended, "cpu": cpu})

    def __enter__(self) -> Recorder:
        """Forget the run before, and begin."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the samples."""
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            busy, total = processor()
            self._write("processor", {"at": time.time(), "busy": busy, "total": total})
            if self._over.wait(5):
                return

    def _write(self, name: str, line: dict[str, object] | dict[str, float]) -> None:
        with open(self._folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

"""Record which tasks of a run changed something, or end the run at one of them as if the controller had died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: interrupt
type: notification
short_description: for drills/interrupt.py
description:
  - With INTERRUPT_RECORD in the environment, writes a line to that file for each host of a task that changed something.
  - With INTERRUPT_AT, a file with such lines, ends its process group by SIGKILL at the first of them that it meets, and
    writes that one to the file INTERRUPT_MET. With INTERRUPT_SECONDS that is so long after the host began with the
    task, otherwise when it has ended, before anything follows from it.
requirements: []
"""


class CallbackModule(CallbackBase):
    """One of both, for the whole run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "interrupt"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._record = os.environ.get("INTERRUPT_RECORD")
        at = os.environ.get("INTERRUPT_AT")
        self._places = set(Path(at).read_text(encoding="utf-8").splitlines()) if at else set()
        self._seconds = os.environ.get("INTERRUPT_SECONDS")
        self.disabled = not (self._record or self._places)

    def _place(self, host: Any, task: Any) -> str:
        # A task has no other name that stays the same from run to run.
        return json.dumps({"host": host.get_name(), "task": task.get_name(), "path": task.get_path()})

    def _die(self, place: str) -> None:
        with open(os.environ["INTERRUPT_MET"], "w", encoding="utf-8") as file:
            file.write(place)
        group = os.getpgid(0)
        # Each worker has a session of its own, and would wait for ever for the one that started it.
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8").split():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(child)) != group:
                    os.killpg(os.getpgid(int(child)), signal.SIGKILL)
        os.killpg(group, signal.SIGKILL)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        place = self._place(host, task)
        if self._seconds and place in self._places:
            threading.Timer(float(self._seconds), self._die, [place]).start()

    def v2_runner_on_ok(self, result: Any) -> None:
        if not result.is_changed():
            return
        place = self._place(result.host, result.task)
        if self._record:
            with open(self._record, "a", encoding="utf-8") as file:
                file.write(place + "\n")
        elif place in self._places and not self._seconds:
            self._die(place)

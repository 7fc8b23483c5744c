"""Record when each task of a playbook ran, for `make test-times`."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record_tasks
type: notification
short_description: write a line of JSON for each play and task to the folder TEST_TIMES
description:
  - Each line has the time since the epoch, in seconds, and what began then.
  - Nothing is recorded where the environment has no TEST_TIMES.
requirements: []
"""


class CallbackModule(CallbackBase):
    """Writes one file for each run of ansible-playbook: many of them run at once."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._folder = os.environ.get("TEST_TIMES")
        self.disabled = self._folder is None

    def _write(self, kind: str, **more: Any) -> None:
        line = json.dumps({"at": time.time(), "kind": kind, **more})
        with open(f"{self._folder}/ansible-{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def v2_playbook_on_start(self, playbook: Any) -> None:
        # pytest says here which test started the run.
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        scenario = os.environ.get("MOLECULE_SCENARIO_NAME", "")
        self._write("run", playbook=playbook._file_name, test=test, scenario=scenario, parent=os.getppid())

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._write("play", name=play.get_name())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._write("task", name=task.get_name(), action=task.action)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._write("task", name=task.get_name(), action=task.action)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._write("end")

"""Load once what each task of a run would load again: filters, tests and the plugins of most tasks.

A task is a process of its own, forked from the run's: what that one has loaded, each of them has. Left alone, the first
template in every task loads all filters and tests, a third of the controller's work.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar, trust_as_template

DOCUMENTATION = """
name: load_once
type: notification
short_description: load the plugins that tasks use before the first of them
description:
  - Has no effect on what a task does, nor on what a host is sent.
requirements: []
"""


class CallbackModule(CallbackBase):
    """Works before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "load_once"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Load them, and keep their memory from being copied."""
        if gc.get_freeze_count():
            return
        # Any filter and any test, as looking for one loads them all: Ansible's, and the collection's.
        Templar(loader=playbook._loader).template(trust_as_template("{{ 1 | int is eq 1 }}"))
        loader.filter_loader.get("quantdesk.redis.redis_bytes")
        loader.test_loader.get("quantdesk.redis.port")
        for name in ("ssh", "local"):
            loader.connection_loader.get(name, class_only=True)
        loader.become_loader.get("sudo", class_only=True)
        loader.shell_loader.get("sh", class_only=True)
        for name in ("quantdesk.redis.checks", "command", "copy", "normal", "template"):
            loader.action_loader.get(name, class_only=True)
        for name in ("quantdesk.redis.redis_instance", "env", "file", "template"):
            loader.lookup_loader.get(name, class_only=True)
        # What is there now stays. Each process that looks for garbage in it would write on all of these pages, which a
        # fork then has to copy; and a task ends before it has made much.
        gc.collect()
        gc.freeze()
        os.register_at_fork(after_in_child=gc.disable)

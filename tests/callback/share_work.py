"""Do once what each task of each run would do again: load Ansible's plugins, and pack its modules.

A task is a process of its own, forked from the run's: what that one has loaded, each of them has. Left alone, the first
template in every task loads all filters and tests, every run packs each module with all that it imports, and looks for
results a thousand times a second: together a third of the controller's work. What a host is sent is the same.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar, trust_as_template

DOCUMENTATION = """
name: share_work
type: notification
short_description: let all runs of ansible-playbook share packed modules, in the folder TEST_MODULES
description:
  - Modules are found there by name, so a folder serves for as long as no module changes, such as for one `make test`.
  - Nothing is shared where the environment has no TEST_MODULES.
requirements: []
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible ships no types
    """Works before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "share_work"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: Any) -> None:
        folder = os.environ.get("TEST_MODULES")
        if folder is None:
            return
        # A test that brings a module of its own must not meet the project's of that name, nor the other way round.
        folder = f"{folder}/{hashlib.sha256(str(constants.DEFAULT_MODULE_PATH).encode()).hexdigest()[:12]}"
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Ansible locks each module there, so runs wait for each other. At the end the link goes, not the folder.
        Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(folder)
        # How often a run looks whether a task has ended: a thousand times a second costs more than all that it finds.
        constants.DEFAULT_INTERNAL_POLL_INTERVAL = 0.01
        # Any filter and any test, as looking for one loads them all.
        Templar(loader=playbook._loader).template(trust_as_template("{{ 1 | int is eq 1 }}"))
        for name in ("ssh", "local"):
            loader.connection_loader.get(name, class_only=True)
        loader.become_loader.get("sudo", class_only=True)
        loader.shell_loader.get("sh", class_only=True)
        for name in ("checks", "command", "copy", "normal", "template"):
            loader.action_loader.get(name, class_only=True)
        for name in ("env", "file", "template"):
            loader.lookup_loader.get(name, class_only=True)

"""Describe the Redis servers of a host that this bundle did not make, as host_vars for it: a file on the controller.

    adoption_file:
      host: redis1
      survey: "{{ redis_survey's result }}"
      folder: output/adoption    # for HOST.yml
      memory: 3900               # the host's, in MiB, for servers without a limit
      version: 7.0.15            # the Redis that the role installs

The file describes each server as it is, in the inputs of the role redis; beside each line stand the bundle's default
and the controls of docs/controls.md that the old server fails. What cannot be kept, or not adopted at all, is named
there and on the terminal. Passwords are never in it. A file that is there already and differs is left alone: the new
one is HOST.yml.new.

It runs on the controller alone and connects to no host.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.files import CannotWrite, place
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.judgement import judge
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.rendering import (
    as_host_vars,
    as_next_steps,
    as_summary,
)
from ansible_collections.quantdesk.redis.plugins.plugin_utils.adoption.survey import number


class ActionModule(ActionBase):
    """Runs on the controller alone."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("host", "survey", "folder", "memory", "version"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print what was found and write the file; raises AnsibleActionFail where it cannot be written."""
        super().run(tmp, task_vars)
        arguments = self._task.args
        version = str(arguments.get("version") or "7.0")
        host = judge(str(arguments["host"]), arguments["survey"], number(arguments.get("memory", 0)), version)
        summary = as_summary(host)
        result = {
            "changed": False,
            "file": "",
            "outcome": "nothing to write",
            "adoptable": host.adoptable_labels,
            "refused": host.refused_labels,
            "summary": summary,
        }
        steps: list[str] = []
        if (text := as_host_vars(host)) is not None:
            check = bool(self._task.check_mode)
            folder = Path(os.path.normpath(Path(str(arguments["folder"])).expanduser()))
            try:
                path, outcome = place(folder, host.name, text, check)
            except CannotWrite as error:
                raise AnsibleActionFail(str(error)) from error
            steps = as_next_steps(host, path, outcome, check)
            # The file is on the controller, but it was not there before.
            result |= {"changed": outcome != "unchanged", "file": str(path), "outcome": outcome}
        # At once, so that hosts do not mix.
        self._display.display("\n".join(["", *summary, *steps]))
        return result

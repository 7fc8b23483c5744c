"""Refuse a run that Ansible's own options and settings would take apart, before its first task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible import constants, context
from ansible.errors import ExitCode
from ansible.plugins.callback import CallbackBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: whole_runs
type: notification
short_description: refuse a run that Ansible's own options and settings would take apart
description:
  - The preflight checks all hosts before anything changes, and each step relies on the ones before it. Neither holds
    for a run that leaves tasks out, or in which each host goes on by itself.
  - It is beside the playbooks, and so is part of each run of them. It queries no host. C(--list-tasks) and the like run
    nothing, and are not refused.
requirements: []
"""

# Hosts do not wait for one another: the report of all hosts comes before some have been asked.
APART = {"free", "host_pinned", "mitogen_free", "mitogen_host_pinned"}
# What molecule skips in each run, of which there is nothing here.
MOLECULE = {"molecule-notest", "notest", "molecule-idempotence-notest"}
PARTS = (
    "none: this has no tags. playbooks/redis.yml, app.yml and so on are the parts of site.yml, and --limit names hosts"
)


def problems(options: Mapping[str, Any], settings: Mapping[str, Any], extra: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the options of the command line, Ansible's settings, and the variables of `-e`."""
    if tags := sorted(set(options.get("tags") or []) - {"all"}):
        yield f"--tags: found {','.join(tags)!r}; expected {PARTS}"
    if skipped := sorted(set(options.get("skip_tags") or []) - MOLECULE):
        yield f"--skip-tags: found {','.join(skipped)!r}; expected {PARTS}"
    if task := options.get("start_at_task"):
        yield (
            f"--start-at-task: found {task!r}; expected none: the preflight would be missing, and what later tasks "
            "need of earlier ones. A run that was interrupted is completed by the whole run"
        )
    if options.get("step"):
        yield "--step: found; expected none: no task may be left out. --check --diff shows what a run would do"
    strategy = str(settings["DEFAULT_STRATEGY"])
    if strategy.rpartition(".")[2] in APART:
        yield (
            f"ANSIBLE_STRATEGY, or strategy in ansible.cfg: found {strategy!r}; expected linear: hosts must wait for "
            "the report of all, and instances are switched one after another"
        )
    if not settings["ANY_ERRORS_FATAL"]:
        yield (
            "ANSIBLE_ANY_ERRORS_FATAL, or any_errors_fatal in ansible.cfg: found False; expected True, as in this "
            "checkout's ansible.cfg: with False a run goes on without a host that failed. If ANSIBLE_CONFIG names "
            "another file, have it name this one"
        )
    if settings["DEFAULT_HASH_BEHAVIOUR"] != "replace":
        yield (
            f"ANSIBLE_HASH_BEHAVIOUR: found {settings['DEFAULT_HASH_BEHAVIOUR']!r}; expected replace: mappings such as "
            "backup_retention would keep what they should lose"
        )
    # What Ansible leaves of `-e "name=2026-01-31 14:05"`, besides name=2026-01-31.
    if rest := extra.get("_raw_params"):
        yield (
            f"-e: found {str(rest)!r} without a name, which was cut off a value at its blank; expected the value in "
            'quotes of its own, such as -e "name=\'one two\'", or JSON, such as -e \'{"name": "one two"}\''
        )


class CallbackModule(CallbackBase):
    """What Ansible loads."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "whole_runs"
    # Nobody has to think of it.
    CALLBACK_NEEDS_ENABLED = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """End the run where something is wrong. An exception would be a warning; this is none."""
        names = ("DEFAULT_STRATEGY", "ANY_ERRORS_FATAL", "DEFAULT_HASH_BEHAVIOUR")
        settings = {name: constants.config.get_config_value(name) for name in names}
        found = list(problems(context.CLIARGS, settings, getattr(load_extra_vars, "extra_vars", {})))
        if found:
            noun = "problem" if len(found) == 1 else "problems"
            head = f"Options of this run: {len(found)} {noun}. Nothing has been changed on any host."
            Display().error("\n".join([head, *(f"  - {text}" for text in found)]), wrap_text=False)
            raise SystemExit(int(ExitCode.INVALID_CLI_OPTION))

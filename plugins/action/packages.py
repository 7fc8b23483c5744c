"""Install packages by ansible.builtin.apt, which is not run before it can do its work.

    packages:
      name: [redis-server, redis-tools]   # or name=version, for one that must have that version
      state: latest            # present, if nothing is said
      install_recommends: false
      policy_rc_d: 101         # no service of theirs is started
      cache_valid_time: 3600   # seconds that apt's lists are good for
      lock_timeout: 600        # seconds to wait for another program that installs packages

Where all are there, apt is not run at all. Another program's lock, such as that of unattended-upgrades after the first
boot, is waited for, and who holds it is shown meanwhile. A source that does not answer is a warning where apt can
install the packages without it; otherwise the error names it, and its reason.

The first question is the file module_utils/apt_state.py, run on the host in one round trip.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import time
import zlib
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PROGRAM = Path(__file__).resolve().parent.parent / "module_utils/apt_state.py"
# Seconds between two looks at a lock, and between two words on it.
STEP = 2.0
WORD = 20.0
# How often a needed source that does not answer is asked, and the seconds between.
ATTEMPTS = 3
PAUSE = 3.0
# What apt, dpkg and the module say when a lock was taken since the look.
LOCKED = re.compile("Could not get lock|is another process using it|is locked by another process")
FETCH = re.compile(r"^E: Failed to fetch (\S+) +(.+)$", re.MULTILINE)
Failure = dict[str, str]


def span(seconds: float) -> str:
    """Return seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    return " ".join([*([f"{minutes} min"] if minutes else []), *([f"{rest} s"] if rest or not minutes else [])])


def name_holder(locked: dict[str, Any]) -> str:
    """Return `unattended-upgr, process 812 of apt-daily-upgrade.service`."""
    process = f"process {locked['pid']}" if locked["pid"] else "a process that this host does not see"
    unit = f" of {locked['unit']}" if locked["unit"] else ""
    return f"{locked['program']}, {process}{unit}" if locked["program"] else process + unit


def name_failure(failure: Failure) -> str:
    """Return a source with the file that it is configured in, and why it failed."""
    file = f" (in {failure['file']})" if failure.get("file") else ""
    return f"{failure['source']}{file}: {failure['reason']}" if failure["source"] else failure["reason"]


class ActionModule(ActionBase):
    """What Ansible loads."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("name", "state", "install_recommends", "policy_rc_d", "cache_valid_time", "lock_timeout"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Wait for the lock, bring the lists up to date, and install what is missing."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        names = given.get("name")
        names = [str(name) for name in (names.split(",") if isinstance(names, str) else names or [])]
        state = str(given.get("state", "present"))
        try:
            valid, patience = float(given.get("cache_valid_time", 3600)), float(given.get("lock_timeout", 600))
            recommends = boolean(given["install_recommends"]) if "install_recommends" in given else None
            policy = None if given.get("policy_rc_d") is None else int(given["policy_rc_d"])
        except (TypeError, ValueError) as error:
            raise AnsibleActionFail(f"packages: {error}; expected seconds, true or false, and an exit code") from error
        if not names or state not in ("present", "latest"):
            raise AnsibleActionFail(
                f"packages: found name {names}, state {state!r}; expected names of packages, and present or latest"
            )
        self._host = str((task_vars or {}).get("inventory_hostname", ""))
        self._deadline = time.monotonic() + patience
        self._patience = patience
        arguments = {"name": names, "state": state, "policy_rc_d": policy, "lock_timeout": 10}
        arguments |= {} if recommends is None else {"install_recommends": recommends}
        while True:
            seen = self._ready(
                {"names": names, "state": state, "valid": valid, "may_update": not self._task.check_mode}
            )
            warnings = [f"apt's source {name_failure(failure)}" for failure in seen["failed"]]
            if state == "present" and not seen["missing"]:
                return {**result, "changed": False, "missing": []}
            if self._task.check_mode and seen["unknown"]:
                # Its lists are older than what the run would fetch, if it has any.
                return {**result, "changed": True, "missing": seen["missing"]}
            installed: dict[str, Any] = self._execute_module(
                module_name="ansible.builtin.apt", module_args=arguments, task_vars=task_vars
            )
            said = "\n".join(str(installed.get(key, "")) for key in ("msg", "stderr", "stdout"))
            if installed.get("failed") and LOCKED.search(said) and time.monotonic() < self._deadline:
                time.sleep(STEP)
                continue
            break
        installed["warnings"] = [*installed.get("warnings", []), *warnings]
        if installed.get("failed") and (unfetched := FETCH.findall(said)):
            places = [name_failure({"source": source, "reason": reason}) for source, reason in dict(unfetched).items()]
            installed["msg"] = f"{', '.join(names)}: apt cannot fetch {'; '.join(places)}"
        return {**result, **installed, "missing": seen["missing"]}

    def _ready(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the host's state when no lock is held and each missing package can be installed."""
        began = time.monotonic()
        word = began - WORD
        told = ""
        attempt = 1
        while True:
            seen = self._look(question)
            now = time.monotonic()
            if locked := seen["locked"]:
                who = name_holder(locked)
                if now > self._deadline:
                    raise AnsibleActionFail(
                        f"{', '.join(seen['missing'] or question['names'])}: found {locked['lock']} held by {who} for "
                        f"{span(self._patience)}; expected that other programs end installing packages by then. "
                        "When it has ended, or was stopped, run this again: nothing was installed"
                    )
                if who != told or now - word >= WORD:
                    self._say(f"waiting for {who}, which holds {locked['lock']} ({span(now - began)} so far)")
                    told, word = who, now
                time.sleep(STEP)
                continue
            if not seen["unknown"] or self._task.check_mode:
                return seen
            places = "; ".join(map(name_failure, seen["failed"]))
            if not seen["failed"] or attempt == ATTEMPTS:
                why = f"these sources of apt failed: {places}" if places else "all sources of apt answered"
                version = " in that version" if any("=" in name for name in seen["unknown"]) else ""
                raise AnsibleActionFail(
                    f"{', '.join(seen['unknown'])}: found no such package{version}, and {why}; expected a source that "
                    "has it (/etc/apt/sources.list, /etc/apt/sources.list.d)"
                )
            self._say(f"no source has {', '.join(seen['unknown'])}, and not all answer; trying again ({places})")
            attempt += 1
            time.sleep(PAUSE)

    def _look(self, question: dict[str, Any]) -> dict[str, Any]:
        program, asked = PROGRAM.read_bytes(), shlex.quote(json.dumps(question))
        python = f"{self._compute_environment_string()} python3".strip()
        # By its standard input: sudo writes command lines into the journal. Where sudo must have a terminal, pipelining
        # is off, and there is no other input than the terminal's.
        if self._is_pipelining_enabled("new"):
            answer = self._low_level_execute_command(f"{python} - {asked}", sudoable=True, in_data=program)
        else:
            packed = base64.b64encode(zlib.compress(program, 9)).decode()
            code = f"import base64, zlib; exec(zlib.decompress(base64.b64decode('{packed}')))"
            answer = self._low_level_execute_command(f"{python} -c {shlex.quote(code)} {asked}", sudoable=True)
        lines = str(answer["stdout"]).strip().splitlines()
        try:
            seen: dict[str, Any] = json.loads(lines[-1])
        except (ValueError, IndexError):
            said = " ".join([*lines, *str(answer.get("stderr", "")).splitlines()])[-300:]
            raise AnsibleActionFail(f"packages: the host cannot report the installed packages: {said}") from None
        if "problem" in seen:
            raise AnsibleActionFail(
                f"packages: found {seen['problem']}; expected a host with apt and dpkg, and root's rights on it"
            )
        return seen

    def _say(self, text: str) -> None:
        Display().display(f"  {self._host}: {text}")

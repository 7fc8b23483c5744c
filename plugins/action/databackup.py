"""Run `databackup` on a host, show its progress as it goes, and return its result.

    databackup:
      command: restore         # of databackup
      name: redis              # the source
      arguments: [--as-of, 2026-01-31T14:00:00Z]

Returns `result`, what `databackup --json` printed; `rc`; and `began` and `ended` in seconds of the epoch, by the
controller's clock. In check mode a restore is a dry run, a repair only reports its steps, a diagnosis is made, and
nothing else is run.

The run is a unit of systemd's on the host: a controller that goes away does not end it in the middle, and a second play
finds it and reports it. It is confined like the units that the role installs.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Seconds between two looks at a run, and how long a host may be out of reach meanwhile.
STEP = 0.4
PATIENCE = 60.0
RUNNING = 76
WORD = re.compile(r"[a-z][a-z0-9-]{0,40}")
# What the role backup has written of the units that are started here: a property of systemd on each line.
LIBRARY = "/usr/local/lib/databackup/"

START = """
unit={unit} folder=/run/databackup
systemctl is-active --quiet "$unit" && exit {running}
[ -x /usr/local/sbin/databackup ] || {{ echo "databackup is not installed here (playbooks/backup.yml)" >&2; exit 1; }}
mkdir -p -m 0700 "$folder" && cd "$folder" && rm -f "$unit".* || exit 1
systemctl reset-failed "$unit" 2>/dev/null
set --
# A host that an earlier version has set up has no such file yet: its program expects no confinement either.
[ ! -r {properties} ] || while IFS= read -r line; do
  case $line in [A-Z]*=*) set -- "$@" "--property=$line" ;; esac
done < {properties}
set -- --property=TimeoutStopSec=120 --property=UMask=0077 "$@" {more}
exec systemd-run --quiet --collect --unit="$unit" "$@" /bin/sh -c \
  '"$@" >/run/databackup/{unit}.out 2>/run/databackup/{unit}.err; echo $? >/run/databackup/{unit}.code' sh {command}
"""
# Whether it runs, its exit code once it has ended, what is new of its words, and its result. What services and other
# hosts have a part in is encoded, so that no word of theirs looks like one of these lines.
LOOK = """
cd /run/databackup || exit 1
systemctl is-active --quiet {unit}; echo "active=$?"
code=$(cat {unit}.code 2>/dev/null); echo "code=$code"
echo "said=$(tail -c +{offset} {unit}.err 2>/dev/null | base64 --wrap=0)"
[ -z "$code" ] || echo "result=$(base64 --wrap=0 <{unit}.out)"
echo "end="
"""
LOOKED = re.compile(r"active=(\d+)\ncode=(\d*)\nsaid=([A-Za-z0-9+/=]*)\n(?:result=([A-Za-z0-9+/=]*)\n)?end=\n?\Z")


def destination(command: str, words: list[str]) -> list[str]:
    """Return what opens the folder for a file that is fetched, such as /root, to its unit."""
    if command != "fetch" or "--to" not in words[:-1]:
        return []
    folder = words[words.index("--to") + 1].rpartition("/")[0] or "/"
    return ["--property=ProtectHome=false", f"--property=ReadWritePaths={folder}"]


class ActionModule(ActionBase):
    """What Ansible loads."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _VALID_ARGS = frozenset(("command", "name", "arguments"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run it to its end."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        command = str(self._task.args.get("command", ""))
        name = str(self._task.args.get("name", "") or "")
        arguments = self._task.args.get("arguments") or []
        if not WORD.fullmatch(command) or (name and not WORD.fullmatch(name)) or not isinstance(arguments, list):
            raise AnsibleActionFail(
                f"databackup: found command {command!r}, name {name!r}; expected a command such as restore, the name "
                "of a source, and arguments as a list"
            )
        words = [str(word) for word in arguments]
        if self._task.check_mode:
            if command not in ("restore", "repair", "diagnose"):
                return {**result, "skipped": True, "msg": "nothing is run in check mode"}
            # A repair changes nothing unless it is confirmed, and a diagnosis never does.
            words = [word for word in words if word != "--confirm"] + (["--dry-run"] if command == "restore" else [])
        unit = "-".join(part for part in ("databackup-run", command, name) if part)
        line = ["/usr/local/sbin/databackup", "--json", command, *([name] if name else []), *words]
        began = time.time()
        start = START.format(
            unit=unit,
            running=RUNNING,
            command=shlex.join(line),
            properties=LIBRARY + ("adopt.properties" if command == "adopt" else "run.properties"),
            more=shlex.join(destination(command, words)),
        )
        started = self._remote(start)
        if started["rc"] == RUNNING:
            raise AnsibleActionFail(
                f"{command} {name}: another run does that on this host already. Follow it with tail -f "
                f"/run/databackup/{unit}.err, or end it with systemctl stop {unit}, which puts everything back"
            )
        if started["rc"] != 0:
            raise AnsibleActionFail(
                f"{command} {name} cannot be started: {started['stdout'] or started['stderr']}".strip()
            )
        code, output = self._follow(unit, str((task_vars or {}).get("inventory_hostname", "")))
        result |= {"began": began, "ended": time.time(), "rc": code}
        try:
            told = json.loads(output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            told = {"msg": f"{command} {name} ended with {code} and without a result: {output[-500:] or 'not a word'}"}
        if code != 0:
            return {**result, "failed": True, "msg": told.get("msg", output)}
        changes = (
            command in ("restore", "repair", "backup", "maintain", "adopt")
            and not told.get("dry_run")
            and "skipped" not in told
        )
        return {**result, "changed": bool(told.get("changed", changes)), "result": told}

    def _remote(self, script: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._low_level_execute_command(
            f"/bin/sh -c {shlex.quote(script)}", sudoable=True, executable="/bin/sh"
        )
        return answer

    def _follow(self, unit: str, host: str) -> tuple[int, str]:
        """Show what a run says until it ends; return its exit code and output."""
        offset = 1
        silent = 0
        heard = time.monotonic()
        while True:
            try:
                answer = self._remote(LOOK.format(unit=unit, offset=offset))
            except AnsibleConnectionFailure:
                answer = {"stdout": ""}
            # Ansible gives the command a terminal, which ends lines in its own way.
            looked = LOOKED.search(str(answer["stdout"]).replace("\r\n", "\n"))
            if looked is None:
                if time.monotonic() - heard > PATIENCE:
                    raise AnsibleActionFail(
                        f"the host does not answer any more. The run continues there by itself: tail -f "
                        f"/run/databackup/{unit}.err"
                    )
                time.sleep(1)
                continue
            heard = time.monotonic()
            active, code, encoded, result = looked.groups()
            said = base64.b64decode(encoded)
            whole = said[: said.rfind(b"\n") + 1]
            for text in whole.decode(errors="replace").splitlines():
                # Without what a terminal would take for orders.
                Display().display(f"  {host}: {''.join(c if c.isprintable() else '?' for c in text)}")
            offset += len(whole)
            if code:
                return int(code), base64.b64decode(result or "").decode(errors="replace")
            # The code comes a moment before systemd sees the end.
            silent = silent + 1 if active != "0" else 0
            if silent > 3:
                return -1, ""
            time.sleep(STEP)

"""Report a rebuild: how long it took by phase, how old the restored data are, and what was expected and found.

    recovery_report:
      environment: lab
      phases:                        # seconds since the epoch, or ISO times; what lies between two is shown as such
        - {name: redis, began: 1769868320.1, ended: 1769868341.4}
      restored:                      # what `databackup restore NAME --json` has printed, by host
        - {host: redis1, result: {...}}
      lost_at: 2026-01-31T14:05:12Z  # when the outage began; without it, the beginning of the rebuild counts
      rto_limit: 90                  # seconds; both may be left out
      rpo_limit: 900
      write: [output/rebuild.json, output/rebuild.html, output/rebuild.txt]

The other options: `title`; `expect_data: false` where nothing is to be restored; `fail: false` to go on after a rebuild
that is not as it should be. It runs on the controller alone and queries no host.

It prints the report as text, writes the files, whole or not at all, with folders that are missing, and only then fails:
when a limit was not kept, when other data were found than expected, or when no data were restored. Limits are held
against seconds as shown, with one decimal. In check mode nothing is written.

It returns `ok`, `problems`, `notes`, `verdict`, `rto_seconds`, `rpo_seconds` (of the oldest data), `outage_seconds`
(from `lost_at` to the end), `phases`, `restored`, `text` (lines), and `changed`: whether a file was written.
A task that fails leaves out `phases`, `restored` and `text`: they are in print above it, and in the files.

The HTML page has no script and asks for nothing from anywhere: it can be mailed, printed, and opened without a network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.inputs import BadInput, read, refuse
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.judgement import judge
from ansible_collections.quantdesk.redis.plugins.plugin_utils.recovery.rendering import as_html, as_json, as_text

WRITERS = {".json": as_json, ".html": as_html, ".txt": as_text}


def destinations(value: Any) -> list[Path]:
    """Return the files to write; raises BadInput for one that cannot be."""
    paths = [Path(str(path)).expanduser() for path in (value if isinstance(value, list) else [value]) if path]
    for path in paths:
        if path.suffix not in WRITERS or path.is_dir():
            raise BadInput(f"write: found {str(path)!r}; expected a file that ends in .json, .html or .txt")
    return paths


def write(path: Path, content: str) -> bool:
    """Put a text in place of a file in one step, unless it is there already; tell whether it was not.

    Raises AnsibleActionFail where the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    wanted = content.encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() == wanted:
            return False
        try:
            partial.write_bytes(wanted)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise AnsibleActionFail(f"write: {path} cannot be written: {error.strerror}") from error
    return True


class ActionModule(ActionBase):
    """Runs on the controller alone."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(
        (
            *("environment", "title", "phases", "restored", "lost_at", "rto_limit", "rpo_limit"),
            *("expect_data", "write", "fail"),
        )
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print and write the report; raises AnsibleActionFail for input that is none."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            files = destinations(arguments.get("write"))
            for key in ("expect_data", "fail"):
                try:
                    arguments[key] = boolean(arguments.get(key, True))
                except TypeError:
                    raise refuse(key, arguments[key], "true or false") from None
            report = judge(read(arguments))
            text = as_text(report).splitlines()
            # First of all: what comes after may fail.
            for i, line in enumerate(text):
                self._display.display(line, color=("green" if report.ok else "red") if i == 0 else None)
            changed = False
            for path in files:
                changed |= self._task.check_mode or write(path, WRITERS[path.suffix](report))
                self._display.display(f"In {path}" + (", were this no check" if self._task.check_mode else ""))
        except BadInput as error:
            raise AnsibleActionFail(str(error)) from error
        result: dict[str, Any] = {"changed": changed}
        if report.ok or not arguments["fail"]:
            return result | report.document() | {"text": text, "msg": "\n".join(text)}
        # Ansible shows all that a failed task returns: the problems would be out of sight above that.
        result |= {key: value for key, value in report.document().items() if key not in ("phases", "restored")}
        return result | {"failed": True, "msg": "\n".join([report.verdict, *(f"  - {p}" for p in report.problems)])}

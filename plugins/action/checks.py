"""Collect named checks on each host, and report those of all hosts in one message.

The preflight and `verify.yml` share it. Two forms:

    checks:                        # collect, on each host
      subject: redis
      checks:
        - name: redis_maxmemory    # the variable, or the thing that is asked of
          that: redis_maxmemory is redis_size
          expected: a size such as 512mb
        - name: maxmemory-policy
          found: live['maxmemory-policy']
          equals: redis_maxmemory_policy

    checks:                        # report, once
      report: Preflight
      success: Nothing stands against it.
      failure: Nothing was changed on any host.

`that`, `found`, `equals` and `when` are Jinja expressions without braces, evaluated one by one: one that fails
because a variable is undefined is a failed check that says so, not the end of the task. `found` defaults to the
variable `name`. With `secret: true` the value is never shown, only its length.

A role that is used on its own fails at once. In a play that sets `checks_deferred` to a name, results gather in each
host's fact of that name until the play's report, which shows every problem of every host.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

ANSWER_WIDTH = 60


def plain(value: Any) -> str:
    """Return a value as one readable line; strings in quotes, so that blanks and emptiness show."""
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return " ".join(text.split())


def shorten(text: str, width: int = ANSWER_WIDTH) -> str:
    """Cut a text to `width` characters, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def hide(value: Any) -> str:
    """Describe a secret by its length only."""
    return f"a hidden value of {len(str(value))} characters" if str(value) else "an empty value"


def group_problems(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return one line for each distinct problem, with the hosts that have it."""
    hosts_of: dict[tuple[str, str, str], list[str]] = {}
    for host, checks in results.items():
        for check in checks:
            if not check["ok"]:
                key = (check["name"], check["found"], check["expected"])
                if host not in hosts_of.setdefault(key, []):
                    hosts_of[key].append(host)
    return [
        f"{name}: found {found}; expected {expected}. [{', '.join(hosts)}]"
        for (name, found, expected), hosts in hosts_of.items()
    ]


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the checks of all hosts as the lines of an aligned table."""
    rows = [("VERDICT", "HOST", "SUBJECT", "CHECK", "FOUND", "EXPECTED")]
    for host, checks in results.items():
        rows += [
            (
                "ok" if c["ok"] else "FAILED",
                host,
                c["subject"],
                c["name"],
                shorten(c["found"]),
                shorten(c["expected"]),
            )
            for c in checks
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """Runs on the controller alone: no host is asked, so a check costs no round trip."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("subject", "checks", "report", "success", "failure", "table"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Collect or report; raises AnsibleActionFail with every problem in one message."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        if "report" in self._task.args:
            return self._report(task_vars)
        return self._collect(task_vars)

    def _evaluate(self, expression: str) -> tuple[Any, str | None]:
        """Return a value and no error, or None and why there is no value."""
        try:
            return self._templar.evaluate_expression(expression), None
        except AnsibleError as error:
            # The innermost message names the variable that is missing, which may be another one.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return None, str(getattr(cause, "message", cause)).rstrip(".")

    def _check(self, subject: str, check: dict[str, Any]) -> dict[str, Any] | None:
        if "when" in check:
            applies, unknown = self._evaluate(check["when"])
            if unknown is not None:
                return {
                    "subject": subject,
                    "name": check["name"],
                    "found": f"nothing ({unknown})",
                    "expected": check.get("expected") or "a condition that can be evaluated",
                    "ok": False,
                }
            if not applies:
                return None
        found, error = self._evaluate(check.get("found", check["name"]))
        ok = error is None
        wanted = None
        if "equals" in check:
            wanted, wanted_error = self._evaluate(check["equals"])
            ok = ok and wanted_error is None and found == wanted
        if ok and "that" in check:
            holds, reason = self._evaluate(check["that"])
            ok = bool(holds) and reason is None
        show = hide if check.get("secret") else plain
        shown = f"nothing ({error})" if error is not None else show(found)
        expected = check.get("expected") or plain(wanted)
        return {"subject": subject, "name": check["name"], "found": shown, "expected": expected, "ok": ok}

    def _collect(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        subject = self._task.args["subject"]
        fresh = [result for check in self._task.args["checks"] if (result := self._check(subject, check)) is not None]
        host = task_vars["inventory_hostname"]
        problems = group_problems({host: fresh})
        fact = task_vars.get("checks_deferred")
        if not fact:
            if problems:
                head = f"{subject}: {len(problems)} of {len(fresh)} checks failed"
                raise AnsibleActionFail("\n".join([head, *(f"  - {p}" for p in problems)]))
            return {"changed": False}
        earlier = task_vars.get("ansible_facts", {}).get(fact, [])
        return {"changed": False, "ansible_facts": {fact: earlier + fresh}}

    def _report(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        hosts = task_vars["ansible_play_hosts_all"]
        fact = task_vars["checks_deferred"]
        results = {host: task_vars["hostvars"][host]["ansible_facts"].get(fact, []) for host in hosts}
        checks = [check for found in results.values() for check in found]
        args = self._task.args
        if args.get("table"):
            for line in table(results):
                self._display.display(line, color="red" if line.startswith("FAILED") else None)
        problems = group_problems(results)
        if not checks:
            problems = ["not one check ran: no host of this inventory is in a group that has any"]
        if problems:
            noun = "problem" if len(problems) == 1 else "problems"
            head = f"{args['report']}: {len(problems)} {noun}. {args['failure']}"
            raise AnsibleActionFail("\n".join([head, *(f"  - {p}" for p in problems)]))
        success = f"{args['report']}: {len(checks)} checks on {len(hosts)} hosts, all ok. {args['success']}"
        return {"changed": False, "msg": success, "_ansible_verbose_always": True}

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
          control: 38              # one or several numbers in docs/controls.md
          when: redis_maxmemory | default('')
          otherwise: no limit is set

    checks:                        # report, once
      report: Preflight
      success: No problem found.
      failure: Nothing was changed on any host.
      table: true                  # shows every check
      write: [report.json, report.xml]

`that`, `found`, `equals` and `when` are Jinja expressions without braces: one that fails because a variable is
undefined is a failed check with that reason, not the end of the task. `found` defaults to the
variable `name`. With `secret: true` the value is never shown, only its length. A check whose `when` is false is
dropped, or, where `otherwise` gives the reason, recorded as `n/a`, which never fails.

A check with a `problem` has failed elsewhere, such as in a filter: that text, which may come from a host and is not
evaluated, is what was found.

A check with `warn: true` that does not hold is a warning, and no part of the report; one that cannot be evaluated is
nothing, as another check names what it lacks.

In place of `subject` and `checks`, `rows` are checks that a module has judged on the host, each with `subject`, `name`,
`control`, `found`, `expected` and `verdict`. Nothing of them is evaluated.

A check with `after: [redis_password]` is left out when one of that name, earlier in the list, has failed.

With `inputs: redis`, the list begins with a check of each input whose type or choices in that role's argument spec
decide it: true or false, or one of a few words.

`write` names files on the controller, one or several or none: JSON where the name ends in .json, JUnit XML in .xml.
They are written whole or not at all, also when checks failed.

With `renamed: true` a variable or a group that earlier versions knew by another name is a failed check, too, as is a
template that refers to one. The names are in plugin_utils/renamed.py; it costs no evaluation where there are none.

A role that is used on its own fails at once. In a play that sets `checks_deferred` to a name, results gather in each
host's fact of that name until the play's report, which shows every problem of every host.
"""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import is_trusted_as_template, trust_as_template
from ansible_collections.quantdesk.redis.plugins.module_utils.audit import FAILED, NOT_APPLICABLE, OK
from ansible_collections.quantdesk.redis.plugins.plugin_utils.renamed import findings

ANSWER_WIDTH = 60
COLUMNS = ("VERDICT", "CONTROL", "HOST", "SUBJECT", "CHECK", "FOUND", "EXPECTED")
# What XML 1.0 has no way to say, not even escaped.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ROLES = Path(__file__).resolve().parents[2] / "roles"

Results = dict[str, list[dict[str, Any]]]
# A value and no error, or None and why there is no value.
Answer = tuple[Any, str | None]


def plain(value: Any) -> str:
    """Return a value as one readable line; strings in quotes, so that blanks and emptiness show."""
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return " ".join(text.split())


def shorten(text: str, width: int = ANSWER_WIDTH) -> str:
    """Cut a text to `width` characters, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def hide(value: Any) -> str:
    """Describe a secret by its length only, and say where YAML has read digits without quotes as a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"a hidden number of {len(str(value))} characters instead of a text in quotes"
    return f"a hidden value of {len(str(value))} characters" if str(value) else "an empty value"


def controls(check: dict[str, Any]) -> list[int]:
    """Return the numbers of the controls that a check belongs to; raises AnsibleActionFail if they are no numbers."""
    given = check.get("control")
    numbers = [] if given is None else given if isinstance(given, list) else [given]
    if not all(re.fullmatch("[0-9]+", str(number)) for number in numbers):
        raise AnsibleActionFail(f"control of the check {check['name']}: found {given!r}; expected a number, or several")
    return [int(number) for number in numbers]


def name_controls(numbers: list[int]) -> str:
    """Return `control 19`, `controls 19, 20`, or nothing."""
    return f"control{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}" if numbers else ""


def group_problems(results: Results) -> list[str]:
    """Return one line for each distinct problem, with the hosts that have it."""
    hosts_of: dict[tuple[str, str], list[str]] = {}
    for host, checks in results.items():
        for check in checks:
            if check["verdict"] == FAILED:
                problem = check.get("text") or f"{check['name']}: found {check['found']}; expected {check['expected']}"
                control = name_controls(check["control"])
                key = (problem, f" ({control})" if control else "")
                if host not in hosts_of.setdefault(key, []):
                    hosts_of[key].append(host)
    return [f"{problem}. [{', '.join(hosts)}]{control}" for (problem, control), hosts in hosts_of.items()]


def table(results: Results) -> list[str]:
    """Return the checks of all hosts as the lines of an aligned table."""
    rows = [COLUMNS]
    for host, checks in results.items():
        rows += [
            (
                c["verdict"],
                ",".join(map(str, c["control"])),
                host,
                c["subject"],
                c["name"],
                shorten(c["found"]),
                shorten(c["expected"]),
            )
            for c in checks
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def choice(word: str) -> str:
    """Return a choice of an input as an error names it; in quotes where YAML would read another value."""
    if not word:
        return "an empty text"
    read = yaml.safe_load(word)
    return word if read == word else f"'{word}', in quotes, as YAML reads {word} as {str(read).lower()}"


def input_checks(options: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a check for each input that its argument spec decides: booleans, and those with choices."""
    checks = []
    for name, option in options.items():
        if option["type"] == "bool":
            that, expected = f"{name} is quantdesk.redis.true_or_false", "true or false"
        elif "choices" in option:
            # The empty one last, as what is left.
            words = sorted(option["choices"], key=lambda word: word == "")
            names = [choice(word) for word in words]
            that, expected = f"{name} in {words}", " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        else:
            continue
        checks.append({"name": trust_as_template(name), "that": trust_as_template(that), "expected": expected})
    return checks


def as_json(report: str, time: str, results: Results) -> str:
    """Return the results as one JSON document."""
    verdicts = Counter(check["verdict"] for checks in results.values() for check in checks)
    document = {
        "report": report,
        "time": time,
        "hosts": list(results),
        "summary": {"ok": verdicts[OK], "failed": verdicts[FAILED], "n/a": verdicts[NOT_APPLICABLE]},
        "checks": [
            {
                "control": list(check["control"]),
                "host": host,
                "subject": check["subject"],
                "check": check["name"],
                "found": check["found"],
                "expected": check["expected"],
                "verdict": check["verdict"],
            }
            for host, checks in results.items()
            for check in checks
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def as_junit(report: str, time: str, results: Results) -> str:
    """Return the results as JUnit XML, which CI systems show: a suite for each host, a case for each check."""

    def add(parent: ET.Element, tag: str, **attributes: Any) -> ET.Element:
        clean = {key: NO_XML.sub("\N{REPLACEMENT CHARACTER}", str(value)) for key, value in attributes.items()}
        return ET.SubElement(parent, tag, clean)

    root = ET.Element("testsuites", name=report)
    for host, checks in results.items():
        verdicts = Counter(check["verdict"] for check in checks)
        suite = add(
            root,
            "testsuite",
            name=host,
            tests=len(checks),
            failures=verdicts[FAILED],
            errors=0,
            skipped=verdicts[NOT_APPLICABLE],
            timestamp=time,
        )
        for check in checks:
            control = name_controls(check["control"])
            name = f"{control}: {check['name']}" if control else check["name"]
            case = add(suite, "testcase", name=name, classname=f"{host}.{check['subject']}")
            if check["verdict"] == FAILED:
                add(case, "failure", message=f"found {check['found']}; expected {check['expected']}")
            elif check["verdict"] == NOT_APPLICABLE:
                add(case, "skipped", message=check["found"])
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


WRITERS = {".json": as_json, ".xml": as_junit}


def destinations(value: Any) -> list[Path]:
    """Return the files to write; raises AnsibleActionFail for one that could not be."""
    paths = [Path(str(path)).expanduser() for path in (value if isinstance(value, list) else [value]) if path]
    for path in paths:
        if path.suffix not in WRITERS or not path.parent.is_dir() or path.is_dir():
            raise AnsibleActionFail(
                f"write: found {str(path)!r}; expected a file that ends in {' or '.join(WRITERS)},"
                " in a folder on the controller that exists"
            )
    return paths


def write(path: Path, text: str) -> None:
    """Put a text in place of a file in one step, so that no program ever reads half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise AnsibleActionFail(f"write: {path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


class ActionModule(ActionBase):
    """Runs on the controller alone: no host is queried, so a check costs no round trip."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(
        ("subject", "inputs", "checks", "rows", "renamed", "report", "success", "failure", "table", "write")
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Collect or report; raises AnsibleActionFail with every problem in one message."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        if "report" in self._task.args:
            return self._report(task_vars)
        return self._collect(task_vars)

    def _options(self, role: str) -> dict[str, dict[str, Any]]:
        """Return the inputs of a role of this collection, from its argument spec."""
        spec = self._loader.load_from_file(str(ROLES / role / "meta/argument_specs.yml"))
        options: dict[str, dict[str, Any]] = spec["argument_specs"]["main"]["options"]
        return options

    def _evaluate(self, expression: str) -> Answer:
        """Return a value and no error, or None and why there is no value."""
        try:
            return self._templar.evaluate_expression(expression), None
        except AnsibleError as error:
            # The innermost message names the variable that is missing, which may be another one.
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return None, str(getattr(cause, "message", cause)).rstrip(".")

    def _evaluate_all(self, expressions: list[str]) -> dict[str, Answer]:
        """Return what `_evaluate` does, for each: in one expression, which costs about as much as any of them.

        Variables are worked out once for all of it. Where one expression fails, the list is halved until it is alone.
        """
        distinct = list(dict.fromkeys(expressions))
        if len(distinct) > 1 and all(map(is_trusted_as_template, distinct)):
            try:
                whole = trust_as_template(f"[{', '.join(f'({one})' for one in distinct)}]")
                values = self._templar.evaluate_expression(whole)
            except AnsibleError:
                half = len(distinct) // 2
                return {**self._evaluate_all(distinct[:half]), **self._evaluate_all(distinct[half:])}
            return {one: (value, None) for one, value in zip(distinct, values, strict=True)}
        return {one: self._evaluate(one) for one in distinct}

    def _answers(self, items: list[dict[str, Any]]) -> dict[str, Answer]:
        """Return what there is to know for all checks: their conditions first, then what is asked where those hold."""
        known = self._evaluate_all([check["when"] for check in items if "when" in check])
        asked = [
            check for check in items if "problem" not in check and ("when" not in check or known[check["when"]][0])
        ]
        wanted = [check[key] for check in asked for key in ("equals", "that") if key in check]
        return known | self._evaluate_all([*(check.get("found", check["name"]) for check in asked), *wanted])

    def _check(self, subject: str, check: dict[str, Any], known: dict[str, Answer]) -> dict[str, Any] | None:
        result = {"subject": subject, "name": check["name"], "control": controls(check)}
        if "when" in check:
            applies, unknown = known[check["when"]]
            if unknown is not None:
                expected = check.get("expected") or "a condition that can be evaluated"
                return {**result, "found": f"nothing ({unknown})", "expected": expected, "verdict": FAILED}
            if not applies:
                if "otherwise" not in check:
                    return None
                # What `equals` asks for may not even be defined here.
                expected = check.get("expected") or ""
                return {**result, "found": str(check["otherwise"]), "expected": expected, "verdict": NOT_APPLICABLE}
        if "problem" in check:
            found = hide(check["problem"]) if check.get("secret") else plain(check["problem"])
            return {**result, "found": found, "expected": check["expected"], "verdict": FAILED}
        found, error = known[check.get("found", check["name"])]
        ok = error is None
        wanted = None
        if "equals" in check:
            wanted, wanted_error = known[check["equals"]]
            ok = ok and wanted_error is None and found == wanted
        if ok and "that" in check:
            holds, reason = known[check["that"]]
            ok = bool(holds) and reason is None
        show = hide if check.get("secret") else plain
        shown = f"nothing ({error})" if error is not None else show(found)
        expected = check.get("expected") or show(wanted)
        return {**result, "found": shown, "expected": expected, "verdict": OK if ok else FAILED}

    def _old_names(self, subject: str, task_vars: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a failed check for each old name that the inventory has."""
        results = []
        for finding in findings(task_vars):
            found = shorten(plain(task_vars[finding.where])) if finding.shown else "a hidden value"
            text = f"{finding.where} {finding.rule}: {finding.reason}" + (f"; found {found}" if finding.shown else "")
            result = {"subject": subject, "name": finding.where, "control": [], "found": found, "verdict": FAILED}
            results.append({**result, "expected": f"no such name: {finding.reason}", "text": text})
        return results

    def _collect(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        if "rows" in self._task.args:
            return self._keep(task_vars, list(self._task.args["rows"]))
        subject, role = self._task.args["subject"], self._task.args.get("inputs")
        items = [*(input_checks(self._options(role)) if role else []), *self._task.args["checks"]]
        known = self._answers(items)
        fresh = self._old_names(subject, task_vars) if self._task.args.get("renamed") else []
        failed: set[str] = set()
        for check in items:
            # What cannot be judged before something else is right would only say the same twice.
            if failed & set(check.get("after", [])):
                continue
            result = self._check(subject, check, known)
            if check.get("warn"):
                if result is not None and result["verdict"] == FAILED and not result["found"].startswith("nothing ("):
                    problems = group_problems({task_vars["inventory_hostname"]: [result]})
                    self._display.warning(f"{subject}: {problems[0]}")
                continue
            if result is not None:
                fresh.append(result)
                failed |= {result["name"]} if result["verdict"] == FAILED else set()
        return self._keep(task_vars, fresh)

    def _keep(self, task_vars: dict[str, Any], fresh: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep what was found for the report; raises AnsibleActionFail for a problem where there will be none."""
        host = task_vars["inventory_hostname"]
        problems = group_problems({host: fresh})
        fact = task_vars.get("checks_deferred")
        if not fact:
            if problems:
                subject = ", ".join(dict.fromkeys(check["subject"] for check in fresh))
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
        files = destinations(args.get("write"))
        if args.get("table"):
            for line in table(results):
                self._display.display(line, color="red" if line.startswith(FAILED) else None)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        for path in files:
            write(path, WRITERS[path.suffix](args["report"], time, results))
        problems = group_problems(results)
        if not checks:
            problems = ["not one check ran: no host of this inventory is in a group that has any"]
        if problems:
            noun = "problem" if len(problems) == 1 else "problems"
            head = f"{args['report']}: {len(problems)} {noun}. {args['failure']}"
            raise AnsibleActionFail("\n".join([head, *(f"  - {p}" for p in problems)]))
        skipped = sum(check["verdict"] == NOT_APPLICABLE for check in checks)
        count = f"{len(checks)} checks on {len(hosts)} hosts" + (f", {skipped} not applicable" if skipped else "")
        success = f"{args['report']}: {count}, all ok. {args['success']}"
        return {"changed": False, "msg": success, "_ansible_verbose_always": True}

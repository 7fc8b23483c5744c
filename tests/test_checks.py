"""The action plugin behind preflight and verify, in playbooks of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from conftest import PROJECT, in_play, load

checks = load("plugins/action/checks.py")


def play(folder: Path, tasks: list[dict[str, Any]], hosts: str = "one", **variables: Any) -> tuple[int, str]:
    """Run tasks on hosts that are this machine, and return the exit code and all output."""
    (folder / "hosts").write_text("one ansible_connection=local\ntwo ansible_connection=local\n")
    content = [{"name": "Test", "hosts": hosts, "gather_facts": False, "vars": variables, "tasks": tasks}]
    (folder / "play.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", folder / "hosts", folder / "play.yml"],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def task(*items: dict[str, Any]) -> dict[str, Any]:
    """Return a task that collects checks."""
    return {"name": "Collect", "quantdesk.redis.checks": {"subject": "test", "checks": list(items)}}


REPORT: dict[str, Any] = {
    "name": "Report",
    "quantdesk.redis.checks": {"report": "Test", "success": "Fine.", "failure": "Bad.", "table": True},
    "run_once": True,
}


def test_a_failed_check_ends_a_play_that_has_no_report(tmp_path: Path) -> None:
    code, output = play(tmp_path, [task({"name": "size", "that": "size > 3", "expected": "more than 3"})], size=2)
    assert code != 0
    assert "size: found 2; expected more than 3. [one]" in output


@in_play(task({"name": "size", "that": "size > 3"}, {"name": "size", "equals": "5"}), size=5)
def test_what_holds_passes(played: tuple[bool, str]) -> None:
    well, _ = played
    assert well


def test_inputs_are_checked_as_their_argument_spec_declares_them() -> None:
    options = {
        "x_on": {"type": "bool"},
        "x_name": {"type": "str"},
        "x_only": {"type": "str", "choices": ["one"]},
        "x_sync": {"type": "str", "choices": ["", "often", "no"]},
    }
    assert checks.input_checks(options) == [
        {"name": "x_on", "that": "x_on is quantdesk.redis.true_or_false", "expected": "true or false"},
        {"name": "x_only", "that": "x_only in ['one']", "expected": "one"},
        {
            "name": "x_sync",
            "that": "x_sync in ['often', 'no', '']",
            "expected": "often, 'no', in quotes, as YAML reads no as false or an empty text",
        },
    ]


@in_play(
    {
        "name": "Collect",
        "quantdesk.redis.checks": {
            "subject": "firewall",
            "inputs": "firewall",
            "checks": [
                {"name": "forward", "after": ["firewall_forward"], "that": "false", "expected": "a second problem"},
                {"name": "own", "that": "false", "expected": "the role's own check"},
            ],
        },
    },
    firewall_forward="perhaps",
)
def test_inputs_of_a_role_are_checked_before_its_own_checks(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "firewall_forward: found 'perhaps'; expected drop or accept" in output
    assert "expected the role's own check" in output
    assert "a second problem" not in output


@in_play(
    task(
        {"name": "size", "that": "size > 9", "expected": "much room", "warn": True},
        {"name": "size", "that": "size > 3", "expected": "room", "warn": True},
        {"name": "other", "that": "nowhere > 3", "expected": "a place", "warn": True},
    ),
    size=5,
)
def test_a_warning_ends_nothing(played: tuple[bool, str]) -> None:
    well, output = played
    assert well
    said = " ".join(output.split())
    assert "test: size: found 5; expected much room. [" in said
    assert "expected room" not in said
    assert "expected a place" not in said


@in_play(
    task({"name": "a", "that": "a", "expected": "a value"}, {"name": "b", "that": "b == 1", "expected": "1"}),
    REPORT,
    checks_deferred="results",
    a="{{ nowhere }}",
    b=2,
)
def test_an_undefined_variable_is_a_problem_with_its_name_and_not_the_end(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a: found nothing ('nowhere' is undefined); expected a value. [one]" in output
    assert "b: found 2; expected 1. [one]" in output


@in_play(
    task({"name": "word", "that": "word is quantdesk.redis.password", "secret": True, "expected": "a better one"}),
    REPORT,
    checks_deferred="results",
    word="sesame",
)
def test_a_secret_is_never_shown(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a hidden value of 6 characters" in output
    assert "sesame" not in output


@in_play(task({"name": "size", "equals": "3"}), REPORT, hosts="one,two", checks_deferred="results", size=2)
def test_the_report_holds_every_host_and_says_the_same_problem_once(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "Test: 1 problem. Bad." in output
    assert "size: found 2; expected 3. [one, two]" in output
    assert output.count("FAILED   ") == 2


@in_play(task({"name": "x", "when": "false"}), REPORT, checks_deferred="results")
def test_a_report_of_nothing_is_a_failure(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "not one check ran" in output


@in_play(task({"name": "a", "equals": "3", "control": 20}, {"name": "b", "equals": "3", "control": [21, 22]}), a=1, b=2)
def test_a_control_stands_at_the_end_of_its_problem(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a: found 1; expected 3. [one] (control 20)" in output
    assert "b: found 2; expected 3. [one] (controls 21, 22)" in output


@in_play(task({"name": "a", "that": "true", "control": "twenty"}), a=1)
def test_a_control_that_is_no_number_is_refused(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "control of the check a: found 'twenty'; expected a number, or several" in output


@in_play(
    task(
        {"name": "a", "when": "false", "otherwise": "{{ kind }} has none", "equals": "nowhere", "control": 14},
        {"name": "b", "that": "true"},
    ),
    REPORT,
    checks_deferred="results",
    kind="standalone",
    b=1,
)
def test_what_does_not_apply_is_recorded_with_the_reason_and_does_not_fail(played: tuple[bool, str]) -> None:
    well, output = played
    assert well, output
    assert "2 checks on 1 hosts, 1 not applicable, all ok. Fine." in output
    assert any(
        line.split() == ["n/a", "14", "one", "test", "a", "standalone", "has", "none"] for line in output.split("\n")
    )


@in_play(task({"name": "a", "when": "false", "otherwise": "not here"}))
def test_what_does_not_apply_passes_without_a_report_too(played: tuple[bool, str]) -> None:
    well, output = played
    assert well, output


@in_play(
    task({"name": "word", "equals": "other", "secret": True}),
    word="{{ 'ses' ~ 'ame' }}",
    other="{{ 'tahi' ~ 'ni' }}",
)
def test_a_value_to_compare_a_secret_with_is_not_shown_either(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "word: found a hidden value of 6 characters; expected a hidden value of 6 characters. [one]" in output
    assert "tahini" not in output


def test_values_are_shown_on_one_line_and_cut() -> None:
    assert checks.plain("a\nb") == "'a\\nb'"
    assert checks.plain("") == "''"
    assert checks.shorten("x" * 70) == "x" * 59 + "…"
    assert checks.hide("") == "an empty value"


ROWS: list[dict[str, Any]] = [
    {"subject": "test", "name": "a", "control": [7], "found": "'{{ nowhere }}'", "expected": "b", "verdict": "FAILED"},
    {"subject": "other", "name": "c", "control": [], "found": "'d'", "expected": "'d'", "verdict": "ok"},
]


@in_play(
    {"name": "Note", "quantdesk.redis.checks": {"rows": "{{ rows }}"}}, REPORT, checks_deferred="results", rows=ROWS[1:]
)
def test_rows_that_a_host_has_judged_are_in_the_report(played: tuple[bool, str]) -> None:
    well, output = played
    assert well, output
    assert "1 checks on 1 hosts, all ok" in output


@in_play(
    {
        "name": "Told",
        "ansible.builtin.command": {"argv": ["printf", "%s", "{{ '{{' }} nowhere }}"]},
        "register": "told",
    },
    {"name": "Note", "quantdesk.redis.checks": {"rows": [{**ROWS[0], "found": "{{ told.stdout }}"}]}},
)
def test_nothing_of_a_row_is_evaluated_and_one_that_failed_ends_a_play_without_a_report(
    played: tuple[bool, str],
) -> None:
    well, output = played
    assert not well
    assert "test: 1 of 1 checks failed" in output
    assert "a: found {{ nowhere }}; expected b. [one] (control 7)" in output


@in_play(
    task(
        *({"name": f"a{n}", "found": str(n), "equals": str(n)} for n in range(9)),
        {"name": "b", "found": "nowhere", "equals": "1"},
        {"name": "c", "found": "1 / 0", "equals": "1"},
        {"name": "d", "when": "elsewhere", "that": "true"},
        {"name": "e", "found": "1)", "equals": "1"},
    ),
    REPORT,
    checks_deferred="results",
)
def test_what_cannot_be_worked_out_is_alone_in_that(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "Test: 4 problems." in output
    assert "b: found nothing ('nowhere' is undefined)" in output
    assert "d: found nothing ('elsewhere' is undefined)" in output
    assert all(f"{name}: found nothing (" in output for name in "bcde")

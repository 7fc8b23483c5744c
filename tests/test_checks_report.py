"""How the checks plugin groups, lays out and carries results, beyond one play's verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_checks import REPORT, play, task

from conftest import load

checks = load("plugins/action/checks.py", "checks")


def result(name: str, found: str = "1", ok: bool = False) -> dict[str, Any]:
    """Return the result of one check."""
    return {"subject": "test", "name": name, "found": found, "expected": "2", "ok": ok}


def test_what_holds_is_no_problem() -> None:
    assert checks.group_problems({"one": [result("a", ok=True)], "two": []}) == []


def test_the_same_problem_names_its_hosts_in_order_and_each_once() -> None:
    found = checks.group_problems({"one": [result("a"), result("a")], "two": [result("b"), result("a")]})
    assert found == ["a: found 1; expected 2. [one, two]", "b: found 1; expected 2. [two]"]


def test_another_value_of_the_same_variable_is_another_problem() -> None:
    assert len(checks.group_problems({"one": [result("a", "1")], "two": [result("a", "3")]})) == 2


def test_a_table_is_aligned_and_says_which_check_failed() -> None:
    lines = checks.table({"a-long-name": [result("size", ok=True)], "b": [result("port", "x" * 200)]})
    assert [line.split()[0] for line in lines] == ["VERDICT", "ok", "FAILED"]
    column = lines[0].index("SUBJECT")
    assert [line[column - 1] + line[column : column + 4] for line in lines[1:]] == [" test", " test"]
    assert "x" * 59 + "…" in lines[2]
    assert "x" * 60 not in lines[2]
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(("text", "short"), [("", ""), ("x" * 60, "x" * 60), ("x" * 61, "x" * 59 + "…")])
def test_a_text_is_cut_only_where_it_is_too_long(text: str, short: str) -> None:
    assert checks.shorten(text) == short


def test_results_of_several_tasks_are_all_in_the_report(tmp_path: Path) -> None:
    tasks = [task({"name": name, "that": "false", "expected": "more"}) for name in ("a", "b", "c")]
    code, output = play(tmp_path, [*tasks, REPORT], checks_deferred="results", a=1, b=2, c=3)
    assert code != 0
    assert "Test: 3 problems. Bad." in output
    assert all(f"{name}: found" in output for name in "abc")


def test_all_problems_of_one_task_are_in_the_message_that_ends_the_play(tmp_path: Path) -> None:
    items = [{"name": name, "that": "false", "expected": "more"} for name in ("a", "b")]
    code, output = play(tmp_path, [task({"name": "c", "that": "true"}, *items)], a=1, b=2, c=3)
    assert code != 0
    assert "test: 2 of 3 checks failed" in output
    assert "a: found 1; expected more. [one]" in output
    assert "b: found 2; expected more. [one]" in output


def test_a_check_that_does_not_apply_is_left_out(tmp_path: Path) -> None:
    items = [
        {"name": "a", "when": "a > 1", "that": "false", "expected": "less"},
        {"name": "b", "when": "a == 1", "that": "true"},
    ]
    code, output = play(tmp_path, [task(*items), REPORT], checks_deferred="results", a=1, b=1)
    assert code == 0, output
    assert "1 checks on 1 hosts, all ok. Fine." in output


def test_a_value_to_compare_with_that_is_undefined_is_a_problem(tmp_path: Path) -> None:
    code, output = play(tmp_path, [task({"name": "a", "equals": "nowhere", "expected": "the same"})], a=None)
    assert code != 0
    assert "a: found None; expected the same. [one]" in output


def test_a_secret_that_ends_the_play_at_once_is_not_shown(tmp_path: Path) -> None:
    item = {"name": "word", "that": "word is password", "secret": True, "expected": "a better one"}
    # Ansible quotes the lines around a failed task: the word must not stand there as it is.
    code, output = play(tmp_path, [task(item)], word="{{ 'ses' ~ 'ame' }}")
    assert code != 0
    assert "a hidden value of 6 characters" in output
    assert "sesame" not in output


def test_a_condition_that_is_undefined_is_a_problem_and_not_a_reason_to_skip(tmp_path: Path) -> None:
    item = {"name": "a", "when": "nowhere", "that": "true", "expected": "a value"}
    code, output = play(tmp_path, [task(item)], a=1)
    assert code != 0
    assert "a: found nothing ('nowhere' is undefined); expected a value. [one]" in output


def test_a_check_that_asks_for_a_value_and_a_condition_needs_both(tmp_path: Path) -> None:
    code, output = play(tmp_path, [task({"name": "a", "equals": "2", "that": "true"})], a=1)
    assert code != 0
    assert "a: found 1; expected 2. [one]" in output

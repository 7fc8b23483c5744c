"""How the checks plugin groups, lays out and carries results, beyond one play's verdict."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_checks import REPORT, play, task

from conftest import in_play, load

checks = load("plugins/action/checks.py")


def result(name: str, found: str = "1", verdict: str = "FAILED", control: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the result of one check."""
    return {
        "subject": "test",
        "name": name,
        "control": list(control),
        "found": found,
        "expected": "2",
        "verdict": verdict,
    }


def writing(*paths: Path | str) -> dict[str, Any]:
    """Return a report that writes files."""
    return {
        **REPORT,
        "quantdesk.redis.checks": {**REPORT["quantdesk.redis.checks"], "write": [str(path) for path in paths]},
    }


def test_what_holds_is_no_problem() -> None:
    assert checks.group_problems({"one": [result("a", verdict="ok"), result("b", verdict="n/a")], "two": []}) == []


def test_the_same_problem_names_its_hosts_in_order_and_each_once() -> None:
    found = checks.group_problems({"one": [result("a"), result("a")], "two": [result("b"), result("a")]})
    assert found == ["a: found 1; expected 2. [one, two]", "b: found 1; expected 2. [two]"]


def test_another_value_of_the_same_variable_is_another_problem() -> None:
    assert len(checks.group_problems({"one": [result("a", "1")], "two": [result("a", "3")]})) == 2


def test_a_table_is_aligned_and_says_which_check_failed() -> None:
    lines = checks.table({"a-long-name": [result("size", verdict="ok")], "b": [result("port", "x" * 200)]})
    assert [line.split()[0] for line in lines] == ["VERDICT", "ok", "FAILED"]
    assert lines[0].split() == ["VERDICT", "CONTROL", "HOST", "SUBJECT", "CHECK", "FOUND", "EXPECTED"]
    column = lines[0].index("SUBJECT")
    assert [line[column - 1] + line[column : column + 4] for line in lines[1:]] == [" test", " test"]
    assert "x" * 59 + "…" in lines[2]
    assert "x" * 60 not in lines[2]
    assert not any(line.endswith(" ") for line in lines)


def test_a_table_holds_the_controls_and_keeps_the_order_of_hosts() -> None:
    lines = checks.table({"b": [result("x", control=(19, 20))], "a": [result("y"), result("z", control=(3,))]})
    column = lines[0].index("CONTROL")
    assert [line[column : column + 7].strip() for line in lines[1:]] == ["19,20", "", "3"]
    assert [line.split()[-4] for line in lines[1:]] == ["test", "test", "test"]
    assert [line[lines[0].index("HOST")] for line in lines[1:]] == ["b", "a", "a"]


def test_the_same_problem_of_another_control_is_another_problem() -> None:
    found = checks.group_problems({"one": [result("a", control=(1,)), result("a", control=(2, 3)), result("a")]})
    assert found == [f"a: found 1; expected 2. [one]{end}" for end in (" (control 1)", " (controls 2, 3)", "")]


@pytest.mark.parametrize(("text", "short"), [("", ""), ("x" * 60, "x" * 60), ("x" * 61, "x" * 59 + "…")])
def test_a_text_is_cut_only_where_it_is_too_long(text: str, short: str) -> None:
    assert checks.shorten(text) == short


@in_play(
    *(task({"name": name, "that": "false", "expected": "more"}) for name in ("a", "b", "c")),
    REPORT,
    checks_deferred="results",
    a=1,
    b=2,
    c=3,
)
def test_results_of_several_tasks_are_all_in_the_report(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "Test: 3 problems. Bad." in output
    assert all(f"{name}: found" in output for name in "abc")


@in_play(
    task({"name": "c", "that": "true"}, *({"name": n, "that": "false", "expected": "more"} for n in ("a", "b"))),
    a=1,
    b=2,
    c=3,
)
def test_all_problems_of_one_task_are_in_the_message_that_ends_the_play(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "test: 2 of 3 checks failed" in output
    assert "a: found 1; expected more. [one]" in output
    assert "b: found 2; expected more. [one]" in output


@in_play(
    task(
        {"name": "a", "when": "a > 1", "that": "false", "expected": "less"},
        {"name": "b", "when": "a == 1", "that": "true"},
    ),
    REPORT,
    checks_deferred="results",
    a=1,
    b=1,
)
def test_a_check_that_does_not_apply_is_left_out(played: tuple[bool, str]) -> None:
    well, output = played
    assert well, output
    assert "1 checks on 1 hosts, all ok. Fine." in output


@in_play(task({"name": "a", "equals": "nowhere", "expected": "the same"}), a=None)
def test_a_value_to_compare_with_that_is_undefined_is_a_problem(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a: found None; expected the same. [one]" in output


@in_play(
    task({"name": "word", "that": "word is quantdesk.redis.password", "secret": True, "expected": "a better one"}),
    # Ansible quotes the lines around a failed task: the word must not stand there as it is.
    word="{{ 'ses' ~ 'ame' }}",
)
def test_a_secret_that_ends_the_play_at_once_is_not_shown(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a hidden value of 6 characters" in output
    assert "sesame" not in output


@in_play(task({"name": "a", "when": "nowhere", "that": "true", "expected": "a value"}), a=1)
def test_a_condition_that_is_undefined_is_a_problem_and_not_a_reason_to_skip(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a: found nothing ('nowhere' is undefined); expected a value. [one]" in output


@in_play(task({"name": "a", "equals": "2", "that": "true"}), a=1)
def test_a_check_that_asks_for_a_value_and_a_condition_needs_both(played: tuple[bool, str]) -> None:
    well, output = played
    assert not well
    assert "a: found 1; expected 2. [one]" in output


def test_reports_are_written_although_checks_failed(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"name": "a", "equals": "1", "control": 19},
        {"name": "b", "equals": "'<x> & \"y\"'", "control": [21, 22]},
        {"name": "c", "when": "false", "otherwise": "no sentinel here"},
        {"name": "word", "that": "word is quantdesk.redis.password", "secret": True, "expected": "a better one"},
    ]
    files = [tmp_path / "report.json", tmp_path / "report.xml"]
    tasks = [task(*items), writing(*files)]
    code, output = play(tmp_path, tasks, hosts="all", checks_deferred="results", a=1, b="\x07", word="sesame")
    assert code != 0
    assert "Test: 2 problems. Bad." in output
    assert "sesame" not in files[0].read_text() + files[1].read_text()

    written = json.loads(files[0].read_text())
    assert list(written) == ["report", "time", "hosts", "summary", "checks"]
    assert datetime.fromisoformat(written["time"]).utcoffset() == timedelta(0)
    assert (written["report"], written["hosts"]) == ("Test", ["one", "two"])
    assert written["summary"] == {"ok": 2, "failed": 4, "n/a": 2}
    assert [check["host"] for check in written["checks"]] == ["one"] * 4 + ["two"] * 4
    assert written["checks"][1] == {
        "control": [21, 22],
        "host": "one",
        "subject": "test",
        "check": "b",
        "found": "'\\x07'",
        "expected": "'<x> & \"y\"'",
        "verdict": "FAILED",
    }
    assert [check["verdict"] for check in written["checks"][:4]] == ["ok", "FAILED", "n/a", "FAILED"]

    suites = ET.parse(files[1]).getroot().findall("testsuite")
    assert [suite.attrib["name"] for suite in suites] == ["one", "two"]
    assert [suites[0].attrib[key] for key in ("tests", "failures", "skipped", "errors")] == ["4", "2", "1", "0"]
    cases = suites[1].findall("testcase")
    assert [case.attrib["name"] for case in cases] == ["control 19: a", "controls 21, 22: b", "c", "word"]
    assert {case.attrib["classname"] for case in cases} == {"two.test"}
    assert [[part.tag for part in case] for case in cases] == [[], ["failure"], ["skipped"], ["failure"]]
    assert cases[1][0].attrib["message"] == "found '\\x07'; expected '<x> & \"y\"'"
    assert cases[2][0].attrib["message"] == "no sentinel here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts", "play.yml", "report.json", "report.xml"]


def test_what_xml_cannot_say_is_replaced() -> None:
    text = checks.as_junit("Test", "2026-01-01T00:00:00+00:00", {"one": [result("bell \x07", "\ud800")]})
    case = ET.fromstring(text)[0][0]
    assert case.attrib["name"] == "bell \ufffd"
    assert case[0].attrib["message"] == "found \ufffd; expected 2"


@pytest.mark.parametrize("value", [None, "", [], [""]])
def test_there_may_be_nothing_to_write(value: Any) -> None:
    assert checks.destinations(value) == []


def test_one_file_needs_no_list(tmp_path: Path) -> None:
    assert checks.destinations(str(tmp_path / "a.json")) == [tmp_path / "a.json"]


@pytest.mark.parametrize("path", ["report.txt", "report", "nowhere/report.json", "folder.xml"])
def test_a_file_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(checks.AnsibleActionFail) as refused:
        checks.destinations([str(tmp_path / "good.json"), str(tmp_path / path)])
    assert f"write: found '{tmp_path / path}'; expected a file that ends in .json or .xml, in a folder" in str(
        refused.value
    )
    assert not (tmp_path / "good.json").exists()


def test_a_play_ends_with_the_name_of_the_file_that_cannot_be(tmp_path: Path) -> None:
    tasks = [task({"name": "a", "that": "true"}), writing(tmp_path / "good.json", tmp_path / "report.txt")]
    code, output = play(tmp_path, tasks, checks_deferred="results", a=1)
    assert code != 0
    assert "report.txt'; expected a file that ends in .json or .xml" in output
    assert not (tmp_path / "good.json").exists()


def test_a_file_that_fails_midway_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "report.json"
    file.write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(checks.AnsibleActionFail, match=r"report\.json cannot be written: No space left on device"):
        checks.write(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]

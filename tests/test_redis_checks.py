"""Checks of verify.yml that the lab cannot break: they judge invented answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import PROJECT, ansible


def judge(folder: Path, name: str, state: dict[str, str]) -> tuple[int, str]:
    """Let one of the role's checks judge what a host would have said."""
    play = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": [str(PROJECT / "roles/redis/vars/main/checks.yml")],
            "vars": {
                "redis_kernel": True,
                "redis_somaxconn": 1024,
                "__redis_state": state,
                "redis_clients": ["::1"],
                "redis_appendonly": True,
            },
            "tasks": [
                {
                    "checks": {
                        "subject": "redis",
                        "checks": "{{ __redis_host_live_checks | selectattr('name', 'equalto', '"
                        + name
                        + "') | list }}",
                    }
                }
            ],
        }
    ]
    file = folder / "play.yml"
    file.write_text(json.dumps(play))
    return ansible("ansible-playbook", file)


GOOD = {"Overcommit": "1", "Hugepages": "never", "Somaxconn": "4096"}


@pytest.mark.parametrize(
    ("change", "well"),
    [
        ({}, True),
        ({"Hugepages": ""}, True),
        ({"Overcommit": "0"}, False),
        ({"Hugepages": "madvise"}, False),
        ({"Somaxconn": "128"}, False),
    ],
)
def test_the_kernel_is_judged_by_its_figures(tmp_path: Path, change: dict[str, str], well: bool) -> None:
    code, output = judge(tmp_path, "kernel", {**GOOD, **change})
    assert (code == 0) is well, output
    assert well or "kernel: found 'overcommit" in output
    assert well or "(control 39)" in output


@pytest.mark.parametrize(("exposure", "well"), [("0.9", True), ("1.0", False), ("9.2", False)])
def test_the_exposure_has_a_limit(tmp_path: Path, exposure: str, well: bool) -> None:
    name = "exposure in systemd-analyze security, of 10"
    assert (judge(tmp_path, name, {"Exposure": exposure})[0] == 0) is well


@pytest.mark.parametrize(
    ("state", "well"),
    [
        ({}, True),
        ({"Cut": "cut at its end: 70 bytes were dropped", "CutAge": "90"}, False),
        ({"Cut": "cut at its end: 70 bytes were dropped", "CutAge": "90000"}, True),
    ],
)
def test_a_cut_file_is_a_failure_for_a_day(tmp_path: Path, state: dict[str, str], well: bool) -> None:
    code, output = judge(tmp_path, "append-only file at the last start", state)
    assert (code == 0) is well, output
    assert well or "cut at its end: 70 bytes were dropped" in output

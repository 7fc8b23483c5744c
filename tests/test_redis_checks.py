"""Checks of verify.yml that the lab cannot break: they judge invented answers."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import PROJECT, ansible_plays


def judge(name: str, state: dict[str, str]) -> dict[str, Any]:
    """Return a play in which one of the role's checks judges what a host would have said."""
    return {
        "connection": "local",
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
                    "checks": "{{ __redis_host_live_checks | selectattr('name', 'equalto', '" + name + "') | list }}",
                }
            }
        ],
    }


GOOD = {"Overcommit": "1", "Hugepages": "never", "Somaxconn": "4096"}
KERNEL: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Hugepages": ""}, True),
    ({"Overcommit": "0"}, False),
    ({"Hugepages": "madvise"}, False),
    ({"Somaxconn": "128"}, False),
]
EXPOSURE = [("0.9", True), ("1.0", False), ("9.2", False)]
CUT: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"Cut": "cut at its end: 70 bytes were dropped", "CutAge": "90"}, False),
    ({"Cut": "cut at its end: 70 bytes were dropped", "CutAge": "90000"}, True),
]


# What a host has of an instance's names before this role made anything there, or after.
NAMES: list[tuple[dict[str, str], str]] = [
    ({}, ""),
    ({"account": "/var/lib/redis-state", "folder": "redis-state 700"}, ""),
    ({"account": "/home/ann"}, "user redis-state: found 'one with home /home/ann'; expected no such user"),
    ({"folder": "ann 755"}, "/etc/redis-state: found 'a folder of ann 755'; expected no such folder"),
    ({"folder": "a link"}, "/etc/redis-state: found 'a link'; expected no such folder"),
    ({"folder": "a file"}, "/etc/redis-state: found 'a file'; expected no such folder"),
]


def judge_names(seen: dict[str, str]) -> dict[str, Any]:
    """Return a play in which the role's preflight judges what a host would have of the names of an instance."""
    chosen = "['user redis-state', '/etc/redis-state']"
    return {
        "connection": "local",
        "vars_files": [str(PROJECT / "roles/redis/vars/main/inputs.yml")],
        "vars": {
            "redis_name": "state",
            "__redis_user": "redis-state",
            "__redis_folder": "/etc/redis-state",
            "__redis_data": "/var/lib/redis-state",
            "__redis_looked": {"rc": 0},
            "__redis_seen": {"account": "", "folder": "", **seen},
        },
        "tasks": [
            {
                "checks": {
                    "subject": "redis-state",
                    "checks": "{{ __redis_instance_checks | selectattr('name', 'in', " + chosen + ") | list }}",
                }
            }
        ],
    }


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """Whether each was found well, and the output."""
    plays = {f"kernel {i}": judge("kernel", {**GOOD, **change}) for i, (change, _) in enumerate(KERNEL)}
    for figure, _ in EXPOSURE:
        plays[f"exposure {figure}"] = judge("exposure in systemd-analyze security, of 10", {"Exposure": figure})
    for i, (state, _) in enumerate(CUT):
        plays[f"cut {i}"] = judge("append-only file at the last start", state)
    plays |= {f"names {i}": judge_names(seen) for i, (seen, _) in enumerate(NAMES)}
    return ansible_plays(tmp_path_factory.mktemp("judged"), plays)


@pytest.mark.parametrize("number", range(len(KERNEL)), ids=[str(change) for change, _ in KERNEL])
def test_the_kernel_is_judged_by_its_figures(judged: dict[str, tuple[bool, str]], number: int) -> None:
    well, output = judged[f"kernel {number}"]
    assert well is KERNEL[number][1], output
    assert well or "kernel: found 'overcommit" in output
    assert well or "(control 39)" in output


@pytest.mark.parametrize(("exposure", "well"), EXPOSURE)
def test_the_exposure_has_a_limit(judged: dict[str, tuple[bool, str]], exposure: str, well: bool) -> None:
    assert judged[f"exposure {exposure}"][0] is well


@pytest.mark.parametrize("number", range(len(CUT)), ids=[str(state) for state, _ in CUT])
def test_a_cut_file_is_a_failure_for_a_day(judged: dict[str, tuple[bool, str]], number: int) -> None:
    well, output = judged[f"cut {number}"]
    assert well is CUT[number][1], output
    assert well or "cut at its end: 70 bytes were dropped" in output


@pytest.mark.parametrize("number", range(len(NAMES)), ids=[str(seen) for seen, _ in NAMES])
def test_an_instance_takes_no_user_and_no_folder_of_somebody_else(
    judged: dict[str, tuple[bool, str]], number: int
) -> None:
    well, output = judged[f"names {number}"]
    assert well is (NAMES[number][1] == ""), output
    assert NAMES[number][1] in " ".join(output.split())

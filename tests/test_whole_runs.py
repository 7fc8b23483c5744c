"""Options and settings of Ansible's own that would take a run apart are refused before its first task."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PROJECT, load

whole_runs = load("playbooks/callback_plugins/whole_runs.py")
PLAYBOOKS = sorted((PROJECT / "playbooks").glob("*.yml"))

OPTIONS: dict[str, Any] = {"tags": ["all"], "skip_tags": [], "start_at_task": None, "step": False}
SETTINGS = {"DEFAULT_STRATEGY": "linear", "ANY_ERRORS_FATAL": True, "DEFAULT_HASH_BEHAVIOUR": "replace"}


def found(
    options: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, extra: dict[str, Any] | None = None
) -> list[str]:
    """Return the problems of a run that is whole, but for what is given."""
    return list(whole_runs.problems({**OPTIONS, **(options or {})}, {**SETTINGS, **(settings or {})}, extra or {}))


def test_a_whole_run_has_none() -> None:
    assert found() == []
    assert found(settings={"DEFAULT_STRATEGY": "ansible.builtin.linear"}) == []
    assert found(options={"skip_tags": ["notest", "molecule-notest", "molecule-idempotence-notest"]}) == []
    assert found(settings={"DEFAULT_STRATEGY": "mitogen_linear"}, extra={"rebuild_rto": "90"}) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tags": ["redis"]}, "--tags: found 'redis'; expected none: this has no tags"),
        ({"tags": ["b", "always"]}, "--tags: found 'always,b'; expected none"),
        ({"skip_tags": ["notest", "backup"]}, "--skip-tags: found 'backup'; expected none"),
        ({"skip_tags": ["always"]}, "--skip-tags: found 'always'; expected none"),
        ({"start_at_task": "Redis"}, "--start-at-task: found 'Redis'; expected none: the preflight"),
        ({"step": True}, "--step: found; expected none"),
    ],
)
def test_an_option_that_leaves_tasks_out_is_refused(options: dict[str, Any], text: str) -> None:
    assert [problem[: len(text)] for problem in found(options)] == [text]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"DEFAULT_STRATEGY": "free"}, "ANSIBLE_STRATEGY, or strategy in ansible.cfg: found 'free'; expected linear"),
        (
            {"DEFAULT_STRATEGY": "ansible.builtin.host_pinned"},
            "ANSIBLE_STRATEGY, or strategy in ansible.cfg: found 'ansib",
        ),
        (
            {"ANY_ERRORS_FATAL": False},
            "ANSIBLE_ANY_ERRORS_FATAL, or any_errors_fatal in ansible.cfg: found False; expec",
        ),
        ({"DEFAULT_HASH_BEHAVIOUR": "merge"}, "ANSIBLE_HASH_BEHAVIOUR: found 'merge'; expected replace"),
    ],
)
def test_a_setting_that_parts_hosts_is_refused(settings: dict[str, Any], text: str) -> None:
    assert [problem[: len(text)] for problem in found(settings=settings)] == [text]


def test_a_value_that_was_cut_at_its_blank_is_refused() -> None:
    assert found(extra={"_raw_params": "14:05", "rebuild_lost_at": "2026-01-31"})[0].startswith(
        "-e: found '14:05' without a name, which was cut off a value at its blank; expected the value in quotes"
    )


def test_no_playbook_and_no_role_has_tags() -> None:
    tagged = [
        str(path.relative_to(PROJECT))
        for path in [*PLAYBOOKS, *PROJECT.glob("playbooks/tasks/*.yml"), *PROJECT.glob("roles/*/tasks/*.yml")]
        if re.search(r"^\s*(- )?tags:", path.read_text(), re.MULTILINE)
    ]
    assert tagged == []


def run(folder: Path, *options: str, playbook: str = "site.yml", **environment: str) -> tuple[int, str]:
    """Run a playbook on hosts that nobody reaches, from another folder than the checkout."""
    hosts: dict[str, Any] = {"redis": {"hosts": {"one": {}}}, "app": {"hosts": {"two": {}}}}
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump(hosts))
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "ansible-playbook", "-i", inventory, PROJECT / "playbooks" / playbook),
            *("-e", json.dumps({"ansible_connection": "local", "ansible_become": False}), *options),
        ],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_all_that_is_wrong_stands_in_one_message_and_no_task_runs(tmp_path: Path) -> None:
    code, output = run(
        tmp_path,
        *("--tags", "redis", "--skip-tags", "always", "--start-at-task", "Redis", "--step"),
        *("-e", "rebuild_lost_at=2026-01-31 14:05"),
        ANSIBLE_STRATEGY="free",
        ANSIBLE_ANY_ERRORS_FATAL="false",
    )
    assert code == 5
    assert "Options of this run: 7 problems. Nothing has been changed on any host." in output
    assert re.findall(r"^  - (\S+?)[:,]", output, re.MULTILINE) == [
        *("--tags", "--skip-tags", "--start-at-task", "--step", "ANSIBLE_STRATEGY", "ANSIBLE_ANY_ERRORS_FATAL", "-e"),
    ]
    assert "TASK [" not in output
    assert "PLAY [" not in output


@pytest.mark.slow
@pytest.mark.parametrize("playbook", ["redis.yml", "restore.yml", "repair.yml", "verify.yml"])
def test_it_takes_part_in_each_playbook(tmp_path: Path, playbook: str) -> None:
    code, output = run(tmp_path, "--tags", "always", playbook=playbook)
    assert code == 5
    assert "TASK [" not in output


@pytest.mark.slow
def test_lists_of_tasks_are_not_refused(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--list-tags", "--tags", "redis")
    assert code == 0, output
    # Ansible's own, of the tasks that it adds to a role with argument specs.
    assert set(re.findall(r"TASK TAGS: \[(.*)\]", output)) <= {"", "always"}

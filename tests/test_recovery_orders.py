"""restore.yml and repair.yml refuse a wrong order before they connect to any host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT

CONFIRMED = ["restore_target=redis1", "restore_confirm=true"]


def order(tmp_path: Path, name: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Give an order on hosts that do not exist: whoever connected to one would get another message."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "all: {vars: {ansible_host: 127.0.0.1, ansible_port: 9}, children: "
        "{redis: {hosts: {redis1: }}, app: {hosts: {app1: }}, database: {hosts: {}}}}\n"
    )
    return subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            *("-i", "inventory/base", "-i", inventory, f"playbooks/{name}.yml"),
            *(word for variable in variables for word in ("-e", variable)),
        ],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "variables", "problems"),
    [
        (
            "restore",
            [],
            ["restore_target: found 'nothing'; expected one host", "restore_confirm: found 'nothing'"],
        ),
        ("restore", ["restore_target=redis1"], ["restore_confirm: found 'nothing'; expected -e restore_confirm=true"]),
        (
            "restore",
            [*CONFIRMED, "restore_backup=ffffffff", "restore_as_of=2020-01-01T00:00:00Z", "restore_verify=all"],
            ["restore_backup and restore_as_of: found 'ffffffff and 2020", "restore_verify: found 'all'"],
        ),
        (
            "repair",
            ["repair_target=redis:app", "repair_replica=redis2", "repair_way=hope"],
            ["repair_target: found 'redis:app'", "repair_replica: found 'redis2'", "repair_way: found 'hope'"],
        ),
    ],
    ids=["nothing", "not confirmed", "restore", "repair"],
)
def test_a_wrong_order_is_refused_before_a_host_is_asked(
    tmp_path: Path, name: str, variables: list[str], problems: list[str]
) -> None:
    done = order(tmp_path, name, *variables)
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    for problem in problems:
        assert problem in said, done.stdout
    assert "UNREACHABLE" not in done.stdout


def test_an_order_that_is_right_gets_to_the_host(tmp_path: Path) -> None:
    done = order(tmp_path, "restore", *CONFIRMED)
    assert done.returncode != 0
    assert "UNREACHABLE" in done.stdout

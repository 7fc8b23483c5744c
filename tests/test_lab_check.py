"""What `make up` asks of this machine before it makes anything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from conftest import PROJECT

SCRIPT = (PROJECT / "molecule/default/check").read_text()
# A lab that no test has.
LAB = 9
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def check(*prefix: str, **more: str) -> subprocess.CompletedProcess[str]:
    # From standard input: another user may not read this checkout.
    return subprocess.run(
        [*prefix, "bash", "-s"],
        input=SCRIPT,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LAB": str(LAB), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@ROOT
def test_an_ordinary_user_is_told_all_that_is_missing_at_once() -> None:
    result = check("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    assert result.returncode == 1
    assert "Nothing was made." in result.stderr
    for words in (
        "control groups: found",
        "XDG_RUNTIME_DIR: found ''; expected",
        "/etc/subuid: found no line for nobody",
    ):
        assert words in result.stderr
    # Each says what to do about it.
    assert "loginctl enable-linger" in result.stderr
    assert "usermod --add-subuids" in result.stderr


@ROOT
def test_a_port_of_another_program_is_named_and_a_free_lab_is_not() -> None:
    with socket.create_server(("127.0.0.1", 22721 + 1000 * LAB)):
        result = check()
    assert result.returncode == 1
    assert f"port {22721 + 1000 * LAB} of loopback: found a program" in result.stderr
    assert result.stderr.count("\n  - ") == 1
    assert check().returncode == 0


def test_an_engine_other_than_podman_and_docker_is_refused() -> None:
    result = check(LAB_ENGINE="dockr")
    assert result.returncode == 1
    assert "LAB_ENGINE: found 'dockr'; expected podman or docker" in result.stderr


def test_a_docker_that_is_not_there_or_does_not_answer_is_named(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "id", "timeout", "tail"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    result = check(LAB_ENGINE="docker", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "docker: found no such program" in result.stderr
    # What any client of Docker does without a daemon.
    client = tmp_path / "docker"
    client.write_text("#!/bin/bash\necho Cannot connect to the Docker daemon >&2\nexit 1\n")
    client.chmod(0o755)
    result = check(LAB_ENGINE="docker", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "docker: found no daemon that answers (Cannot connect to the Docker daemon); expected one" in result.stderr

"""A task that handles a secret and fails prints none, however talkative Ansible is. Control 35."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from conftest import ansible, free_port

SECRET = secrets.token_hex(16)


def run(folder: Path, task: dict[str, Any]) -> tuple[int, str]:
    """Run one task on this machine, with the secret in a variable, and return the exit code and all output."""
    play = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_become": False, "secret": SECRET},
            "tasks": [task],
        }
    ]
    file = folder / "play.yml"
    file.write_text(json.dumps(play))
    return ansible("ansible-playbook", "-vvvv", "--diff", file)


def server() -> dict[str, Any]:
    """Return the way to a server that is not there."""
    return {"port": free_port()}


LOGIN = [{"username": "admin", "password": "{{ secret }}"}]
USERS = [{"name": "admin", "password": "{{ secret }}", "rules": "+nosuchcommand +@all"}]
FAILING: dict[str, dict[str, Any]] = {
    "redis_command": {
        "strict": True,
        "probes": [{"name": "p", "port": free_port(), "password": "{{ secret }}", "commands": [["PING"]]}],
    },
    "redis_users": {"path": "/nonexistent/users.acl", "users": USERS, "server": server(), "logins": LOGIN},
    "redis_config": {
        "path": "/nonexistent/redis.conf",
        "directives": {"hz": 10},
        "secrets": {"masterauth": "{{ secret }}"},
        "server": server(),
        "logins": LOGIN,
    },
    "redis_service": {"unit": "no-such-unit.service", "start_timeout": 1, "server": server(), "logins": LOGIN},
    "app_trial": {
        "unit": "no-such-check.service",
        "files": [],
        "environment": {"path": "/proc/nonexistent/app.env"},
        "environment_text": "TOKEN={{ secret }}\n",
        "subject": "nothing",
    },
    "app_deployment": {
        "name": "nobody",
        "ports": [1],
        "current": "/proc/nonexistent/current",
        "environment": {"path": "/proc/nonexistent/app.env"},
        "environment_text": "TOKEN={{ secret }}\n",
        "timeout": 1,
    },
    "find_secrets": {"secrets": {"a": "{{ secret }}"}, "files": ["/proc/self/mem"]},
}


@pytest.mark.parametrize("module", FAILING)
def test_a_failing_task_prints_no_secret(tmp_path: Path, module: str) -> None:
    code, output = run(tmp_path, {"name": "Fail", module: FAILING[module]})
    assert code != 0, output
    assert "fatal: [localhost]" in output
    assert SECRET not in output


def test_the_search_would_find_one(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"name": "Fail", "ansible.builtin.command": {"argv": ["false", "{{ secret }}"]}})
    assert code != 0
    assert SECRET in output

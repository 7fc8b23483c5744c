"""A task that handles a secret and fails prints none, however talkative Ansible is. Control 35."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from ports import free_port

from conftest import ansible_plays

SECRET = secrets.token_hex(16)


def play(task: dict[str, Any]) -> dict[str, Any]:
    """Return a play of one task on this machine, with the secret in a variable."""
    return {"connection": "local", "vars": {"ansible_become": False, "secret": SECRET}, "tasks": [task]}


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
    # What is told of the instance is not whole.
    "redis_audit": {
        "instances": [{"subject": "redis", "users": USERS}],
        **{"host": "h", "topology": "standalone", "install": "package", "packages": {}, "kernel": True, "somaxconn": 1},
    },
    "find_secrets": {"secrets": {"a": "{{ secret }}"}, "files": ["/proc/self/mem"]},
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """Whether each of the modules went well, and its output; the last one's task is no such module."""
    plays = {
        module: play({"name": "Fail", f"quantdesk.redis.{module}": arguments}) for module, arguments in FAILING.items()
    }
    plays["command"] = play({"name": "Fail", "ansible.builtin.command": {"argv": ["false", "{{ secret }}"]}})
    return ansible_plays(tmp_path_factory.mktemp("failed"), plays, "-vvvv", "--diff")


@pytest.mark.parametrize("module", FAILING)
def test_a_failing_task_prints_no_secret(failed: dict[str, tuple[bool, str]], module: str) -> None:
    well, output = failed[module]
    assert not well, output
    assert "fatal: [localhost]" in output
    assert SECRET not in output


def test_the_search_would_find_one(failed: dict[str, tuple[bool, str]]) -> None:
    well, output = failed["command"]
    assert not well
    assert SECRET in output

"""The filters of the role redis, and the search for secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from conftest import ansible, load

redis = load("plugins/filter/redis.py", "redis_filters")


def test_a_previous_password_goes_to_its_user_alone() -> None:
    users = [{"name": "a", "password": "x"}, {"name": "b", "password": "y"}]
    assert redis.with_previous(users, {"b": "old"}) == [
        {"name": "a", "password": "x"},
        {"name": "b", "password": "y", "previous_password": "old"},
    ]
    assert "previous_password" not in users[1]


def test_users_who_share_a_password_are_named() -> None:
    users = [{"name": name, "password": word} for name, word in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert redis.sharing_passwords(users) == ["a", "c"]
    assert redis.sharing_passwords(users[:2]) == []


def test_a_port_of_another_instance_is_named_with_its_file() -> None:
    assert redis.port_clashes([0, 6380], {"6380": "/etc/redis/redis.conf"}) == ["6380 (/etc/redis/redis.conf)"]
    assert redis.port_clashes(["6381"], {"6380": "/etc/redis/redis.conf"}) == []


PERMISSIONS = [
    {"control": 19, "user": "app", "may": False, "command": ["FLUSHALL"]},
    {"control": 21, "user": "app", "may": True, "command": ["GET", "own"]},
]


def test_permissions_are_asked_without_being_used() -> None:
    assert redis.dry_runs(PERMISSIONS) == [
        ["ACL", "DRYRUN", "app", "FLUSHALL"],
        ["ACL", "DRYRUN", "app", "GET", "own"],
    ]


@pytest.mark.parametrize(
    ("replies", "wrong"),
    [
        (["User app has no permissions", "OK"], {"19": {"app": []}, "21": {"app": []}}),
        (["OK", "OK"], {"19": {"app": ["app may FLUSHALL"]}, "21": {"app": []}}),
        (["no", "no"], {"19": {"app": []}, "21": {"app": ["app may not GET own"]}}),
        (["no"], {"19": {"app": []}, "21": {"app": ["app GET own: no answer"]}}),
        ([], {"19": {"app": ["app FLUSHALL: no answer"]}, "21": {"app": ["app GET own: no answer"]}}),
        # A user that does not exist is refused everything: that is no proof of anything.
        (
            ["error: ERR User 'app' not found", "OK"],
            {"19": {"app": ["app FLUSHALL: error: ERR User 'app' not found"]}, "21": {"app": []}},
        ),
    ],
)
def test_an_answer_that_is_not_as_wanted_is_named(replies: list[str], wrong: dict[str, dict[str, list[str]]]) -> None:
    assert redis.wrong_permissions(PERMISSIONS, replies) == wrong


def test_a_secret_on_a_command_line_or_in_a_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("password = in-this-file-it-stands\n")
    # The arguments reach the module by standard input: only `sleep` has the secret on its command line.
    (tmp_path / "arguments.json").write_text(
        json.dumps(
            {
                "secrets": {"first": "this-one-is-an-argument", "second": "in-this-file-it-stands", "third": ""},
                "files": [str(file)],
            }
        )
    )
    process = subprocess.Popen(["sh", "-c", "sleep 30; : this-one-is-an-argument"])
    try:
        playbook = tmp_path / "play.yml"
        playbook.write_text(
            json.dumps(
                [
                    {
                        "hosts": "localhost",
                        "connection": "local",
                        "gather_facts": False,
                        "tasks": [
                            {
                                "find_secrets": "{{ lookup('ansible.builtin.file', '"
                                + str(tmp_path / "arguments.json")
                                + "') | from_json }}",
                                "register": "searched",
                            },
                            {"debug": {"var": "searched.found"}},
                        ],
                    }
                ]
            )
        )
        code, output = ansible("ansible-playbook", "-vvv", playbook)
    finally:
        process.terminate()
        process.wait(10)
    assert code == 0, output
    assert f"first in the command line of {process.pid} (sh)" in output
    assert f"second in {file}" in output
    assert "third" not in output.split("searched.found")[1]
    assert "this-one-is-an-argument" not in output
    assert "in-this-file-it-stands" not in output

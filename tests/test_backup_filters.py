"""The filters of the role backup: what they make of good values, and what they find wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PROJECT, ansible_plays, load

backup = load("plugins/filter/backup.py")

SQLITE = {"name": "app", "kind": "sqlite", "options": {"database": "/a.db", "unit": "a.target", "user": "a"}}


def test_a_policy_becomes_options_of_restic() -> None:
    assert backup.retention({"daily": 7, "last": 2}) == ["--keep-last", "2", "--keep-daily", "7"]
    assert backup.retention({"within": "30d"}) == ["--keep-within", "30d"]


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ({}, "it keeps nothing"),
        ([], "found list"),
        ({"daily": "x"}, "daily: found x"),
        ({"often": 1}, "often: not one of"),
    ],
)
def test_a_policy_that_is_wrong_is_named(policy: Any, problem: str) -> None:
    assert problem in "; ".join(backup.retention_problems(policy))


def test_a_right_policy_has_no_problem() -> None:
    assert backup.retention_problems({"last": 8, "within": "1y2m", "yearly": 3}) == []


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ("redis", "found str"),
        ([SQLITE, SQLITE], "name app twice"),
        ([{**SQLITE, "name": "a/../b"}], "name 'a/../b' of item 1"),
        ([{**SQLITE, "kind": "files"}], "app: no option paths"),
        ([{"name": "app"}], "item 1 is not a source"),
    ],
)
def test_a_source_that_is_wrong_is_named(sources: Any, problem: str) -> None:
    assert problem in "; ".join(backup.source_problems(sources))


def test_sources_become_files_and_redis_gets_its_credentials() -> None:
    assert backup.source_problems([SQLITE]) == []
    redis = {"name": "redis", "kind": "redis", "options": {"unit": "u"}}
    first, second = backup.source_files([SQLITE, redis], "/etc/x", {"host": "here"}, "/etc/x/redis.env")
    assert (first["path"], second["path"]) == ("/etc/x/source-app.json", "/etc/x/source-redis.json")
    assert json.loads(first["content"])["options"] == SQLITE["options"]
    assert json.loads(second["content"])["options"] == {"unit": "u", "credentials_file": "/etc/x/redis.env"}
    assert json.loads(second["content"])["host"] == "here"


def test_lines_become_a_file() -> None:
    assert backup.text(["a", "b"]) == "a\nb\n"


def test_a_phase_ends_where_the_next_begins() -> None:
    pair = ({"name": "redis", "began": 1.0}, {"name": "app", "began": 3.5})
    assert backup.phase(pair) == {"name": "redis", "began": 1.0, "ended": 3.5}


def test_hosts_come_with_their_keys_or_without() -> None:
    assert backup.repository_hosts(["a", "b"], ["ssh-ed25519 AAAA x", ""]) == [
        {"name": "a", "key": "ssh-ed25519 AAAA x"},
        {"name": "b", "key": ""},
    ]
    assert backup.repository_hosts(["a"]) == [{"name": "a", "key": ""}]


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ("redis1", "found str"),
        ([{"name": "../etc"}], "item 1 has the name '../etc'"),
        ([{"name": "a\n"}], "item 1 has the name"),
        (["a"], "item 1 has the name ''"),
        ([{"name": "a"}, {"name": "a"}], "a twice"),
        ([{"name": "a", "key": "AAAA"}], "a: its key is none"),
        ([{"name": "a", "key": "ssh-ed25519 AAAA\nssh-ed25519 BBBB"}], "a: its key is none"),
        ([{"name": "a", "key": 'command="sh" ssh-ed25519 AAAA'}], "a: its key is none"),
    ],
)
def test_what_is_no_host_is_named(hosts: object, problem: str) -> None:
    assert problem in "; ".join(backup.repository_host_problems(hosts))


def test_each_host_of_each_environment_has_an_account_and_a_password_of_its_own() -> None:
    pairs = [(environment, host) for environment in ("lab", "staging") for host in ("redis1", "app1")]
    places = backup.backup_places
    for made in (
        places.account,
        lambda *pair: places.guest(*pair, "lab/redis2"),
        lambda *pair: places.password("master", *pair),
    ):
        assert len({made(*pair) for pair in pairs}) == len(pairs)
        assert made(*pairs[0]) == made(*pairs[0])
    assert places.password("master", "lab", "redis1") != places.password("other", "lab", "redis1")
    assert backup.repositories(["redis1"], "master", "lab") == [
        {"host": "redis1", "password": places.password("master", "lab", "redis1")}
    ]


def test_no_tag_of_a_backup_looks_like_another_line() -> None:
    item = {
        "id": "a" * 64,
        "time": "2026-01-31T14:00:00Z",
        "host": "redis1",
        "said": "app1\nb",
        "source": "x\n00000000",
    }
    heading, line = backup.backup_lines([{"host": "redis1", "backups": [item]}])
    assert heading.startswith("ID")
    assert "says that it is of app1\\nb" in line
    assert "\n" not in line
    assert backup.backup_lines([{"host": "redis1", "backups": []}]) == ["there is no backup in any repository"]


def test_two_that_borrow_the_same_backups_come_by_accounts_of_their_own() -> None:
    first, second = (backup.backup_places.guest("lab", "redis1", f"lab/{name}") for name in ("redis2", "redis3"))
    assert first != second
    assert re.fullmatch("lend-[0-9a-f]{12}", first)


def test_what_was_borrowed_is_returned_where_no_host_of_ours_keeps_backups(tmp_path: Path) -> None:
    play = yaml.safe_load((PROJECT / "playbooks/restore.yml").read_text())[1]
    lent = tmp_path / "lent"
    lent.mkdir()
    values = {**play["vars"], "restore_from": "redis2", "restore_lent": str(lent)}
    give = {"ansible.builtin.include_tasks": str(PROJECT / "playbooks/tasks/restore_return.yml")}
    done = ansible_plays(tmp_path, {"return": {"vars": values, "tasks": [give]}})
    assert done["return"][0], done["return"][1]
    assert not lent.exists()

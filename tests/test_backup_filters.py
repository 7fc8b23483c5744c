"""The filters of the role backup: what they make of good values, and what they find wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import load

backup = load("plugins/filter/backup.py", "backup_filters")

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


def test_a_package_becomes_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    assert backup.program([str(tmp_path / "a.py")], "/lib/p") == [{"path": "/lib/p/a.py", "content": "x = 1\n"}]
    assert backup.text(["a", "b"]) == "a\nb\n"


def test_a_phase_ends_where_the_next_begins() -> None:
    pair = ({"name": "redis", "began": 1.0}, {"name": "app", "began": 3.5})
    assert backup.phase(pair) == {"name": "redis", "began": 1.0, "ended": 3.5}


def key(host: str, number: int = 1) -> str:
    """Return a public key of a host."""
    return f"ssh-ed25519 AAAA{number} databackup@{host}"


@pytest.mark.parametrize(
    ("given", "known", "keep", "expected"),
    [
        # Nothing is left out: what is given counts, and nothing else.
        ([key("redis1")], [key("redis1", 2), key("app1")], [], [key("redis1")]),
        # A host that is left out keeps its key; one that has left the inventory does not.
        ([key("redis1")], [key("app1"), key("gone")], ["app1"], [key("redis1"), key("app1")]),
        # A host that gave a key has no other one, and a name is not part of another one.
        ([key("redis1")], [key("redis1", 2), key("redis11")], ["redis1"], [key("redis1")]),
        # A key that says nothing of its host is kept for none.
        ([], ["ssh-ed25519 AAAA", "ssh-ed25519 AAAA somebody"], ["app1", "", "somebody"], []),
        ([key("a"), key("a")], [], [], [key("a")]),
    ],
)
def test_keys_of_hosts_that_are_left_out_stay(
    given: list[str], known: list[str], keep: list[str], expected: list[str]
) -> None:
    assert backup.keys(given, known, keep) == expected


def test_hosts_of_which_there_is_no_key_are_named() -> None:
    assert backup.keys_missing(["app1", "app2"], [key("app1"), key("app22")]) == ["app2"]
    assert backup.keys_missing([], []) == []

"""Checks of the preflight that the lab cannot break: they judge invented answers."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import PROJECT, ansible_plays

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
                "quantdesk.redis.checks": {
                    "subject": "redis-state",
                    "checks": "{{ __redis_instance_checks | selectattr('name', 'in', " + chosen + ") | list }}",
                }
            }
        ],
    }


# What apt has told of a host, in the words of apt_state.py, and what becomes of it.
V10, HELD = "5:7.0.15-1~deb12u10", "6:7.2.11-1"
FIXED: dict[str, Any] = {
    "installed": V10,
    "offered": V10,
    "target": V10,
    "lacks": {V10: []},
    "archive": [],
    "failed": [],
    "newer": "",
}
FIXED |= {"problems": [], "differ": [], "left": [], "files": {}, "fetched": False}
BEHIND: dict[str, Any] = {"lacks": {V10: ["the security archive has 5:7.0.15-1~deb12u11"], "5:7.0.15-1~deb12u11": []}}
BEHIND |= {"offered": "5:7.0.15-1~deb12u11"}
ALIEN = {"lacks": {V10: ["it is not the distribution's, which has X and publishes fixes for no other"]}}
STALE = {"archive": ["the index of http://deb.example.com bookworm-security is 9 days old"]}
UPGRADED: dict[str, Any] = {
    "offered": "5:8.0.2-3+deb13u1",
    "theirs": "5:8.0.2-3+deb13u1",
    "lacks": {V10: ["the distribution has no Redis 7"]},
}
ELSEWHERE: dict[str, Any] = {
    "installed": HELD,
    "target": HELD,
    "lacks": {HELD: []},
    "offered": "6:7.2.12-1",
    "newer": "6:7.2.12-1",
}
PACKAGES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "fixed": ({}, {}, []),
    "newer in the security archive": (
        BEHIND,
        {},
        [
            "security fixes in the package redis-server: found",
            f"'{V10}, as the security archive has 5:7.0.15-1~deb12u11'",
            "no older than 7 days: redis_upgrade: true takes 5:7.0.15-1~deb12u11; redis_version_accepted:",
        ],
    ),
    "accepted by name": (BEHIND, {"redis_version_accepted": V10}, []),
    "another one accepted": (BEHIND, {"redis_version_accepted": HELD}, ["security fixes in the package redis-server"]),
    "stale": (
        STALE,
        {},
        [
            f"found '{V10}, as the index of http://deb.example.com bookworm-security is 9 days old'",
            "add the security archive to the sources of apt, or repair it;",
        ],
    ),
    "of somebody else": (ALIEN, {}, ["redis_install: repository with the repository that it is from, or source;"]),
    "Debian 13 that was 12": (
        UPGRADED,
        {"distribution": "debian 13"},
        [
            "distribution: found 'debian 13'; expected one of debian 12, ubuntu 24;",
            "or redis_install: repository or source",
            "Redis of another distribution: found",
            f"'{V10}, where the distribution has 5:8.0.2-3+deb13u1'; expected a decision",
        ],
    ),
    "Debian 13 that has taken Redis 8": (
        UPGRADED | {"installed": "5:8.0.2-3+deb13u1", "target": "5:8.0.2-3+deb13u1"},
        {"distribution": "debian 13"},
        ["'5:8.0.2-3+deb13u1, where the distribution has 5:8.0.2-3+deb13u1'; expected a decision"],
    ),
    "a bare Debian 13": (
        UPGRADED | {"installed": "", "target": "5:8.0.2-3+deb13u1"},
        {"distribution": "debian 13"},
        ["distribution: found 'debian 13'"],
    ),
    "Redis 8 of somebody else": (
        {"target": "9:8.0.2-1", "offered": "9:8.0.2-1", "installed": ""},
        {},
        ["version of the package redis-server: found '9:8.0.2-1'; expected 7.x"],
    ),
    "held, and a newer one": (ELSEWHERE, {"redis_install": "repository"}, []),
    "held, and known to be bad": (
        ELSEWHERE | {"lacks": {HELD: ["it lacks the security fixes of 7.2.12"]}},
        {"redis_install": "repository"},
        [
            "security fixes in the package of redis_repository: found",
            f"'{HELD}, as it lacks the security fixes of 7.2.12'",
            "expected a newer redis_repository.version, such as 6:7.2.12-1; redis_version_accepted:",
        ],
    ),
}
ROLE_VARS = PROJECT / "roles/redis/vars/main"


def judge_package(apt: dict[str, Any], inputs: dict[str, Any], checks: str) -> dict[str, Any]:
    """Return a play in which the role judges what apt has told of a host."""
    seen = {**FIXED, **apt}
    return {
        "connection": "local",
        "vars_files": [str(ROLE_VARS / "inputs.yml")],
        "vars": {
            "redis_install": "package",
            "redis_version_accepted": "",
            "redis_security_max_age": 7,
            "redis_repository": {"version": HELD},
            "redis_source_version": "7.0.15",
            "__redis_distributions": ["debian 12", "ubuntu 24"],
            "__redis_looked": {"rc": 0},
            "__redis_seen": {"distribution": inputs.get("distribution", "debian 12")},
            "__redis_apt": seen,
            "__redis_version": seen["target"],
            "__redis_lacks": seen["lacks"].get(seen["target"], []) + seen["archive"],
            **inputs,
        },
        "tasks": [{"quantdesk.redis.checks": {"subject": "redis", "checks": checks}}],
    }


BEFORE = (
    "{{ __redis_host_checks | selectattr('name', 'match', '(distribution|Redis of another|version of the package"
    "|security fixes in the package|redis_repository)') | list }}"
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    """Whether each was found well, and the output."""
    plays = {f"names {i}": judge_names(seen) for i, (seen, _) in enumerate(NAMES)}
    plays |= {f"before: {name}": judge_package(apt, more, BEFORE) for name, (apt, more, _) in PACKAGES.items()}
    return ansible_plays(tmp_path_factory.mktemp("judged"), plays)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=[str(seen) for seen, _ in NAMES])
def test_an_instance_takes_no_user_and_no_folder_of_somebody_else(
    judged: dict[str, tuple[bool, str]], number: int
) -> None:
    well, output = judged[f"names {number}"]
    assert well is (NAMES[number][1] == ""), output
    assert NAMES[number][1] in " ".join(output.split())


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_refused_for_what_its_archive_says(judged: dict[str, tuple[bool, str]], name: str) -> None:
    well, output = judged[f"before: {name}"]
    words = PACKAGES[name][2]
    flat = " ".join(output.split())
    assert well is (words == []), output
    assert [word for word in words if word not in flat] == [], output


def test_a_held_version_with_a_newer_one_of_its_line_is_a_warning(judged: dict[str, tuple[bool, str]]) -> None:
    well, output = judged["before: held, and a newer one"]
    assert well, output
    flat = " ".join(output.split())
    assert f"redis_repository.version: found '{HELD}, which is held, and 6:7.2.12-1 in the repository'" in flat
    assert "name it in redis_repository.version" in flat

"""Two instances on one host, as the production example has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import RedisCli, as_user, assert_confined, changed, playbook

# Beside the lab's own instance, the one of the production example that holds what must not be evicted.
INSTANCES = [
    {"name": "", "tls_port": 6380, "maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"},
    {"name": "state", "tls_port": 6381, "maxmemory": "32mb", "maxmemory_policy": "noeviction"},
]
VARIABLES = json.dumps({"redis_instances": INSTANCES})


@pytest.fixture(scope="module")
def state(redis1: Host) -> Iterator[RedisCli]:
    """The second instance, for the time of these tests."""
    result = playbook("redis.yml", "-e", VARIABLES)
    assert result.returncode == 0, result.stdout
    yield as_user("redis1", "admin", "127.0.0.1")
    redis1.check_output(
        "systemctl disable --now redis-server@state; rm -rf /etc/redis/*state* /etc/redis-admin-state.env"
        " /var/lib/redis-state /usr/local/sbin/redis-admin-state /etc/systemd/system/redis-server@state.service*"
        " /etc/systemd/system/redisstate.slice; systemctl daemon-reload"
    )
    assert playbook("redis.yml").returncode == 0


def test_each_has_its_own_data_limits_and_unit(redis1: Host, redis_cli: RedisCli, state: RedisCli) -> None:
    assert state("CONFIG GET maxmemory-policy", port=6381) == ["maxmemory-policy", "noeviction"]
    assert redis_cli("CONFIG GET maxmemory-policy") == ["maxmemory-policy", "allkeys-lru"]
    assert state("SET only:here 1", port=6381) == ["OK"]
    assert redis_cli("EXISTS only:here") == ["0"]
    assert_confined(redis1, "redis-server@state", "redis", exposure=9)
    assert redis1.check_output("redis-admin-state GET only:here") == "1"
    assert redis1.file("/var/lib/redis-state/appendonlydir").is_directory


def test_a_full_state_refuses_writes_and_keeps_what_it_has(redis_cli: RedisCli, state: RedisCli) -> None:
    value = "x" * 1_000_000
    answers = [state(f"SET only:big:{number} {value}", port=6381)[0] for number in range(40)]
    assert any(answer.startswith("OOM") for answer in answers)
    assert state("GET only:here", port=6381) == ["1"]
    assert redis_cli("PING") == ["PONG"]


@pytest.mark.usefixtures("state")
def test_a_second_run_changes_nothing_and_verify_asks_both(tmp_path: Path) -> None:
    assert changed(playbook("redis.yml", "-e", VARIABLES).stdout)["redis1"] == 0
    report = tmp_path / "audit.json"
    result = playbook("verify.yml", "-e", VARIABLES, "-e", f"verify_report={report}")
    # The outsider's and the instances' checks, each under its own name.
    subjects = {check["subject"] for check in json.loads(report.read_text())["checks"] if check["host"] == "redis1"}
    assert {"redis", "redis-state"} <= subjects
    assert result.returncode == 0, result.stdout


def test_two_on_one_port_are_refused() -> None:
    twice = [{**instance, "tls_port": 6380} for instance in INSTANCES]
    result = playbook("redis.yml", "-e", json.dumps({"redis_instances": twice}))
    assert result.returncode != 0
    assert "redis_instances' ports: found '6380, 6380'" in result.stdout
    assert set(changed(result.stdout).values()) == {0}


@pytest.mark.usefixtures("state")
def test_a_port_of_an_instance_that_runs_already_is_refused() -> None:
    other = [{**INSTANCES[1], "name": "other"}]
    result = playbook("redis.yml", "-e", json.dumps({"redis_instances": other}))
    assert result.returncode != 0
    assert "6381 (/etc/redis/redis-state.conf)" in " ".join(result.stdout.split())

"""What restarts Redis does so once and says why; two instances on one host, as the production example has them.

One run changes what is read at the start only, and adds an instance; a second one must change nothing, also after Redis
has rewritten its file; a third one takes all of it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import RedisCli, as_user, assert_confined, changed, converge, playbook

# Beside the lab's own instance, the one of the production example that holds what must not be evicted.
INSTANCES = [
    {"name": "", "tls_port": 6380, "maxmemory": "80mb", "maxmemory_policy": "allkeys-lru"},
    {"name": "state", "tls_port": 6381, "maxmemory": "32mb", "maxmemory_policy": "noeviction"},
]
INPUTS = {"redis_instances": INSTANCES, "redis_io_threads": 2, "redis_settings": {"databases": 8}}


def starts(redis1: Host) -> int:
    """Return how often the lab's own instance has started."""
    return int(redis1.check_output("grep -c 'Ready to accept connections' /var/log/redis/redis-server.log"))


@pytest.fixture(scope="module")
def state(redis1: Host) -> Iterator[RedisCli]:
    """The second instance, and other settings of both, for the time of these tests; returns redis-cli for either."""
    before = starts(redis1)
    # As if a run had written the file and died: Redis cannot take `databases` live.
    redis1.check_output("sed -i 's/^databases .*/databases 8/' /etc/redis/redis.conf")
    result = converge(**INPUTS)
    said = " ".join(result.stdout.split())
    assert "io-threads is 1, wanted 2" in said
    assert "databases is 16, wanted 8" in said
    assert starts(redis1) == before + 1
    yield as_user("redis1", "admin", "127.0.0.1")
    redis1.check_output(
        "systemctl disable --now redis-server@state; rm -rf /etc/redis-state /etc/redis-admin-state.env"
        " /var/log/redis-state /etc/logrotate.d/redis-server-state"
        " /var/lib/redis-state /usr/local/sbin/redis-admin-state /etc/systemd/system/redis-server@state.service*"
        " /etc/systemd/system/redisstate.slice;"
        " systemctl daemon-reload; userdel redis-state"
    )
    converge(redis_settings={"databases": None})
    assert starts(redis1) == before + 2
    cli = as_user("redis1", "admin", "127.0.0.1")
    assert cli("CONFIG GET io-threads") == ["io-threads", "1"]
    assert cli("CONFIG GET databases") == ["databases", "16"]


@pytest.mark.parametrize(
    ("directive", "value"), [("io-threads", "2"), ("databases", "8"), ("maxmemory", str(80 * 2**20))]
)
def test_new_settings_are_in_force_after_one_restart(state: RedisCli, directive: str, value: str) -> None:
    assert state(f"CONFIG GET {directive}") == [directive, value]


def test_each_has_its_own_data_limits_and_unit(redis1: Host, redis_cli: RedisCli, state: RedisCli) -> None:
    assert state("CONFIG GET maxmemory-policy", port=6381) == ["maxmemory-policy", "noeviction"]
    assert redis_cli("CONFIG GET maxmemory-policy") == ["maxmemory-policy", "allkeys-lru"]
    assert state("SET only:here 1", port=6381) == ["OK"]
    assert redis_cli("EXISTS only:here") == ["0"]
    assert_confined(redis1, "redis-server@state", "redis-state", exposure=9)
    assert redis1.check_output("redis-admin-state GET only:here") == "1"
    assert redis1.file("/var/lib/redis-state/appendonlydir").is_directory


def test_a_full_state_refuses_writes_and_keeps_what_it_has(redis_cli: RedisCli, state: RedisCli) -> None:
    value = "x" * 4_000_000
    answers = state(*(f"SET only:big:{number} {value}" for number in range(10)), port=6381)
    assert any(answer.startswith("OOM") for answer in answers)
    assert state("GET only:here", port=6381) == ["1"]
    assert redis_cli("PING") == ["PONG"]


@pytest.mark.usefixtures("state")
def test_verify_asks_both_passes_and_changes_nothing(tmp_path: Path) -> None:
    report = tmp_path / "audit.json"
    # app1 has not been told of the second instance, so its packet filter does not let the application connect to that.
    inputs = json.dumps({**INPUTS, "verify_report": str(report)})
    result = playbook("verify.yml", "--limit", "redis1,outsider", "-e", inputs)
    assert result.returncode == 0, result.stdout
    assert "all ok. The hosts are as the inventory declares." in " ".join(result.stdout.split())
    assert set(changed(result.stdout).values()) == {0}
    # The outsider's and the instances' checks, each under its own name.
    subjects = {check["subject"] for check in json.loads(report.read_text())["checks"] if check["host"] == "redis1"}
    assert {"redis", "redis-state"} <= subjects


def test_a_second_run_changes_nothing_and_what_redis_wrote_itself_stays(redis1: Host, state: RedisCli) -> None:
    # As Sentinel demotes a server: to a primary that does not answer, which is enough for the role and the file.
    before = starts(redis1)
    try:
        assert state("CONFIG REWRITE", "REPLICAOF 127.0.0.1 6399", "CONFIG REWRITE") == ["OK", "OK", "OK"]
        assert state("CONFIG REWRITE", port=6381) == ["OK"]
        result = converge(**INPUTS)
        assert changed(result.stdout)["redis1"] == 0
        assert starts(redis1) == before
        assert state("ROLE")[0] == "slave"
        assert redis1.run("grep -q '^replicaof 127.0.0.1 6399$' /etc/redis/redis.conf").rc == 0
    finally:
        assert state("REPLICAOF NO ONE", "CONFIG REWRITE") == ["OK", "OK"]
    assert state("ROLE")[0] == "master"

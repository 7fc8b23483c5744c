"""Hosts that run a Redis which somebody set up by hand: what is refused, and what is taken over with all its data.

One run of the playbook takes five servers over at once, under a client that reads and writes throughout; the tests ask
what came of it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from conftest import LAB, as_user, changed, eventually, playbook, secret

# Counts what is acknowledged and what is not, on redis1: the port stays, the server behind it changes.
CLIENT = Path(__file__).parent.parent / "files/client.py"
# Instances, the port of the old server, its keys, and the port that tells of the new one.
TAKEN = {"": (6379, 1006, 6380), "log": (7001, 506, 6381), "moved": (7002, 306, 6382), "users": (7003, 206, 6383)}


def keys(host: Host, port: int, login: str) -> int:
    told = host.check_output(f"{login} redis-cli -p {port} INFO keyspace")
    return sum(int(number) for number in re.findall(r"keys=(\d+)", told))


def refusals(output: str) -> str:
    return " ".join(output.rsplit("fatal:", 1)[1].split())


@pytest.fixture(scope="module")
def refused() -> str:
    """The report of a preflight of both hosts."""
    result = playbook("redis.yml", "-e", json.dumps({"redis_leave": []}))
    assert result.returncode != 0
    assert set(changed(result.stdout).values()) == {0}
    return refusals(result.stdout)


@pytest.mark.parametrize(
    "text",
    [
        "old server's role: found 'a replica of 127.0.0.1:7010'; expected a primary",
        "old server's renamed commands: found 'FLUSHALL'",
        "old server's login: found",
        "redis_adopt_username and redis_adopt_password that log in there",
        "that they fit into redis_maxmemory, 2 MiB",
        "redis_adopt and redis_adopt_from: found 'keep of 7019, where no such server runs'",
        # Of redis1: it is named nowhere there without redis_leave.
        "a Redis that this bundle did not set up: found 'redis 7.0.15 on 127.0.0.1:7005",
    ],
)
def test_what_cannot_be_adopted_is_refused_by_name(refused: str, text: str) -> None:
    assert text in refused


@pytest.mark.usefixtures("refused")
def test_what_was_refused_goes_on_as_it_was(redis1: Host, outsider: Host) -> None:
    assert outsider.check_output("redis-cli -p 7011 ROLE").splitlines()[0] == "slave"
    assert outsider.check_output("redis-cli -p 7014 STRLEN big") == "4000000"
    assert keys(redis1, 6379, f"REDISCLI_AUTH={secret('redis_password')}") == 1006


@pytest.fixture(scope="module")
def client(redis1: Host, refused: str) -> Iterator[dict[str, Any]]:
    """What a client of 7001 saw, from before the takeover until after it; filled when it has ended."""
    copy = ["scp", "-q", "-F", str(LAB / "ssh/config"), str(CLIENT), "redis1:/tmp/client.py"]
    subprocess.run(copy, check=True)
    run = subprocess.Popen(
        ["ssh", "-F", LAB / "ssh/config", "redis1", "python3 /tmp/client.py 7001"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write(f"{secret('redis_password')}\n")
    run.stdin.flush()
    assert run.stdout.readline().strip() == "running"
    saw: dict[str, Any] = {"end": lambda: json.loads(run.communicate("stop\n", timeout=60)[0])}
    yield saw
    run.kill()
    run.wait()


@pytest.fixture(scope="module")
def adopted(client: dict[str, Any], redis1: Host) -> dict[str, Any]:
    """What the run said of each instance, and what the client saw."""
    result = playbook("redis.yml", "--limit", "redis1")
    assert result.returncode == 0, result.stdout
    client["saw"] = client["end"]()
    return {"output": result.stdout, "client": client["saw"]}


@pytest.mark.parametrize("name", TAKEN)
def test_the_new_server_has_every_key_of_the_old_one(adopted: dict[str, Any], name: str, redis1: Host) -> None:
    _, number, port = TAKEN[name]
    told = as_user("redis1", "admin", "127.0.0.1")("INFO keyspace", port=port)
    found = sum(int(count) for line in told for count in re.findall(r"keys=(\d+)", line))
    written = len(adopted["client"]["acknowledged"]) if name == "log" else 0
    assert found == number + (1 if written else 0)
    suffix = name and f"-{name}"
    assert f"redis{suffix}: took over {number + (1 if written else 0)} keys" in adopted["output"]


def test_a_client_s_acknowledged_writes_are_all_there(adopted: dict[str, Any]) -> None:
    saw = adopted["client"]
    assert saw["lost"] == []
    assert len(saw["acknowledged"]) > 100
    # Both servers took some of them.
    assert saw["reconnected"] >= 1
    assert saw["longest_gap"] < 30


@pytest.mark.usefixtures("adopted")
def test_the_old_servers_are_gone_and_the_one_to_be_left_is_not(redis1: Host) -> None:
    told = redis1.check_output("ss -Hltn | awk '{print $4}' | sed 's/.*://' | sort -un").split()
    assert {"6379", "7002", "7003", "7004"}.isdisjoint(told)
    assert {"6380", "6381", "6382", "6383", "6384", "7001", "7005"} <= set(told)
    assert redis1.run("systemctl is-enabled my-redis").stdout.strip() == "disabled"
    assert keys(redis1, 7005, "") == 56


@pytest.mark.usefixtures("adopted")
def test_what_was_there_is_kept_aside(redis1: Host) -> None:
    kept = redis1.check_output("ls -d /var/lib/redis/before-adoption-*")
    assert "rename-command CONFIG" in redis1.file(f"{kept}/files/etc%redis%redis.conf").content_string
    assert redis1.file(f"{kept}/dump.rdb").is_file
    assert "LimitNOFILE" in redis1.check_output(f"cat {kept}/files/*limits.conf")
    # Elsewhere it stays where it was, complete.
    assert redis1.file("/srv/redis/redis.conf").is_file
    assert redis1.file("/srv/redis/legacy.rdb").size > 3000
    fresh = redis1.check_output("ls -d /var/lib/redis-fresh/before-adoption-*")
    assert redis1.file(f"{fresh}/all.rdb").size > 500
    assert as_user("redis1", "admin", "127.0.0.1")("DBSIZE", port=6384) == ["0"]


@pytest.mark.usefixtures("adopted")
def test_they_survive_a_restart_of_the_host_s_units(redis1: Host) -> None:
    redis1.check_output("systemctl restart redis-server redis-server@log redis-server@moved redis-server@users")
    cli = as_user("redis1", "admin", "127.0.0.1")
    for _, number, port in list(TAKEN.values())[2:]:

        def count(port: int = port) -> int:
            return sum(int(n) for line in cli("INFO keyspace", port=port) for n in re.findall(r"keys=(\d+)", line))

        assert eventually(count, lambda found: found > 0) == number


@pytest.mark.usefixtures("adopted")
def test_a_second_run_changes_nothing_and_verify_passes(redis1: Host) -> None:
    result = playbook("redis.yml", "--limit", "redis1")
    assert result.returncode == 0, result.stdout
    assert changed(result.stdout)["redis1"] == 0

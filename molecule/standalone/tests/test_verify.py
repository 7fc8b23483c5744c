"""verify.yml finds each protection that was taken away, and names it."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from conftest import RedisCli, changed, playbook

# What is taken away on redis1, how it is put back, and the check that must fail.
MUTATIONS = {
    "password": ("ACL SETUSER default nopass", "ACL SETUSER default resetpass", "PING without a password"),
    "tls": ("CONFIG SET port 6379", "CONFIG SET port 0", "plaintext to port 6379"),
    "maxmemory-policy": (
        "CONFIG SET maxmemory-policy noeviction",
        "CONFIG SET maxmemory-policy allkeys-lru",
        "maxmemory-policy: found 'noeviction'",
    ),
    "aof": ("CONFIG SET appendonly no", "CONFIG SET appendonly yes", "appendonly: found 'no'"),
}


def test_passes_on_the_lab_and_changes_nothing() -> None:
    result = playbook("verify.yml")
    assert result.returncode == 0, result.stdout
    assert "all ok. The hosts are what the inventory says." in " ".join(result.stdout.split())
    assert set(changed(result.stdout).values()) == {0}


@pytest.mark.parametrize("name", MUTATIONS)
def test_names_what_redis_lost(redis_cli: RedisCli, password: str, name: str) -> None:
    take, back, finding = MUTATIONS[name]
    assert redis_cli(take) == ["OK"]
    try:
        result = playbook("verify.yml")
    finally:
        restored = redis_cli(back)
        if name == "password":
            restored = redis_cli(f"ACL SETUSER default >{password}")
    assert restored == ["OK"]
    assert result.returncode != 0
    problems = result.stdout.rsplit("fatal:", 1)[1]
    assert finding in problems
    assert "[redis1]" in problems
    assert password not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "take",
    [
        "nft delete table inet quantdesk",
        "nft insert rule inet quantdesk input tcp dport 6380 accept",
        "nft flush chain inet quantdesk input",
    ],
    ids=["table gone", "rule added", "rules gone"],
)
def test_names_what_the_firewall_lost(redis1: Host, take: str) -> None:
    # An empty chain that drops would cut this very connection, and have each question on loopback wait for its timeout.
    if "flush" in take:
        take = (
            "nft add rule inet quantdesk input tcp dport 22 accept && "
            + take.replace("flush chain inet quantdesk input", "-f -")
            + " <<<'flush chain inet quantdesk input; add rule inet quantdesk input tcp dport 22 accept;"
            + ' add rule inet quantdesk input iifname "lo" accept\''
        )
    redis1.check_output("bash -c %s", take)
    try:
        result = playbook("verify.yml")
    finally:
        redis1.check_output("systemctl reload nftables-quantdesk")
    assert result.returncode != 0
    problems = result.stdout.rsplit("fatal:", 1)[1]
    assert "live rules" in problems
    assert "redis1" in problems


def test_names_an_application_that_is_down(app1: Host) -> None:
    app1.check_output("systemctl stop quantdesk.target")
    try:
        result = playbook("verify.yml")
    finally:
        app1.check_output("systemctl start quantdesk.target")
    assert result.returncode != 0
    assert "http://127.0.0.1:3002/health" in result.stdout.rsplit("fatal:", 1)[1]

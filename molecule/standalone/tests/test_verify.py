"""verify.yml finds each protection that was taken away, and names it; audit_mutate.py takes them one at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path

from testinfra.host import Host

from conftest import RedisCli, playbook

# What is taken away from Redis while it runs, how it is put back, and what must be found.
REDIS = {
    "password": ("ACL SETUSER default nopass", "ACL SETUSER default resetpass", "PING without a password"),
    "tls": ("CONFIG SET port 6379", "CONFIG SET port 0", "plaintext to port 6379"),
    "maxmemory-policy": (
        "CONFIG SET maxmemory-policy noeviction",
        "CONFIG SET maxmemory-policy allkeys-lru",
        "maxmemory-policy: found 'noeviction'",
    ),
    "aof": ("CONFIG SET appendonly no", "CONFIG SET appendonly yes", "appendonly: found 'no'"),
}
# A server of somebody else's.
BY_HAND = "redis-server --port 6399 --bind 127.0.0.1 --save ''"


def failed(report: Path, host: str) -> set[str]:
    """Return the names of the checks that failed on a host."""
    checks = json.loads(report.read_text())["checks"]
    return {check["check"] for check in checks if check["host"] == host and check["verdict"] == "FAILED"}


def test_names_what_redis_the_firewall_and_the_application_lost(
    redis1: Host, app1: Host, redis_cli: RedisCli, password: str, tmp_path: Path
) -> None:
    report = tmp_path / "audit.json"
    try:
        assert redis_cli(*(take for take, _, _ in REDIS.values())) == ["OK"] * len(REDIS)
        redis1.check_output("nft insert rule inet quantdesk input tcp dport 6380 accept")
        redis1.check_output(f"systemd-run --quiet --unit by-hand {BY_HAND}")
        app1.check_output("systemctl stop quantdesk.target && nft delete table inet quantdesk")
        result = playbook("verify.yml", "-e", f"verify_report={report}")
    finally:
        restored = redis_cli(*(back for _, back, _ in REDIS.values()), f"ACL SETUSER default >{password}")
        redis1.check_output("systemctl stop by-hand; systemctl reload nftables-quantdesk")
        app1.check_output("systemctl start quantdesk.target; systemctl reload nftables-quantdesk")
    assert restored == ["OK"] * (len(REDIS) + 1)
    assert result.returncode != 0
    message = " ".join(result.stdout.rsplit("fatal:", 1)[1].split())
    lost, down = failed(report, "redis1"), failed(report, "app1")
    for _, _, finding in REDIS.values():
        assert finding in message
        assert [name for name in lost if finding.split(": ")[0] in name], lost
    for found in (lost, down):
        assert [name for name in found if "live rules" in name], found
    assert "live rules" in message
    assert "Redis processes that are no declared instance, as PID, unit and port" in lost
    assert re.search(r"found '\d+ by-hand.service 6399'", message)
    assert "http://127.0.0.1:3002/health" in down, down
    assert password not in result.stdout + result.stderr

"""Redis as its clients see it: who gets in, what is configured, what survives."""

from __future__ import annotations

import subprocess
import time

import pytest
from testinfra.host import Host

from conftest import ENGINE, LAB, PREFIX, REDIS_ADDRESS, RedisCli, as_user, assert_confined, eventually, health, secret


def test_answers_over_tls_with_the_password(redis_cli: RedisCli, app_cli: RedisCli) -> None:
    assert redis_cli("PING") == ["PONG"]
    assert app_cli("PING") == ["PONG"]
    assert as_user("redis1", "default", "127.0.0.1")("PING") == ["PONG"]


def test_refuses_commands_without_a_password(app_cli: RedisCli) -> None:
    assert app_cli("PING", password=None)[0].startswith("NOAUTH")


def test_refuses_a_wrong_password(app_cli: RedisCli) -> None:
    answer = app_cli("PING", password="not-the-password-of-this-lab")
    assert answer[0].startswith("WRONGPASS")
    assert "PONG" not in answer


def test_refuses_plaintext(app_cli: RedisCli, redis_cli: RedisCli) -> None:
    assert "PONG" not in app_cli("PING", tls=False)
    # From another host the firewall drops it; on the host itself nobody listens.
    assert "PONG" not in app_cli("PING", tls=False, port=6379)
    assert "Connection refused" in redis_cli("PING", tls=False, port=6379)[0]


def test_its_certificate_names_the_host_and_the_private_authority(app1: Host) -> None:
    ask = "openssl s_client -verify_return_error -connect %s:6380 -verify_ip %s"
    verified = f"{ask} -CAfile /etc/ssl/quantdesk/ca.crt </dev/null"
    assert app1.run(verified, REDIS_ADDRESS, REDIS_ADDRESS).rc == 0
    assert app1.run(verified.replace("-verify_ip %s", "-verify_hostname %s"), REDIS_ADDRESS, "redis1").rc == 0
    assert app1.run(verified.replace("-verify_ip %s", "-verify_hostname %s"), REDIS_ADDRESS, "other").rc != 0
    assert app1.run(verified.replace(" -CAfile /etc/ssl/quantdesk/ca.crt", ""), REDIS_ADDRESS, REDIS_ADDRESS).rc != 0


@pytest.mark.parametrize(("protocol", "works"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_speaks_only_current_tls(app1: Host, protocol: str, works: bool) -> None:
    # Level 0 lets the client offer what its own policy forbids: the refusal must be the server's.
    offer = f"openssl s_client {protocol} -cipher ALL:@SECLEVEL=0 -connect %s:6380 </dev/null"
    assert ("BEGIN CERTIFICATE" in app1.run(offer, REDIS_ADDRESS).stdout) is works


@pytest.mark.parametrize(
    ("directive", "value"),
    [
        ("bind", f"127.0.0.1 {REDIS_ADDRESS}"),
        ("port", "0"),
        ("tls-port", "6380"),
        ("maxmemory", str(64 * 2**20)),
        ("maxmemory-policy", "allkeys-lru"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", "3600 1 300 100 60 10000"),
        ("protected-mode", "yes"),
        ("enable-debug-command", "no"),
    ],
)
def test_is_configured_as_declared(redis_cli: RedisCli, directive: str, value: str) -> None:
    assert redis_cli(f"CONFIG GET {directive}") == [directive, value]


def test_evicts_the_least_recently_used_when_full(redis_cli: RedisCli) -> None:
    def info(section: str, field: str) -> int:
        return int(next(line for line in redis_cli(f"INFO {section}") if line.startswith(f"{field}:")).split(":")[1])

    def fill(first: int, last: int) -> None:
        # 4 MiB a command: eviction happens before a script, not within it.
        for start in range(first, last, 4):
            script = "for i=ARGV[1],ARGV[1]+3 do redis.call('SET','fill:'..i,string.rep('x',1048576)) end return 'OK'"
            assert redis_cli(f'EVAL "{script}" 0 {start}') == ["OK"]

    evicted = info("stats", "evicted_keys")
    try:
        assert redis_cli("SET fill:hot 1") == ["OK"]
        fill(0, 48)
        # Redis' clock for recency ticks in seconds.
        time.sleep(2)
        assert redis_cli("GET fill:hot") == ["1"]
        fill(48, 80)
        assert info("stats", "evicted_keys") - evicted >= 20
        assert info("memory", "used_memory") <= 72 * 2**20
        assert redis_cli("EXISTS fill:hot fill:79") == ["2"]
        assert redis_cli("EXISTS " + " ".join(f"fill:{i}" for i in range(48))) != ["48"]
    finally:
        redis_cli("UNLINK fill:hot " + " ".join(f"fill:{i}" for i in range(80)))


def test_snapshots_and_log_rewrites_work_in_the_sandbox(redis_cli: RedisCli) -> None:
    redis_cli("BGSAVE SCHEDULE")
    redis_cli("BGREWRITEAOF")

    def persistence() -> list[str]:
        return redis_cli("INFO persistence")

    idle = {"rdb_bgsave_in_progress:0", "aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"}
    lines = eventually(persistence, lambda lines: idle <= set(lines))
    assert {"rdb_last_bgsave_status:ok", "aof_last_bgrewrite_status:ok", "aof_last_write_status:ok"} <= set(lines)


def test_a_key_survives_a_killed_process(redis1: Host, redis_cli: RedisCli) -> None:
    assert redis_cli("SET survives:kill yes") == ["OK"]
    before = redis1.check_output("systemctl show redis-server --property MainPID --value")
    redis1.check_output("kill -9 %s", before)
    assert eventually(lambda: redis_cli("GET survives:kill"), lambda answer: answer == ["yes"]) == ["yes"]
    assert redis1.check_output("systemctl show redis-server --property MainPID --value") != before
    redis_cli("DEL survives:kill")


def test_a_key_survives_a_restart_of_the_whole_host(
    redis1: Host, app1: Host, redis_cli: RedisCli, app_cli: RedisCli
) -> None:
    assert redis_cli("SET survives:reboot yes") == ["OK"]
    subprocess.run([ENGINE, "restart", "-t", "10", f"{PREFIX}redis1"], check=True, capture_output=True)
    # The shared connection leads to the host before the restart.
    subprocess.run(["ssh", "-F", LAB / "ssh/config", "-O", "exit", "redis1"], check=False, capture_output=True)

    def booted() -> int:
        return subprocess.run(
            ["ssh", "-F", LAB / "ssh/config", "redis1", "true"], check=False, capture_output=True
        ).returncode

    assert eventually(booted, lambda rc: rc == 0, 60) == 0
    assert eventually(lambda: redis_cli("GET survives:reboot"), lambda answer: answer == ["yes"], 30) == ["yes"]
    assert "dport 6380" in redis1.check_output("nft list table inet quantdesk")
    redis_cli("DEL survives:reboot")
    # The application's host finds the new host once its kernel has noticed the new hardware address.
    assert eventually(lambda: app_cli("PING"), lambda answer: answer == ["PONG"], 30) == ["PONG"]
    assert eventually(lambda: health(app1)[1], lambda status: status == "healthy", 30) == "healthy"


def test_the_unit_is_enabled_and_confined(redis1: Host) -> None:
    assert_confined(redis1, "redis-server", "redis", exposure=9)


def test_nobody_else_reads_its_files(redis1: Host) -> None:
    assert redis1.check_output("find /etc/redis /var/lib/redis /var/log/redis -mindepth 1 -perm /o=rwx") == ""
    key = redis1.file("/etc/ssl/quantdesk/host.key")
    assert (key.mode, key.user, key.group) == (0o440, "root", "tls")


def test_no_password_is_in_a_process_or_the_journal(redis1: Host, app1: Host) -> None:
    users = ("redis_admin", "redis_app", "redis_exporter", "redis_backup", "redis_replica", "redis_sentinel", "redis")
    for host in (redis1, app1):
        # Read as files, so that the search itself does not carry the password in its arguments.
        everything = host.check_output(
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; journalctl --no-pager --quiet | grep -v sudo"
        )
        assert len(everything) > 100
        assert not [user for user in users if secret(f"{user}_password") in everything]


def test_logs_where_the_runbook_looks(redis1: Host) -> None:
    log = redis1.file("/var/log/redis/redis-server.log")
    assert log.user == "redis"
    assert "Ready to accept connections" in log.content_string

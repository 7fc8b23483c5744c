"""What survives trouble: a full disk, a killed child, a log that was moved away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testinfra.host import Host

from conftest import RedisCli, eventually

LOG = "/var/log/redis/redis-server.log"


@pytest.fixture
def small_disk(redis1: Host, redis_cli: RedisCli) -> Iterator[None]:
    """Put the data on a disk of 48 MB for the time of a test."""
    assert redis_cli("PING") == ["PONG"]
    redis1.check_output(
        "systemctl stop redis-server && mkdir -p /run/small && mount -t tmpfs -o size=48m small /run/small"
        " && cp -a /var/lib/redis/. /run/small/ && chown redis:redis /run/small && chmod 750 /run/small"
        " && mount --bind /run/small /var/lib/redis && systemctl start redis-server"
    )
    try:
        yield
    finally:
        redis1.check_output(
            "rm -f /var/lib/redis/filler; systemctl stop redis-server; umount /var/lib/redis; umount /run/small;"
            " systemctl start redis-server"
        )


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_a_server_that_reads_and_recovers_by_itself(redis1: Host, redis_cli: RedisCli) -> None:
    assert redis_cli("SET durable:before 1") == ["OK"]
    redis1.run("dd if=/dev/zero of=/var/lib/redis/filler bs=1M 2>/dev/null")
    value = "x" * 200_000

    def write() -> list[str]:
        return redis_cli(f"SET durable:big {value}")

    assert eventually(write, lambda answer: answer[0].startswith("MISCONF"), 15)[0].startswith("MISCONF")
    assert redis_cli("GET durable:before") == ["1"]
    redis1.check_output("rm /var/lib/redis/filler")
    assert eventually(write, lambda answer: answer == ["OK"], 15) == ["OK"]
    redis_cli("DEL durable:before durable:big")


def test_a_killed_child_leaves_a_server_that_writes(redis1: Host, redis_cli: RedisCli) -> None:
    # The delay keeps the child alive for long enough to be found.
    assert redis_cli("CONFIG SET rdb-key-save-delay 1000000", "SET durable:child 1") == ["OK", "OK"]
    try:
        assert redis_cli("BGSAVE")[0].startswith("Background saving")
        redis1.check_output("pkill --signal KILL --full '[r]edis-rdb-bgsave'")
        status = eventually(lambda: redis_cli("INFO persistence"), lambda lines: "rdb_last_bgsave_status:err" in lines)
        assert "rdb_last_bgsave_status:err" in status
        assert redis_cli("SET durable:child 2") == ["OK"]
    finally:
        redis_cli("CONFIG SET rdb-key-save-delay 0", "DEL durable:child", "BGSAVE")
    ok = "rdb_last_bgsave_status:ok"
    assert ok in eventually(lambda: redis_cli("INFO persistence"), lambda lines: ok in lines)


def test_a_moved_log_is_made_anew(redis1: Host, redis_cli: RedisCli) -> None:
    redis1.check_output(f"mv {LOG} {LOG}.1")
    try:
        assert redis_cli("CONFIG REWRITE") == ["OK"]
        file = redis1.file(LOG)
        assert "CONFIG REWRITE executed with success" in file.content_string
        assert (file.user, file.mode) == ("redis", 0o600)
    finally:
        redis1.check_output(f"cat {LOG} >> {LOG}.1 && mv {LOG}.1 {LOG}")

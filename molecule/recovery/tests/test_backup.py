"""Backups as the timers make them: encrypted, in time, over sftp; and verify.yml names what is wrong with them."""

from __future__ import annotations

import json

import pytest
from backups import PLAINTEXT, databackup, fill, live
from testinfra.host import Host

from conftest import changed, playbook, secret


def test_a_timer_runs_for_each_source(redis1: Host, app1: Host) -> None:
    for host, names in ((redis1, ["redis"]), (app1, ["quantdesk", "wheels"])):
        for name in names:
            timer = host.service(f"databackup@{name}.timer")
            assert (timer.is_running, timer.is_enabled) == (True, True)
        told = host.check_output("databackup status 2>&1")
        assert all(f"{name}: backup" in told for name in names)


def test_the_unit_makes_a_backup_of_what_is_there_now(redis1: Host) -> None:
    keys = fill(redis1)
    before = live(redis1)
    redis1.check_output("systemctl start databackup@redis.service")
    state = json.loads(redis1.check_output("cat /var/lib/databackup/redis.json"))["success"]
    assert (state["items"], state["digest"]) == (keys, before["digest"])
    metrics = redis1.check_output("cat /var/lib/databackup/databackup-redis.prom")
    assert f'databackup_items{{source="redis",environment="lab"}} {keys}' in metrics
    assert "databackup_last_run_success" in metrics
    found = [item for item in databackup(redis1, "list redis")["backups"] if item["digest"] == before["digest"]]
    assert found


def test_nobody_reads_them_without_the_password(redis1: Host, app1: Host, backup1: Host) -> None:
    assert databackup(redis1, "encrypted") == {"encrypted": True}
    # The value is in Redis, and in a snapshot that was read back: what is looked for is there to be found.
    assert PLAINTEXT in redis1.check_output("redis-admin GET qd:lab:text:1")
    redis1.check_output("databackup fetch redis --to /root/snapshot.rdb")
    assert redis1.run(f"grep --quiet --text {PLAINTEXT} /root/snapshot.rdb").rc == 0
    redis1.check_output("rm /root/snapshot.rdb")
    assert backup1.run(f"grep --recursive --quiet --text {PLAINTEXT} /srv/backups").rc == 1
    for folder in ("/var/lib/databackup", "/var/cache/databackup", "/tmp", "/var/tmp"):
        assert redis1.run(f"grep --recursive --quiet --text {PLAINTEXT} {folder}").rc in (1, 2), folder
    for host in (redis1, app1):
        journal = host.check_output("journalctl --no-pager --output cat")
        passwords = [secret("backup_master_password"), secret("redis_backup_password")]
        for value in (*passwords, host.check_output("cat /etc/databackup/password")):
            assert value not in journal
        modes = host.check_output("stat --format %s /etc/databackup/password /etc/databackup/repository.json", "%a")
        assert modes.split() == ["600", "600"]


def test_no_secret_is_on_a_command_line_while_one_runs(redis1: Host) -> None:
    seen = redis1.check_output(
        "(databackup backup redis & pid=$!; while kill -0 $pid 2>/dev/null; do "
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; sleep 0.05; done) 2>/dev/null"
    )
    assert "restic" in seen
    assert redis1.check_output("cat /etc/databackup/password") not in seen
    assert secret("redis_backup_password") not in seen


@pytest.mark.parametrize("limit", ["redis1", "backup1"])
def test_a_run_of_some_hosts_takes_nothing_from_the_others(limit: str) -> None:
    # Check mode would tell, too, if it took away what hosts know of those that it leaves out.
    # All hosts: test_migration.
    result = playbook("backup.yml", "--check", "--limit", limit)
    assert result.returncode == 0, result.stdout
    assert set(changed(result.stdout).values()) == {0}, result.stdout


@pytest.mark.parametrize("source", ["quantdesk", "wheels"])
def test_the_application_is_backed_up_too(app1: Host, source: str) -> None:
    made = databackup(app1, f"backup {source}")
    assert made["items"] > 0
    assert databackup(app1, f"backup {source}")["digest"] == made["digest"]

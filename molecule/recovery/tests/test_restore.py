"""restore.yml: what it asks for, what it brings back, and that the old data are there when anything is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request

import pytest
from backups import databackup, live, python
from testinfra.host import Host

from conftest import PROJECT, eventually, playbook, published

CONFIRMED = ("-e", "restore_target=redis1", "-e", "restore_confirm=true")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-e", "restore_target=app1", "-e", "restore_confirm=true"], "expected one of quantdesk, wheels"),
        ([*CONFIRMED, "-e", "restore_as_of=2020-01-01T00:00:00Z"], "up to 2020-01-01T00:00:00Z; the first is"),
    ],
)
def test_a_wrong_order_changes_nothing(redis1: Host, words: list[str], problem: str) -> None:
    before = live(redis1)
    result = playbook("restore.yml", *words)
    assert result.returncode != 0
    assert problem in " ".join(result.stdout.split()), result.stdout
    assert live(redis1) == before


def test_a_killed_play_leaves_the_restore_whole_and_a_second_one_is_refused(redis1: Host) -> None:
    wanted = databackup(redis1, "backup redis")
    # Held where it waits for the other's lock: that is the moment in which the play dies.
    redis1.check_output("sh -c 'flock /var/lib/databackup/redis.lock sleep 8 >/dev/null 2>&1 &'")
    play = subprocess.Popen(
        [PROJECT / ".venv/bin/ansible-playbook", "playbooks/restore.yml", *CONFIRMED],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    unit = "databackup-run-restore-redis"
    assert eventually(lambda: redis1.run(f"systemctl is-active {unit}").stdout.strip(), lambda told: told == "active")
    second = playbook("restore.yml", *CONFIRMED)
    assert second.returncode != 0
    assert "another run does that on this host already" in " ".join(second.stdout.split())
    os.killpg(play.pid, signal.SIGKILL)
    play.wait()
    eventually(lambda: redis1.run(f"systemctl is-active {unit}").rc, lambda rc: rc != 0, 40)
    assert live(redis1)["digest"] == wanted["digest"]
    assert redis1.run("ls /var/lib/databackup/.redis.restore.json").rc != 0
    redis1.check_output("rm -rf /var/lib/redis/before-restore-*")


def test_brings_an_earlier_state_back_and_keeps_the_later_one(redis1: Host) -> None:
    wanted = databackup(redis1, "backup redis")
    redis1.check_output("redis-admin DEL qd:lab:board qd:lab:binary qd:lab:trades")
    redis1.check_output("redis-admin SET qd:lab:later 1")
    # Keys of the application's end meanwhile: what was written stays, and the server is the same one.
    asked = "redis-admin EXISTS qd:lab:board qd:lab:later; redis-admin INFO server | grep run_id"
    later = redis1.check_output(asked)
    dry = playbook("restore.yml", "-e", "restore_target=redis1", "--check")
    assert dry.returncode == 0, dry.stdout
    assert "would:" in dry.stdout
    assert redis1.check_output(asked) == later
    result = playbook("restore.yml", *CONFIRMED, "-e", f"restore_backup={wanted['id'][:8]}")
    assert result.returncode == 0, result.stdout
    assert "redis1: Redis has loaded it, out of its clients' reach; comparing" in result.stdout
    assert live(redis1)["digest"] == wanted["digest"]
    kept = redis1.check_output("ls -d /var/lib/redis/before-restore-*").split()
    assert kept
    # The unit is as it was: it restarts, listens where it did, and has the data.
    redis1.check_output("systemctl restart redis-server")
    assert live(redis1)["digest"] == wanted["digest"]
    redis1.check_output("rm -r /var/lib/redis/before-restore-*")
    assert redis1.run("ls /run/systemd/system/redis-server.service.d").rc != 0


def test_the_application_gets_its_database_back(app1: Host) -> None:
    made = databackup(app1, "backup quantdesk")
    statements = "CREATE TABLE IF NOT EXISTS since (x); INSERT INTO since VALUES (random())"
    write = f"sqlite3.connect('/var/lib/quantdesk/quantdesk.db').executescript('{statements}')"
    assert python(app1, f"import sqlite3; {write}").rc == 0
    words = ["-e", "restore_target=app1", "-e", "restore_source=quantdesk", "-e", "restore_confirm=true"]
    result = playbook("restore.yml", *words)
    assert result.returncode == 0, result.stdout
    assert databackup(app1, "backup quantdesk")["digest"] == made["digest"]
    with urllib.request.urlopen(f"http://127.0.0.1:{published(3002)}/health", timeout=10) as answer:
        assert answer.status == 200
    app1.check_output("rm -r /var/lib/quantdesk/before-restore-*")


def test_a_host_that_dies_in_the_middle_comes_up_with_the_old_data(redis1: Host) -> None:
    """As far as a container can die: the restore is killed with the new data in place, and the boot's unit runs."""
    redis1.check_output("redis-admin SET qd:lab:unsaved 1")
    before = live(redis1)
    code = """
import os, signal, sys
sys.path.insert(0, "/usr/local/sbin/databackup")
from databackup.redis import restore as redis_restore
redis_restore.Target.compare = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["databackup", "restore", "redis"]
from databackup.cli import main
main()
"""
    assert python(redis1, code).rc != 0
    assert redis1.file("/var/lib/databackup/.redis.restore.json").exists
    assert "a restore was interrupted" in redis1.run("databackup backup redis").stderr
    redis1.check_output("systemctl stop redis-server && rm -rf /run/systemd/system/redis-server.service.d")
    redis1.check_output("systemctl daemon-reload && systemctl start databackup-recover.service")
    redis1.check_output("systemctl start redis-server")
    eventually(lambda: redis1.run("redis-admin PING").rc, lambda rc: rc == 0)
    assert live(redis1) == before
    assert not redis1.file("/var/lib/databackup/.redis.restore.json").exists

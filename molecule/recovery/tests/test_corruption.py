"""A damaged append-only file: a cut tail starts by itself, damage in the middle is refused, and repair.yml ends it."""

from __future__ import annotations

import pytest
from backups import databackup, fill, live, python
from testinfra.host import Host

from conftest import eventually, playbook

INCREMENT = "$(ls /var/lib/redis/appendonlydir/*.incr.aof | tail -n 1)"
CONFIRMED = ("-e", "repair_target=redis1", "-e", "repair_confirm=true")


@pytest.fixture
def filled(redis1: Host) -> Host:
    """redis1 with data, of which some are in the append-only file only."""
    fill(redis1)
    for number in range(3):
        redis1.check_output("redis-admin SET qd:lab:last:%s 1", str(number))
    return redis1


def test_a_cut_tail_starts_by_itself_and_says_what_it_dropped(filled: Host) -> None:
    keys = live(filled)["keys"]
    filled.check_output(f"systemctl stop redis-server && truncate --size=-5 {INCREMENT}")
    told = databackup(filled, "diagnose redis")
    assert told["state"] == "cut tail", told
    filled.check_output("systemctl start redis-server")
    assert eventually(lambda: filled.run("redis-admin PING").stdout.strip(), lambda said: said == "PONG") == "PONG"
    assert live(filled)["keys"] == keys - 1
    told = databackup(filled, "diagnose redis")
    assert "cut" in told["text"], told
    assert "Truncating the AOF" in filled.check_output("tail -n 60 /var/log/redis/redis-server.log")


def test_damage_in_the_middle_is_refused_and_repaired_from_the_backup(filled: Host) -> None:
    wanted = databackup(filled, "backup redis")
    filled.check_output("redis-admin SET qd:lab:after-the-backup 1")
    filled.check_output("systemctl stop redis-server")
    damage = """
import glob, os
path = sorted(glob.glob("/var/lib/redis/appendonlydir/*.incr.aof"))[-1]
with open(path, "r+b") as file:
    file.seek(os.path.getsize(path) // 2)
    file.write(b"\\0" * 64)
"""
    assert python(filled, damage).rc == 0
    before = filled.check_output(f"sha256sum < {INCREMENT}")
    refused = playbook("redis.yml")
    assert refused.returncode != 0
    problem = " ".join(refused.stdout.split())
    assert "playbooks/repair.yml" in problem
    assert "playbooks/restore.yml" in problem
    told = playbook("repair.yml", "-e", "repair_target=redis1")
    said = " ".join(told.stdout.split())
    assert wanted["id"][:8] in said, told.stdout
    assert filled.check_output(f"sha256sum < {INCREMENT}") == before
    done = playbook("repair.yml", *CONFIRMED)
    assert done.returncode == 0, done.stdout
    assert live(filled)["digest"] == wanted["digest"]
    assert filled.check_output("redis-admin EXISTS qd:lab:after-the-backup") == "0"
    assert filled.check_output("systemctl is-active redis-server") == "active"
    again = playbook("repair.yml", *CONFIRMED)
    assert again.returncode != 0
    assert "there is nothing that a repair could better" in " ".join(again.stdout.split())
    filled.check_output("rm -r /var/lib/redis/before-*")

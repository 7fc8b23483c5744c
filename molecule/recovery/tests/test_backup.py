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


def test_nobody_reads_them_without_the_password(redis1: Host, app1: Host, vault1: Host) -> None:
    assert databackup(redis1, "encrypted") == {"encrypted": True}
    # The value is in Redis, and in a snapshot that was read back: what is looked for is there to be found.
    assert PLAINTEXT in redis1.check_output("redis-admin GET qd:lab:text:1")
    redis1.check_output("databackup fetch redis --to /root/snapshot.rdb")
    assert redis1.run(f"grep --quiet --text {PLAINTEXT} /root/snapshot.rdb").rc == 0
    redis1.check_output("rm /root/snapshot.rdb")
    assert vault1.run(f"grep --recursive --quiet --text {PLAINTEXT} /srv/backups").rc == 1
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


def test_a_second_run_changes_nothing_and_check_mode_neither() -> None:
    # Check mode would tell, too, if a run took away what hosts know of those that it leaves out.
    for words in ([], ["--check"], ["--check", "--limit", "redis1"], ["--check", "--limit", "vault1"]):
        result = playbook("backup.yml", *words)
        assert result.returncode == 0, result.stdout
        assert set(changed(result.stdout).values()) == {0}, result.stdout


# An empty chain that drops would cut this very connection, and have each question on loopback wait for its timeout.
FLUSH = (
    "nft -f - <<<'add rule inet quantdesk input tcp dport 22 accept'; nft -f - <<<'flush chain inet quantdesk input;"
    ' add rule inet quantdesk input tcp dport 22 accept; add rule inet quantdesk input iifname "lo" accept\''
)


# One file has a name with what would be a line of output of its own.
WEAKEN = """
cd /srv/backups/lab
printf 'REDIS0011%2000d' 0 >redis1/data/plain
chown --reference=redis1 redis1/data/plain && chmod 0640 redis1/data/plain
touch redis1/data/'two
lines=none'
chmod o+rx app1
cp -p /etc/ssh/backup-vault/serve /root/serve && sed -i 's/--append-only//' /etc/ssh/backup-vault/serve
mkdir -p /srv/backup/repository && touch /srv/backup/repository/config && chown -R nobody /srv/backup/repository
touch -d '20 days ago' redis1/config
mkdir -p /var/lib/backup-vault && touch /var/lib/backup-vault/lab.json && mv /var/lib/backup-vault/lab.json /root/noted
"""
RESTORE = """
cd /srv/backups/lab
rm -rf redis1/data/plain redis1/data/two* /srv/backup
chmod o-rx app1
mv /root/serve /etc/ssh/backup-vault/serve
touch redis1/config
[ ! -s /root/noted ] || mv /root/noted /var/lib/backup-vault/lab.json
"""


def test_verify_names_what_is_wrong(redis1: Host, vault1: Host, app1: Host) -> None:
    # All at once, as each run takes a quarter of a minute: late, open to others, in clear, a timer that is off; another
    # password, another account's folder, a server that lets remove, an old repository that is open, one that was never
    # maintained; and a packet filter without its rules.
    redis1.check_output(
        "cp -p /var/lib/databackup/redis.json /root/state.json && "
        'sed -i \'s/"at": [0-9.]*/"at": 1700000000/\' /var/lib/databackup/redis.json && '
        "chmod 0644 /etc/databackup/repository.json && systemctl stop databackup@redis.timer"
    )
    redis1.check_output(
        "sh -c 'cp -p /etc/databackup/password /root/password; echo another > /etc/databackup/password'"
    )
    took = vault1.run(f"bash -e <<'END'\n{WEAKEN}END")
    assert took.rc == 0, took.stderr
    app1.check_output("bash -c %s", FLUSH)
    try:
        result = playbook("verify.yml")
    finally:
        redis1.check_output(
            "mv /root/state.json /var/lib/databackup/redis.json && chmod 0600 /etc/databackup/repository.json && "
            "systemctl start databackup@redis.timer"
        )
        redis1.check_output("mv /root/password /etc/databackup/password")
        vault1.check_output("bash -c %s", RESTORE)
        app1.check_output("systemctl reload nftables-quantdesk")
    assert result.returncode != 0
    problems = result.stdout.rsplit("fatal:", 1)[1]
    for words in (
        "last backup of each source: found 'redis: ",
        "timers: found",
        "files of the backup that others may read: found '/etc/databackup/repository.json",
        "files of repositories that others may read, or own",
        "data in clear in a repository: found '/srv/backups/lab/redis1/data/plain'",
        "/srv/backups/lab/redis1/data/two\\\\nlines=none",
        "password of the repository: found 'another one'",
        "app1: its folder is drwxr-xr-x",
        "what runs for the hosts is not as declared in: found '/etc/ssh/backup-vault/serve'",
        "repository that all hosts shared: found 'open'",
        "repositories that were not maintained for long: found 'redis1'",
        "live rules",
    ):
        assert words in problems, problems


@pytest.mark.parametrize("source", ["quantdesk", "wheels"])
def test_the_application_is_backed_up_too(app1: Host, source: str) -> None:
    made = databackup(app1, f"backup {source}")
    assert made["items"] > 0
    assert databackup(app1, f"backup {source}")["digest"] == made["digest"]

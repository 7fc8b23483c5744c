"""verify.yml names what is wrong with backups, with the repositories' host, and what a service has planted."""

from __future__ import annotations

from backups import account, plant
from testinfra.host import Host

from conftest import playbook

# An empty chain that drops would cut this very connection, and have each question on loopback wait for its timeout.
FLUSH = (
    "nft -f - <<<'add rule inet quantdesk input tcp dport 22 accept'; nft -f - <<<'flush chain inet quantdesk input;"
    ' add rule inet quantdesk input tcp dport 22 accept; add rule inet quantdesk input iifname "lo" accept\''
)
DROP_IN = "/etc/systemd/system/databackup@.service.d"
FREE = f"""
mkdir {DROP_IN}
printf '[Service]\nSystemCallFilter=\nProtectSystem=false\n' >{DROP_IN}/audit.conf
systemctl daemon-reload
"""
GUEST = f"lend-{account('lab', 'app1').removeprefix('bak-')}"
# One file has a name with what would be a line of output of its own.
WEAKEN = f"""
useradd --system --gid {account("lab", "app1")} --home-dir /nonexistent --shell /bin/sh {GUEST}
echo /srv/backups/lab/app1 >/etc/ssh/backup-vault/{GUEST}.folder
: >/etc/ssh/backup-vault/{GUEST}.keys
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
RESTORE = f"""
userdel {GUEST}; rm -f /etc/ssh/backup-vault/{GUEST}.*
cd /srv/backups/lab
rm -rf redis1/data/plain redis1/data/two* /srv/backup
chmod o-rx app1
mv /root/serve /etc/ssh/backup-vault/serve
touch redis1/config
[ ! -s /root/noted ] || mv /root/noted /var/lib/backup-vault/lab.json
"""


def test_verify_names_what_is_wrong(redis1: Host, backup1: Host, app1: Host) -> None:
    # All at once, as each run takes a quarter of a minute: late, open to others, in clear, a timer that is off; another
    # password, another account's folder, a server that lets remove, an old repository that is open, one that was never
    # maintained, one that was lent and not given back; a packet filter without its rules; and what user redis has
    # planted, with a unit that is not confined.
    redis1.check_output(
        "cp -p /var/lib/databackup/redis.json /root/state.json && "
        'sed -i \'s/"at": [0-9.]*/"at": 1700000000/\' /var/lib/databackup/redis.json && '
        "chmod 0644 /etc/databackup/repository.json && systemctl stop databackup@redis.timer"
    )
    redis1.check_output(
        "sh -c 'cp -p /etc/databackup/password /root/password; echo another > /etc/databackup/password'"
    )
    took = backup1.run(f"bash -e <<'END'\n{WEAKEN}END")
    assert took.rc == 0, took.stderr
    app1.check_output("bash -c %s", FLUSH)
    redis1.check_output("bash -c %s", FREE)
    try:
        with plant(redis1):
            result = playbook("verify.yml")
    finally:
        redis1.check_output(f"rm -r {DROP_IN} && systemctl daemon-reload")
        redis1.check_output(
            "mv /root/state.json /var/lib/databackup/redis.json && chmod 0600 /etc/databackup/repository.json && "
            "systemctl start databackup@redis.timer"
        )
        redis1.check_output("mv /root/password /etc/databackup/password")
        backup1.check_output("bash -c %s", RESTORE)
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
        "app1: its backups are lent to another host",
        "live rules",
        "journals that a service has written: found '/var/lib/redis/.restore.json: found a file of user",
        "names that lead out of a service's folder: found",
        "units of databackup with an exposure of more than 3.0: found 'databackup@redis'",
    ):
        assert words in problems, problems

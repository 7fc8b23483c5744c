"""One repository for all hosts, as earlier versions made it: its backups move to their hosts' own, and none is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from backups import databackup, fill, live, python
from testinfra.host import Host

from conftest import ADDRESSES, changed, playbook

SINGLE = "/srv/backup/repository"
PASSWORD = "the-password-that-all-hosts-shared"
# What the role backup_repository was, with the keys of both hosts.
BACKUP_HOST = """
set -eu
shell=/usr/sbin/nologin
id backup-vault >/dev/null 2>&1 || useradd --system --home-dir /srv/backup --no-create-home --shell $shell backup-vault
install -d -o root -g root -m 0755 /srv/backup
install -d -o backup-vault -g backup-vault -m 0700 /srv/backup/repository
cat >/etc/ssh/backup-vault.keys <<'KEYS'
LINES
KEYS
cat >/etc/ssh/sshd_config.d/backup-single.conf <<'CONF'
Match User backup-vault
  AuthorizedKeysFile /etc/ssh/backup-vault.keys
  ChrootDirectory /srv/backup
  ForceCommand internal-sftp -u 0077
Match all
CONF
sshd -t && systemctl reload ssh
"""
# A host's configuration was this, and its backups went there.
HOST = """
set -eu
rm -rf /root/single && cp -a /etc/databackup /root/single
echo PASSWORD >/root/single/password
python3 - <<'END'
import json
path = "/root/single/repository.json"
values = json.load(open(path))
ssh = values["options"][0].removeprefix("rclone.program=").rsplit(" ", 1)[0]
values |= {
    "location": "sftp:backup-vault@ADDRESS:/repository",
    "password_file": "/root/single/password",
    "options": [f"sftp.command={ssh} backup-vault@ADDRESS -s sftp"],
    "retention": ["--keep-last", "99"],
}
json.dump(values, open(path, "w"))
END
"""


def old(host: Host, words: str) -> dict[str, object]:
    """Run databackup as a host did that used the repository of all hosts."""
    result: dict[str, object] = databackup(host, f"--config /root/single {words}")
    return result


@pytest.fixture(scope="module")
def single(redis1: Host, app1: Host, backup1: Host) -> Iterator[dict[str, str]]:
    """The old repository, with backups of both hosts, of a host that is gone, and of another environment."""
    keys = "\n".join(
        f"restrict {host.check_output('cat /etc/databackup/ssh/id_ed25519.pub')}" for host in (redis1, app1)
    )
    done = backup1.run(f"bash <<'DONE'\n{BACKUP_HOST.replace('LINES', keys)}DONE")
    assert done.rc == 0, done.stderr
    for host in (redis1, app1):
        made = host.run(
            f"bash <<'DONE'\n{HOST.replace('ADDRESS', ADDRESSES['backup1']).replace('PASSWORD', PASSWORD)}DONE"
        )
        assert made.rc == 0, made.stderr
    old(redis1, "init")
    fill(redis1)
    ids = {
        "redis": str(old(redis1, "backup redis")["digest"]),
        "quantdesk": str(old(app1, "backup quantdesk")["digest"]),
    }
    source = "/root/single/source-redis.json"
    for name, value in (("host", "redis0"), ("host", "../../etc"), ("environment", "staging")):
        redis1.check_output(f"cp -p {source} /root/kept")
        change = f"values = json.load(open(path)); values['{name}'] = '{value}'; json.dump(values, open(path, 'w'))"
        assert python(redis1, f"import json; path = '{source}'; {change}").rc == 0
        old(redis1, "backup redis")
        redis1.check_output(f"mv /root/kept {source}")
    yield ids
    backup1.run("rm -rf /srv/backup /etc/ssh/sshd_config.d/backup-single.conf /srv/backups/lab/redis0")
    backup1.run("systemctl reload ssh; userdel backup-vault")
    for host in (redis1, app1):
        host.run("rm -rf /root/single /var/lib/redis/before-restore-*")


def contents(host: Host, folder: str) -> list[str]:
    """Return names and digests of the files of a repository but for its locks."""
    found = host.check_output("find %s -type f -not -path '*/locks/*' -exec sha256sum {} + | sort", folder)
    return sorted(line.split()[0] for line in found.splitlines())


def test_without_the_old_password_nothing_is_changed(single: dict[str, str]) -> None:
    result = playbook("backup.yml")
    assert result.returncode != 0
    assert "backup_repository_single_password: found " in result.stdout
    assert "Nothing has been changed on any host" in result.stdout
    assert set(changed(result.stdout).values()) <= {0}


def test_all_backups_move_and_the_old_repository_is_closed_as_it_was(
    single: dict[str, str], redis1: Host, app1: Host, backup1: Host
) -> None:
    before = contents(backup1, SINGLE)
    # A wrong password ends the run before it changes anything.
    wrong = playbook("backup.yml", "-e", "backup_single_password=another-one-than-it-was")
    assert wrong.returncode != 0
    assert "expected backup_single_password to be the backup_password that it was made with" in wrong.stdout
    assert "Nothing has been changed on any host" in wrong.stdout
    done = playbook("backup.yml", "-e", f"backup_single_password={PASSWORD}")
    assert done.returncode == 0, done.stdout
    assert PASSWORD not in done.stdout
    # What stays in the old repository is told: of another environment, and of a host with such a name.
    told = " ".join(done.stdout.split())
    assert re.search(r"Snapshots that stay in it.*none\W+2\W+staging\W+2\W", told), told
    assert contents(backup1, SINGLE) == before
    assert backup1.run(f"find {SINGLE} ! -user root -o -perm /222 | grep .").rc == 1
    assert databackup(redis1, "encrypted") == {"encrypted": True}
    result = playbook("restore.yml", "-e", "restore_list=true")
    assert result.returncode == 0, result.stdout
    assert set(changed(result.stdout).values()) == {0}
    listed = result.stdout
    for words in ("redis0", "redis1       redis", "app1         quantdesk"):
        assert words in listed
    assert "../../etc" not in listed
    assert "staging" not in listed
    # Nobody comes in any more.
    assert "refuses this host's key" in json.dumps(databackup(redis1, "--config /root/single backup redis", code=1))
    again = playbook("backup.yml", "-e", f"backup_single_password={PASSWORD}")
    assert again.returncode == 0, again.stdout
    assert set(changed(again.stdout).values()) == {0}
    # And no password is asked for any more.
    check = playbook("backup.yml", "--check")
    assert check.returncode == 0, check.stdout
    assert set(changed(check.stdout).values()) == {0}


def test_a_migrated_backup_is_restored(single: dict[str, str], redis1: Host, app1: Host) -> None:
    found = [b for b in databackup(redis1, "list redis")["backups"] if b["digest"] == single["redis"]]
    assert len(found) >= 1
    redis1.check_output("redis-admin SET qd:lab:later 1")
    words = ["-e", "restore_target=redis1", "-e", f"restore_backup={found[0]['id']}", "-e", "restore_confirm=true"]
    done = playbook("restore.yml", *words)
    assert done.returncode == 0, done.stdout
    assert live(redis1)["digest"] == single["redis"]
    assert [b for b in databackup(app1, "list quantdesk")["backups"] if b["digest"] == single["quantdesk"]]


def test_maintenance_counts_copies_from_when_they_were_made(single: dict[str, str], backup1: Host) -> None:
    told = playbook("backup_maintain.yml", "--check")
    assert told.returncode == 0, told.stdout
    assert "odd_times: 0" in told.stdout or '"odd_times": 0' in told.stdout


def test_a_migration_that_was_cut_off_goes_on(single: dict[str, str], redis1: Host, backup1: Host) -> None:
    """Back to where a run was interrupted: the old repository is open, and a part of what it holds is not there yet."""
    folder = "/srv/backups/lab/redis0"
    many = len(backup1.check_output(f"ls {folder}/snapshots").split())
    assert many == 2
    backup1.check_output("bash -c %s", f"cd {folder}/snapshots && rm $(ls | head -n 1)")
    backup1.check_output(f"chown -R backup-vault: {SINGLE} && chmod -R u+w {SINGLE}")
    done = playbook("backup.yml", "-e", f"backup_single_password={PASSWORD}")
    assert done.returncode == 0, done.stdout
    assert len(backup1.check_output(f"ls {folder}/snapshots").split()) == many
    assert backup1.run(f"find {SINGLE} ! -user root -o -perm /222 | grep .").rc == 1

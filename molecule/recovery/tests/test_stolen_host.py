"""Who has taken redis1 over, with its key and its password: what of others' backups, and of its own, is in reach."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from hashlib import sha256

import pytest
from backups import account, databackup, fill, live, python, script
from testinfra.host import Host

from conftest import ADDRESSES, playbook, secret

OWN, OTHER = "/srv/backups/lab/redis1", "/srv/backups/lab/app1"
# One request of restic's protocol, over ssh with this host's key: the path is not tidied up on the way. Prints the
# status and the body. https://www.rfc-editor.org/rfc/rfc9113, https://www.rfc-editor.org/rfc/rfc7541
REQUEST = r"""
import json, struct, subprocess, sys
command, method, path, body = json.loads(sys.argv[1])
process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
def frame(kind, flags, stream, data=b""):
    process.stdin.write(struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data)
    process.stdin.flush()
def text(value):
    raw = value.encode()
    # A length from 127 up goes on in a second byte, and these are shorter than 255.
    return (bytes([len(raw)]) if len(raw) < 127 else bytes([127, len(raw) - 127])) + raw
def words(**values):
    return b"".join(b"\0" + text(name.replace("__", ":")) + text(value) for name, value in values.items())
process.stdin.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
frame(4, 0, 0)
frame(1, 4 if body else 5, 1, words(__method=method, __scheme="http", __authority="x", __path=path))
if body:
    frame(0, 1, 1, body.encode())
digits = {"00000": "0", "00001": "1", "00010": "2", **{format(0b011001 + n - 3, "06b"): str(n) for n in range(3, 10)}}
def status(block):
    while block[0] & 0xE0 == 0x20:
        block = block[1:]
    if block[0] & 0x80:
        return {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}[block[0] & 0x7F]
    value = block[2 : 2 + (block[1] & 0x7F)]
    if not block[1] & 0x80:
        return int(value)
    bits, found = "".join(format(byte, "08b") for byte in value), ""
    while len(found) < 3:
        size = 5 if bits[:5] in digits else 6
        found, bits = found + digits[bits[:size]], bits[size:]
    return int(found)
code, content = 0, b""
while True:
    head = process.stdout.read(9)
    if len(head) < 9:
        break
    data = process.stdout.read(int.from_bytes(head[:3], "big"))
    if head[3] == 4 and not head[4] & 1:
        frame(4, 1, 0)
    elif head[3] == 1:
        code = status(data)
    elif head[3] == 0:
        content += data
    if head[3] in (0, 1) and head[4] & 1 and int.from_bytes(head[5:], "big") == 1:
        break
process.kill()
print(json.dumps([code, content.decode(errors="replace"), process.stderr.read().decode()]))
"""


def way(host: Host, account: str = "") -> list[str]:
    """Return the command that a host's restic comes with, as its own account or as another one."""
    options = json.loads(host.check_output("cat /etc/databackup/repository.json"))["options"]
    command: list[str] = options[0].removeprefix("rclone.program=").split()
    return [*command[:-1], f"{account}@{ADDRESSES['backup1']}"] if account else command


def request(host: Host, method: str, path: str, body: str = "", account: str = "") -> tuple[int, str, str]:
    """Send a request as a stolen host may, and return status, body and what ssh said."""
    words = json.dumps([way(host, account), method, path, body])
    done = host.run("python3 -c %s %s", REQUEST, words)
    assert done.rc == 0, done.stderr
    code, content, said = json.loads(done.stdout)
    return code, content, said


def sums(host: Host, folder: str) -> str:
    """Return what is in a repository but for locks, which come and go."""
    found: str = host.check_output("find %s -type f -not -path '*/locks/*' -exec sha256sum {} + | sort", folder)
    return found


@pytest.fixture(scope="module")
def ready(redis1: Host, app1: Host) -> str:
    """Both hosts with a backup; the id of redis1's."""
    fill(redis1)
    databackup(app1, "backup quantdesk")
    return str(databackup(redis1, "backup redis")["id"])


def test_its_key_opens_its_own_repository_and_no_other(ready: str, redis1: Host, backup1: Host) -> None:
    assert request(redis1, "GET", "/config")[0] == 200
    for name in (account("lab", "app1"), account("production", "redis1"), "backup-vault", "root", "ops"):
        code, _, said = request(redis1, "GET", "/config", account=name)
        assert code == 0, name
        assert "Permission denied" in said, said


def test_its_password_opens_its_own_repository_and_no_other(
    ready: str, redis1: Host, app1: Host, backup1: Host
) -> None:
    passwords = [host.check_output("cat /etc/databackup/password") for host in (redis1, app1)]
    assert passwords[0] != passwords[1]
    for name in ("redis1", "app1"):
        # What all are made from is on no host.
        search = f"grep -rqF {secret('backup_master_password')} /etc /var/lib/databackup /run/databackup"
        assert script(name, search).returncode in (1, 2)
    # Even with the other's files in hand.
    form = "RESTIC_PASSWORD='%s' restic --no-cache --no-lock -r %s snapshots"
    assert script("backup1", form % (passwords[0], OWN)).returncode == 0
    refused = script("backup1", form % (passwords[0], OTHER))
    assert refused.returncode != 0
    assert "wrong password" in refused.stderr


PATHS = [
    "/../app1/config",
    "/%2e%2e/app1/config",
    "/..%2fapp1/config",
    "/data/../../app1/config",
    "/snapshots/..%2f..%2f..%2fapp1/config",
    "//srv/backups/lab/app1/config",
    "/data/....//app1/config",
    "/../../../../etc/passwd",
    "/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_its_folder(ready: str, redis1: Host, backup1: Host, path: str) -> None:
    other = sha256(backup1.check_output("base64 %s/config", OTHER).encode())
    code, content, _ = request(redis1, "GET", path)
    assert code != 200, content[:200]
    assert "root:" not in content
    written = path.replace("config", "planted").replace("passwd", "planted")
    request(redis1, "POST", written, "planted")
    assert (
        backup1.run("find /etc /tmp /srv/backups -name 'planted*' -not -path '/srv/backups/lab/redis1/*' | grep .").rc
        == 1
    )
    request(redis1, "DELETE", path)
    assert other.digest() == sha256(backup1.check_output("base64 %s/config", OTHER).encode()).digest()
    backup1.check_output("find /srv/backups/lab/redis1 -name 'planted*' -delete")


def test_it_removes_and_overwrites_nothing_not_even_of_its_own(ready: str, redis1: Host, backup1: Host) -> None:
    before = sums(backup1, OWN)
    files = [line.split()[1].removeprefix(OWN) for line in before.splitlines()]
    for kind in ("/config", "/keys/", "/data/", "/index/", "/snapshots/"):
        name = next(name for name in files if name.startswith(kind))
        # Below data the protocol leaves out the folder of the first two digits.
        path = re.sub(r"^/data/../", "/data/", name)
        assert request(redis1, "DELETE", path)[0] == 403, name
        assert request(redis1, "POST", path, "forged")[0] in (403, 405), name
    for path in ("/", "/data/", "/snapshots/", "/data/locks/../../config", f"{files[-1]}/locks/x"):
        request(redis1, "DELETE", path)
    assert sums(backup1, OWN) == before
    # Its own locks alone are its to remove.
    assert request(redis1, "POST", f"/locks/{'0' * 64}", "lock")[0] == 200
    assert request(redis1, "DELETE", f"/locks/{'0' * 64}")[0] == 200


def test_it_gets_no_shell_no_files_and_no_way_on(ready: str, redis1: Host) -> None:
    ssh = " ".join(way(redis1))
    target = way(redis1)[-1]
    options = ssh.removeprefix("ssh ").removesuffix(target)
    for words in ("id", "'sh -c id'", "'rclone serve restic --stdio /'", "-t id"):
        said = redis1.run(f"timeout 20 {ssh} {words} </dev/null || true")
        assert b"uid=" not in said.stdout_bytes + said.stderr_bytes
    # ssh's own exit code for a refusal is the one by which the tests' connection tells that it is broken.
    tried = redis1.run(f"timeout 20 ssh {options} -W 127.0.0.1:22 {target} </dev/null || true")
    assert "SSH-2.0" not in tried.stdout
    sftp = options.replace("-p ", "-P ")
    assert redis1.run(f"echo 'get /etc/passwd /root/x' | timeout 20 sftp {sftp} -b - {target} || exit 1").rc == 1
    # What a way on would show; of the port itself it does.
    probe = 'timeout 2 bash -c "head -c 7 </dev/tcp/%s"'
    assert "SSH-2.0" in redis1.run(probe % f"{ADDRESSES['backup1']}/22").stdout
    for forward in ("-L 127.0.0.1:9022:127.0.0.1:22", "-R 127.0.0.1:9022:127.0.0.1:22"):
        tried = f"timeout 5 ssh {options} -N {forward} {target} & sleep 3; {probe % '127.0.0.1/9022'}; wait"
        assert "SSH-2.0" not in redis1.run(tried).stdout


# The one way to a backup of another host is to say that it is of that one.
FORGED = """
import sys
sys.path.insert(0, "/usr/local/sbin/databackup")
from datetime import UTC, datetime
from databackup import catalog, settings
from databackup.restic import Restic
restic = Restic(settings.repository())
source = settings.Source("quantdesk", "sqlite", "lab", "app1", {})
when = datetime(2099, 1, 1, tzinfo=UTC)
writer = catalog.open_data(restic, source, "sqlite", when)
writer.write(b"forged")
data = writer.commit()
manifest = {"kind": "sqlite", "source": "quantdesk", "items": 1, "bytes": 6, "digest": "0" * 32, "data": data}
print(catalog.write_manifest(restic, source, manifest, when))
"""


@pytest.fixture(scope="module")
def forged(ready: str, redis1: Host, backup1: Host) -> Iterator[str]:
    """A backup that redis1 has made as if it were the latest of app1, from the future."""
    done = python(redis1, FORGED)
    assert done.rc == 0, done.stderr
    yield done.stdout.strip().splitlines()[-1]
    password = redis1.check_output("cat /etc/databackup/password")
    restic = f"RESTIC_PASSWORD='{password}' runuser -u {account('lab', 'redis1')} -- restic --no-cache -r {OWN}"
    done = script("backup1", f"cd / && {restic} forget --host app1 --keep-tag none --prune --quiet")
    assert done.returncode == 0, done.stderr


def test_what_it_forges_for_another_host_is_never_that_ones(forged: str, app1: Host) -> None:
    known = databackup(app1, "list quantdesk")["backups"]
    assert known
    assert forged[:8] not in {backup["id"][:8] for backup in known}
    assert databackup(app1, "restore quantdesk --dry-run")["backup"] == known[-1]["id"]
    listed = playbook("restore.yml", "-e", "restore_list=true")
    assert listed.returncode == 0, listed.stdout
    # Ansible breaks long lines.
    told = " ".join(listed.stdout.split())
    assert re.search(rf"{forged[:8]} \S+ lab redis1 quantdesk 1 6 says that it is of app1", told), told


def test_maintenance_keeps_what_is_genuine_and_locks_of_who_lives(forged: str, redis1: Host, backup1: Host) -> None:
    """With a backup from the future, an account without a repository, a stale lock, and one that was just renewed."""
    # The policy keeps the last eight of all that have arrived.
    genuine = {backup["id"] for backup in databackup(redis1, "list redis")["backups"][-6:]}
    user = account("lab", "redis1")
    fresh, stale = "1" * 64, "2" * 64
    backup1.check_output(
        f"bash -c 'cd {OWN}/locks && touch {stale} && touch -d \"40 minutes ago\" {stale} && chown {user}: {stale}'"
    )
    folder = backup1.check_output("mktemp -d /srv/backups/lab/emptyXXXX")
    gone = folder.rsplit("/", 1)[1]
    backup1.check_output(
        "useradd --system --user-group --home-dir /nonexistent --shell /bin/sh %s", account("lab", gone)
    )
    try:
        told = playbook("backup_maintain.yml")
        assert told.returncode == 0, told.stdout
        assert "odd_times: 1" in told.stdout or '"odd_times": 1' in told.stdout, told.stdout
        assert genuine <= {backup["id"] for backup in databackup(redis1, "list redis")["backups"]}
        assert not backup1.file(f"{OWN}/locks/{stale}").exists
        # By its age, and not by what it holds: this one is no lock of restic's, and as young as that of a live run.
        backup1.check_output(
            f"bash -c 'cd {OWN}/locks && touch {fresh} {stale} && touch -d \"40 minutes ago\" {stale}'"
        )
        backup1.check_output("systemctl start backup-vault-locks.service")
        assert not backup1.file(f"{OWN}/locks/{stale}").exists
        assert backup1.file(f"{OWN}/locks/{fresh}").exists
    finally:
        backup1.run(f"rm -rf {folder} {OWN}/locks/{fresh} {OWN}/locks/{stale}; userdel {account('lab', gone)}")
    assert databackup(redis1, "backup redis")["id"]


def test_a_repository_that_is_read_only_gives_its_backups(ready: str, redis1: Host, backup1: Host) -> None:
    backup1.check_output("mount --bind %s %s", OWN, OWN)
    backup1.check_output("mount -o remount,bind,ro %s", OWN)
    try:
        assert databackup(redis1, "backup redis", code=1)["failed"]
        assert databackup(redis1, "restore redis --dry-run")["dry_run"]
        redis1.check_output("rm -f /root/x.rdb")
        assert databackup(redis1, "fetch redis --to /root/x.rdb")["bytes"]
        assert databackup(redis1, "list redis")["backups"]
    finally:
        backup1.check_output("umount %s", OWN)
        redis1.run("rm -f /root/x.rdb")


# A backup of redis1's data by a host of another name, as it made them before it was lost.
LOST = """
set -eu
rm -rf /root/lost && cp -a /etc/databackup /root/lost
sed -i 's/"host": "redis1"/"host": "redis0"/' /root/lost/source-redis.json
databackup --config /root/lost --json backup redis
rm -rf /root/lost
"""
MOVE = """
set -eu
umask 027
id {user} >/dev/null 2>&1 || useradd --system --user-group --home-dir /nonexistent --shell /bin/sh {user}
install -d -o {user} -g {user} -m 0750 {folder}
export RESTIC_PASSWORD={password} RESTIC_FROM_PASSWORD={own}
restic --no-cache -r {folder} init --quiet
restic --no-cache -r {folder} copy --quiet --from-repo {source} --host redis0
chown -R {user}: {folder}
chmod -R u=rwX,g=rX,o= {folder}
"""


def test_another_hosts_backups_are_lent_for_one_run_only(ready: str, redis1: Host, backup1: Host) -> None:
    done = redis1.run(f"bash <<'END'\n{LOST}END")
    assert done.rc == 0, done.stderr
    wanted = json.loads(done.stdout)
    user, folder = account("lab", "redis0"), "/srv/backups/lab/redis0"
    password = hmac.new(secret("backup_master_password").encode(), b"lab/redis0", "sha256").hexdigest()
    own = redis1.check_output("cat /etc/databackup/password")
    move = MOVE.format(user=user, folder=folder, password=password, own=own, source=OWN)
    made = script("backup1", move)
    assert made.returncode == 0, made.stderr
    guest = f"lend-{hashlib.sha256(b'lab/redis0/lab/redis1').hexdigest()[:12]}"
    before = sums(backup1, folder)
    try:
        redis1.check_output("redis-admin SET qd:lab:later 1")
        words = ["-e", "restore_target=redis1", "-e", "restore_from=redis0", "-e", "restore_confirm=true"]
        restored = playbook("restore.yml", *words)
        assert restored.returncode == 0, restored.stdout
        assert live(redis1)["digest"] == wanted["digest"]
        # Nothing of it is left, on either side, and nothing was written.
        assert backup1.run(f"id {guest}").rc != 0
        assert not redis1.file("/run/databackup/lent").exists
        assert request(redis1, "GET", "/config", account=guest)[0] == 0
        assert sums(backup1, folder) == before
        # The password of a host that is not there opens nothing; and who was let in may only read.
        assert "no backups of that host here" in playbook("restore.yml", *words, "-e", "restore_from=nobody").stdout
    finally:
        backup1.run(f"rm -rf {folder}; userdel {user}")
        redis1.run("rm -rf /var/lib/redis/before-restore-*")


def test_a_guest_can_only_read(ready: str, redis1: Host, backup1: Host) -> None:
    guest = f"lend-{account('lab', 'app1').removeprefix('bak-')}"
    key = redis1.check_output("cat /etc/databackup/ssh/id_ed25519.pub")
    folder = "/etc/ssh/backup-vault"
    lend = f"""
set -eu
useradd --system --gid {account("lab", "app1")} --home-dir /nonexistent --shell /bin/sh {guest}
echo {OTHER} >{folder}/{guest}.folder
echo 'restrict,expiry-time="'$(date -u -d "$1" +%Y%m%d%H%M%SZ)'" {key}' >{folder}/{guest}.keys
"""
    before = sums(backup1, OTHER)
    try:
        assert backup1.run(f"bash -s -- '+1 hour' <<'END'\n{lend}END").rc == 0
        assert request(redis1, "GET", "/config", account=guest)[0] == 200
        for kind in ("locks", "snapshots", "data", "index", "keys"):
            assert request(redis1, "POST", f"/{kind}/{'0' * 64}", "forged", account=guest)[0] not in (0, 200), kind
        assert request(redis1, "DELETE", "/config", account=guest)[0] == 403
        assert sums(backup1, OTHER) == before
        assert backup1.run(f"ls {OTHER}/locks/{'0' * 64}").rc != 0
        # A day later sshd refuses the key, whatever became of the run.
        backup1.check_output(f"userdel {guest}")
        assert backup1.run(f"bash -s -- '-1 minute' <<'END'\n{lend}END").rc == 0
        assert "Permission denied" in request(redis1, "GET", "/config", account=guest)[2]
    finally:
        backup1.run(f"userdel {guest}; rm -f {folder}/{guest}.*")

"""What user redis can do to databackup on a host with systemd. Case by case: databackup/tests/test_boundaries.py."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from backups import CONF, PLANTED, databackup, live, plant, python
from testinfra.host import Host

from conftest import PROJECT, eventually, playbook

ASIDE = "before-restore-20260101T000000Z"
UNITS = ["databackup@redis", "databackup-maintain", "databackup-recover"]
# What it is at most, ten times that of `systemd-analyze security`.
EXPOSURE = 30
# Takes a port as any user can, and keeps what is sent there.
LISTENER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.settimeout(3)
    try:
        while data := connection.recv(4096):
            print(data, flush=True)
            connection.sendall(b"+OK\\r\\n" * data.count(b"*"))
    except OSError:
        pass
"""


@pytest.fixture
def planted(redis1: Host) -> Iterator[None]:
    """A journal and a name that lead to /etc, as redis can write both."""
    with plant(redis1):
        yield


def test_what_redis_plants_moves_nothing_to_etc(redis1: Host, planted: None) -> None:
    before = live(redis1)
    # At the next boot, by hand, and by a restore.
    redis1.run("systemctl start databackup-recover.service")
    said = redis1.run("databackup recover redis")
    assert "no interrupted restore" in said.stderr
    assert "is not of this program, and is not read" in said.stderr
    result = playbook("restore.yml", "-e", "restore_target=redis1", "-e", "restore_confirm=true")
    assert result.returncode != 0
    told = " ".join(result.stdout.split())
    assert "found dbfilename '../../../etc/planted-by-redis'; expected the name of a file" in told, told
    assert not redis1.file(PLANTED).exists
    # Backups go on, and nobody is sent to run a command that would do it.
    redis1.check_output("systemctl start databackup@redis.service")
    assert live(redis1) == before


def listen(host: Host, port: int) -> str:
    """Have user nobody listen on a port, and return the name of the unit that does."""
    unit = f"listener-{port}"
    host.run(f"systemctl stop {unit}; systemctl reset-failed {unit}")
    host.check_output(f"sh -c 'cat > /run/listener.py <<\"END\"\n{LISTENER}\nEND\nchmod 644 /run/listener.py'")
    host.check_output(f"systemd-run --quiet --collect --unit {unit} --uid nobody python3 /run/listener.py {port}")
    eventually(lambda: host.run(f"journalctl --unit {unit} --output cat").stdout, lambda text: "ready" in text)
    return unit


def got(host: Host, unit: str) -> list[str]:
    """Return what a listener was sent."""
    lines = host.check_output("journalctl --unit %s --output cat", unit).splitlines()
    return [line for line in lines if line.startswith("b'")]


def test_whoever_takes_the_port_of_redis_gets_no_password_of_backup(redis1: Host) -> None:
    port = int(redis1.check_output(f"sed -n 's/^tls-port //p' {CONF} | grep -v '^0' || sed -n 's/^port //p' {CONF}"))
    redis1.check_output("systemctl stop redis-server")
    unit = listen(redis1, port)
    try:
        said = redis1.run("databackup backup redis").stderr
        inspected = databackup(redis1, "inspect")
    finally:
        redis1.check_output("systemctl stop %s", unit)
        redis1.check_output("systemctl start redis-server")
    eventually(lambda: redis1.run("redis-admin PING").rc, lambda rc: rc == 0)
    assert f"127.0.0.1:{port} is held by another process than that of redis-server.service" in said
    assert "is held by another process" in inspected["processes"][0]
    assert got(redis1, unit) == []
    # And it is not taken for a stranger's own.
    assert databackup(redis1, "inspect") == {"journals": [], "names": [], "processes": []}
    redis1.check_output("systemctl start databackup@redis.service")


def test_whoever_takes_the_port_of_a_trial_gets_no_password_of_admin(redis1: Host) -> None:
    before = live(redis1)
    code = """
import subprocess, sys, time
sys.path.insert(0, "/usr/local/sbin/databackup")
from databackup import service
from databackup.redis import restore as redis_restore
plain = service.Unit.start_apart

def start_apart(unit, arguments):
    port = arguments[arguments.index("--port") + 1]
    subprocess.run(["systemd-run", "--quiet", "--collect", "--unit", "listener-trial", "--uid", "nobody",
                    "python3", "/run/listener.py", port], check=True)
    while subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True).stdout == b"":
        time.sleep(0.05)
    plain(unit, arguments)

service.Unit.start_apart = start_apart
sys.argv = ["databackup", "restore", "redis"]
from databackup.cli import main
sys.exit(main())
"""
    redis1.check_output(f"sh -c 'cat > /run/listener.py <<\"END\"\n{LISTENER}\nEND\nchmod 644 /run/listener.py'")
    done = python(redis1, code)
    sent = got(redis1, "listener-trial")
    redis1.check_output("systemctl stop listener-trial")
    assert done.rc == 1
    assert "The data from before are in place" in done.stderr
    assert sent == []
    assert live(redis1) == before


@pytest.mark.parametrize("unit", UNITS)
def test_the_units_are_confined(redis1: Host, unit: str) -> None:
    found = redis1.run(f"systemd-analyze security --no-pager --threshold={EXPOSURE} {unit}.service")
    assert found.rc == 0, found.stdout.splitlines()[-1]


def test_a_run_of_a_playbook_is_confined(redis1: Host) -> None:
    # Held where it waits for the other's lock.
    redis1.check_output("sh -c 'flock /var/lib/databackup/redis.lock sleep 1000 >/dev/null 2>&1 & echo $! > /run/held'")
    unit = "databackup-run-restore-redis"
    play = subprocess.Popen(
        [
            PROJECT / ".venv/bin/ansible-playbook",
            "playbooks/restore.yml",
            "-e",
            "restore_target=redis1",
            "-e",
            "restore_confirm=true",
        ],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(
            lambda: redis1.run(f"systemctl is-active {unit}").stdout.strip(), lambda told: told == "active"
        )
        analyzed = redis1.run(f"systemd-analyze security --no-pager --threshold={EXPOSURE} {unit}.service")
        pid = redis1.check_output("systemctl show %s --property MainPID --value", unit)
        status = redis1.check_output("cat /proc/%s/status", pid)
        written = redis1.run(f"nsenter --target {pid} --mount touch /etc/planted")
    finally:
        redis1.check_output("sh -c 'pkill -P $(cat /run/held)'")
        play.wait()
    assert analyzed.rc == 0, analyzed.stdout.splitlines()[-1]
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert "Read-only file system" in written.stderr
    assert play.returncode == 0
    redis1.check_output("rm -rf /var/lib/redis/before-restore-*")


def test_a_restore_that_an_earlier_version_began_is_undone(redis1: Host) -> None:
    before = live(redis1)
    redis1.check_output("systemctl stop redis-server")
    there = redis1.check_output("ls /var/lib/redis").split()
    had = [name for name in ("dump.rdb", "appendonlydir") if name in there]
    noted = json.dumps({"backup": "12345678", "aside": ASIDE, "had": had, "active": True})
    # As root, which it was.
    done = redis1.run(
        f"""bash -e <<'END'
cd /var/lib/redis
install -d -o redis -g redis -m 700 {ASIDE}
mv {" ".join(had)} {ASIDE}/
umask 077
echo '{noted}' >.restore.json
END"""
    )
    assert done.rc == 0, done.stderr
    assert "a restore was interrupted; `databackup recover redis`" in redis1.run("databackup backup redis").stderr
    redis1.check_output("systemctl start databackup-recover.service")
    redis1.check_output("systemctl start redis-server")
    eventually(lambda: redis1.run("redis-admin PING").rc, lambda rc: rc == 0)
    assert live(redis1) == before
    assert not redis1.file("/var/lib/redis/.restore.json").exists
    assert redis1.run("ls -d /var/lib/redis/before-restore-*").rc != 0

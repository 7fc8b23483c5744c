"""A running Redis takes changes without a restart: a client that works all the while notices nothing.

One run of redis.yml changes all that can change live, a second one must change nothing, a third one brings all back.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import LAB, PROJECT, REDIS_ADDRESS, RedisCli, as_user, changed, converge, playbook, secret

# Runs on the application's host, on the standard library alone: one connection that is never made anew.
CLIENT = """
import socket, ssl, sys, time
def words(*parts):
    return b"*%d\\r\\n" % len(parts) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(p), p) for p in map(str.encode, parts))
context = ssl.create_default_context(cafile="/etc/ssl/quantdesk/ca.crt")
plain = socket.create_connection((sys.argv[1], 6380), timeout=5)
stream = context.wrap_socket(plain, server_hostname=sys.argv[1]).makefile("rwb", buffering=0)
password = sys.stdin.readline().strip()
def ask(*parts):
    stream.write(words(*parts))
    line = stream.readline()
    if line.startswith(b"$") and line != b"$-1\\r\\n":
        line = stream.read(int(line[1:]) + 2)
    return line
assert ask("AUTH", "app", password) == b"+OK\\r\\n"
print("ready", flush=True)
count, worst = 0, 0.0
while True:
    began = time.monotonic()
    reply = ask("SET", "qd:lab:live:client", str(count))
    assert reply == b"+OK\\r\\n", reply
    reply = ask("GET", "qd:lab:live:client")
    assert reply == str(count).encode() + b"\\r\\n", reply
    worst = max(worst, time.monotonic() - began)
    count += 1
    if count % 100 == 0:
        print(count, round(worst * 1000), flush=True)
    time.sleep(0.002)
"""
# With all that means something to a shell, a URL, systemd or a redis.conf, and is let through.
NEW_APP, NEW_ADMIN = "#n3w!app$lication&;(ok)*~%41=@[x]?", "S3cret!with$pecial#&chars;(ok)*~:/|<>"


@contextmanager
def working_client() -> Iterator[list[str]]:
    """Yield the lines of a client that reads and writes; at the end it must still be at it, without an error."""
    process = subprocess.Popen(
        ["ssh", "-F", LAB / "ssh/config", "app1", "sudo", "python3", "-c", f"'{CLIENT}'", REDIS_ADDRESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(secret("redis_app_password") + "\n")
    process.stdin.flush()
    lines = [process.stdout.readline().strip()]
    assert lines == ["ready"]
    output = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(line.strip() for line in output), daemon=True)
    reader.start()
    try:
        time.sleep(0.5)
        yield lines
        before = len(lines)
        deadline = time.monotonic() + 20
        while len(lines) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert process.poll() is None, "\n".join(lines[-12:])
        assert len(lines) > before, "\n".join(lines[-12:])
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        process.stdin.close()
        process.stdout.close()


def own_files(folder: Path) -> dict[str, str]:
    """Make a key and a certificate for redis1 by hand, without a name for loopback, signed by the lab's authority."""
    key, request, certificate = folder / "own.key", folder / "own.csr", folder / "own.crt"
    authority = LAB / "pki" / "ca"
    ask = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=own"]
    names = ["-addext", f"subjectAltName=DNS:redis1,IP:{REDIS_ADDRESS}"]
    subprocess.run([*ask, *names, "-keyout", str(key), "-out", str(request)], check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", "-in", str(request), "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key"]
    copy = ["-days", "60", "-copy_extensions", "copy", "-out", str(certificate)]
    subprocess.run([*sign, *copy], check=True, capture_output=True)
    return {"ca": f"{authority}.crt", "cert": str(certificate), "key": str(key)}


@dataclass
class State:
    """Which process Redis is, since when, and which certificate it shows."""

    pid: int
    uptime: int
    subject: str
    serial: str


def state(redis1: Host) -> State:
    """Query Redis on its host, with whatever password root has there."""
    lines = redis1.check_output("redis-admin INFO server").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    ask = "openssl s_client -connect %s:6380 </dev/null 2>/dev/null | openssl x509 -noout -subject -serial"
    # OpenSSL 3.2 and later write no blanks.
    subject, serial = redis1.check_output(ask, REDIS_ADDRESS).replace(" ", "").splitlines()
    return State(int(info["process_id"]), int(info["uptime_in_seconds"]), subject, serial)


def slowest(lines: list[str]) -> None:
    """Assert that a client has done a lot of work, and print how slow its slowest was."""
    count, worst = map(int, lines[-1].split())
    print(f"{count} writes and reads, the slowest pair {worst} ms")
    assert count > 500


@dataclass
class Changed:
    """What was before the run, and the inputs that it changed."""

    before: State
    inputs: dict[str, object]
    back: bool = False


@pytest.fixture(scope="module")
def live(redis1: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changed]:
    """All inputs that change live are other ones, for the time of these tests."""
    inputs = {
        "redis_maxmemory": "96mb",
        "redis_maxmemory_policy": "allkeys-lfu",
        "redis_save": ["7200 5"],
        "redis_app_password": NEW_APP,
        "redis_admin_password": NEW_ADMIN,
        "redis_previous_passwords": {"app": secret("redis_app_password")},
        "redis_default_user": False,
        "certificates_source": "files",
        "certificates_files": own_files(tmp_path_factory.mktemp("own")),
        "firewall_ssh_ports": [2222],
    }
    made = Changed(state(redis1), inputs)
    try:
        with working_client() as lines:
            result = converge(**inputs)
        # Its files, its instance, its packet filter.
        assert changed(result.stdout)["redis1"] >= 3
        slowest(lines)
        yield made
    finally:
        if not made.back:
            converge()


def test_new_settings_are_in_force_in_the_same_process(live: Changed, redis1: Host) -> None:
    found = redis1.check_output("redis-admin CONFIG GET maxmemory maxmemory-policy save").split("\n")
    pairs = dict(zip(found[::2], found[1::2], strict=True))
    assert pairs == {"maxmemory": str(96 * 2**20), "maxmemory-policy": "allkeys-lfu", "save": "7200 5"}
    after = state(redis1)
    assert after.pid == live.before.pid
    assert after.uptime > live.before.uptime


@pytest.mark.usefixtures("live")
def test_new_passwords_let_in_and_old_ones_are_refused(redis1: Host, redis_cli: RedisCli, app_cli: RedisCli) -> None:
    assert RedisCli("redis1", "app", NEW_APP, "127.0.0.1")("PING") == ["PONG"]
    # For the time of the change the one before is good, too.
    assert app_cli("PING") == ["PONG"]
    assert redis_cli("PING", password=NEW_ADMIN) == ["PONG"]
    assert redis_cli("PING", password=secret("redis_admin_password"))[0].startswith("WRONGPASS")
    assert redis1.check_output("redis-admin PING") == "PONG"


@pytest.mark.usefixtures("live")
def test_the_default_user_is_off_and_the_others_are_not() -> None:
    assert as_user("redis1", "default", "127.0.0.1")("PING")[0].startswith("WRONGPASS")
    assert as_user("redis1", "app", "127.0.0.1")("PING") == ["PONG"]


@pytest.mark.usefixtures("live")
def test_a_certificate_that_the_user_brings_is_served(redis1: Host, app_cli: RedisCli) -> None:
    assert state(redis1).subject == "subject=CN=own"
    assert app_cli("PING") == ["PONG"]


@pytest.mark.usefixtures("live")
def test_a_wrong_ssh_port_locks_nobody_out(redis1: Host) -> None:
    assert "dport { 22, 2222 } accept" in redis1.check_output("nft list table inet quantdesk")


def test_a_second_run_changes_nothing(live: Changed) -> None:
    again = converge(**live.inputs)
    assert changed(again.stdout)["redis1"] == 0, again.stdout


def test_all_of_it_comes_back_with_a_new_certificate(
    live: Changed, redis1: Host, redis_cli: RedisCli, tmp_path: Path
) -> None:
    # The role issues a new certificate, as it does thirty days before the end of the old one.
    (LAB / "pki/hosts/redis1.crt").rename(tmp_path / "old.crt")
    with working_client() as lines:
        converge()
        live.back = True
    slowest(lines)
    after = state(redis1)
    assert (after.pid, after.subject) == (live.before.pid, "subject=CN=redis1")
    assert after.serial != live.before.serial
    assert redis_cli("PING", password=NEW_ADMIN)[0].startswith("WRONGPASS")
    assert redis_cli("CONFIG GET maxmemory") == ["maxmemory", str(64 * 2**20)]
    assert as_user("redis1", "default", "127.0.0.1")("PING") == ["PONG"]
    assert RedisCli("redis1", "app", NEW_APP, "127.0.0.1")("PING")[0].startswith("WRONGPASS")
    assert "2222" not in redis1.check_output("nft list table inet quantdesk")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"redis_settings": {"hz": "many"}}, "hz"),
        ({"redis_default_rules": "~* +nosuchcommand"}, "nosuchcommand"),
    ],
)
def test_a_value_that_redis_refuses_leaves_everything_as_it_was(
    redis1: Host, variables: dict[str, object], said: str
) -> None:
    files = "sha256sum /etc/redis/redis.conf /etc/redis/users.acl"
    before, pid = redis1.check_output(files), state(redis1).pid
    result = playbook("redis.yml", "-e", json.dumps(variables))
    assert result.returncode != 0
    assert said in result.stdout
    assert redis1.check_output(files) == before
    assert state(redis1).pid == pid
    assert as_user("redis1", "default", "127.0.0.1")("PING") == ["PONG"]


@pytest.fixture
def mutual_tls() -> Iterator[None]:
    """Mutual TLS, for the time of a test."""
    converge(redis_tls_auth_clients=True)
    yield
    converge()


@pytest.mark.usefixtures("mutual_tls")
def test_mutual_tls_comes_with_one_variable(redis1: Host, redis_cli: RedisCli, app_cli: RedisCli) -> None:
    assert "PONG" not in redis_cli("PING")
    assert "PONG" not in app_cli("PING")
    # redis-admin shows the host's own certificate.
    assert redis1.check_output("redis-admin PING") == "PONG"
    foreign = (
        "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=foreign"
        " -keyout foreign.key -out foreign.crt 2>/dev/null; redis-cli --tls --cacert /etc/ssl/quantdesk/ca.crt"
        " --cert foreign.crt --key foreign.key -h 127.0.0.1 -p 6380 PING 2>&1; rm foreign.*"
    )
    assert "NOAUTH" not in redis1.run(foreign).stdout


def test_a_host_is_renamed_and_back_while_a_client_works(redis1: Host, tmp_path: Path) -> None:
    # With more than 63 characters between two dots, and capitals and underscores.
    name = "Redis_primary-node-of-the-trading-desk-in-frankfurt-rack-17-unit-4.example.com"
    inventory = tmp_path / "inventory"
    shutil.copytree(PROJECT / "inventory/lab", inventory)
    hosts = inventory / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("redis1:", f"{name}:"))
    before = state(redis1)
    try:
        with working_client() as lines:
            result = playbook("redis.yml", "-i", str(inventory))
            assert result.returncode == 0, result.stdout
            assert f"{name} was redis1 until now" in " ".join(result.stdout.split())
        slowest(lines)
        renamed = state(redis1)
        assert renamed.pid == before.pid
        assert renamed.serial != before.serial
        # A client that still verifies the old name can connect.
        ask = "openssl s_client -connect %s:6380 -verify_hostname %s -CAfile /etc/ssl/quantdesk/ca.crt </dev/null 2>&1"
        for each in (name, "redis1"):
            assert "Verify return code: 0 (ok)" in redis1.check_output(ask, REDIS_ADDRESS, each)
        again = playbook("redis.yml", "-i", str(inventory))
        assert changed(again.stdout)[name] == 0, again.stdout
    finally:
        with working_client() as lines:
            converge()
    slowest(lines)
    assert state(redis1).pid == before.pid
    assert state(redis1).subject == "subject=CN=redis1"


def test_the_authority_s_key_is_the_operator_s_alone() -> None:
    authority = LAB / "pki" / "ca"
    key, folder = authority.with_suffix(".key"), authority.parent
    assert (key.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)

"""A running Redis takes changes without a restart: a client that works all the while notices nothing."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import LAB, RedisCli, as_user, changed, playbook, secret

# Runs on the application's host, on the standard library alone: one connection that is never made anew.
CLIENT = """
import socket, ssl, sys, time
def words(*parts):
    return b"*%d\\r\\n" % len(parts) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(p), p) for p in map(str.encode, parts))
context = ssl.create_default_context(cafile="/etc/ssl/quantdesk/ca.crt")
plain = socket.create_connection(("10.77.37.11", 6380), timeout=5)
stream = context.wrap_socket(plain, server_hostname="10.77.37.11").makefile("rwb", buffering=0)
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


@contextmanager
def working_client() -> Iterator[list[str]]:
    """Yield the lines of a client that reads and writes; at the end it must still be at it, without an error."""
    process = subprocess.Popen(
        ["ssh", "-F", LAB / "ssh/config", "app1", "sudo", "python3", "-c", f"'{CLIENT}'"],
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
        time.sleep(2)
        assert process.poll() is None, "\n".join(lines[-12:])
        assert len(lines) > before, "\n".join(lines[-12:])
    finally:
        process.kill()
        process.wait(10)
        reader.join(10)
        process.stdin.close()
        process.stdout.close()


def info(cli: RedisCli, field: str) -> int:
    """Return a number of INFO."""
    return int(next(line for line in cli("INFO") if line.startswith(f"{field}:")).split(":")[1])


def converge(**variables: object) -> subprocess.CompletedProcess[str]:
    """Run redis.yml with variables changed, and fail with its output."""
    result = playbook("redis.yml", "-e", json.dumps(variables))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture
def as_declared() -> Iterator[None]:
    """Put the inventory's values back after a test."""
    yield
    converge()


@pytest.mark.usefixtures("as_declared")
def test_settings_passwords_and_certificates_change_under_a_working_client(
    redis1: Host, redis_cli: RedisCli, tmp_path: Path
) -> None:
    uptime, pid = info(redis_cli, "uptime_in_seconds"), info(redis_cli, "process_id")
    served = redis1.check_output("openssl x509 -in /etc/ssl/quantdesk/host.crt -noout -serial")
    new = "a-new-password-of-the-application"
    with working_client() as lines:
        # The role issues a new certificate, as it does thirty days before the end of the old one.
        certificate = LAB / "pki/hosts/redis1.crt"
        certificate.rename(tmp_path / "old.crt")
        result = converge(
            redis_maxmemory="96mb",
            redis_maxmemory_policy="allkeys-lfu",
            redis_save=["7200 5"],
            redis_app_password=new,
            redis_previous_passwords={"app": secret("redis_app_password")},
        )
        assert changed(result.stdout)["redis1"] >= 3
    assert redis_cli("CONFIG GET maxmemory") == ["maxmemory", str(96 * 2**20)]
    assert redis_cli("CONFIG GET maxmemory-policy") == ["maxmemory-policy", "allkeys-lfu"]
    assert redis_cli("CONFIG GET save") == ["save", "7200 5"]
    assert RedisCli("redis1", "app", new, "127.0.0.1")("PING") == ["PONG"]
    shown = redis1.check_output(
        "openssl s_client -connect 127.0.0.1:6380 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    )
    assert shown != served
    assert info(redis_cli, "process_id") == pid
    assert info(redis_cli, "uptime_in_seconds") > uptime
    count, worst = map(int, lines[-1].split())
    print(f"{count} writes and reads, the slowest pair {worst} ms")
    assert count > 500


@pytest.mark.usefixtures("as_declared")
def test_the_admin_password_changes_too_and_the_old_one_is_refused(redis1: Host, redis_cli: RedisCli) -> None:
    pid = info(redis_cli, "process_id")
    old, new = secret("redis_admin_password"), "another-password-of-the-admin"
    converge(redis_admin_password=new)
    try:
        assert redis_cli("PING", password=old)[0].startswith("WRONGPASS")
        assert f"process_id:{pid}" in redis_cli("INFO server", password=new)
        assert redis1.check_output("redis-admin PING") == "PONG"
    finally:
        converge()
    assert info(redis_cli, "process_id") == pid


def test_io_threads_restart_it_exactly_once(redis1: Host, redis_cli: RedisCli) -> None:
    def starts() -> int:
        return int(redis1.check_output("grep -c 'Ready to accept connections' /var/log/redis/redis-server.log"))

    before = starts()
    result = converge(redis_io_threads=2, redis_maxmemory="80mb")
    try:
        assert starts() == before + 1
        assert "io-threads is 1, wanted 2" in " ".join(result.stdout.split())
        assert redis_cli("CONFIG GET io-threads") == ["io-threads", "2"]
        assert changed(converge(redis_io_threads=2, redis_maxmemory="80mb").stdout)["redis1"] == 0
        assert starts() == before + 1
    finally:
        converge()
    assert starts() == before + 2
    assert redis_cli("CONFIG GET io-threads") == ["io-threads", "1"]


def test_what_redis_wrote_itself_stays(redis_cli: RedisCli, redis1: Host) -> None:
    assert redis_cli("CONFIG REWRITE") == ["OK"]
    assert changed(converge().stdout)["redis1"] == 0
    # As Sentinel demotes a server: to a primary that does not answer, which is enough for the role and the file.
    try:
        assert redis_cli("REPLICAOF 127.0.0.1 6399", "CONFIG REWRITE") == ["OK", "OK"]
        result = playbook("redis.yml")
        assert result.returncode == 0, result.stdout
        assert changed(result.stdout)["redis1"] == 0
        assert redis_cli("ROLE")[0] == "slave"
        assert redis1.run("grep -q '^replicaof 127.0.0.1 6399$' /etc/redis/redis.conf").rc == 0
    finally:
        assert redis_cli("REPLICAOF NO ONE", "CONFIG REWRITE") == ["OK", "OK"]
    assert redis_cli("ROLE")[0] == "master"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"redis_settings": {"hz": "many"}}, "hz"),
        ({"redis_default_rules": "~* +nosuchcommand"}, "nosuchcommand"),
    ],
)
def test_a_value_that_redis_refuses_leaves_everything_as_it_was(
    redis1: Host, redis_cli: RedisCli, variables: dict[str, object], said: str
) -> None:
    files = "sha256sum /etc/redis/redis.conf /etc/redis/users.acl"
    before, pid = redis1.check_output(files), info(redis_cli, "process_id")
    result = playbook("redis.yml", "-e", json.dumps(variables))
    assert result.returncode != 0
    assert said in result.stdout
    assert redis1.check_output(files) == before
    assert info(redis_cli, "process_id") == pid
    assert as_user("redis1", "default", "127.0.0.1")("PING") == ["PONG"]


def test_a_run_that_was_cut_off_before_its_restart_is_made_good(redis1: Host, redis_cli: RedisCli) -> None:
    pid = info(redis_cli, "process_id")
    # As if a run had written the file and died: Redis cannot take `databases` live.
    redis1.check_output("sed -i 's/^databases .*/databases 8/' /etc/redis/redis.conf")
    result = converge(redis_settings={"databases": 8})
    assert "databases is 16, wanted 8" in " ".join(result.stdout.split())
    assert info(redis_cli, "process_id") != pid
    converge(redis_settings={"databases": None})
    assert redis_cli("CONFIG GET databases") == ["databases", "16"]

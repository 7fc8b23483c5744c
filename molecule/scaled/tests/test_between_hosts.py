"""What an intruder on the network between the hosts sees, and where one within a service gets."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from backends import all_up, states
from testinfra.host import Host
from traffic import Traffic, ask, log_in, reads, writes

from conftest import ADDRESSES, LAB, connect, eventually, playbook

# Prints, at its end, all that went over the wire to and from some ports while a file was there.
CAPTURE = """
import os, socket, struct, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.bind(("eth0", 3))
wire.settimeout(0.2)
ports = {int(word) for word in sys.argv[2:]}
seen = b""
open(sys.argv[1], "w").close()
while os.path.exists(sys.argv[1]):
    try:
        packet = wire.recv(65536)
    except TimeoutError:
        continue
    head = 14 + (packet[14] & 15) * 4
    if packet[12:14] == b"\\x08\\x00" and packet[23] == 6 and ports & set(struct.unpack("!HH", packet[head:head + 4])):
        seen += packet[head + (packet[head + 12] >> 4) * 4:]
sys.stdout.buffer.write(seen)
"""
KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("connected")
except OSError as error:
    print(error.strerror or type(error).__name__)
"""


@pytest.fixture(scope="module")
def lb1() -> Host:
    """The balancer's host."""
    return connect("lb1")


@contextmanager
def captured(name: str, into: list[bytes]) -> Iterator[None]:
    """Put what goes over a host's wire to the application's ports, during the block, into a list."""
    flag = "/run/captured"
    words = f"sudo python3 - {flag} 3002 3003"
    with subprocess.Popen(
        ["ssh", "-F", LAB / "ssh/config", name, words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(CAPTURE.encode())
        process.stdin.close()
        process.stdin = None
        host = connect(name)
        assert eventually(lambda: bool(host.file(flag).exists), bool)
        try:
            yield
        finally:
            time.sleep(1)
            host.check_output(f"rm {flag}")
            into.append(process.communicate(timeout=60)[0])


def test_no_cookie_and_no_token_goes_between_hosts_in_clear(admin_token: str) -> None:
    cookie = log_in("between")
    seen: list[bytes] = []
    with captured("app1", seen), captured("app2", seen):
        for _ in range(12):
            assert ask("GET", "/api/sessions/current", headers={"Cookie": cookie})[0] == 200
            assert ask("GET", "/api/redis/stats", token=admin_token)[0] == 200
    assert min(map(len, seen)) > 1000
    for wire in seen:
        assert cookie.split("=", 1)[1].encode() not in wire
        assert admin_token.encode() not in wire
        assert b"HTTP/1.1" not in wire


def test_an_instance_answers_no_plaintext(lb1: Host) -> None:
    question = "printf 'GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | timeout 5 bash -c %s || true"
    for name in ("app1", "app2"):
        talk = f"exec 3<>/dev/tcp/{ADDRESSES[name]}/3002; cat >&3; cat <&3 | tr -d '\\0'"
        assert "HTTP" not in lb1.run(question, talk).stdout


def test_an_instance_that_is_somebody_else_gets_no_request() -> None:
    app2 = connect("app2")
    # A certificate of the lab's authority, but of another host; and one that nobody has signed.
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /run/other.key -days 2"
    app2.check_output(f"{make} -subj /CN=app2 -addext subjectAltName=DNS:app2 -out /run/other.crt 2>/dev/null")
    for name in ("crt", "key"):
        path = f"/run/named.{name}"
        text = (LAB / f"pki/hosts/app1.{name}").read_text()
        app2.check_output(f"printf '%%s' %s > {path}", text)
    app2.check_output("systemctl stop quantdesk@3003.socket quantdesk@3003.service")
    try:
        for which in ("named", "other"):
            serve = f"openssl s_server -accept 3003 -cert /run/{which}.crt -key /run/{which}.key -WWW"
            app2.check_output(f"systemd-run --quiet --unit imposter {serve}")
            found = eventually(lambda: states()["app2-3003"], ["DOWN", "L6RSP"].__eq__, 60)
            assert found == ["DOWN", "L6RSP"]
            assert {ask("GET", "/api/prices/NOBODY")[0] for _ in range(12)} == {404}
            app2.check_output("systemctl stop imposter")
    finally:
        app2.run("systemctl stop imposter; rm -f /run/other.* /run/named.*")
        app2.check_output("systemctl start quantdesk@3003.socket quantdesk@3003.service")
    assert all_up()


@pytest.mark.parametrize(
    ("name", "user", "reached"),
    [
        ("app1", "quantdesk", {("redis1", 6380), ("db1", 5432)}),
        ("app2", "quantdesk", {("redis1", 6380), ("db1", 5432)}),
        ("lb1", "haproxy", {("app1", 3002), ("app1", 3003), ("app2", 3002), ("app2", 3003)}),
    ],
)
def test_a_service_connects_to_what_it_needs_and_to_nothing_else(
    name: str, user: str, reached: set[tuple[str, int]]
) -> None:
    host = connect(name)
    others = {(other, 22) for other in ADDRESSES}
    for other, port in sorted(reached | others):
        answer = host.check_output(f"runuser -u {user} -- python3 -c %s %s %s", KNOCK, ADDRESSES[other], str(port))
        assert answer == ("connected" if (other, port) in reached else "No route to host"), (other, port)
    # Other users are not concerned.
    assert host.check_output("runuser -u nobody -- python3 -c %s %s 22", KNOCK, ADDRESSES["outsider"]) == "connected"


def test_the_balancers_root_process_writes_into_its_own_folder_alone(lb1: Host) -> None:
    pid = lb1.check_output("systemctl show haproxy --property MainPID --value")
    inside = f"nsenter --target {pid} --mount --"
    for path in ("/run", "/run/systemd/system", "/etc", "/usr", "/var/lib"):
        assert "Read-only file system" in lb1.run(f"{inside} touch {path}/audit").stderr
    assert lb1.run(f"{inside} touch /run/haproxy/audit && rm /run/haproxy/audit").rc == 0
    assert lb1.check_output("stat --format '%U:%G %a' /run/haproxy") == "root:root 700"
    assert lb1.run("systemd-analyze security --threshold=25 haproxy").rc == 0


def test_a_renewed_certificate_is_taken_over_live(admin_token: str) -> None:
    pids = "for port in 3002 3003; do systemctl show quantdesk@$port --property MainPID --value; done"
    served = "openssl s_client -connect 127.0.0.1:3002 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"
    app1 = connect("app1")
    before = app1.check_output(f"{pids}; {served}").splitlines()
    for suffix in ("crt", "key"):
        (LAB / f"pki/hosts/app1.{suffix}").unlink()
    write = writes(admin_token)
    assert ask("PUT", write.path, {"price": "1"}, admin_token)[0] == 200
    traffic = Traffic([reads(), write], rate=100, clients=10)
    with traffic:
        result = playbook("app.yml")
    assert result.returncode == 0, result.stdout
    after = app1.check_output(f"{pids}; {served}").splitlines()
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert traffic.problems == []
    assert traffic.count > 100
    assert all_up()

"""The balancer as clients see it: TLS, what it refuses however it is written, and what it says of them."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from testinfra.host import Host
from traffic import ADDRESS, PORT, Traffic, ask, listen, reads, trust, writes

from conftest import ADDRESSES, PROJECT, connect, eventually, published


@pytest.fixture(scope="module")
def lb1() -> Host:
    """The balancer's host."""
    return connect("lb1")


@contextmanager
def connection() -> Iterator[ssl.SSLSocket]:
    """A TLS connection to the balancer that says what it is told and nothing else."""
    with (
        socket.create_connection((ADDRESS, PORT), 10) as plain,
        trust().wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        yield tls


def raw(request: bytes) -> tuple[int, bytes]:
    """Send a request byte by byte as it stands, and return status and body; no client of ours tidies it up."""
    with connection() as tls:
        tls.sendall(request)
        answer = http.client.HTTPResponse(tls)
        answer.begin()
        return answer.status, answer.read()


def test_serves_over_tls_with_a_certificate_of_the_private_authority() -> None:
    status, _, body = ask("GET", "/health")
    assert (status, body["status"]) == (200, "healthy")


def test_plain_http_leads_to_https() -> None:
    plain = http.client.HTTPConnection(ADDRESS, published(3080), timeout=5)
    plain.request("GET", "/health?a=1", headers={"Host": "quantdesk.example:80"})
    answer = plain.getresponse()
    plain.close()
    assert (answer.status, answer.headers["Location"]) == (308, "https://quantdesk.example/health?a=1")


@pytest.mark.parametrize(("protocol", "works"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_speaks_only_current_tls(protocol: str, works: bool) -> None:
    # Level 0 lets the client offer what its own policy forbids: the refusal must be the server's.
    offer = ["openssl", "s_client", protocol, "-cipher", "ALL:@SECLEVEL=0", "-connect", f"{ADDRESS}:{PORT}"]
    done = subprocess.run(offer, input=b"", capture_output=True, check=False)
    assert (b"BEGIN CERTIFICATE" in done.stdout) is works


CLOSED = ["/metrics", "/api/redis/clear", "/api/redis/reset-stats"]
WAYS = [
    "{path}",
    "{path}/",
    "{path}//",
    "/{path}",
    "/.{path}",
    "/x/..{path}",
    "{path}/.",
    "{path}/x/..",
    "/%2e{path}",
    "/x/%2e%2e{path}",
    "/x/%2E%2e{path}",
    "{encoded}",
    "{path}%2f",
    "{path}%00",
    "{path}%20",
    "{path};x=1",
    "{path}?x=1",
    "{upper}",
    "http://localhost{path}",
    "https://localhost{path}",
    "\\{path}",
    "{backslash}",
]


@pytest.mark.parametrize("path", CLOSED)
def test_what_is_not_for_the_outside_is_refused_however_it_is_written(admin_token: str, path: str) -> None:
    spelled = {
        "path": path,
        "upper": path.upper(),
        "encoded": "/" + "".join(f"%{byte:02x}" for byte in path[1:].encode()),
        "backslash": path.replace("/", "\\"),
    }
    body = b'{"pattern": "*"}'
    let_in = {}
    for way in WAYS:
        target = way.format(**spelled)
        for method in ("GET", "POST"):
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {admin_token}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            status, answer = raw(head.encode() + body)
            if status not in (400, 403):
                let_in[f"{method} {target}"] = status
            elif target.startswith(("/", "http")):
                # What is no request at all is answered in HTML.
                assert json.loads(answer)["error"]["code"] in ("bad_request", "forbidden")
    assert let_in == {}


def test_a_header_that_names_another_path_or_method_is_not_passed_on(admin_token: str) -> None:
    disguise = {"X-Original-URL": "/metrics", "X-Rewrite-URL": "/metrics", "X-HTTP-Method-Override": "DELETE"}
    status, _, body = ask("GET", "/api/prices/NOBODY", headers={**disguise, "Authorization": f"Bearer {admin_token}"})
    assert (status, body["error"]["code"]) == (404, "not_found")


def test_its_statistics_are_for_the_host_itself(lb1: Host, outsider: Host) -> None:
    question = "python3 -c \"import urllib.request as u; print(u.urlopen('http://%s:8404/metrics', timeout=2).status)\""
    assert lb1.check_output(question % "127.0.0.1") == "200"
    assert outsider.run(question % ADDRESSES["lb1"]).rc != 0


def test_a_client_says_nothing_of_its_own_address() -> None:
    def remaining(**headers: str) -> int:
        status, answered, _ = ask("GET", "/api/prices/NOBODY", headers=headers)
        assert status == 404
        return int(answered["RateLimit-Remaining"])

    # One count for all of these, on whichever instance: nobody gets a new one by a header.
    disguises: list[dict[str, str]] = [
        {"X-Forwarded-For": "198.51.100.1"},
        {"X_Forwarded_For": "198.51.100.2"},
        {"Forwarded": "for=198.51.100.3"},
        {"X-Real-IP": "198.51.100.4"},
        {"X-Client-IP": "198.51.100.5"},
    ]
    first = remaining()
    counts = [remaining(**disguise) for disguise in disguises]
    assert counts == list(range(first - 1, first - 1 - len(disguises), -1))


def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    status, answer = raw(b"PUT /api/prices/X HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")


def test_a_request_that_never_ends_is_cut_off() -> None:
    with connection() as tls:
        began = time.monotonic()
        tls.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        answer = tls.recv(4096)
        assert b" 408 " in answer
        # load_balancer_request_timeout of the scenario, and not the default's 10.
        assert time.monotonic() - began < 9


def test_a_reload_drops_no_connection(lb1: Host, admin_token: str) -> None:
    pid = lb1.check_output("systemctl show haproxy --property MainPID --value")
    with listen("price:RELOAD") as socket_before:
        lb1.check_output("systemctl reload haproxy")
        time.sleep(1)
        assert ask("PUT", "/api/prices/RELOAD", {"price": "7"}, admin_token)[0] == 200
        assert socket_before.recv(5)["data"]["price"] == "7"
    assert lb1.check_output("systemctl show haproxy --property MainPID --value") == pid


def test_a_restart_for_its_confinement_refuses_no_connection(lb1: Host, admin_token: str) -> None:
    # As the role does it; a request on a connection that is closed at that moment is the client's to send again.
    pid = lb1.check_output("systemctl show haproxy --property MainPID --value")
    script = (PROJECT / "roles/load_balancer/files/restart.sh").read_text()
    write = writes(admin_token)
    assert ask("PUT", write.path, {"price": "1"}, admin_token)[0] == 200
    traffic = Traffic([reads(), write], rate=100, clients=10)
    with traffic:
        time.sleep(1)
        lb1.check_output("bash -c %s restart /etc/haproxy/haproxy.cfg /run/haproxy/admin.sock", script)
        time.sleep(1)
    assert lb1.check_output("systemctl show haproxy --property MainPID --value") != pid
    assert traffic.problems == []
    assert traffic.count > 100
    # Nothing of it listens any more.
    assert eventually(
        lambda: lb1.run("systemctl is-active haproxy-bridge").stdout, lambda said: said == "inactive\n", 90
    )
    assert not lb1.file("/run/haproxy-bridge").exists
    assert lb1.file("/run/haproxy/admin.sock").exists


def test_the_unit_is_confined(lb1: Host) -> None:
    assert lb1.run("systemd-analyze security --threshold=35 haproxy").rc == 0
    assert lb1.service("haproxy").is_enabled
    worker = lb1.check_output("pgrep --newest --parent $(systemctl show haproxy --property MainPID --value)")
    status = lb1.check_output("cat /proc/%s/status", worker)
    assert "CapEff:\t0000000000000000" in status
    assert lb1.check_output("stat --format '%U %a' /run/haproxy/admin.sock") == "root 600"


def test_the_application_lets_in_nobody_but_the_balancer(outsider: Host) -> None:
    # Published on this machine, as in the small lab, but its firewall knows the balancer alone.
    with pytest.raises(OSError, match=r"timed out|reset|refused"):
        urllib.request.urlopen(f"http://{ADDRESS}:{published(3002)}/health", timeout=2)
    knock = "python3 -c \"import socket; socket.create_connection(('%s', %s), 1.5)\""
    app2 = connect("app2")
    for host, port in ((outsider, 3002), (app2, 3003)):
        assert "TimeoutError" in host.run(knock % (ADDRESSES["app1"], port)).stderr


def test_without_the_authority_nobody_trusts_it() -> None:
    stranger = http.client.HTTPSConnection(ADDRESS, PORT, timeout=5, context=ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("GET", "/health")


# Opens so many connections at a time, so often; prints how many of the last ones were not refused, and how many there
# had been. A connection that is refused ends at once; the others wait for what is said on them.
KNOCK = """
import select, socket, sys
address, at_a_time, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
came = 0
for _ in range(times):
    poll, held = select.poll(), {}
    for _ in range(at_a_time):
        try:
            one = socket.create_connection((address, 443), 10)
        except ConnectionError:
            continue
        held[one.fileno()] = one
        poll.register(one, select.POLLIN)
    while ended := poll.poll(500):
        for number, _ in ended:
            poll.unregister(number)
            held.pop(number).close()
    came += len(held)
    if len(held) < at_a_time:
        break
    for one in held.values():
        one.close()
print(len(held), came)
"""


def knock(host: Host, at_a_time: int, times: int) -> list[int]:
    """Return how many connections at a time were not refused, and how many in all, until some were."""
    said = host.check_output("python3 -c %s %s %s %s", KNOCK, ADDRESSES["lb1"], str(at_a_time), str(times))
    return [int(number) for number in said.split()]


def test_one_address_has_not_all_connections(outsider: Host) -> None:
    assert knock(outsider, 700, 1) == [500, 500]
    # Others are served meanwhile and afterwards, and so is it, once it has closed some.
    assert ask("GET", "/health")[0] == 200


def test_one_address_does_not_come_again_and_again(outsider: Host) -> None:
    # Of the ten seconds before, some may count as well; and some may have been so long ago that they no longer do.
    open_at_once, came = knock(outsider, 250, 20)
    assert open_at_once < 250
    assert came < 5000
    assert ask("GET", "/health")[0] == 200

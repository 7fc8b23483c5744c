"""Two hosts with two instances each are one application: prices, sessions and rate limits are everybody's."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
from traffic import ADDRESS, PORT, ask, listen, log_in

from conftest import as_user, assert_confined, assertion, connect, eventually, health

SERVERS = {"app1-3002", "app1-3003", "app2-3002", "app2-3003"}
STATISTICS = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
    " s.sendall(b'show stat\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
)


def sessions_of_backends() -> dict[str, int]:
    """Return how many connections each instance has now, by its name."""
    names, *rows = connect("lb1").check_output("python3 -c %s", STATISTICS).lstrip("# ").splitlines()
    found = [dict(zip(names.split(","), row.split(","), strict=True)) for row in rows if row]
    return {row["svname"]: int(row["scur"]) for row in found if row["svname"] in SERVERS}


def test_a_price_written_through_one_reaches_websockets_on_all(admin_token: str) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(listen("price:SPREAD")) for _ in range(8)]
        # Some for each: what came before may still be counted as open, so not the same number.
        shares = sessions_of_backends()
        assert set(shares) == SERVERS
        assert min(shares.values()) >= 1, shares
        assert ask("PUT", "/api/prices/SPREAD", {"price": "64250.10"}, admin_token)[0] == 200
        received = [websocket.recv(5) for websocket in sockets]
    assert [message["data"]["price"] for message in received] == ["64250.10"] * 8


def test_each_instance_answers_what_any_has_written(admin_token: str) -> None:
    assert ask("PUT", "/api/prices/SHARED", {"price": "1"}, admin_token)[0] == 200
    assert {ask("GET", "/api/prices/SHARED")[2]["data"]["price"] for _ in range(12)} == {"1"}
    assert ask("PUT", "/api/prices/SHARED", {"price": "2"}, admin_token)[0] == 200
    assert {ask("GET", "/api/prices/SHARED")[2]["data"]["price"] for _ in range(12)} == {"2"}
    instances = {ask("GET", "/api/redis/stats", token=admin_token)[2]["data"]["instance"] for _ in range(24)}
    assert len(instances) == 4


def test_a_session_holds_on_every_host_and_ends_on_every_host() -> None:
    said = assertion("alice")
    status, headers, body = ask("POST", "/api/sessions", {"assertion": said})
    assert (status, body["data"]["user"]) == (201, "alice")
    cookie = headers["Set-Cookie"].split(";")[0]
    assert cookie.startswith("__Host-session=")
    assert {"Secure", "HttpOnly", "SameSite=strict"} <= set(headers["Set-Cookie"].split("; "))
    assert {ask("GET", "/api/sessions/current", headers={"Cookie": cookie})[0] for _ in range(12)} == {200}
    # On whichever instance it is shown again.
    assert {ask("POST", "/api/sessions", {"assertion": said})[0] for _ in range(12)} == {401}
    assert ask("DELETE", "/api/sessions/current", headers={"Cookie": cookie})[0] == 200
    assert {ask("GET", "/api/sessions/current", headers={"Cookie": cookie})[0] for _ in range(12)} == {401}


@pytest.mark.parametrize("body", [{"user": "alice"}, {}, {"assertion": "e30.e30."}, None])
def test_nobody_from_outside_is_a_user_by_saying_so(body: dict[str, str] | None) -> None:
    assert ask("POST", "/api/sessions", body)[0] == 401


def test_a_page_of_another_origin_begins_no_session_and_opens_no_websocket() -> None:
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert ask("POST", "/api/sessions", {"assertion": assertion("alice")}, headers=foreign)[0] == 403
    text = {"Content-Type": "text/plain"}
    assert ask("POST", "/api/sessions", {"assertion": assertion("alice")}, headers=text)[0] == 415
    own = {"Origin": f"https://{ADDRESS}:{PORT}", "Sec-Fetch-Site": "same-origin"}
    assert ask("POST", "/api/sessions", {"assertion": assertion("alice")}, headers=own)[0] == 201
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert ask("GET", "/ws", headers=upgrade)[0] == 401
    assert ask("GET", "/ws", headers={**upgrade, "Cookie": log_in("alice"), **foreign})[0] == 403


def test_no_sessions_id_is_in_redis() -> None:
    cli = as_user("redis1", "admin", "127.0.0.1")
    # Those of a release that ran here before may be there for an hour.
    before = set(cli("SCAN 0 MATCH *session:* COUNT 1000000"))
    cookie = log_in("alice")
    assert ask("GET", "/api/sessions/current", headers={"Cookie": cookie})[0] == 200
    keys = set(cli("SCAN 0 MATCH *session:* COUNT 1000000"))
    names = [key.split(":")[-1].rstrip("}") for key in keys - before if ":session:" in key]
    assert names
    assert [name for name in names if not re.fullmatch("[0-9a-f]{64}", name)] == []
    assert cookie.partition("=")[2] not in " ".join(keys)


@pytest.mark.parametrize("name", ["app1", "app2"])
def test_each_instance_is_a_confined_unit_of_its_own(name: str) -> None:
    host = connect(name)
    for port in (3002, 3003):
        assert_confined(host, f"quantdesk@{port}", "quantdesk", exposure=20)
    # systemd holds the sockets, so that a restart refuses no connection.
    listeners = host.check_output("ss -Hltnp '( sport = :3002 or sport = :3003 )'").splitlines()
    assert len(listeners) == 2
    assert all('"systemd"' in line for line in listeners)


@pytest.mark.parametrize(("name", "version"), [("app1", "3.11"), ("app2", "3.13")])
def test_each_has_a_release_for_its_own_python_that_needed_no_package_index(name: str, version: str) -> None:
    host = connect(name)
    ask = "import asyncpg, hiredis, quantdesk, sys; print(sys.prefix, '{}.{}'.format(*sys.version_info))"
    prefix, found = host.check_output("/opt/quantdesk/current/venv/bin/python -c %s", ask).split()
    assert prefix.startswith("/opt/quantdesk/")
    assert found == version
    assert not host.file("/root/.cache/pip/http-v2").exists


@pytest.mark.parametrize("name", ["app1", "app2"])
def test_the_secrets_of_each_are_in_a_file_that_only_it_reads(name: str) -> None:
    host = connect(name)
    environment = host.file("/etc/quantdesk/quantdesk.env")
    assert (environment.mode, environment.user, environment.group) == (0o640, "root", "quantdesk")
    assert host.run("runuser -u nobody -- cat /etc/quantdesk/quantdesk.env").rc != 0


def test_a_killed_process_is_back_within_seconds() -> None:
    app2 = connect("app2")
    pid = app2.check_output("systemctl show quantdesk@3002 --property MainPID --value")
    app2.check_output("systemctl kill --signal KILL quantdesk@3002")
    assert eventually(lambda: health(app2)[0], lambda code: code == 200) == 200
    assert app2.check_output("systemctl show quantdesk@3002 --property MainPID --value") != pid


def test_one_host_migrates_for_all() -> None:
    # app1 has, whose journal another test takes away: the tables are there, and app2 has made none.
    app2 = connect("app2")
    units = "--unit quantdesk-migrate --unit quantdesk@3002"
    log = app2.check_output(f"journalctl --quiet --output cat {units}").splitlines()
    assert [line for line in log if line.startswith("Started")]
    assert not [line for line in log if line.startswith("Finished")]
    assert health(app2)[0] == 200

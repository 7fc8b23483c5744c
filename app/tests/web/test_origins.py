"""Requests that a foreign page makes a browser send, with the session's cookie or to plant one."""

import itertools
import json
from typing import Any

import httpx
import pytest

from conftest import AUTH, Running, Start
from logins import Issuer, log_in

JSON = {"Content-Type": "application/json"}
ORDER = {"symbol": "A", "side": "buy", "quantity": "1"}
# All routes that change something, and what they answer a request of the application's own page.
CHANGES: dict[tuple[str, str], tuple[Any, int]] = {
    ("POST", "/api/sessions"): ({"user": "mallory"}, 201),
    ("DELETE", "/api/sessions/current"): (None, 200),
    ("POST", "/api/orders"): (ORDER, 201),
    ("PUT", "/api/presence"): ({"status": "away"}, 200),
    # Of a caller on this host, in development, whom no token proves to be one.
    ("PUT", "/api/prices/A"): ({"price": "7"}, 200),
    ("POST", "/api/redis/clear"): ({"pattern": "*"}, 503),
    ("POST", "/api/redis/reset-stats"): (None, 200),
}
FOREIGN: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://test.evil.example"},
    {"Origin": "http://eviltest"},
    {"Origin": "http://evil.test"},
    {"Origin": "http://test:81"},
    {"Origin": "http://test/"},
    {"Origin": "http://test@evil.example"},
    {"Origin": "//test"},
    {"Origin": "test"},
    {"Origin": "file://test"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://test"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "SAME-ORIGIN"},
]
# What a page may send elsewhere without asking, and what is none of it but reads like JSON.
TYPES = [
    "text/plain",
    "text/plain;charset=UTF-8",
    "text/plain; application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonp",
    "application/json, text/plain",
    "",
]


async def local(start: Start) -> Running:
    """Start an application with a price, and without a token: callers of this host may do all."""
    app = await start()
    assert (await app.put_price("A", "10")).status_code == 200
    return await start(ADMIN_TOKEN="")


async def send(
    app: Running, change: tuple[str, str], *headers: dict[str, str], body: bytes | None = None
) -> httpx.Response:
    method, path = change
    value, _ = CHANGES[change]
    content = body if body is not None else None if value is None else json.dumps(value).encode()
    sent: dict[str, str] = {}
    for some in headers:
        sent |= some
    answer = await app.client.request(method, path, content=content, headers=sent)
    app.client.cookies.clear()
    return answer


@pytest.mark.parametrize("change", CHANGES)
async def test_foreign_page_changes_nothing(start: Start, change: tuple[str, str]) -> None:
    app = await local(start)
    session = await log_in(app, "alice")
    for foreign in FOREIGN:
        for kind in (JSON, {"Content-Type": "text/plain"}):
            answer = await send(app, change, session, kind, foreign)
            assert answer.status_code == 403, (foreign, answer.text)
            assert answer.json()["error"]["code"] == "forbidden"
            assert "Set-Cookie" not in answer.headers
    assert (await app.client.get("/api/sessions/current", headers=session)).status_code == 200


@pytest.mark.parametrize("change", CHANGES)
async def test_body_that_a_page_may_send_anywhere_changes_nothing(
    start: Start, change: tuple[str, str]
) -> None:
    """Also where the browser is so old that it says nothing of where the page is from."""
    app = await local(start)
    session = await log_in(app, "alice")
    body = json.dumps(CHANGES[change][0] or {}).encode()
    for kind in TYPES:
        answer = await send(app, change, session, {"Content-Type": kind}, body=body)
        assert answer.status_code == 415, (kind, answer.text)
        assert answer.json()["error"]["code"] == "unsupported_media_type"
        assert "Set-Cookie" not in answer.headers
    answer = await send(app, change, {"Cookie": session["Cookie"]}, body=body)
    assert answer.status_code == 415
    assert (await app.client.get("/api/sessions/current", headers=session)).status_code == 200


@pytest.mark.parametrize("change", CHANGES)
async def test_own_page_and_a_program_may(start: Start, change: tuple[str, str]) -> None:
    app = await local(start)
    own: list[dict[str, str]] = [
        {},
        {"Origin": "http://test"},
        {"Origin": "https://test"},
        {"Origin": "http://test:80"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://test", "Sec-Fetch-Site": "same-origin"},
    ]
    kinds = ["application/json", "application/json; charset=utf-8", "Application/JSON"]
    for headers, kind in itertools.product(own, kinds):
        session = await log_in(app, "alice")
        answer = await send(app, change, session, {"Content-Type": kind}, headers)
        assert answer.status_code == CHANGES[change][1], answer.text


async def test_session_begins_with_nothing_but_json(start: Start) -> None:
    """Without a body, too: in development that begins a session of a new user."""
    app = await start()
    answer = await app.client.post("/api/sessions")
    assert answer.status_code == 415
    assert (await app.client.post("/api/sessions", headers=JSON)).status_code == 201


async def test_two_headers_in_place_of_one_are_refused(start: Start) -> None:
    app = await local(start)
    for name, values in (
        ("Origin", ("http://test", "http://test")),
        ("Origin", ("http://test", "https://evil.example")),
        ("Sec-Fetch-Site", ("same-origin", "cross-site")),
    ):
        headers = [("Content-Type", "application/json"), *((name, value) for value in values)]
        answer = await app.client.post("/api/sessions", content=b"{}", headers=headers)
        assert answer.status_code == 403
    headers = [("Content-Type", kind) for kind in ("application/json", "text/plain")]
    answer = await app.client.post("/api/sessions", content=b"{}", headers=headers)
    assert answer.status_code == 415


async def test_in_production_the_own_page_is_one_over_tls(start: Start) -> None:
    """A page in plaintext may be anybody's who is on the way."""
    issuer = Issuer()
    app = await start(APP_ENV="production", ADMIN_TOKEN="t" * 32, **issuer.env)
    for origin, status in (("http://test", 403), ("https://test", 201), ("https://test:443", 201)):
        body = {"assertion": issuer.sign("alice")}
        answer = await app.client.post("/api/sessions", json=body, headers={"Origin": origin})
        app.client.cookies.clear()
        assert answer.status_code == status


async def test_other_origins_may_that_are_declared(start: Start) -> None:
    declared = "https://desk.example.com,http://localhost:8080"
    app = await start(ALLOWED_ORIGINS=declared)
    for origin in declared.split(","):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        answer = await app.client.post("/api/sessions", json={}, headers=headers)
        assert answer.status_code == 201
    for origin in ("https://desk.example.com.evil.example", "http://desk.example.com", "https://x"):
        answer = await app.client.post("/api/sessions", json={}, headers={"Origin": origin})
        assert answer.status_code == 403


async def test_admin_token_is_no_browsers(start: Start) -> None:
    """Programs that write prices have never had to say what they send."""
    app = await start()
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}, *FOREIGN):
        answer = await app.client.put(
            "/api/prices/A", content=b'{"price": "7"}', headers={**AUTH, **headers}
        )
        assert answer.status_code == 200
    wrong = {"Authorization": "Bearer wrong", "Origin": "https://evil.example"}
    answer = await app.client.put("/api/prices/A", content=b'{"price": "7"}', headers=wrong)
    assert answer.status_code == 403


async def test_reads_may_be_asked_for_from_anywhere(start: Start) -> None:
    app = await local(start)
    for path in ("/health", "/api/prices/A", "/metrics", "/api/redis/stats"):
        for foreign in FOREIGN:
            answer = await app.client.get(path, headers=foreign)
            assert answer.status_code == 200
            # And no page may read the answer.
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_every_route_that_changes_something_is_in_this_test(start: Start) -> None:
    app = await start()
    paths = (await app.get("/schema/openapi.json")).json()["paths"]
    changing = {
        (method.upper(), path.replace("{symbol}", "A"))
        for path, operations in paths.items()
        for method in operations
        if method not in ("get", "head", "options")
    }
    assert changing == set(CHANGES)

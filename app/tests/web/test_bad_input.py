"""Whatever a client sends: an answer in the contract's shape, no failure, and nothing changed."""

import gzip
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from conftest import AUTH, HANG, TOKEN, Server
from processes import Process, client, request
from quantdesk.web.sessions import key_name

# Keys that no request of these tests may touch.
BYSTANDERS = {
    f"qd:{name}": b"bystander"
    for name in (
        "other:price:A",
        "other:session:x",
        "development2:price:A",
        "development:session:x",
        "development:presence:x",
        "development:ratelimit:x",
        "development:price",
        "development:prices:A",
        "development:guard:{qd:development:price:Z}",
    )
} | {"price:A": b"bystander", "session": b"bystander"}


JSON = {"Content-Type": "application/json"}


class Target:
    """The command with a Redis, its database, and a session."""

    def __init__(self, process: Process, folder: Path, redis: Redis) -> None:
        self.process = process
        self.redis = redis
        self.http = httpx.Client(base_url=process.url, timeout=HANG)
        self.database = folder / "quantdesk.db"
        for symbol in ("A", "BTC-USD"):
            written = self.http.put(f"/api/prices/{symbol}", json={"price": "10"}, headers=AUTH)
            assert written.status_code == 200
        begun = self.http.post("/api/sessions", json={"user": "alice"})
        self.session = {"Cookie": f"session={begun.cookies['session']}", **JSON}
        self.http.cookies.clear()

    def send(self, method: str, path: str, content: bytes = b"") -> httpx.Response:
        """Send a request that lacks no right."""
        # (One that begins a session would end the one that comes along.)
        session = {} if path == BEGIN[1] else self.session
        answer = self.http.request(method, path, content=content, headers=AUTH | session)
        self.http.cookies.clear()
        return answer

    @property
    def cpu(self) -> float:
        """Seconds of processor time that the process and Redis have taken."""
        redis = self.redis.info("cpu")
        return float(redis["used_cpu_user"] + redis["used_cpu_sys"]) + self.process.cpu

    def state(self) -> tuple[list[str], dict[bytes, object]]:
        """All that is to last: the database, and of Redis what is not counted or cached."""
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            rows = list(database.iterdump())
        keys = (b"session", b"presence", b"bystander")
        kept = {key: self.redis.get(key) for key in self.redis.scan_iter(count=1000)}
        return rows, {k: v for k, v in kept.items() if v in keys or k.split(b":")[2:3] in keys}


@pytest.fixture(scope="module")
def shared(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("bad-input")
    server = Server(redis_binary, folder)
    server.start()
    # What is compared before and after may not expire in between.
    try:
        with (
            server.client() as redis,
            Process(
                folder, REDIS_URL=server.url, LOG_LEVEL="debug", CACHE_TTL_PRESENCE="86400"
            ) as process,
        ):
            target = Target(process, folder, redis)
            with closing(target.http):
                yield target
    finally:
        server.kill()


@pytest.fixture
def target(shared: Target) -> Iterator[Target]:
    """The target, in whose log no test may leave a complaint or a secret."""
    shared.redis.mset(BYSTANDERS)
    yield shared
    assert shared.process.complaints == []
    assert TOKEN not in shared.process.log
    assert shared.session["Cookie"].removeprefix("session=") not in shared.process.log


@contextmanager
def nothing_changes(target: Target) -> Iterator[None]:
    before = target.state()
    yield
    assert target.state() == before


CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    422: "unprocessable",
}


def refused(answer: httpx.Response) -> int:
    """Return the status of a refusal, whose form is checked."""
    assert answer.status_code in CODES, answer.text[:300]
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"success", "error"}
    assert body["success"] is False
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == CODES[answer.status_code]
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["message"]
    for inside in ("Traceback", 'File "', "quantdesk", "sqlalchemy", "msgspec"):
        assert inside not in answer.text
    return answer.status_code


PRICE = ("PUT", "/api/prices/A")
CLEAR = ("POST", "/api/redis/clear")
BEGIN = ("POST", "/api/sessions")
ORDER = ("POST", "/api/orders")
PRESENCE = ("PUT", "/api/presence")
WITH_BODY = [PRICE, CLEAR, BEGIN, ORDER, PRESENCE]
# For each, a field, and a body with it that would be right.
FIELDS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    PRICE: ("price", {"price": "11"}),
    CLEAR: ("pattern", {"pattern": "price:*"}),
    BEGIN: ("user", {"user": "alice"}),
    ORDER: ("quantity", {"symbol": "A", "side": "buy", "quantity": 1}),
    PRESENCE: ("status", {"status": "away"}),
}


def with_field(route: tuple[str, str], raw: bytes) -> bytes:
    """A right body but for one field's value, which is this JSON."""
    name, body = FIELDS[route]
    rest = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in body.items() if k != name]
    return ("{" + ", ".join([*rest, f'"{name}": '])).encode() + raw + b"}"


NOT_JSON = {
    "open": b"{",
    "closed": b"}",
    "no value": b'{"a": }',
    "no colon": b'{"a" 1}',
    "trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "comment": b"{} // really",
    "two documents": b"{} {}",
    "misspelt": b"nul",
    "nothing but spaces": b"  \r\n",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32-be"),
    "Latin-1": '{"ä": 1}'.encode("latin-1"),
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "lone byte": b"\xff",
    "NUL": b"\x00",
    "NUL behind": b"{}\x00",
    "control character": b'{"a": "\x01"}',
    "lone surrogate": rb'{"a": "\ud800"}',
    "reversed surrogates": rb'{"a": "\udc00\ud800"}',
    "unknown escape": rb'{"a": "\x41"}',
    "short escape": rb'{"a": "\u12"}',
    "open string": b'{"a": "',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "hexadecimal": b'{"a": 0x10}',
    "leading zero": b'{"a": 01}',
    "bare point": b'{"a": .5}',
    "plus": b'{"a": +1}',
    "deep and open": b'{"a": ' + b"[" * 60_000,
    "deep objects": b'{"a": ' * 10_000,
    "compressed": gzip.compress(b"{}"),
    "form": b"price=11&pattern=*&user=x",
    "XML": b"<price>11</price>",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_no_json_is_refused(target: Target, body: bytes) -> None:
    with nothing_changes(target):
        for method, path in WITH_BODY:
            assert refused(target.send(method, path, body)) in (400, 422)


WRONG = {
    "null": b"null",
    "true": b"true",
    "list": b'["A"]',
    "empty list": b"[]",
    "object": b'{"a": 1}',
    "empty text": b'""',
    "space": b'" "',
    "NUL": rb'"\u0000"',
    "line break": rb'"a\nb"',
    "CR LF": rb'"a\r\nSet-Cookie: session=x"',
    "escape sequence": rb'"\u001b[31m"',
    "right to left": rb'"\u202eabc"',
    "wide digits": '"\uff11"'.encode(),
    "65536 characters": b'"' + b"a" * 60_000 + b'"',
    "negative": b"-1",
    "zero": b"0",
    "minus zero": b"-0.0",
    "huge": b"9" * 10_000,
    "huge exponent": b"1e999999999",
    "tiny exponent": b"1e-999999999",
    "many digits": b"0." + b"1" * 10_000,
    "deep list": b"[" * 20_000 + b"]" * 20_000,
    "deep object": b'{"a":' * 9_000 + b"1" + b"}" * 9_000,
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_value_of_the_wrong_form_is_refused(target: Target, value: bytes) -> None:
    with nothing_changes(target):
        for route in WITH_BODY:
            if route == CLEAR and value in (
                WRONG["space"],
                WRONG["wide digits"],
                WRONG["right to left"],
            ):
                # These are patterns like any other.
                continue
            assert refused(target.send(*route, with_field(route, value))) in (400, 422)


@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"text"', b"[]", b"[{}]", b"[" * 900])
def test_a_body_that_is_no_object_is_refused(target: Target, body: bytes) -> None:
    with nothing_changes(target):
        for method, path in WITH_BODY:
            assert refused(target.send(method, path, body)) in (400, 422)


@pytest.mark.parametrize("route", WITH_BODY)
def test_a_field_that_is_there_twice_is_refused(target: Target, route: tuple[str, str]) -> None:
    # Which of the two counts, each reader on the way would decide by itself.
    right = json.dumps(FIELDS[route][1]).encode()
    for body in (right[:-1] + b", " + right[1:], with_field(route, b'{"x": 1, "x": 1}')):
        with nothing_changes(target):
            assert refused(target.send(*route, body)) == 422


@pytest.mark.parametrize("route", [PRICE, CLEAR, ORDER, PRESENCE])
def test_an_unknown_field_is_refused(target: Target, route: tuple[str, str]) -> None:
    for name in ("extra", "", "__proto__", "constructor", FIELDS[route][0].upper(), "a\n\x00b"):
        with nothing_changes(target):
            body = json.dumps(FIELDS[route][1] | {name: 1}).encode()
            assert refused(target.send(*route, body)) == 422


@pytest.mark.parametrize("route", WITH_BODY)
def test_a_body_that_is_too_large_is_refused(target: Target, route: tuple[str, str]) -> None:
    right = json.dumps(FIELDS[route][1]).encode()
    for size in (64 * 1024 + 1, 1_000_000, 10_000_000):
        with nothing_changes(target):
            assert refused(target.send(*route, right + b" " * (size - len(right)))) == 413
    assert target.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/xml",
        "application/msgpack",
        "x",
        ";;;",
        "\xff",
    ],
)
def test_the_content_type_makes_no_other_format_of_a_body(target: Target, kind: str) -> None:
    bodies = (b"price=11", b"<a/>", b"\x81\xa1a\x01", b'--x\r\n\r\n{"price": 1}\r\n--x--\r\n')
    for method, path in WITH_BODY:
        for body in bodies:
            with nothing_changes(target):
                sent = {b"Content-Type": kind.encode("latin-1")} | {
                    name.encode(): value.encode() for name, value in (AUTH | target.session).items()
                }
                answer = target.http.request(method, path, content=body, headers=sent)
                assert refused(answer) in (400, 415, 422)


# Paths, queries and headers.

SEGMENTS = {
    "lower case": "btc",
    "space": "A%20B",
    "NUL": "%00",
    "NUL behind": "A%00",
    "CR LF": "A%0d%0aSet-Cookie:%20session=x",
    "line break": "A%0a",
    "not UTF-8": "%ff",
    "overlong UTF-8": "%c0%af",
    "surrogate": "%ed%a0%80",
    "half an escape": "%",
    "no escape": "%zz",
    "twice escaped": "%2541",
    "wildcard": "*",
    "glob": "[A-Z]",
    "colon": "A:B",
    "foreign key": "qd:other:price:A",
    "dots": "..%2f..%2fetc%2fpasswd",
    "backslash": "..%5c",
    "braces": "%7bqd%7d",
    "quotes": "'%20OR%201=1--",
    "template": "$%7b7*7%7d",
    "umlaut": "%C3%84",
    "wide": "%EF%BC%A1",
    "emoji": "%F0%9F%98%80",
    "long": "A" * 33,
    "very long": "A" * 20_000,
}


@pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS)
async def test_what_is_no_name_is_refused(target: Target, segment: str) -> None:
    headers = [f"{name}: {value}" for name, value in (AUTH | target.session).items()]
    routes = [("GET", "/api/prices/"), ("PUT", "/api/prices/"), ("GET", "/api/orders/")]
    with nothing_changes(target):
        async with client(target.process.port) as connection:
            for method, path in routes:
                body = b'{"price": 1}' if method == "PUT" else None
                await connection.send(request(method, path + segment, *headers, body=body))
                answer = await connection.answer()
                assert answer.status in (404, 422)
                assert answer.code == CODES[answer.status]
                assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        *(f"user={segment}" for segment in SEGMENTS.values() if segment not in ("btc", "A" * 33)),
        "user=",
        "user=" + "a" * 65,
        "user=a+b",
        "user=a%26b",
        "user=a%3Bb",
    ],
    ids=lambda query: query[:40],
)
async def test_a_query_for_nobody_is_refused(target: Target, query: str) -> None:
    headers = [f"{name}: {value}" for name, value in target.session.items()]
    async with client(target.process.port) as connection:
        answer = await connection.get(f"/api/presence?{query}", *headers)
        assert (answer.status, answer.code) == (422, "unprocessable")
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "query", ["", "%", "&&&", "=x", "user", "other=1", "user[]=x", "user=a&user=b", "x" * 20_000]
)
def test_other_queries_do_no_harm(target: Target, query: str) -> None:
    for path in ("/api/presence", "/api/prices/A", "/health", "/metrics", "/api/redis/stats"):
        answer = target.send("GET", f"{path}?{query}")
        assert answer.status_code == 200 or refused(answer) == 422


KEYS = {
    "empty": b"",
    "space": b"two words",
    "tab": b"tab\tbed",
    "not ASCII": b"\xc3\xa4",
    "lone byte": b"\xff",
    "delete": b"\x7f",
    "long": b"k" * 65,
    "very long": b"k" * 20_000,
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
async def test_what_is_no_idempotency_key_is_refused(target: Target, key: bytes) -> None:
    headers = [f"{name}: {value}" for name, value in target.session.items()]
    headers.append("Idempotency-Key: @")
    body = json.dumps(FIELDS[ORDER][1]).encode()
    sent = request(*ORDER, *headers, body=body).replace(b"Key: @", b"Key: " + key)
    with nothing_changes(target):
        async with client(target.process.port) as connection:
            await connection.send(sent)
            answer = await connection.answer()
            assert answer.status in (400, 422)
            assert answer.code == CODES[answer.status]


@pytest.mark.parametrize("injected", [b"\r", b"\n", b"\x00", b"\r\n", b"\x0b"])
async def test_a_header_with_a_control_character_is_no_other_header(
    target: Target, injected: bytes
) -> None:
    # Where it ends the line, what follows is a header of the client's own, and does no harm.
    headers = [f"{name}: {value}" for name, value in target.session.items()]
    headers.append("Idempotency-Key: @")
    body = json.dumps(FIELDS[ORDER][1] | {"symbol": "NONE"}).encode()
    value = b"key" + injected + b"Set-Cookie: session=x"
    sent = request(*ORDER, *headers, body=body).replace(b"@", value)
    with nothing_changes(target):
        async with client(target.process.port) as connection:
            await connection.send(sent)
            answer = await connection.answer()
            assert answer.status in (400, 404, 422)
            assert answer.code == CODES[answer.status]
            assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"\xff", b"a/b", b"[::1", b"a:99999999", b"a" * 9000]
)
async def test_a_strange_host_does_no_harm(target: Target, host: bytes) -> None:
    for path in ("/health", "/api/prices/A", "/api/presence"):
        sent = request("GET", path).replace(b"Host: test", b"Host: " + host)
        async with client(target.process.port) as connection:
            await connection.send(sent)
            answer = await connection.answer()
            assert answer.status in (200, 400, 401)
            if answer.status != 200:
                assert answer.code == CODES[answer.status]


def test_nothing_but_a_session_is_one(target: Target) -> None:
    own = target.session["Cookie"].removeprefix("session=")
    cookies = [
        "",
        "session",
        "session=",
        "session=A",
        f"session={'A' * 43}",
        f"session={own[:-1]}",
        f"session={own}A",
        f"session={own[::-1]}",
        f"session={own.swapcase()}",
        f"session={own}%00",
        f"session=*{own[1:]}",
        f"Session={own}",
        f"session {own}",
        f"session={'x' * 20_000}",
        "session=qd:development:session:x",
        "session=../../x",
        'session="' + own,
        "; ".join(f"c{n}=x" for n in range(1000)),
        "$Version=1",
        "\xff=\xff",
    ]
    with nothing_changes(target):
        for cookie in cookies:
            headers = {b"Cookie": cookie.encode("latin-1"), b"Content-Type": b"application/json"}
            for method, path, body in (
                ("GET", "/api/sessions/current", b""),
                ("DELETE", "/api/sessions/current", b""),
                ("GET", "/api/portfolio", b""),
                (*ORDER, json.dumps(FIELDS[ORDER][1]).encode()),
                ("GET", f"/api/orders/{'0' * 8}-0000-0000-0000-{'0' * 12}", b""),
                (*PRESENCE, b"{}"),
                ("GET", "/api/presence", b""),
            ):
                answer = target.http.request(method, path, content=body, headers=headers)
                assert refused(answer) == 401, cookie
    # What names no session is not kept as one, either.
    assert not target.redis.exists(f"qd:development:session:{key_name('A' * 43)}")


def test_a_session_that_has_expired_or_that_the_client_made_up_is_none(target: Target) -> None:
    begun = target.http.post("/api/sessions", json={"user": "bob"})
    expired = {"Cookie": f"session={begun.cookies['session']}"}
    target.http.cookies.clear()
    with closing(sqlite3.connect(target.database)) as database:
        database.execute("UPDATE sessions SET expires_at = '2020-01-01' WHERE user_name = 'bob'")
        database.commit()
    target.redis.delete(f"qd:development:session:{key_name(begun.cookies['session'])}")
    made_up = {"Cookie": f"session={'f' * 43}"}
    for cookie in (expired, made_up):
        for method in ("GET", "DELETE"):
            with nothing_changes(target):
                answer = target.http.request(method, "/api/sessions/current", headers=cookie)
                assert refused(answer) == 401
        # Nor does it become one by coming along when another begins.
        answer = target.http.post("/api/sessions", json={"user": "bob"}, headers=cookie)
        assert answer.cookies["session"] not in cookie["Cookie"]
        target.http.cookies.clear()
        assert target.http.get("/api/sessions/current", headers=cookie).status_code == 401


@pytest.mark.parametrize(
    "user",
    ["a\r\nb", "a\nINFO quantdesk: forged", "\x1b[2J", "a\x00", "\u2028", "a;b", "<b>", "a/../b"],
)
def test_what_is_no_users_name_gets_into_no_header_and_no_line_of_the_log(
    target: Target, user: str
) -> None:
    with nothing_changes(target):
        answer = target.send(*BEGIN, json.dumps({"user": user}).encode())
        assert refused(answer) == 422
        assert "Set-Cookie" not in answer.headers
    assert "forged" not in target.process.log


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "BREW", "GETX"])
def test_a_method_that_a_route_does_not_have_is_refused(target: Target, method: str) -> None:
    paths = {
        "/health": "GET",
        "/metrics": "GET",
        "/api/redis/health": "GET",
        "/api/redis/stats": "GET",
        "/api/redis/clear": "POST",
        "/api/redis/reset-stats": "POST",
        "/api/prices/A": "GET PUT",
        "/api/sessions": "POST",
        "/api/sessions/current": "GET DELETE",
        "/api/portfolio": "GET",
        "/api/orders": "POST",
        "/api/orders/x": "GET",
        "/api/presence": "GET PUT",
        "/schema/openapi.json": "GET",
    }
    with nothing_changes(target):
        for path, methods in paths.items():
            if method not in methods.split():
                answer = target.send(method, path, b"{}")
                # What is no method at all ends at the parser.
                assert refused(answer) == (400 if method in ("BREW", "GETX") else 405), path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/",
        "/api/nowhere",
        "/api/prices",
        "/api/prices/",
        "/api/orders/",
        "/api/prices/A/B",
        "/api/../health/x",
        "/.env",
        "/.git/config",
        "/schema/../etc/passwd",
        "/static/x",
        "/docs",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/\xe4",
        "/" + "a/" * 5000,
    ],
    ids=lambda path: path[:30],
)
async def test_a_path_to_nowhere_is_not_found(target: Target, path: str) -> None:
    async with client(target.process.port) as connection:
        await connection.send(request("GET", quote(path, safe="/%.")))
        answer = await connection.answer()
        assert answer.status in (404, 405)
        assert answer.code == CODES[answer.status]


# Patterns to clear.

CACHED = ("price:A", "price:BTC-USD", "portfolio:alice", "order:1", "price:" + "a" * 200)

PATTERNS = {
    "*": 5,
    "**": 5,
    "?*": 5,
    "*:*": 5,
    "[!x]*": 0,
    "[^x]*": 5,
    "[a-z]*": 5,
    "[z-a]*": 5,
    "price:*": 3,
    "price:?": 1,
    "price:[A-B]*": 2,
    "price:\\A": 1,
    "*A": 1,
    "*price*": 3,
    "portfolio:*": 1,
    "session:*": 0,
    "presence:*": 0,
    "ratelimit:*": 0,
    "guard:*": 0,
    "*session*": 0,
    "../*": 0,
    "..:other:*": 0,
    "qd:other:*": 0,
    "qd:*": 0,
    ":*": 0,
    "2:price:*": 0,
    "\\*": 0,
    "\\": 0,
    "[": 0,
    "[]": 0,
    "[^]": 0,
    "[*": 0,
    "]": 0,
    "{price,order}:*": 0,
    "price:* order:*": 0,
    "price:*;order:*": 0,
    "price:%": 0,
    "price:*' OR '1'='1": 0,
    "$(reboot)": 0,
    "MATCH *": 0,
    "COUNT 1": 0,
    "\u2028*": 0,
    "😀*": 0,
    "e" * 256: 0,
    "*" * 256: 5,
    "?" * 256: 0,
    "a*" * 127 + "b": 0,
    "*a" * 127 + "*b": 0,
    "price:" + "a*" * 120 + "b": 0,
}


@pytest.mark.parametrize(("pattern", "cleared"), PATTERNS.items(), ids=lambda x: str(x)[:30])
def test_a_pattern_reaches_what_is_cached_and_nothing_else(
    target: Target, pattern: str, cleared: int
) -> None:
    stale = [key for kind in ("price", "portfolio", "order") for key in keys_of(target, kind)]
    if stale:
        target.redis.delete(*stale)
    target.redis.mset({f"qd:development:{name}": b"cached" for name in CACHED})
    with nothing_changes(target):
        cost = target.cpu
        answer = target.send(*CLEAR, json.dumps({"pattern": pattern}).encode())
        assert answer.status_code == 200
        assert answer.json()["data"] == {"pattern": pattern, "cleared": cleared}
        assert target.cpu - cost < 2
    for key, value in BYSTANDERS.items():
        assert target.redis.get(key) == value
    left = sum(target.redis.exists(f"qd:development:{name}") for name in CACHED)
    assert left == len(CACHED) - cleared


def keys_of(target: Target, kind: str) -> list[bytes]:
    return list(target.redis.scan_iter(match=f"qd:development:{kind}:*", count=1000))


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "e" * 257,
        "*" * 257,
        "😀" * 257,
        "*\x00",
        "*\n",
        "*\r\nFLUSHALL",
        "\x7f",
        "\x1b[2J*",
        "\x85*",
    ],
    ids=lambda pattern: ascii(pattern[:10]),
)
def test_what_is_no_pattern_clears_nothing(target: Target, pattern: str) -> None:
    target.redis.mset({f"qd:development:{name}": b"cached" for name in CACHED})
    with nothing_changes(target):
        assert refused(target.send(*CLEAR, json.dumps({"pattern": pattern}).encode())) == 422
    assert sum(target.redis.exists(f"qd:development:{name}") for name in CACHED) == len(CACHED)


# And what nobody thought of.

_names = st.sampled_from(["price", "pattern", "user", "symbol", "side", "quantity", "status", "x"])
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["A", "buy", "sell", "away", "1", "0.1", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    body=st.dictionaries(_names, _values, max_size=4).map(json.dumps).map(str.encode)
    | st.sampled_from([json.dumps(body).encode() for _, body in FIELDS.values()])
    | st.binary(max_size=60),
    cut=st.tuples(st.integers(0, 200), st.binary(max_size=2), st.integers(0, 3)),
)
def test_any_body_is_accepted_or_refused_in_the_right_form(
    shared: Target, body: bytes, cut: tuple[int, bytes, int]
) -> None:
    at, inserted, skipped = cut
    for mutated in (body, body[:at] + inserted + body[at + skipped :]):
        for method, path in WITH_BODY:
            answer = shared.send(method, path, mutated)
            if not answer.is_success:
                assert refused(answer) in (400, 404, 409, 422)
    assert shared.process.complaints == []

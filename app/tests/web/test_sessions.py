import datetime as dt
import hashlib
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis
from sqlalchemy import event, text

from conftest import AUTH, Calendar, Running, Server, Start, expires_as_set
from logins import Issuer, id_in, log_in
from quantdesk.database import clock
from quantdesk.web import sessions as module

CURRENT = "/api/sessions/current"
WELL_FORMED = "A" * 43
JSON = {"Content-Type": "application/json"}


def key(headers: dict[str, str]) -> str:
    return f"qd:development:session:{hashlib.sha256(id_in(headers).encode()).hexdigest()}"


@contextmanager
def statements(app: Running) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    engine = app.services.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def rows(app: Running) -> int:
    async with app.services.database.engine.connect() as connection:
        count: int = (await connection.execute(text("SELECT count(*) FROM sessions"))).scalar_one()
        return count


async def test_session_begins_with_a_cookie_and_is_in_redis(
    start: Start, redis_server: Server, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(redis_server)
    began = time.time()
    answer = await app.client.post("/api/sessions", json={"user": "alice@example.net", "x": 1})
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert set(data) == {"user", "createdAt", "expiresAt"}
    assert data["user"] == "alice@example.net"
    created, expires = (dt.datetime.fromisoformat(data[f"{at}At"]) for at in ("created", "expires"))
    assert expires - created == dt.timedelta(hours=1)
    cookie = answer.headers["Set-Cookie"]
    form = r"session=([A-Za-z0-9_-]{43}); HttpOnly; Max-Age=3600; Path=/; SameSite=strict"
    match = re.fullmatch(form, cookie)
    assert match is not None
    assert expires_as_set(raw, key({"Cookie": f"session={match[1]}"}), 3600, began)
    read = await app.get(CURRENT)
    assert (read.status_code, read.headers["X-Cache"]) == (200, "HIT")
    assert read.json() == answer.json()
    assert match[1] not in caplog.text


async def test_cookie_is_secure_in_production(start: Start) -> None:
    issuer = Issuer()
    app = await start(APP_ENV="production", ADMIN_TOKEN="t" * 32, **issuer.env)
    begun = await app.client.post("/api/sessions", json={"assertion": issuer.sign("alice")})
    assert begun.status_code == 201, begun.text
    (cookie,) = begun.headers.get_list("Set-Cookie")
    attributes = "; HttpOnly; Max-Age=3600; Path=/; SameSite=strict; Secure"
    assert re.fullmatch(rf"__Host-session=[A-Za-z0-9_-]{{43}}{attributes}", cookie)
    # By no other name: another host of the domain could set that one.
    value = cookie.split(";")[0].partition("=")[2]
    app.client.cookies.clear()
    for name, status in (("__Host-session", 200), ("session", 401), ("__host-session", 401)):
        read = await app.client.get(CURRENT, headers={"Cookie": f"{name}={value}"})
        assert read.status_code == status, name
    ended = await app.client.delete(CURRENT, headers={"Cookie": f"__Host-session={value}"})
    (cookie,) = ended.headers.get_list("Set-Cookie")
    assert cookie == '__Host-session=""; HttpOnly; Max-Age=0; Path=/; SameSite=strict; Secure'


async def test_nameless_users_are_different_ones(start: Start) -> None:
    app = await start()
    users = set()
    for body in ("", "{}", '{"other": 1}'):
        answer = await app.client.post("/api/sessions", content=body, headers=JSON)
        assert answer.status_code == 201
        users.add(answer.json()["data"]["user"])
    assert len(users) == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        (b'{"user": "\xff"}', 400),
        ("[]", 422),
        ("null", 422),
        ('{"user": 1}', 422),
        ('{"user": null}', 422),
        ('{"user": ""}', 422),
        ('{"user": "alice bob"}', 422),
        ('{"user": "alice\\n"}', 422),
        ('{"user": "älice"}', 422),
        ('{"user": "a:b"}', 422),
        ('{"user": "' + "a" * 65 + '"}', 422),
        ('{"user": "' + "a" * 65536 + '"}', 413),
    ],
)
async def test_unacceptable_user_is_refused(start: Start, body: str | bytes, status: int) -> None:
    app = await start()
    answer = await app.client.post("/api/sessions", content=body, headers=JSON)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert "Set-Cookie" not in answer.headers
    assert await rows(app) == 0


async def test_without_a_session_is_unauthorized(start: Start) -> None:
    app = await start()
    for answer in (await app.get(CURRENT), await app.client.delete(CURRENT)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Cookie ")


@pytest.mark.parametrize(
    "value",
    ["", "x", "A" * 42, "A" * 44, "A" * 42 + "*", "%41" * 43 + "%0A", '"', "A" * 42 + "ä", ";;=;"],
)
async def test_malformed_id_reaches_neither_redis_nor_the_database(
    start: Start, redis_server: Server, raw: Redis, value: str
) -> None:
    app = await start(redis_server)
    headers = {b"Cookie": f"session={value}".encode("latin-1")}
    with statements(app) as seen:
        for method in ("GET", "DELETE"):
            answer = await app.client.request(method, CURRENT, headers=headers)
            assert answer.status_code == 401
    assert seen == []
    assert app.services.stats.total.requests == 0
    assert raw.keys("*session*") == []


async def test_id_that_the_client_chose_is_never_adopted(start: Start) -> None:
    app = await start()
    chosen = {"Cookie": f"session={WELL_FORMED}"}
    answer = await app.client.post("/api/sessions", json={"user": "alice"}, headers=chosen)
    assert answer.status_code == 201
    assert answer.cookies["session"] != WELL_FORMED
    app.client.cookies.clear()
    assert (await app.client.get(CURRENT, headers=chosen)).status_code == 401


async def test_new_session_ends_the_one_that_comes_along(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app, other = await start(redis_server), await start(redis_server)
    old = await log_in(app, "alice")
    assert (await other.client.get(CURRENT, headers=old)).status_code == 200
    answer = await app.client.post("/api/sessions", json={"user": "bob"}, headers=old)
    new = {"Cookie": f"session={answer.cookies['session']}"}
    app.client.cookies.clear()
    for instance in (app, other):
        assert (await instance.client.get(CURRENT, headers=old)).status_code == 401
        assert (await instance.client.get(CURRENT, headers=new)).status_code == 200
    assert not raw.exists(key(old))
    assert await rows(app) == 1


async def test_end_of_a_session_is_its_end_everywhere(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app, other = await start(redis_server), await start(redis_server)
    session, bystander = await log_in(app, "alice"), await log_in(app, "alice")
    assert (await other.client.get(CURRENT, headers=session)).status_code == 200
    ended = await other.client.delete(CURRENT, headers=session)
    assert (ended.status_code, ended.json()) == (200, {"success": True})
    assert ended.headers["Set-Cookie"] == (
        'session=""; HttpOnly; Max-Age=0; Path=/; SameSite=strict'
    )
    for instance in (app, other):
        assert (await instance.client.get(CURRENT, headers=session)).status_code == 401
        assert (await instance.client.get(CURRENT, headers=bystander)).status_code == 200
    assert (await app.client.delete(CURRENT, headers=session)).status_code == 401
    assert not raw.exists(key(session))
    assert await rows(app) == 1


async def test_session_lives_in_the_database_whatever_becomes_of_redis(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, CACHE_TTL_SESSION="100")
    session = await log_in(app, "alice")
    raw.flushall()
    read = await app.client.get(CURRENT, headers=session)
    assert (read.status_code, read.headers["X-Cache"]) == (200, "MISS")
    assert (await app.client.get(CURRENT, headers=session)).headers["X-Cache"] == "HIT"
    # No later than the session, to the second.
    ends = dt.datetime.fromisoformat(read.json()["data"]["expiresAt"]).timestamp()
    assert ends - 1.01 <= int(raw.pexpiretime(key(session))) / 1000 <= time.time() + 100
    redis_server.kill()
    read = await app.client.get(CURRENT, headers=session)
    assert (read.status_code, read.headers["X-Cache"]) == (200, "BYPASS")
    assert (await app.client.delete(CURRENT, headers=session)).status_code == 200
    assert (await app.client.get(CURRENT, headers=session)).status_code == 401
    redis_server.start()
    await app.until_available(True)
    assert (await app.client.get(CURRENT, headers=session)).status_code == 401


async def test_session_that_ended_while_redis_was_frozen_does_not_come_back(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, REDIS_COMMAND_TIMEOUT="200")
    session = await log_in(app, "alice")
    assert raw.exists(key(session))
    redis_server.signal(signal.SIGSTOP)
    assert (await app.client.delete(CURRENT, headers=session)).status_code == 200
    redis_server.signal(signal.SIGCONT)
    await app.until_available(True)
    assert (await app.client.get(CURRENT, headers=session)).status_code == 401
    assert not raw.exists(key(session))


async def test_expired_session_is_unauthorized_even_where_it_is_cached(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start(redis_server, CACHE_TTL_SESSION="600")
    session = await log_in(app, "alice")
    calendar = Calendar()
    monkeypatch.setattr(module, "dt", calendar)
    monkeypatch.setattr(clock, "now", lambda: calendar.now(dt.UTC))
    read = await app.client.get(CURRENT, headers=session)
    ends = dt.datetime.fromisoformat(read.json()["data"]["expiresAt"])
    assert raw.persist(key(session))
    calendar.moment = ends - dt.timedelta(milliseconds=1)
    assert (await app.client.get(CURRENT, headers=session)).status_code == 200
    calendar.moment = ends
    assert raw.exists(key(session))
    assert (await app.client.get(CURRENT, headers=session)).status_code == 401
    raw.flushall()
    assert (await app.client.get(CURRENT, headers=session)).status_code == 401
    # Its row goes with the next session that begins.
    await log_in(app, "bob")
    assert await rows(app) == 1


async def test_clear_leaves_sessions_alone(start: Start, redis_server: Server, raw: Redis) -> None:
    app = await start(redis_server)
    session = await log_in(app, "alice")
    answer = await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    assert answer.status_code == 200
    assert raw.exists(key(session))

import datetime as dt
import time

import httpx
import pytest
from redis import Redis

from conftest import Calendar, Server, Start, expires_as_set
from logins import log_in
from quantdesk.web.routes import presence as module

KEY = "qd:development:presence:alice"


def seen(answer: httpx.Response) -> tuple[str, str, bool]:
    data = answer.json()["data"]
    assert set(data) == {"user", "status", "lastSeen"}
    return data["user"], data["status"], data["lastSeen"] is not None


async def test_presence_is_written_through(
    start: Start, redis_server: Server, raw: Redis, database_url: str
) -> None:
    app = await start(redis_server, DATABASE_URL=database_url)
    alice, bob = await log_in(app, "alice"), await log_in(app, "bob")
    for body, status in ((None, "online"), ({"status": "away"}, "away"), ({}, "online")):
        began = time.time()
        said = await app.client.put("/api/presence", json=body, headers=alice)
        assert said.status_code == 200
        assert seen(said) == ("alice", status, True)
        assert expires_as_set(raw, KEY, 65, began)
        own = await app.client.get("/api/presence", headers=alice)
        others = await app.client.get("/api/presence?user=alice", headers=bob)
        assert own.json() == others.json() == said.json()
        assert others.headers["X-Cache"] == "HIT"
    raw.flushall()
    again = await app.client.get("/api/presence", headers=alice)
    assert (again.json(), again.headers["X-Cache"]) == (said.json(), "MISS")
    last_seen = dt.datetime.fromisoformat(again.json()["data"]["lastSeen"])
    assert began <= last_seen.timestamp() <= time.time()


async def test_who_said_nothing_lately_is_offline(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start(redis_server, CACHE_TTL_PRESENCE="600")
    alice = await log_in(app, "alice")
    never = await app.client.get("/api/presence?user=bob", headers=alice)
    assert (never.status_code, seen(never)) == (200, ("bob", "offline", False))
    said = await app.client.put("/api/presence", headers=alice)
    # Also where an entry has outlived its time.
    assert raw.persist(KEY)
    last_seen = dt.datetime.fromisoformat(said.json()["data"]["lastSeen"])
    calendar = Calendar()
    monkeypatch.setattr(module, "dt", calendar)
    for _ in range(2):
        calendar.moment = last_seen + dt.timedelta(seconds=599.9)
        assert seen(await app.client.get("/api/presence", headers=alice))[1] == "online"
        calendar.moment = last_seen + dt.timedelta(seconds=600)
        late = await app.client.get("/api/presence", headers=alice)
        assert seen(late) == ("alice", "offline", True)
        assert late.json()["data"]["lastSeen"] == said.json()["data"]["lastSeen"]
        raw.flushall()
    calendar.moment = None
    await app.client.put("/api/presence", headers=alice)
    back = await app.client.get("/api/presence", headers=alice)
    assert seen(back) == ("alice", "online", True)


async def test_presence_goes_on_without_redis(start: Start, redis_server: Server) -> None:
    app = await start(redis_server)
    alice = await log_in(app, "alice")
    redis_server.kill()
    await app.client.put("/api/presence", json={"status": "away"}, headers=alice)
    read = await app.client.get("/api/presence", headers=alice)
    assert (seen(read), read.headers["X-Cache"]) == (("alice", "away", True), "BYPASS")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ("[]", 422),
        ('{"status": "offline"}', 422),
        ('{"status": null}', 422),
        ('{"state": "away"}', 422),
    ],
)
async def test_unacceptable_status_is_refused(start: Start, body: str, status: int) -> None:
    app = await start()
    alice = await log_in(app, "alice")
    answer = await app.client.put("/api/presence", content=body, headers=alice)
    assert answer.status_code == status
    assert seen(await app.client.get("/api/presence", headers=alice)) == ("alice", "offline", False)


@pytest.mark.parametrize("user", ["", "a%0A", "a%20b", "%C3%A4", "a" * 65])
async def test_unacceptable_user_is_refused(start: Start, user: str) -> None:
    app = await start()
    alice = await log_in(app, "alice")
    answer = await app.client.get(f"/api/presence?user={user}", headers=alice)
    assert answer.status_code == 422


async def test_without_a_session_is_unauthorized(start: Start) -> None:
    app = await start()
    assert (await app.get("/api/presence")).status_code == 401
    assert (await app.get("/api/presence?user=bob")).status_code == 401
    assert (await app.client.put("/api/presence")).status_code == 401

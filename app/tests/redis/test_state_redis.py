"""A second Redis for what must not be evicted: sessions, presence and rate limits."""

import asyncio
from collections.abc import Callable

import pytest

from conftest import AUTH, Running, Server, Start, state_messages, until
from logins import log_in
from quantdesk.redis import keys

PRICE = "/api/prices/A"
SESSION = "/api/sessions/current"
UP = "Redis connected"
DOWN = "Redis connection failed, continuing without Redis"
LONG = {"CACHE_TTL_PRICE": "3600", "CACHE_TTL_PORTFOLIO": "3600", "CACHE_TTL_ORDER": "3600"}


@pytest.fixture(autouse=True)
def _lasting_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every guard until a test has looked at what is kept."""
    monkeypatch.setattr(keys, "GUARD", 3600)


@pytest.fixture
def servers(make_redis: Callable[..., Server]) -> tuple[Server, Server]:
    """The one for the cache, and the one for state."""
    return make_redis(), make_redis()


def kinds(server: Server) -> set[str]:
    with server.client() as raw:
        return {key.decode().split(":")[2] for key in raw.scan_iter()}


def counted(server: Server) -> int:
    with server.client() as raw:
        return int(raw.get("qd:development:ratelimit:127.0.0.1") or 0)


async def use_all(app: Running) -> dict[str, str]:
    """Have an entry of every kind kept; return the headers of the session."""
    await app.put_price("A", 10)
    headers = await log_in(app, "alice")
    order = {"symbol": "A", "side": "buy", "quantity": 1}
    placed = await app.client.post("/api/orders", json=order, headers=headers)
    for path in (PRICE, f"/api/orders/{placed.json()['data']['id']}", "/api/portfolio"):
        assert (await app.client.get(path, headers=headers)).status_code == 200
    assert (await app.client.put("/api/presence", headers=headers)).status_code == 200
    return headers


async def outcome(app: Running, path: str, headers: dict[str, str]) -> str:
    answer = await app.client.get(path, headers=headers)
    assert answer.status_code == 200
    found: str = answer.headers["X-Cache"]
    return found


async def test_each_kind_is_kept_where_it_belongs(
    start: Start, servers: tuple[Server, Server]
) -> None:
    cache, state = servers
    app = await start(cache, REDIS_STATE_URL=state.url, **LONG)
    await use_all(app)
    await app.services.gateway.call("PING")
    assert kinds(cache) == {"price", "portfolio", "order", "guard"}
    assert kinds(state) == {"session", "presence", "ratelimit", "guard"}


async def test_one_redis_keeps_all_where_there_is_no_second(
    start: Start, redis_server: Server
) -> None:
    app = await start(redis_server, **LONG)
    await use_all(app)
    await app.services.gateway.call("PING")
    found = {"price", "portfolio", "order", "session", "presence", "ratelimit", "guard"}
    assert kinds(redis_server) == found


async def test_state_outlives_a_cache_that_is_lost_or_cleared(
    start: Start, servers: tuple[Server, Server]
) -> None:
    cache, state = servers
    app = await start(cache, REDIS_STATE_URL=state.url, **LONG)
    headers = await use_all(app)
    await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    with cache.client() as raw:
        raw.flushall()
    assert await outcome(app, SESSION, headers) == "HIT"
    assert await outcome(app, "/api/presence", headers) == "HIT"


async def test_cache_alone_may_die(
    start: Start, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    cache, state = servers
    env = {"REDIS_STATE_URL": state.url, "RATE_LIMIT": "100/hour", **LONG}
    app, other = await start(cache, **env), await start(cache, **env)
    headers = await use_all(app)
    cache.kill()
    for instance in (app, other):
        await instance.until_available(False)
    assert await outcome(app, PRICE, {}) == "BYPASS"
    assert await outcome(app, "/api/portfolio", headers) == "BYPASS"
    assert await outcome(other, SESSION, headers) == "HIT"
    health = (await app.get("/health")).json()
    assert (health["status"], health["redis"]["status"]) == ("degraded", "unhealthy")
    # Requests of both are still counted together.
    before = counted(state)
    await asyncio.gather(*(instance.get(PRICE) for instance in (app, other) for _ in range(5)))
    assert counted(state) == before + 10
    cache.start()
    await app.until_available(True)
    assert [await outcome(app, PRICE, {}) for _ in range(2)] == ["MISS", "HIT"]
    await other.until_available(True)
    # Two instances, each with two connections, of which one went and came back.
    assert sorted(state_messages(caplog)) == sorted([UP] * 6 + [DOWN] * 2)


async def test_state_alone_may_die(start: Start, servers: tuple[Server, Server]) -> None:
    cache, state = servers
    app = await start(cache, REDIS_STATE_URL=state.url, RATE_LIMIT="12/hour", **LONG)
    headers = await log_in(app, "alice")
    await app.put_price("A", 10)
    assert [await outcome(app, PRICE, {}) for _ in range(2)] == ["MISS", "HIT"]
    assert counted(state) == 3
    state.kill()
    await until(lambda: not app.services.state_gateway.available)
    assert app.services.gateway.available
    assert await outcome(app, PRICE, {}) == "HIT"
    assert await outcome(app, SESSION, headers) == "BYPASS"
    health = (await app.get("/health")).json()
    assert (health["status"], health["redis"]["status"]) == ("degraded", "healthy")
    assert (await app.get("/api/redis/health")).status_code == 200
    # Limits go on in memory.
    answers = await asyncio.gather(*(app.get(PRICE) for _ in range(30)))
    assert sum(answer.status_code == 200 for answer in answers) == 10
    state.start()
    await until(lambda: app.services.state_gateway.available)
    assert (await app.get("/health")).json()["status"] == "healthy"
    assert counted(state) == 0


async def test_session_that_ended_without_state_redis_does_not_come_back(
    start: Start, servers: tuple[Server, Server]
) -> None:
    cache, state = servers
    app = await start(cache, REDIS_STATE_URL=state.url)
    headers = await log_in(app, "alice")
    with state.client() as raw:
        raw.config_set("appendonly", "yes")
        await until(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0)
    state.kill()
    await until(lambda: not app.services.state_gateway.available)
    assert (await app.client.delete(SESSION, headers=headers)).status_code == 200
    state.start("--appendonly", "yes")
    with state.client() as raw:
        await until(lambda: app.services.state_gateway.available)
        # What Redis had kept over its death, and no session.
        assert kinds(state) == {"guard", "ratelimit"}
    assert (await app.client.get(SESSION, headers=headers)).status_code == 401


async def test_neither_has_to_be_there_at_the_start(
    start: Start, servers: tuple[Server, Server]
) -> None:
    cache, state = servers
    cache.kill()
    state.kill()
    app = await start(cache, REDIS_STATE_URL=state.url, **LONG)
    headers = await use_all(app)
    assert await outcome(app, SESSION, headers) == "BYPASS"
    for server, gateway in (
        (state, app.services.state_gateway),
        (cache, app.services.gateway),
    ):
        server.start()
        await until(lambda found=gateway: found.available)  # type: ignore[misc]
    assert [await outcome(app, SESSION, headers) for _ in range(2)] == ["MISS", "HIT"]
    assert [await outcome(app, PRICE, {}) for _ in range(2)] == ["MISS", "HIT"]

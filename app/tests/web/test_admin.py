import asyncio
import fnmatch
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from conftest import AUTH, TOKEN, Server, Start, running, subscribers, until
from quantdesk.redis.bus import RESET_STATS
from quantdesk.redis.keys import escape_glob

ROUTES = [
    ("POST", "/api/redis/clear", {"pattern": "*"}),
    ("POST", "/api/redis/reset-stats", None),
    ("PUT", "/api/prices/BTC-USD", {"price": 1}),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xe4"},
    ],
)
async def test_without_the_token_nothing_changes(
    start: Start,
    redis_server: Server,
    method: str,
    path: str,
    body: object,
    headers: dict[str, str],
) -> None:
    app = await start(redis_server)
    encoded = {k.encode(): v.encode("latin-1") for k, v in headers.items()}
    answer = await app.client.request(method, path, json=body, headers=encoded)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"
    assert TOKEN not in answer.text


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
@pytest.mark.parametrize(
    ("app_env", "host", "headers", "status"),
    [
        ("development", "127.0.0.1", {}, 200),
        ("development", "::1", {}, 200),
        ("development", "192.0.2.1", {}, 403),
        ("development", "127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, 403),
        ("production", "127.0.0.1", {}, 403),
    ],
)
async def test_without_a_configured_token_only_local_callers_in_development(
    tmp_path: Path,
    redis_server: Server,
    method: str,
    path: str,
    body: object,
    app_env: str,
    host: str,
    headers: dict[str, str],
    status: int,
) -> None:
    env = {"ADMIN_TOKEN": "", "APP_ENV": app_env, "REDIS_URL": redis_server.url}
    async with running(tmp_path, host, **env) as app:
        answer = await app.client.request(method, path, json=body, headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize("env_name", ["development", "a*", "[ab]", "a?", "\\a", "^a-z"])
async def test_clear_removes_the_cache_kinds_of_its_environment_only(
    start: Start, redis_server: Server, raw: Redis, env_name: str
) -> None:
    app = await start(redis_server, ENV_NAME=env_name)
    own = {f"qd:{env_name}:{name}" for name in ("price:A", "portfolio:u", "order:1")}
    kept = {f"qd:{env_name}:{name}" for name in ("session:s", "presence:u", "ratelimit:x", "price")}
    kept |= {f"qd:{other}:price:A" for other in ("ab", "a", "b", "aa", "production")}
    kept |= {"price:A", f"xqd:{env_name}:price:A"}
    for key in own | kept:
        raw.set(key, "1")
    answer = await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    assert answer.json() == {"success": True, "data": {"pattern": "*", "cleared": 3}}
    assert {key.decode() for key in raw.scan_iter()} == kept


@pytest.mark.parametrize(
    ("pattern", "cleared"),
    [
        ("price:*", 2),
        ("price:BTC-USD", 1),
        ("price:BTC", 0),
        ("pr[i]ce:?TC-USD", 1),
        ("order:*", 1),
        ("session:*", 0),
        ("s*", 0),
        ("../*", 0),
        ("qd:development:price:*", 0),
        ("[", 0),
        ("\\", 0),
    ],
)
async def test_clear_follows_the_pattern(
    start: Start, redis_server: Server, raw: Redis, pattern: str, cleared: int
) -> None:
    app = await start(redis_server)
    for name in ("price:BTC-USD", "price:ETH-USD", "order:1", "session:s"):
        raw.set(f"qd:development:{name}", "1")
    answer = await app.client.post("/api/redis/clear", json={"pattern": pattern}, headers=AUTH)
    assert (answer.status_code, answer.json()["data"]["cleared"]) == (200, cleared)
    assert raw.dbsize() == 4 - cleared


async def test_clear_of_many_keys_never_uses_keys(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server)
    with raw.pipeline(transaction=False) as pipeline:
        for number in range(2500):
            pipeline.set(f"qd:development:price:{number}", "1")
            pipeline.set(f"qd:development:session:{number}", "1")
        pipeline.execute()
    answer = await app.client.post("/api/redis/clear", json={"pattern": "price:*"}, headers=AUTH)
    assert answer.json()["data"]["cleared"] == 2500
    assert raw.dbsize() == 2500
    used = raw.info("commandstats")
    assert "cmdstat_keys" not in used
    assert "cmdstat_unlink" in used


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{}", 422),
        (b"[]", 422),
        (b'{"pattern": null}', 422),
        (b'{"pattern": 5}', 422),
        (b'{"pattern": ["*"]}', 422),
        (b'{"pattern": ""}', 422),
        (b'{"pattern": "' + b"a" * 257 + b'"}', 422),
        (b'{"pattern": "a\\u0000b"}', 422),
        (b'{"pattern": "a\\nb"}', 422),
        (b'{"pattern": "*", "all": true}', 422),
        (b'{"pattern": "*"', 400),
        (b'{"pattern": "' + b"a" * 70000 + b'"}', 413),
    ],
)
async def test_clear_refuses_what_is_no_pattern(
    start: Start, redis_server: Server, raw: Redis, body: bytes, status: int
) -> None:
    app = await start(redis_server)
    raw.set("qd:development:price:A", "1")
    answer = await app.client.post("/api/redis/clear", content=body, headers=AUTH)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert raw.dbsize() == 1


async def test_pattern_of_256_characters_is_accepted(start: Start, redis_server: Server) -> None:
    app = await start(redis_server)
    answer = await app.client.post("/api/redis/clear", json={"pattern": "é" * 256}, headers=AUTH)
    assert answer.status_code == 200


async def test_clear_without_redis_is_unavailable(start: Start) -> None:
    app = await start()
    answer = await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


async def test_stats_count_and_start_anew_everywhere(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30", PORT="3002")
    other = await start(redis_server, CACHE_TTL_PRICE="30", PORT="3003")
    await until(lambda: subscribers(raw) == 2)
    await app.put_price("BTC-USD", 1)
    for _ in range(4):
        await app.get("/api/prices/BTC-USD")
    await other.get("/api/prices/BTC-USD")
    stats = (await app.get("/api/redis/stats")).json()
    assert stats["success"] is True
    assert stats["data"]["cache"] == {
        "hits": 3,
        "misses": 1,
        "errors": 0,
        "sets": 1,
        "hitRatio": 75.0,
        "totalRequests": 4,
    }
    assert stats["data"]["redis"]["usedMemory"] > 0
    assert stats["data"]["redis"]["latency"] > 0
    other_stats = (await other.get("/api/redis/stats")).json()["data"]
    assert other_stats["cache"]["hits"] == 1
    assert other_stats["instance"] != stats["data"]["instance"]

    reset = await app.client.post("/api/redis/reset-stats", headers=AUTH)
    assert reset.json() == {"success": True}
    await until(lambda: other.services.stats.current.hits == 0)
    assert (await app.get("/api/redis/stats")).json()["data"]["cache"]["totalRequests"] == 0
    assert "redis_cache_hits 3.0" in (await app.get("/metrics")).text


async def test_own_announcement_takes_no_later_count_away(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app, other = await start(redis_server), await start(redis_server)
    await until(lambda: subscribers(raw) == 2)
    app.services.stats.total.hits = other.services.stats.total.hits = 1
    app.services.bus.announce(RESET_STATS)
    await until(lambda: other.services.stats.current.hits == 0)
    await asyncio.sleep(0.05)  # both were sent it at once
    assert app.services.stats.current.hits == 1


async def test_junk_on_the_channel_is_ignored(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app, other = await start(redis_server), await start(redis_server)
    await until(lambda: subscribers(raw) == 2)
    other.services.stats.total.hits = 1
    for junk in (b"junk", b"\xff", b"", b" ", b"a -1 beat", b"a 99999999999999999999 beat", b"a 1"):
        raw.publish("qd:development:control", junk)
        raw.publish("qd:development:ws:\xff", junk)
    await app.client.post("/api/redis/reset-stats", headers=AUTH)
    await until(lambda: other.services.stats.current.hits == 0)


async def test_reset_works_without_redis(start: Start) -> None:
    app = await start()
    app.services.stats.total.misses = 5
    answer = await app.client.post("/api/redis/reset-stats", headers=AUTH)
    assert answer.json() == {"success": True}
    assert app.services.stats.current.requests == 0


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
def test_escaped_text_holds_no_bare_metacharacter(text: str) -> None:
    escaped = escape_glob(text)
    assert escaped.replace("\\\\", "").count("\\") == sum(text.count(c) for c in "*?[]^-")
    if not set(text) & set("\\[]^-*?"):
        assert fnmatch.fnmatchcase(text, escaped)

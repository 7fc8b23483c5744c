"""Redis away, refusing, frozen and back: the application goes on, and says so once."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from conftest import (
    AUTH,
    Server,
    Start,
    calls,
    command,
    free_port,
    state_messages,
    subscribers,
    until,
)
from quantdesk.redis import invalidations, probe

UP = "Redis connected"
DOWN = "Redis connection failed, continuing without Redis"
KEY = "qd:development:price:BTC-USD"


async def test_starts_and_serves_without_redis(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(f"redis://127.0.0.1:{free_port()}")
    await app.put_price("BTC-USD", 1)
    answer = await app.get("/api/prices/BTC-USD")
    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "BYPASS")
    health = await app.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert health.json()["redis"] == {"status": "unhealthy", "latency": None, "available": False}
    redis = await app.get("/api/redis/health")
    assert (redis.status_code, redis.json()) == (503, health.json()["redis"])
    assert state_messages(caplog) == [DOWN]


async def test_disabled_redis_is_not_degraded(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start()
    health = (await app.get("/health")).json()
    assert (health["status"], health["redis"]["status"]) == ("healthy", "disabled")
    assert (await app.get("/api/redis/health")).status_code == 503
    assert (await app.get("/api/redis/stats")).json()["data"]["redis"]["usedMemory"] is None
    assert state_messages(caplog) == []


async def test_killed_redis_is_survived_and_used_again(
    start: Start, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", 1)
    await app.get("/api/prices/BTC-USD")
    assert (await app.get("/health")).json()["status"] == "healthy"
    for turn in range(1, 3):
        redis_server.kill()
        answers = await asyncio.gather(*(app.get("/api/prices/BTC-USD") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["X-Cache"] for answer in answers} == {"BYPASS"}
        assert (await app.get("/health")).json()["status"] == "degraded"
        assert (await app.put_price("BTC-USD", turn)).status_code == 200
        redis_server.start()
        await app.until_available(True)
        first = await app.get("/api/prices/BTC-USD")
        assert first.json()["data"]["price"] == str(turn)
        assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "HIT"
        assert state_messages(caplog) == [UP] + [DOWN, UP] * turn


async def test_loss_is_noticed_without_a_request(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "PROBE_INTERVAL_UP", 3600.0)
    app = await start(redis_server)
    await until(lambda: subscribers(raw) == 1)
    redis_server.kill()
    await app.until_available(False)


async def test_reads_cost_nothing_while_redis_is_down(start: Start) -> None:
    app = await start(f"redis://127.0.0.1:{free_port()}")
    gateway = app.services.gateway
    assert not gateway.available
    started = time.thread_time()
    for _ in range(100):
        await app.services.cache.invalidate("price", "BTC-USD", 1)
    assert (time.thread_time() - started) / 100 < 0.005


async def test_frozen_redis_delays_readers_once_and_for_a_bounded_time(
    start: Start,
    redis_server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the prices had been written long before: what is recent is not kept over a loss.
    monkeypatch.setattr(invalidations, "RECALL", 0.0)
    timeout = 4.0
    app = await start(
        redis_server, REDIS_COMMAND_TIMEOUT=str(int(timeout * 1000)), CACHE_TTL_PRICE="3600"
    )
    for symbol in ("A", "B", "C"):
        await app.put_price(symbol, 1)
        await app.get(f"/api/prices/{symbol}")
    redis_server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        first = asyncio.create_task(app.get("/api/prices/A"))
        await asyncio.sleep(timeout / 2)
        # This one came later, but ends with the first: the timeout is Redis', not each reader's.
        second_began = time.monotonic()
        second = asyncio.create_task(app.get("/api/prices/B"))
        answers = await asyncio.gather(first, second)
        assert {a.headers["X-Cache"] for a in answers} == {"BYPASS"}
        assert time.monotonic() - began > 0.8 * timeout
        assert time.monotonic() - second_began < timeout
        third_began = time.monotonic()
        assert (await app.get("/api/prices/C")).headers["X-Cache"] == "BYPASS"
        assert time.monotonic() - third_began < timeout / 2
    finally:
        redis_server.signal(signal.SIGCONT)
    await app.until_available(True)
    assert (await app.get("/api/prices/A")).headers["X-Cache"] == "HIT"
    assert state_messages(caplog) == [UP, DOWN, UP]


async def test_price_written_while_redis_was_away_is_not_served_old(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, REDIS_COMMAND_TIMEOUT="200", CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", "1")
    await app.get("/api/prices/BTC-USD")
    redis_server.signal(signal.SIGSTOP)
    try:
        await app.get("/api/prices/BTC-USD")
        assert not app.services.gateway.available
        # From here on nothing is sent that Redis could find in its socket later.
        await app.put_price("BTC-USD", "2")
    finally:
        redis_server.signal(signal.SIGCONT)
    await app.until_available(True)
    assert (await app.get("/api/prices/BTC-USD")).json()["data"]["price"] == "2"


@pytest.mark.parametrize("url", ["redis://:wrong@127.0.0.1:{}", "redis://127.0.0.1:{}"])
async def test_wrong_or_missing_password_degrades(
    start: Start, make_redis: Callable[..., Server], caplog: pytest.LogCaptureFixture, url: str
) -> None:
    server = make_redis("--requirepass", "right")
    app = await start(url.format(server.port))
    await app.put_price("BTC-USD", 1)
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "BYPASS"
    assert (await app.get("/health")).json()["status"] == "degraded"
    assert state_messages(caplog) == [DOWN]
    assert "wrong" not in caplog.text
    with server.client("right") as admin:
        admin.config_set("requirepass", "wrong" if "wrong" in url else "")
    await app.until_available(True)
    assert state_messages(caplog) == [DOWN, UP]


async def test_password_from_the_url_is_used(
    start: Start, make_redis: Callable[..., Server]
) -> None:
    server = make_redis("--requirepass", "right")
    app = await start(f"redis://:right@127.0.0.1:{server.port}")
    assert app.services.gateway.available


async def test_replica_counts_as_down_without_flapping(
    start: Start, redis_server: Server, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(redis_server)
    await app.put_price("BTC-USD", 1)
    raw.replicaof("127.0.0.1", str(free_port()))
    await app.get("/api/prices/BTC-USD")
    await app.until_available(False)
    # Several probes, after which it must not come up.
    probes = calls(raw, "ping")
    await until(lambda: calls(raw, "ping") >= probes + 5)
    assert state_messages(caplog) == [UP, DOWN]
    assert "READONLY" in {getattr(record, "reason", "") for record in caplog.records}
    raw.replicaof("NO", "ONE")
    await app.until_available(True)


async def test_failing_persistence_counts_as_down(
    start: Start, make_redis: Callable[..., Server], tmp_path: Path
) -> None:
    server = make_redis()
    app = await start(server)
    with server.client() as raw:
        raw.config_set("save", "3600 1")
        # A folder under the dump's name makes every save fail, as a full disk does.
        (tmp_path / "dump.rdb").mkdir()
        raw.set("some", "key")
        raw.bgsave()
        await until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err")
        await app.until_available(False)
        assert (await app.put_price("BTC-USD", 1)).status_code == 200
        raw.config_set("stop-writes-on-bgsave-error", "no")
        await app.until_available(True)


async def test_full_memory_is_an_error_of_the_cache_not_an_outage(
    start: Start, redis_server: Server, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(redis_server)
    await app.put_price("BTC-USD", 1)
    raw.config_set("maxmemory", "1")
    for _ in range(3):
        answer = await app.get("/api/prices/BTC-USD")
        assert (answer.status_code, answer.headers["X-Cache"]) == (200, "MISS")
    stats = (await app.get("/api/redis/stats")).json()["data"]
    assert (stats["cache"]["errors"], stats["cache"]["sets"]) == (3, 0)
    assert stats["redis"]["available"] is True
    assert stats["redis"]["maxMemory"] == 1
    assert [r.getMessage() for r in caplog.records].count("Redis refuses commands") == 1


async def test_missing_rights_degrade(start: Start, redis_server: Server, raw: Redis) -> None:
    command(raw, "ACL", "SETUSER", "app", "on", ">pw", "~qd:*", "+ping", "+get", "+unlink")
    app = await start(f"redis://app:pw@127.0.0.1:{redis_server.port}")
    assert app.services.gateway.available
    await app.put_price("BTC-USD", 1)
    assert (await app.get("/api/prices/BTC-USD")).status_code == 200
    # The removal of the old entry, and the new one's fill.
    assert app.services.stats.total.errors == 2
    clear = await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    assert clear.status_code == 503
    reset = await app.client.post("/api/redis/reset-stats", headers=AUTH)
    assert reset.status_code == 200
    stats = (await app.get("/api/redis/stats")).json()["data"]["redis"]
    assert (stats["available"], stats["usedMemory"]) == (True, None)


async def test_few_rights_suffice(start: Start, redis_server: Server, raw: Redis) -> None:
    rules = (
        "~qd:development:* &qd:development:* +ping +get +set +unlink +scan +publish +psubscribe"
        " +eval +evalsha +incrby +mget +pttl"
    )
    command(raw, "ACL", "SETUSER", "app", "on", ">pw", *rules.split())
    app = await start(f"redis://app:pw@127.0.0.1:{redis_server.port}", CACHE_TTL_PRICE="30")
    await until(lambda: subscribers(raw) == 1)
    await app.put_price("BTC-USD", 1)
    await app.get("/api/prices/BTC-USD")
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "HIT"
    clear = await app.client.post("/api/redis/clear", json={"pattern": "*"}, headers=AUTH)
    assert clear.json()["data"]["cleared"] == 1
    assert app.services.stats.total.errors == 0


async def test_something_that_is_not_redis_degrades(start: Start) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(1)
        writer.close()
        await writer.wait_closed()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with other:
        port = other.sockets[0].getsockname()[1]
        app = await start(f"redis://127.0.0.1:{port}")
        assert not app.services.gateway.available
        assert (await app.get("/health")).json()["status"] == "degraded"


async def test_closed_idle_connections_are_not_an_outage(
    start: Start, redis_server: Server, raw: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(redis_server)
    await until(lambda: subscribers(raw) == 1)
    command(raw, "CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: subscribers(raw) == 1)
    assert app.services.gateway.available
    assert state_messages(caplog) == [UP]


async def test_unanswering_database_makes_it_unhealthy(start: Start, redis_server: Server) -> None:
    app = await start(redis_server)
    async with app.services.database.engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE prices")
    health = await app.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "unhealthy"
    assert health.json()["database"] == {"status": "unhealthy"}
    assert health.json()["redis"]["status"] == "healthy"
    answer = await app.get("/api/prices/BTC-USD")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")

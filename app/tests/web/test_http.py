"""What every route has in common: error shapes, metrics, OpenAPI; and the log lines."""

import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conftest import AUTH, Running, Server, Start
from quantdesk.logging import JsonFormatter, TextFormatter


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/prices/A/B", 404, "not_found"),
        ("GET", "/api/prices/%2e%2e%2fhealth", 404, "not_found"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/api/redis/clear", 405, "method_not_allowed"),
        ("BREW", "/health", 405, "method_not_allowed"),
        ("GET", "/api/prices/btc", 422, "unprocessable"),
    ],
)
async def test_errors_have_one_shape(
    start: Start, method: str, path: str, status: int, code: str
) -> None:
    app = await start()
    answer = await app.client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")
    body = answer.json()
    assert set(body) == {"success", "error"}
    assert body["success"] is False
    assert body["error"]["code"] == code
    assert body["error"]["message"]


async def test_failure_shows_nothing_of_the_inside(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start()

    async def fail(_: str) -> None:
        raise RuntimeError("an inner secret")

    monkeypatch.setattr(app.services.database.prices, "read", fail)
    answer = await app.get("/api/prices/A")
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "code": "internal_server_error",
        "message": "Internal server error",
    }
    assert [
        record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"
    ] == [True]


async def scrape(app: Running) -> dict[str, Any]:
    answer = await app.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


async def test_redis_metrics_have_their_exact_names(start: Start, redis_server: Server) -> None:
    began = time.monotonic()
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("A", 1)
    for _ in range(4):
        await app.get("/api/prices/A")
    text = (await app.get("/metrics")).text
    samples = {
        line.split()[0]: float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("redis_")
    }
    ping = samples.pop("redis_ping_ms")
    assert 0 < ping < (time.monotonic() - began) * 1000
    assert samples == {
        "redis_connection_status": 1,
        "redis_cache_hits": 3,
        "redis_cache_misses": 1,
        "redis_cache_errors": 0,
        "redis_cache_sets": 1,
        "redis_cache_hit_ratio": 0.75,
    }


async def test_metrics_without_redis(start: Start) -> None:
    app = await start()
    lines = (await app.get("/metrics")).text.splitlines()
    assert "redis_connection_status 0.0" in lines
    assert "redis_ping_ms NaN" in lines
    assert "redis_cache_hit_ratio NaN" in lines


async def test_requests_are_counted_by_route_not_by_path(start: Start) -> None:
    app = await start()
    for path in (
        "/api/prices/A",
        "/api/prices/B",
        "/api/prices/%22%0a",
        "/nowhere/1",
        "/nowhere/2",
    ):
        await app.get(path)
    await app.client.request("BREW", "/health")
    families = await scrape(app)
    counted = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in families["http_requests"].samples
        if s.name == "http_requests_total"
    }
    assert counted == {
        ("GET", "/api/prices/{symbol}", "404"): 2,
        ("GET", "/api/prices/{symbol}", "422"): 1,
        ("GET", "unmatched", "404"): 2,
        ("OTHER", "unmatched", "405"): 1,
    }
    assert "http_request_duration_seconds" in families


async def test_openapi_describes_the_routes(start: Start) -> None:
    app = await start()
    answer = await app.get("/schema/openapi.json")
    assert answer.status_code == 200
    schema = answer.json()
    assert set(schema["paths"]) == {
        "/health",
        "/api/redis/health",
        "/api/redis/stats",
        "/api/redis/clear",
        "/api/redis/reset-stats",
        "/api/prices/{symbol}",
        "/api/sessions",
        "/api/sessions/current",
        "/api/portfolio",
        "/api/orders",
        "/api/orders/{order_id}",
        "/api/presence",
    }
    put = schema["paths"]["/api/prices/{symbol}"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"]["required"] == ["price"]
    clear = schema["paths"]["/api/redis/clear"]["post"]
    assert clear["requestBody"]["content"]["application/json"]["schema"]["required"] == ["pattern"]


async def test_version_is_told(start: Start) -> None:
    app = await start()
    assert (await app.get("/health")).json()["version"] == "0.1.0"


async def test_body_of_unannounced_length_is_limited(start: Start) -> None:
    app = await start()

    async def chunks() -> Any:  # noqa: ANN401  # an async generator, typed loosely by httpx
        for _ in range(70):
            yield b" " * 1024

    answer = await app.client.put("/api/prices/A", content=chunks(), headers=AUTH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "quantdesk", "levelname": "INFO", "msg": message})
    vars(made).update(extra)
    return made


@given(st.text(), st.text())
def test_a_record_stays_on_one_line(message: str, value: str) -> None:
    made = record(message, symbol=value)
    assert len(TextFormatter().format(made).splitlines()) == 1
    line = JsonFormatter().format(made)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["message"], parsed["symbol"]) == (message, value)

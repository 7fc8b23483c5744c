import asyncio
import time

from redis import Redis

from conftest import Server, Start, expires_as_set
from logins import log_in
from postgres import Postgres


async def test_portfolio_is_what_the_orders_amount_to(
    start: Start, redis_server: Server, raw: Redis, database_url: str
) -> None:
    app = await start(redis_server, DATABASE_URL=database_url, CACHE_TTL_PORTFOLIO="30")
    await app.put_price("BTC-USD", "50000.10")
    await app.put_price("ETH", "0.1")
    alice = await log_in(app, "alice")
    for symbol, side, quantity in (
        ("ETH", "buy", "3"),
        ("BTC-USD", "buy", "2"),
        ("ETH", "sell", "1"),
    ):
        order = {"symbol": symbol, "side": side, "quantity": quantity}
        await app.client.post("/api/orders", json=order, headers=alice)
    expected = {
        "success": True,
        "data": {
            "user": "alice",
            "positions": [
                {"symbol": "BTC-USD", "quantity": "2", "price": "50000.10", "value": "100000.2"},
                {"symbol": "ETH", "quantity": "2", "price": "0.1", "value": "0.2"},
            ],
            "totalValue": "100000.4",
        },
    }
    outcomes = []
    began = time.time()
    for _ in range(2):
        answer = await app.client.get("/api/portfolio", headers=alice)
        assert answer.json() == expected
        outcomes.append(answer.headers["X-Cache"])
    assert outcomes == ["MISS", "HIT"]
    assert expires_as_set(raw, "qd:development:portfolio:alice", 30, began)


async def test_order_is_in_the_portfolio_of_every_instance_at_once(
    start: Start, redis_server: Server
) -> None:
    env = {"CACHE_TTL_PORTFOLIO": "30"}
    app, other = await start(redis_server, **env), await start(redis_server, **env)
    await app.put_price("A", 10)
    alice = await log_in(app, "alice")
    for quantity in ("1", "2", "3"):
        for instance in (app, other):
            await instance.client.get("/api/portfolio", headers=alice)
        order = {"symbol": "A", "side": "buy", "quantity": "1"}
        assert (await app.client.post("/api/orders", json=order, headers=alice)).is_success
        for instance in (other, app):
            data = (await instance.client.get("/api/portfolio", headers=alice)).json()["data"]
            assert [position["quantity"] for position in data["positions"]] == [quantity]


async def test_portfolio_without_orders_is_empty(start: Start) -> None:
    app = await start()
    answer = await app.client.get("/api/portfolio", headers=await log_in(app, "alice"))
    assert answer.headers["X-Cache"] == "BYPASS"
    assert answer.json()["data"] == {"user": "alice", "positions": [], "totalValue": "0"}


async def test_each_user_has_a_portfolio_of_their_own(start: Start, redis_server: Server) -> None:
    app = await start(redis_server)
    await app.put_price("A", 10)
    alice, bob = await log_in(app, "alice"), await log_in(app, "bob")
    order = {"symbol": "A", "side": "buy", "quantity": "1"}
    await app.client.post("/api/orders", json=order, headers=alice)
    answers = await asyncio.gather(
        *(app.client.get("/api/portfolio", headers=who) for who in (alice, bob))
    )
    assert [answer.json()["data"]["totalValue"] for answer in answers] == ["10", "0"]


async def test_without_a_session_is_unauthorized(start: Start) -> None:
    app = await start()
    assert (await app.get("/api/portfolio")).status_code == 401


async def test_database_away_is_an_error_of_the_same_shape(
    start: Start, postgres: Postgres, postgres_url: str
) -> None:
    app = await start(DATABASE_URL=postgres_url)
    alice = await log_in(app, "alice")
    assert (await app.get("/health")).status_code == 200
    postgres.stop()
    try:
        answer = await app.client.get("/api/portfolio", headers=alice)
        assert answer.status_code == 503
        assert answer.json() == {
            "success": False,
            "error": {"code": "unavailable", "message": "The database is not available"},
        }
        health = await app.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    finally:
        postgres.start()
    assert (await app.client.get("/api/portfolio", headers=alice)).status_code == 200
    assert (await app.get("/health")).status_code == 200

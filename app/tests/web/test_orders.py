import asyncio

import httpx
import pytest

from conftest import Running, Server, Start
from logins import log_in

Headers = dict[str, str]


async def place(
    app: Running, headers: Headers, key: str | None = None, **order: object
) -> httpx.Response:
    sent = headers | ({"Idempotency-Key": key} if key is not None else {})
    return await app.client.post("/api/orders", json=order, headers=sent)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def quantities(app: Running, headers: Headers) -> dict[str, str]:
    data = (await app.client.get("/api/portfolio", headers=headers)).json()["data"]
    return {position["symbol"]: position["quantity"] for position in data["positions"]}


async def test_order_is_filled_and_read_back(
    start: Start, redis_server: Server, database_url: str
) -> None:
    app = await start(redis_server, DATABASE_URL=database_url, CACHE_TTL_ORDER="30")
    await app.put_price("BTC-USD", "50000.10")
    alice = await log_in(app, "alice")
    answer = await place(app, alice, symbol="BTC-USD", side="buy", quantity="1.50")
    assert answer.status_code == 201
    order = answer.json()["data"]
    assert set(order) == {
        *("id", "user", "symbol", "side", "quantity", "price", "status", "createdAt")
    }
    kept = {name: order[name] for name in ("user", "symbol", "side", "quantity", "price", "status")}
    assert kept == {
        "user": "alice",
        "symbol": "BTC-USD",
        "side": "buy",
        "quantity": "1.50",
        "price": "50000.10",
        "status": "filled",
    }
    outcomes = []
    for _ in range(2):
        read = await app.client.get(f"/api/orders/{order['id']}", headers=alice)
        assert read.json() == answer.json()
        outcomes.append(read.headers["X-Cache"])
    assert outcomes == ["MISS", "HIT"]


async def test_order_with_a_limit_is_cancelled_where_the_price_is_worse(start: Start) -> None:
    app = await start()
    await app.put_price("A", 10)
    alice = await log_in(app, "alice")
    bought = await place(app, alice, symbol="A", side="buy", quantity=1, price="10.5")
    assert (bought.json()["data"]["status"], bought.json()["data"]["price"]) == ("filled", "10")
    missed = await place(app, alice, symbol="A", side="buy", quantity=1, price=9.5)
    assert missed.status_code == 201
    assert (missed.json()["data"]["status"], missed.json()["data"]["price"]) == ("cancelled", "9.5")
    kept = await place(app, alice, symbol="A", side="sell", quantity=1, price="10.000001")
    assert kept.json()["data"]["status"] == "cancelled"
    assert await quantities(app, alice) == {"A": "1"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('"1.10"', "1.10"),
        ("1.10", "1.10"),
        ("1e3", "1000"),
        ("12345678901234567890.123456789012345678", "12345678901234567890.123456789012345678"),
    ],
)
async def test_quantity_is_exact(start: Start, sent: str, kept: str) -> None:
    app = await start()
    await app.put_price("A", 10)
    alice = await log_in(app, "alice")
    body = f'{{"symbol": "A", "side": "buy", "quantity": {sent}}}'
    answer = await app.client.post("/api/orders", content=body, headers=alice)
    assert answer.json()["data"]["quantity"] == kept
    assert await quantities(app, alice) == {"A": kept}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422),
        ("{", 400),
        ("[]", 422),
        ('{"symbol": "A", "side": "buy"}', 422),
        ('{"symbol": "A", "quantity": 1}', 422),
        ('{"side": "buy", "quantity": 1}', 422),
        ('{"symbol": "a", "side": "buy", "quantity": 1}', 422),
        ('{"symbol": "A\\n", "side": "buy", "quantity": 1}', 422),
        ('{"symbol": 1, "side": "buy", "quantity": 1}', 422),
        ('{"symbol": "A", "side": "hold", "quantity": 1}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 0}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": -1}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": "1e3"}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": null}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": true}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": NaN}', 400),
        ('{"symbol": "A", "side": "buy", "quantity": 1e-19}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 1e20}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": "000000000000000000001"}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 1, "price": 0}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 1, "price": null}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 1, "price": ""}', 422),
        ('{"symbol": "A", "side": "buy", "quantity": 1, "prize": 9}', 422),
    ],
)
async def test_unacceptable_order_is_refused(start: Start, body: str, status: int) -> None:
    app = await start()
    await app.put_price("A", 10)
    alice = await log_in(app, "alice")
    answer = await app.client.post("/api/orders", content=body, headers=alice)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert await quantities(app, alice) == {}


async def test_order_that_cannot_be_placed_is_refused(start: Start) -> None:
    app = await start()
    alice = await log_in(app, "alice")
    unknown = await place(app, alice, symbol="NONE", side="buy", quantity=1)
    assert code(unknown) == (404, "not_found")
    await app.put_price("A", 10)
    await place(app, alice, symbol="A", side="buy", quantity=1)
    assert code(await place(app, alice, symbol="A", side="sell", quantity="1.01")) == (
        409,
        "conflict",
    )
    most = "99999999999999999999"
    assert code(await place(app, alice, symbol="A", side="buy", quantity=most)) == (409, "conflict")
    assert await quantities(app, alice) == {"A": "1"}


async def test_without_a_session_is_unauthorized(start: Start) -> None:
    app = await start()
    await app.put_price("A", 10)
    assert (await place(app, {}, symbol="A", side="buy", quantity=1)).status_code == 401
    # Who is not logged in learns nothing of what would have been wrong.
    assert (await place(app, {}, symbol="?")).status_code == 401
    assert (await app.get("/api/orders/x")).status_code == 401


async def test_other_users_orders_are_not_found(start: Start, redis_server: Server) -> None:
    app = await start(redis_server)
    await app.put_price("A", 10)
    alice, bob = await log_in(app, "alice"), await log_in(app, "bob")
    order = (await place(app, alice, symbol="A", side="buy", quantity=1)).json()["data"]
    absent = await app.client.get(f"/api/orders/{'0' * 8}-0000-0000-0000-{'0' * 12}", headers=bob)
    for _ in range(2):
        others = await app.client.get(f"/api/orders/{order['id']}", headers=bob)
        assert others.status_code == 404
        assert others.json() == absent.json()
        # Nor do the headers tell that it is there.
        assert "X-Cache" not in others.headers
    assert (await app.client.get(f"/api/orders/{order['id']}", headers=alice)).status_code == 200


@pytest.mark.parametrize("name", ["x", "%00", "0" * 32, "A" * 8 + "-0000-0000-0000-" + "0" * 12])
async def test_malformed_id_is_refused(start: Start, name: str) -> None:
    app = await start()
    alice = await log_in(app, "alice")
    answer = await app.client.get(f"/api/orders/{name}", headers=alice)
    assert answer.status_code == 422


async def test_same_key_answers_the_same_order_again(start: Start) -> None:
    app = await start()
    await app.put_price("A", 10)
    alice, bob = await log_in(app, "alice"), await log_in(app, "bob")
    order = {"symbol": "A", "side": "buy", "quantity": "2", "price": "11"}
    first = await place(app, alice, "key-1", **order)
    await app.put_price("A", 99)
    again = await place(app, alice, "key-1", **order)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert await quantities(app, alice) == {"A": "2"}
    assert code(await place(app, alice, "key-1", **order | {"quantity": "3"})) == (409, "conflict")
    others = await place(app, bob, "key-1", **order | {"price": "100"})
    assert (others.status_code, others.json()["data"]["user"]) == (201, "bob")
    other = await place(app, alice, "key-2", **order)
    assert other.json()["data"]["id"] != first.json()["data"]["id"]


@pytest.mark.parametrize("key", ["", "k" * 65, "two words", "tab\tbed"])
async def test_malformed_key_is_refused(start: Start, key: str) -> None:
    app = await start()
    await app.put_price("A", 10)
    alice = await log_in(app, "alice")
    answer = await place(app, alice, key, symbol="A", side="buy", quantity=1)
    assert answer.status_code == 422
    assert await quantities(app, alice) == {}


async def test_fifty_sells_through_two_instances_never_sell_more_than_is_held(
    start: Start, redis_server: Server, database_url: str
) -> None:
    env = {"DATABASE_URL": database_url, "RATE_LIMIT": "1000/second"}
    apps = [await start(redis_server, **env), await start(redis_server, **env)]
    await apps[0].put_price("A", 10)
    alice = await log_in(apps[0], "alice")
    await place(apps[0], alice, symbol="A", side="buy", quantity=20)
    answers = await asyncio.gather(
        *(place(apps[n % 2], alice, symbol="A", side="sell", quantity=1) for n in range(50))
    )
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(201), statuses.count(409)) == (20, 30)
    for app in apps:
        assert await quantities(app, alice) == {}

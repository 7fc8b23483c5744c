import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import event

from conftest import AUTH, Running, Server, Start, calls, expires_as_set, until
from quantdesk.database.prices import Price
from quantdesk.database.versioned import Versioned
from quantdesk.web.amounts import parse_amount

KEY = "qd:development:price:BTC-USD"


@contextmanager
def selects(app: Running) -> Iterator[list[str]]:
    """Collect the SELECTs that reach the database."""
    seen: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)

    engine = app.services.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('"50000.10"', "50000.10"),
        ("50000.10", "50000.10"),
        ("0.1", "0.1"),
        ("12345678901234567890.123456789012345678", "12345678901234567890.123456789012345678"),
        ("1e3", "1000"),
        ("1.5E-7", "0.00000015"),
        ('"0.000000000000000001"', "0.000000000000000001"),
    ],
)
async def test_price_is_kept_exactly(start: Start, sent: str, kept: str) -> None:
    app = await start()
    written = await app.client.put(
        "/api/prices/BTC-USD", content=f'{{"price": {sent}}}', headers=AUTH
    )
    assert written.status_code == 200
    read = await app.get("/api/prices/BTC-USD")
    assert read.json() == written.json()
    assert read.json()["success"] is True
    assert read.json()["data"]["price"] == kept
    assert read.json()["data"]["symbol"] == "BTC-USD"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 422),
        ("{", 400),
        ('{"price": NaN}', 400),
        ('{"price": Infinity}', 400),
        (b'{"price": "\xff"}', 400),
        ("[" * 60000, 422),
        ('{"price": ' + "[" * 60000, 400),
        ("[]", 422),
        ("null", 422),
        ("{}", 422),
        ('{"price": null}', 422),
        ('{"price": true}', 422),
        ('{"price": [1]}', 422),
        ('{"price": {"a": 1}}', 422),
        ('{"price": 0}', 422),
        ('{"price": 0e5}', 422),
        ('{"price": -1}', 422),
        ('{"price": 1e999}', 422),
        ('{"price": 1e-99}', 422),
        ('{"price": 100000000000000000000}', 422),
        ('{"price": "NaN"}', 422),
        ('{"price": "Infinity"}', 422),
        ('{"price": "-1"}', 422),
        ('{"price": "1e3"}', 422),
        ('{"price": "1_000"}', 422),
        ('{"price": " 1"}', 422),
        ('{"price": "1\\n"}', 422),
        ('{"price": "\uff11\uff12"}', 422),
        ('{"price": "0.0"}', 422),
        ('{"price": ""}', 422),
        (r'{"price": "\ud800"}', 400),
        (r'{"price": "\x"}', 400),
        ('{"price": "50,000"}', 422),
        ('{"price": 1, "other": 2}', 422),
        ('{"price": "' + "1" * 65536 + '"}', 413),
    ],
)
async def test_unacceptable_body_is_refused(start: Start, body: str | bytes, status: int) -> None:
    app = await start()
    answer = await app.client.put("/api/prices/BTC-USD", content=body, headers=AUTH)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert set(answer.json()["error"]) == {"code", "message"}
    assert (await app.get("/api/prices/BTC-USD")).status_code == 404


@pytest.mark.parametrize(
    "symbol", ["btc", "-BTC", ".BTC", "A" * 33, "BTC%00", "BTC%0A", "BTC*", "BTC:USD", "ÄÖ", "%FF"]
)
async def test_unacceptable_symbol_is_refused(start: Start, symbol: str) -> None:
    app = await start()
    assert (await app.get(f"/api/prices/{symbol}")).status_code == 422
    assert (await app.put_price(symbol, 1)).status_code == 422


@pytest.mark.parametrize("symbol", ["A", "0", "BTC-USD", "BRK.B", "A_B", "A" * 32])
async def test_acceptable_symbol(start: Start, symbol: str) -> None:
    app = await start()
    assert (await app.put_price(symbol, 1)).status_code == 200
    assert (await app.get(f"/api/prices/{symbol}")).json()["data"]["symbol"] == symbol


@given(
    st.decimals(min_value=Decimal("1e-18"), max_value=Decimal("99999999999999999999"), places=18)
)
def test_plain_decimals_survive_the_way_through_json(price: Decimal) -> None:
    text = format(price, "f")
    assert format(parse_amount(json.dumps(text).encode(), "price"), "f") == text
    assert format(parse_amount(text.encode(), "price"), "f") == text


@given(st.text(max_size=40))
def test_strings_become_positive_finite_decimals_or_are_refused(text: str) -> None:
    try:
        price = parse_amount(json.dumps(text).encode(), "price")
    except ValueError:
        return
    assert price.is_finite()
    assert price > 0
    assert set(text) <= set("0123456789.")


async def test_first_read_misses_and_the_second_hits(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", 1)
    began = time.time()
    outcomes = [(await app.get("/api/prices/BTC-USD")).headers["X-Cache"] for _ in range(3)]
    assert outcomes == ["MISS", "HIT", "HIT"]
    assert expires_as_set(raw, KEY, 30, began)


async def test_price_expires_after_one_second(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server)
    await app.put_price("BTC-USD", 1)
    made = False
    # Where a second goes by before it can be looked at, it is made anew.
    while not made:
        began = time.time()
        await app.get("/api/prices/BTC-USD")
        made = expires_as_set(raw, KEY, 1, began)
        assert made or not raw.exists(KEY)
    await until(lambda: not raw.exists(KEY))
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "MISS"


async def test_unknown_symbol_is_not_found_and_not_kept(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server)
    answer = await app.get("/api/prices/BTC-USD")
    assert (answer.status_code, answer.headers["X-Cache"]) == (404, "MISS")
    assert raw.keys("*:price:*") == []


async def test_write_is_seen_by_the_next_read(start: Start, redis_server: Server) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    for price in ("1", "2"):
        await app.put_price("BTC-USD", price)
        answer = await app.get("/api/prices/BTC-USD")
        assert answer.json()["data"]["price"] == price
        assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "HIT"


async def test_hundred_readers_of_a_cold_key_share_one_read(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", 1)
    gets = calls(raw, "get")
    with selects(app) as seen:
        answers = await asyncio.gather(*(app.get("/api/prices/BTC-USD") for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(seen) == 1
    assert calls(raw, "get") - gets == 1
    stats = (await app.get("/api/redis/stats")).json()["data"]["cache"]
    assert (stats["misses"], stats["sets"]) == (100, 1)


async def test_readers_share_one_read_without_redis(start: Start) -> None:
    app = await start()
    await app.put_price("BTC-USD", 1)
    with selects(app) as seen:
        answers = await asyncio.gather(*(app.get("/api/prices/BTC-USD") for _ in range(100)))
    assert {answer.headers["X-Cache"] for answer in answers} == {"BYPASS"}
    assert len(seen) == 1


async def test_reader_that_goes_away_leaves_the_others_their_answer(
    start: Start, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start(redis_server)
    await app.put_price("BTC-USD", 1)
    gate, entered = hold_reads(app, monkeypatch)
    first = asyncio.create_task(app.get("/api/prices/BTC-USD"))
    await entered.wait()
    second = asyncio.create_task(app.get("/api/prices/BTC-USD"))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert (await second).status_code == 200


def hold_reads(
    app: Running, monkeypatch: pytest.MonkeyPatch
) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold reads of prices between the database's answer and the cache until the gate is set."""
    gate, entered = asyncio.Event(), asyncio.Event()
    read = app.services.database.prices.read

    async def held(symbol: str) -> Versioned[Price] | None:
        price = await read(symbol)
        entered.set()
        await gate.wait()
        return price

    monkeypatch.setattr(app.services.database.prices, "read", held)
    return gate, entered


async def test_read_under_way_does_not_write_a_stale_value_back(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", "1")
    gate, entered = hold_reads(app, monkeypatch)
    old = asyncio.create_task(app.get("/api/prices/BTC-USD"))
    await entered.wait()
    await app.put_price("BTC-USD", "2")
    gate.set()
    assert (await old).json()["data"]["price"] == "1"
    assert not raw.exists(KEY)
    assert (await app.get("/api/prices/BTC-USD")).json()["data"]["price"] == "2"


async def test_other_instances_read_under_way_does_not_write_a_stale_value_back(
    start: Start, redis_server: Server, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, other = await start(redis_server, CACHE_TTL_PRICE="30"), await start(redis_server)
    await app.put_price("BTC-USD", "1")
    gate, entered = hold_reads(app, monkeypatch)
    old = asyncio.create_task(app.get("/api/prices/BTC-USD"))
    await entered.wait()
    await other.put_price("BTC-USD", "2")
    # No announcement is waited for: Redis itself knows that there is a newer version.
    gate.set()
    await old
    await app.get("/api/redis/stats")  # behind the fill, should there be one
    assert not raw.exists(KEY)


@pytest.mark.parametrize("junk", [b"junk", b"{}", b"\xff\xfe", b'{"symbol": 1}'])
async def test_junk_in_the_cache_is_replaced(
    start: Start, redis_server: Server, raw: Redis, junk: bytes
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", "1")
    raw.set(KEY, junk)
    assert (await app.get("/api/prices/BTC-USD")).json()["data"]["price"] == "1"
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "HIT"


async def test_key_of_another_type_is_replaced(
    start: Start, redis_server: Server, raw: Redis
) -> None:
    app = await start(redis_server, CACHE_TTL_PRICE="30")
    await app.put_price("BTC-USD", "1")
    raw.lpush(KEY, "element")
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "MISS"
    assert (await app.get("/api/prices/BTC-USD")).headers["X-Cache"] == "HIT"
    assert app.services.stats.total.errors == 1


async def test_concurrent_first_writes_of_one_symbol_all_succeed(start: Start) -> None:
    app = await start()
    answers = await asyncio.gather(*(app.put_price("NEW", n) for n in range(1, 21)))
    assert {answer.status_code for answer in answers} == {200}

"""The queries, on real databases of both kinds, and what they do while these are away."""

import asyncio
import datetime as dt
import hashlib
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from authority import LOOPBACK, Authority
from conftest import HANG
from postgres import PASSWORD, Postgres
from quantdesk.database import clock, engine
from quantdesk.database.database import Database
from quantdesk.database.orders import Placed
from quantdesk.database.sessions import EXPIRED_BATCH
from quantdesk.database.tables import sessions
from quantdesk.database.transactions import Unavailable
from quantdesk.trading import KeyReused, OrderRequest, PositionRefused, UnknownSymbol

ID = "i" * 43


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def on_postgres(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url)
    await database.open()
    yield database
    await database.close()


def buy(quantity: str, limit: str | None = None, symbol: str = "A") -> OrderRequest:
    return OrderRequest(symbol, "buy", Decimal(quantity), Decimal(limit) if limit else None)


def sell(quantity: str, limit: str | None = None, symbol: str = "A") -> OrderRequest:
    return OrderRequest(symbol, "sell", Decimal(quantity), Decimal(limit) if limit else None)


async def count(database: Database, query: str) -> int:
    async with database.engine.connect() as connection:
        found: int = (await connection.execute(text(query))).scalar_one()
        return found


async def held(database: Database, user: str = "alice") -> dict[str, str]:
    portfolio = (await database.portfolios.read(user)).value
    return {position.symbol: position.quantity for position in portfolio.positions}


# Prices.


async def test_decimals_keep_every_digit(database: Database) -> None:
    for written, read in (
        ("50000.10", "50000.10"),
        ("0.10", "0.10"),
        ("100", "100"),
        ("1E+3", "1000"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("12345678901234567890.123456789012345678", "12345678901234567890.123456789012345678"),
        ("99999999999999999999.000000000000000000", "99999999999999999999.000000000000000000"),
    ):
        returned = await database.prices.write("A", Decimal(written))
        assert returned.value.price == read
        assert await database.prices.read("A") == returned


DECIMALS = st.decimals(
    min_value=Decimal("1e-18"), max_value=Decimal("99999999999999999999"), places=18
)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(prices=st.lists(DECIMALS, min_size=10, max_size=10))
def test_any_decimal_comes_back(database_url: str, prices: list[Decimal]) -> None:
    async def there_and_back() -> list[str]:
        database = Database(database_url)
        try:
            await database.open()
            for n, price in enumerate(prices):
                await database.prices.write(f"S{n}", price)
            found = [await database.prices.read(f"S{n}") for n in range(len(prices))]
        finally:
            await database.close()
        return [loaded.value.price for loaded in found if loaded]

    assert asyncio.run(there_and_back()) == [format(price, "f") for price in prices]


async def test_each_write_makes_the_version_one_more(database: Database) -> None:
    writes = (database.prices.write("A", Decimal(n)) for n in range(1, 21))
    written = await asyncio.gather(*writes)
    assert sorted(loaded.version for loaded in written) == list(range(1, 21))
    newest = max(written, key=lambda loaded: loaded.version)
    assert await database.prices.read("A") == newest


async def test_later_price_has_the_later_time_whatever_the_clock_says(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = dt.datetime.now(dt.UTC)
    for seconds in (0, -5, 0, 5, -60, -60):
        moment = now + dt.timedelta(seconds=seconds)
        monkeypatch.setattr(clock, "now", lambda moment=moment: moment)
        before = await database.prices.read("A")
        written = await database.prices.write("A", Decimal(1))
        assert before is None or written.value.updated_at > before.value.updated_at
        assert await database.prices.read("A") == written


async def test_unknown_symbol_has_no_price(database: Database) -> None:
    assert await database.prices.read("A") is None


# Sessions.


async def test_session_is_found_by_its_id_of_which_a_hash_is_kept(database: Database) -> None:
    began = time.monotonic()
    created = await database.sessions.create(ID, "alice", 600)
    assert created.ttl == 600
    found = await database.sessions.read(ID)
    assert found is not None
    assert found.value == created.value
    assert found.ttl is not None
    assert 600 - math.ceil(time.monotonic() - began) <= found.ttl <= 600
    assert await database.sessions.read("j" * 43) is None
    async with database.engine.connect() as connection:
        rows = (await connection.execute(select(sessions))).all()
    assert [row.id_hash for row in rows] == [hashlib.sha256(ID.encode()).digest()]
    assert ID not in str(rows)


async def test_expired_session_is_none(database: Database) -> None:
    await database.sessions.create(ID, "alice", -1)
    assert await database.sessions.read(ID) is None


async def test_session_ends(database: Database) -> None:
    await database.sessions.create(ID, "alice", 60)
    await database.sessions.delete(ID)
    assert await database.sessions.read(ID) is None
    await database.sessions.create("a" * 43, "alice", 60)
    await database.sessions.create("b" * 43, "bob", 60, replaced=["a" * 43])
    assert await database.sessions.read("a" * 43) is None
    assert await database.sessions.read("b" * 43) is not None


async def test_new_sessions_clear_expired_ones_away_in_batches(database: Database) -> None:
    for n in range(EXPIRED_BATCH):
        await database.sessions.create(f"{n:043}", "alice", 60)
    async with database.engine.begin() as connection:
        rows = (await connection.execute(select(sessions).limit(1))).one()
        past = rows.created_at.replace(year=2020)
        expired = [
            {"id_hash": bytes([n]) * 32, "user_name": "x", "created_at": past, "expires_at": past}
            for n in range(EXPIRED_BATCH + 3)
        ]
        await connection.execute(insert(sessions), expired)
    left = []
    for n in range(3):
        await database.sessions.create(f"{n}{'s' * 42}", "alice", 60)
        left.append(await count(database, "SELECT count(*) FROM sessions WHERE user_name = 'x'"))
    assert left == [3, 0, 0]
    alive = await count(database, "SELECT count(*) FROM sessions WHERE user_name = 'alice'")
    assert alive == EXPIRED_BATCH + 3


# Orders.


async def test_orders_make_positions(database: Database) -> None:
    await database.prices.write("A", Decimal("50000.10"))
    await database.prices.write("B", Decimal("0.000000000000000001"))
    first = await database.orders.place("alice", buy("1.50"), None)
    assert (first.new, first.version, first.order.status) == (True, 1, "filled")
    assert (first.order.price, first.order.quantity) == ("50000.10", "1.50")
    await database.orders.place("alice", buy("12345678901234567890", symbol="B"), None)
    await database.orders.place("alice", sell("0.5"), None)
    portfolio = await database.portfolios.read("alice")
    assert portfolio.version == 3
    assert [(p.symbol, p.quantity, p.price, p.value) for p in portfolio.value.positions] == [
        ("A", "1.00", "50000.10", "50000.1"),
        ("B", "12345678901234567890", "0.000000000000000001", "12.34567890123456789"),
    ]
    assert portfolio.value.total_value == "50012.44567890123456789"
    loaded = await database.orders.read(first.order.id)
    assert loaded is not None
    assert loaded.value == first.order
    assert (await database.portfolios.read("bob")).value.positions == []


async def test_values_are_exact_beyond_28_digits(database: Database) -> None:
    nines = "99999999999999999999.999999999999999999"
    await database.prices.write("A", Decimal(nines))
    await database.prices.write("B", Decimal("0.000000000000000001"))
    await database.orders.place("alice", buy(nines), None)
    await database.orders.place("alice", buy("0.000000000000000001", symbol="B"), None)
    portfolio = (await database.portfolios.read("alice")).value
    square = (10**38 - 1) ** 2  # in units of 1e-36
    assert portfolio.positions[0].value.replace(".", "") == str(square)
    assert portfolio.total_value.replace(".", "") == str(square + 1)


async def test_order_is_filled_at_the_latest_price_or_cancelled(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    for n, (request, status, price, left) in enumerate(
        (
            (buy("1"), "filled", "10", "6"),
            (buy("1", "10"), "filled", "10", "6"),
            (buy("1", "11"), "filled", "10", "6"),
            (buy("1", "9.99"), "cancelled", "9.99", "5"),
            (sell("1"), "filled", "10", "4"),
            (sell("1", "10"), "filled", "10", "4"),
            (sell("1", "9"), "filled", "10", "4"),
            (sell("1", "10.01"), "cancelled", "10.01", "5"),
        )
    ):
        await database.orders.place(f"user{n}", buy("5"), None)
        placed = await database.orders.place(f"user{n}", request, None)
        assert (placed.order.status, placed.order.price) == (status, price)
        assert await held(database, f"user{n}") == {"A": left}


async def test_refused_order_changes_nothing(database: Database) -> None:
    with pytest.raises(UnknownSymbol):
        await database.orders.place("alice", buy("1"), "key")
    await database.prices.write("A", Decimal(10))
    with pytest.raises(PositionRefused):
        await database.orders.place("alice", sell("1"), "key")
    await database.orders.place("alice", buy("99999999999999999999"), None)
    with pytest.raises(PositionRefused):
        await database.orders.place("alice", buy("1"), "key")
    assert await held(database) == {"A": "99999999999999999999"}
    assert (await database.portfolios.read("alice")).version == 1
    assert await count(database, "SELECT count(*) FROM orders") == 1


async def test_position_that_is_sold_goes(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    await database.orders.place("alice", buy("1.0"), None)
    await database.orders.place("alice", sell("1"), None)
    assert await held(database) == {}
    assert await count(database, "SELECT count(*) FROM positions") == 0


async def test_concurrent_sells_never_sell_more_than_is_held(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    await database.orders.place("alice", buy("20"), None)
    sells = (database.orders.place("alice", sell("1"), None) for _ in range(50))
    outcomes = await asyncio.gather(*sells, return_exceptions=True)
    assert sum(isinstance(outcome, Placed) for outcome in outcomes) == 20
    assert sum(isinstance(outcome, PositionRefused) for outcome in outcomes) == 30
    assert await held(database) == {}
    placed = [outcome for outcome in outcomes if isinstance(outcome, Placed)]
    assert sorted(p.version for p in placed) == list(range(2, 22))


async def test_concurrent_orders_of_many_new_users_are_all_carried_out(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    users = [f"user{n % 10}" for n in range(40)]
    await asyncio.gather(*(database.orders.place(user, buy("1"), None) for user in users))
    assert {user: await held(database, user) for user in users} == {u: {"A": "4"} for u in users}


async def test_key_answers_the_same_order_again(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    orders_of_one = (database.orders.place("alice", buy("1.0", "11"), "key") for _ in range(20))
    placed = await asyncio.gather(*orders_of_one)
    assert len({p.order.id for p in placed}) == 1
    assert [p.new for p in placed].count(True) == 1
    assert {p.version for p in placed} == {1}
    # The same amounts, written otherwise.
    again = await database.orders.place("alice", buy("1", "11.00"), "key")
    assert (again.new, again.order) == (False, placed[0].order)
    assert await held(database) == {"A": "1.0"}
    assert (await database.portfolios.read("alice")).version == 1
    other = await database.orders.place("bob", buy("1.0", "11"), "key")
    assert other.new


async def test_key_of_another_order_is_refused(database: Database) -> None:
    await database.prices.write("A", Decimal(10))
    await database.prices.write("B", Decimal(10))
    await database.orders.place("alice", buy("1", "11"), "key")
    for other in (buy("2", "11"), buy("1", "12"), buy("1"), sell("1", "11"), buy("1", "11", "B")):
        with pytest.raises(KeyReused):
            await database.orders.place("alice", other, "key")
    assert await held(database) == {"A": "1"}


async def test_unknown_order_is_none(database: Database) -> None:
    assert await database.orders.read("00000000-0000-0000-0000-000000000000") is None


# Presence.


async def test_presence_is_what_was_last_said(database: Database) -> None:
    assert await database.presences.read("alice") is None
    await database.presences.write("alice", "online")
    said = await database.presences.write("alice", "away")
    assert (said.version, said.value.status) == (2, "away")
    assert await database.presences.read("alice") == said


# The database itself.


async def test_errors_and_reprs_show_no_parameters(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await database.sessions.create(ID, "alice", 60)
    with pytest.raises(IntegrityError) as caught:
        await database.sessions.create(ID, "mallory", 60)
    for text_ in (str(caught.value), repr(caught.value), caplog.text):
        assert "mallory" not in text_
        assert ID not in text_
    for text_ in (repr(database.engine), str(database.engine.url), repr(database.engine.pool)):
        assert PASSWORD not in text_
        assert "p%40ss" not in text_


@pytest.fixture
async def on_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A database whose statements wait for locks for a moment only."""
    monkeypatch.setattr(engine, "LOCK_TIMEOUT", 0.1)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/quantdesk.db")
    await database.open()
    yield database
    await database.close()


async def test_sqlite_lets_a_reader_and_a_writer_work_at_once(on_sqlite: Database) -> None:
    await on_sqlite.prices.write("A", Decimal(1))
    async with on_sqlite.engine.connect() as reader:
        await reader.exec_driver_sql("BEGIN")
        await reader.exec_driver_sql("SELECT * FROM prices")
        assert (await on_sqlite.prices.write("A", Decimal(2))).version == 2
    async with on_sqlite.engine.connect() as writer:
        await writer.exec_driver_sql("BEGIN IMMEDIATE")
        assert await on_sqlite.prices.read("A") is not None


async def test_sqlite_lets_writers_in_by_turns(on_sqlite: Database) -> None:
    writes = (on_sqlite.prices.write("A", Decimal(n)) for n in range(1, 201))
    written = await asyncio.gather(*writes)
    assert max(loaded.version for loaded in written) == 200


async def test_sqlite_keeps_references(on_sqlite: Database) -> None:
    with pytest.raises(IntegrityError):
        async with on_sqlite.engine.begin() as connection:
            await connection.execute(text("INSERT INTO positions VALUES ('nobody', 'A', '1')"))


async def test_sqlite_locked_by_another_program_is_an_error_in_time(
    on_sqlite: Database, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "quantdesk.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SQLAlchemyError, match="locked"):
            await on_sqlite.prices.write("A", Decimal(1))
        other.execute("ROLLBACK")
        assert (await on_sqlite.prices.write("A", Decimal(1))).version == 1
    finally:
        other.close()


async def fill_pool(database: Database) -> None:
    await asyncio.gather(*(database.prices.read("A") for _ in range(engine.POOL_SIZE)))


async def test_restarted_server_is_not_noticed(postgres: Postgres, on_postgres: Database) -> None:
    await on_postgres.prices.write("A", Decimal(1))
    await fill_pool(on_postgres)
    postgres.stop()
    postgres.start()
    reads = (on_postgres.prices.read("A") for _ in range(15))
    writes = (on_postgres.prices.write("A", Decimal(2)) for _ in range(5))
    await asyncio.gather(*reads, *writes)
    found = await on_postgres.prices.read("A")
    assert found is not None
    assert found.version == 6


async def test_stopped_server_is_an_error_at_once(
    postgres: Postgres, on_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_pool(on_postgres)
    # An error that is not at once would be one after these.
    for name in ("CONNECT_TIMEOUT", "HEALTH_TIMEOUT", "OPERATION_TIMEOUT"):
        monkeypatch.setattr(engine, name, 10 * HANG)
    postgres.stop()
    try:
        async with asyncio.timeout(HANG):
            with pytest.raises(SQLAlchemyError):
                await on_postgres.prices.read("A")
            with pytest.raises(SQLAlchemyError):
                await on_postgres.orders.place("alice", buy("1"), None)
            assert not await on_postgres.healthy()
    finally:
        postgres.start()
    assert await on_postgres.healthy()


async def test_frozen_server_is_an_error_in_time(
    postgres: Postgres, on_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_pool(on_postgres)
    # One after the other, on the connections that there are, forty would take four times as long.
    timeout = 2.0
    monkeypatch.setattr(engine, "OPERATION_TIMEOUT", timeout)
    with postgres.frozen(), monkeypatch.context() as hasty:
        hasty.setattr(engine, "HEALTH_TIMEOUT", 0.2)
        started = time.monotonic()
        reads = (on_postgres.prices.read("A") for _ in range(30))
        writes = (on_postgres.prices.write("A", Decimal(2)) for _ in range(10))
        outcomes = await asyncio.gather(*reads, *writes, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert 0.9 * timeout < time.monotonic() - started < 3 * timeout
        assert not await on_postgres.healthy()
    assert await on_postgres.healthy()


async def test_lost_connection_is_tried_again_before_the_commit_and_never_after(
    postgres: Postgres, on_postgres: Database
) -> None:
    """Shown on work that tells when it runs, and whose connection is ended under its feet."""
    await on_postgres.prices.write("A", Decimal(1))
    runs: list[str] = []

    async def lose(connection: AsyncConnection) -> None:
        pid = (await connection.execute(select(func.pg_backend_pid()))).scalar_one()
        await asyncio.to_thread(postgres.sql, f"SELECT pg_terminate_backend({pid}, 60000)")

    async def before(connection: AsyncConnection) -> None:
        runs.append("before")
        if len(runs) == 1:
            await lose(connection)
        await connection.execute(text("UPDATE prices SET version = version + 1"))

    await on_postgres.transactions.run(before)
    assert runs == ["before", "before"]

    async def after(connection: AsyncConnection) -> None:
        runs.append("after")
        await connection.execute(text("UPDATE prices SET version = version + 1"))
        await lose(connection)

    with pytest.raises(SQLAlchemyError):
        await on_postgres.transactions.run(after)
    assert runs == ["before", "before", "after"]
    found = await on_postgres.prices.read("A")
    assert found is not None
    assert found.version == 2


async def test_row_locked_by_another_is_an_error_in_time(
    on_postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await on_postgres.prices.write("A", Decimal(1))
    async with on_postgres.engine.begin() as other:
        await other.execute(text("UPDATE prices SET version = 7"))
        with monkeypatch.context() as hasty:
            hasty.setattr(engine, "OPERATION_TIMEOUT", 0.5)
            # The row is not let go before.
            async with asyncio.timeout(HANG / 2):
                with pytest.raises(SQLAlchemyError):
                    await on_postgres.prices.write("A", Decimal(2))
    assert (await on_postgres.prices.write("A", Decimal(2))).version == 8


async def answer_junk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def answer_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("answer", [answer_junk, answer_nothing])
@pytest.mark.parametrize("query", ["", "?sslmode=disable", "?sslmode=require"])
async def test_server_of_another_kind_is_an_error(answer: Answer, query: str) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(f"postgresql://quantdesk:hunter2@127.0.0.1:{port}/quantdesk{query}")
    try:
        with pytest.raises(SQLAlchemyError) as caught:
            await database.open()
        assert "hunter2" not in repr(caught.value)
        with pytest.raises(SQLAlchemyError):
            await database.prices.read("A")
        assert not await database.healthy()
    finally:
        await database.close()
        server.close()


# Where it is, and who may be behind that address.


async def secured(url: str) -> str:
    """Open the database; return by what its connection is secured."""
    database = Database(url)
    try:
        await database.open()
        async with database.engine.connect() as connection:
            query = text("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return str((await connection.execute(query)).scalar_one())
    finally:
        await database.close()


async def test_unix_socket_and_percent_encoded_parts(postgres: Postgres, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    folder = quote(str(postgres.folder), safe="")
    address = f"postgres://quantdesk@{folder}:{postgres.port}/{name}"
    assert await secured(address) == "None"
    postgres.sql(f'CREATE DATABASE "{name}/ü"')
    assert await secured(f"{postgres_url}%2F%C3%BC") == "None"
    with pytest.raises(SQLAlchemyError, match="password authentication failed"):
        await secured(postgres_url.replace("p%40ss", "p%41ss"))


async def test_tls_by_the_words_of_libpq(
    postgres: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    authority = Authority.make(tmp_path / "authority")
    stranger = Authority.make(tmp_path / "stranger")
    root, other = (f"sslrootcert={ca.ca_file}" for ca in (authority, stranger))
    with pytest.raises(SQLAlchemyError, match="rejected SSL"):
        await secured(f"{postgres_url}?sslmode=require")
    with postgres.tls(*authority.issue("server", LOOPBACK)):
        assert await secured(postgres_url) == "TLSv1.3"
        assert await secured(f"{postgres_url}?sslmode=disable") == "None"
        assert await secured(f"{postgres_url}?sslmode=require") == "TLSv1.3"
        assert await secured(f"{postgres_url}?sslmode=verify-full&{root}") == "TLSv1.3"
        for mode in (f"verify-full&{other}", f"verify-ca&{other}", "verify-full"):
            with pytest.raises(SQLAlchemyError, match="certificate verify failed"):
                await secured(f"{postgres_url}?sslmode={mode}")
    with postgres.tls(*authority.issue("elsewhere", x509.DNSName("db.example.net"))):
        assert await secured(f"{postgres_url}?sslmode=verify-ca&{root}") == "TLSv1.3"
        with pytest.raises(SQLAlchemyError, match="certificate verify failed"):
            await secured(f"{postgres_url}?sslmode=verify-full&{root}")


async def test_prices_that_come_together_are_committed_together(on_sqlite: Database) -> None:
    commits = []

    def count(_: object) -> None:
        commits.append(1)

    event.listen(on_sqlite.engine.sync_engine, "commit", count)
    writes = [on_sqlite.prices.write(f"S{n % 3}", Decimal(n + 1)) for n in range(300)]
    written = await asyncio.gather(*writes)
    assert 1 <= len(commits) <= 5
    for rest in range(3):
        mine = written[rest::3]
        # Each has a version and a moment of its own, in the order in which they were asked for.
        assert [loaded.version for loaded in mine] == list(range(1, 101))
        moments = [loaded.value.updated_at for loaded in mine]
        assert moments == sorted(set(moments))
        read = await on_sqlite.prices.read(f"S{rest}")
        assert read == mine[-1]

"""The migrations, on real databases of both kinds."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from conftest import HANG, until
from postgres import Postgres
from quantdesk.database import migrate
from quantdesk.database.database import Database, migrate_database
from quantdesk.database.engine import make_engine
from quantdesk.database.tables import metadata

# What the first release made, word for word but for the types that PostgreSQL got later.
LEGACY = """
CREATE TABLE prices (
    symbol VARCHAR(32) NOT NULL,
    price {decimal} NOT NULL,
    updated_at {moment} NOT NULL,
    PRIMARY KEY (symbol)
)
"""
LEGACY_ROWS = (
    "INSERT INTO prices VALUES ('BTC-USD', '50000.10', '2025-01-29 12:00:00.000000'), "
    "('ETH', '0.000000000000000001', '2025-01-29 12:00:00.000001')"
)
# How the first release goes on writing, after a way back.
LEGACY_WRITE = (
    "INSERT INTO prices (symbol, price, updated_at) "
    "VALUES ('{symbol}', '7.50', '2025-01-30 12:00:00.000000') ON CONFLICT (symbol) "
    "DO UPDATE SET price = excluded.price, updated_at = excluded.updated_at"
)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(database_url)
    yield engine
    await engine.dispose()


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


def legacy(engine: AsyncEngine) -> tuple[str, str]:
    postgresql = engine.dialect.name == "postgresql"
    types = ("NUMERIC", "TIMESTAMP WITH TIME ZONE") if postgresql else ("VARCHAR(64)", "DATETIME")
    return LEGACY.format(decimal=types[0], moment=types[1]), LEGACY_ROWS


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda c: inspect(c).get_table_names()))


async def revision(engine: AsyncEngine) -> str:
    async with engine.connect() as connection:
        query = text("SELECT version_num FROM alembic_version")
        found: str = (await connection.execute(query)).scalar_one()
        return found


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "quantdesk.database.migrate"]


def test_revisions_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", "quantdesk.database:migrations")
    script = ScriptDirectory.from_config(config)
    found = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(found)) == migrate.REVISIONS
    assert script.get_heads() == [migrate.HEAD]


async def test_migrated_database_is_what_the_tables_say(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    await migrate.upgrade(engine)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_database_of_the_first_release_is_taken_over(
    engine: AsyncEngine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(engine, *legacy(engine))
    database = Database(database_url)
    try:
        await database.open()
        assert lines(caplog) == ["Database migrated"]
        found = {symbol: await database.prices.read(symbol) for symbol in ("BTC-USD", "ETH")}
        kept = {s: p and (p.value.price, p.version) for s, p in found.items()}
        assert kept == {"BTC-USD": ("50000.10", 1), "ETH": ("0.000000000000000001", 1)}
        assert found["ETH"] is not None
        assert found["ETH"].value.updated_at.isoformat() == "2025-01-29T12:00:00.000001+00:00"
        assert (await database.prices.write("BTC-USD", Decimal(2))).version == 2
    finally:
        await database.close()


async def test_first_release_goes_on_with_a_migrated_database(
    engine: AsyncEngine, database_url: str
) -> None:
    await migrate.upgrade(engine)
    await execute(engine, *(LEGACY_WRITE.format(symbol=symbol) for symbol in ("OLD", "OLD")))
    database = Database(database_url)
    try:
        found = await database.prices.read("OLD")
        assert found is not None
        assert (found.value.price, found.version) == ("7.50", 1)
    finally:
        await database.close()


async def test_instances_that_start_at_once_migrate_once(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.gather(*(migrate_database(database_url) for _ in range(8)))
    assert lines(caplog) == ["Database migrated"]


async def test_database_of_a_newer_release_is_used_as_it_is(
    engine: AsyncEngine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate.upgrade(engine)
    await execute(engine, "UPDATE alembic_version SET version_num = '9999'")
    caplog.clear()
    database = Database(database_url)
    try:
        await database.open()
        assert (await database.prices.write("A", Decimal(1))).version == 1
    finally:
        await database.close()
    assert lines(caplog) == ["The database is of a newer release"]
    assert await revision(engine) == "9999"


async def test_start_without_anything_to_migrate_leaves_alembic_alone(database_url: str) -> None:
    await migrate_database(database_url)
    program = (
        "import asyncio, sys; from quantdesk.database.database import migrate_database;"
        f"asyncio.run(migrate_database({database_url!r})); sys.exit('alembic' in sys.modules)"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], timeout=HANG)
    assert done.returncode == 0


async def test_failed_migration_changes_nothing_and_says_why(engine: AsyncEngine) -> None:
    # In the way of the second revision, after the first has taken the prices over.
    await execute(engine, *legacy(engine), "CREATE TABLE orders (number INTEGER)")
    with pytest.raises(migrate.MigrationError, match=r"nothing to 0003 failed: .*orders"):
        await migrate.upgrade(engine)
    assert await tables(engine) == {"prices", "orders"}
    await execute(engine, LEGACY_WRITE.format(symbol="A"), "DROP TABLE orders")
    await migrate.upgrade(engine)
    assert await revision(engine) == migrate.HEAD


async def test_table_of_somebody_else_is_not_taken_over(engine: AsyncEngine) -> None:
    await execute(engine, "CREATE TABLE prices (article INTEGER, euros INTEGER)")
    with pytest.raises(migrate.MigrationError, match="not QuantDesk's"):
        await migrate.upgrade(engine)
    assert await tables(engine) == {"prices"}


async def test_migration_does_not_wait_behind_a_lock_for_long(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 1)
    engine = make_engine(postgres_url)
    try:
        await execute(engine, *legacy(engine))
        async with engine.connect() as reader:
            await reader.execute(text("SELECT * FROM prices"))
            with pytest.raises(migrate.MigrationError, match="lock timeout"):
                await migrate.upgrade(engine)
        await migrate.upgrade(engine)
        assert await revision(engine) == migrate.HEAD
    finally:
        await engine.dispose()


async def test_migration_waits_for_another_instances_and_no_longer(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "TURN_TIMEOUT", 1)
    engine = make_engine(postgres_url)

    async def lock(connection: AsyncConnection) -> None:
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({migrate.LOCK})"))

    try:
        async with engine.connect() as other:
            await lock(other)
            with pytest.raises(migrate.MigrationError, match="lock timeout"):
                await migrate.upgrade(engine)
            assert await tables(engine) == set()
            monkeypatch.setattr(migrate, "TURN_TIMEOUT", int(HANG))
            waiting = asyncio.create_task(migrate.upgrade(engine))
            waiters = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await until(lambda: postgres.sql(waiters) == "1")
            assert not waiting.done()
        await waiting
        assert await revision(engine) == migrate.HEAD
    finally:
        await engine.dispose()


async def test_file_that_is_no_database_is_an_error(database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        database_url += "-which-is-not-there"
    else:
        with open(database_url.removeprefix("sqlite+aiosqlite:///"), "wb") as file:  # noqa: ASYNC230  # a test's own
            file.write(b"this is not a database " * 100)
    with pytest.raises(SQLAlchemyError, match=r"not a database|does not exist"):
        await migrate_database(database_url)


async def test_alembic_logs_no_lines_of_its_own(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await migrate.upgrade(engine)
    assert [r.name for r in caplog.records if r.name.startswith("alembic.runtime.migration")] == []

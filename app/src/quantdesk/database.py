"""The source of truth: tables, the engine and the queries."""

import asyncio
import datetime as dt
from decimal import Decimal
from typing import Final, Protocol

import msgspec
from sqlalchemy import Column, DateTime, MetaData, String, Table, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.types import TypeDecorator

# Seconds. A health check must answer sooner than whoever asks for it gives up.
HEALTH_TIMEOUT: Final = 2.0
BUSY_TIMEOUT: Final = 5.0

_metadata = MetaData()


class Price(msgspec.Struct, frozen=True, rename="camel"):
    """A symbol's latest price.

    `price` is a decimal in plain notation, a string so that no reader rounds it to a float.
    """

    symbol: str
    price: str
    updated_at: dt.datetime


class ExactDecimal(TypeDecorator[Decimal]):
    """A decimal kept as text: SQLite's NUMERIC is a binary float, which loses digits."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        return None if value is None else format(value, "f")

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


_prices = Table(
    "prices",
    _metadata,
    Column("symbol", String(32), primary_key=True),
    Column("price", ExactDecimal, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


class Database:
    """Queries on the source of truth. Every method may raise SQLAlchemyError."""

    def __init__(self, url: str) -> None:
        # Parameters stay out of error texts: those reach the log.
        self.engine = create_async_engine(
            url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT}
        )
        event.listen(self.engine.sync_engine, "connect", _configure)

    async def open(self) -> None:
        """Create what tables are missing."""
        async with self.engine.begin() as connection:
            await connection.run_sync(_metadata.create_all)

    async def close(self) -> None:
        """Close the connections."""
        await self.engine.dispose()

    async def healthy(self) -> bool:
        """Tell whether the database answers a read of a table within HEALTH_TIMEOUT seconds."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT), self.engine.connect() as connection:
                await connection.execute(select(_prices.c.symbol).limit(1))
        except (SQLAlchemyError, OSError, TimeoutError):
            return False
        return True

    async def price(self, symbol: str) -> Price | None:
        """Return the latest price of `symbol`, None if it has none."""
        query = select(_prices.c.price, _prices.c.updated_at).where(_prices.c.symbol == symbol)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        # SQLite keeps no time zone; what was written is UTC.
        return Price(symbol, format(row.price, "f"), row.updated_at.replace(tzinfo=dt.UTC))

    async def set_price(self, symbol: str, price: Decimal) -> Price:
        """Write the price of `symbol`; return it as it will be read."""
        now = dt.datetime.now(dt.UTC)
        values = {"price": price, "updated_at": now}
        upsert = insert(_prices).values(symbol=symbol, **values)
        async with self.engine.begin() as connection:
            await connection.execute(
                upsert.on_conflict_do_update(index_elements=[_prices.c.symbol], set_=values)
            )
        return Price(symbol, format(price, "f"), now)


class _Cursor(Protocol):
    def execute(self, statement: str) -> object: ...
    def close(self) -> None: ...


class _Driver(Protocol):
    def cursor(self) -> _Cursor: ...


def _configure(connection: _Driver, _record: object) -> None:
    cursor = connection.cursor()
    # Readers and the writer do not block each other.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()

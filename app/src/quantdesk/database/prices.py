"""Prices: the latest of each symbol."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import func, literal_column, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from quantdesk.database import clock
from quantdesk.database.tables import prices
from quantdesk.database.transactions import AnyRow, Transactions, only
from quantdesk.database.versioned import Versioned
from quantdesk.decimals import plain

# Prices that are committed together at most.
PRICE_BATCH: Final = 500


class Price(msgspec.Struct, frozen=True, rename="camel"):
    """A symbol's latest price.

    `price` is a decimal in plain notation, a string so that no reader rounds it to a float. So are
    all prices, quantities and values of orders and portfolios.
    """

    symbol: str
    price: str
    updated_at: dt.datetime


@dataclass(frozen=True, slots=True)
class _PriceWrite:
    """A price that waits to be committed."""

    symbol: str
    price: Decimal
    written: "asyncio.Future[Versioned[Price]]"


class Prices:
    """Reads and writes prices."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._ticked = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._waiting: list[_PriceWrite] = []
        self._writer: asyncio.Task[None] | None = None

    async def read(self, symbol: str) -> Versioned[Price] | None:
        """Return the latest price of `symbol`, None if it has none."""
        query = select(prices.c.price, prices.c.updated_at, prices.c.version)
        row = only(await self._transactions.read(query.where(prices.c.symbol == symbol)))
        if row is None:
            return None
        return Versioned(Price(symbol, plain(row.price), row.updated_at), row.version)

    async def write(self, symbol: str, price: Decimal) -> Versioned[Price]:
        """Write the price of `symbol`; return it as it will be read.

        Writes that arrive while a commit is under way are committed together by the next one: the
        commit is the most expensive part of a write. Each still has a version of its own. Of two
        prices of a symbol the one written later has the later `updated_at`, even if the clocks of
        two instances differ.
        """
        written: asyncio.Future[Versioned[Price]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_PriceWrite(symbol, price, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="price-writer")
        return await written

    async def _write_all(self) -> None:
        while self._waiting:
            batch = self._waiting[:PRICE_BATCH]
            del self._waiting[:PRICE_BATCH]
            by_symbol: dict[str, list[_PriceWrite]] = {}
            for write in batch:
                by_symbol.setdefault(write.symbol, []).append(write)
            try:
                rows = await self._transactions.run(partial(self._upsert, by_symbol))
            except SQLAlchemyError as error:
                for write in batch:
                    if not write.written.done():
                        write.written.set_exception(error)
            except BaseException:
                for write in batch:
                    write.written.cancel()
                raise
            else:
                for row in rows:
                    _settle(by_symbol[row.symbol], row)

    async def _upsert(
        self, by_symbol: dict[str, list[_PriceWrite]], connection: AsyncConnection
    ) -> Sequence[AnyRow]:
        now = self._tick()
        # Only a symbol's last price is ever read; its version counts those before it. In order, so
        # that two instances don't wait for each other.
        values = [
            {
                "symbol": symbol,
                "price": writes[-1].price,
                "updated_at": now,
                "version": len(writes),
            }
            for symbol, writes in sorted(by_symbol.items())
        ]
        insert = self._transactions.insert(prices)
        new = insert.excluded
        statement = insert.on_conflict_do_update(
            index_elements=[prices.c.symbol],
            set_={
                "price": new.price,
                "updated_at": self._later(new.updated_at, prices.c.updated_at),
                "version": prices.c.version + new.version,
            },
        ).returning(prices.c.symbol, prices.c.version, prices.c.updated_at)
        return (await connection.execute(statement, values)).all()

    def _tick(self) -> dt.datetime:
        """Return the time, or PRICE_BATCH microseconds after the last one if that is later.

        So each price of one symbol in a batch has a time of its own.
        """
        self._ticked = max(clock.now(), self._ticked + dt.timedelta(microseconds=PRICE_BATCH))
        return self._ticked

    def _later(self, new: Any, old: Any) -> Any:  # noqa: ANN401  # expressions
        if self._transactions.postgresql:
            return func.greatest(
                new, old + literal_column(f"interval '{PRICE_BATCH} microseconds'")
            )
        # Times are text there. One process writes after another, so two at the same time are rare.
        return func.max(new, old)


def _settle(writes: list[_PriceWrite], row: AnyRow) -> None:
    """Answer the writes of one symbol that were committed together, in the order they came in."""
    for before, write in enumerate(reversed(writes)):
        # A time of its own for each, as if they had been committed one after another.
        updated_at = row.updated_at - before * dt.timedelta(microseconds=1)
        price = Price(write.symbol, plain(write.price), updated_at)
        if not write.written.done():
            write.written.set_result(Versioned(price, row.version - before))

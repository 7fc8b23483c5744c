"""Portfolios: what a user's orders amount to, at the latest prices."""

from decimal import Decimal

import msgspec
from sqlalchemy import select

from quantdesk.database.tables import accounts, positions, prices
from quantdesk.database.transactions import Transactions
from quantdesk.database.versioned import Versioned
from quantdesk.decimals import EXACT, plain, short


class Position(msgspec.Struct, frozen=True, rename="camel"):
    """What a user holds of a symbol. `value` is `quantity` times the latest `price`, exactly."""

    symbol: str
    quantity: str
    price: str
    value: str


class Portfolio(msgspec.Struct, frozen=True, rename="camel"):
    """All that a user holds, by symbol."""

    user: str
    positions: list[Position]
    total_value: str


class Portfolios:
    """Reads portfolios."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def read(self, user: str) -> Versioned[Portfolio]:
        """Return what the user holds; its version is 0 until the first order."""
        # One statement, so that version and positions are of one moment.
        query = (
            select(accounts.c.version, positions.c.symbol, positions.c.quantity, prices.c.price)
            .select_from(accounts)
            .outerjoin(positions, positions.c.user_name == accounts.c.user_name)
            .outerjoin(prices, prices.c.symbol == positions.c.symbol)
            .where(accounts.c.user_name == user)
            .order_by(positions.c.symbol)
        )
        rows = await self._transactions.read(query)
        held = [row for row in rows if row.symbol is not None]
        values = [EXACT.multiply(row.quantity, row.price) for row in held]
        total = Decimal(0)
        for value in values:
            total = EXACT.add(total, value)
        portfolio = Portfolio(
            user,
            [
                Position(row.symbol, plain(row.quantity), plain(row.price), short(value))
                for row, value in zip(held, values, strict=True)
            ],
            short(total),
        )
        return Versioned(portfolio, rows[0].version if rows else 0)

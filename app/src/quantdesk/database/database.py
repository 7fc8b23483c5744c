"""The source of truth: a database, opened, and what is kept in it by subject."""

from typing import Final

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from quantdesk.database import engine, migrate
from quantdesk.database.orders import Orders
from quantdesk.database.portfolios import Portfolios
from quantdesk.database.presences import Presences
from quantdesk.database.prices import Prices
from quantdesk.database.sessions import Sessions
from quantdesk.database.tables import prices
from quantdesk.database.transactions import Transactions, unavailable


class Database:
    """One database. Every method of it and its subjects may raise SQLAlchemyError."""

    def __init__(self, url: str) -> None:
        self.engine: Final = engine.make_engine(url)
        self.transactions: Final = Transactions(self.engine)
        self.prices: Final = Prices(self.transactions)
        self.sessions: Final = Sessions(self.transactions)
        self.orders: Final = Orders(self.transactions)
        self.portfolios: Final = Portfolios(self.transactions)
        self.presences: Final = Presences(self.transactions)

    async def open(self) -> None:
        """Bring the tables to this release's revision."""
        try:
            if not self.transactions.postgresql:
                await engine.write_ahead(self.engine)
            await migrate.upgrade(self.engine)
            await self.sessions.look_for_old()
        except (OSError, TimeoutError) as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self.engine.dispose()

    async def healthy(self) -> bool:
        """Return whether the database answers a read of a table within HEALTH_TIMEOUT seconds."""
        try:
            query = select(prices.c.symbol).limit(1)
            await self.transactions.read(query, within=engine.HEALTH_TIMEOUT)
        except SQLAlchemyError:
            return False
        return True


async def migrate_database(url: str) -> None:
    """Bring the database's tables to this release's revision.

    Raises:
        SQLAlchemyError: it can't be reached (Unavailable), or not be migrated (MigrationError).
    """
    database = Database(url)
    try:
        await database.open()
    finally:
        await database.close()

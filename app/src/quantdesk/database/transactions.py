"""Reads and transactions, each within its time, and repeated once if the connection was lost."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Row, Select, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from quantdesk.database import engine as limits

T = TypeVar("T")
AnyRow: TypeAlias = Row[*tuple[Any, ...]]
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyInsert: TypeAlias = postgresql.Insert | sqlite.Insert
Work: TypeAlias = Callable[[AsyncConnection], Awaitable[T]]


class Unavailable(SQLAlchemyError):
    """The database can't be reached, or did not answer in time.

    Whether a change that was under way is committed is then not known.
    """


class Transactions:
    """Runs statements on one database, in the dialect that it has.

    An operation takes OPERATION_TIMEOUT seconds at most. One that finds its connection lost before
    anything could be committed is tried once more on a new one, so that a restarted PostgreSQL is
    not noticed.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.postgresql: Final = engine.dialect.name == "postgresql"
        # A query alone needs no transaction: in PostgreSQL, that would be two more round trips.
        self._reader = (
            engine.execution_options(isolation_level="AUTOCOMMIT") if self.postgresql else engine
        )
        # SQLite admits one writer at a time, but in no order: some would wait until they fail.
        self._writing: AbstractAsyncContextManager[Any] = (
            nullcontext() if self.postgresql else asyncio.Lock()
        )

    async def read(self, query: AnySelect, within: float | None = None) -> Sequence[AnyRow]:
        """Return the rows of a query, within so many seconds if not those of an operation."""

        async def fetch(connection: AsyncConnection) -> Sequence[AnyRow]:
            return (await connection.execute(query)).all()

        return await limited(_attempt(self._reader, fetch), within or limits.OPERATION_TIMEOUT)

    async def run(self, work: Work[T]) -> T:
        """Run `work` in a transaction, which is committed when it returns."""

        async def in_turn() -> T:
            async with self._writing:
                return await _attempt(self._engine, work)

        return await limited(in_turn(), limits.OPERATION_TIMEOUT)

    def insert(self, table: Table) -> AnyInsert:
        """Return an insert statement that accepts an `on_conflict` clause."""
        return postgresql.insert(table) if self.postgresql else sqlite.insert(table)

    async def upsert(
        self,
        connection: AsyncConnection,
        table: Table,
        key: dict[str, Any],
        values: dict[str, Any],
    ) -> int:
        """Write a row, make its version one more than it was, and return that."""
        insert = self.insert(table).values(**key, **values, version=1)
        statement = insert.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={**values, "version": table.c.version + 1},
        ).returning(table.c.version)
        version: int = (await connection.execute(statement)).scalar_one()
        return version


def only(rows: Sequence[AnyRow]) -> AnyRow | None:
    """Return the one row, None if there is none."""
    return rows[0] if rows else None


async def _attempt(engine: AsyncEngine, work: Work[T]) -> T:
    for last in (False, True):
        async with engine.connect() as connection:
            try:
                result = await work(connection)
            except DBAPIError as error:
                # The pool has let go of all connections from before; the next one is new. What
                # fails later, at the commit, is never repeated: it may have taken effect.
                if last or not error.connection_invalidated:
                    raise
            else:
                await connection.commit()
                return result
    raise AssertionError("the second attempt either returns or raises")


async def limited(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what `work` does; raises Unavailable if it takes longer, or for an OSError."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (OSError, TimeoutError) as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> Unavailable:
    """Return the error that callers get for a time-out or an OSError."""
    if isinstance(error, TimeoutError):
        return Unavailable("The database did not answer in time")
    return Unavailable(str(error) or type(error).__name__)

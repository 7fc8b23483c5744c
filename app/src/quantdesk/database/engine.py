"""The connections to PostgreSQL or SQLite, and how long a server may take."""

import asyncio
from typing import Final, Protocol

import asyncpg  # type: ignore[import-untyped]  # ships no types
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from quantdesk.database.postgres_address import parse_address

# Seconds. A health check must answer before its caller gives up, and an operation before its own.
# Within an operation's time a database's own limits come first, so that it can report what is
# wrong.
HEALTH_TIMEOUT: Final = 2.0
OPERATION_TIMEOUT: Final = 5.0
CONNECT_TIMEOUT: Final = 3.0
STATEMENT_TIMEOUT: Final = 4.0
LOCK_TIMEOUT: Final = 3.0
# Seconds that closing a connection to a silent server may take, on top of the others.
CLOSE_TIMEOUT: Final = 0.3

# Connections of one process: those that stay, and those that a burst may add. SQLite has one
# writer at a time whatever their number.
POOL_SIZE: Final = 10
POOL_BURST: Final = 10
SQLITE_POOL_SIZE: Final = 5


def make_engine(url: str) -> AsyncEngine:
    """Return an engine for DATABASE_URL as the settings have checked it."""
    address = parse_address(url)
    if address is None:
        engine = create_async_engine(
            url,
            connect_args={"timeout": LOCK_TIMEOUT},
            pool_size=SQLITE_POOL_SIZE,
            max_overflow=0,
            pool_timeout=OPERATION_TIMEOUT,
            # Parameters stay out of error texts: those reach the log.
            hide_parameters=True,
        )
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        return engine
    return create_async_engine(
        # The rest is passed on beside the URL, so that nothing can show a password in it.
        "postgresql+asyncpg://",
        connect_args={
            "host": address.host,
            "port": address.port,
            "user": address.user,
            "password": address.password,
            "database": address.database,
            "ssl": address.tls(),
            "timeout": CONNECT_TIMEOUT,
            "connection_class": _Connection,
            "server_settings": {
                "application_name": "quantdesk",
                "statement_timeout": _milliseconds(STATEMENT_TIMEOUT),
                "lock_timeout": _milliseconds(LOCK_TIMEOUT),
                # If this process dies without closing its connections, its locks are freed soon.
                "idle_in_transaction_session_timeout": _milliseconds(2 * OPERATION_TIMEOUT),
                # Compiling costs more than such short queries take.
                "jit": "off",
            },
        },
        pool_size=POOL_SIZE,
        max_overflow=POOL_BURST,
        pool_timeout=OPERATION_TIMEOUT,
        # The connection used last is taken first, so that those of a burst become idle and close.
        pool_use_lifo=True,
        hide_parameters=True,
    )


async def write_ahead(engine: AsyncEngine) -> None:
    """Have SQLite keep a write-ahead log, so that readers and the writer don't block each other.

    The file remembers it. Of instances that start at once on a new file, all but one find it
    locked, and here SQLite does not wait by itself.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_TIMEOUT
    while True:
        try:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except OperationalError as error:
            if "locked" not in str(error.orig) or loop.time() > deadline:
                raise
            await asyncio.sleep(0.01)
        else:
            return


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # its base has no types
    """A connection whose close takes CLOSE_TIMEOUT seconds at most."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # the base's
        """Close in an orderly way within CLOSE_TIMEOUT seconds, else at once."""
        await super().close(timeout=min(timeout or CLOSE_TIMEOUT, CLOSE_TIMEOUT))


class _Cursor(Protocol):
    def execute(self, statement: str) -> object: ...
    def close(self) -> None: ...


class _Driver(Protocol):
    def cursor(self) -> _Cursor: ...


def _configure_sqlite(connection: _Driver, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))

"""Bringing the database to this release's revision, however many instances start at once."""

import asyncio
import logging
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = logging.getLogger(__name__)

# All revisions that this release knows, oldest first. They are named here as well, so that an
# ordinary start need not import Alembic to learn that there is nothing to do.
REVISIONS: Final = ("0001", "0002", "0003")
HEAD: Final = REVISIONS[-1]

# Seconds: that an instance waits for another one's migration, that a statement waits for the locks
# of requests, that a statement takes, and that all of it takes.
TURN_TIMEOUT: Final = 60
LOCK_TIMEOUT: Final = 5
STATEMENT_TIMEOUT: Final = 120
TIMEOUT: Final = 300.0

# The advisory lock in PostgreSQL; any number that no other program uses.
LOCK: Final = 0x7164_6D69_6772

_version = table("alembic_version", column("version_num"))


class MigrationError(SQLAlchemyError):
    """The database could not be migrated to this release's revision; it is unchanged."""


async def upgrade(engine: AsyncEngine) -> None:
    """Run the migrations that are missing, all of them or none.

    A database of a revision unknown to this release was migrated by a newer one. It is used as it
    is: revisions only add, so that the release before goes on with it.

    Raises:
        MigrationError: a migration failed, or its turn did not come in time.
        SQLAlchemyError, OSError, TimeoutError: the database can't be read.
    """
    async with engine.connect() as connection:
        found = await connection.run_sync(_revision)
    if found == HEAD:
        return
    if not _older(found):
        log.warning("The database is of a newer release", extra={"revision": found})
        return
    try:
        async with asyncio.timeout(TIMEOUT), engine.begin() as connection:
            await _take_turn(connection)
            found = await connection.run_sync(_revision)
            # Another instance may have migrated meanwhile.
            if not _older(found) or found == HEAD:
                return
            await connection.run_sync(_migrate)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise MigrationError(
            f"Migration from {found or 'nothing'} to {HEAD} failed: {_why(error)}"
        ) from error
    log.info("Database migrated", extra={"from_revision": found, "to_revision": HEAD})


def _older(revision: str | None) -> bool:
    return revision is None or revision in REVISIONS


def _revision(connection: Connection) -> str | None:
    """Return the revision that the database is at, None if no migration ever ran."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(select(_version.c.version_num)).scalars().all()
    return ", ".join(sorted(found)) or None


async def _take_turn(connection: AsyncConnection) -> None:
    """Lock other instances' migrations out until the transaction ends."""
    if connection.dialect.name == "sqlite":
        # Waits for other writers as long as the connection's busy timeout says.
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    await _limit(connection, "statement_timeout", STATEMENT_TIMEOUT)
    await _limit(connection, "lock_timeout", TURN_TIMEOUT)
    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    # A statement that waits for a lock delays all later requests: it is better to fail soon.
    await _limit(connection, "lock_timeout", LOCK_TIMEOUT)


async def _limit(connection: AsyncConnection, name: str, seconds: int) -> None:
    setting = {"name": name, "value": f"{seconds}s"}
    await connection.execute(text("SELECT set_config(:name, :value, true)"), setting)


def _migrate(connection: Connection) -> None:
    # Only here: they take a tenth of a second, and most starts have nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    # Alembic would log eight lines for the one line below.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", "quantdesk.database:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(str(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"not within {TIMEOUT:.0f} s"
    return str(error.args[0] if error.args else error).strip() or type(error).__name__

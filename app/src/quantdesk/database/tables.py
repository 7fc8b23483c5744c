"""The tables, as the newest migration leaves them."""

import datetime as dt
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    UniqueConstraint,
    Uuid,
    false,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata: Final = MetaData()


class ExactDecimal(TypeDecorator[Decimal]):
    """A decimal that keeps every digit, and the zeros at its end.

    It is text in SQLite, whose NUMERIC is a binary float. PostgreSQL's NUMERIC without a scale
    keeps the scale of each value.
    """

    impl = String(64)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column's type there."""
        postgresql = dialect.name == "postgresql"
        return dialect.type_descriptor(Numeric() if postgresql else String(64))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:  # noqa: ANN401  # of the driver's type
        """Return what the driver is given."""
        return value if value is None or dialect.name == "postgresql" else format(value, "f")

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ANN401  # of the driver's type
        """Return the decimal that the driver's value stands for."""
        return None if value is None else Decimal(value)


class Moment(TypeDecorator[dt.datetime]):
    """A time in UTC. SQLite keeps no time zone, so it is taken off and put on here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Return the time in UTC."""
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(
        self, value: dt.datetime | None, dialect: Dialect
    ) -> dt.datetime | None:
        """Return the time with its zone."""
        return None if value is None else value.replace(tzinfo=dt.UTC)


def _user(*constraints: ForeignKey, primary_key: bool = False) -> Column[str]:
    # Not `user`: a reserved word in PostgreSQL.
    return Column("user_name", String(64), *constraints, primary_key=primary_key, nullable=False)


# `version` grows by one with each change of its row: the cache finds the newer of two by it.
prices: Final = Table(
    "prices",
    metadata,
    Column("symbol", String(32), primary_key=True),
    Column("price", ExactDecimal, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("version", BigInteger, nullable=False, server_default="1"),
)

# Only the SHA-256 of a session's id is kept: a reader of this table can't take a session over.
sessions: Final = Table(
    "sessions",
    metadata,
    Column("id_hash", LargeBinary(32), primary_key=True),
    _user(),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False, index=True),
    # Whether its cookie is bound to the host by its name, which releases before 0003 did not do.
    Column("host_cookie", Boolean, nullable=False, server_default=false()),
)

# Assertions that have begun a session, by their SHA-256: each may do so once.
assertions: Final = Table(
    "assertions",
    metadata,
    Column("digest", LargeBinary(32), primary_key=True),
    Column("forget_after", Moment, nullable=False, index=True),
)

# One row per user who has traded. A write of it is the lock on the user's positions and orders.
accounts: Final = Table(
    "accounts",
    metadata,
    _user(primary_key=True),
    Column("version", BigInteger, nullable=False),
)

positions: Final = Table(
    "positions",
    metadata,
    _user(ForeignKey("accounts.user_name"), primary_key=True),
    Column("symbol", String(32), ForeignKey("prices.symbol"), primary_key=True),
    Column("quantity", ExactDecimal, nullable=False),
)

orders: Final = Table(
    "orders",
    metadata,
    Column("id", Uuid, primary_key=True),
    _user(ForeignKey("accounts.user_name")),
    Column("symbol", String(32), ForeignKey("prices.symbol"), nullable=False),
    Column("side", String(8), nullable=False),
    Column("quantity", ExactDecimal, nullable=False),
    Column("limit_price", ExactDecimal),
    Column("price", ExactDecimal, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("idempotency_key", String(64)),
    UniqueConstraint("user_name", "idempotency_key", name="orders_of_one_key"),
)

presence: Final = Table(
    "presence",
    metadata,
    _user(primary_key=True),
    Column("status", String(16), nullable=False),
    Column("seen_at", Moment, nullable=False),
    Column("version", BigInteger, nullable=False),
)

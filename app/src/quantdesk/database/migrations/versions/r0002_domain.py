"""Versions of prices; sessions, accounts, positions, orders and presence."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _decimal() -> sa.String:
    return sa.String(64).with_variant(sa.Numeric(), "postgresql")


def upgrade() -> None:
    """Add them; a release that knows of prices alone goes on with its three columns."""
    op.add_column(
        "prices", sa.Column("version", sa.BigInteger(), nullable=False, server_default="1")
    )
    op.create_table(
        "sessions",
        sa.Column("id_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("user_name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "accounts",
        sa.Column("user_name", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "positions",
        sa.Column(
            "user_name", sa.String(64), sa.ForeignKey("accounts.user_name"), primary_key=True
        ),
        sa.Column("symbol", sa.String(32), sa.ForeignKey("prices.symbol"), primary_key=True),
        sa.Column("quantity", _decimal(), nullable=False),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_name", sa.String(64), sa.ForeignKey("accounts.user_name"), nullable=False),
        sa.Column("symbol", sa.String(32), sa.ForeignKey("prices.symbol"), nullable=False),
        sa.Column("side", sa.String(8), nullable=False),
        sa.Column("quantity", _decimal(), nullable=False),
        sa.Column("limit_price", _decimal()),
        sa.Column("price", _decimal(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(64)),
        sa.UniqueConstraint("user_name", "idempotency_key", name="orders_of_one_key"),
    )
    op.create_table(
        "presence",
        sa.Column("user_name", sa.String(64), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )

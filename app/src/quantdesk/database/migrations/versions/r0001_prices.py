"""The prices, as the releases before migrations made them."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None

COLUMNS = {"symbol", "price", "updated_at"}


def upgrade() -> None:
    """Make the table, or take over the one that is there.

    Raises:
        CommandError: a table of this name is there, but not such a one.
    """
    inspector = sa.inspect(op.get_bind())
    if inspector.has_table("prices"):
        found = {column["name"] for column in inspector.get_columns("prices")}
        if found != COLUMNS:
            raise CommandError("The database has a table prices that is not QuantDesk's")
        return
    op.create_table(
        "prices",
        sa.Column("symbol", sa.String(32), primary_key=True),
        sa.Column("price", sa.String(64).with_variant(sa.Numeric(), "postgresql"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    )

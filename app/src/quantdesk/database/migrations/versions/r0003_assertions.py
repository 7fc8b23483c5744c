"""Assertions that were used, and which sessions have a cookie that is bound to the host."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add them; the release before goes on, and its sessions are told apart by the default."""
    op.add_column(
        "sessions",
        sa.Column("host_cookie", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "assertions",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("forget_after", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_assertions_forget_after", "assertions", ["forget_after"])

"""Prices that people have set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "set_prices",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("rates", sa.Text, nullable=False),
        sa.Column("set_by", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )

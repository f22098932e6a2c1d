"""Several credentials for each upstream, with a name, an order and a status; those of custom
providers stand with the others."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.rename_table("credentials", "earlier_credentials")
    op.create_table(
        "credentials",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id"), nullable=False),
        sa.Column("upstream", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    if not context.is_offline_mode():  # In a new database there are none.
        _move()
    op.drop_table("earlier_credentials")
    op.drop_column("custom_providers", "sealed")
    op.create_index("ix_credentials_organisation", "credentials", ["organisation"])
    op.execute("UPDATE custom_providers SET status = 'disabled' WHERE status <> 'active'")


def _move() -> None:
    """They stay sealed as they are: who migrates has no key. So nobody knows their last four
    characters until they are sealed again."""
    connection = op.get_bind()
    earlier = connection.execute(
        sa.text(
            "SELECT organisation, upstream, sealed, created FROM earlier_credentials"
            " UNION ALL"
            " SELECT organisation, id, sealed, created FROM custom_providers"
            " WHERE sealed IS NOT NULL"
        )
    )
    statement = sa.text(
        "INSERT INTO credentials (id, organisation, upstream, name, priority, status, shown,"
        " version, sealed, created)"
        " VALUES (:id, :organisation, :upstream, '', 0, 'active', '', 1, :sealed, :created)"
    )
    rows = [{"id": f"cred_{secrets.token_hex(8)}", **row._mapping} for row in earlier]
    if rows:
        connection.execute(statement, rows)

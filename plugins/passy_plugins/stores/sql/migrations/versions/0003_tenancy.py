"""Tenancy: teams, users, members; limits, models and budgets on each level; alerts; changes.

A key's usage limit becomes what it always meant: a hard budget in dollars, for good.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _levels()
    _keys()
    _budgets()
    _usage()
    op.create_table(
        "changes",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_changes_at", "changes", ["at"])


def _limits() -> tuple[sa.Column[str] | sa.Column[int], ...]:
    return (
        sa.Column("requests", sa.Text),
        sa.Column("tokens", sa.Text),
        sa.Column("concurrency", sa.Integer),
        sa.Column("models", sa.Text),
    )


def _levels() -> None:
    active = sa.Column("status", sa.Text, nullable=False, server_default="active")
    own_first = sa.Column("byok", sa.Text, nullable=False, server_default="own_first")
    for column in (active, *_limits(), own_first):
        op.add_column("organisations", column)
    op.create_table(
        "teams",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        *_limits(),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_teams_organisation", "teams", ["organisation"])
    op.create_table(
        "users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("email", sa.Text, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        *_limits(),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "members",
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id"), primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_members_user_id", "members", ["user_id"])


def _keys() -> None:
    # By hand: alembic knows no way to say it for both, and each of them understands this.
    op.execute("ALTER TABLE keys ADD COLUMN team TEXT REFERENCES teams (id)")
    op.add_column("keys", sa.Column("tags", sa.Text, nullable=False, server_default=""))
    for name in ("networks", "upstreams"):
        op.add_column("keys", sa.Column(name, sa.Text))
    op.add_column("keys", sa.Column("old_digest", sa.LargeBinary))
    for name in ("old_until", "deleted"):
        op.add_column("keys", sa.Column(name, sa.BigInteger))
    op.add_column("keys", sa.Column("created_by", sa.Text))
    op.create_index("ix_keys_team", "keys", ["team"])
    op.create_index("ix_keys_old_digest", "keys", ["old_digest"], unique=True)


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("hard", sa.Boolean, nullable=False),
        sa.Column("alerts", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_budgets_subject", "budgets", ["subject", "kind"])
    op.execute(
        "INSERT INTO budgets (id, kind, subject, unit, amount, period, hard, alerts, created)"
        " SELECT 'bud_' || id, 'key', id, 'usd', CAST(round(usage_limit * 1000000000) AS BIGINT),"
        " 'total', true, '[]', created FROM keys WHERE usage_limit IS NOT NULL"
    )
    op.drop_column("keys", "usage_limit")
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id")),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("events", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_webhooks_organisation", "webhooks", ["organisation"])
    op.create_table(
        "alerts_sent",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("window", sa.Text, primary_key=True),
        sa.Column("percent", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("sent", sa.BigInteger),
    )


def _usage() -> None:
    for name in ("team", "user_id", "tags"):
        op.add_column("usage", sa.Column(name, sa.Text, nullable=False, server_default=""))
    for name in ("team", "user_id"):
        named = sa.text(f"{name} <> ''")
        op.create_index(
            f"ix_usage_{name}_at",
            "usage",
            [name, "at"],
            sqlite_where=named,
            postgresql_where=named,
        )

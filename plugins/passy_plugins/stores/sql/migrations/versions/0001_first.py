"""Organisations, keys, their own providers and credentials, usage.

Written out, not taken from ``schema.py``: a migration stays what it was when the schema moves on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    _keys()
    _own_providers()
    _usage()
    op.create_table(
        "marks",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("shown", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id")),
        sa.Column("user_id", sa.Text),
        sa.Column("requests", sa.Text),
        sa.Column("tokens", sa.Text),
        sa.Column("concurrency", sa.Integer),
        sa.Column("models", sa.Text),
        sa.Column("usage_limit", sa.Float),
        sa.Column("is_test", sa.Boolean, nullable=False),
        sa.Column("is_trial", sa.Boolean, nullable=False),
        sa.Column("expires", sa.BigInteger),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_keys_organisation", "keys", ["organisation"])
    op.create_index("ix_keys_user_id", "keys", ["user_id"])


def _own_providers() -> None:
    op.create_table(
        "custom_providers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("dialect", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sealed", sa.Text),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_custom_providers_organisation", "custom_providers", ["organisation"])
    op.create_table(
        "credentials",
        sa.Column("organisation", sa.Text, sa.ForeignKey("organisations.id"), primary_key=True),
        sa.Column("upstream", sa.Text, primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )


def _usage() -> None:
    texts = ("key_id", "organisation", "route", "model", "upstream", "upstream_model", "outcome")
    tokens = (
        "input",
        "output",
        "cached",
        "cache_write",
        "reasoning",
        "audio_input",
        "audio_output",
    )
    op.create_table(
        "usage",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("streamed", sa.SmallInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in tokens),
        sa.Column("estimated", sa.SmallInteger, nullable=False),
        sa.Column("cost_nanos", sa.BigInteger),
        sa.Column("price", sa.Text, nullable=False),
        sa.Column("first_ms", sa.Integer, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Text, nullable=False),
    )
    op.create_index("ix_usage_at", "usage", ["at"])
    for column in ("key_id", "organisation"):
        named = sa.text(f"{column} <> ''")
        op.create_index(
            f"ix_usage_{column}_at",
            "usage",
            [column, "at"],
            sqlite_where=named,
            postgresql_where=named,
        )

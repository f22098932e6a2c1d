"""On PostgreSQL the sums are told apart by a digest: an index takes no entry above 2,704 bytes
there, and sixteen long tags beside long names are more. See ``sums.APART``."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TEXTS = (
    *("key_id", "organisation", "team", "user_id", "model", "upstream", "tags", "route"),
    *("upstream_model", "price", "outcome", "status::text"),
)


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    digest = " || ',' || ".join(f"quote_literal({name})" for name in TEXTS)
    for table in ("usage_hours", "usage_days"):
        op.execute(f"CREATE UNIQUE INDEX uq_{table} ON {table} (start, md5({digest}))")
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")

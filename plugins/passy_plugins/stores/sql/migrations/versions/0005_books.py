"""Sums of usage by the hour and by the day; on PostgreSQL a part of usage for each day.

There is one for each day that has records, and for those to come: a gateway of the version before
makes none. Nothing is added up here: what is in the books is marked as not summed, and the gateway
adds it, a piece at a time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DIMENSIONS = ("key_id", "organisation", "team", "user_id", "model", "upstream", "tags", "outcome")
SUMS = (
    *("requests", "streamed", "estimated", "unpriced"),
    *("input", "output", "cached", "cache_write", "reasoning", "audio_input", "audio_output"),
    *("cost_nanos", "first_ms", "duration_ms"),
)
SUBJECTS = ("key_id", "organisation", "team", "user_id")


def upgrade() -> None:
    for table in ("usage_hours", "usage_days"):
        op.create_table(
            table,
            sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
            *(sa.Column(name, sa.Text, primary_key=True) for name in DIMENSIONS),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in SUMS),
            sqlite_with_rowid=False,
        )
        for column in SUBJECTS:
            named = sa.text(f"{column} <> ''")
            op.create_index(
                f"ix_{table}_{column}_start",
                table,
                [column, "start"],
                sqlite_where=named,
                postgresql_where=named,
            )
    op.add_column("usage", sa.Column("summed", sa.SmallInteger, nullable=False, server_default="0"))
    if op.get_context().dialect.name == "postgresql":
        _partition()
    alone = sa.text("summed = 0")
    op.create_index(
        "ix_usage_summed_at",
        "usage",
        ["summed", "at"],
        sqlite_where=alone,
        postgresql_where=alone,
    )


def _partition() -> None:
    op.execute("ALTER TABLE usage RENAME TO whole_usage")
    op.execute("CREATE TABLE usage (LIKE whole_usage INCLUDING DEFAULTS) PARTITION BY RANGE (at)")
    op.execute(
        """
DO $$
DECLARE day BIGINT;
BEGIN
  FOR day IN
    SELECT at / 86400000 FROM whole_usage
    UNION SELECT generate_series(-1, 6) + extract(epoch FROM now())::bigint / 86400
  LOOP
    EXECUTE format(
      'CREATE TABLE %I PARTITION OF usage FOR VALUES FROM (%s) TO (%s)',
      'usage_' || to_char(DATE '1970-01-01' + day::int, 'YYYYMMDD'),
      day * 86400000, (day + 1) * 86400000
    );
  END LOOP;
  INSERT INTO usage SELECT * FROM whole_usage;
END $$
"""
    )
    op.drop_table("whole_usage")
    op.execute("ALTER TABLE usage ADD CONSTRAINT usage_pkey PRIMARY KEY (id, at)")
    op.create_index("ix_usage_at", "usage", ["at"])
    for column in SUBJECTS:
        op.create_index(
            f"ix_usage_{column}_at",
            "usage",
            [column, "at"],
            postgresql_where=sa.text(f"{column} <> ''"),
        )

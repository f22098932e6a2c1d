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

DIMENSIONS = (
    *("key_id", "organisation", "team", "user_id", "model", "upstream", "tags", "route"),
    *("upstream_model", "price", "outcome", "status"),
)
SUMS = (
    *("requests", "streamed", "estimated", "unpriced", "saved"),
    *("within_10", "within_25", "within_50", "within_100", "within_150", "within_250"),
    *("within_400", "within_600", "within_1000", "within_1500", "within_2500", "within_4000"),
    *("within_6000", "within_10000", "within_30000"),
    *("input", "output", "cached", "cache_write", "reasoning", "audio_input", "audio_output"),
    *("cost_nanos", "first_ms", "duration_ms"),
)
SUBJECTS = ("key_id", "organisation", "team", "user_id")


def upgrade() -> None:
    for table in ("usage_hours", "usage_days"):
        op.create_table(
            table,
            sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
            *(
                sa.Column(
                    name,
                    sa.Integer if name == "status" else sa.Text,
                    primary_key=True,
                    autoincrement=False,
                )
                for name in DIMENSIONS
            ),
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
    if op.get_context().dialect.name == "postgresql":
        _partition()
        return
    op.add_column("usage", sa.Column("summed", sa.SmallInteger, nullable=False, server_default="0"))
    op.create_index("ix_usage_summed_at", "usage", ["summed", "at"], sqlite_where=ALONE)


ALONE = sa.text("summed = 0")


def _partition() -> None:
    """Another table is made, filled and indexed while gateways go on writing to the one there is.
    Only while it follows what they wrote meanwhile they wait: for one look through the old one."""
    op.execute(
        "CREATE TABLE parts (LIKE usage INCLUDING DEFAULTS, summed SMALLINT DEFAULT 0 NOT NULL)"
        " PARTITION BY RANGE (at)"
    )
    op.execute(DAYS)
    op.execute(BEFORE)
    op.execute("INSERT INTO parts SELECT *, 0 FROM usage")
    op.execute("ALTER TABLE parts ADD CONSTRAINT parts_pkey PRIMARY KEY (id, at)")
    op.create_index("parts_at", "parts", ["at"])
    for column in SUBJECTS:
        named = sa.text(f"{column} <> ''")
        op.create_index(f"parts_{column}_at", "parts", [column, "at"], postgresql_where=named)
    op.create_index("parts_summed_at", "parts", ["summed", "at"], postgresql_where=ALONE)
    op.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")
    op.execute(DAYS)
    op.execute(FOLLOW)
    op.drop_table("usage")
    op.execute("ALTER TABLE parts RENAME TO usage")
    op.execute("ALTER INDEX parts_pkey RENAME TO usage_pkey")
    for name in ("at", *(f"{column}_at" for column in SUBJECTS), "summed_at"):
        op.execute(f"ALTER INDEX parts_{name} RENAME TO ix_usage_{name}")


DAYS = """
DO $$
DECLARE day BIGINT;
BEGIN
  FOR day IN
    SELECT at / 86400000 FROM usage
    UNION SELECT generate_series(-1, 6) + extract(epoch FROM now())::bigint / 86400
  LOOP
    EXECUTE format(
      'CREATE TABLE IF NOT EXISTS %I PARTITION OF parts FOR VALUES FROM (%s) TO (%s)',
      'usage_' || to_char(DATE '1970-01-01' + day::int, 'YYYYMMDD'),
      day * 86400000, (day + 1) * 86400000
    );
  END LOOP;
END $$
"""
BEFORE = """
SELECT set_config('passy.before', pg_snapshot_xmin(pg_current_snapshot())::xid::text, true)
"""
"""Whose transactions were not over when the copying began."""
FOLLOW = """
INSERT INTO parts
SELECT *, 0 FROM usage WHERE age(xmin) <= age(current_setting('passy.before')::xid)
ON CONFLICT (id, at) DO UPDATE SET cost_nanos = excluded.cost_nanos, price = excluded.price
"""
"""What those have written, and all after them: records, and prices of records."""

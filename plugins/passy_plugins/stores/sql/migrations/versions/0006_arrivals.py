"""What was entered in ``usage`` lately, a line for each batch, for those who watch; see
``arrivals.py``. SQLite numbers its rows itself, in that order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    transaction = sa.text("pg_current_xact_id()")
    op.create_table(
        "arrivals",
        sa.Column("xid", _Xid(), server_default=transaction, nullable=False, index=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("ids", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )


class _Xid(sa.types.UserDefinedType[str]):
    def get_col_spec(self, **kw: object) -> str:
        return "xid8"

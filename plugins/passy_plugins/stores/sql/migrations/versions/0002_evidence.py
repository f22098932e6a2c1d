"""Evidence: what was entered in ``usage``, in a chain in which nothing can be changed unseen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    texts = ("id", "kind", "record", "upstream", "client", "modified_by", "link")
    op.create_table(
        "evidence",
        sa.Column("chain", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
    )
    op.create_index("ix_evidence_id", "evidence", ["id"])

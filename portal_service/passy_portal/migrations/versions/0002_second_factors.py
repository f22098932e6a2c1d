"""Second factors, recovery codes, what an organisation asks for, and identities elsewhere."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What the version before enters has no second factor.
    op.add_column(
        "portal_sessions", sa.Column("second", sa.Integer, nullable=False, server_default="0")
    )
    op.create_table(
        "portal_totp",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("confirmed", sa.BigInteger),
        sa.Column("step", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "portal_recovery",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
    )
    op.create_table(
        "portal_rules",
        sa.Column("organisation", sa.Text, primary_key=True),
        sa.Column("second_factor", sa.Integer, nullable=False),
    )
    op.create_table(
        "portal_identities",
        sa.Column("issuer", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_portal_identities_user_id", "portal_identities", ["user_id"])

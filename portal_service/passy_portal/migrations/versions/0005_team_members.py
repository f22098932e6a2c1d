"""Which team a member is in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "portal_team_members",
        sa.Column("organisation", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("team", sa.Text, nullable=False),
    )
    op.create_index("ix_portal_team_members_team", "portal_team_members", ["team"])

"""What alembic runs: the portal's migrations, on the connection it was given."""

from __future__ import annotations

from alembic import context

from passy_portal.migrate import VERSION_TABLE
from passy_portal.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)

with context.begin_transaction():
    context.run_migrations()

"""Who runs the gateway, of all the organisations that use it: theirs is its configuration.

Owner of an organisation is not who may see how the gateway is set up, where there are several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from passy_plugins.api.errors import absent
from passy_portal.tables import audit

if TYPE_CHECKING:
    from fastapi import Request

    from passy_portal.accounts import Accounts, Visitor


async def operates(request: Request, accounts: Accounts, visitor: Visitor) -> bool:
    """Whether they are of an organisation that is named in the settings; where none is, of the one
    that the console's link made."""
    named = request.app.state.office.settings.operators
    if named:
        return visitor.organisation in named
    found = select(audit.c.organisation).where(audit.c.action == "organisation.found")
    async with accounts.admin.connected() as connection:
        first = (await connection.execute(found.order_by(audit.c.seq).limit(1))).scalar()
    return bool(first == visitor.organisation)


async def operating(request: Request, accounts: Accounts, visitor: Visitor) -> None:
    """404 for everybody else."""
    if not await operates(request, accounts, visitor):
        raise absent("page")

"""What is written to people, and the links in it. A page shows a link all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passy_portal.door import own_origin
from passy_portal.mail import Undelivered
from passy_portal.view import visitor_of

if TYPE_CHECKING:
    from fastapi import Request

    from passy_portal.accounts import Visitor
    from passy_portal.mail import Mailer

INVITED = """{who} invites you to {organisation}, as {role}.

Open this to join; it is good for seven days, for one person:

{link}

If you do not know what this is about, leave it: nothing happens.
"""
RESET = """{who} has asked for another password of yours at {organisation}.

Open this to choose one; it is good for a day, once:

{link}

If you did not ask for it, tell them.
"""


async def invitation_sent(
    request: Request, email: str, role: str, token: str
) -> tuple[str, str | None]:
    """The link, and what came of mailing it: see `mailed`."""
    visitor, link = visitor_of(request), link_to(request, "join", token)
    letter = INVITED.format(
        who=_named(visitor), organisation=visitor.organisation_name, role=role, link=link
    )
    subject = f"{_named(visitor)} invites you to {visitor.organisation_name}"
    return link, await mailed(request, email, subject, letter)


async def reset_sent(request: Request, email: str, token: str) -> tuple[str, str | None]:
    """The same, for who chooses another password."""
    visitor, link = visitor_of(request), link_to(request, "reset", token)
    letter = RESET.format(who=_named(visitor), organisation=visitor.organisation_name, link=link)
    return link, await mailed(request, email, "Another password for passy", letter)


async def mailed(request: Request, to: str, subject: str, text: str) -> str | None:
    """Send a letter: empty when it was taken, else why not; ``None`` where nobody sends mail."""
    mailer: Mailer | None = request.app.state.office.mailer
    if mailer is None:
        return None
    try:
        await mailer.send(to, subject, text)
    except Undelivered as undelivered:
        request.app.state.log.warning("mail_undelivered", reason=str(undelivered))
        return str(undelivered)
    return ""


def link_to(request: Request, path: str, token: str) -> str:
    return f"{own_origin(request)}{request.scope.get('root_path', '')}/{path}?link={token}"


def _named(visitor: Visitor) -> str:
    return visitor.name or visitor.email

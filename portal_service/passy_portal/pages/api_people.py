"""People in JSON: members, invitations, what is asked of all, and who changed what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from passy_plugins.api.errors import responses
from passy_plugins.api.words import Body, Email, Id, Shown, UserId, Whole, shown_at
from passy_portal import audit, membership
from passy_portal.identities import identities_of
from passy_portal.letters import invitation_sent, reset_sent
from passy_portal.links import Invitation
from passy_portal.pages.api_account import Me, anew
from passy_portal.placing import teams_of
from passy_portal.view import accounts_of, visitor_of
from passy_proxy.issue import Member, Role, User

router = APIRouter(tags=["people"])

CHANGE = responses(400, 401, 403, 404, 409, 413, 415, 422, 503)


class MemberShown(Shown):
    user: str
    email: str | None
    name: str
    role: Role
    team: str | None = Field(description="The id of the team they are in.")
    member_since: str | None


class MembersShown(Shown):
    rows: list[MemberShown]


class MemberWhole(MemberShown):
    """One, with what those who lead an organisation know."""

    last_seen_at: str | None
    second_factor: bool
    password: bool = Field(description="Whether they have one.")
    signs_in_with: list[str] = Field(description="Providers that vouch for them.")
    keys: int = Field(description="Those that they hold in this organisation.")


class MemberChange(Body):
    role: Role = "viewer"


class Leaving(Shown):
    keys: Literal["disable", "keep", "move"] = Field(
        default="disable", description="What becomes of their keys; `move` needs `heir`."
    )
    heir: UserId | None = Field(default=None, description="The member whom their keys go to.")


class Resetting(Body):
    second_factor: bool = Field(default=False, description="Take their second factor off as well.")


class Sent(Shown):
    """A link, and what came of mailing it."""

    link: str | None = Field(description="Shown this once; null where it is for nobody but them.")
    mailed: bool
    why_not: str | None = Field(description="null where it was mailed, or nobody sends mail.")


class InvitationShown(Shown):
    id: str
    email: str
    role: Role
    invited_by: str
    created_at: str | None
    expires_at: str | None


class InvitationsShown(Shown):
    rows: list[InvitationShown]


class NewInvitation(Body):
    email: Email
    role: Role


class Invited(InvitationShown, Sent):
    pass


class Asked(Body):
    required: bool


class EntryShown(Shown):
    seq: int
    at: str | None
    user: str = Field(description="Whose change it is; empty where nobody had signed in.")
    address: str
    action: str
    subject: str
    before: dict[str, Any]
    after: dict[str, Any]


class AuditQuery(Shown):
    before: Whole | None = Field(default=None, ge=1, le=1 << 62, description="A `seq`.")
    limit: int = Field(default=50, ge=1, le=1_000)


class AuditShown(Shown):
    rows: list[EntryShown] = Field(description="Latest first.")
    more: int | None = Field(description="For `before`: where the next page begins.")
    broken: int | None = Field(
        description="The first entry, of any organisation, that is not as it was written."
    )


@router.get("/api/members", responses=responses(401, 503))
async def list_members(request: Request) -> MembersShown:
    """All of the organisation."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    placed = await teams_of(accounts.admin, visitor.organisation)
    rows = [shown(one, user, placed.get(user.id))
            for one, user in await membership.listed(accounts, visitor)]  # fmt: skip
    return MembersShown(rows=[MemberShown(**one) for one in rows])


@router.get("/api/members/{user_id}", responses=responses(400, 401, 403, 404, 422, 503))
async def show_member(request: Request, user_id: UserId) -> MemberWhole:
    """What the organisation knows of one."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    one, user = await membership.member_of(accounts, visitor, user_id)
    admin, mine = accounts.admin, visitor.organisation
    providers = request.app.state.office.providers
    identities = await identities_of(accounts, providers, user_id)
    sessions = await accounts.sessions_of(user_id)
    return MemberWhole(
        **shown(one, user, (await teams_of(admin, mine)).get(user_id)),
        last_seen_at=shown_at(sessions[0].seen if sessions else None),
        second_factor=await accounts.factors.confirmed(user_id),
        password=await accounts.has_password(user_id),
        signs_in_with=[found.title for found in identities],
        keys=sum(key.user_id == user_id for key in await admin.list_keys(mine)),
    )


@router.patch("/api/members/{user_id}", responses=CHANGE)
async def change_member(request: Request, user_id: UserId, change: MemberChange) -> MemberWhole:
    """Another role. Their sessions end."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if "role" in change.model_fields_set:
        await membership.change_role(accounts, visitor, user_id, change.role)
    return await show_member(request, user_id)


@router.delete("/api/members/{user_id}", status_code=204, responses=CHANGE)
async def remove_member(
    request: Request, user_id: UserId, leaving: Annotated[Leaving, Query()]
) -> Response:
    """They are no member any more, and their sessions end."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await membership.remove(accounts, visitor, user_id, leaving.keys, leaving.heir or "")
    return Response(status_code=204)


@router.post("/api/members/{user_id}/reset", responses=CHANGE)
async def reset_member(
    request: Request, user_id: UserId, resetting: Resetting | None = None
) -> Sent:
    """A link by which they choose another password, good for a day. Where they are a member of
    something else as well it is mailed to them and shown to nobody."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    second = (resetting or Resetting()).second_factor
    mails = request.app.state.office.mailer is not None
    user, token, seen = await membership.reset_token(
        accounts, visitor, user_id, second=second, mails=mails
    )
    link, undelivered = await reset_sent(request, user.email or "", token)
    return sent(link if seen else None, undelivered)


@router.post("/api/members/{user_id}/transfer", responses=CHANGE)
async def transfer(request: Request, response: Response, user_id: UserId) -> Me:
    """They are the owner, and who asks is an admin, in another session: go on with its token."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await membership.transfer(accounts, visitor, user_id)
    return await anew(request, response, visitor.organisation)


# Invitations


@router.get("/api/invitations", responses=responses(401, 403, 503))
async def list_invitations(request: Request) -> InvitationsShown:
    """Those that nobody has taken yet, oldest first."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    waiting = await accounts.invitations(visitor.organisation)
    return InvitationsShown(rows=[InvitationShown(**invitation(one)) for one in waiting])


@router.post("/api/invitations", status_code=201, responses=CHANGE)
async def create_invitation(request: Request, new: NewInvitation) -> Invited:
    """A link for somebody, shown this once, and mailed where there is a server for that. One that
    they had before is good no more."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    token = await membership.invite(accounts, visitor, new.email, new.role)
    return await _invited(request, new.email, token)


@router.post("/api/invitations/{id}/resend", responses=CHANGE)
async def resend_invitation(request: Request, id: Id) -> Invited:
    """Another link for who was invited; the former one is good no more."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found, token = await membership.invite_again(accounts, visitor, id)
    return await _invited(request, found.email, token)


@router.delete("/api/invitations/{id}", status_code=204, responses=CHANGE)
async def withdraw_invitation(request: Request, id: Id) -> Response:
    """Its link is good no more."""
    await membership.withdraw(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


async def _invited(request: Request, email: str, token: str) -> Invited:
    accounts = await accounts_of(request)
    made = await accounts.invitation("invitation", token)
    assert made is not None
    link, undelivered = await invitation_sent(request, email, made.role, token)
    return Invited(**invitation(made), **sent(link, undelivered).model_dump())


# What holds for all, and what was changed


@router.put("/api/second/required", status_code=204, responses=CHANGE)
async def require_second(request: Request, asked: Asked) -> Response:
    """Have all members show a second factor, or leave it to them."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await membership.require_second(accounts, visitor, asked.required)
    return Response(status_code=204)


@router.get("/api/audit", responses=responses(401, 403, 422, 503))
async def audit_log(request: Request, query: Annotated[AuditQuery, Query()]) -> AuditShown:
    """Who changed what, and whether the log is as it was written."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    async with accounts.admin.connected() as connection:
        found = await audit.entries(
            connection, visitor.organisation, query.before, query.limit + 1
        )  # fmt: skip
        broken = await audit.broken(connection, accounts.admin.keyring)
    rows = [
        EntryShown(
            seq=one.seq, at=shown_at(one.at), user=one.actor, address=one.address,
            action=one.action, subject=one.subject, before=dict(one.before), after=dict(one.after),
        )
        for one in found[: query.limit]
    ]  # fmt: skip
    more = rows[-1].seq if len(found) > query.limit else None
    return AuditShown(rows=rows, more=more, broken=broken)


def shown(one: Member, user: User, team: str | None) -> dict[str, Any]:
    """The fields of `MemberShown`."""
    return {"user": user.id, "email": user.email, "name": user.name, "role": one.role,
            "team": team, "member_since": shown_at(one.created)}  # fmt: skip


def invitation(one: Invitation) -> dict[str, Any]:
    """The fields of `InvitationShown`."""
    return {"id": one.id, "email": one.email, "role": one.role, "invited_by": one.made_by,
            "created_at": shown_at(one.created), "expires_at": shown_at(one.expires)}  # fmt: skip


def sent(link: str | None, undelivered: str | None) -> Sent:
    return Sent(link=link, mailed=undelivered == "", why_not=undelivered or None)

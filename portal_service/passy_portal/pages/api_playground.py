"""The playground in JSON: a key for a page, the models there are, and the prompts that are kept."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from passy_plugins.api.errors import responses
from passy_plugins.api.words import Body, Id, Name, Shown, Whole, shown_at
from passy_portal import owned, playing, prompts
from passy_portal.door import gateway_origin
from passy_portal.prompts import LONGEST, Prompt
from passy_portal.view import accounts_of, visitor_of

router = APIRouter(tags=["playground"])


def _kept(text: str) -> str:
    if "\0" in text:
        raise ValueError("a text cannot hold a NUL character")
    if len(text) > LONGEST:
        raise ValueError(f"a text is at most {LONGEST:,} characters")
    return text


Lines = Annotated[
    str,
    AfterValidator(_kept),
    WithJsonSchema({"type": "string", "description": f"At most {LONGEST:,} characters."}),
]
"""Text of any lines, as a database can keep it."""


class KeyForPage(Shown):
    """For one page, which keeps it in memory."""

    key: str
    expires_at: str | None
    base_url: str = Field(description="Where it is good: the gateway, with /v1.")


class Turn(Body):
    role: Literal["system", "user", "assistant"]
    content: Lines


class Parameters(Body):
    """Those of chat completions that the page offers."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: Whole | None = Field(default=None, ge=1, le=10_000_000)
    stop: list[Annotated[Lines, Field(min_length=1, max_length=200)]] = Field(
        default=[], max_length=4
    )
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: Whole | None = Field(default=None, ge=-(2**53), le=2**53)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    json_only: bool = Field(default=False, description="Ask for a JSON object.")
    stream: bool = True


class Content(Body):
    models: list[Name] = Field(min_length=1, max_length=2, description="Two are compared.")
    messages: list[Turn] = Field(max_length=200)
    parameters: Parameters = Field(default_factory=Parameters)


class NewPrompt(Body):
    title: Name
    content: Content
    shared: bool = Field(default=False, description="All members of the organisation see it.")


class PromptChange(Body):
    title: Name = ""
    content: Content | None = None
    shared: bool = False


class PromptShown(Shown):
    id: str
    title: str
    shared: bool
    mine: bool
    by: str = Field(description="Whose it is.")
    changed_at: str | None
    content: dict[str, Any]


class PromptsShown(Shown):
    rows: list[PromptShown]


CHANGE = responses(400, 401, 403, 404, 413, 415, 422, 503)


@router.post("/api/playground/key", status_code=201, responses=responses(401, 403, 415, 422, 503))
async def issue_key(request: Request) -> KeyForPage:
    """A key of who asks, for a quarter of an hour and no longer than this session."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    admin, expires = accounts.admin, time.time() + playing.LIVES
    wanted: dict[str, Any] = {
        "name": "Playground",
        "description": f"Playground of {visitor.email or visitor.user}",
        "tags": (playing.TAG,),
        "limits": playing.LIMITS,
        "expires": expires,
    }
    await playing.withdraw(admin)
    await playing.make_room(admin, visitor.session)
    made, key = await owned.create(accounts, visitor, wanted)
    await playing.enter(admin, made.id, visitor.session, expires)
    return KeyForPage(
        key=key, expires_at=shown_at(expires), base_url=f"{gateway_origin(request)}/v1"
    )


@router.get("/api/playground/prompts", responses=responses(401, 503))
async def list_prompts(request: Request) -> PromptsShown:
    """One's own and those that others share, latest first."""
    visitor = visitor_of(request)
    found = await prompts.listed(await accounts_of(request), visitor)
    return PromptsShown(rows=[shown(one, visitor.user) for one in found])


@router.post("/api/playground/prompts", status_code=201, responses=CHANGE)
async def keep_prompt(request: Request, new: NewPrompt) -> PromptShown:
    """Keep a prompt with its models and parameters."""
    visitor, content = visitor_of(request), new.content.model_dump()
    accounts = await accounts_of(request)
    kept = await prompts.kept(accounts, visitor, new.title, content, new.shared)
    return shown(kept, visitor.user)


@router.get("/api/playground/prompts/{id}", responses=responses(400, 401, 404, 422, 503))
async def show_prompt(request: Request, id: Id) -> PromptShown:
    """One of them."""
    visitor = visitor_of(request)
    return shown(await prompts.opened(await accounts_of(request), visitor, id), visitor.user)


@router.patch("/api/playground/prompts/{id}", responses=CHANGE)
async def change_prompt(request: Request, id: Id, change: PromptChange) -> PromptShown:
    """Change what is named, of one's own."""
    visitor = visitor_of(request)
    values = {name: getattr(change, name) for name in change.model_fields_set}
    content = values.get("content")
    if isinstance(content, Content):
        values["content"] = content.model_dump()
    else:
        values.pop("content", None)
    found = await prompts.changed(await accounts_of(request), visitor, id, values)
    return shown(found, visitor.user)


@router.delete("/api/playground/prompts/{id}", status_code=204, responses=CHANGE)
async def remove_prompt(request: Request, id: Id) -> Response:
    """Forget it. Owners and admins may remove what others share."""
    await prompts.removed(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


def shown(one: Prompt, user: str) -> PromptShown:
    return PromptShown(
        id=one.id,
        title=one.title,
        shared=one.shared,
        mine=one.user == user,
        by=one.by,
        changed_at=shown_at(one.changed),
        content=dict(one.content),
    )

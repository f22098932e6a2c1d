"""Reading, changing and deleting one thing: 404s, and edits that must not undo somebody else's."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Header, Query, Request, Response
from pydantic import BaseModel, Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Cursor, Line, Shown

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

S = TypeVar("S", bound=BaseModel)

VOLATILE = {"last_used_at", "spent"}
"""What changes without anybody's edit."""

IfMatch = Annotated[
    str | None,
    Header(
        max_length=200,
        description="The `ETag` of what was read: the edit is refused with 412 if it has changed.",
    ),
]


class Paging(Shown):
    """Which page of a list. As every question it knows its words: one that is misspelt is an error,
    and not the answer to another question."""

    limit: int = Field(default=100, ge=1, le=1_000, description="Most rows of a page.")
    cursor: Cursor | None = Field(default=None, description="The `cursor` of the page before.")


class Searching(Paging):
    search: Line = Field(
        default="", description="A part of a name, or of what else people know it by."
    )


Pages = Annotated[Paging, Query()]
Search = Annotated[Searching, Query()]


async def admin_of(request: Request) -> Admin:
    admin: Admin = await request.app.state.desk.admin()
    return admin


def tag_of(shown: BaseModel) -> str:
    """The `ETag` of what is shown."""
    said = shown.model_dump_json(exclude=VOLATILE).encode()
    return f'"{hashlib.sha256(said).hexdigest()[:24]}"'


def tagged(response: Response, shown: S) -> S:
    """With its `ETag`."""
    response.headers["etag"] = tag_of(shown)
    return shown


@asynccontextmanager
async def editing(
    request: Request,
    subject: str,
    if_match: str | None,
    current: Callable[[], Awaitable[BaseModel]],
) -> AsyncIterator[Admin]:
    """An edit of ``subject``. With an ETag it takes its turn with all others that have one, and
    fails unless ``current`` is still what was read."""
    admin = await admin_of(request)
    if if_match is None:
        await current()
        yield admin
        return
    async with admin.together(subject):
        tags = [tag.strip() for tag in if_match.split(",")]
        if "*" not in tags and tag_of(await current()) not in tags:
            message = "It has changed since it was read: read it again."
            raise Denied(412, "changed_meanwhile", message, "header.If-Match")
        yield admin


def present(thing: Any, what: str) -> Any:
    """What is there. 404 for what is not, or was deleted meanwhile."""
    if thing is None or thing is False:
        raise Denied(404, "not_found", f"There is no such {what}.")
    return thing

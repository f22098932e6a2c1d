"""One provider of the organisation's own, and one of its keys: changing, testing, disabling,
deleting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id
from passy_portal import brought
from passy_portal.door import Form
from passy_portal.pages.entering import PLACES, SPOKEN, Back, refused, spoken, whole
from passy_portal.pages.providers import WORDS
from passy_portal.recent import recent
from passy_portal.view import accounts_of, console_of, moved, page, visitor_of
from passy_proxy.records import CustomProvider, StoredCredential

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.brought import Sort


router = APIRouter()

NOTHING = Back()
T = TypeVar("T", CustomProvider, StoredCredential)


class Change(NamedTuple):
    """What a form makes of one."""

    changes: dict[str, Any]
    action: str = "change"
    """As the audit log calls it."""
    done: str = "saved"
    """As the next page says it."""


class Kind(NamedTuple, Generic[T]):
    """What there are pages of: keys, or providers."""

    sort: Sort[T]
    path: str
    """Below which they are, each with its id."""
    trials: str
    """Below which the gateway tries them."""
    mark: str
    """What the notes on what was done begin with."""
    title: Callable[[T], str]
    """What people call one, and type to delete it."""
    read: Callable[[Request, Form, T], Awaitable[Change]]
    page: Callable[[Request, T, Back], Awaitable[Response]]


def offer(kind: Kind[T]) -> None:
    """The routes of a kind."""
    sort, one = kind.sort, f"{kind.path}/{{id}}"

    async def found(request: Request, id: str) -> T:
        return await sort.one(await accounts_of(request), visitor_of(request), id)

    @router.get(one)
    async def show(request: Request, id: Id) -> Response:
        """What is known of it, and what can be done with it."""
        return await kind.page(request, await found(request, id), NOTHING)

    @router.post(one)
    async def change(request: Request, id: Id) -> Response:
        """What the form says, all of it."""
        was = await found(request, id)
        form: Form = request.state.form
        values = {name: form[name] for name in form if name not in SECRET}
        try:
            wanted = await kind.read(request, form, was)
            form.end()
            accounts = await accounts_of(request)
            await sort.change(accounts, visitor_of(request), id, wanted.changes, wanted.action)
        except Denied as error:
            return await kind.page(request, was, refused(error, values))
        return moved(request, f"{kind.path}/{id}", wanted.done)

    @router.post(f"{one}/test")
    async def test(request: Request, id: Id) -> Response:
        """Three steps, which cost a few tokens."""
        was = await found(request, id)
        return await kind.page(request, was, await _trial(request, f"{kind.trials}/{id}/test"))

    async def switch(request: Request, id: str, action: str, status: str) -> Response:
        request.state.form.end()
        accounts, visitor = await accounts_of(request), visitor_of(request)
        await sort.change(accounts, visitor, id, {"status": status}, action)
        return moved(request, f"{kind.path}/{id}", f"{kind.mark}_{action}d")

    @router.post(f"{one}/disable")
    async def disable(request: Request, id: Id) -> Response:
        """It serves nobody until it is enabled."""
        return await switch(request, id, "disable", "disabled")

    @router.post(f"{one}/enable")
    async def enable(request: Request, id: Id) -> Response:
        """As before it was disabled."""
        return await switch(request, id, "enable", "active")

    @router.post(f"{one}/delete")
    async def delete(request: Request, id: Id) -> Response:
        """For good, for who types its name; a provider with its keys."""
        was = await found(request, id)
        form: Form = request.state.form
        typed, name = form.text("typed", 300), kind.title(was)
        form.end()
        if typed != name:
            wrong = Back(None, f"To delete it, type its name: {name}", "typed", 422)
            return await kind.page(request, was, wrong)
        await sort.remove(await accounts_of(request), visitor_of(request), id)
        return moved(request, "/providers", f"{kind.mark}_gone")


async def _trial(request: Request, path: str) -> Back:
    """What came of it, or why it did not come to that."""
    form: Form = request.state.form
    told = {"model": form.text("model")}
    form.end()
    try:
        trial = await brought.tried(console_of(request), visitor_of(request), path, told)
    except Denied as error:
        return refused(error, {})
    return Back(trial=trial)


SECRET = ("key",)
"""Fields that are not shown again."""


async def _read_key(request: Request, form: Form, key: StoredCredential) -> Change:
    """Its name and priority; and the key itself where another one is pasted."""
    changes: dict[str, Any] = {"name": form.text("name"), "priority": whole(form)}
    secret = form.secret("key").strip()
    if not secret:
        return Change(changes)
    if not (secret.isascii() and secret.isprintable()):
        raise Denied(422, "invalid_value", "A header cannot carry these characters.", "key")
    return Change(changes | {"secret": secret}, "replace", "replaced")


async def _read_provider(request: Request, form: Form, found: CustomProvider) -> Change:
    changes: dict[str, Any] = {
        "name": form.text("name"),
        "url": form.text("url", 2_000).rstrip("/"),
        "dialect": form.text("dialect"),
        "models": tuple(form.lines("models")) or ("*",),
        "priority": whole(form),
    }
    for name, message in (("name", "Give it a name."), ("url", "Say where it is reached.")):
        if not changes[name]:
            raise Denied(422, "invalid_value", message, name)
    url = changes["url"] if changes["url"] != found.url else None
    dialect = changes["dialect"] if changes["dialect"] != found.dialect else None
    await brought.check_place(console_of(request), url, dialect)
    return Change(changes)


def title_of(key: StoredCredential) -> str:
    """What people call a key."""
    return key.name or (f"…{key.shown}" if key.shown else key.id)


async def _provider_page(request: Request, found: CustomProvider, back: Back) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    keys = await accounts.admin.list_credentials(visitor.organisation)
    upstream = f"custom-{found.id}"
    lately = await recent(accounts.admin, visitor)
    written = {"name": found.name, "url": found.url, "dialect": found.dialect,
               "models": ", ".join(found.models), "priority": str(found.priority)}  # fmt: skip
    return page(
        request, "provider.html", status=back.status, one=found, upstream=upstream,
        keys=[(key, title_of(key)) for key in keys if key.upstream == found.id],
        tried=lately.of(upstream), lately=lately, words=WORDS, values=back.values or written,
        places=PLACES, dialects=spoken({*SPOKEN, found.dialect}), **back.told(),
    )  # fmt: skip


async def _key_page(request: Request, key: StoredCredential, back: Back) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    providers = await accounts.admin.list_providers(visitor.organisation)
    lately = await recent(accounts.admin, visitor)
    own = next((one for one in providers if one.id == key.upstream), None)
    written = {"name": key.name, "priority": str(key.priority)}
    return page(
        request, "provider_key.html", status=back.status, key=key, title=title_of(key), own=own,
        tried=lately.with_key(key.id), words=WORDS, values=back.values or written, **back.told(),
    )  # fmt: skip


# Keys first: their paths would be taken for those of a provider called so.
offer(
    Kind(
        brought.CREDENTIAL, "/providers/keys", "/credentials", "key", title_of, _read_key, _key_page
    )
)
offer(
    Kind(
        brought.PROVIDER, "/providers", "/providers", "provider", lambda one: one.name,
        _read_provider, _provider_page,
    )
)  # fmt: skip

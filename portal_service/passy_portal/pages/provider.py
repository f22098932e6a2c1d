"""One provider of the organisation's own, and one of its keys: changing, testing, disabling,
deleting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id
from passy_portal import brought
from passy_portal.door import Form
from passy_portal.pages.entering import PLACES, SPOKEN, Back, refused, spoken, whole
from passy_portal.pages.providers import WORDS
from passy_portal.recent import recent
from passy_portal.view import accounts_of, console_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_proxy.records import CustomProvider, StoredCredential

router = APIRouter()

NOTHING = Back()


# Keys; their paths come first, since an id may be any word


@router.get("/providers/keys/{id}")
async def show_key(request: Request, id: Id) -> Response:
    """One key: what is known of it, and what can be done with it."""
    key = await brought.credential_of(await accounts_of(request), visitor_of(request), id)
    return await _key_page(request, key)


@router.post("/providers/keys/{id}")
async def change_key(request: Request, id: Id) -> Response:
    """Its name and priority; and the key itself where another one is pasted."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await brought.credential_of(accounts, visitor, id)
    form: Form = request.state.form
    values = {name: form[name] for name in ("name", "priority") if name in form}
    try:
        changes: dict[str, Any] = {"name": form.text("name"), "priority": whole(form)}
        secret = form.secret("key").strip()
        form.end()
        if secret:
            if not (secret.isascii() and secret.isprintable()):
                raise Denied(422, "invalid_value", "A header cannot carry these characters.", "key")
            changes["secret"] = secret
        await brought.change_credential(
            accounts, visitor, id, changes, "replace" if secret else "change"
        )
    except Denied as error:
        return await _key_page(request, key, refused(error, values))
    return moved(request, f"/providers/keys/{id}", "replaced" if secret else "saved")


@router.post("/providers/keys/{id}/test")
async def try_key(request: Request, id: Id) -> Response:
    """Three steps, which cost a few tokens."""
    key = await brought.credential_of(await accounts_of(request), visitor_of(request), id)
    return await _key_page(request, key, await _trial(request, f"/credentials/{id}/test"))


@router.post("/providers/keys/{id}/disable")
async def disable_key(request: Request, id: Id) -> Response:
    """It is shown to nobody until it is enabled."""
    return await _switch_key(request, id, "disable")


@router.post("/providers/keys/{id}/enable")
async def enable_key(request: Request, id: Id) -> Response:
    """As before it was disabled."""
    return await _switch_key(request, id, "enable")


@router.post("/providers/keys/{id}/delete")
async def delete_key(request: Request, id: Id) -> Response:
    """For good, for who types its name."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await brought.credential_of(accounts, visitor, id)
    if error := _mistyped(request.state.form, title_of(key)):
        return await _key_page(request, key, Back(None, error, "typed", 422))
    await brought.remove_credential(accounts, visitor, id)
    return moved(request, "/providers", "key_gone")


# Providers


@router.get("/providers/{id}")
async def show_provider(request: Request, id: Id) -> Response:
    """One provider: how it is doing, its keys, and what can be done with it."""
    found = await brought.provider_of(await accounts_of(request), visitor_of(request), id)
    return await _page(request, found)


@router.post("/providers/{id}")
async def change_provider(request: Request, id: Id) -> Response:
    """What the form says, all of it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await brought.provider_of(accounts, visitor, id)
    form: Form = request.state.form
    values = dict(form)
    try:
        changes = await _changes(request, form, found)
        form.end()
        await brought.change_provider(accounts, visitor, id, changes)
    except Denied as error:
        return await _page(request, found, refused(error, values))
    return moved(request, f"/providers/{id}", "saved")


@router.post("/providers/{id}/test")
async def try_provider(request: Request, id: Id) -> Response:
    """With its first key: three steps, which cost a few tokens."""
    found = await brought.provider_of(await accounts_of(request), visitor_of(request), id)
    return await _page(request, found, await _trial(request, f"/providers/{id}/test"))


@router.post("/providers/{id}/disable")
async def disable_provider(request: Request, id: Id) -> Response:
    """It answers nothing until it is enabled."""
    return await _switch(request, id, "disable")


@router.post("/providers/{id}/enable")
async def enable_provider(request: Request, id: Id) -> Response:
    """As before it was disabled."""
    return await _switch(request, id, "enable")


@router.post("/providers/{id}/delete")
async def delete_provider(request: Request, id: Id) -> Response:
    """With its keys, for who types its name."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await brought.provider_of(accounts, visitor, id)
    if error := _mistyped(request.state.form, found.name):
        return await _page(request, found, Back(None, error, "typed", 422))
    await brought.remove_provider(accounts, visitor, id)
    return moved(request, "/providers", "provider_gone")


async def _switch(request: Request, id: str, action: str) -> Response:
    request.state.form.end()
    status = {"status": "active" if action == "enable" else "disabled"}
    accounts = await accounts_of(request)
    await brought.change_provider(accounts, visitor_of(request), id, status, action)
    return moved(request, f"/providers/{id}", f"provider_{action}d")


async def _switch_key(request: Request, id: str, action: str) -> Response:
    request.state.form.end()
    status = {"status": "active" if action == "enable" else "disabled"}
    accounts = await accounts_of(request)
    await brought.change_credential(accounts, visitor_of(request), id, status, action)
    return moved(request, f"/providers/keys/{id}", f"key_{action}d")


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


async def _changes(request: Request, form: Form, found: CustomProvider) -> dict[str, Any]:
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
    return changes


def _mistyped(form: Form, name: str) -> str:
    typed = form.text("typed", 300)
    form.end()
    return "" if typed == name else f"To delete it, type its name: {name}"


def title_of(key: StoredCredential) -> str:
    """What people call a key."""
    return key.name or (f"…{key.shown}" if key.shown else key.id)


async def _page(request: Request, found: CustomProvider, back: Back = NOTHING) -> Response:
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


async def _key_page(request: Request, key: StoredCredential, back: Back = NOTHING) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    providers = await accounts.admin.list_providers(visitor.organisation)
    lately = await recent(accounts.admin, visitor)
    own = next((one for one in providers if one.id == key.upstream), None)
    written = {"name": key.name, "priority": str(key.priority)}
    return page(
        request, "provider_key.html", status=back.status, key=key, title=title_of(key), own=own,
        tried=lately.with_key(key.id), words=WORDS, values=back.values or written, **back.told(),
    )  # fmt: skip

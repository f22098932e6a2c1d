"""The writing side of the vault: what organisations bring."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Table,
    delete,
    insert,
    literal,
    select,
    update,
)

from passy_plugins.stores.sql.rotation import Rotating
from passy_plugins.stores.sql.schema import changes, credentials, custom_providers
from passy_plugins.stores.sql.sealed import bound_to, last_four
from passy_proxy.issue import NewCredential, NewProvider
from passy_proxy.json import dumps, loads
from passy_proxy.records import Credential, CustomProvider, StoredCredential

STATUSES = ("active", "disabled")
ORGANISATION = "organisation"
"""The kind of change that an edit of what it brought is told as."""
TRIES = 20


class Vaulted(Rotating):
    """Part of `Admin`. ValueError for an organisation that there is not, and for a status."""

    # Organisations' own upstreams

    async def add_provider(self, new: NewProvider, credential: str | None = None) -> str:
        """Its id. The credential is sealed for this organisation and this provider."""
        provider = f"prov_{secrets.token_hex(8)}"
        values = _checked(asdict(new)) | {"id": provider, "version": 1, "created": _now()}
        statements: list[Executable] = [insert(custom_providers).values(values)]
        if credential is not None:
            its = NewCredential(new.organisation, provider)
            statements.append(self._sealed(its, credential)[1])
        await self._enter(new.organisation, statements)
        return provider

    async def list_providers(self, organisation: str | None = None) -> list[CustomProvider]:
        """Of all organisations or of one, oldest first, those that are not active among them."""
        wanted = select(custom_providers).order_by(custom_providers.c.created)
        if organisation is not None:
            wanted = wanted.where(custom_providers.c.organisation == organisation)
        return [_provider(row) for row in await self._read(wanted)]

    async def change_provider(self, provider: str, **values: Any) -> bool:
        """Whether there is such a provider."""
        mine = custom_providers.c.id == provider
        grown = {"version": custom_providers.c.version + 1}
        change = update(custom_providers).where(mine).values(_checked(values) | grown)
        return bool((await self._done([change, _told(custom_providers, mine)]))[0])

    async def remove_provider(self, provider: str) -> bool:
        """With its credentials."""
        mine = custom_providers.c.id == provider
        whose = select(custom_providers.c.organisation).where(mine).scalar_subquery()
        theirs = (credentials.c.upstream == provider, credentials.c.organisation == whose)
        gone = delete(credentials).where(*theirs), delete(custom_providers).where(mine)
        return bool((await self._done([_told(custom_providers, mine), *gone]))[-1])

    # Credentials

    async def add_credential(self, new: NewCredential, secret: str) -> str:
        """Its id."""
        credential, statement = self._sealed(new, secret)
        await self._enter(new.organisation, [statement])
        return credential

    async def list_credentials(self, organisation: str | None = None) -> list[StoredCredential]:
        """Of all organisations or of one, in the order in which they are shown."""
        mine = credentials.c
        order = (mine.organisation, mine.upstream, mine.priority, mine.created, mine.id)
        wanted = select(credentials).order_by(*order)
        if organisation is not None:
            wanted = wanted.where(mine.organisation == organisation)
        return [_stored(row) for row in await self._read(wanted)]

    async def change_credential(self, credential: str, **values: Any) -> bool:
        """Whether there is such a credential. A new ``secret`` is its next version; of two at once
        both are versions, and the later one stays."""
        secret = values.pop("secret", None)
        values = _checked(values)
        mine = credentials.c.id == credential
        for _ in range(TRIES):
            row = await self._credential(credential)
            if row is None:
                return False
            change = update(credentials).where(mine)
            if secret is not None:
                version = row.version + 1
                owner = bound_to(row.organisation, row.upstream, row.id, version)
                values |= {
                    "sealed": self._keyring.seal(secret, *owner),
                    "shown": last_four(secret),
                    "version": version,
                }
                change = change.where(credentials.c.version == row.version)
            if not values:
                return True
            if (await self._done([change.values(values), _told(credentials, mine)]))[0]:
                return True
        raise ValueError(f"{credential} is being changed by others all the time")

    async def remove_credential(self, credential: str) -> bool:
        """Whether there was one."""
        mine = credentials.c.id == credential
        gone = delete(credentials).where(mine)
        return bool((await self._done([_told(credentials, mine), gone]))[-1])

    async def open_credential(self, credential: str) -> Credential | None:
        """With its secret. Raises `KeyringError`."""
        row = await self._credential(credential)
        if row is None:
            return None
        owner = bound_to(row.organisation, row.upstream, row.id, row.version)
        secret = self._keyring.open(row.sealed, *owner)
        return Credential(secret, row.organisation, row.id, row.upstream)

    async def _credential(self, credential: str) -> Row[Any] | None:
        rows = await self._read(select(credentials).where(credentials.c.id == credential))
        return rows[0] if rows else None

    def _sealed(self, new: NewCredential, secret: str) -> tuple[str, Executable]:
        """Its id, and what enters it."""
        credential = f"cred_{secrets.token_hex(8)}"
        owner = bound_to(new.organisation, new.upstream, credential, 1)
        values = _checked(asdict(new)) | {
            "id": credential,
            "version": 1,
            "shown": last_four(secret),
            "sealed": self._keyring.seal(secret, *owner),
            "created": _now(),
        }
        return credential, insert(credentials).values(values)

    async def _enter(self, organisation: str, statements: Sequence[Executable]) -> None:
        """All of them or none. ValueError when there is no such organisation."""
        told = insert(changes).values(kind=ORGANISATION, subject=organisation, at=_now())
        try:
            await self._done([*statements, told])
        except ValueError:
            raise ValueError(f"there is no organisation {organisation}") from None


def _told(table: Table, mine: ColumnElement[bool]) -> Executable:
    """What tells every worker of an edit, in the transaction that makes it."""
    row = select(literal(ORGANISATION), table.c.organisation, literal(_now())).where(mine)
    return insert(changes).from_select(["kind", "subject", "at"], row)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """As the columns take them."""
    if values.get("status", "active") not in STATUSES:
        raise ValueError(f"a status is {' or '.join(STATUSES)}")
    if "models" in values:
        values["models"] = dumps(values["models"]).decode()
    return values


def _provider(row: Row[Any]) -> CustomProvider:
    return CustomProvider(
        id=row.id,
        organisation=row.organisation,
        name=row.name,
        dialect=row.dialect,
        url=row.url,
        models=tuple(loads(row.models)),
        active=row.status == "active",
        priority=row.priority,
        version=row.version,
    )


def _stored(row: Row[Any]) -> StoredCredential:
    return StoredCredential(
        id=row.id,
        organisation=row.organisation,
        upstream=row.upstream,
        name=row.name,
        priority=row.priority,
        active=row.status == "active",
        shown=row.shown,
        version=row.version,
        created=row.created / 1000,
    )


def _now() -> int:
    return int(time.time() * 1000)

"""The writing side of the vault: what organisations bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Executable, Row, Table, delete, insert, select, update

from passy_plugins.stores.sql.rotation import Rotating
from passy_plugins.stores.sql.schema import credentials, custom_providers
from passy_plugins.stores.sql.sealed import bound_to, last_four
from passy_plugins.stores.sql.writing import (
    Coder,
    coded,
    list_of,
    name_of,
    new_id,
    now,
    status_of,
    text_of,
)
from passy_proxy.issue import NewCredential, NewProvider
from passy_proxy.json import loads
from passy_proxy.records import Credential, CustomProvider, StoredCredential

TRIES = 20
BROUGHT = "credential"
"""The kind of change that an edit here is told as; its subject is the organisation."""

PROVIDER: Mapping[str, Coder] = {
    "name": name_of,
    "url": text_of,
    "dialect": name_of,
    "models": list_of,
    "status": status_of,
    "priority": int,
}
CREDENTIAL: Mapping[str, Coder] = {"name": text_of, "status": status_of, "priority": int}


class Vaulted(Rotating):
    """Part of `Admin`. ValueError for an organisation that there is not, and for a value that
    cannot be."""

    # Organisations' own upstreams

    async def add_provider(self, new: NewProvider, credential: str | None = None) -> str:
        """Its id. The credential is sealed for this organisation and this provider."""
        provider, organisation = new_id("prov"), new.organisation
        values = coded(_fields(new), PROVIDER)
        values |= {"id": provider, "organisation": organisation, "version": 1, "created": now()}
        statements: list[Executable] = [insert(custom_providers).values(values)]
        if credential is not None:
            statements.append(self._sealed(NewCredential(organisation, provider), credential)[1])
        await self._enter(organisation, *statements)
        return provider

    async def list_providers(self, organisation: str | None = None) -> list[CustomProvider]:
        """Of all organisations or of one, oldest first, those that are not active among them."""
        mine = custom_providers.c
        wanted = select(custom_providers).order_by(mine.created, mine.id)
        if organisation is not None:
            wanted = wanted.where(mine.organisation == organisation)
        return [provider_of(row) for row in await self._read(wanted)]

    async def change_provider(self, provider: str, **changes: Any) -> bool:
        """Whether there is such a provider."""
        values = coded(changes, PROVIDER)
        row = await self._row(custom_providers, provider)
        if row is None:
            return False
        grown = {"version": custom_providers.c.version + 1}
        change = update(custom_providers).where(custom_providers.c.id == provider)
        return bool(await self._change(BROUGHT, row.organisation, change.values(values | grown)))

    async def remove_provider(self, provider: str) -> bool:
        """With its credentials."""
        row = await self._row(custom_providers, provider)
        if row is None:
            return False
        theirs = credentials.c.upstream == provider, credentials.c.organisation == row.organisation
        gone = (
            delete(custom_providers).where(custom_providers.c.id == provider),
            delete(credentials).where(*theirs),
        )
        return bool(await self._change(BROUGHT, row.organisation, *gone))

    # Credentials

    async def add_credential(self, new: NewCredential, secret: str) -> str:
        """Its id."""
        credential, statement = self._sealed(new, secret)
        await self._enter(new.organisation, statement)
        return credential

    async def list_credentials(self, organisation: str | None = None) -> list[StoredCredential]:
        """Of all organisations or of one, in the order in which they are shown."""
        mine = credentials.c
        order = (mine.organisation, mine.upstream, mine.priority, mine.created, mine.id)
        wanted = select(credentials).order_by(*order)
        if organisation is not None:
            wanted = wanted.where(mine.organisation == organisation)
        return [stored_of(row) for row in await self._read(wanted)]

    async def change_credential(self, credential: str, **changes: Any) -> bool:
        """Whether there is such a credential. A new ``secret`` is its next version; of two at once
        both are versions, and the later one stays."""
        secret = changes.pop("secret", None)
        values = coded(changes, CREDENTIAL)
        for _ in range(TRIES):
            row = await self._row(credentials, credential)
            if row is None or not (values or secret):
                return row is not None
            change = update(credentials).where(credentials.c.id == credential)
            if secret:
                version = row.version + 1
                owner = bound_to(row.organisation, row.upstream, row.id, version)
                sealed = self._keyring.seal(secret, *owner)
                values |= {"sealed": sealed, "shown": last_four(secret), "version": version}
                change = change.where(credentials.c.version == row.version)
            if await self._change(BROUGHT, row.organisation, change.values(values)):
                return True
        raise ValueError(f"{credential} is being changed by others all the time")

    async def remove_credential(self, credential: str) -> bool:
        """Whether there was one."""
        row = await self._row(credentials, credential)
        if row is None:
            return False
        gone = delete(credentials).where(credentials.c.id == credential)
        return bool(await self._change(BROUGHT, row.organisation, gone))

    async def open_credential(self, credential: str) -> Credential | None:
        """With its secret. Raises `KeyringError`."""
        row = await self._row(credentials, credential)
        if row is None:
            return None
        owner = bound_to(row.organisation, row.upstream, row.id, row.version)
        secret = self._keyring.open(row.sealed, *owner)
        return Credential(secret, row.organisation, row.id, row.upstream)

    async def _row(self, table: Table, id: str) -> Row[Any] | None:
        rows = await self._read(select(table).where(table.c.id == id))
        return rows[0] if rows else None

    def _sealed(self, new: NewCredential, secret: str) -> tuple[str, Executable]:
        """Its id, and what enters it."""
        if not secret:
            raise ValueError("the key is empty")
        credential = new_id("cred")
        owner = bound_to(new.organisation, new.upstream, credential, 1)
        fields = _fields(new)
        values = {"upstream": name_of(fields.pop("upstream")), **coded(fields, CREDENTIAL)}
        values |= {
            "id": credential,
            "organisation": new.organisation,
            "version": 1,
            "shown": last_four(secret),
            "sealed": self._keyring.seal(secret, *owner),
            "created": now(),
        }
        return credential, insert(credentials).values(values)

    async def _enter(self, organisation: str, *statements: Executable) -> None:
        """ValueError when there is no such organisation."""
        try:
            await self._change(BROUGHT, organisation, *statements)
        except ValueError:
            raise ValueError(f"there is no organisation {organisation}") from None


def _fields(new: NewProvider | NewCredential) -> dict[str, Any]:
    fields = asdict(new)
    del fields["organisation"]
    return fields


def provider_of(row: Row[Any]) -> CustomProvider:
    """Of a row of `custom_providers`."""
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


def stored_of(row: Row[Any]) -> StoredCredential:
    """Of a row of `credentials`."""
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

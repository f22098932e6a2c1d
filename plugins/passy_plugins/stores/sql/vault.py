"""The writing side of the vault: what organisations bring, and the keys it is sealed with."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Executable, Row, Table, delete, func, insert, select, update

from passy_plugins.stores.sql.schema import credentials, custom_providers
from passy_plugins.stores.sql.sealed import bound_to
from passy_proxy import envelope
from passy_proxy.issue import NewCredential, NewProvider, Rotation, Seals, Tell
from passy_proxy.json import dumps, loads
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.records import Credential, CustomProvider, StoredCredential

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

STATUSES = ("active", "disabled")
BATCH = 100
"""Secrets that are wrapped in one transaction: others wait for it to end."""
PASSES = 10
"""How often the rows are gone through, while somebody goes on writing with an earlier key."""
TRIES = 20
LONG = 16
"""Characters of a secret of which four say little."""


class Vaulted:
    """Part of `Admin`. ValueError for an organisation that there is not, and for a status."""

    _keyring: Keyring

    def _connected(self) -> AbstractAsyncContextManager[AsyncConnection]:
        raise NotImplementedError

    async def _read(self, statement: Executable) -> Sequence[Row[Any]]:
        raise NotImplementedError

    async def _write(self, statement: Executable) -> int:
        raise NotImplementedError

    # Organisations' own upstreams

    async def add_provider(self, new: NewProvider, credential: str | None = None) -> str:
        """Its id. The credential is sealed for this organisation and this provider."""
        provider = f"prov_{secrets.token_hex(8)}"
        values = _checked(asdict(new)) | {"id": provider, "version": 1, "created": _now()}
        statements: list[Executable] = [insert(custom_providers).values(values)]
        if credential is not None:
            statements.append(
                self._sealed(NewCredential(new.organisation, provider), credential)[1]
            )
        await self._enter(new.organisation, statements)
        return provider

    async def list_providers(self, organisation: str | None = None) -> list[CustomProvider]:
        """Of all organisations or of one, oldest first, those that are not active among them."""
        wanted = select(custom_providers).order_by(custom_providers.c.created)
        if organisation is not None:
            wanted = wanted.where(custom_providers.c.organisation == organisation)
        return [_provider(row) for row in await self._read(wanted)]

    async def change_provider(self, provider: str, **changes: Any) -> bool:
        """Whether there is such a provider."""
        grown = {"version": custom_providers.c.version + 1}
        change = update(custom_providers).where(custom_providers.c.id == provider)
        return bool(await self._write(change.values(_checked(changes) | grown)))

    async def remove_provider(self, provider: str) -> bool:
        """With its credentials."""
        async with self._connected() as connection:
            mine = custom_providers.c.id == provider
            whose = select(custom_providers.c.organisation).where(mine).scalar_subquery()
            theirs = (credentials.c.upstream == provider, credentials.c.organisation == whose)
            await connection.execute(delete(credentials).where(*theirs))
            gone = await connection.execute(delete(custom_providers).where(mine))
            return bool(gone.rowcount)

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

    async def change_credential(self, credential: str, **changes: Any) -> bool:
        """Whether there is such a credential. A new ``secret`` is its next version; of two at once
        both are versions, and the later one stays."""
        secret = changes.pop("secret", None)
        values = _checked(changes)
        if secret is None:
            change = update(credentials).where(credentials.c.id == credential)
            return bool(await self._write(change.values(values)))
        for _ in range(TRIES):
            row = await self._credential(credential)
            if row is None:
                return False
            version = row.version + 1
            owner = bound_to(row.organisation, row.upstream, row.id, version)
            sealed = {"sealed": self._keyring.seal(secret, *owner), "shown": last_four(secret)}
            mine = (credentials.c.id == credential, credentials.c.version == row.version)
            new = values | sealed | {"version": version}
            if await self._write(update(credentials).where(*mine).values(new)):
                return True
        raise ValueError(f"{credential} is being changed by others all the time")

    async def remove_credential(self, credential: str) -> bool:
        """Whether there was one."""
        gone = delete(credentials).where(credentials.c.id == credential)
        return bool(await self._write(gone))

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
        try:
            async with self._connected() as connection:
                for statement in statements:
                    await connection.execute(statement)
        except ValueError:
            raise ValueError(f"there is no organisation {organisation}") from None

    # The keys they are sealed with

    async def seals(self) -> list[Seals]:
        """By key of the ring, the first one first."""
        ring = self._keyring
        found: dict[str, list[int]] = {}
        for place in PLACES:
            beginning = func.substr(place.table.c.sealed, 1, 11)
            wanted = select(beginning, func.count()).where(place.table.c.sealed.is_not(None))
            for text, count in await self._read(wanted.group_by(beginning)):
                numbers = found.setdefault(envelope.key_id(text), [0, 0])
                numbers[not text.startswith(envelope.FORMAT)] += count
        told = [
            Seals(key_id, key_id in ring, key_id == ring.first, *numbers)
            for key_id, numbers in found.items()
        ]
        return sorted(told, key=lambda one: (not one.first, not one.given, one.key_id))

    async def rotate(self, tell: Tell | None = None) -> Rotation:
        """Wrap everything under the first key of the ring; see `Sealing`."""
        rotation = Rotation()
        for _ in range(PASSES):
            rotation.seen, rotation.failed = 0, {}
            before = rotation.wrapped
            wanted = [select(func.count()).select_from(place.table) for place in PLACES]
            size = sum([(await self._read(count))[0][0] for count in wanted])
            for place in PLACES:
                await self._rotate(place, rotation, size, tell)
            if rotation.wrapped == before:
                break
        return rotation

    async def _rotate(self, place: Place, rotation: Rotation, size: int, tell: Tell | None) -> None:
        """One pass through a table, in the order of its ids."""
        table, last = place.table, ""
        while True:
            wanted = select(table).where(table.c.id > last).order_by(table.c.id).limit(BATCH)
            rows = await self._read(wanted)
            if not rows:
                return
            last = rows[-1].id
            changes = await asyncio.to_thread(self._rewrapped, place, rows, rotation)
            if changes:
                async with self._connected() as connection:
                    for change in changes:
                        rotation.wrapped += (await connection.execute(change)).rowcount
            rotation.seen += len(rows)
            if tell is not None:
                tell(rotation.seen, max(size, rotation.seen))

    def _rewrapped(
        self, place: Place, rows: Sequence[Row[Any]], rotation: Rotation
    ) -> list[Executable]:
        """What puts those of ``rows`` that are not under the first key under it, each if it still
        is what it was read as."""
        table, changes = place.table, []
        for row in rows:
            if row.sealed is None:
                continue
            owner = place.owner(row)
            try:
                sealed = self._keyring.rewrap(row.sealed, *owner)
                if sealed == row.sealed:
                    continue
                more = place.more(row, lambda: self._keyring.open(sealed, *owner))  # noqa: B023
            except KeyringError as error:
                rotation.failed[f"{table.name} {row.id}"] = str(error)
                continue
            unchanged = (table.c.id == row.id, table.c.sealed == row.sealed)
            changes.append(update(table).where(*unchanged).values(sealed=sealed, **more))
        return changes


class Place(NamedTuple):
    """A table with a column ``sealed``, and whom its envelopes are bound to."""

    table: Table
    owner: Callable[[Row[Any]], tuple[str, ...]]
    more: Callable[[Row[Any], Callable[[], str]], dict[str, str]] = lambda row, secret: {}
    """What else is written with a new envelope, from the secret."""


def _shown(row: Row[Any], secret: Callable[[], str]) -> dict[str, str]:
    """Nobody could open the earlier rows when they were given this column."""
    return {} if row.version != 1 or row.shown else {"shown": last_four(secret())}


PLACES = (
    Place(
        credentials,
        lambda row: bound_to(row.organisation, row.upstream, row.id, row.version),
        _shown,
    ),
)


def last_four(secret: str) -> str:
    """What may be shown of a secret."""
    return secret[-4:] if len(secret) >= LONG else ""


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

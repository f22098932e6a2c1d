"""Keys, organisations' own providers and credentials, and the books, in a SQL database.

Named in gateway.yaml by ``kind: sql``. This package is in two halves. What a running gateway needs
(``database``, ``ledger``, ``statements``) imports no SQLAlchemy; what writes (``admin``), migrates
(``migrate``) and describes the tables (``schema``) does, and is imported by commands and the
portal.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import AfterValidator

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.database import Sqlite, sqlite_path
from passy_plugins.stores.sql.ledger import Spool
from passy_plugins.stores.sql.ready import agree, make_ready
from passy_proxy import keys
from passy_proxy.config.settings import Secret, Settings, setting
from passy_proxy.hookspecs import hookimpl
from passy_proxy.json import loads
from passy_proxy.keyring import KeyringError
from passy_proxy.records import (
    Credential,
    CredentialRef,
    CustomProvider,
    Limits,
    Principal,
    UsageRow,
)
from passy_proxy.site import Site
from passy_proxy.stores import Store, StoreUnavailable

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_plugins.stores.sql.database import Row


def _known(url: Secret) -> Secret:
    sqlite_path(url.reveal())
    return url


class SqlSettings(Settings):
    url: Annotated[Secret, AfterValidator(_known)] = setting(
        ..., "Where the database is: sqlite:///relative/file.db or sqlite:////absolute/file.db."
    )
    waiting: int = setting(
        100_000, "Usage records kept in memory while the database is away, at most.", ge=1
    )


class Sql(Store):
    """Directory, Vault and Ledger on one database. Any number of processes may share it."""

    kind = "sql"
    Settings = SqlSettings

    def __init__(self, settings: SqlSettings, site: Site) -> None:
        self._url = settings.url.reveal()
        self._keyring = site.keyring
        path = sqlite_path(self._url)
        self._reader = Sqlite(path, "read")
        self._writer = Sqlite(path, "write")
        log = site.log.bind(store=self.kind)
        self._spool = Spool(self._writer.insert_usage, log, settings.waiting)

    async def start(self) -> None:
        """Open the database, make or migrate its tables, begin to take records.

        `StoreUnavailable` when it cannot be opened, is of a later version, or was made under
        another secret key.
        """
        try:
            await make_ready(self._writer, self._url)
            await agree(self._writer, self._keyring)
            await self._reader.open()
        except BaseException:
            await self.stop()  # Nobody will: it was never started.
            raise
        self._spool.start()

    async def stop(self) -> None:
        """Write the records that wait, then close."""
        await self._spool.stop()
        await self._reader.close()
        await self._writer.close()

    async def principal(self, digest: bytes) -> Principal | None:
        """One look-up by the unique index of the digests."""
        rows = await self._reader.fetch(statements.PRINCIPAL, digest)
        return _principal(rows[0]) if rows else None

    async def providers(self, organisation: str) -> Sequence[CustomProvider]:
        """By priority, those that are not active among them."""
        return [
            _provider(row) for row in await self._reader.fetch(statements.PROVIDERS, organisation)
        ]

    async def credential(self, ref: CredentialRef) -> Credential | None:
        """Opened at the moment it is asked for, and kept nowhere."""
        rows = await self._reader.fetch(statements.CREDENTIAL, ref.organisation, ref.upstream)
        if not rows:
            return None
        try:
            secret = self._keyring.open(cast(str, rows[0][0]), ref.organisation, ref.upstream)
        except KeyringError as error:
            raise StoreUnavailable(
                f"{ref.organisation}'s key for {ref.upstream}: {error}"
            ) from None
        return Credential(secret, ref.organisation)

    def record(self, row: UsageRow) -> None:
        """Queued; in the database a moment later, once per id."""
        self._spool.record(row)

    @property
    def waiting(self) -> int:
        """Records not yet known to be in the database."""
        return len(self._spool)

    @property
    def lost(self) -> int:
        """Records that were given up."""
        return self._spool.lost

    async def first_key(self) -> str | None:
        """A key for whoever starts out, if there is none in the database yet."""
        key = keys.new_key()
        digest = keys.digest(self._keyring.pepper, key.encode())
        made = await self._writer.fetch(
            statements.FIRST_KEY,
            f"key_{secrets.token_hex(8)}",
            digest,
            keys.shown(key),
            int(time.time() * 1000),
        )
        return key if made else None

    async def passing_key(self, name: str, seconds: float) -> str:
        """A test key that ends by itself; those of this name that have ended make room for it."""
        key, now = keys.new_key(), int(time.time() * 1000)
        digest = keys.digest(self._keyring.pepper, key.encode())
        await self._writer.fetch(statements.PASSED, name, now)
        values = (f"key_{secrets.token_hex(8)}", digest, keys.shown(key), name)
        ends = now + int(seconds * 1000)
        await self._writer.fetch(statements.PASSING_KEY, *values, now, ends)
        return key

    @classmethod
    def issuer(cls, settings: SqlSettings, site: Site) -> AbstractAsyncContextManager[Admin]:
        """What issues keys (see `passy_proxy.issue`), without a running store."""
        from passy_plugins.stores.sql.admin import Admin  # SQLAlchemy: a start can do without it

        return Admin.opened(settings.url.reveal(), site.keyring)


def _principal(row: Row) -> Principal:
    key_id, name, organisation, requests, tokens, concurrency, models, expires, *flags = row
    disabled, is_test, is_trial = flags
    return Principal(
        key_id=cast(str, key_id),
        name=cast(str, name),
        organisation=cast("str | None", organisation),
        limits=Limits(
            statements.rate_of(cast("str | None", requests)),
            statements.rate_of(cast("str | None", tokens)),
            cast("int | None", concurrency),
        ),
        models=None if models is None else tuple(loads(cast(str, models))),
        expires=None if expires is None else cast(int, expires) / 1000,
        disabled=bool(disabled),
        is_test=bool(is_test),
        is_trial=bool(is_trial),
    )


def _provider(row: Row) -> CustomProvider:
    provider, organisation, name, dialect, url, models, status, priority, version = row
    return CustomProvider(
        id=cast(str, provider),
        organisation=cast(str, organisation),
        name=cast(str, name),
        dialect=cast(str, dialect),
        url=cast(str, url),
        models=tuple(loads(cast(str, models))),
        active=status == "active",
        priority=cast(int, priority),
        version=cast(int, version),
    )


@hookimpl
def passy_stores() -> dict[str, type[Store]]:
    return {Sql.kind: Sql}

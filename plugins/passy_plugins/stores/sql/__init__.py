"""Keys, organisations' own providers and credentials, and the books, in a SQL database.

Named in gateway.yaml by ``kind: sql``. This package is in two halves. What a running gateway needs
(``database``, ``ledger``, ``statements``) imports no SQLAlchemy; what writes (``admin``), migrates
(``migrate``) and describes the tables (``schema``) does, and is imported by commands and the
portal.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, model_validator

from passy_plugins.stores.sql import delivery, statements, sums
from passy_plugins.stores.sql.driver import driver_for, is_postgres, place_of
from passy_plugins.stores.sql.feed import Feed
from passy_plugins.stores.sql.ledger import Shipper
from passy_plugins.stores.sql.link import Link
from passy_plugins.stores.sql.principal import principal_of
from passy_plugins.stores.sql.ready import agree, make_ready
from passy_plugins.stores.sql.sealed import have_keys, opened
from passy_plugins.stores.sql.telling import Telling
from passy_plugins.stores.sql.tending import Tending
from passy_proxy import keys
from passy_proxy.config.settings import Secret, Settings, setting
from passy_proxy.evidence import Proof
from passy_proxy.hookspecs import hookimpl
from passy_proxy.issue import Edited
from passy_proxy.journal import Journal, JournalSettings
from passy_proxy.json import dumps, loads, said
from passy_proxy.records import (
    Credential,
    CustomProvider,
    Principal,
    SetPrice,
    Switch,
    UsageRow,
)
from passy_proxy.site import Site
from passy_proxy.stores import Changes, Now, Store, StoreUnavailable, Told
from passy_proxy.units import Days, Duration

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_plugins.stores.sql.database import Row, Value


def _known(url: Secret) -> Secret:
    place_of(url.reveal())
    return url


PART_SECONDS = 2.0
"""For a word to the database at the end."""
READERS = 4
"""Connections of each worker for what requests ask; one more ships usage."""


class SqlSettings(Settings):
    url: Annotated[Secret, AfterValidator(_known)] = setting(
        ...,
        "Where the database is: sqlite:///relative/file.db, sqlite:////absolute/file.db, or"
        " postgresql://user:password@host:5432/name.",
    )
    keep: Days | None = setting(
        None,
        "How long single records of usage are kept: older ones are dropped, and their sums by hour"
        " and day stay. For ever when not given.",
    )
    keep_sums: Days | None = setting(
        None,
        "How long the sums of usage are kept, at least as long as the records; of what is gone"
        " nothing is known any more, by a budget for ever either. For ever when not given.",
    )
    journal: JournalSettings = setting({}, "Where usage records wait for the database.")
    start_timeout: Duration = setting(
        "30s",
        "How long a first start waits for a server that cannot be reached. Where it was reached"
        " before, what is known of it serves until it is back.",
        ge=0,
    )
    when_key_missing: Literal["refuse", "serve"] = setting(
        "refuse",
        "When credentials are sealed with a secret key that was not given: refuse to start, or "
        "serve all who need none of them.",
    )

    @model_validator(mode="after")
    def _sums_last(self) -> SqlSettings:
        if self.keep_sums is not None and (self.keep is None or self.keep > self.keep_sums):
            raise ValueError("keep_sums must be at least keep, which says how long records last")
        return self


class Sql(Telling, Store):
    """Directory, Vault, Ledger, Books, Alerts, Switchboard and Tariff on one database.

    Any number of processes may share it.
    """

    kind = "sql"
    Settings = SqlSettings

    def __init__(self, settings: SqlSettings, site: Site) -> None:
        self._url = settings.url.reveal()
        self._keyring = site.keyring
        place = place_of(self._url)
        self._reader = driver_for(self._url, "read", most=READERS)
        # What was shipped leaves the journal: it must not be less safe in the database.
        lasting = settings.journal.durability == "power"
        self._writer = driver_for(self._url, "write", lasting=lasting)
        self._serve = settings.when_key_missing == "serve"
        self.keep = settings.keep
        """Days that single records of usage are kept; ``None`` is for ever."""
        self._log = log = site.log.bind(store=self.kind)
        # By the place of the database: what waits for one must not end in another.
        self.place = hashlib.sha256(place.encode()).hexdigest()[:8]
        self._journal = Journal(site.data / "journal" / self.place, settings.journal, log)
        self._carries = site.carries_traffic
        self._shipper = Shipper(self._journal, self._written, self._delivered, log)
        self._link = Link(self._prepare, log)
        # A file is there or is not; a server may be about to start.
        self._patience = settings.start_timeout if is_postgres(self._url) else 0.0
        self._feed = Feed(self._fetch, log)
        self._heralds: list[Changes] = []
        self._tending = Tending(self._tend, settings.keep, settings.keep_sums, log)

    async def start(self) -> None:
        """Open the database, make or migrate its tables, begin to take records.

        Where it was reached before it may be away now. Else `StoreUnavailable` when it cannot be
        opened. `StoreRefuses` when it is of a later version, `KeyringError` when it was made under
        another secret key.
        """
        try:
            # The folder is made once the database was reached.
            before = self._journal.folder.is_dir()
            await self._link.start(None if before else self._patience)
            try:
                self._journal.start()
            except OSError as error:
                raise StoreUnavailable(f"{self._journal.folder}: {error}") from error
        except BaseException:
            await self.stop()  # Nobody will: it was never started.
            raise
        self._shipper.start()
        self._tending.start()

    async def _prepare(self) -> None:
        await make_ready(self._writer, self._url)
        await agree(self._writer, self._keyring)
        await have_keys(self._writer, self._keyring, self._log, serve=self._serve)
        await self._reader.open()

    async def _tend(self, now: int, oldest: int | None, oldest_sums: int | None) -> int:
        self._link.check()
        if self._carries:
            until = delivery.value(int(self._shipper.delivered() * 1000))
            mark = delivery.name_of(self._journal.name)
            await self._writer.fetch(statements.MOVE_MARK, mark, until)
        await self._writer.fetch(delivery.FORGET, delivery.before(now - delivery.WAITED_FOR))
        database = driver_for(self._url, "tend")
        try:
            return await database.tend(now, oldest, self._keyring, oldest_sums)
        finally:
            await database.close()

    async def stop(self) -> None:
        """Ship the records that wait, then close."""
        await self._tending.stop()
        await self._link.stop()
        await self._feed.stop()
        await self._shipper.stop()
        self._journal.stop(leave=not await self._parted())
        await self._reader.close()
        await self._writer.close()

    async def _parted(self) -> bool:
        """Whether nobody waits for records of this process any more. Otherwise what it leaves, if
        only its name, is for whoever takes it over."""
        if not self._carries or not self._journal.name:
            return True
        if self._journal.waiting or self._journal.running:
            return False
        try:
            async with asyncio.timeout(PART_SECONDS):
                await self._delivered(self._journal.name)
        except (StoreUnavailable, TimeoutError):
            return False
        return True

    async def _delivered(self, journal: str) -> None:
        """All of a journal is in the books, and it is about to go."""
        self._link.check()
        await self._writer.fetch(statements.DROP_MARK, delivery.name_of(journal))

    @property
    def state(self) -> str:
        return "ok" if self._link.up and self._feed.hears is not False else "away"

    def meet(self, others: Iterable[Store]) -> None:
        self._heralds = [each for each in others if isinstance(each, Changes)]

    async def publish(self, kind: str, subject: str) -> None:
        await self._feed.publish(kind, subject)

    def listen(self, told: Told) -> Callable[[], None]:
        return self._feed.listen(told)

    @property
    def hears(self) -> bool:
        """Whether edits are seen as they happen: within `feed.EVERY` seconds."""
        return self._feed.hears is True

    async def _fetch(self, statement: str, *values: Value) -> list[Row]:
        self._link.check()
        return await self._reader.fetch(statement, *values)

    async def principal(self, digest: bytes) -> Principal | None:
        """One look-up by the unique index of the digests."""
        now = int(time.time() * 1000)
        return principal_of(await self._fetch(statements.PRINCIPAL, digest, digest, now), digest)

    async def providers(self, organisation: str) -> Sequence[CustomProvider]:
        """By priority, those that are not active among them."""
        return [_provider(row) for row in await self._fetch(statements.PROVIDERS, organisation)]

    async def credentials(self, organisation: str) -> Sequence[Credential]:
        """Opened at the moment they are asked for, and kept nowhere."""
        rows = await self._fetch(statements.CREDENTIALS, organisation)
        return await opened(self._keyring, organisation, rows)

    async def switches(self) -> Sequence[Switch]:
        """All of them."""
        rows = await self._fetch(statements.SWITCHES)
        told = cast("list[tuple[str, str, Any, str, int]]", rows)
        return [
            Switch(model, target, state, by, at / 1000) for model, target, state, by, at in told
        ]

    async def tariff(self) -> Sequence[SetPrice]:
        """All of them."""
        rows = await self._fetch(statements.SET_PRICES)
        told = cast("list[tuple[str, str, str, int]]", rows)
        return [SetPrice(target, loads(rates), by, at / 1000) for target, rates, by, at in told]

    @property
    def full(self) -> bool:
        """Whether the journal has no room for what begins now."""
        return self._journal.full

    def begin(self, id: str, note: bytes) -> None:
        """In the journal, for whoever comes after us."""
        if not self._journal.open(id, note):
            self._journal.open(id, said(shortened(loads(note))))

    def record(self, row: UsageRow, proof: Proof | None = None) -> Now[bool]:
        """In the journal now, and in the database a moment later, once per id. There it is entered
        in the chain of evidence, once there is one: the first ``proof`` begins it."""
        if proof is not None:
            row = (*row, tuple(proof))
        try:
            json = dumps(row)
        except (TypeError, ValueError):
            json = said(row)
        if len(json) > LONGEST_RECORD:
            json = said(clipped(row))
        journal = self._journal
        kept = journal.close(row[0], json)
        if self._shipper.asleep:
            self._shipper.wake()
        return _when(journal.durable(), kept) if journal.power else kept

    def price(self, id: str, nanos: int, price: str) -> None:
        """In the journal, behind the record it belongs to."""
        self._journal.price(said((nanos, price, id)))
        if self._shipper.asleep:
            self._shipper.wake()

    @property
    def waiting(self) -> int:
        """Bytes of records that are not known to be in the database."""
        return self._journal.waiting

    async def spent(self, kind: str, subject: str, unit: str, start: float, end: float) -> int:
        """What was shipped, to the millisecond."""
        values = sums.values(subject, start, end)
        ((spent,),) = await self._fetch(sums.spent(kind, unit), *values)
        return int(cast(int, spent))

    async def _written(self, records: Sequence[bytes], prices: Sequence[bytes]) -> None:
        self._link.check()
        await self._writer.record(records, prices, self._keyring)

    async def first_key(self) -> str | None:
        """A key for whoever starts out, if there is none in the database yet, in an organisation
        that waits for its owner."""
        self._link.check()
        key, now = keys.new_key(), int(time.time() * 1000)
        digest = keys.digest(self._keyring.pepper, key.encode())
        await self._writer.fetch(statements.FIRST_ORGANISATION, now)
        values = (f"key_{secrets.token_hex(8)}", digest, keys.shown(key), now)
        made = await self._writer.fetch(statements.FIRST_KEY, *values)
        return key if made else None

    async def passing_key(self, name: str, seconds: float) -> str:
        """A test key that ends by itself; those of this name that have ended make room for it."""
        self._link.check()
        key, now = keys.new_key(), int(time.time() * 1000)
        digest = keys.digest(self._keyring.pepper, key.encode())
        await self._writer.fetch(statements.PASSED, name, now)
        values = (f"key_{secrets.token_hex(8)}", digest, keys.shown(key), name)
        ends = now + int(seconds * 1000)
        await self._writer.fetch(statements.PASSING_KEY, *values, now, ends)
        return key

    def admin(self) -> AbstractAsyncContextManager[Admin]:
        """The writing side of this very database."""
        from passy_plugins.stores.sql.admin import Admin  # SQLAlchemy: a start can do without it

        return Admin.opened(self._url, self._keyring, self._edited)

    async def _edited(self, kind: str, subject: str) -> None:
        """Let all know at once who listen to something faster than the table of changes."""
        self._feed.look()
        for herald in self._heralds:
            with suppress(StoreUnavailable):
                await herald.publish(kind, subject)

    @classmethod
    def issuer(
        cls, settings: SqlSettings, site: Site, edited: Edited | None = None
    ) -> AbstractAsyncContextManager[Admin]:
        """What issues keys (see `passy_proxy.issue`), without a running store."""
        from passy_plugins.stores.sql.admin import Admin  # SQLAlchemy: a start can do without it

        return Admin.opened(settings.url.reveal(), site.keyring, edited)


async def _when(durable: Awaitable[None], kept: bool) -> bool:
    await durable
    return kept


LONGEST_RECORD = 1 << 14
"""Bytes of a record as it is; the usual one has some hundreds."""
LONGEST_NAME = 200
"""Characters of each text in a longer one."""


def clipped(value: Any) -> Any:
    """A row with texts of a bearable length. Names are clients' words and reasons are upstreams':
    a megabyte of them would fit into no segment, or be read from none."""
    if isinstance(value, str):
        return value[:LONGEST_NAME]
    return tuple(map(clipped, value)) if isinstance(value, tuple | list) else value


def shortened(row: Sequence[Any]) -> tuple[Any, ...]:
    """A `BegunRow` with names of a bearable length and its last attempt alone: it is for a small
    place."""
    *facts, asked, _ = row
    *names, price = [_short(name) if isinstance(name, str) else name for name in asked]
    return (*facts, [*names, price[:14]], ())


def _short(name: str) -> str:
    """40 characters, or fewer of those that take up to six bytes each."""
    name = name[:40]
    return name if name.isascii() and name.isprintable() else name[:14]


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

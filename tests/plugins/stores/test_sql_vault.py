"""The vault in a database, on SQLite and PostgreSQL: what moves nowhere, what rotation leaves, and
what earlier versions sealed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from passy_plugins.stores.sql import Sql, SqlSettings, migrate, rotation
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.engine import engine_for
from passy_proxy.config.settings import Secret
from passy_proxy.issue import NewCredential, NewProvider
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

OLD = "the old secret key of these tests: 0123456789"
NEW = "a newer secret key of these tests: 9876543210"
OLD_RING, BOTH, NEW_RING = Keyring([OLD]), Keyring([NEW, OLD]), Keyring([NEW])


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/passy.db"
    return str(request.getfixturevalue("database").url)


@pytest.fixture
def local(tmp_path: Path) -> str:
    """Where the database makes no difference."""
    return f"sqlite:///{tmp_path}/passy.db"


@asynccontextmanager
async def store_at(url: str, folder: Path, ring: Keyring) -> AsyncIterator[Sql]:
    settings = SqlSettings(url=Secret(url), when_key_missing="serve")
    store = Sql(settings, Site(folder / secrets.token_hex(4), ring))
    await store.start()
    yield store
    await store.stop()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncEngine]:
    engine = engine_for(url)
    try:
        yield engine
    finally:
        await engine.dispose()


async def done(url: str | AsyncEngine, statement: str, **values: Any) -> list[Any]:
    """What a statement gives, or changes."""
    if isinstance(url, str):
        async with connected(url) as engine:
            return await done(engine, statement, **values)
    async with url.begin() as connection:
        result = await connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []


def sealed_before(plain: str, *owner: str) -> str:
    """As the first version sealed, under the old key."""
    aead = AESGCM(hmac.digest(OLD.encode(), b"passy/seal/v1", "sha256"))
    bound = hashlib.sha256(repr(tuple(owner)).encode()).digest()
    nonce = secrets.token_bytes(12)
    parts = (nonce, aead.encrypt(nonce, plain.encode(), bound))
    first, second = (base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    return f"v1:{OLD_RING.first}:{first}:{second}"


async def upgraded(url: str, revision: str) -> None:
    def run(connection: Connection) -> None:
        config = migrate.settings()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    engine = engine_for(url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


async def test_what_earlier_versions_kept_is_moved_opens_and_becomes_new(
    url: str, tmp_path: Path
) -> None:
    await upgraded(url, "0003")
    await done(url, "INSERT INTO organisations (id, name, created) VALUES ('acme', 'Acme', 1)")
    await done(
        url,
        "INSERT INTO credentials (organisation, upstream, sealed, created)"
        " VALUES ('acme', 'openai', :sealed, 7)",
        sealed=sealed_before("sk-of-acme-for-openai", "acme", "openai"),
    )
    for id, status, sealed in (
        ("prov_1", "active", sealed_before("sk-of-acme-for-prov-1", "acme", "prov_1")),
        ("prov_2", "inactive", None),
    ):
        await done(
            url,
            "INSERT INTO custom_providers (id, organisation, name, dialect, url, models, status,"
            " priority, version, sealed, created) VALUES (:id, 'acme', 'x', 'openai',"
            " 'https://x.test', '[\"*\"]', :status, 0, 1, :sealed, 8)",
            id=id,
            status=status,
            sealed=sealed,
        )
    async with store_at(url, tmp_path, BOTH) as store:
        expected = {"openai": "sk-of-acme-for-openai", "prov_1": "sk-of-acme-for-prov-1"}
        found = await store.credentials("acme")
        assert expected == {one.upstream: one.secret for one in found}
        assert [True, False] == [one.active for one in await store.providers("acme")]
        async with Admin.opened(url, BOTH) as admin:
            assert {""} == {one.shown for one in await admin.list_credentials()}
            (seals,) = await admin.seals()
            assert (OLD_RING.first, False, 0, 2) == (
                seals.key_id,
                seals.first,
                seals.current,
                seals.earlier,
            )
            assert (2, 2, {}) == vars_of(await admin.rotate())
            (seals,) = await admin.seals()
            assert (NEW_RING.first, 2, 0) == (seals.key_id, seals.current, seals.earlier)
            assert {"enai", "ov-1"} == {one.shown for one in await admin.list_credentials()}
        found = await store.credentials("acme")
        assert expected == {one.upstream: one.secret for one in found}


def vars_of(turned: rotation.Rotation) -> tuple[int, int, dict[str, str]]:
    return turned.seen, turned.wrapped, turned.failed


async def test_K2_no_envelope_opens_in_the_place_of_another(url: str, tmp_path: Path) -> None:
    async with Admin.opened(url, OLD_RING) as admin:
        acme, other = [await admin.create_organisation(name) for name in ("Acme", "Other")]
        for organisation in (acme, other):
            for upstream in ("openai", "openai", "anthropic"):
                new = NewCredential(organisation, upstream)
                await admin.add_credential(new, f"sk-{organisation}-{upstream}")
            own = NewProvider(organisation, "Mine", "https://mine.test")
            await admin.add_provider(own, f"sk-{organisation}-own")
        hook, _ = await admin.add_webhook(acme, "https://hook.test/x")
    rows = {id: sealed for id, sealed in await done(url, "SELECT id, sealed FROM credentials")}
    [(signing,)] = await done(url, "SELECT sealed FROM webhooks")
    rows["the webhook's"] = signing
    assert 9 == len(rows) == len(set(rows.values()))
    change = "UPDATE credentials SET sealed = :sealed WHERE id = :id"
    async with store_at(url, tmp_path, OLD_RING) as store, connected(url) as engine:
        opened = 0
        pairs = [pair for pair in itertools.permutations(rows, 2) if pair[0] != "the webhook's"]
        # All of them where that is quick: the rows are the same everywhere.
        for mine, theirs in pairs if url.startswith("sqlite") else random.sample(pairs, 12):
            await done(engine, change, id=mine, sealed=rows[theirs])
            found = [*await store.credentials(acme), *await store.credentials(other)]
            (one,) = [each for each in found if each.id == mine]
            opened += bool(one.secret)
            assert "belongs elsewhere" in one.trouble
            await done(engine, change, id=mine, sealed=rows[mine])
        assert 0 == opened
        found = [*await store.credentials(acme), *await store.credentials(other)]
        assert 8 == len([one for one in found if one.secret])
    assert hook.id


@pytest.mark.parametrize(
    "edit",
    [
        "organisation = (SELECT id FROM organisations WHERE name = 'Other')",
        "upstream = 'anthropic'",
        "id = 'cred_0000000000000000'",
        "version = 2",
        "version = 0",
    ],
)
async def test_K2_an_envelope_opens_in_no_row_but_its_own(
    local: str, tmp_path: Path, edit: str
) -> None:
    async with Admin.opened(local, OLD_RING) as admin:
        organisations = [await admin.create_organisation(name) for name in ("Acme", "Other")]
        await admin.add_credential(NewCredential(organisations[0], "openai"), "sk-of-acme")
    await done(local, f"UPDATE credentials SET {edit}")
    async with store_at(local, tmp_path, OLD_RING) as store:
        (one,) = [each for name in organisations for each in await store.credentials(name)]
    assert ("", True) == (one.secret, "belongs elsewhere" in one.trouble)


async def test_K2_an_earlier_secret_of_the_same_row_does_not_come_back(
    url: str, tmp_path: Path
) -> None:
    async with Admin.opened(url, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        mine = await admin.add_credential(NewCredential(acme, "openai"), "sk-first")
        [(earlier,)] = await done(url, "SELECT sealed FROM credentials")
        assert await admin.change_credential(mine, secret="sk-second")
        await done(url, "UPDATE credentials SET sealed = :sealed", sealed=earlier)
    async with store_at(url, tmp_path, OLD_RING) as store:
        (one,) = await store.credentials(acme)
    assert "" == one.secret


async def test_K5_rotation_beside_writers_loses_no_newer_value(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writer has both keys, the other only the old one, as on a host that was not restarted."""
    monkeypatch.setattr(rotation, "BATCH", 10)
    random.seed(5)
    async with Admin.opened(url, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        ids = [
            await admin.add_credential(NewCredential(acme, "openai"), f"sk-{number}-0")
            for number in range(30)
        ]
    latest = {id: f"sk-{number}-0" for number, id in enumerate(ids)}
    stopped = asyncio.Event()
    written = 0

    async def write(ring: Keyring, mine: list[str]) -> None:
        nonlocal written
        async with Admin.opened(url, ring) as admin:
            while not stopped.is_set():
                id = random.choice(mine)
                secret = f"sk-{secrets.token_hex(8)}"
                assert await admin.change_credential(id, secret=secret)
                latest[id] = secret
                written += 1

    rewrapped = rotation.Rotating._rewrapped

    def meanwhile(*given: Any) -> Any:
        """Between the reading of some rows and the writing of what is made of them."""
        seen = written
        while written == seen and not stopped.is_set():
            time.sleep(0.001)
        return rewrapped(*given)

    monkeypatch.setattr(rotation.Rotating, "_rewrapped", meanwhile)
    writers = [
        asyncio.ensure_future(write(BOTH, ids[::2])),
        asyncio.ensure_future(write(OLD_RING, ids[1::2])),
    ]
    async with Admin.opened(url, BOTH) as admin:
        while written < 10:  # noqa: ASYNC110  # two of them count together
            await asyncio.sleep(0.01)
        before = written
        turned = await admin.rotate()
        assert written > before, "they wrote meanwhile"
        stopped.set()
        await asyncio.gather(*writers)
        assert {} == turned.failed
        assert turned.wrapped >= 15
        last = await admin.rotate()
        assert {} == last.failed
        (seals,) = await admin.seals()
    assert (NEW_RING.first, 30) == (seals.key_id, seals.current)
    ring = Keyring([NEW, BOTH.retired(OLD_RING.first)])
    async with store_at(url, tmp_path, ring) as store:
        assert latest == {one.id: one.secret for one in await store.credentials(acme)}
    async with Admin.opened(url, OLD_RING) as admin:
        (seals,) = await admin.seals()
        assert not seals.given
    async with store_at(url, tmp_path, OLD_RING) as store:
        found = await store.credentials(acme)
        assert (30, {""}) == (len(found), {one.secret for one in found}), (
            "the old key opens nothing"
        )


async def test_K5_an_interrupted_rotation_goes_on_where_it_was(
    local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 3)
    async with Admin.opened(local, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        for number in range(12):
            await admin.add_credential(NewCredential(acme, "openai"), f"sk-{number}")
    told: list[tuple[int, int]] = []

    def tell(seen: int, size: int) -> None:
        told.append((seen, size))
        if seen >= 6:
            raise KeyboardInterrupt

    async with Admin.opened(local, BOTH) as admin:
        with pytest.raises(KeyboardInterrupt):
            await admin.rotate(tell)
        counts = {one.key_id: one.current for one in await admin.seals()}
        assert {NEW_RING.first: 6, OLD_RING.first: 6} == counts
        assert [(3, 12), (6, 12)] == told
        assert (12, 6, {}) == vars_of(await admin.rotate())
        assert (12, 0, {}) == vars_of(await admin.rotate())


async def test_what_cannot_be_wrapped_is_named_and_the_rest_is(local: str, tmp_path: Path) -> None:
    async with Admin.opened(local, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        ids = [
            await admin.add_credential(NewCredential(acme, "openai"), f"sk-{number}")
            for number in range(3)
        ]
        await admin.add_webhook(acme, "https://hook.test/x")
    await done(local, "UPDATE credentials SET sealed = 'v9:what' WHERE id = :id", id=ids[0])
    stranger = Keyring(["a third secret key of these tests: 0123456789"]).seal("x", "y")
    await done(
        local, "UPDATE credentials SET sealed = :sealed WHERE id = :id", id=ids[1], sealed=stranger
    )
    async with Admin.opened(local, BOTH) as admin:
        turned = await admin.rotate()
        assert {f"credentials {ids[0]}", f"credentials {ids[1]}"} == set(turned.failed)
        assert (4, 2) == (turned.seen, turned.wrapped)
        assert "damaged or of a later version" in turned.failed[f"credentials {ids[0]}"]
        assert "not among the secret keys given" in turned.failed[f"credentials {ids[1]}"]
        counts = {(one.key_id, one.given): one.current + one.earlier for one in await admin.seals()}
    missing = stranger.split(":")[1]
    assert {(NEW_RING.first, True): 2, (missing, False): 1, ("", False): 1} == counts
    async with store_at(local, tmp_path, BOTH) as store:
        found = {one.id: one.secret for one in await store.credentials(acme)}
    assert {ids[0]: "", ids[1]: "", ids[2]: "sk-2"} == found


async def test_two_who_replace_a_secret_at_once_both_do(url: str, tmp_path: Path) -> None:
    async with Admin.opened(url, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        mine = await admin.add_credential(NewCredential(acme, "openai"), "sk-first")
        changes = [admin.change_credential(mine, secret=f"sk-new-{number}") for number in range(8)]
        assert 8 * [True] == await asyncio.gather(*changes)
        (known,) = await admin.list_credentials(acme)
        assert 9 == known.version
    async with store_at(url, tmp_path, OLD_RING) as store:
        (one,) = await store.credentials(acme)
        assert one.secret.startswith("sk-new-")


async def test_every_edit_of_what_was_brought_leaves_a_note(url: str) -> None:
    async with Admin.opened(url, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")

        async def noted() -> int:
            said = "SELECT count(*) FROM changes WHERE kind = 'credential' AND subject = :acme"
            [(count,)] = await done(admin._engine, said, acme=acme)
            return int(count)

        before = await noted()
        provider = await admin.add_provider(NewProvider(acme, "x", "https://x.test"), "sk-x")
        credential = await admin.add_credential(NewCredential(acme, "openai"), "sk-y")
        for edit in (
            admin.change_provider(provider, models=("a",)),
            admin.change_credential(credential, status="disabled"),
            admin.change_credential(credential, secret="sk-z"),
            admin.remove_credential(credential),
            admin.remove_provider(provider),
        ):
            assert await edit
        assert before + 7 == await noted()
        assert [] == await admin.list_credentials(acme)
        for gone in (
            admin.change_provider(provider, priority=1),
            admin.change_credential(credential, priority=1),
            admin.change_credential(credential, secret="sk"),
            admin.remove_credential(credential),
            admin.remove_provider(provider),
        ):
            assert not await gone
        assert await admin.open_credential(credential) is None
        assert before + 7 == await noted()


async def test_of_a_deleted_organisation_no_secret_is_left(url: str, tmp_path: Path) -> None:
    async with Admin.opened(url, OLD_RING) as admin:
        acme, other = [await admin.create_organisation(name) for name in ("Acme", "Other")]
        for organisation in (acme, other):
            await admin.add_provider(NewProvider(organisation, "x", "https://x.test"), "sk-x")
            await admin.add_credential(NewCredential(organisation, "openai"), "sk-y")
        assert await admin.delete_organisation(acme)
        assert {other} == {one.organisation for one in await admin.list_credentials()}
    async with store_at(url, tmp_path, OLD_RING) as store:
        assert [] == await store.credentials(acme)
        assert [False] == [one.active for one in await store.providers(acme)]
        assert 2 == len(await store.credentials(other))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "inactive"}, "active or disabled"),
        ({"organisation": "other"}, "cannot set organisation"),
        ({"sealed": "v2:"}, "cannot set sealed"),
        ({"name": "a\0b"}, "NUL"),
    ],
)
async def test_what_cannot_be_set_is_refused(
    local: str, changes: dict[str, Any], said: str
) -> None:
    async with Admin.opened(local, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        mine = await admin.add_credential(NewCredential(acme, "openai"), "sk-first")
        with pytest.raises(ValueError, match=said):
            await admin.change_credential(mine, **changes)
        with pytest.raises(ValueError, match="no organisation nowhere"):
            await admin.add_credential(NewCredential("nowhere", "openai"), "sk-first")
        with pytest.raises(ValueError, match="the key is empty"):
            await admin.add_credential(NewCredential(acme, "openai"), "")


async def test_a_secret_that_was_entered_can_be_tried_and_is_shown_by_its_end(local: str) -> None:
    async with Admin.opened(local, OLD_RING) as admin:
        acme = await admin.create_organisation("Acme")
        long = await admin.add_credential(
            NewCredential(acme, "openai", "main"), "sk-proj-0123456789"
        )
        short = await admin.add_credential(NewCredential(acme, "nebius", "spare"), "sk-short")
        known = {one.id: (one.name, one.shown) for one in await admin.list_credentials()}
        assert {long: ("main", "6789"), short: ("spare", "")} == known
        opened = await admin.open_credential(long)
        assert opened is not None
        assert ("sk-proj-0123456789", acme, "openai") == (
            opened.secret,
            opened.owner,
            opened.upstream,
        )

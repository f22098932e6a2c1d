"""Organisations, teams, users, keys and budgets in the SQL store: what a principal is made of."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.postgres import Database

from passy_plugins.stores.sql import Sql, SqlSettings
from passy_plugins.stores.sql.admin import Admin
from passy_proxy import keys
from passy_proxy.config.settings import Secret
from passy_proxy.issue import NewBudget, NewKey
from passy_proxy.keyring import Keyring
from passy_proxy.records import Budget, Level, Limits, Principal
from passy_proxy.site import Site
from passy_proxy.units import Rate

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])


@pytest.fixture(params=["sqlite", "postgres"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/passy.db"
    database: Database = request.getfixturevalue("database")
    return database.url


@pytest.fixture
async def store(url: str, tmp_path: Path) -> AsyncIterator[Sql]:
    store = Sql(SqlSettings(url=Secret(url)), Site(tmp_path, RING))
    await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def admin(store: Sql, url: str) -> AsyncIterator[Admin]:
    async with Admin.opened(url, RING) as admin:
        yield admin


async def principal(store: Sql, key: str) -> Principal | None:
    return await store.principal(keys.digest(RING.pepper, key.encode()))


async def changes(store: Sql) -> list[tuple[Any, ...]]:
    return await store._reader.fetch("SELECT kind, subject FROM changes ORDER BY seq")


async def test_a_principal_has_all_that_is_held_above_it(store: Sql, admin: Admin) -> None:
    organisation = await admin.create_organisation(
        "Acme", requests=Rate(600, 60), models=("gpt-*", "claude-*"), byok="own_only"
    )
    team = await admin.create_team(organisation, "Research", tokens=Rate(1_000, 60))
    user = await admin.create_user("Ada@Example.com", "Ada", concurrency=3)
    await admin.set_member(organisation, user.id, "developer")
    of = {}
    for kind, subject in (
        ("organisation", organisation),
        ("team", team.id),
        ("user", user.id),
    ):
        new = NewBudget(kind, subject, "usd", 5 * 10**9, "month", alerts=(80, 50))  # type: ignore[arg-type]
        of[kind] = (await admin.add_budget(new)).budget
    assert Budget(of["team"].id, "usd", 5 * 10**9, "month", True, (50, 80)) == of["team"]
    record, key = await admin.create_key(
        NewKey(
            name="laptop",
            organisation=organisation,
            team=team.id,
            user_id=user.id,
            tags=("blue", "green"),
            limits=Limits(requests=Rate(60, 60)),
            networks=("10.1.2.3/8", "2001:db8::/32", "203.0.113.7"),
            upstreams=("openai",),
            usage_limit=12.5,
        )
    )
    found = await principal(store, key)
    assert found == Principal(
        key_id=record.id,
        name="laptop",
        organisation=organisation,
        limits=Limits(requests=Rate(60, 60)),
        team=team.id,
        user=user.id,
        tags="blue,green",
        budgets=(Budget(f"bud_{record.id}", "usd", 12_500_000_000, "total", True, (50, 80, 100)),),
        above=(
            Level(
                "organisation",
                organisation,
                Limits(requests=Rate(600, 60)),
                ("gpt-*", "claude-*"),
                (of["organisation"],),
            ),
            Level("team", team.id, Limits(tokens=Rate(1_000, 60)), None, (of["team"],)),
            Level("user", user.id, Limits(concurrency=3), None, (of["user"],)),
        ),
        networks=("10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32"),
        upstreams=("openai",),
        byok="own_only",
    )


async def test_levels_on_which_nothing_is_held_are_left_out(store: Sql, admin: Admin) -> None:
    organisation = await admin.create_organisation("Acme")
    team = await admin.create_team(organisation, "Research")
    _, key = await admin.create_key(
        NewKey(organisation=organisation, team=team.id, user_id="someone else's")
    )
    found = await principal(store, key)
    assert found is not None
    assert ((), team.id, "someone else's") == (found.above, found.team, found.user)


async def test_a_usage_limit_may_be_in_tokens(store: Sql, admin: Admin) -> None:
    record, key = await admin.create_key(
        NewKey(usage_limit=1_500, usage_period="day", usage_unit="tokens")
    )
    assert (1_500, "day", "tokens") == (record.usage_limit, record.usage_period, record.usage_unit)
    found = await principal(store, key)
    assert found is not None
    assert [("tokens", 1_500)] == [(each.unit, each.amount) for each in found.budgets]
    changed = await admin.change_key(record.id, usage_limit=2.5, usage_unit="usd")
    assert changed is not None
    assert (2.5, "day", "usd") == (changed.usage_limit, changed.usage_period, changed.usage_unit)
    for wrong in (0.5, -1, float("nan"), 1e16):
        with pytest.raises(ValueError, match="tokens"):
            await admin.change_key(record.id, usage_limit=wrong, usage_unit="tokens")
    with pytest.raises(ValueError, match="no unit"):
        await admin.change_key(record.id, usage_limit=1, usage_unit="euro")


async def test_two_budgets_on_one_level_are_two(store: Sql, admin: Admin) -> None:
    record, key = await admin.create_key(NewKey(usage_limit=1, usage_period="day"))
    new = NewBudget("key", record.id, "tokens", 1_000, "total", hard=False, alerts=())
    await admin.add_budget(new)
    found = await principal(store, key)
    assert found is not None
    kinds = {(each.unit, each.amount, each.period, each.hard) for each in found.budgets}
    assert {("usd", 10**9, "day", True), ("tokens", 1_000, "total", False)} == kinds


@pytest.mark.parametrize("level", ["organisation", "team", "user"])
@pytest.mark.parametrize("how", ["disabled", "deleted"])
async def test_a_key_is_no_better_than_what_is_above_it(
    store: Sql, admin: Admin, level: str, how: str
) -> None:
    ids = {"organisation": await admin.create_organisation("Acme")}
    ids["team"] = (await admin.create_team(ids["organisation"], "Research")).id
    ids["user"] = (await admin.create_user("ada@example.com")).id
    _, key = await admin.create_key(
        NewKey(organisation=ids["organisation"], team=ids["team"], user_id=ids["user"])
    )
    if how == "deleted":
        assert await getattr(admin, f"delete_{level}")(ids[level])
        assert await principal(store, key) is None
        assert not await getattr(admin, f"delete_{level}")(ids[level])
        return
    change = getattr(admin, f"change_{level}")
    assert await change(ids[level], status="disabled")
    found = await principal(store, key)
    assert found is not None
    assert found.disabled
    assert await change(ids[level], status="active")
    found = await principal(store, key)
    assert found is not None
    assert not found.disabled


async def test_K1_a_rolled_key_is_good_for_its_grace_and_no_longer(
    store: Sql, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, first = await admin.create_key(NewKey(name="laptop"))
    rolled = await admin.roll_key(record.id, grace=3600.0)
    assert rolled is not None
    again, second = rolled
    assert (record.id, keys.shown(second)) == (again.id, again.shown)
    assert again.old_until is not None
    new, old = await principal(store, second), await principal(store, first)
    assert new is not None
    assert old is not None
    assert (None, again.old_until) == (new.expires, old.expires)
    assert new == replace(old, expires=None)
    monkeypatch.setattr(time, "time", lambda: again.old_until + 0.01)
    assert await principal(store, first) is None
    assert await principal(store, second) is not None


async def test_K1_a_key_rolled_without_grace_ends_at_once(store: Sql, admin: Admin) -> None:
    record, first = await admin.create_key(NewKey())
    _, second = await admin.roll_key(record.id, grace=60) or (None, "")
    _, third = await admin.roll_key(record.id) or (None, "")
    assert await principal(store, first) is None
    assert await principal(store, second) is None
    assert await principal(store, third) is not None
    assert await admin.roll_key("key_none") is None
    with pytest.raises(ValueError, match="grace"):
        await admin.roll_key(record.id, grace=1e9)


async def test_a_key_is_changed_piece_by_piece(store: Sql, admin: Admin) -> None:
    organisation = await admin.create_organisation("Acme")
    team = await admin.create_team(organisation, "Research")
    record, key = await admin.create_key(NewKey(organisation=organisation, usage_limit=5))
    changed = await admin.change_key(
        record.id,
        name="server",
        team=team.id,
        tags=("a",),
        requests=Rate(5, 1),
        models=("gpt-4o",),
        networks=("10.0.0.0/8",),
        expires=2e9,
        usage_period="month",
    )
    assert changed is not None
    assert ("server", team.id, ("a",), Rate(5, 1), ("gpt-4o",), ("10.0.0.0/8",), 2e9) == (
        changed.name,
        changed.team,
        changed.tags,
        changed.limits.requests,
        changed.models,
        changed.networks,
        changed.expires,
    )
    assert (5.0, "month") == (changed.usage_limit, changed.usage_period)
    changed = await admin.change_key(record.id, usage_limit=None, models=None, requests=None)
    assert changed is not None
    assert (None, None, Limits()) == (changed.usage_limit, changed.models, changed.limits)
    found = await principal(store, key)
    assert found is not None
    assert ((), team.id) == (found.budgets, found.team)
    assert await admin.change_key("key_none", name="x") is None


async def test_a_deleted_key_is_gone_and_its_name_stays(store: Sql, admin: Admin) -> None:
    record, key = await admin.create_key(NewKey(name="laptop"))
    assert await admin.delete_key(record.id)
    assert not await admin.delete_key(record.id)
    assert await principal(store, key) is None
    assert [] == await admin.list_keys()
    assert await admin.change_key(record.id, name="x") is None
    kept = await admin.get_key(record.id)
    assert kept is not None
    assert ("laptop", True) == (kept.name, kept.deleted is not None)


async def test_a_test_key_reaches_echo_unless_somebody_said_otherwise(
    store: Sql, admin: Admin
) -> None:
    _, plain = await admin.create_key(NewKey(is_test=True))
    _, other = await admin.create_key(NewKey(is_test=True, upstreams=("openai", "echo")))
    _, real = await admin.create_key(NewKey(is_trial=True))
    found = [await principal(store, key) for key in (plain, other, real)]
    assert [("echo",), ("openai", "echo"), None] == [each and each.upstreams for each in found]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"networks": ("10.0.0.0/33",)}, "no range of addresses"),
    ({"networks": ("everywhere",)}, "no range of addresses"),
    ({"tags": ("a,b",)}, "no tag"),
    ({"tags": tuple(map(str, range(17)))}, "no more than 16"),
    ({"team": "team_none"}, "no team"),
    ({"models": ("",)}, "give a name"),
    ({"usage_limit": -1}, "between 0"),
    ({"usage_limit": float("nan")}, "between 0"),
    ({"usage_limit": 1, "usage_period": "year"}, "no period"),
    ({"name": "a\0b"}, "NUL"),
]


@pytest.mark.parametrize(("fields", "why"), BAD)
async def test_what_a_key_cannot_be_is_said_and_changes_nothing(
    store: Sql, admin: Admin, fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        await admin.create_key(NewKey(**fields))
    assert [] == await admin.list_keys()
    record, _ = await admin.create_key(NewKey())
    with pytest.raises(ValueError, match=why):
        await admin.change_key(record.id, **fields)
    assert record == await admin.get_key(record.id)


async def test_a_team_of_another_organisation_is_none_of_ours(store: Sql, admin: Admin) -> None:
    ours, theirs = [await admin.create_organisation(name) for name in ("Ours", "Theirs")]
    team = await admin.create_team(theirs, "Research")
    with pytest.raises(ValueError, match="no team"):
        await admin.create_key(NewKey(organisation=ours, team=team.id))


async def test_members_have_roles(admin: Admin) -> None:
    organisation = await admin.create_organisation("Acme")
    user = await admin.create_user("ada@example.com")
    await admin.set_member(organisation, user.id, "developer")
    await admin.set_member(organisation, user.id, "admin")
    [member] = await admin.list_members(organisation)
    assert (user.id, "admin") == (member.user_id, member.role)
    assert [member] == await admin.places_of(user.id)
    assert [user] == await admin.list_users(organisation)
    assert await admin.remove_member(organisation, user.id)
    assert not await admin.remove_member(organisation, user.id)
    with pytest.raises(ValueError, match="no role"):
        await admin.set_member(organisation, user.id, "king")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no user"):
        await admin.set_member(organisation, "user_none", "owner")
    with pytest.raises(ValueError, match="no organisation"):
        await admin.set_member("org_none", user.id, "owner")


async def test_an_e_mail_belongs_to_one_user(admin: Admin) -> None:
    ada = await admin.create_user("Ada@example.com")
    assert ada == await admin.user_of("ADA@EXAMPLE.COM")
    with pytest.raises(ValueError, match="already"):
        await admin.create_user("ada@example.com")
    bob = await admin.create_user("bob@example.com")
    with pytest.raises(ValueError, match="already"):
        await admin.change_user(bob.id, email="ada@example.com")
    with pytest.raises(ValueError, match="no e-mail"):
        await admin.create_user("ada")
    assert await admin.delete_user(ada.id)
    assert "ada@example.com" == (await admin.create_user("ada@example.com")).email


async def test_budgets_are_added_changed_and_removed(store: Sql, admin: Admin) -> None:
    record, key = await admin.create_key(NewKey())
    made = await admin.add_budget(NewBudget("key", record.id, "tokens", 10, "day"))
    assert await admin.change_budget(made.budget.id, amount=20, hard=False, alerts=(90,))
    assert not await admin.change_budget("bud_none", amount=20)
    found = await principal(store, key)
    assert found is not None
    assert (Budget(made.budget.id, "tokens", 20, "day", False, (90,)),) == found.budgets
    for amount, why in ((-1, "between"), (10**17, "between")):
        with pytest.raises(ValueError, match=why):
            await admin.change_budget(made.budget.id, amount=amount)
    with pytest.raises(ValueError, match="percent"):
        await admin.change_budget(made.budget.id, alerts=(0,))
    with pytest.raises(ValueError, match="no team"):
        await admin.add_budget(NewBudget("team", "team_none", "usd", 1))
    assert await admin.remove_budget(made.budget.id)
    assert [] == await admin.list_budgets("key", record.id)


async def test_D6_every_edit_leaves_a_note(store: Sql, admin: Admin) -> None:
    organisation = await admin.create_organisation("Acme")
    record, _ = await admin.create_key(NewKey(organisation=organisation))
    before = len(await changes(store))
    await admin.disable_key(record.id)
    await admin.roll_key(record.id)
    await admin.change_organisation(organisation, name="Other")
    made = await admin.add_budget(NewBudget("organisation", organisation, "usd", 1))
    await admin.remove_budget(made.budget.id)
    await admin.delete_key(record.id)
    await admin.change_organisation("org_none", name="nobody")
    key, ours = ("key", record.id), ("organisation", organisation)
    assert [key, key, ours, ours, ours, key] == (await changes(store))[before:]


async def test_K7_a_webhook_has_a_secret_that_is_shown_once(
    store: Sql, admin: Admin, tmp_path: Path
) -> None:
    organisation = await admin.create_organisation("Acme")
    hook, secret = await admin.add_webhook(organisation, "https://example.com/hook")
    assert len(secret) > 40
    assert [hook] == await admin.list_webhooks(organisation)
    assert secret.encode() not in b"".join(each.read_bytes() for each in tmp_path.glob("passy.db*"))
    for url in ("ftp://example.com", "https://", "https://ada:secret@example.com/"):
        with pytest.raises(ValueError, match="webhook"):
            await admin.add_webhook(organisation, url)
    with pytest.raises(ValueError, match="no organisation"):
        await admin.add_webhook("org_none", "https://example.com")
    assert await admin.remove_webhook(hook.id)


async def test_a_usage_limit_of_before_is_a_budget_now(tmp_path: Path) -> None:
    """By migration: what was only kept becomes what it was meant to be."""
    from passy_plugins.stores.sql import migrate

    path = tmp_path / "old.db"
    script = Path(migrate.__file__).with_name("fresh.sql").read_text()
    before, _, _ = script.partition("ALTER TABLE organisations ADD COLUMN status")
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(before)
        database.execute(
            "INSERT INTO keys (id, digest, shown, name, description, usage_limit, is_test,"
            " is_trial, disabled, created) VALUES ('key_1', x'01', '', '', '', 0.1, 0, 0, 0, 7)"
        )
    async with Admin.opened(f"sqlite:///{path}", RING) as admin:
        [key] = await admin.list_keys()
        assert (0.1, "total") == (key.usage_limit, key.usage_period)
        [budget] = await admin.list_budgets("key", "key_1")
        assert (100_000_000, True) == (budget.budget.amount, budget.budget.hard)

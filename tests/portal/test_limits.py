"""The tree of limits by its page and its API, on both databases, and gateways that hold it."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.past import asked, enter
from harness.portal import CONFIGURATION, Browser, found, joined, me
from harness.postgres import POSTGRES_FIRST, on_each

LIMITED = CONFIGURATION.replace(
    "alias, fallback]",
    "rate_limit: {counters: state}, alias, budgets: {counters: state, books: books}, fallback]",
).replace("stores:\n", "stores:\n  state: {kind: memory}\n")
OPERATED = "  /operated: {app: portal, store: books, organisation_limits: operator}\n"
TEXT = LIMITED.replace("apps:\n", f"apps:\n{OPERATED}")
DAY = 86_400


class Place(NamedTuple):
    gateway: Gateway
    owner: Browser
    organisation: str
    team: str
    key: dict[str, Any]
    """One in the team, as it was made: a hundred requests in the past, one each ten seconds."""

    def rows(self, browser: Browser | None = None) -> dict[str, Any]:
        """Id → what holds there."""
        told = (browser or self.owner).api("GET", "/limits").json["rows"]
        return {row["id"]: row for row in told}


@pytest.fixture(scope="module")
def here(serve: Serve) -> Place:
    """On SQLite: for what no database decides."""
    return furnished(serve(TEXT, **VARIABLES))


@pytest.fixture(scope="module", params=POSTGRES_FIRST)
def place(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Place]:
    yield from on_each(request, serve, TEXT, furnished)


def furnished(gateway: Gateway) -> Place:
    owner, _ = found(gateway)
    organisation = me(owner)["organisation"]
    made = Office(gateway).made(f"/organisations/{organisation}/teams", {"name": "Research"})
    key = owner.api("POST", "/keys", {"name": "nightly", "team": made["id"]}).json
    began = time.time() // DAY * DAY - 3 * DAY + 43_200
    whose = {"key_id": key["id"], "organisation": organisation, "team": made["id"],
             "user_id": key["user"]}  # fmt: skip
    enter(gateway, [asked(n, began + 10 * n, **whose) for n in range(100)])
    return Place(gateway, owner, organisation, made["id"], key)


FORM = {"requests": "", "tokens": "", "concurrency": "", "models": "", "amount-new": "",
        "unit-new": "usd", "period-new": "day", "hard-new": "hard", "alerts-new": ""}  # fmt: skip


def test_a_preview_says_what_last_week_would_have_been_and_changes_nothing(place: Place) -> None:
    owner, key = place.owner, place.key["id"]
    assert b"None set" in owner.look("/limits").body
    owner.look(f"/limits?edit=key&id={key}")
    # A bucket of two that gets one each 30 s; a cent each, and 25 cents a day.
    for fields, refused, told in (
        ({"requests": "2/min"}, 65, {"requests": 65}),
        ({"amount-new": "0.25"}, 75, 75),
        ({"amount-new": "0.25", "hard-new": "soft"}, 0, 0),
        ({"tokens": "250/min"}, 57, {"tokens": 57}),
        ({"concurrency": "1"}, 0, {}),
        ({"amount-new": "5000", "unit-new": "tokens", "period-new": "total"}, 50, 50),
    ):
        seen = owner.send(f"/limits/key/{key}", FORM | fields | {"do": "preview"})
        assert 200 == seen.status, seen.body
        text = seen.body.decode()
        assert f"Would have refused {refused} of 100 requests" in text, fields
        assert "With the limits as they are: 0." in text
        if isinstance(told, int) and told:
            assert f"budgets {told}." in text
        for field, value in fields.items():
            assert f'value="{value}"' in text, field
    body = {"limits": {"requests": "2/min"}, "budgets": [{"unit": "usd", "amount": 0.25,
            "period": "day"}]}  # fmt: skip
    for level, id in (("key", key), ("team", place.team), ("member", place.key["user"])):
        seen = owner.api("POST", f"/limits/{level}/{id}/preview", body)
        assert (200, 100, True) == (seen.status, seen.json["asked"], seen.json["whole"])
        assert {"refused": 75, "by": {"requests": 65, "new0": 10}} == seen.json["wanted"]
        assert {"refused": 0, "by": {}} == seen.json["today"]
    assert 100 == owner.api("POST", "/limits/organisation/preview", {}).json["asked"]
    assert key not in place.rows()


def test_a_budget_tells_what_is_used_how_fast_and_until_when(place: Place) -> None:
    owner, team = place.owner, place.team
    budget = {"unit": "usd", "amount": 2, "period": "total"}
    made = owner.api("PATCH", f"/limits/team/{team}", {"budgets": [budget]})
    assert 200 == made.status, made.body
    [told] = made.json["budgets"]
    assert (1.0, "total", 0.142857142) == (told["used"], told["window"], told["per_day"])
    lasts = calendar.timegm(time.strptime(told["spent_at"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert 7 * DAY == pytest.approx(lasts - time.time(), abs=60)
    page = owner.look("/limits").body.decode()
    assert "$1.00 used (50 %)" in page
    assert f'spent on <time datetime="{told["spent_at"][:10]}' in page
    smaller = {**budget, "id": told["id"], "amount": 0.5}
    owner.api("PATCH", f"/limits/team/{team}", {"budgets": [smaller]})
    assert "spent: it refuses" in owner.look("/limits").body.decode()
    assert 200 == owner.api("PATCH", f"/limits/team/{team}", {"budgets": []}).status


def test_what_is_set_by_a_form_is_held_by_the_gateway_and_noted(place: Place) -> None:
    owner, key = place.owner, place.key
    owner.look(f"/limits?edit=key&id={key['id']}")
    fields = FORM | {"requests": "2/h", "amount-new": "3", "period-new": "total", "do": "save"}
    fields |= {"alerts-new": "100, 50, 50"}
    assert 303 == owner.send(f"/limits/key/{key['id']}", fields).status
    row = place.rows()[key["id"]]
    assert {"requests": "2/h", "tokens": None, "concurrency": None} == row["limits"]
    [budget] = row["budgets"]
    assert ("usd", 3.0, "total", True, [50, 100]) == tuple(
        budget[name] for name in ("unit", "amount", "period", "hard", "alerts")
    )
    # It is the key's usage limit as well, and a second budget is one more.
    shown = owner.api("GET", f"/keys/{key['id']}").json
    assert (3.0, "total", "usd") == tuple(
        shown[name] for name in ("usage_limit", "usage_period", "usage_unit")
    )
    office = Office(place.gateway)

    def refused() -> bool | None:
        return office.chat(key["key"]).status == 429 or None

    assert until(refused)
    page = owner.look(f"/limits?edit=key&id={key['id']}").body.decode()
    id = budget["id"]
    assert f'name="amount-{id}"' in page
    same = FORM | {f"hard-{id}": "soft", f"alerts-{id}": "80", f"amount-{id}": "2.5"}
    more = {"amount-new": "10k", "unit-new": "tokens", "do": "save"}
    assert 303 == owner.send(f"/limits/key/{key['id']}", same | more).status
    budgets = place.rows()[key["id"]]["budgets"]
    assert [("usd", 2.5, False), ("tokens", 10_000, True)] == [
        (each["unit"], each["amount"], each["hard"]) for each in budgets
    ]
    # What was not named is gone: the amount that is left empty, and the rate.
    rest = {f"{name}-{each['id']}": "" for each in budgets for name in ("amount", "alerts")}
    rest |= {f"hard-{each['id']}": "hard" for each in budgets}
    assert 303 == owner.send(f"/limits/key/{key['id']}", FORM | rest | {"do": "save"}).status
    assert key["id"] not in place.rows()
    log = owner.look("/audit").body.decode()
    assert 3 == log.count("<td>limits.key</td>")
    assert "Every entry is as it was written." in log


def test_what_is_above_wins_and_is_named(here: Place) -> None:
    owner, team, key = here.owner, here.team, here.key["id"]
    narrow = {"limits": {"requests": "50/min", "concurrency": 4}, "models": ["gpt-*"],
              "budgets": [{"unit": "usd", "amount": 5, "period": "month"}]}  # fmt: skip
    wide = {"limits": {"requests": "1/s", "concurrency": 5}, "models": ["gpt-4o", "one"],
            "budgets": [{"unit": "usd", "amount": 6, "period": "day"}]}  # fmt: skip
    assert 200 == owner.api("PATCH", "/limits/organisation", narrow).status
    assert 200 == owner.api("PATCH", f"/limits/team/{team}", wide).status
    try:
        rows = here.rows()
        told = {one["what"]: one for one in rows[team]["conflicts"]}
        assert {"requests", "concurrency", "models", "budgets"} == set(told)
        assert {here.organisation} == {one["wins"] for one in told.values()}
        assert (
            "1/s requests here, and 50/min for the organisation Engines, which wins."
            == (told["requests"]["message"])
        )
        assert "one is allowed here" in told["models"]["message"]
        assert told["requests"]["message"] in owner.look("/limits").body.decode()
        owner.api("PATCH", f"/limits/key/{key}", {"limits": {"requests": "1/min"}})
        assert [] == here.rows()[key]["conflicts"]
    finally:
        nothing = {"limits": {"requests": None, "concurrency": None}, "models": None,
                   "budgets": []}  # fmt: skip
        for level in ("organisation", f"team/{team}", f"key/{key}"):
            assert 200 == owner.api("PATCH", f"/limits/{level}", nothing).status
    assert b"None set" in owner.look("/limits").body


WRONG: list[dict[str, str]] = [
    {"requests": "fast"}, {"tokens": "-1/min"}, {"concurrency": "0"}, {"amount-new": "x"},
    {"amount-new": "1e300"}, {"amount-new": "0.5", "unit-new": "tokens"}, {"unit-new": "euro"},
    {"period-new": "eon"}, {"hard-new": ""}, {"alerts-new": "0"}, {"do": "destroy"},
    {"amount-bud_1": "5"}, {"status": "disabled"}, {"id": "x"}, {"name": "x"}, {"byok": "own_only"},
]  # fmt: skip


def test_W4_what_no_form_offers_is_refused_and_what_was_typed_stays(here: Place) -> None:
    owner = here.owner
    owner.look("/limits?edit=organisation")
    for fields in WRONG:
        typed = FORM | {"models": "typed-by-hand", "do": "save"} | fields
        asked = owner.send("/limits/organisation", typed)
        assert 422 == asked.status, fields
        assert b'role="alert"' in asked.body, fields
        assert b'value="typed-by-hand"' in asked.body, fields
    for field in ("status", "name", "byok", "id", "organisation", "created", "role"):
        for level in ("organisation", f"team/{here.team}", f"key/{here.key['id']}"):
            refused = owner.api("PATCH", f"/limits/{level}", {field: "x"})
            assert 422 == refused.status, (level, field)
    theirs = {"budgets": [{"id": "bud_nowhere", "unit": "usd", "amount": 1}]}
    assert 422 == owner.api("PATCH", "/limits/organisation", theirs).status
    assert here.rows()[here.organisation]["models"] is None


def test_W3_W4_who_may_set_what(here: Place) -> None:
    owner, team = here.owner, here.team
    admin = joined(owner, "admin@example.com", "admin")
    developer = joined(owner, "developer@example.com", "developer")
    other = joined(owner, "second@example.com", "admin")
    user, mine = me(owner)["user"], me(admin)["user"]
    change = {"limits": {"requests": "9/min"}}
    assert 403 == admin.api("PATCH", "/limits/organisation", change).status
    assert 403 == admin.api("PATCH", f"/limits/member/{user}", change).status
    assert 403 == admin.api("PATCH", f"/limits/member/{mine}", change).status
    assert 200 == admin.api("PATCH", f"/limits/member/{me(developer)['user']}", change).status
    assert 200 == owner.api("PATCH", f"/limits/member/{mine}", {"limits": {}}).status
    assert 200 == admin.api("PATCH", f"/limits/team/{team}", change).status
    assert 403 == developer.api("PATCH", f"/limits/team/{team}", change).status
    # A developer sees their own and what is above it, and nobody else's numbers.
    made = developer.api("POST", "/keys", {"name": "own", "team": team, "usage_limit": 5}).json
    budget = {"budgets": [{"unit": "usd", "amount": 9}]}
    assert 200 == owner.api("PATCH", f"/limits/team/{team}", budget).status
    rows = here.rows(developer)
    assert {here.organisation, team, me(developer)["user"], made["id"]} == set(rows)
    assert (None, None) == tuple(rows[team]["budgets"][0][name] for name in ("used", "per_day"))
    assert 0 == rows[made["id"]]["budgets"][0]["used"]
    text = developer.look("/limits").body.decode()
    assert "nightly" not in text
    assert "What others use of it is not shown to your role." in text
    # Who is in another organisation, too, is limited by nobody here.
    office = Office(here.gateway)
    organisation = office.made("/organisations", {"name": "Others"})["id"]
    guest = me(other)["user"]
    office.admin("PUT", f"/organisations/{organisation}/members/{guest}", {"role": "viewer"})
    assert 404 == owner.api("PATCH", f"/limits/member/{guest}", change).status
    assert "second@example.com: in other organisations" in owner.look("/limits").body.decode()
    # Where the operator keeps that to himself, an owner sets nothing for all.
    told = {"cookie": "; ".join(f"{n}={v}" for n, v in owner.cookies.items()),
            "x_csrf_token": me(owner)["csrf_token"], "origin": here.gateway.url,
            "sec_fetch_site": "same-origin", "content_type": "application/json"}  # fmt: skip
    path = "/operated/api/limits/organisation"
    refused = here.gateway.ask(path, {"limits": {}}, method="PATCH", **told)
    assert (403, "not_allowed") == (refused.status, refused.json["error"]["code"])
    page = here.gateway.ask("/operated/limits", cookie=told["cookie"]).body.decode()
    assert not re.search("edit=organisation", page)
    assert re.search("edit=team", page)

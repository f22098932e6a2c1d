"""Keys and teams by their pages: what is asked for is found, what is doubtful is told, and who
leaves leaves their keys as it was said. On both databases where SQL decides."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.past import asked, enter
from harness.portal import CONFIGURATION, Browser, found, joined, key_in, me
from harness.postgres import BOTH, on_each

DAY = 86_400
TEXT = CONFIGURATION
NEW = {"usage_period": "total"}


class Place(NamedTuple):
    gateway: Gateway
    owner: Browser
    team: str
    ids: dict[str, str]
    """Name → the id of a key."""


@pytest.fixture(scope="module")
def here(serve: Serve) -> Place:
    """On SQLite: for what no database decides."""
    return furnished(serve(TEXT, **VARIABLES))


@pytest.fixture(scope="module", params=BOTH)
def place(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Place]:
    yield from on_each(request, serve, TEXT, furnished)


def furnished(gateway: Gateway) -> Place:
    """Four keys: one that spent much, one little in tokens, one disabled and one of a test."""
    owner, _ = found(gateway)
    user, organisation = me(owner)["user"], me(owner)["organisation"]
    team = owner.api("POST", "/teams", {"name": "Research"}).json["id"]
    keys: dict[str, dict[str, Any]] = {
        "dear": {"team": team, "usage_limit": 4, "usage_period": "total"},
        "Cheap": {"usage_limit": 50_000, "usage_unit": "tokens", "expires_at": "2999-01-01"},
        "away": {"tags": ["x"]},
        "trial run": {"is_test": True},
    }
    ids = {"first key": owner.api("GET", "/keys").json["rows"][0]["id"]}
    for name, fields in keys.items():
        ids[name] = owner.api("POST", "/keys", {"name": name, **fields}).json["id"]
    assert 200 == owner.api("PATCH", f"/keys/{ids['away']}", {"disabled": True}).status
    now = time.time()
    whose = {"organisation": organisation, "user_id": user}
    enter(gateway, [
        asked(n, now - n, key_id=ids["dear"] if n < 30 else ids["Cheap"], **whose)
        for n in range(1, 40)
    ] + [asked(40, now - 3 * DAY, key_id=ids["away"], cost_nanos=1, **whose)])  # fmt: skip
    return Place(gateway, owner, team, ids)


def names(browser: Browser, query: str = "") -> list[str]:
    """Of the keys on the page, in its order."""
    asked = browser.look(f"/keys?{query}")
    assert 200 == asked.status, asked.body
    rows = re.findall(r'<th scope="row"><a href="[^"]+">([^<]+)</a>', asked.body.decode())
    told = browser.api("GET", "/keys?" + query.replace("sort=", "order=").replace("status=",
                       "state=").replace("q=", "search=")).json["rows"]  # fmt: skip
    assert rows == [row["name"] for row in told]
    return rows


def test_keys_are_found_and_put_in_order(place: Place) -> None:
    owner = place.owner
    assert ["first key", "dear", "Cheap", "away", "trial run"] == names(owner)
    assert ["trial run", "away", "Cheap", "dear", "first key"] == names(owner, "sort=newest")
    assert ["away", "Cheap", "dear", "first key", "trial run"] == names(owner, "sort=name")
    assert ["dear", "Cheap"] == names(owner, "sort=spent")[:2]
    assert "Cheap" == names(owner, "sort=expires")[0]
    assert {"dear", "Cheap"} == set(names(owner, "sort=used")[:2])
    assert ["away"] == [n for n in names(owner, "sort=unused") if n in ("away", "dear")][:1]
    assert ["away"] == names(owner, "status=disabled")
    assert ["trial run"] == names(owner, "kind=test")
    assert ["dear"] == names(owner, f"team={place.team}")
    assert "dear" not in names(owner, "team=none")
    assert ["Cheap"] == names(owner, "q=cheap&status=active&kind=normal")
    assert [] == names(owner, "status=expired")
    assert b"No key is like that." in owner.look("/keys?status=expired").body
    page = owner.look("/keys?q=&status=&team=&kind=&sort=spent").body.decode()
    assert '$0.29 <span class="muted">of $4.00 in all</span>' in page
    assert '1,000 tokens <span class="muted">of 50,000 tokens in all</span>' in page


@pytest.mark.parametrize("order", ["oldest", "name", "spent", "used", "unused", "expires"])
def test_W6_each_page_goes_on_where_the_last_one_ended(place: Place, order: str) -> None:
    owner, seen, cursor = place.owner, [], ""
    whole = [row["id"] for row in owner.api("GET", f"/keys?order={order}").json["rows"]]
    for _ in range(9):
        page = owner.api("GET", f"/keys?order={order}&limit=2{cursor}").json
        seen += [row["id"] for row in page["rows"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert whole == seen
    other = "name" if order != "name" else "spent"
    assert 422 == owner.api("GET", f"/keys?order={other}{cursor}").status
    assert 422 == owner.look("/keys?sort=name;drop").status


def test_a_name_that_is_taken_and_a_limit_that_is_used_up_are_told_first(here: Place) -> None:
    owner = here.owner
    owner.look("/keys/new")
    told = owner.send("/keys/new", NEW | {"name": "DEAR"})
    assert 409 == told.status
    assert b"is called so, too." in told.body
    [sure] = re.findall(r'name="sure" value="([^"]*)"', told.body.decode())
    made = owner.send("/keys/new", NEW | {"name": "DEAR", "sure": sure})
    assert key_in(made)
    id = here.ids["dear"]
    owner.look(f"/keys/{id}")
    fields = NEW | {"name": "dear", "usage_limit": "0.25"}
    told = owner.send(f"/keys/{id}", fields)
    assert (409, True) == (told.status, b"is called so, too." in told.body)
    told = owner.send(f"/keys/{id}", fields | {"sure": "name"})
    assert (409, True) == (told.status, b"$0.29 are used in all" in told.body)
    assert 4.0 == owner.api("GET", f"/keys/{id}").json["usage_limit"]
    [sure] = re.findall(r'name="sure" value="([^"]*)"', told.body.decode())
    assert "name usage_limit" == sure
    assert 303 == owner.send(f"/keys/{id}", fields | {"sure": sure}).status
    assert 0.25 == owner.api("GET", f"/keys/{id}").json["usage_limit"]
    tokens = NEW | {"name": "dear", "usage_limit": "3k", "usage_unit": "tokens", "sure": sure}
    assert 303 == owner.send(f"/keys/{id}", tokens).status
    shown = owner.api("GET", f"/keys/{id}").json
    assert (3_000, "tokens") == (shown["usage_limit"], shown["usage_unit"])


def test_several_keys_are_changed_at_once_or_none(here: Place) -> None:
    owner, ids = here.owner, here.ids
    owner.look("/keys")
    two = {f"key-{ids[name]}": "on" for name in ("Cheap", "trial run")}
    assert 303 == owner.send("/keys/several", two | {"do": "disable", "team": "none"}).status
    assert {"away", "Cheap", "trial run"} <= set(names(owner, "status=disabled"))
    assert 303 == owner.send("/keys/several", two | {"do": "enable", "team": "none"}).status
    assert ["away"] == names(owner, "status=disabled")
    assert 303 == owner.send("/keys/several", two | {"do": "move", "team": here.team}).status
    assert "Cheap" in names(owner, f"team={here.team}")
    wrong: list[tuple[int, dict[str, str]]] = [
        (404, two | {"key-key_0": "on", "do": "disable"}), (422, {"do": "disable"}),
        (422, two | {"do": "delete"}), (422, two | {"do": "move", "team": "team_0"}),
        (422, two | {"do": "disable", "owner": "x"}),
    ]  # fmt: skip
    for status, fields in wrong:
        assert status == owner.send("/keys/several", {"team": "none"} | fields).status, fields
    assert ["away"] == names(owner, "status=disabled")


def test_teams_hold_keys_and_members_together(here: Place) -> None:
    owner = here.owner
    owner.look("/team")
    made = owner.send("/teams", {"name": "Support"})
    assert 303 == made.status
    team = made.headers["location"].split("/")[-1].partition("?")[0]
    assert 409 == owner.send("/teams", {"name": "support"}).status
    developer = joined(owner, "dev@example.com", "developer")
    user = me(developer)["user"]
    before = developer.api("POST", "/keys", {"name": "before"}).json["id"]
    assert 404 == developer.look(f"/teams/{team}").status
    owner.look(f"/teams/{team}")
    fields = {"user": user, "do": "in", "keys": "along"}
    assert 303 == owner.send(f"/teams/{team}/members", fields).status
    page = owner.look(f"/teams/{team}").body.decode()
    assert "dev@example.com" in page
    assert "before" in page
    assert 200 == developer.look(f"/teams/{team}").status
    # What a developer makes is in their team, and stays there.
    after = developer.api("POST", "/keys", {"name": "after"}).json
    assert team == after["team"]
    other = {"name": "elsewhere", "team": here.team}
    assert 403 == developer.api("POST", "/keys", other).status
    for wanted in (None, here.team):
        assert 403 == developer.api("PATCH", f"/keys/{before}", {"team": wanted}).status
    assert 200 == developer.api("PATCH", f"/keys/{before}", {"name": "still"}).status
    # A team that is disabled lets none of its keys in.
    office = Office(here.gateway)
    assert 200 == office.chat(after["key"]).status
    owner.look(f"/teams/{team}")
    off = {"name": "Support", "status": "disabled"}
    assert 303 == owner.send(f"/teams/{team}", off).status
    assert until(lambda: office.chat(after["key"]).status == 401 or None)
    assert 200 == owner.api("PATCH", f"/teams/{team}", {"status": "active"}).status
    assert 422 == owner.api("PATCH", f"/teams/{team}", {"organisation": "x"}).status
    assert 303 == owner.send(f"/teams/{team}/keys", {"key_id": before, "do": "out"}).status
    assert owner.api("GET", f"/keys/{before}").json["team"] is None
    assert 422 == owner.send(f"/teams/{team}/delete", {"typed": "support"}).status
    assert 303 == owner.send(f"/teams/{team}/delete", {"typed": "Support"}).status
    assert 404 == owner.api("GET", f"/keys/{after['id']}").status
    assert 200 == developer.api("GET", f"/keys/{before}").status
    assert developer.api("POST", "/keys", {"name": "free"}).json["team"] is None


def test_who_leaves_leaves_their_keys_as_it_was_said(here: Place) -> None:
    owner = here.owner
    heir = me(owner)["user"]
    for choice, fields in (
        ("disable", {}), ("keep", {}), ("move", {"heir": heir}),
    ):  # fmt: skip
        leaver = joined(owner, f"{choice}@example.com", "developer")
        key, user = leaver.api("POST", "/keys", {"name": choice}).json["id"], me(leaver)["user"]
        owner.look("/team")
        for bad in ({"keys": "move", "heir": user}, {"keys": "move"}, {"keys": "burn"}):
            assert 422 == owner.send(f"/team/{user}/remove", bad).status
        assert 303 == owner.send(f"/team/{user}/remove", {"keys": choice, **fields}).status
        left = owner.api("GET", f"/keys/{key}").json
        expected = ("disabled" if choice == "disable" else "active", heir if fields else user)
        assert expected == (left["state"], left["user"]), choice
        assert 401 == leaver.api("GET", "/keys").status


def test_the_snippets_of_a_new_key_work_as_they_are(here: Place) -> None:
    """Each is pasted whole. Those of programs that are not installed here are read."""
    here.owner.look("/keys/new")
    made = here.owner.send("/keys/new", NEW | {"name": "pasted", "models": "one"})
    pieces = re.findall(r"<code>(.*?)</code>", made.body.decode(), re.DOTALL)
    texts = [html.unescape(one) for one in pieces]
    key, url = key_in(made), here.gateway.url
    curl, python, node, claude, codex, opencode = texts[-6:]
    for command in (["sh", "-c", curl + " -sS --fail"], [sys.executable, "-c", python]):
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert 0 == ran.returncode, ran.stderr
        assert "hello" in ran.stdout
    assert f'baseURL: "{url}/v1", apiKey: "{key}"' in node
    assert f"ANTHROPIC_BASE_URL={url}\nexport ANTHROPIC_AUTH_TOKEN={key}\n" in claude
    settings = tomllib.loads(codex.partition("# in the shell")[0])
    provider = settings["model_providers"][settings["model_provider"]]
    assert (f"{url}/v1", "responses") == (provider["base_url"], provider["wire_api"])
    assert f"export {provider['env_key']}={key}" in codex
    told = json.loads(opencode.partition("\n")[2])["provider"]["passy"]
    assert {"baseURL": f"{url}/v1", "apiKey": key} == told["options"]
    assert {"one": {}} == told["models"]

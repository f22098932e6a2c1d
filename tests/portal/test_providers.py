"""Providers in the portal: a key is tried, entered, used, replaced and forgotten, and comes out
nowhere; what cannot be reached is told in two kinds of words."""

from __future__ import annotations

import html
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from harness.canary import Canaries
from harness.chromium import Complaints, launched
from harness.gateway import Gateway, Serve, until
from harness.office import TOKEN, VARIABLES, Office
from harness.portal import APART, CONFIGURATION, Apart, Browser, found, joined, key_in, me
from harness.upstream import Hit, RawUpstream, Step

from passy_plugins.api.denied import Denied
from passy_portal.access import ACCESS
from passy_portal.console import GatewayAway, over_http
from passy_proxy.testing import completion

if TYPE_CHECKING:
    from harness.gateway import Asked
    from playwright.sync_api import Page

MORE = """
connect: {{tenants_may_reach: [127.0.0.1]}}
upstreams:
  echo: {{kind: echo}}
  openai: {{url: "{url}/v1", credential: sk-of-the-operator-0123456789}}
  keyless: {{url: "{url}/v1"}}
  unset: {{url: "https://unset.example.com/v1", credential: "${{NOT_SET:-}}"}}
"""
ENOUGH = threading.Event()
"""Until then no key that waits is answered."""
SAID = "Incorrect API key provided: {}. <b>Find yours</b> in your account."


class Shop(NamedTuple):
    gateway: Gateway
    owner: Browser
    key: str
    """Of a client."""
    upstream: RawUpstream
    secrets: Canaries


def configuration(url: str) -> str:
    text = CONFIGURATION.replace("upstreams:\n  echo: {kind: echo}\n", MORE.format(url=url))
    text = text.replace("models:\n", "models:\n  m: {targets: [openai/m], fallback_on: []}\n")
    changed = text.replace(
        "alias, fallback]", "byok: {vault: books, ttl: 1s, patience: 1m}, alias, fallback]"
    )
    assert changed != text
    return changed


def answer(hit: Hit) -> Iterator[Step]:
    """What an upstream says is in the key that it is shown."""
    yield "read"
    shown = (hit.header("authorization") or "").removeprefix("Bearer ")
    status, body = 200, json.dumps(completion("Hi", "m"))
    if "-bad-" in shown:
        status, body = 401, json.dumps({"error": {"message": SAID.format(shown)}})
    elif "-spent-" in shown:
        status, body = 429, json.dumps({"error": {"message": "You exceeded your quota."}})
    elif "-broken-" in shown:
        body = '{"data": [{"id": '
    elif hit.method == "GET":
        body = json.dumps({"data": [{"id": "m"}, {"id": "text-embedding"}]})
    elif hit.body == b"{}":
        status, body = 400, json.dumps({"error": {"message": "model is needed"}})
    if "-waiting-" in shown:
        yield {"wait": ENOUGH}
    if "-slow-" in shown:
        yield {"wait": 0.3}
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    yield {"send": f"{head}content-length: {len(body)}\r\n\r\n{body}"}


@pytest.fixture(scope="module")
def shop(serve: Serve) -> Iterator[Shop]:
    with RawUpstream(script=answer) as upstream:
        gateway = serve(configuration(upstream.url), **VARIABLES)
        owner, key = found(gateway)
        yield Shop(gateway, owner, key, upstream, Canaries())


def tried_page(shop: Shop, secret: str, **fields: str) -> Asked:
    shop.owner.look("/providers/new")
    return shop.owner.send(
        "/providers/new", {"for": "openai", "key": secret, "do": "test", **fields}
    )


def text(asked: Asked) -> str:
    """What is to be read."""
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", asked.body.decode())).split())


def held(asked: Asked) -> str:
    shown = re.search(r'name="held" value="([^"]+)"', asked.body.decode())
    assert shown, asked.body
    return html.unescape(shown[1])


def verdicts(asked: Asked) -> list[str]:
    return re.findall(r'class="verdict \w+">(\w+)<', asked.body.decode())


def hit_with(shop: Shop, secret: str) -> bool | None:
    """Whether a client's request shows the upstream this key by now."""
    Office(shop.gateway).chat(shop.key, "m")
    return shop.upstream.hits[-1].header("authorization") == f"Bearer {secret}" or None


def credentials(shop: Shop) -> list[dict[str, Any]]:
    """As they were entered; how they do changes by itself."""
    rows: list[dict[str, Any]] = shop.owner.api("GET", "/credentials").json["rows"]
    assert all(row.pop("lately") for row in rows)
    return rows


def test_a_key_is_tried_then_entered_as_it_was_tried_and_used(shop: Shop) -> None:
    good = shop.secrets.word("the first key", "sk-good-")
    asked = tried_page(shop, good, name="main")
    assert (200, ["ok", "ok", "ok"]) == (asked.status, verdicts(asked))
    assert "The key can be used" in text(asked)
    assert [] == credentials(shop)
    fields = {"for": "openai", "name": "main", "priority": "0", "do": "save"}
    saved = shop.owner.send("/providers/new", {**fields, "held": held(asked)})
    assert "/portal/providers?done=added" == saved.headers["location"]
    [row] = credentials(shop)
    assert ("openai", "main", good[-4:]) == (row["upstream"], row["name"], row["last_four"])
    assert until(lambda: hit_with(shop, good))

    def counted() -> dict[str, Any] | None:
        rows = shop.owner.api("GET", "/upstreams").json["rows"]
        now: dict[str, Any] = next(one for one in rows if one["name"] == "openai")
        return now if now["lately"]["attempts"] else None

    now = until(counted)
    assert (1, "well", 0) == (now["own_keys"], now["lately"]["health"], now["lately"]["failed"])
    assert now["lately"]["last_ok_at"]
    with_key = shop.owner.api("GET", f"/credentials/{row['id']}").json["lately"]
    assert with_key == now["lately"] | {"since": with_key["since"]}, "all of it went with this key"


@pytest.mark.parametrize(
    ("kind", "expected", "ours", "theirs", "check"),
    [
        ("bad", ["refused", "skipped", "skipped"], "The key was refused", "Incorrect API key",
         "Was it revoked"),
        ("spent", ["limited", "unclear", "limited"], "its limit is used up",
         "You exceeded your quota.", "no credit"),
        ("broken", ["ok", "unclear", "failed"], "Its answer cannot be read.", "", "Name a model"),
        ("slow", ["ok", "ok", "ok"], "2 models.", "", ""),
    ],
)  # fmt: skip
def test_what_an_upstream_answers_is_told_in_our_words_and_in_its_own(
    shop: Shop, kind: str, expected: list[str], ours: str, theirs: str, check: str
) -> None:
    secret = shop.secrets.word(kind, f"sk-{kind}-")
    asked = tried_page(shop, secret)
    assert expected == verdicts(asked)
    shown = text(asked)
    assert ours in shown
    assert theirs in shown
    assert check in shown
    assert "<b>Find yours" not in asked.body.decode()
    if kind == "slow":
        times = [int(ms) for ms in re.findall(r"([0-9]+) ms<", asked.body.decode())]
        assert 3 == len(times)
        assert min(times) >= 300
    shop.secrets.search(asked.body, f"the page of a {kind} key")


def test_an_organisation_tries_one_key_at_a_time(shop: Shop) -> None:
    secret = shop.secrets.word("waiting", "sk-waiting-")
    body = {"upstream": "openai", "secret": secret}
    before = len(shop.upstream.hits)
    with ThreadPoolExecutor(1) as others:
        first = others.submit(shop.owner.api, "POST", "/credentials/test", body)
        try:
            assert until(lambda: len(shop.upstream.hits) > before or None)
            second = Browser(shop.gateway)
            second.sign_in("ada@example.com")
            asked = second.api("POST", "/credentials/test", body)
            assert (429, "busy") == (asked.status, asked.json["error"]["code"])
        finally:
            ENOUGH.set()
        assert first.result().json["ok"]


def test_a_key_that_failed_its_test_is_saved_by_who_insists(shop: Shop) -> None:
    before = credentials(shop)
    secret = shop.secrets.word("insisted on", "sk-bad-")
    asked = tried_page(shop, secret, name="unwise")
    fields = {"for": "openai", "name": "unwise", "priority": "7", "held": held(asked)}
    again = shop.owner.send("/providers/new", {**fields, "do": "save"})
    assert "refused" in verdicts(again)
    assert before == credentials(shop)
    assert 303 == shop.owner.send("/providers/new", {**fields, "do": "anyway"}).status
    [made] = [row for row in credentials(shop) if row not in before]
    assert ("unwise", 7) == (made["name"], made["priority"])
    shop.owner.look(f"/providers/keys/{made['id']}")
    tried = shop.owner.send(f"/providers/keys/{made['id']}/test", {"model": "m"})
    assert ["refused", "skipped", "skipped"] == verdicts(tried)
    shop.owner.send(f"/providers/keys/{made['id']}/delete", {"typed": "unwise"})
    assert before == credentials(shop)


def test_what_was_held_is_of_no_use_elsewhere(shop: Shop) -> None:
    asked = tried_page(shop, shop.secrets.word("held", "sk-good-"))
    envelope = held(asked)
    fields = {"for": "keyless", "do": "anyway", "held": envelope}
    assert 422 == shop.owner.send("/providers/new", fields).status
    second = Browser(shop.gateway)
    second.sign_in("ada@example.com")
    second.look("/providers/new")
    assert 422 == second.send("/providers/new", fields | {"for": "openai"}).status
    shop.owner.look("/providers/new")
    garbled = fields | {"for": "openai", "held": "v2:garbled"}
    assert 422 == shop.owner.send("/providers/new", garbled).status


def test_a_provider_of_ones_own_from_its_test_to_its_end(shop: Shop) -> None:
    owner, secret = shop.owner, shop.secrets.word("the cluster's key", "sk-good-")
    fields = {"for": "", "name": "Cluster", "url": f"{shop.upstream.url}/v1", "dialect": "openai",
              "models": "ours, our-*", "priority": "0"}  # fmt: skip
    asked = tried_page(shop, secret, **fields)
    assert ["ok", "ok", "ok"] == verdicts(asked)
    saved = owner.send("/providers/new", {**fields, "held": held(asked), "do": "save"})
    path = saved.headers["location"].removeprefix("/portal").partition("?")[0]
    id = path.removeprefix("/providers/")
    assert until(lambda: Office(shop.gateway).chat(shop.key, "our-1").status == 200 or None)
    assert f"Bearer {secret}" == shop.upstream.hits[-1].header("authorization")
    owner.look(path)
    change = {name: fields[name] for name in ("name", "url", "dialect", "priority")}
    assert 303 == owner.send(path, {**change, "name": "Another", "models": "mine"}).status
    told = owner.api("GET", f"/providers/{id}").json
    assert ("Another", ["mine"]) == (told["name"], told["models"])
    assert until(lambda: Office(shop.gateway).chat(shop.key, "mine").status == 200 or None)
    assert 303 == owner.send(f"{path}/disable").status
    assert until(lambda: Office(shop.gateway).chat(shop.key, "mine").status == 404 or None)
    assert 303 == owner.send(f"{path}/enable").status
    assert ["ok", "ok", "ok"] == verdicts(owner.send(f"{path}/test", {"model": ""}))
    assert 422 == owner.send(f"{path}/delete", {"typed": "Cluster"}).status
    assert 303 == owner.send(f"{path}/delete", {"typed": "Another"}).status
    assert 404 == owner.look(path).status
    assert id not in str(credentials(shop))


def test_a_key_is_replaced_rested_and_put_first(shop: Shop) -> None:
    owner = shop.owner
    old, new = (shop.secrets.word(name, "sk-good-") for name in ("the old key", "the new key"))
    made = owner.api("POST", "/credentials", {"upstream": "openai", "secret": old, "name": "k",
                                              "priority": -5}).json  # fmt: skip
    path = f"/providers/keys/{made['id']}"
    assert until(lambda: hit_with(shop, old))
    owner.look(path)
    assert 303 == owner.send(path, {"name": "k", "priority": "-5", "key": ""}).status
    assert (old[-4:], 1) == (made["last_four"], shown(owner, made["id"])["version"])
    assert 303 == owner.send(path, {"name": "k2", "priority": "-6", "key": new}).status
    assert ("k2", new[-4:], 2) == tuple(
        shown(owner, made["id"])[name] for name in ("name", "last_four", "version")
    )
    assert until(lambda: hit_with(shop, new))
    assert 303 == owner.send(f"{path}/disable").status
    assert until(lambda: not hit_with(shop, new) or None)
    assert 303 == owner.send(f"{path}/enable").status
    assert until(lambda: hit_with(shop, new))
    assert 303 == owner.send(f"{path}/delete", {"typed": "k2"}).status
    assert 404 == owner.api("GET", f"/credentials/{made['id']}").status


def shown(browser: Browser, id: str) -> dict[str, Any]:
    told: dict[str, Any] = browser.api("GET", f"/credentials/{id}").json
    return told


def test_own_only_shows_no_key_of_the_operators(shop: Shop) -> None:
    owner, office = shop.owner, Office(shop.gateway)
    for row in credentials(shop):
        owner.api("DELETE", f"/credentials/{row['id']}")
    assert until(lambda: hit_with(shop, "sk-of-the-operator-0123456789"))
    owner.look("/providers")
    assert 303 == owner.send("/providers/policy", {"byok": "own_only"}).status
    assert "own_only" == owner.api("GET", "/upstreams").json["byok"]
    refused = until(lambda: ((asked := office.chat(shop.key, "m")).status == 403 and asked) or None)
    assert "own_key_missing" == refused.json["error"]["code"]
    assert 200 == owner.api("PATCH", "/byok", {"byok": "own_first"}).status
    assert until(lambda: office.chat(shop.key, "m").status == 200 or None)
    assert 422 == owner.send("/providers/policy", {"byok": "never"}).status


BAD = {"for": "", "name": "X", "dialect": "openai", "priority": "0", "do": "test"}


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"for": "openai", "key": ""}, "key"),
        ({"for": "openai", "key": "sk-ü"}, "key"),
        ({"for": "opnai", "key": "sk-x"}, "for"),
        ({"for": "unset", "key": "sk-x"}, "for"),
        ({**BAD, "url": ""}, "url"),
        ({**BAD, "url": "https://a.example.com", "name": ""}, "name"),
        ({**BAD, "url": "https://a.example.com", "priority": "x"}, "priority"),
        ({**BAD, "url": "https://a.example.com", "dialect": "klingon"}, "dialect"),
    ],
)
def test_what_does_not_fit_is_told_at_its_field(
    shop: Shop, fields: dict[str, str], at: str
) -> None:
    before = credentials(shop)
    asked = tried_page(shop, **{"secret": "", **{"secret" if k == "key" else k: v
                                            for k, v in fields.items()}})  # fmt: skip
    assert 422 == asked.status
    assert re.search(rf'name="{at}"[^>]*aria-invalid="true"', asked.body.decode()), asked.body
    assert before == credentials(shop)


PRIVATE = (
    "https://127.0.0.2/v1", "http://localhost/v1", "https://[::1]/v1", "https://10.1.2.3/v1",
    "https://169.254.169.254/latest", "https://[fd00:ec2::254]/", "https://0x7f000001/v1",
    "https://llm.example.com:8443/v1", "http://llm.example.com", "ftp://llm.example.com",
    "https://u:p@llm.example.com/v1",
)  # fmt: skip


def test_S5_a_private_address_is_refused_unless_it_was_allowed(shop: Shop) -> None:
    owner = shop.owner
    owner.look("/providers/new")
    for url in PRIVATE:
        for do in ("test", "anyway"):
            asked = owner.send("/providers/new", {**BAD, "url": url, "key": "sk-x", "do": do})
            assert 422 == asked.status, (url, asked.body)
        made = owner.api("POST", "/providers", {"name": "X", "url": url})
        assert (422, "url") == (made.status, made.json["error"]["param"].rpartition(".")[2]), url
        assert 422 == owner.api("POST", "/credentials/test", {"url": url}).status
    assert [] == owner.api("GET", "/providers").json["rows"]
    made = owner.api("POST", "/providers", {"name": "X", "url": f"{shop.upstream.url}/v1"}).json
    change = {"name": "X", "url": PRIVATE[0], "dialect": "openai", "models": "", "priority": "0"}
    owner.look(f"/providers/{made['id']}")
    assert 422 == owner.send(f"/providers/{made['id']}", change).status
    assert 422 == owner.api("PATCH", f"/providers/{made['id']}", {"url": PRIVATE[4]}).status
    assert 204 == owner.api("DELETE", f"/providers/{made['id']}").status


def test_W10_no_page_and_no_answer_shows_what_was_entered(shop: Shop) -> None:
    owner, office = shop.owner, Office(shop.gateway)
    words = [shop.secrets.word(f"crawled {n}", f"sk-{kind}-") for n, kind in
             enumerate(("bad", "good", "spent"))]  # fmt: skip
    key = {"upstream": "openai", "secret": words[0]}
    ids = {"credential": owner.api("POST", "/credentials", key).json["id"]}
    own = {"name": "Own", "url": f"{shop.upstream.url}/v1", "credential": words[1], "models": ["o"]}
    ids["provider"] = owner.api("POST", "/providers", own).json["id"]
    owner.api("PATCH", f"/credentials/{ids['credential']}", {"secret": words[2]})
    for model in ("m", "o"):
        office.chat(shop.key, model)
    answers = [
        owner.api("POST", f"/credentials/{ids['credential']}/test"),
        owner.api("POST", f"/providers/{ids['provider']}/test", {"model": "o"}),
        owner.api("POST", "/credentials/test", {"upstream": "openai", "secret": words[0]}),
        owner.api("POST", "/credentials", {"upstream": words[0], "secret": words[0]}),
        owner.api("POST", "/credentials", {"upstream": "openai", "secret": f"{words[0]} "}),
        owner.api("PATCH", f"/credentials/{ids['credential']}", {"secrt": words[0]}),
        tried_page(shop, words[0]),
        tried_page(shop, words[1]),
    ]
    for (method, path), access in ACCESS.items():
        if method == "GET" and "static" not in path:
            found = ids.get(access.object or "", "key_0")
            answers.append(owner.look(re.sub(r"{\w+}", found, path)))
    for asked in answers:
        # Somebody who names a provider like a key has it said back, as a name.
        if b"There is no provider" not in asked.body:
            shop.secrets.search(asked.body, str(asked.body[:80]))
    shop.secrets.search(shop.gateway.complaints().encode(), "the log")
    audit = text(owner.look("/audit"))
    for action in ("credential.create", "credential.change", "provider.create"):
        assert action in audit
    for name, id in ids.items():
        assert 204 == owner.api("DELETE", f"/{name}s/{id}").status


def test_the_first_run_goes_on_with_a_key_that_failed_for_who_insists(shop: Shop) -> None:
    browser = joined(shop.owner, "second@example.com", "admin")
    before = credentials(shop)
    asked = browser.look("/begin")
    assert "key, or the echo" in text(asked)
    secret = shop.secrets.word("of the first run", "sk-bad-")
    asked = browser.send("/begin", {"for": "openai", "key": secret, "do": "test"})
    shown = text(asked)
    for part in ("refused 401", "The key was refused", "Incorrect API key", "What to check",
                 "Continue anyway", "Use the echo for now"):  # fmt: skip
        assert part in shown, part
    shop.secrets.search(asked.body, "the first run")
    assert before == credentials(shop)
    assert 422 == browser.send("/begin", {"do": "echo", "role": "owner"}).status
    fields = {"for": "openai", "held": held(asked), "do": "anyway"}
    made = browser.send("/begin", fields)
    assert f"{shop.gateway.url}/v1/chat/completions" in text(made)
    assert 200 == Office(shop.gateway).chat(key_in(made), "one").status
    [added] = [row for row in credentials(shop) if row not in before]
    assert 204 == shop.owner.api("DELETE", f"/credentials/{added['id']}").status
    # It is over once there is a key.
    assert 303 == browser.look("/begin").status
    assert 303 == browser.send("/begin", {"do": "echo"}).status


def test_who_may_not_change_providers_is_offered_nothing(shop: Shop) -> None:
    viewer = joined(shop.owner, "viewer@example.com", "viewer")
    page = viewer.look("/providers")
    assert 200 == page.status
    assert b"/providers/new" not in page.body
    assert 403 == viewer.look("/providers/new").status


def test_the_portal_says_when_the_gateway_cannot_be_asked(shop: Shop) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # And does not listen.
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}/admin/api"
        told = f"store: books, admin_url: '{away}', admin_token: {TOKEN},"
        apart = Apart(shop.gateway, APART.replace("store: books,", told))
        apart.start()
        try:
            browser = Browser(apart)
            browser.sign_in("ada@example.com")
            page = browser.look("/providers")
            assert 200 == page.status
            assert "The gateway cannot be asked now" in text(page)
            asked = browser.api("GET", "/upstreams")
            assert (503, "gateway_unavailable") == (asked.status, asked.json["error"]["code"])
            browser.look("/providers/new")
            fields = {"for": "openai", "key": "sk-good-x", "do": "anyway"}
            assert 503 == browser.send("/providers/new", fields).status
        finally:
            apart.kill()


@pytest.mark.anyio
async def test_over_http_the_same_is_told(shop: Shop) -> None:
    console = over_http(f"{shop.gateway.admin_url}/admin/api/", TOKEN)
    told = await console.get("/upstreams")
    assert ["echo", "openai", "keyless"] == [one["name"] for one in told["rows"]]
    path = f"/organisations/{me(shop.owner)['organisation']}/credentials/test"
    secret = shop.secrets.word("over http", "sk-bad-")
    tried = await console.post(path, {"upstream": "openai", "secret": secret})
    assert "refused" == tried["steps"][0]["verdict"]
    with pytest.raises(Denied, match="upstream or a url") as denied:
        await console.post(path, {})
    assert (422, "body.upstream") == (denied.value.status, denied.value.param)
    for url, token in (
        (f"{shop.gateway.admin_url}/admin/api", "wrong"),
        (f"{shop.gateway.admin_url}/elsewhere", TOKEN),
    ):
        with pytest.raises(GatewayAway):
            await over_http(url, token).get("/upstreams")


# In a browser


@pytest.mark.browser
def test_in_a_browser_a_wrong_key_is_mended_and_saved(shop: Shop) -> None:
    from axe_playwright_python.sync_playwright import Axe

    complaints, url = Complaints(), f"{shop.gateway.url}/portal"
    with launched() as browser:
        context = browser.new_context(viewport={"width": 360, "height": 800})
        context.add_cookies(
            [{"name": name, "value": value, "url": url} for name, value in
             shop.owner.cookies.items()]
        )  # fmt: skip
        page = complaints.watch(context.new_page())
        page.goto(f"{url}/providers")
        page.click("text=Add a provider")
        page.wait_for_load_state()
        assert page.is_hidden("#f-url")
        page.select_option("#f-for", "")
        assert page.is_visible("#f-url")
        page.select_option("#f-for", "openai")
        page.fill("#f-key", shop.secrets.word("typed badly", "sk-bad-"))
        page.fill("#f-name", "by hand")
        page.click("button:text-is('Test')")
        page.wait_for_selector(".verdict.refused")
        page.wait_for_load_state()
        assert "What to check" in (page.text_content(".trial") or "")
        assert "" == page.input_value("#f-key")
        narrow(page)
        page.fill("#f-key", shop.secrets.word("typed well", "sk-good-"))
        page.click("button:text-is('Test again')")
        page.wait_for_selector("button:text-is('Save')")
        page.wait_for_load_state()
        narrow(page)
        page.click("button:text-is('Save')")
        page.wait_for_selector(".note.good")
        page.wait_for_load_state()
        assert page.locator(".provider", has_text="by hand").count() == 1
        narrow(page)
        assert [] == complaints
        state = context.storage_state()
        for theme in ("light", "dark"):
            dressed = browser.new_context(
                color_scheme="light" if theme == "light" else "dark", storage_state=state,
                bypass_csp=True,
            )  # fmt: skip
            page = dressed.new_page()
            page.goto(f"{url}/providers")
            key = page.get_attribute(".provider tbody a", "href")
            page.goto(f"{url}/providers/new?for=openai")
            page.fill("#f-key", shop.secrets.word("typed badly"))
            page.click("button:text-is('Test')")
            page.wait_for_selector(".verdict.refused")
            page.wait_for_load_state()
            for path in ("", "/providers", str(key).removeprefix("/portal")):
                if path:
                    page.goto(url + path)
                violations = Axe().run(page).response["violations"]
                assert [] == [(one["id"], one["nodes"][0]["html"][:200]) for one in violations]


def narrow(page: Page) -> None:
    assert 0 >= page.evaluate("document.documentElement.scrollWidth - innerWidth")

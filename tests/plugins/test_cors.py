"""Browsers: who may call, and what a preflight request is told."""

from __future__ import annotations

import pytest

from passy_proxy import Exchange
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.testing import Bench, Recorded

pytestmark = pytest.mark.anyio

CONFIGURATION = """

routes:
  - {{match: OPTIONS /v1/*, chain: [cors: {{{settings}}}, static: {{status: 204}}]}}
  - {{match: POST /v1/chat/completions, chain: [cors: {{{settings}}}, auth, static]}}
"""
ORIGIN = b"https://app.example"
CLOSED, ONE, ANY = "", 'origins: ["https://app.example"]', 'origins: ["*"]'


async def asked(method: str, settings: str, origin: bytes | None = ORIGIN) -> Exchange:
    text = CONFIGURATION.format(settings=settings)
    async with Bench(text) as bench:
        headers = () if origin is None else ((b"origin", origin),)
        ex = bench.exchange(method=method, headers=headers)
        await ex.route.chain.run(ex)
        return ex


def header(ex: Exchange, name: bytes) -> bytes | None:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream.header(name)


@pytest.mark.parametrize(
    ("settings", "origin", "allowed"),
    [
        (CLOSED, ORIGIN, None),
        (ONE, ORIGIN, ORIGIN),
        (ONE, b"https://app.example.evil", None),
        (ONE, b"http://app.example", None),
        (ONE, b"null", None),
        (ONE, b"HTTPS://APP.EXAMPLE", None),
        (ANY, b"https://anyone.example", b"*"),
        (ANY, b"null", b"*"),
    ],
)
async def test_a_preflight_is_answered_for_allowed_origins(
    settings: str, origin: bytes, allowed: bytes | None
) -> None:
    ex = await asked("OPTIONS", settings, origin)
    assert allowed == header(ex, b"access-control-allow-origin")
    if allowed is None:
        assert (403, "origin_not_allowed") == (ex.status, ex.outcome.code)
        assert header(ex, b"access-control-allow-methods") is None
        return
    assert 204 == ex.status
    assert b"GET, POST, OPTIONS" == header(ex, b"access-control-allow-methods")
    assert b"Content-Type, Authorization" == header(ex, b"access-control-allow-headers")
    assert b"600" == header(ex, b"access-control-max-age")
    assert header(ex, b"access-control-allow-credentials") is None


@pytest.mark.parametrize("settings", [CLOSED, ONE, ANY])
async def test_options_without_an_origin_is_no_preflight(settings: str) -> None:
    ex = await asked("OPTIONS", settings, None)
    assert 403 == ex.status
    assert isinstance(ex.downstream, Recorded)
    assert "they say their Origin" in ex.downstream.json["error"]["message"]


async def test_what_is_allowed_can_be_set() -> None:
    settings = f"{ANY}, methods: [GET], headers: [X-Api-Key, X-Mine], max_age: 5"
    ex = await asked("OPTIONS", settings)
    assert b"GET" == header(ex, b"access-control-allow-methods")
    assert b"X-Api-Key, X-Mine" == header(ex, b"access-control-allow-headers")
    assert b"5" == header(ex, b"access-control-max-age")


@pytest.mark.parametrize(("settings", "allowed"), [(CLOSED, None), (ONE, ORIGIN), (ANY, b"*")])
async def test_a_refusal_by_a_later_filter_can_be_read_by_the_page_too(
    settings: str, allowed: bytes | None
) -> None:
    ex = await asked("POST", settings)
    assert 401 == ex.status
    assert allowed == header(ex, b"access-control-allow-origin")


async def test_answers_that_depend_on_the_origin_say_so() -> None:
    for origin in (ORIGIN, b"https://other.example", None):
        assert b"origin" == header(await asked("POST", ONE, origin), b"vary")
    assert header(await asked("POST", ANY), b"vary") is None


async def test_who_is_no_browser_is_let_through_untouched() -> None:
    ex = await asked("POST", ONE, None)
    assert 401 == ex.status
    assert header(ex, b"access-control-allow-origin") is None


@pytest.mark.parametrize(
    "origin",
    ["https://a.example/", "https://a.example/x", "a.example", "*.example.com", "https://*.a.example",
     "https://A.example", "HTTPS://a.example", "https://a.example:443", "http://a.example:80", ""],
)  # fmt: skip
async def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigInvalid, match="is no origin as browsers send it"):
        await asked("GET", f'origins: ["{origin}"]')


@pytest.mark.parametrize(
    "origin",
    ["https://a.example", "http://127.0.0.1:8080", "http://[::1]:3000", "https://a.example:8443",
     "chrome-extension://abcdef", "capacitor://localhost", "app://obsidian.md", "null"],
)  # fmt: skip
async def test_an_origin_that_a_browser_sends_is_met(origin: str) -> None:
    ex = await asked("POST", f'origins: ["{origin}"]', origin.encode())
    assert origin.encode() == header(ex, b"access-control-allow-origin")

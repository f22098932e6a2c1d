"""Applications beside the routes: found, told and made, under our edge and under stock uvicorn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_proxy import Application, Secret, Settings, Site, StrongSecretOrOff, hookimpl, setting
from passy_proxy.application import Asgi, Lifespan, Receive, Send
from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.config.snapshot import Snapshot
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.testing import KEYRING, Client, Serving, serving

pytestmark = pytest.mark.anyio


class Config(Settings):
    word: str = setting("hello", "What it says.")
    secret: Secret = setting("a secret of the tests", "Whom it answers.")


class Told(Config):
    secret: StrongSecretOrOff = setting(..., "Whom it answers.")


class Parrot(Application):
    """Says what ASGI told it, or what the path asks for."""

    name = "parrot"
    config: Config
    lives: list[str] = []  # noqa: RUF012  # All of them write into it.

    def asgi(self) -> Asgi:
        async def served(scope: Any, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self.live(scope, receive, send)
                return
            what = scope["path"].removeprefix(scope["root_path"])
            await self.answer(what, scope, receive, send)

        return served

    async def live(self, scope: Any, receive: Receive, send: Send) -> None:
        if self.config.word == "no lifespan":
            raise AssertionError("what is a lifespan?")
        await receive()
        if self.config.word == "cannot":
            await send({"type": "lifespan.startup.failed", "message": "no seeds"})
            return
        scope["state"]["word"] = self.config.word
        self.lives.append(f"{self.config.word} began")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.lives.append(f"{self.config.word} ended")
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, what: str, scope: Any, receive: Receive, send: Send) -> None:
        if what == "/fail":
            raise RuntimeError("canary")
        head = {"type": "http.response.start", "status": 200}
        if what == "/fail-late":
            await send({**head, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"12345", "more_body": True})
            raise RuntimeError("canary")
        if what == "/stream":
            await send(head)
            for number in range(3):
                body = b"%d" % number
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body"})
            return
        if what == "/wait":
            await send(head)
            await send({"type": "http.response.body", "body": b"wait", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            self.lives.append("left alone")
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        said = f"{scope['state'].get('word')} {scope['root_path']} {what} {len(body)}".encode()
        headers = [(b"content-length", b"%d" % len(said)), (b"x-seen", scope["query_string"])]
        await send({**head, "headers": headers})
        await send({"type": "http.response.body", "body": said})


class Careful(Parrot):
    name = "careful"
    config: Told


class Plugin:
    @hookimpl
    def passy_apps(self) -> list[type[Application]]:
        return [Parrot, Careful]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every registry knows the parrot, as if it had been installed."""
    load = Registry.load
    plugin = Plugin()

    def knows(self: Registry, name: str) -> Any:
        if name in ("parrot", "careful"):
            return self.loaded.get(name) or self.add(name, plugin, "passy-parrot", "1")
        return load(self, name)

    monkeypatch.setattr(Registry, "load", knows)
    Parrot.lives.clear()


TEXT = """
upstreams: {echo: {kind: echo}}
chains:
  default: [alias, fallback]
  fixed: [static: {status: 200, body: '"route"'}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /a/exact, chain: fixed}
  - {match: "* /a/b/*", chain: fixed}
  - {match: "OPTIONS /*", chain: fixed}
apps:
  /a: parrot
  /a/b/c: {app: parrot, word: inner}
  /small: {app: parrot, body_limit: 100}
"""


@pytest.fixture(params=["edge", "stock"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Serving]:
    stock = {"http": "h11"} if request.param == "stock" else {}
    async with serving(TEXT, tmp_path, **stock) as site:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/a", "hello /a / 0"),
        ("GET", "/a/", "hello /a / 0"),
        ("POST", "/a/x/y", "hello /a /x/y 0"),
        ("GET", "/a/exact", '"route"'),
        ("POST", "/a/exact", "hello /a /exact 0"),
        ("GET", "/a/b", "hello /a /b 0"),
        ("GET", "/a/b/x", '"route"'),
        ("GET", "/a/b/c", "inner /a/b/c / 0"),
        ("GET", "/a/b/c/d", "inner /a/b/c /d 0"),
        ("GET", "/a/b/cd", '"route"'),
        ("OPTIONS", "/a/x", "hello /a /x 0"),
        ("OPTIONS", "/ab", '"route"'),
    ],
)
async def test_the_most_specific_place_answers(
    site: Serving, client: Client, method: str, path: str, said: str
) -> None:
    asked = await client.ask(site.url + path, method=method)
    assert (200, said) == (asked.status, (await asked.rest()).decode())
    assert asked.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/ab", "/smal", "/"])
async def test_beside_an_app_there_is_what_was_there(
    site: Serving, client: Client, path: str
) -> None:
    asked = await client.ask(site.url + path, method="GET")
    assert (404 if path != "/" else 200) == asked.status


async def test_an_app_streams_both_ways(site: Serving, client: Client) -> None:
    asked = await client.ask(f"{site.url}/a/stream", method="GET")
    assert b"012" == await asked.rest()
    asked = await client.ask(f"{site.url}/a/up", b"x" * 300_000)
    assert b"hello /a /up 300000" == await asked.rest()


@pytest.mark.parametrize("size", [100, 101, 5_000_000])
@pytest.mark.parametrize("announced", [True, False])
async def test_C6_a_body_over_the_cap_is_refused(
    site: Serving, client: Client, size: int, announced: bool
) -> None:
    if announced:
        asked = await client.ask(f"{site.url}/small", b"x" * size)
    else:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        asked = await client.ask(
            f"{site.url}/small", body, content_length="", transfer_encoding="chunked"
        )
    assert (200 if size == 100 else 413) == asked.status
    if size > 100:
        error = (await asked.json())["error"]
        assert "request_too_large" == error["code"]
        assert asked.headers["x-request-id"] == error["request_id"]


async def test_a_failure_says_its_request_id_and_no_more(
    site: Serving, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = await client.ask(f"{site.url}/a/fail", method="GET")
    body = await asked.rest()
    assert (500, "application/json") == (asked.status, asked.headers["content-type"])
    assert asked.headers["x-request-id"].encode() in body
    assert b"canary" not in body
    assert "canary" in capsys.readouterr().out  # in the log


async def test_a_failure_within_an_answer_cuts_it(
    site: Serving, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    asked = await client.ask(f"{site.url}/a/fail-late", method="GET")
    with pytest.raises(EOFError):
        await asked.rest()


async def test_an_app_learns_that_its_client_has_left(site: Serving, client: Client) -> None:
    asked = await client.ask(f"{site.url}/a/wait", method="GET")
    asked.writer.close()
    async with asyncio.timeout(60):
        while "left alone" not in Parrot.lives:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while site.gateway.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_app_at_the_root_leaves_health_alone(tmp_path: Path, client: Client) -> None:
    text = TEXT[: TEXT.index("apps:")] + "apps: {/: parrot}"
    async with serving(text, tmp_path) as site:
        said = []
        for path in ("/", "/x", "/livez", "/readyz"):
            asked = await client.ask(site.url + path, method="GET")
            said.append((await asked.rest()).decode()[:8])
    assert ["hello  /", "hello  /", '{"status', '{"status'] == said


# Their life


async def test_an_app_lives_as_long_as_a_configuration_names_it(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("routes: [{match: GET /x, chain: [static]}]\napps: {/a: parrot}")
    async with serving(path, tmp_path) as site:
        assert ["hello began"] == Parrot.lives
        path.write_text(path.read_text() + "\nlog: {level: debug}")
        assert await site.gateway.reload()
        assert ["hello began"] == Parrot.lives  # It is the same one.
        path.write_text(path.read_text().replace("parrot", "{app: parrot, word: bye}"))
        assert await site.gateway.reload()
        async with asyncio.timeout(60):
            while "hello ended" not in Parrot.lives:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert ["hello began", "bye began", "hello ended"] == Parrot.lives
    assert "bye ended" == Parrot.lives[-1]


async def test_a_request_keeps_the_app_it_began_with(tmp_path: Path, client: Client) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("routes: [{match: GET /x, chain: [static]}]\napps: {/a: parrot}")
    async with serving(path, tmp_path) as site:
        asked = await client.ask(f"{site.url}/a/wait", method="GET")
        path.write_text(path.read_text().replace("{/a: parrot}", "{}"))
        assert await site.gateway.reload()
        gone = await client.ask(f"{site.url}/a/wait", method="GET")
        assert 404 == gone.status
        assert ["hello began"] == Parrot.lives
        asked.writer.close()
        async with asyncio.timeout(60):
            while "hello ended" not in Parrot.lives:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert ["hello began", "left alone", "hello ended"] == Parrot.lives


async def test_an_app_that_cannot_start_keeps_a_configuration_from_going_live(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("routes: [{match: GET /x, chain: [static]}]\napps: {/a: parrot}")
    async with serving(path, tmp_path) as site:
        path.write_text(path.read_text().replace("parrot", "{app: parrot, word: cannot}"))
        assert not await site.gateway.reload()
        assert "the app at /a could not be started: no seeds" == site.gateway.problem
    assert ["hello began", "hello ended"] == Parrot.lives


async def test_an_app_may_have_no_lifespan(tmp_path: Path, client: Client) -> None:
    text = (
        "routes: [{match: GET /x, chain: [static]}]\napps: {/a: {app: parrot, word: no lifespan}}"
    )
    async with serving(text, tmp_path) as site:
        asked = await client.ask(f"{site.url}/a", method="GET")
        assert b"None /a / 0" == await asked.rest()


async def test_an_app_that_ends_with_the_loop_is_not_told_to() -> None:
    """As FastAPI does, it takes that for a failure of its shutdown."""

    async def served(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:
            await send({"type": "lifespan.shutdown.failed", "message": "a traceback"})
            raise

    life = Lifespan(served, structlog.get_logger())
    await life.start()
    assert life._task is not None
    life._task.cancel()
    await life.stop()


# What is written of them


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(Registry(), Shared(), Site(tmp_path, KEYRING), structlog.get_logger())


def built(apps: str, parts: Parts, **variables: str) -> Snapshot:
    text = f"routes: [{{match: GET /x, chain: [static]}}]\napps:\n  {apps}\n"
    return build(layers(parse(text, "g.yaml", variables), variables), parts, "hash")


@pytest.mark.parametrize(
    ("written", "column", "words"),
    [
        ("/a: parot", 7, "no app is named 'parot'; is its package installed?"),
        ("/a: statc", 7, "no app is named 'statc'; did you mean 'static'?"),
        ("/a: openai", 7, "no app is named 'openai'"),
        ("a: parrot", 3, "'a' is no path for an app"),
        ("/a/: parrot", 3, "'/a/' is no path for an app"),
        ("/a*: parrot", 3, "'/a*' is no path for an app"),
        ("/a/../b: parrot", 3, "'/a/../b' is no path for an app"),
        ("/a:", 3, "at '/a' there is no app"),
        ("/a: [parrot]", 3, "at '/a' there is no app"),
        ("/a: {ap: parrot}", 8, "unknown setting 'ap'; did you mean 'app'?"),
        ("/a: {app: parrot, wrd: x}", 21, "unknown setting 'wrd'; did you mean 'word'?"),
        ("/a: {app: parrot, body_limit: x}", 33, "'x'"),
        ("/a: {app: careful}", 7, "'secret' is missing"),
        ("/a: {app: careful, secret: ''}", 30, "this secret is empty"),
        ("/a: {app: careful, secret: canary}", 30, "this secret has 6 bytes"),
        ('/a: {app: careful, secret: "${EMPTY}"}', 30, "this secret is empty"),
    ],
)
def test_a_mistake_is_found_where_it_stands(
    written: str, column: int, words: str, parts: Parts
) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        built(written, parts, EMPTY="")
    [problem] = caught.value.problems
    assert (3, column) == (problem.line, problem.column), problem
    assert words in problem.message


def test_an_app_whose_secret_nobody_has_set_is_left_out_and_that_is_said(parts: Parts) -> None:
    written = '/a: {app: careful, secret: "${A_SECRET-off}"}'
    snapshot = built(written, parts)
    assert [] == snapshot.routes.mounts
    assert {"/a": "set A_SECRET"} == snapshot.apps_left_out
    [warning] = snapshot.warnings
    assert ("warning", 3, 30) == (warning.severity, warning.line, warning.column)
    assert "the app at /a is left out, since its secret is off" == warning.message
    assert written in warning.source
    secret = "Yw9vUpkVgv6q0Pmg1EKM4x6NYb5wHd7e"
    [mount] = built(written, parts, A_SECRET=secret).routes.mounts
    assert secret == mount.application.config.secret.reveal()


def test_equal_words_are_one_app_and_others_another(parts: Parts) -> None:
    first, same, other = (
        built(text, parts).routes.mounts[0].application
        for text in ("/a: parrot", "/a: {app: parrot}", "/a: {app: parrot, word: x}")
    )
    assert first is same
    assert first is not other


def test_a_gateway_without_apps_has_nothing_to_look_through(parts: Parts) -> None:
    snapshot = built("", parts)
    assert ([], {}) == (snapshot.routes.mounts, snapshot.app_keys)

"""The official SDKs for Node, unmodified: OpenAI's, and Anthropic's on the native route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from harness.node import installed
from harness.node import run as said

from passy_proxy.testing import Answer

if TYPE_CHECKING:
    from harness.gateway import Gateway, Hire, Provider, Serve, Shipped

pytestmark = pytest.mark.node

ALIASES = """
models:
  failing: [openai/gpt-first, openai/gpt-second]
  broken: [openai/gpt-broken]
  endless: [openai/gpt-endless]
"""
CITY = {"city": "hello to you"}


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, and the SDKs as the lock file names them."""
    return installed()


@pytest.fixture(scope="module")
def provider(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def gateway(serve: Serve, shipped: Shipped, provider: Provider) -> Gateway:
    text = shipped(openai=provider.url).replace("\nmodels:\n", ALIASES)
    return serve(text, OPENAI_API_KEY="sk-operator-0123456789")


Run = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def run(node: str, gateway: Gateway) -> Run:
    """What a script says when it has done something."""
    key = gateway.new_key()
    variables = {
        "OPENAI_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": gateway.url,
        "ANTHROPIC_API_KEY": key,
    }

    def act(script: str, name: str) -> Any:
        return said(node, script, name, **variables)

    return act


OPENAI: list[tuple[str, Any]] = [
    ("chat", {"text": "hello to you", "ours": True}),
    ("stream", "hello to you"),
    ("usage", {"choices": [], "total": 6}),
    ("tool", CITY),
    ("toolStream", CITY),
    ("embeddings", [8, 8]),
    ("models", {"listed": True, "one": "echo"}),
    ("completions", "hi"),
    ("responses", "hi"),
    ("responsesStream", "hi"),
]


@pytest.mark.parametrize(("name", "expected"), OPENAI)
def test_the_openai_sdk_gets_what_it_asks_for(run: Run, name: str, expected: object) -> None:
    assert expected == run("openai", name)


ERRORS: list[tuple[str, dict[str, object]]] = [
    ("refused", {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key"}),
    ("unknown", {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}),
]


@pytest.mark.parametrize(("name", "expected"), ERRORS)
def test_the_openai_sdk_raises_what_its_users_catch(
    run: Run, name: str, expected: dict[str, object]
) -> None:
    error = run("openai", name)
    assert {**expected, "ours": True}.items() <= error.items()


def test_the_openai_sdk_does_not_repeat_what_the_gateway_has_tried(
    run: Run, provider: Provider
) -> None:
    provider.forget()
    provider.json({"error": {"message": "Not now.", "type": "t"}}, 500)
    assert (502, "InternalServerError") == (
        (error := run("openai", "failing"))["status"],
        error["kind"],
    )
    assert ["gpt-first", "gpt-second"] == [seen.json["model"] for seen in provider.requests]


def test_the_openai_sdk_raises_when_a_stream_breaks_off(run: Run, provider: Provider) -> None:
    provider.forget()
    provider.stream("one ", "two", cut=True, gap=0.01)
    met = run("openai", "broken")
    assert "one two" == met["said"]
    assert {"kind": "APIError", "code": "upstream_broken"}.items() <= met["error"].items()


def test_a_provider_is_left_when_the_openai_sdk_leaves(run: Run, provider: Provider) -> None:
    provider.forget()
    provider.stream("one", hold=asyncio.Event())
    assert "chatcmpl-scripted" == run("openai", "left")
    provider.wait(provider.requests[0].closed.wait())


def test_the_openai_sdk_uploads_a_file(run: Run, provider: Provider) -> None:
    provider.forget()
    content = b'{"id":"file-1","object":"file"}'
    provider.then(Answer(pieces=[content]))
    assert "file-1" == run("openai", "upload")
    assert b"x" * (1 << 20) in provider.requests[0].body


ANTHROPIC: list[tuple[str, Any]] = [
    ("message", {"text": "hello to you", "ours": True}),
    ("stream", "hello to you"),
    ("counted", 3),
    ("models", True),
]


@pytest.mark.parametrize(("name", "expected"), ANTHROPIC)
def test_the_anthropic_sdk_gets_what_it_asks_for(run: Run, name: str, expected: object) -> None:
    assert expected == run("anthropic", name)


def test_the_anthropic_sdk_raises_what_its_users_catch(run: Run) -> None:
    error = run("anthropic", "unknown")
    assert ("NotFoundError", 404, "not_found_error") == (
        error["kind"],
        error["status"],
        error["type"],
    )
    assert "'echo'" in error["message"]

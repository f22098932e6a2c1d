"""What the gateway refuses, in the envelope of who asks, and what browsers are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import openai
import pytest
from harness.client import send
from harness.upstream import RawUpstream

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

CONFIGURATION = """
overload: {loop_lag: 0s}
edge: {header_timeout: 500ms, body_grace: 500ms}
stores: {state: {kind: memory}, books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "URL/v1", credential: sk-operator}
  away: {dialect: openai, url: "http://127.0.0.1:9", credential: sk-operator}
  slow: {dialect: openai, url: "URL/slow", credential: sk-operator, timeouts: {first_byte: 300ms}}
  keyless: {dialect: openai, url: "URL", credential: "${NOT_THERE:-}"}
models:
  m: [openai/m]
  away: [away/m]
  slow: {targets: [slow/m], fallback_on: []}
  keyless: [keyless/m]
chains:
  default:
    - auth: {directory: books}
    - rate_limit: {counters: state, per: [key], requests: 100/min}
    - alias
    - fallback
  open: [cors: {origins: ["https://good.test"]}, auth: {directory: books}, alias, fallback]
  none: [cors: {}, static: {status: 204}]
routes:
  - {match: POST /v1/chat/completions, chain: default}
  - {match: POST /v1/messages, dialect: anthropic, chain: default, body_limit: 64KiB}
  - {match: POST /open, operation: chat, chain: open}
  - {match: OPTIONS /none, chain: none}
"""
ANSWER = "HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(
        script=lambda hit: ["hold"] if "slow" in hit.target else [{"send": ANSWER}]
    ) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return serve(CONFIGURATION.replace("URL", upstream.url))


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "errors")


@pytest.fixture(scope="module")
def limited(gateway: Gateway) -> str:
    """A key for one request a day, which is used up."""
    key = gateway.new_key("--name", "limited", "--requests", "1/day")
    gateway.ask("/v1/chat/completions", {"model": "m"}, authorization=f"Bearer {key}")
    return key


@pytest.fixture(scope="module")
def other(gateway: Gateway) -> str:
    """A key for another model."""
    return gateway.new_key("--name", "other", "--models", "nothing")


ASKED: dict[str, tuple[dict[str, Any], int]] = {
    # name: what is different about the request, the status
    "no-key": ({"key": ""}, 401),
    "unknown-key": ({"key": "sk-passy-unknown"}, 401),
    "key-in-url": ({"query": {"api_key": "x"}}, 400),
    "no-json": ({"body": b"{"}, 400),
    "no-model": ({"body": b"{}"}, 400),
    "too-deep": ({"body": b'{"model":"m","x":' + b"[" * 200 + b"]" * 200 + b"}"}, 400),
    "too-large": ({"body": b'{"model":"m","x":"' + b"a" * (33 << 20) + b'"}'}, 413),
    "encoded": ({"headers": {"content-encoding": "gzip"}}, 415),
    "expectation": ({"headers": {"expect": "more"}}, 417),
    "upgrade": ({"headers": {"upgrade": "h2c"}}, 400),
    "twin-headers": ({"headers": {"x-a": "1", "x_a": "2"}}, 400),
    "headers-too-large": ({"headers": {"x-a": "a" * 40_000}}, 431),
    "too-many-headers": ({"headers": {f"x-{number}": "a" for number in range(120)}}, 431),
    "url-too-long": ({"query": {"a": "a" * 9_000}}, 414),
    "bad-host": ({"headers": {"host": "a b"}}, 400),
    "unknown-model": ({"model": "nothing-like-it"}, 404),
    "model-not-allowed": ({"key": "other"}, 403),
    "rate-limit": ({"key": "limited"}, 429),
    "no-credential": ({"model": "keyless"}, 503),
    "provider-away": ({"model": "away"}, 502),
    "provider-slow": ({"model": "slow"}, 504),
    "path-below": ({"path": "/nothing"}, 404),
    "path-dots": ({"path": "/%2e%2e/x"}, 400),
    "method": ({"method": "PATCH"}, 405),
    "method-unknown": ({"method": "BREW"}, 501),
    "method-trace": ({"method": "TRACE"}, 400),
}
OPENAI: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    501: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    501: "api_error",
    529: "overloaded_error",
}


class Raw(httpx2.BaseTransport):
    """What the SDK would send, with something different about it that no library would send."""

    def __init__(self, url: str, change: dict[str, Any]) -> None:
        self._url = url
        self._change = change

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        change = self._change
        request.read()
        path = request.url.path + change.get("path", "")
        if "query" in change:
            path += "?" + "&".join(f"{name}={value}" for name, value in change["query"].items())
        body = change.get("body", request.content)
        headers = {name: value for name, value in request.headers.items() if name != "connection"}
        headers |= {"content-length": str(len(body)), "host": "h", "connection": "close"}
        headers |= change.get("headers", {})
        if change.get("key") == "":
            headers = {k: v for k, v in headers.items() if k not in ("authorization", "x-api-key")}
        lines = [f"{change.get('method', request.method)} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        answer = send(self._url, "\r\n".join([*lines, "", ""]).encode() + body).answer("POST")
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body)


def check(response: httpx2.Response) -> None:
    """What is true of each refusal."""
    assert "application/json" == response.headers["content-type"]
    assert response.headers["x-request-id"].startswith("req_")
    assert "set-cookie" not in response.headers
    assert not [name for name in response.headers if name.startswith("access-control-")]
    assert "Traceback" not in response.text
    assert "<" not in response.text[:1]


def key_of(change: dict[str, Any], keys: dict[str, str]) -> str:
    wanted = change.get("key")
    return keys.get(wanted, wanted) if wanted else keys["good"]


@pytest.fixture(scope="module")
def keys(key: str, limited: str, other: str) -> dict[str, str]:
    return {"good": key, "limited": limited, "other": other}


@pytest.mark.parametrize("name", ASKED)
def test_C7_a_refusal_is_the_exception_that_openais_sdk_has_for_it(
    name: str, gateway: Gateway, keys: dict[str, str]
) -> None:
    change, status = ASKED[name]
    http = httpx2.Client(transport=Raw(gateway.url, change))
    with openai.OpenAI(
        base_url=gateway.base_url, api_key=key_of(change, keys), max_retries=0, http_client=http
    ) as client:
        kind = OPENAI.get(status, openai.APIStatusError)
        with pytest.raises(kind) as refused:
            client.chat.completions.create(
                model=change.get("model", "m"), messages=[{"role": "user", "content": "hello"}]
            )
    error = refused.value
    assert (status, kind) == (error.status_code, type(error))
    check(error.response)
    said = error.response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(said)
    assert (said["code"], said["type"]) == (error.code, error.type)
    assert error.code
    assert said["message"]
    assert error.response.headers["x-request-id"] == said["request_id"] == error.request_id


@pytest.mark.parametrize("name", ASKED)
def test_C7_a_refusal_is_the_exception_that_anthropics_sdk_has_for_it(
    name: str, gateway: Gateway, keys: dict[str, str]
) -> None:
    change, status = ASKED[name]
    expected = 529 if status == 503 else status
    if name in ("provider-away", "provider-slow"):
        expected = 400  # OpenAI's providers are not asked: their dialect has no word for it.
    http = httpx2.Client(transport=Raw(gateway.url, change))
    with (
        anthropic.Anthropic(
            base_url=gateway.url, api_key=key_of(change, keys), max_retries=0, http_client=http
        ) as client,
        pytest.raises(anthropic.APIStatusError) as refused,
    ):
        client.messages.create(
            model=change.get("model", "m"),
            max_tokens=9,
            messages=[{"role": "user", "content": "hello"}],
        )
    error = refused.value
    assert expected == error.status_code
    classes = {
        400: anthropic.BadRequestError,
        401: anthropic.AuthenticationError,
        403: anthropic.PermissionDeniedError,
        404: anthropic.NotFoundError,
        413: anthropic.RequestTooLargeError,
        429: anthropic.RateLimitError,
        431: anthropic.RequestHeaderFieldsTooLargeError,
        501: anthropic.HTTPNotImplementedError,
        529: anthropic.OverloadedError,
    }
    assert classes.get(expected, anthropic.APIStatusError) is type(error)
    check(error.response)
    said = error.response.json()
    assert "error" == said["type"]
    assert TYPES.get(expected, "invalid_request_error") == said["error"]["type"]
    assert said["error"]["message"]
    assert said["error"]["details"]["error_code"]
    ids = error.response.headers
    assert said["request_id"] == ids["request-id"] == ids["x-request-id"]


SLOW = {
    "head": (b"POST /v1/messages HTTP/1.1\r\nHost: h\r\n", "request_timeout"),
    "body": (
        b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer KEY\r\n"
        b"Content-Length: 9\r\n\r\n{",
        "request_body_timeout",
    ),
    "chunk": (
        b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer KEY\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        "invalid_framing",
    ),
    "garbage": (b"POST /v1/messages HTTP/1.1\r\nHost: h\r\nA b\r\n\r\n", "invalid_request"),
    "no-version": (b"POST /v1/messages\r\n", "invalid_request"),
    "prefix": (b"POST /v1/messages/nothing%00 HTTP/1.1\r\nHost: h\r\n\r\n", "invalid_path"),
}


@pytest.mark.parametrize("name", SLOW)
def test_C7_what_the_edge_refuses_of_a_message_has_anthropics_envelope(
    name: str, gateway: Gateway, key: str
) -> None:
    message, code = SLOW[name]
    answer = send(gateway.url, message.replace(b"KEY", key.encode())).answer()
    said = json.loads(answer.body)
    assert ("error", code) == (said["type"], said["error"]["details"]["error_code"])
    assert said["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_C7_what_is_no_http_has_openais_envelope(gateway: Gateway) -> None:
    for garbage in (b"\x16\x03\x01\r\n\r\n", b"hello\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"):
        answer = send(gateway.url, garbage).answer()
        assert (400, "close") == (answer.status, answer.headers["connection"])
        error = json.loads(answer.body)["error"]
        assert error["request_id"] == answer.headers["x-request-id"]


def test_S13_no_origin_is_allowed_that_is_not_named(gateway: Gateway, key: str) -> None:
    said = {"origin": "https://evil.test", "access_control_request_method": "POST"}
    for path, status in (
        ("/v1/chat/completions", 405),
        ("/v1/messages", 405),
        ("/nothing", 404),
        ("/none", 403),
    ):
        asked = gateway.ask(path, method="OPTIONS", **said)
        assert status == asked.status
        assert not [name for name in asked.headers if name.lower().startswith("access-control")]
    body = {"model": "m", "messages": []}
    shown = {"authorization": f"Bearer {key}"}
    for path, origin, allowed in (
        ("/v1/chat/completions", "https://good.test", None),
        ("/open", "https://evil.test", None),
        ("/open", "null", None),
        ("/open", "https://good.test.evil.test", None),
        ("/open", "https://good.test", "https://good.test"),
    ):
        asked = gateway.ask(path, body, origin=origin, **shown)
        assert allowed == asked.headers["access-control-allow-origin"]
        assert asked.headers["access-control-allow-credentials"] is None


def test_S13_no_cookie_is_set_or_passed_on(
    gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    shown = {"authorization": f"Bearer {key}", "cookie": "session=evil"}
    asked = gateway.ask("/v1/chat/completions", {"model": "m"}, **shown)
    assert 200 == asked.status
    assert asked.headers["set-cookie"] is None
    assert upstream.hits[-1].header("cookie") is None

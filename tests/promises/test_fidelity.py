"""F1: bytes are not changed. F2: only documented fields steer. F4: what is unknown passes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import openai
import pytest
from harness.people import People
from harness.upstream import Hit, RawUpstream, Step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

GATEWAY = """
overload: {loop_lag: 0s}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "%(url)s/v1", credential: sk-of-the-operator}
  anthropic: {dialect: anthropic, url: "%(url)s", credential: sk-ant-of-the-operator}
models: {m: [openai/the-model-there], claude: [anthropic/claude-there], gpt-*: ["openai/*"]}
chains:
  default: [{usage: {ledger: books}}, {auth: {directory: books}}, alias, fallback]
  through: [{usage: {ledger: books}}, {auth: {directory: books}}, {direct: {upstream: openai}}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: POST /v1/responses}
  - {match: POST /v1/messages, dialect: anthropic}
  - {match: "* /v1/*", chain: through, body: stream, root: /v1}
prices: {"*": {input: 1, output: 2, per: 1M}}
"""
PLAIN = (
    b'{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


def answering(status: str, headers: str, body: bytes) -> list[Step]:
    head = f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return [{"send": head + body.decode("latin-1")}]


class Answers:
    """What the upstream says, by a header of the request that passes."""

    def __init__(self) -> None:
        self.known: dict[str, list[Step]] = {}

    def __call__(self, hit: Hit) -> list[Step]:
        usual = answering("200 OK", "content-type: application/json\r\n", PLAIN)
        return self.known.get(hit.header("user-agent") or "", usual)


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def upstream(answers: Answers) -> Iterator[RawUpstream]:
    with RawUpstream(script=answers) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: RawUpstream, serve: Serve) -> Gateway:
    return serve(GATEWAY % {"url": upstream.url})


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return People(gateway).key()


@pytest.fixture(scope="module")
def kept(gateway: Gateway, key: str) -> Iterator[HTTPConnection]:
    """A connection that is kept."""
    with closing(HTTPConnection(gateway.url.partition("//")[2], timeout=90)) as connection:
        yield connection


def post(
    connection: HTTPConnection, key: str, path: str, body: bytes, **headers: str
) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {"authorization": f"Bearer {key}", **named})
    answer = connection.getresponse()
    return answer.status, answer.read()


# F1. JSON as nobody would write it, but as everybody may.

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n", "   "])
LITERALS = st.sampled_from(
    ["null", "true", "false", "0", "-0", "-0.0", "1e5", "1E+2", "1.50", "12345678901234567890123",
     "0.1000000000000000055511151231257827",
     '""', '"\\u0000"', '"\\/"', '"\\ud83d\\ude00"', "[]", "{}"]
)  # fmt: skip
TEXTS = st.text(max_size=12).map(lambda text: json.dumps(text, ensure_ascii=len(text) % 2 == 0))
LEAVES = LITERALS | TEXTS
NAMES = st.sampled_from(
    ["a", "b", "usage", "model", "messages", "stream", "é", "", "\\u0061", "x y"]
)
STEERING = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n")
"""What is read at the top; a body with an odd value there is refused, and that is another test."""


@st.composite
def lists(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=4))
    return "[" + ",".join(draw(SPACE) + item + draw(SPACE) for item in items) + "]"


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    pairs = [(draw(NAMES), draw(inner)) for _ in range(draw(st.integers(0, 4)))]
    return "{" + ",".join(member(draw, f'"{name}"', value) for name, value in pairs) + "}"


def member(draw: st.DrawFn, name: str, value: str) -> str:
    return f"{draw(SPACE)}{name}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}"


VALUES = st.recursive(LEAVES, lambda inner: lists(inner) | objects(inner), max_leaves=12)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request for the model ``m``, and the same with the upstream's model in its place."""
    members = {f"x{n}": draw(VALUES) for n in range(draw(st.integers(0, 5)))}
    members["messages"] = draw(VALUES)
    written = [member(draw, f'"{name}"', value) for name, value in members.items()]
    mark = "\0model\0"
    written.insert(draw(st.integers(0, len(written))), member(draw, draw(MODEL), mark))
    if draw(st.booleans()):
        flag = draw(st.sampled_from(["false", "null"]))
        written.insert(draw(st.integers(0, len(written))), member(draw, '"stream"', flag))
    text = draw(SPACE) + "{" + ",".join(written) + "}" + draw(SPACE)
    ours = draw(st.sampled_from(['"m"', '"\\u006d"']))
    theirs = '"the-model-there"'
    return text.replace(mark, ours).encode(), text.replace(mark, theirs).encode()


MODEL = st.sampled_from(['"model"', '"model"', '"model"', '"\\u006dodel"', '"mode\\u006C"'])


@st.composite
def answer_bodies(draw: st.DrawFn) -> bytes:
    members = ['"choices":[]', *(f'"x{n}":{draw(VALUES)}' for n in range(draw(st.integers(0, 3))))]
    draw(st.randoms()).shuffle(members)
    return (draw(SPACE) + "{" + ",".join(draw(SPACE) + one for one in members) + "}").encode()


@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.large)])
def test_F1_any_body_passes_but_for_its_model(
    count: int, upstream: RawUpstream, kept: HTTPConnection, key: str, answers: Answers
) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies(), answer_bodies())
    def check(body: tuple[bytes, bytes], answer: bytes) -> None:
        sent, expected = body
        answers.known["any"] = answering("200 OK", "content-type: application/json\r\n", answer)
        told = post(kept, key, "/v1/chat/completions", sent, user_agent="any")
        assert (200, answer) == told, sent
        assert expected == upstream.hits[-1].body
        upstream.hits.clear()

    check()


def test_F1_a_stream_is_asked_for_its_usage_and_nothing_else_changes(
    upstream: RawUpstream, kept: HTTPConnection, key: str, answers: Answers
) -> None:
    done = b"data: [DONE]\n\n"
    answers.known["stream"] = answering("200 OK", "content-type: text/event-stream\r\n", done)
    for options, becomes in (
        (b"", b""),
        (b'"stream_options" : { "include_usage" : true , "x":1},', None),
        (b'"stream_options":{"include_usage":false,"x":1},',
         b'"stream_options":{"include_usage":true,"x":1},'),
        (b'"stream_options":null,', b'"stream_options":{"include_usage":true},'),
        (b'"stream_options":{},', b'"stream_options":{"include_usage":true},'),
    ):  # fmt: skip
        body = b'{ "a":1,%b"stream" : true,"model":"m","messages":[ ] }'
        assert (
            200 == post(kept, key, "/v1/chat/completions", body % options, user_agent="stream")[0]
        )
        seen = upstream.hits[-1].body.replace(b'"the-model-there"', b'"m"')
        if options:
            assert body % (options if becomes is None else becomes) == seen
        else:
            assert body % b"" == seen.replace(b'"stream_options":{"include_usage":true},', b"")


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, pytest.param(9_000_000, id="9MB")])
def test_F1_an_upload_of_any_bytes(
    size: int, upstream: RawUpstream, kept: HTTPConnection, key: str, answers: Answers
) -> None:
    body, answer = random.Random(size).randbytes(size), random.Random(-size - 1).randbytes(size)
    answers.known[f"b{size}"] = answering("200 OK", "content-type: audio/mpeg\r\n", answer)
    kind = "multipart/form-data; boundary=x"
    told = post(kept, key, "/v1/files", body, user_agent=f"b{size}", content_type=kind)
    assert (200, answer) == told
    hit = upstream.hits[-1]
    assert (body, kind) == (hit.body, hit.header("content-type"))


# F2. What a client writes to be somebody else, or somewhere else.


@pytest.fixture(scope="module")
def decoy() -> Iterator[RawUpstream]:
    with RawUpstream(answering("200 OK", "", b"{}")) as decoy:
        yield decoy


MEMBERS = [
    "api_base", "base_url", "api_key", "api_type", "api_version", "azure_endpoint", "organization",
    "project", "provider", "providers", "custom_llm_provider", "deployment_id", "host", "url",
    "upstream", "target", "targets", "fallback", "fallbacks", "fallback_on", "route", "router",
    "extra_headers", "extra_body", "extra_query", "headers", "default_headers", "timeout",
    "max_retries", "num_retries", "proxy", "http_client", "user", "user_id", "team_id", "tenant",
    "org_id", "key", "key_id", "credential", "credentials", "token", "tags", "metadata",
    "litellm_params", "litellm_metadata", "mock_response", "cache", "caching", "guardrails",
    "price", "cost", "input_cost_per_token", "output_cost_per_token", "model_info", "model_list",
    "spend", "budget", "max_budget", "rpm", "tpm", "usage", "config",
    "configurable_clientside_auth_params",
    "passy", "x-passy-upstream", "principal", "estimated", "store_model_in_db", "__proto__",
]  # fmt: skip
HEADERS = [
    "x-passy-upstream", "x-passy-target", "x-passy-key", "x-passy-organisation", "x-passy-cost-usd",
    "x-passy-principal", "x-passy-config", "x-passy-hops-override", "x-portkey-custom-host",
    "x-portkey-provider", "x-litellm-api-key", "x-litellm-tags", "helicone-target-url",
    "x-base-url",
    "x-api-base", "openai-organization", "openai-project", "x-forwarded-host", "x-forwarded-for",
    "x-forwarded-proto", "forwarded", "x-original-url", "x-rewrite-url", "x-http-method-override",
    "x-envoy-original-path", "x-request-id", "request-id", "x-user", "x-remote-user", "x-real-ip",
    "via", "x-stainless-retry-count", "x-goog-api-key", "cookie", "proxy-authorization", "referer",
    "origin", "from", "x-amz-security-token", "anthropic-organization-id", "accept-encoding",
]  # fmt: skip


def steering(decoy: str) -> list[Any]:
    return [
        f"{decoy}/v1", "sk-of-somebody-else", {"api_base": decoy, "api_key": "sk-x", "url": decoy},
        {"Authorization": "Bearer sk-x", "Host": decoy}, [decoy, {"base_url": decoy}],
        0, None, True,
    ]  # fmt: skip


FACTS = ("key_id", "organisation", "upstream", "upstream_model", "cost_nanos", "price", "input")


def test_F2_nothing_a_client_writes_leads_elsewhere(
    gateway: Gateway, upstream: RawUpstream, decoy: RawUpstream, kept: HTTPConnection, key: str
) -> None:
    base = {"model": "m", "messages": []}
    assert 200 == post(kept, key, "/v1/chat/completions", json.dumps(base).encode())[0]
    usual = upstream.hits[-1]
    asked = 1
    for name in MEMBERS:
        for value in steering(decoy.url):
            body = json.dumps({**base, name: value}).encode()
            assert 200 == post(kept, key, "/v1/chat/completions", body)[0], body
            asked += 1
            hit = upstream.hits[-1]
            assert body.replace(b'"m"', b'"the-model-there"') == hit.body, "it passes as bytes"
            assert (usual.target, usual.headers) == (hit.target, lengthless(hit, usual)), name
    for name in HEADERS:
        for value in (decoy.url, decoy.url.partition("//")[2], "sk-of-somebody-else", "1", "admin"):
            headers = {name.replace("-", "_"): value}
            body = json.dumps(base).encode()
            assert 200 == post(kept, key, "/v1/chat/completions", body, **headers)[0], headers
            asked += 1
            hit = upstream.hits[-1]
            assert (usual.target, usual.headers) == (hit.target, hit.headers), name
    assert [] == decoy.hits
    records = wait_for_records(gateway, asked)
    assert 1 == len({tuple(record[fact] for fact in FACTS) for record in records})


def lengthless(hit: Hit, usual: Hit) -> list[tuple[str, str]]:
    """Its headers, with the length of the usual one."""
    length = ("content-length", usual.header("content-length") or "")
    return [length if name == "content-length" else (name, value) for name, value in hit.headers]


def wait_for_records(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    from harness.gateway import until

    def look() -> list[dict[str, Any]] | None:
        found = gateway.records("WHERE model = 'm' AND input = 1")
        return found[-count:] if len(found) >= count else None

    return until(look)


def test_F2_no_url_is_built_of_what_a_client_writes(
    gateway: Gateway, upstream: RawUpstream, decoy: RawUpstream, key: str
) -> None:
    host = decoy.url.partition("//")[2]
    for path in (
        f"/v1/@{host}/x",
        f"/v1/{quote(decoy.url, safe='')}",
        f"/v1/x:80@{host}",
        "/v1/x;//a",
    ):
        gateway.ask(path, x_api_key=key)
    for hosted in (host, f"user@{host}", "api.openai.com"):
        gateway.ask("/v1/files", x_api_key=key, host=hosted)
    assert [] == decoy.hits
    assert {f"127.0.0.1:{upstream.port}"} == {hit.header("host") for hit in upstream.hits[-4:]}


# F4. What nobody here has heard of.


def declared(params: Any) -> list[str]:
    """All parameters that the SDK knows for an operation."""
    found: set[str] = set()
    for kind in vars(params).values():
        if isinstance(kind, type) and kind.__name__.startswith(
            ("CompletionCreateParams", "ResponseCreateParams")
        ):
            for one in kind.__mro__:
                found |= set(getattr(one, "__annotations__", {}))
            found |= set(getattr(kind, "__annotations__", {}))
    return sorted(found)


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/chat/completions", completion_create_params),
        ("/v1/responses", response_create_params),
    ],
)
def test_F4_every_parameter_of_the_sdk_passes_and_so_do_others(
    path: str, params: Any, upstream: RawUpstream, kept: HTTPConnection, key: str
) -> None:
    names = declared(params)
    assert len(names) > 20, names
    dice = random.Random(4)
    for name in [*names, *(f"new_{dice.getrandbits(40):x}" for _ in range(30))]:
        if name in STEERING or name == "max_output_tokens":
            continue
        for value in ("x", ["x", {"y": None}], {"type": "new", "z": [1.5e300]}):
            body = json.dumps({"model": "gpt-x", name: value}).encode()
            status, told = post(kept, key, path, body)
            assert (200, PLAIN) == (status, told) or path.endswith("responses"), (name, told)
            assert body == upstream.hits[-1].body


STATUSES = [
    201,
    202,
    203,
    206,
    207,
    208,
    226,
    299,
    400,
    402,
    404,
    405,
    409,
    410,
    413,
    415,
    416,
    418,
]
STATUSES += [
    421,
    422,
    423,
    424,
    425,
    428,
    429,
    431,
    444,
    449,
    451,
    460,
    498,
    499,
    500,
    501,
    502,
    503,
]
STATUSES += [504, 507, 508, 511, 520, 522, 529, 530, 598, 599]
ENVELOPE = b'{ "error" : {"message":"no","type":"new_type","param":null,"code":"new_code","x":[1]}}'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/unheard-of/thing"])
def test_F4_any_status_passes(path: str, kept: HTTPConnection, key: str, answers: Answers) -> None:
    for status in STATUSES:
        body = PLAIN if status < 400 else ENVELOPE
        kind = "content-type: application/json\r\n"
        answers.known[f"s{status}"] = answering(f"{status} What", kind, body)
        told = post(kept, key, path, b'{"model":"gpt-x"}', user_agent=f"s{status}")
        assert (status, body) == told


@pytest.mark.parametrize("status", [204, 205, 304])
def test_F4_a_status_without_a_body_passes(
    status: int, gateway: Gateway, key: str, answers: Answers
) -> None:
    head = f"HTTP/1.1 {status} What\r\netag: x\r\ncontent-length: 0\r\n\r\n"
    answers.known[f"s{status}"] = [
        {"send": head.replace("content-length: 0\r\n", "") if status != 205 else head}
    ]
    told = gateway.ask("/v1/files/f", x_api_key=key, user_agent=f"s{status}")
    assert (status, b"", "x") == (told.status, told.body, told.headers["etag"])


def sdk_paths() -> list[str]:
    """Every path that the SDK's resources ask for."""
    folder = Path(openai.__file__).parent / "resources"
    found = set()
    for file in sorted(folder.rglob("*.py")):
        for match in re.finditer(r"""["'](/[a-z_]+(?:/[a-zA-Z_{}]+)*)["']""", file.read_text()):
            found.add(re.sub(r"\{[a-zA-Z_]*\}", "some_id-1", match[1]))
    return sorted(found)


OWN = ("/chat/completions", "/responses", "/messages")


def test_F4_every_path_of_the_sdk_and_others_pass(
    gateway: Gateway, upstream: RawUpstream, key: str
) -> None:
    paths = sdk_paths()
    assert len(paths) > 60, paths
    paths += [
        "/new",
        "/new/thing",
        "/a/b/c/d/e/f",
        "/with%20space",
        "/%E4%BD%A0",
        "/x:y@z",
        "/~t!$&'()*+,;=",
    ]
    for path in paths:
        if path in OWN:
            continue
        for method in ("GET", "POST", "DELETE"):
            body = b'{"any": [1]}' if method == "POST" else None
            asked = f"/v1{path}?limit=1&after=a%2Fb&x[]=1"
            told = gateway.ask(asked, body, method=method, x_api_key=key)
            assert (200, PLAIN) == (told.status, told.body), (method, path)
            hit = upstream.hits[-1]
            assert (method, asked, body or b"") == (hit.method, hit.target, hit.body)


def test_F4_unknown_headers_of_an_answer_pass(gateway: Gateway, key: str, answers: Answers) -> None:
    new = {"x-new": "1", "openai-new-thing": "a b", "x-ratelimit-new": "7", "new": "\xe9"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in new.items())
    answers.known["new"] = answering("200 OK", lines, PLAIN)
    for path in ("/v1/chat/completions", "/v1/new"):
        told = gateway.ask(path, {"model": "gpt-x"}, x_api_key=key, user_agent="new")
        assert new == {name: told.headers[name] for name in new}

"""A cut answer is never success: the official SDKs must raise, each time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from harness import node
from harness.catalogue import entries
from harness.client import send
from harness.upstream import Hit, RawUpstream, Step

if TYPE_CHECKING:
    from harness.figures import Note
    from harness.gateway import Gateway, Serve

CONFIGURATION = """
upstreams:
  gpt: {{dialect: openai, url: "{url}/v1", {limits}}}
  claude: {{dialect: anthropic, url: "{url}", {limits}}}
models: {{gpt: [gpt/m], claude: [claude/m]}}
chains: {{default: [alias, fallback: {{retries: 0, first_event: 700ms, heartbeat: 0s}}]}}
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /v1/messages, dialect: anthropic}}
"""
OURS = {
    case["name"]: case
    for case in entries("upstream-faults")
    if case["name"].startswith(("mid-", "huge-answer-cut", "stream-cut", "body-never"))
}

# The same ends in Anthropic's words.

HELLO = [{"role": "user", "content": "hello"}]
SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
JSON = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = "transfer-encoding: chunked\r\n\r\n"


def event(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 1},
}
BEGUN = [
    event("message_start", message={**MESSAGE, "content": [], "stop_reason": None}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello "}),
]
WHOLE = json.dumps(MESSAGE)
HALF = WHOLE[:90]
STREAMS: dict[str, Sequence[Step]] = {
    "close": ["close"],
    "reset": [{"wait": 0.05}, "reset"],
    "stall": ["hold"],
    "within-an-event": [{"chunk": event("content_block_stop", index=0)[:30]}, "close"],
    "clean-end": [{"send": "0\r\n\r\n"}],
    "bad-chunk": [{"wait": 0.05}, {"send": "zz\r\n"}, "close"],
}
THEIRS: dict[str, Sequence[Step]] = {
    **{
        f"claude-mid-sse-{name}": [
            {"send": SSE + CHUNKED},
            *[{"chunk": one} for one in BEGUN],
            *end,
        ]
        for name, end in STREAMS.items()
    },
    "claude-mid-sse-close-delimited": [{"send": SSE + "\r\n" + "".join(BEGUN)}, "close"],
    "claude-mid-json-close": [
        {"send": f"{JSON}content-length: {len(WHOLE)}\r\n\r\n{HALF}"},
        "close",
    ],
    "claude-mid-json-stall": [
        {"send": f"{JSON}content-length: {len(WHOLE)}\r\n\r\n{HALF}"},
        "hold",
    ],
    "claude-mid-json-chunk-cut": [{"send": JSON + CHUNKED}, {"chunk": HALF}, "close"],
    "claude-mid-json-close-delimited": [{"send": JSON + "\r\n" + HALF}, "close"],
    "claude-mid-json-well-framed": [{"send": f"{JSON}content-length: {len(HALF)}\r\n\r\n{HALF}"}],
    "claude-mid-json-huge": [
        {"send": JSON + CHUNKED},
        {"chunk": WHOLE[:-60]},
        {"chunk": {"repeat": " ", "times": 2 << 20}},
        "close",
    ],
    "claude-mid-json-huge-close-delimited": [
        {"send": JSON + "\r\n" + WHOLE[:-60]},
        {"send": {"repeat": " ", "times": 2 << 20}},
        "close",
    ],
}


def script(hit: Hit) -> Sequence[Step]:
    name, mode, *_ = (hit.header("user-agent") or "").split(";")
    if name in THEIRS:
        return THEIRS[name]
    steps: Sequence[Step] = OURS[name].get(mode) or OURS[name]["steps"]
    return steps


Job = tuple[str, str, str, str]
"""Which SDK asks, for which answer, as a stream or plain, which model."""


def jobs() -> list[Job]:
    ours = [
        ("openai", name, mode, "gpt")
        for name, case in OURS.items()
        for mode in ("plain", "stream")
        if mode in case
    ]
    theirs = [
        (sdk, name, "stream" if "-sse-" in name else "plain", "claude")
        for name in THEIRS
        for sdk in ("anthropic", "openai")
    ]
    return ours + theirs


JOBS = jobs()


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Iterator[Gateway]:
    with ExitStack() as stack:
        upstream = stack.enter_context(RawUpstream(script=script))
        limits = "timeouts: {first_byte: 700ms, idle: 700ms}"
        yield serve(CONFIGURATION.format(url=upstream.url, limits=limits))


class Sdks:
    """The SDKs for Python, which do not try again."""

    def __init__(self, gateway: Gateway, stack: ExitStack) -> None:
        more: dict[str, Any] = {"api_key": "sk-none", "max_retries": 0}
        self.openai = stack.enter_context(openai.OpenAI(base_url=gateway.base_url, **more))
        self.anthropic = stack.enter_context(anthropic.Anthropic(base_url=gateway.url, **more))

    def met(self, job: Job) -> str:
        """What was raised, or ``nothing``."""
        sdk, name, mode, model = job
        asked: Any = {
            "model": model,
            "messages": HELLO,
            "stream": mode == "stream",
            "extra_headers": {"User-Agent": f"{name};{mode};python"},
        }
        answer: Any
        try:
            if sdk == "openai":
                answer = self.openai.chat.completions.create(**asked)
                _ = [*answer] if asked["stream"] else answer.choices[0]
            else:
                answer = self.anthropic.messages.create(max_tokens=9, **asked)
                _ = [*answer] if asked["stream"] else answer.content
        except Exception as error:
            return type(error).__name__
        return "nothing"


@pytest.fixture(scope="module")
def sdks(gateway: Gateway) -> Iterator[Sdks]:
    with ExitStack() as stack:
        yield Sdks(gateway, stack)


def test_U8_the_sdks_for_python_raise(sdks: Sdks) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(sdks.met, JOBS))
    assert [] == silent(results)


@pytest.mark.large
def test_U8_the_sdks_for_python_raise_each_of_fifty_times(sdks: Sdks, figure: Note) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(sdks.met, JOBS * 50))
    figure("cut answers", len(results))
    figure("taken for whole", len(silent(results)))
    assert [] == silent(results)


@pytest.mark.node
def test_U8_the_sdks_for_node_raise(gateway: Gateway) -> None:
    variables = {
        "OPENAI_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": "sk-none",
        "ANTHROPIC_BASE_URL": gateway.url,
        "ANTHROPIC_API_KEY": "sk-none",
    }
    results = node.run(node.installed(), "truncated", json.dumps(JOBS), **variables)
    assert [] == silent(results)


RAISED = frozenset(
    (
        "APIError",
        "APIStatusError",
        "APIConnectionError",
        "InternalServerError",
        "GatewayTimeoutError",
    )
)
"""What the SDKs raise for an answer that is none. Node's own fetch says TypeError of a cut body."""


def silent(results: Sequence[str]) -> list[tuple[Job, str]]:
    """Those that nobody noticed, or that were noticed by accident."""
    pairs = zip(JOBS * (len(results) // len(JOBS)), results, strict=True)
    return [
        (job, result)
        for job, result in pairs
        if result not in RAISED and not (result == "TypeError" and "huge" in job[1])
    ]


@pytest.mark.parametrize("job", [job for job in JOBS if job[2] == "stream"], ids=" ".join)
def test_U8_the_stream_ends_in_an_error_event_and_no_end_marker(gateway: Gateway, job: Job) -> None:
    sdk, name, mode, model = job
    path = "/v1/messages" if sdk == "anthropic" else "/v1/chat/completions"
    body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 9, "stream": True})
    told = send(
        gateway.url,
        (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}"
            f"\r\ncontent-type: application/json\r\nuser-agent: {name};{mode};raw\r\n\r\n{body}"
        ).encode(),
        quiet=90.0,
        patience=90.0,
    )
    answer = told.answer("POST")
    assert answer.whole
    last = answer.body.rstrip().rpartition(b"\n\n")[2]
    if answer.status == 200:
        said = json.loads(last.rpartition(b"data: ")[2])
        assert (b"event: error" in last) == (sdk == "anthropic")
    else:
        said = json.loads(answer.body)
        assert answer.status in (502, 504)
    assert said["error"]["message"]
    for end in (b"[DONE]", b"message_stop", b'"finish_reason":"stop"'):
        assert end not in answer.body

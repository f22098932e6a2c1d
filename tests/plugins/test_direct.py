"""Passing through to one upstream: bytes as they are, no second chance."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from passy_proxy import Attempt, Credential, Exchange, Filter
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.testing import SSE, Answer, Bench, Recorded, ScriptedUpstream, completion

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  one:
    dialect: openai
    url: "{url}/v1"
    credential: sk-own
    timeouts: {{first_byte: {patience}}}
  unset: {{dialect: openai, url: "{url}/v1", credential: "${{NOT_SET:-}}"}}
chains:
  default: [direct: {{upstream: {name}}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: "* /v1/files*", body: stream, root: /v1}}
"""


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as scripted:
        yield scripted


def text_of(upstream: ScriptedUpstream, name: str, patience: str = "60s") -> str:
    return CONFIGURATION.format(url=upstream.url, name=name, patience=patience)


async def asked(
    upstream: ScriptedUpstream, name: str = "one", patience: str = "60s", **request: object
) -> Exchange:
    async with Bench(text_of(upstream, name, patience)) as bench:
        ex = bench.exchange(**request)  # type: ignore[arg-type]
        await ex.route.chain.run(ex)
        return ex


def sent(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


async def test_the_models_name_is_left_as_it_is(upstream: ScriptedUpstream) -> None:
    upstream.json(completion())
    ex = await asked(upstream, body={"model": "anything", "messages": []})
    assert 200 == ex.status
    assert "anything" == upstream.requests[0].json["model"]
    assert "Bearer sk-own" == upstream.requests[0].headers["authorization"]


async def test_an_upload_and_its_answer_are_passed_on_as_they_are(
    upstream: ScriptedUpstream,
) -> None:
    raw = bytes(range(256)) * 100
    kind = (("content-type", "application/octet-stream"),)
    upstream.then(Answer(201, kind, [raw[::-1]]))
    ex = await asked(
        upstream,
        path="/v1/files/abc/content",
        method="PUT",
        body=raw,
        headers=((b"content-type", b"multipart/form-data; boundary=x"),),
    )
    seen = upstream.requests[0]
    assert ("PUT", "/v1/files/abc/content") == (seen.method, seen.target)
    assert raw == seen.body
    assert "multipart/form-data; boundary=x" == seen.headers["content-type"]
    assert (201, raw[::-1]) == (ex.status, sent(ex).answer)
    assert b"application/octet-stream" == sent(ex).header(b"content-type")


async def test_a_stream_is_passed_on(upstream: ScriptedUpstream) -> None:
    upstream.then(Answer(headers=SSE, pieces=[b"data: 1\n\n", b"data: [DONE]\n\n"], gap=0.01))
    ex = await asked(upstream, body={"stream": True, "messages": []})
    assert b"data: 1\n\ndata: [DONE]\n\n" == sent(ex).answer


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_refusal_is_the_upstreams_own(upstream: ScriptedUpstream, status: int) -> None:
    upstream.json({"error": {"message": "theirs", "code": "theirs"}}, status)
    ex = await asked(upstream)
    assert (status, 1) == (ex.status, len(upstream.requests))
    assert "theirs" == sent(ex).json["error"]["code"]


async def test_a_cut_answer_is_a_502_and_a_slow_one_a_504(upstream: ScriptedUpstream) -> None:
    upstream.then(Answer(headers=(), cut=True)).then(Answer(delay=120))
    assert 502 == (await asked(upstream)).status
    assert 504 == (await asked(upstream, patience="200ms")).status
    assert 2 == len(upstream.requests)


async def test_without_a_credential_it_says_so(upstream: ScriptedUpstream) -> None:
    ex = await asked(upstream, "unset")
    assert (503, "no_healthy_target") == (ex.status, ex.outcome.code)
    assert "unset, which has no credential" in sent(ex).json["error"]["message"]


async def test_an_upstream_that_is_not_configured_is_found_when_the_file_is_read(
    upstream: ScriptedUpstream,
) -> None:
    with pytest.raises(ConfigInvalid, match=r"no upstream is named 'oen'; there are one, unset"):
        await asked(upstream, "oen")


# An organisation's own keys


class Keys(Filter):
    """Shows one key after the other, as `byok` does."""

    name = "keys"

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        number = len(ex.attempts)
        attempt.credential = Credential(f"sk-own-{number}", "acme", f"{number}")
        attempt.spare = number < 3


async def shown(upstream: ScriptedUpstream, **request: object) -> tuple[Exchange, list[str]]:
    text = text_of(upstream, "one").replace("[direct", "[keys, direct")
    async with Bench(text, filters=[Keys]) as bench:
        ex = bench.exchange(**request)  # type: ignore[arg-type]
        await ex.route.chain.run(ex)
    return ex, [seen.headers["authorization"][-8:] for seen in upstream.requests]


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_the_next_own_key_is_shown_for_one_that_is_refused(
    upstream: ScriptedUpstream, status: int
) -> None:
    upstream.json({"error": {"message": "no"}}, status).json(completion())
    ex, keys = await shown(upstream, body={"model": "m", "messages": []})
    assert (200, ["sk-own-1", "sk-own-2"]) == (ex.status, keys)


async def test_when_all_own_keys_are_refused_the_last_refusal_is_the_answer(
    upstream: ScriptedUpstream,
) -> None:
    upstream.json({"error": {"message": "no"}}, 401)
    ex, keys = await shown(upstream, body={"model": "m", "messages": []})
    assert (401, ["sk-own-1", "sk-own-2", "sk-own-3"]) == (ex.status, keys)


async def test_an_upload_that_was_passed_on_is_not_sent_again_with_another_key(
    upstream: ScriptedUpstream,
) -> None:
    upstream.json({"error": {"message": "no"}}, 401)
    ex, keys = await shown(
        upstream,
        body=b"x" * 1000,
        path="/v1/files",
        headers=((b"content-length", b"1000"), (b"content-type", b"text/plain")),
    )
    assert (401, ["sk-own-1"]) == (ex.status, keys)

"""Which of an upstream's headers pass, and what the client hears when no one answered."""

from __future__ import annotations

from typing import Any

import pytest

from passy_proxy import Failure, Target, Upstream
from passy_proxy.answer import carried, failed_reply, named, replied_head
from passy_proxy.attempt import Attempt
from passy_proxy.downstream import pairs
from passy_proxy.event import Reply
from passy_proxy.testing import Bench

pytestmark = pytest.mark.anyio


def passing(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return carried(headers, dict(headers))


@pytest.mark.parametrize(
    "name",
    [
        b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade",
        b"proxy-authenticate", b"content-length", b"server", b"date", b"set-cookie",
        b"openai-organization", b"openai-project", b"anthropic-organization-id", b"alt-svc",
        b"strict-transport-security", b"access-control-allow-origin", b"location",
    ],
)  # fmt: skip
def test_what_is_true_of_the_upstream_alone_ends_here(name: bytes) -> None:
    assert [(b"x-kept", b"1")] == passing([(name, b"value"), (b"x-kept", b"1")])


def test_other_headers_pass_in_their_order_repeated_ones_too() -> None:
    headers = [(b"link", b"a"), (b"retry-after", b"3"), (b"link", b"b"), (b"x-unheard", b"c")]
    assert headers == passing(headers)


@pytest.mark.parametrize("name", [b"x-request-id", b"request-id"])
def test_the_upstreams_request_id_keeps_a_name_of_its_own(name: bytes) -> None:
    assert [(b"x-upstream-request-id", b"abc")] == passing([(name, b"abc")])


def test_what_connection_lists_is_for_one_hop_only() -> None:
    headers = [(b"x-hop", b"1"), (b"connection", b"close, X-Hop"), (b"x-end", b"2")]
    assert [(b"x-end", b"2")] == passing(headers)
    assert [(b"x-end", b"2")] == passing([*headers, (b"connection", b"keep-alive")])


async def test_the_gateways_own_answer_has_its_id_and_the_hash_of_its_configuration() -> None:
    async with Bench() as bench:
        ex = bench.exchange()
        head, body = replied_head(ex, Reply(418, "teapot", "Short and stout.", [(b"x-pot", b"1")]))
    headers = dict(head.headers + pairs(head.lines))
    assert (418, ex.id.encode()) == (head.status, headers[b"x-request-id"])
    assert (b"test", b"1") == (headers[b"x-passy-config"], headers[b"x-pot"])
    assert b"application/json" == headers[b"content-type"]
    assert b"Short and stout." in body
    assert b"x-passy-attempts" not in headers


FAILURES = {
    "connect": Failure("connect", "refused"),
    "timeout": Failure("timeout", "silence", sent=True),
    "status": Failure("status", "status 503", 503, sent=True),
    "untranslatable": Failure("untranslatable", "audio cannot be said", param="audio"),
}


@pytest.mark.parametrize(
    ("kinds", "status", "code", "final"),
    [
        (["connect"], 502, "upstream_error", False),
        (["timeout"], 504, "upstream_timeout", True),
        (["status"], 502, "upstream_error", True),
        (["untranslatable"], 400, "unsupported_parameter", False),
        (["connect", "connect"], 502, "upstream_error", True),
        (["status", "timeout"], 502, "upstream_error", True),
        (["connect", "untranslatable"], 502, "upstream_error", True),
    ],
)
async def test_failures_become_one_reply(
    kinds: list[str], status: int, code: str, final: bool
) -> None:
    unused: Any = None
    async with Bench() as bench:
        ex = bench.exchange()
        for number, kind in enumerate(kinds):
            attempt = Attempt(ex, Target.at(Upstream(f"up{number}", unused, None), "m"))
            attempt.failure = FAILURES[kind]
            ex.attempts.append(attempt)
        reply = failed_reply(ex)
    assert (status, code) == (reply.status, reply.code)
    assert final is ((b"x-should-retry", b"false") in reply.headers)
    assert ("audio" if code == "unsupported_parameter" else None) == reply.param
    if code != "unsupported_parameter":
        told = [(one["provider"], one["reason"]) for one in reply.attempts or []]
        expected = [(f"up{n}", FAILURES[kind].message) for n, kind in enumerate(kinds)]
        assert expected == told


def test_names_of_the_clients_choice_cannot_fill_a_header_or_end_it() -> None:
    assert b"logit_bias, x-evil1" == named(["logit_bias", "x-evil\r\n: 1", "\u00e9"])
    assert len(named(["x" * 10_000] * 10_000)) < 4096

"""The routing table over HTTP."""

from __future__ import annotations

import pytest

from passy_proxy import json
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.testing import Bench, Recorded

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-the-admin: 0123456789"
TEXT = """
upstreams:
  echo: {kind: echo}
  up: {url: http://127.0.0.1:9/v1, credential: sk-canary-0123456789, models: [a, b]}
  unset: {url: http://127.0.0.1:9/v1, credential: ""}
models:
  fast: {targets: [up/a, unset/b, echo/echo], fallback_on: [5xx, timeout], timeout: 30s}
routes:
  - {match: GET /admin/routing, chain: [routing: {token: "${TOKEN-off}"}]}
"""


async def asked(token: str, authorization: bytes | None) -> Recorded:
    async with Bench(TEXT, {"TOKEN": token} if token else {}) as bench:
        headers = ((b"authorization", authorization),) if authorization else ()
        ex = bench.exchange(path="/admin/routing", method="GET", headers=headers)
        await ex.route.chain.run(ex)
        assert isinstance(ex.downstream, Recorded)
        return ex.downstream


async def test_the_holder_of_the_token_sees_the_table_without_credentials() -> None:
    client = await asked(TOKEN, b"Bearer " + TOKEN.encode())
    assert 200 == client.status
    assert b"canary" not in client.answer
    said = json.loads(client.answer)
    assert ["echo", "up"] == sorted(one["id"] for one in said["providers"])
    [fast] = said["routes"]
    assert {
        "alias": "fast",
        "targets": [
            {"provider": "up", "model": "a", "priority": 0},
            {"provider": "echo", "model": "echo", "priority": 2},
        ],
        "fallbackOn": ["5xx", "timeout"],
        "timeout": 30_000,
        "leftOut": ["unset"],
    } == fast


@pytest.mark.parametrize(
    ("token", "authorization", "expected"),
    [
        ("", b"Bearer ", 403),
        ("", None, 403),
        (TOKEN, None, 401),
        (TOKEN, b"Bearer wrong", 401),
        (TOKEN, b"Basic " + TOKEN.encode(), 401),
        (TOKEN, b"Bearer " + TOKEN.encode() + b"x", 401),
    ],
)
async def test_nobody_else_does(token: str, authorization: bytes | None, expected: int) -> None:
    client = await asked(token, authorization)
    assert expected == client.status
    assert b"providers" not in client.answer


async def test_a_token_that_can_be_guessed_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigInvalid, match="this secret has 5 bytes"):
        await asked("short", None)

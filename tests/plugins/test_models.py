"""The list of models: what a caller may use, in the shape its client expects."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from passy_proxy import Exchange, Filter, Principal
from passy_proxy.testing import Bench, Recorded

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  echo: {kind: echo}
  open: {dialect: openai, url: "http://127.0.0.1:1/v1", models: [listed, "fine-*"]}
  unset: {dialect: openai, url: "http://127.0.0.1:1/v1", credential: "${NOT_SET:-}"}
models: {"fast": [open/x], "team/deep": [open/y], "wild-*": ["open/*"], "absent": [unset/z]}
chains: {list: [given, models]}
routes: [{match: GET /v1/models, chain: list}, {match: GET /v1/models/*, chain: list}]
"""
EVERYTHING = ["fast", "team/deep", "echo", "listed"]
ANTHROPIC = ((b"anthropic-version", b"2023-06-01"),)


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(CONFIGURATION, filters=[Given]) as made:
        yield made


async def got(
    bench: Bench,
    path: str = "/v1/models",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    models: tuple[str, ...] | None = None,
) -> Exchange:
    principal = Principal("key", models=models)
    ex = bench.exchange(method="GET", path=path, headers=headers, principal=principal)
    await ex.route.chain.run(ex)
    return ex


def body(ex: Exchange) -> dict[str, object]:
    assert isinstance(ex.downstream, Recorded)
    assert b"application/json" == ex.downstream.header(b"content-type")
    answer: dict[str, object] = ex.downstream.json
    return answer


def names(ex: Exchange) -> list[str]:
    return [one["id"] for one in body(ex)["data"]]  # type: ignore[attr-defined]


async def test_it_lists_what_can_be_asked_for(bench: Bench) -> None:
    ex = await got(bench)
    assert 200 == ex.status
    assert "list" == body(ex)["object"]
    assert EVERYTHING == names(ex)
    for card in body(ex)["data"]:  # type: ignore[attr-defined]
        assert {"id", "object", "created", "owned_by"} == card.keys()
        assert "model" == card["object"]
    assert ["open", "open", "echo", "open"] == [one["owned_by"] for one in body(ex)["data"]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (("fast",), ["fast"]),
        (("f*", "echo"), ["fast", "echo"]),
        (("*",), EVERYTHING),
        (("unheard-of",), []),
        ((), []),
    ],
)
async def test_a_key_sees_the_models_it_may_use(
    bench: Bench, allowed: tuple[str, ...], expected: list[str]
) -> None:
    assert expected == names(await got(bench, models=allowed))
    for name in EVERYTHING:
        ex = await got(bench, f"/v1/models/{name}", models=allowed)
        assert (200 if name in expected else 404) == ex.status


async def test_anthropics_clients_get_their_own_shape(bench: Bench) -> None:
    answer = body(await got(bench, headers=ANTHROPIC))
    assert ("fast", "listed", False) == (
        answer["first_id"],
        answer["last_id"],
        answer["has_more"],
    )
    assert {
        "type": "model",
        "id": "fast",
        "display_name": "fast",
        "created_at": "2025-01-01T00:00:00Z",
    } == answer["data"][0]  # type: ignore[index]
    nobody = body(await got(bench, headers=ANTHROPIC, models=("none",)))
    assert {"data": [], "has_more": False, "first_id": None, "last_id": None} == nobody


@pytest.mark.parametrize("name", EVERYTHING)
async def test_one_model_can_be_asked_for(bench: Bench, name: str) -> None:
    ex = await got(bench, f"/v1/models/{name}")
    assert (200, name) == (ex.status, body(ex)["id"])
    native = await got(bench, f"/v1/models/{name}", ANTHROPIC)
    assert ("model", name) == (body(native)["type"], body(native)["id"])


async def test_a_model_that_only_a_pattern_stands_for_can_be_asked_for(bench: Bench) -> None:
    assert {"id": "wild-7", "owned_by": "open"}.items() <= body(
        await got(bench, "/v1/models/wild-7")
    ).items()
    assert 404 == (await got(bench, "/v1/models/wild-7", models=("fast",))).status
    assert "wild-7" not in names(await got(bench))


@pytest.mark.parametrize("name", ["unheard-of", "absent", "wild-*", "f", "x" * 5_000])
async def test_a_model_that_is_not_there_is_a_404(bench: Bench, name: str) -> None:
    ex = await got(bench, f"/v1/models/{name}")
    assert (404, "model_not_found") == (ex.status, ex.outcome.code)
    assert isinstance(ex.downstream, Recorded)
    assert len(ex.downstream.answer) < 1_000

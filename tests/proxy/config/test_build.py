"""Configuration → snapshot: every complaint has a place and a suggestion, and nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from passy_proxy import Event, Exchange, Filter, Settings, Site, Store, setting
from passy_proxy.config.build import Parts, build, operation_of
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.problem import ConfigInvalid, Problem
from passy_proxy.config.snapshot import Snapshot
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.testing import KEYRING

pytestmark = pytest.mark.anyio
GATEWAY = Path(__file__).parents[3] / "config/gateway.yaml"

GOOD = """\
stores:
  state: {kind: memory}
upstreams:
  echo: {kind: echo}
  away: {url: https://api.example.com/v1, credential: "a-credential"}
models:
  fast: [echo/echo, away/model]
chains:
  default:
    - auth: {directory: state}
    - rate_limit: {counters: state, requests: 60/min}
    - alias
    - fallback
routes:
  - {match: POST /v1/chat/completions, chain: default}
"""


class Misspelt(Filter):
    name = "misspelt"

    def on_requset(self, ex: Exchange) -> None: ...


class Waiting(Filter):
    name = "waiting"

    async def on_event(self, ex: Exchange, event: Event) -> None: ...


class Explosive(Filter):
    name = "explosive"

    def __init__(self, config: Any, log: Any) -> None:
        raise RuntimeError("it went off")


class Twofold(Filter):
    class Settings(Settings):  # type: ignore[misc]
        on_error: str = setting("", "Something else.")

    name = "twofold"


class LedgerOnly(Store):
    kind = "ledger_only"

    def __init__(self, settings: Settings, site: Site) -> None: ...

    def record(self, usage: object) -> None: ...


class ExplosiveStore(Store):
    kind = "explosive"

    def __init__(self, settings: Settings, site: Site) -> None:
        raise RuntimeError("no such disk")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    registry = Registry()
    registry.filters |= {kind.name: kind for kind in (Misspelt, Waiting, Explosive, Twofold)}
    registry.stores |= {kind.kind: kind for kind in (LedgerOnly, ExplosiveStore)}
    return Parts(registry, Shared(), Site(tmp_path, KEYRING), structlog.get_logger())


def built(text: str, parts: Parts, variables: Mapping[str, str] | None = None) -> Snapshot:
    variables = variables or {}
    return build(layers(parse(text, "g.yaml", variables), variables), parts, "hash")


def complaints(text: str, parts: Parts) -> list[Problem]:
    with pytest.raises(ConfigInvalid) as caught:
        built(text, parts)
    assert 0 == len(parts.shared), "a build that failed left something behind"
    return [problem for problem in caught.value.problems if problem.severity == "error"]


def place_of(text: str, part: str) -> tuple[int, int]:
    before = text[: text.index(part)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


MISTAKES = [
    # what stands there, what is written instead, where the complaint points, what it says
    ("- alias", "- alais", "alais", "no filter is named 'alais'; did you mean 'alias'?"),
    ("kind: memory", "kind: memroy", "memroy", "named 'memroy'; did you mean 'memory'?"),
    ("kind: echo", "kind: ecko", "ecko", "no kind of upstream is named 'ecko'; did you mean"),
    ("{url: https:", "{dialect: openia, url: https:", "openia", "did you mean 'openai'?"),
    ("match: POST", "dialect: opena1, match: POST", "opena1", "did you mean 'openai'?"),
    ("chain: default}", "chain: defualt}", "defualt", "did you mean 'default'?"),
    ("echo/echo,", "ehco/echo,", "ehco/echo", "unknown upstream 'ehco'; did you mean 'echo'?"),
    ("directory: state", "directory: stats", "stats", "no store is named 'stats'; did you mean"),
    ("{directory: state}", "{ttl: 30s}", "auth", "'directory' needs the name of a store"),
    ("requests: 60/min", "requsts: 60/min", "requsts", "did you mean 'requests'?"),
    ("- alias\n", "- misspelt\n    - alias\n", "misspelt", "did you mean 'on_request'?"),
    ("- alias\n", "- waiting\n    - alias\n", "waiting", "on_event must be a plain function"),
    ("- alias\n", "- explosive\n    - alias\n", "explosive", "it went off"),
    ("kind: memory", "kind: explosive", "state:", "no such disk"),
    ("    - alias\n", "    - fallback\n    - alias\n", "fallback", "fallback is terminal"),
    ("    - fallback\n", "", "alias", "ends in a terminal filter, and alias is none"),
    ("kind: memory}", "kind: ledger_only}", "state}\n    - rate", "which has no directory"),
    ("match: POST /v1", "match: POST v1", "POST v1", "no match"),
    ("match: POST /v1", "match: post /v1", "post /v1", "did you mean 'POST'?"),
    ("match: POST /v1", "match: PSOT /v1", "PSOT /v1", "no method 'PSOT'; did you mean 'POST'?"),
    ("chain: default}", "chain: default, root: /v2}", "/v2", "not the beginning of '/v1/chat"),
    ("chain: default}", "chain: default, root: /v1/ch}", "/v1/ch}", "not the beginning of"),
    ("chat/completions", "chat/completion", "POST", "did you mean '/v1/chat/completions'?"),
    ("    - alias\n", "    - alias: {x: 366d}\n", "x: 366d", "unknown setting 'x'"),
    ("    - alias\n", "    - alias: {on_eror: open}\n", "on_eror", "did you mean 'on_error'?"),
    ("    - alias\n", "    - alias: {hook_timeout: -1s}\n", "-1s", ""),
    ("directory: state}", "directory: state, on_error: open}", "open}", "there is no principal"),
    ("- fallback\n", "- fallback: {on_error: open}\n", "open}", "fallback cannot be open"),
    ("- alias\n", "- twofold\n    - alias\n", "twofold", "has a setting 'on_error' of its own"),
    ('credential: "a', 'timeouts: {total: 366d}, credential: "a', "366d", "more than 365 days"),
    (
        "chain: default}",
        "chain: default, override: {fallbakc: {attempts: 1}}}",
        "fallbakc",
        "no filter 'fallbakc'; did you mean 'fallback'?",
    ),
    (
        "chain: default}",
        "chain: default, override: {fallback: {atempts: 1}}}",
        "atempts",
        "did you mean 'attempts'?",
    ),
    (
        "    - auth: {directory: state}\n    - rate_limit: {counters: state, requests: 60/min}\n",
        "    - rate_limit: {counters: state}\n    - auth: {directory: state}\n",
        "rate_limit",
        "needs principal, but no earlier filter provides it; put it after 'auth' (line 11)",
    ),
    ("https://api.example.com/v1", "https://api_.exa mple.com", "https://api_", "URL"),
]


@pytest.mark.parametrize(("right", "wrong", "at", "expected"), MISTAKES)
def test_a_mistake_is_found_where_it_stands(
    right: str, wrong: str, at: str, expected: str, parts: Parts
) -> None:
    assert right in GOOD
    text = GOOD.replace(right, wrong)
    found = complaints(text, parts)
    assert any(expected in problem.message for problem in found), found
    told = next(problem for problem in found if expected in problem.message)
    assert place_of(text, at) == (told.line, told.column)
    assert told.place.startswith(f"g.yaml:{told.line}:")


def test_one_wrong_filter_brings_no_complaint_about_the_order(parts: Parts) -> None:
    for right, wrong in (("ttl", "tll"), ("auth", "atuh")):
        text = GOOD.replace("{directory: state}", "{directory: state, ttl: 5s}", 1)
        [found] = complaints(text.replace(right, wrong, 1), parts)
        assert f"did you mean '{right}'?" in found.message


def test_an_operation_that_is_said_needs_no_known_path(parts: Parts) -> None:
    text = GOOD.replace("/v1/chat/completions", "/talk").replace(
        "chain: default}", "chain: default, operation: chat}"
    )
    assert "chat" == built(text, parts).routes.all[0].operation


def test_a_price_of_no_upstream_is_a_warning(parts: Parts) -> None:
    prices = "prices:\n  aawy/model: {input: 1, output: 2}\n  away/*: {input: 1, output: 2}\n"
    [warning] = built(GOOD + prices, parts).warnings
    assert ("warning", 17, 3) == (warning.severity, warning.line, warning.column)
    assert "did you mean 'away'?" in warning.message


SECRET = "plainwords of-nobody"


@pytest.mark.parametrize(
    "written",
    [
        f"headers: {{X-Tenant: {SECRET}}}, bogus: 1",
        f"bogus: 1, headers: {{X-Tenant: '{SECRET}'}}",
        f"headres: {{X-Tenant: {SECRET}}}",
        f"headers: {SECRET}",
        f'proxy: "{SECRET}"',
        f"headers: {{X-Tenant: [{SECRET}]}}",
    ],
)
def test_no_complaint_shows_the_value_of_a_secret_setting(written: str, parts: Parts) -> None:
    text = GOOD.replace('credential: "a-credential"', written)
    found = complaints(text, parts)
    assert [] != found
    for problem in found:
        assert "plainwords" not in problem.pretty()
        assert "of-nobody" not in problem.pretty()
        assert len(problem.source) == len(text.splitlines()[problem.line - 1])


def test_a_plain_secret_with_a_comma_is_hidden_whole(parts: Parts) -> None:
    away = "  away:\n    url: ftp://x\n    headers:\n      X-A: one,plainwords\n      'X B': 1\n"
    text = GOOD.replace(GOOD[GOOD.index("  away: {") : GOOD.index("models:")], away)
    assert all("plainwords" not in problem.pretty() for problem in complaints(text, parts))


def test_everything_that_is_wrong_is_said_at_once(parts: Parts) -> None:
    text = GOOD.replace("- alias", "- alais").replace("echo/echo", "ehco/echo")
    text = text.replace("kind: memory", "kind: memroy").replace("fallback", "falback")
    found = complaints(text, parts)
    assert {"alais", "ehco", "memroy", "falback"} == {
        word
        for word in ("alais", "ehco", "memroy", "falback")
        if any(word in problem.message for problem in found)
    }


def test_a_filter_that_stands_twice_in_a_chain_as_it_is_is_found(parts: Parts) -> None:
    text = """
upstreams: {echo: {kind: echo}}
chains:
  default:
    - cors: {origins: ["*"]}
    - alias
    - cors: {origins: ["*"]}
    - cors
    - fallback
routes: [{match: POST /v1/chat/completions}]
"""
    [problem] = complaints(text, parts)
    assert (7, 7) == (problem.line, problem.column)
    assert "cors is in this chain already, as it is here" == problem.message
    assert problem.hint == "keep one of the two (lines 5, 7)"


def test_a_mistake_in_a_chain_that_no_route_uses_is_found_too(parts: Parts) -> None:
    text = GOOD.replace("chains:\n", "chains:\n  spare: [cros, static]\n")
    [problem] = complaints(text, parts)
    assert "did you mean 'cors'?" in problem.message


def test_a_filter_may_be_switched_off_for_a_route(parts: Parts) -> None:
    text = GOOD.replace("chain: default}", "chain: default, override: {rate_limit: off}}")
    [route] = built(text, parts).routes.all
    assert ["auth", "alias", "fallback"] == [one.name for one in route.chain.filters]


def test_a_route_without_a_filter_that_others_need_is_refused(parts: Parts) -> None:
    text = GOOD.replace("chain: default}", "chain: default, override: {auth: off}}")
    [problem] = complaints(text, parts)
    assert "rate_limit needs principal" in problem.message


def test_equal_settings_share_a_filter_and_an_override_makes_another(parts: Parts) -> None:
    text = GOOD + (
        "  - {match: POST /v1/completions, chain: default}\n"
        "  - {match: POST /v1/embeddings, chain: default, override: {fallback: {attempts: 1}}}\n"
    )
    chat, completions, embeddings = built(text, parts).routes.all
    assert chat.chain.filters == completions.chain.filters
    assert chat.chain.filters[:3] == embeddings.chain.filters[:3]
    assert 1 == embeddings.chain.terminal.config.attempts
    assert 1 < chat.chain.terminal.config.attempts


def test_without_stores_everything_is_kept_in_one_memory(parts: Parts) -> None:
    text = GOOD.replace("stores:\n  state: {kind: memory}\n", "")
    text = text.replace("{directory: state}", "{ttl: 5s}").replace("counters: state, ", "")
    auth, limit, *_ = built(text, parts).routes.all[0].chain.filters
    assert auth.config.directory is limit.config.counters


def test_an_upstream_without_its_credential_is_left_out_and_reported(parts: Parts) -> None:
    text = GOOD.replace('"a-credential"', '"${AWAY_KEY:-}"')
    snapshot = built(text, parts)
    assert ["echo"] == list(snapshot.upstreams)
    [model] = snapshot.models.aliases
    assert ("away",) == model.missing
    assert any("AWAY_KEY" in (warning.hint or "") for warning in snapshot.warnings)


def test_weights_and_time_limits_reach_the_targets(parts: Parts) -> None:
    text = GOOD.replace(
        "fast: [echo/echo, away/model]",
        "fast: {timeout: 9s, "
        "targets: [{upstream: echo, model: a, weight: 3, timeout: 2s}, away/b]}",
    )
    [model] = built(text, parts).models.aliases
    assert model.weighted
    [tier] = model.tiers
    assert [(3.0, 2.0), (1.0, 9.0)] == [
        (one.weight, one.timeouts.first_byte) for one in tier if one.timeouts
    ]


async def test_two_snapshots_share_what_they_have_in_common(parts: Parts) -> None:
    first = built(GOOD, parts)
    kept = len(parts.shared)
    second = built(GOOD.replace("60/min", "61/min"), parts)
    assert kept == len(parts.shared)
    assert first.upstreams["away"].transport is second.upstreams["away"].transport
    assert first.upstreams["echo"].transport is second.upstreams["echo"].transport
    assert first.stores["state"] is second.stores["state"]
    await first.stop()
    assert kept == len(parts.shared)
    await second.stop()
    assert 0 == len(parts.shared)


async def test_a_second_build_that_fails_leaves_the_first_as_it_was(parts: Parts) -> None:
    first = built(GOOD, parts)
    kept = len(parts.shared)
    for right, wrong in (("- alias", "- alais"), ("- alias", "- explosive"), ("GET", "POST")):
        text = GOOD.replace(right, wrong).replace("api.example.com", "other.example.com")
        text = text.replace("state: {kind: memory}", "state: {kind: memory, keep: 3}")
        with pytest.raises(ConfigInvalid):
            built(text.replace("fallback", "falback"), parts)
        assert kept == len(parts.shared)
    await first.stop()
    assert 0 == len(parts.shared)


def test_a_plugin_that_breaks_the_build_itself_leaves_nothing_behind(parts: Parts) -> None:
    class Declared(Filter):
        name = "declared"
        config: Unheard  # type: ignore[name-defined]  # noqa: F821

    parts.registry.filters["declared"] = Declared
    with pytest.raises(Exception, match="Unheard"):
        built(GOOD.replace("- alias", "- declared"), parts)
    assert 0 == len(parts.shared)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/chat/completions", "chat"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/messages/count_tokens", "count_tokens"),
        ("/v1/messages", "messages"),
        ("/v1/files*", ""),
        ("/v1/models", ""),
    ],
)
def test_the_operation_is_known_from_the_path(path: str, expected: str) -> None:
    assert expected == operation_of(path)


# The file that `passy up` runs


def keys(node: yaml.Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[yaml.Node, Any]]:
    """Each key of a YAML document, and the path to it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key, (*path, key.value)
            yield from keys(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from keys(item, (*path, position))


NAMES = {"stores", "upstreams", "models", "chains", "apps", "prices"}
"""Below these, the first level is names of the operator's own choice."""


def own_name(path: tuple[str | int, ...]) -> bool:
    return len(path) == 2 and path[0] in NAMES


TEXT = GATEWAY.read_text(encoding="utf-8")
KEYS = [(node, path) for node, path in keys(yaml.compose(TEXT)) if not own_name(path)]


def test_the_file_of_passy_up_is_without_fault(parts: Parts) -> None:
    snapshot = built(TEXT, parts)
    assert 20 < len(snapshot.routes.all)
    assert 100 < len(KEYS)


def test_a_typo_in_any_key_of_the_file_has_a_place_and_a_suggestion(parts: Parts) -> None:
    untold = []
    for node, path in KEYS:
        start, end = node.start_mark.index, node.end_mark.index
        word = TEXT[start:end]
        wrong = word[:-2] + word[-1] + word[-2] if word[-1] != word[-2] else word[:-1]
        try:
            built(TEXT[:start] + wrong + TEXT[end:], parts)
            found = []
        except ConfigInvalid as exc:
            found = [problem for problem in exc.problems if problem.severity == "error"]
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        here = [p for p in found if p.line == line]
        suggestion = f"did you mean '{word}'?"
        if not any(suggestion in p.message and column == p.column for p in here):
            untold.append((path, wrong, [str(p) for p in found]))
    assert [] == untold

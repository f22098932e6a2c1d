"""Configuration from variables: the JSON lists of earlier set-ups and the standard providers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urljoin

import pytest

from passy_proxy.config import legacy
from passy_proxy.config.document import MAX_BYTES, Environment, parse, plain
from passy_proxy.config.legacy import layers, to_yaml
from passy_proxy.config.model import GatewayFile, HttpUpstream, gateway_file
from passy_proxy.config.problem import ConfigInvalid, Problem

PROVIDER: dict[str, Any] = {
    "id": "my-host",
    "name": "My host",
    "baseUrl": "https://llm.example.org/api/",
    "authHeader": "X-Key",
    "authPrefix": "Token ",
    "apiVersion": "7",
    "endpoints": {"chat": "/v2/chat/completions", "models": "/v2/list"},
    "models": ["a", "*"],
    "priority": 3,
    "timeout": 1500,
}
ROUTE: dict[str, Any] = {
    "alias": "fast",
    "targets": [
        {"provider": "my-host", "model": "org/a", "priority": 2},
        {"provider": "openai", "model": "gpt-4o"},
    ],
    "fallbackOn": ["5xx", "4xx", "timeout", "rate_limit"],
    "timeout": 2500,
}
KEYS = {
    "OPENAI_API_KEY": "sk-canary-openai",
    "ANTHROPIC_API_KEY": "sk-canary-anthropic",
    "NEBIUS_API_KEY": "sk-canary-nebius",
    "DEEPINFRA_API_KEY": "sk-canary-deepinfra",
}


def env(**values: object) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def problems(variables: dict[str, str]) -> tuple[Problem, ...]:
    with pytest.raises(ConfigInvalid) as invalid:
        layers(None, variables)
    assert "canary" not in invalid.value.pretty()
    return invalid.value.problems


def http(file: GatewayFile, name: str) -> HttpUpstream:
    settings = file.upstreams[name].settings
    assert isinstance(settings, HttpUpstream)
    return settings


def url_of(upstream: HttpUpstream, operation: str, path: str) -> str:
    """Where an operation goes whose path below the base URL is ``path``."""
    whole = upstream.paths.get(operation)
    return upstream.url + path if whole is None else urljoin(upstream.url, whole)


# Standard providers and default routes


LLAMAS = ("meta-llama/Meta-Llama-3.1-70B-Instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct")


@pytest.mark.parametrize(
    ("name", "dialect", "urls", "auth", "version", "models"),
    [
        (
            "openai",
            "openai",
            ("https://api.openai.com/v1/chat/completions", "https://api.openai.com/v1/models"),
            "Authorization: Bearer ",
            "",
            ("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"),
        ),
        (
            "anthropic",
            "anthropic",
            ("https://api.anthropic.com/v1/messages", "https://api.anthropic.com/v1/models"),
            "x-api-key: ",
            "2023-06-01",
            ("claude-3-5-sonnet-20241022", "claude-3-opus", "claude-3-haiku"),
        ),
        (
            "nebius",
            "openai",
            (
                "https://api.studio.nebius.ai/v1/chat/completions",
                "https://api.studio.nebius.ai/v1/models",
            ),
            "Authorization: Bearer ",
            "",
            LLAMAS,
        ),
        (
            "deepinfra",
            "openai",
            (
                "https://api.deepinfra.com/v1/openai/chat/completions",
                "https://api.deepinfra.com/v1/models",
            ),
            "Authorization: Bearer ",
            "",
            LLAMAS,
        ),
    ],
)
def test_a_standard_provider_is_there_when_its_key_is_set(
    name: str,
    dialect: str,
    urls: tuple[str, str],
    auth: str,
    version: str,
    models: tuple[str, ...],
) -> None:
    file = layers(None, KEYS)
    upstream = http(file, name)
    assert dialect == upstream.dialect
    assert urls == (url_of(upstream, "chat", "/?"), url_of(upstream, "models", "/?"))
    assert auth == f"{upstream.auth_header}: {upstream.auth_prefix}"
    assert (version, models) == (upstream.api_version, upstream.models)
    assert f"sk-canary-{name}" == upstream.credential.reveal()
    assert ("standard", f"{name.upper()}_API_KEY") == (
        file.upstreams[name].layer,
        file.upstreams[name].origin,
    )


def test_other_operations_of_a_standard_provider_go_below_its_base_url() -> None:
    file = layers(None, KEYS)
    assert [
        "https://api.openai.com/v1/embeddings",
        "https://api.studio.nebius.ai/v1/embeddings",
        "https://api.deepinfra.com/v1/openai/embeddings",
    ] == [
        url_of(http(file, n), "embeddings", "/embeddings")
        for n in ("openai", "nebius", "deepinfra")
    ]


def test_without_keys_there_is_nothing() -> None:
    file = layers(None, {"OPENAI_API_KEY": ""})
    assert ({}, {}) == (dict(file.upstreams), dict(file.models))


def test_the_default_routes_lead_to_the_standard_providers() -> None:
    models = layers(None, KEYS).models
    assert {
        "llama-70b": (
            [("nebius", LLAMAS[0]), ("deepinfra", LLAMAS[0])],
            {"5xx", "timeout", "rate_limit"},
            30,
        ),
        "llama-8b": ([("nebius", LLAMAS[1]), ("deepinfra", LLAMAS[1])], {"5xx", "timeout"}, 30),
        "gpt-4o": ([("openai", "gpt-4o")], set(), 60),
        "claude-sonnet": ([("anthropic", "claude-3-5-sonnet-20241022")], {"5xx"}, 60),
    } == {
        name: ([(t.upstream, t.model) for t in m.targets], set(m.fallback_on or ()), m.timeout)
        for name, m in models.items()
    }


def test_a_default_route_leaves_out_upstreams_that_are_not_there() -> None:
    models = layers(None, {"DEEPINFRA_API_KEY": "x"}).models
    assert {"llama-70b", "llama-8b"} == set(models)
    assert ["deepinfra"] == [target.upstream for target in models["llama-70b"].targets]


def test_a_key_may_be_in_a_file(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    variables = Environment({"OPENAI_API_KEY_FILE": str(tmp_path / "key")})
    assert "sk-from-file" == http(layers(None, variables), "openai").credential.reveal()


def test_a_key_file_that_cannot_be_read_is_a_problem() -> None:
    with pytest.raises(ConfigInvalid, match="OPENAI_API_KEY_FILE: error: the file it names"):
        layers(None, Environment({"OPENAI_API_KEY_FILE": "/does/not/exist"}))


def test_a_key_that_no_header_can_carry_is_a_problem_and_not_repeated() -> None:
    (problem,) = problems({"OPENAI_API_KEY": "canary\nx"})
    assert "OPENAI_API_KEY" == problem.place


# MINI_LLM_PROVIDERS


def test_a_provider_becomes_an_upstream() -> None:
    variables = env(MINI_LLM_PROVIDERS=[PROVIDER], MY_HOST_API_KEY="sk-canary")
    file = layers(None, variables)
    upstream = http(file, "my-host")
    assert "https://llm.example.org/api/v2/chat/completions" == url_of(upstream, "chat", "/?")
    assert "https://llm.example.org/api/v2/list" == url_of(upstream, "models", "/?")
    assert "https://llm.example.org/api/v2/embeddings" == url_of(
        upstream, "embeddings", "/embeddings"
    )
    assert ("X-Key", "Token ", "7", ("a", "*"), 3, 1.5) == (
        upstream.auth_header,
        upstream.auth_prefix,
        upstream.api_version,
        upstream.models,
        upstream.priority,
        upstream.timeouts.total,
    )
    assert "sk-canary" == upstream.credential.reveal()
    assert ("MINI_LLM", "MINI_LLM_PROVIDERS:1:2") == (
        file.upstreams["my-host"].layer,
        file.upstreams["my-host"].origin,
    )


def test_a_provider_of_messages_speaks_anthropic() -> None:
    provider = {**PROVIDER, "endpoints": {"chat": "/v1/messages"}, "apiVersion": None}
    upstream = http(layers(None, env(MINI_LLM_PROVIDERS=[provider])), "my-host")
    assert ("anthropic", "2023-06-01") == (upstream.dialect, upstream.api_version)
    assert "https://llm.example.org/api/v1/messages" == url_of(upstream, "chat", "/v1/messages")


def test_a_provider_whose_key_is_not_set_is_reported_and_left_out() -> None:
    file = layers(None, env(MINI_LLM_PROVIDERS=[PROVIDER]))
    assert file.upstreams["my-host"].left_out
    (warning,) = file.warnings
    assert "MY_HOST_API_KEY is not set" in warning.message


def test_a_provider_without_an_auth_header_needs_no_key() -> None:
    provider = {**PROVIDER, "authHeader": "", "authPrefix": ""}
    file = layers(None, env(MINI_LLM_PROVIDERS=[provider]))
    assert (False, ()) == (file.upstreams["my-host"].left_out, file.warnings)


@pytest.mark.parametrize("name", ["MINI_LLM_PROVIDERS", "MINI_LLM_ROUTING"])
@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[{]", (1, 3), "not JSON: Expecting property name"),
        ("[\n  {'id': 1}]", (2, 4), "not JSON: Expecting property name"),
        ('[{"a": 1},]', (1, None), "not JSON"),
        ("{", (1, 2), "not JSON"),
        ("[NaN]", (1, 1), "NaN is no JSON value"),
        ("{}", (1, 1), "expected a JSON array"),
        ('"x"', (1, 1), "expected a JSON array"),
        ("[1]", (1, 2), "/0: expected settings (name: value), found '1'"),
        ('[{"x": 1, "x": 2}]', (1, 11), "/0/x: this name is already in the object"),
        ("[" * 100 + "]" * 100, (1, 66), "nested deeper"),
        ("[" * 200_000 + "]" * 200_000, (1, None), "nested"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_json_is_a_located_error(
    name: str, text: str, place: tuple[int, int | None], words: str
) -> None:
    (problem,) = problems({name: text})
    assert words in problem.message
    assert (name, place[0]) == (problem.path, problem.line)
    assert place[1] in (None, problem.column)


def test_a_variable_over_the_limit_is_refused() -> None:
    (problem,) = problems({"MINI_LLM_ROUTING": "[" + " " * MAX_BYTES + "]"})
    assert "longer than" in problem.message


def test_places_in_json_count_lines_and_columns() -> None:
    text = json.dumps([PROVIDER, {**PROVIDER, "id": "two", "prioriti": "x"}], indent=2)
    (problem,) = problems(env(MINI_LLM_PROVIDERS=text))
    line = 1 + next(i for i, t in enumerate(text.splitlines()) if "prioriti" in t)
    assert (
        f"MINI_LLM_PROVIDERS:{line}:5: error: /1/prioriti: unknown setting 'prioriti'; "
        "did you mean 'priority'?"
    ) == str(problem)


@pytest.mark.parametrize(
    "name", ["id", "name", "baseUrl", "authHeader", "authPrefix", "endpoints", "models"]
)
def test_a_missing_field_of_a_provider_is_named_by_pointer(name: str) -> None:
    provider = {key: value for key, value in PROVIDER.items() if key != name}
    (problem,) = problems(env(MINI_LLM_PROVIDERS=[provider]))
    assert f"/0: '{name}' is missing" == problem.message


@pytest.mark.parametrize("name", ["alias", "targets"])
def test_a_missing_field_of_a_route_is_named_by_pointer(name: str) -> None:
    route = {key: value for key, value in ROUTE.items() if key != name}
    (problem,) = problems(env(MINI_LLM_ROUTING=[route]))
    assert f"/0: '{name}' is missing" == problem.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "a/b"}, "/0/id: 'a/b' must have the form"),
        ({"baseUrl": "nowhere"}, "/0/baseUrl: this is no URL of the kind needed"),
        ({"baseUrl": "https://u:p@host"}, "/0/baseUrl: no user or password"),
        ({"authHeader": "a b"}, "/0/authHeader: 'a b' is not the name of a header"),
        ({"endpoints": {"chat": "v1"}}, "/0/endpoints/chat: 'v1' must have the form"),
        ({"endpoints": {}}, "/0/endpoints: 'chat' is missing"),
        ({"models": "a"}, "/0/models: expected a list, found 'a'"),
        ({"priority": "first"}, "/0/priority: expected a whole number"),
        ({"timeout": 0}, "/0/timeout: '0' must be more than 0"),
    ],
)
def test_a_wrong_field_of_a_provider_is_named_by_pointer(
    change: dict[str, object], words: str
) -> None:
    (problem,) = problems(
        env(MINI_LLM_PROVIDERS=[{**PROVIDER, **change}], MY_HOST_API_KEY="canary")
    )
    assert problem.message.startswith(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timeout": 10**12}, "/0/timeout: '1000000000000' must be at most 31536000000"),
        ({"targets": [{"provider": "", "model": "m"}]}, "/0/targets/0/provider: this must not be"),
        ({"targets": [{"provider": "p", "model": ""}]}, "/0/targets/0/model: this must not be"),
    ],
)
def test_a_wrong_field_of_a_route_is_named_by_pointer(
    change: dict[str, object], words: str
) -> None:
    (problem,) = problems(env(MINI_LLM_ROUTING=[{**ROUTE, **change}]))
    assert problem.message.startswith(words)


def test_a_key_of_a_provider_that_no_header_can_carry_is_not_repeated() -> None:
    (problem,) = problems(env(MINI_LLM_PROVIDERS=[PROVIDER], MY_HOST_API_KEY="canary\n!"))
    assert "/0/id" in problem.message


def test_a_repeated_provider_or_alias_is_refused() -> None:
    found = problems(env(MINI_LLM_PROVIDERS=[PROVIDER] * 2, MINI_LLM_ROUTING=[ROUTE] * 2))
    assert [
        "/1/id: the provider 'my-host' is already in the list",
        "/1/alias: the alias 'fast' is already in the list",
    ] == [problem.message for problem in found]


# MINI_LLM_ROUTING


def test_a_route_becomes_an_alias() -> None:
    alias = layers(None, env(MINI_LLM_ROUTING=[ROUTE])).models["fast"]
    assert [("my-host", "org/a", 2), ("openai", "gpt-4o", None)] == [
        (target.upstream, target.model, target.priority) for target in alias.targets
    ]
    assert (frozenset({"5xx", "4xx", "timeout", "rate_limit"}), 2.5, "MINI_LLM") == (
        alias.fallback_on,
        alias.timeout,
        alias.layer,
    )


def test_a_route_without_a_timeout_has_thirty_seconds_and_falls_back_on_nothing() -> None:
    route = {"alias": "a", "targets": [{"provider": "p", "model": "m"}]}
    alias = layers(None, env(MINI_LLM_ROUTING=[route])).models["a"]
    assert (frozenset(), 30) == (alias.fallback_on, alias.timeout)


def test_an_unknown_condition_is_named_with_a_suggestion() -> None:
    (problem,) = problems(env(MINI_LLM_ROUTING=[{**ROUTE, "fallbackOn": ["5xx", "ratelimit"]}]))
    assert problem.message.startswith("/0/fallbackOn/1: 'ratelimit' is none of")
    assert problem.message.endswith("did you mean 'rate_limit'?")


def test_unicode_and_escapes_in_json_are_understood() -> None:
    text = (
        '[{"alias": "\\ud83d\\ude00\\/\\u00e4", "targets":\t[{"provider":"p","model":"\u00e9"}]}]'
    )
    alias = layers(None, {"MINI_LLM_ROUTING": text}).models["😀/ä"]
    assert "é" == alias.targets[0].model


# Layers


def test_the_file_wins_over_json_and_json_over_the_standard_providers() -> None:
    providers = [{**PROVIDER, "id": name} for name in ("openai", "nebius")]
    variables = env(MINI_LLM_PROVIDERS=providers, MINI_LLM_ROUTING=[{**ROUTE, "alias": "gpt-4o"}])
    text = "upstreams: {openai: {url: https://file}}\nmodels: {llama-8b: [openai/x]}"
    file = layers(parse(text, "gateway.yaml", {}), {**KEYS, **variables})
    assert {
        "openai": "file",
        "nebius": "MINI_LLM",
        "anthropic": "standard",
        "deepinfra": "standard",
    } == {name: entry.layer for name, entry in file.upstreams.items()}
    assert {
        "llama-8b": "file",
        "gpt-4o": "MINI_LLM",
        "llama-70b": "standard",
        "claude-sonnet": "standard",
    } == {name: entry.layer for name, entry in file.models.items()}


def warned(file: GatewayFile) -> list[str]:
    return [f"{one.place}: {one.message}" for one in file.warnings]


def test_what_is_not_used_since_another_layer_goes_first_is_said() -> None:
    providers = [{**PROVIDER, "id": "openai"}]
    variables = env(MINI_LLM_PROVIDERS=providers, MINI_LLM_ROUTING=[{**ROUTE, "alias": "gpt-4o"}])
    text = 'upstreams: {openai: {url: "https://file"}}\nmodels: {gpt-4o: [openai/x]}'
    file = layers(parse(text, "gateway.yaml", {}), {**KEYS, **variables})
    assert ("file", "file") == (file.upstreams["openai"].layer, file.models["gpt-4o"].layer)
    where = "is not used: gateway.yaml"
    assert [
        f"MINI_LLM_PROVIDERS:1:2: /0: the provider 'openai' {where}:1:13 goes first",
        f"MINI_LLM_ROUTING:1:2: /0: the alias 'gpt-4o' {where}:2:10 goes first",
    ] == [line for line in warned(file) if "goes first" in line]


def test_what_nobody_can_answer_in_the_file_gives_way_to_json() -> None:
    """The shipped file has the aliases of earlier set-ups, whose keys may be of other providers."""
    host = {**PROVIDER, "id": "open", "authHeader": ""}
    routes = [
        {**ROUTE, "alias": alias, "targets": [{"provider": "open", "model": "m"}]}
        for alias in ("gpt-4o", "fast")
    ]
    text = """
upstreams:
  openai: {url: "https://file", credential: "${OPENAI_API_KEY:-}"}
  nebius: {url: "https://file", credential: "${NEBIUS_API_KEY:-}"}
models: {gpt-4o: [openai/x], fast: [openai/x, nebius/x]}
"""
    variables = {"NEBIUS_API_KEY": "k"}
    given = env(MINI_LLM_PROVIDERS=[host], MINI_LLM_ROUTING=routes)
    file = layers(parse(text, "gateway.yaml", variables), {**variables, **given})
    assert ("MINI_LLM", "file") == (file.models["gpt-4o"].layer, file.models["fast"].layer)
    assert 1 == len([line for line in warned(file) if "goes first" in line])


def test_a_key_of_a_provider_that_begins_with_a_digit_has_a_variable_that_can_be_set() -> None:
    variables = env(MINI_LLM_PROVIDERS=[{**PROVIDER, "id": "01-ai"}], _01_AI_API_KEY="sk-canary")
    file = layers(None, variables)
    assert "sk-canary" == http(file, "01-ai").credential.reveal()
    text = to_yaml(file.upstreams.values(), ())
    after = gateway_file(parse(text, "gateway.yaml", variables))
    assert "sk-canary" == http(after, "01-ai").credential.reveal()


def test_problems_of_all_layers_come_at_once() -> None:
    with pytest.raises(ConfigInvalid) as invalid:
        layers(
            parse("listn: x", "gateway.yaml", {}),
            {"MINI_LLM_PROVIDERS": "x", "MINI_LLM_ROUTING": "y", "OPENAI_API_KEY": "a\nb"},
        )
    assert ["gateway.yaml", "MINI_LLM_PROVIDERS", "MINI_LLM_ROUTING", "OPENAI_API_KEY"] == [
        problem.path for problem in invalid.value.problems
    ]


def test_exported_yaml_means_the_same_and_holds_no_key() -> None:
    unkeyed = {**PROVIDER, "id": "open", "authHeader": "", "authPrefix": "$${x} ", "timeout": None}
    variables = {
        **KEYS,
        **env(
            MINI_LLM_PROVIDERS=[PROVIDER, unkeyed],
            MINI_LLM_ROUTING=[ROUTE],
            MY_HOST_API_KEY="sk-canary",
        ),
    }
    before = layers(None, variables)
    text = to_yaml(before.upstreams.values(), before.models.values())
    assert "canary" not in text
    after = gateway_file(parse(text, "gateway.yaml", variables))
    assert {n: e.settings for n, e in before.upstreams.items()} == {
        n: e.settings for n, e in after.upstreams.items()
    }
    assert [
        (m.name, [(t.upstream, t.model, t.priority) for t in m.targets], m.fallback_on, m.timeout)
        for m in before.models.values()
    ] == [
        (m.name, [(t.upstream, t.model, t.priority) for t in m.targets], m.fallback_on, m.timeout)
        for m in after.models.values()
    ]
    assert () == after.warnings


def test_json_nodes_read_what_json_reads() -> None:
    text = ' [ {"a": [1, -2.5e3, true, null, "x"], "b": {}} , [ ] ] '
    assert [{"a": ["1", "-2.5e3", "true", "", "x"], "b": {}}, []] == plain(
        legacy.json_nodes(text, "V")
    )

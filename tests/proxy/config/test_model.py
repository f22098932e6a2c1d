"""gateway.yaml → entries, and a located complaint about every slip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import pytest

from passy_proxy.config import model
from passy_proxy.config.document import Document, Mapping, Node, Part, Sequence, Text, parse, plain
from passy_proxy.config.model import GatewayFile, HttpUpstream, gateway_file
from passy_proxy.config.problem import ConfigInvalid, Problem
from passy_proxy.config.schema import json_schema
from passy_proxy.config.settings import Settings, setting

FULL = """\
listen: 127.0.0.1:8080
admin: {listen: "127.0.0.1:9000"}
plugins: [portal]

stores:
  state: {kind: memory}
  books: {kind: sql, url: "${DATABASE_URL:-sqlite:///passy.db}"}

upstreams:
  echo: {kind: echo, dialect: openai, models: [echo], priority: 9, delay: 1s}
  openai:
    kind: http
    dialect: openai
    models: [gpt-4o, "*"]
    priority: 1
    url: https://api.openai.com/v1/
    credential: "${OPENAI_API_KEY:-}"
    auth_header: Authorization
    auth_prefix: "Bearer "
    headers: {x-team: "${TEAM:-blue}"}
    forward_headers: [openai-beta]
    api_version: 2023-06-01
    paths: {chat: /v1/chat/completions}
    timeouts:
      connect: 1s
      tls: 2s
      write: 3s
      first_byte: 4s
      idle: 5s
      total: 6s
      pool: 7s
    max_connections: 12
    keep_alive: 30s
    http2: off
    proxy: "${PROXY:-}"
    ca_file: /etc/ca.pem
    verify: yes
    transport: http1
  local: {url: "http://127.0.0.1:9000"}

models:
  llama-70b:
    targets:
      - local/meta-llama/Meta-Llama-3.1-70B-Instruct
      - {upstream: openai, model: a/b, priority: 2, weight: 0.5, timeout: 9s}
      - {provider: echo, model: echo}
    fallback_on: [5xx, timeout, rate_limit]
    timeout: 30s
  gpt-4o: [openai/gpt-4o]

chains:
  default:
    - access_log
    - rate_limit: {counters: state, requests: 60/min}
    - alias:
    - fallback

routes:
  - match: POST /v1/chat/completions
    dialect: openai
    chain: default
    override: {rate_limit: {requests: 600/min}, alias: off}
    operation: chat
    body: read
    body_limit: 1MiB
    json_depth: 64
    json_keys: 1000
    json_digits: 40
    multipart_parts: 10
    root: /v1
  - {match: GET /healthz, chain: [static: {status: 200}]}

apps:
  /keys: keys
  /admin/api: {app: admin, body_limit: 2MiB, listener: main}

prices:
  openai/gpt-*:
    input: 0.13
    output: 0.40
    cached_input: 0.1
    cache_write: 0.2
    reasoning: 0.5
    audio_input: 1
    audio_output: 2
    per: 1M

connect:
  dns_ttl: 10s
  dns_stale: 1m
  dns_patience: 500ms
  dns_lookups: 8
  tenants_may_reach: [10.1.0.0/16, models.internal]
  hops: 3

edge:
  max_header_bytes: 16KiB
  max_headers: 50
  max_url_bytes: 4KiB
  max_connections_per_ip: 10
  header_timeout: 1s
  body_rate: 1KiB
  body_grace: 1s
  write_timeout: 1s
  write_rate: 2KiB
  keep_alive: 1s
  lame_duck: 1s
  shutdown_timeout: 1s
  loop_lag: 1s
  loop_dead: 1s
  start_timeout: 3m

overload:
  max_requests: 100
  max_connections: 1000
  memory: 1GiB
  memory_share: 0.5
  descriptors: 0.8
  loop_lag: 2s

log: {level: debug, format: json}
time_filters: 100
"""
ENV = {"OPENAI_API_KEY": "sk-canary-0123456789"}


def read(text: str, env: dict[str, str] | None = None) -> GatewayFile:
    return gateway_file(document(text, env))


def document(text: str, env: dict[str, str] | None = None) -> Document:
    return parse(text, "config/gateway.yaml", ENV if env is None else env)


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigInvalid) as invalid:
        read(text)
    return invalid.value.problems


def http(file: GatewayFile, name: str) -> HttpUpstream:
    settings = file.upstreams[name].settings
    assert isinstance(settings, HttpUpstream)
    return settings


def url_of(upstream: HttpUpstream, operation: str, path: str) -> str:
    """Where an operation goes whose path below the base URL is ``path``."""
    whole = upstream.paths.get(operation)
    return upstream.url + path if whole is None else urljoin(upstream.url, whole)


# What the example means


def test_an_upstream_has_what_the_file_says() -> None:
    file = read(FULL)
    openai = http(file, "openai")
    assert "https://api.openai.com/v1" == openai.url
    assert "sk-canary-0123456789" == openai.credential.reveal()
    assert "Bearer " == openai.auth_prefix
    assert "blue" == openai.headers["x-team"].reveal()
    assert (1, 6, 7) == (openai.timeouts.connect, openai.timeouts.total, openai.timeouts.pool)
    assert (False, True, "http1") == (openai.http2, openai.verify, openai.transport)
    assert "config/gateway.yaml:11:3" == file.upstreams["openai"].origin
    assert "file" == file.upstreams["openai"].layer


def test_an_in_process_upstream_keeps_the_settings_of_its_kind() -> None:
    echo = read(FULL).upstreams["echo"]
    assert ("echo", ("echo",), 9) == (
        echo.settings.kind,
        echo.settings.models,
        echo.settings.priority,
    )
    assert {"delay": "1s"} == plain(echo.rest)


def test_a_store_keeps_the_settings_of_its_kind() -> None:
    books = read(FULL).stores["books"]
    assert "sql" == books.kind
    assert {"url": "sqlite:///passy.db"} == plain(books.settings)


def test_an_alias_lists_its_targets_best_first() -> None:
    llama = read(FULL).models["llama-70b"]
    assert [
        ("local", "meta-llama/Meta-Llama-3.1-70B-Instruct", None, 1.0, None),
        ("openai", "a/b", 2, 0.5, 9),
        ("echo", "echo", None, 1.0, None),
    ] == [(t.upstream, t.model, t.priority, t.weight, t.timeout) for t in llama.targets]
    assert [44, 45, 46] == [target.node.line for target in llama.targets]
    assert (frozenset({"5xx", "timeout", "rate_limit"}), 30) == (llama.fallback_on, llama.timeout)


def test_a_short_alias_is_a_list_of_targets() -> None:
    models = read("models: {gpt-4o: [openai/gpt-4o, echo]}").models
    assert [("openai", "gpt-4o"), ("echo", "")] == [
        (target.upstream, target.model) for target in models["gpt-4o"].targets
    ]
    assert (None, None) == (models["gpt-4o"].fallback_on, models["gpt-4o"].timeout)
    assert [19, 34] == [target.node.column for target in models["gpt-4o"].targets]


def test_a_chain_keeps_order_settings_and_places() -> None:
    chain = read(FULL).chains["default"]
    assert ["access_log", "rate_limit", "alias", "fallback"] == [entry.name for entry in chain]
    assert {"counters": "state", "requests": "60/min"} == plain(chain[1].settings)
    assert {} == plain(chain[2].settings)
    assert [53, 54, 55, 56] == [entry.node.line for entry in chain]


def test_a_route_has_a_chain_by_name_or_of_its_own() -> None:
    named, inline = read(FULL).routes
    assert ("default", "chat", 1 << 20) == (
        named.chain,
        named.settings.operation,
        named.settings.body_limit,
    )
    assert isinstance(named.override["rate_limit"], Mapping)
    assert named.override["alias"] is None
    assert not isinstance(inline.chain, str)
    assert [("static", {"status": "200"})] == [(e.name, plain(e.settings)) for e in inline.chain]


def test_an_empty_file_is_a_configuration() -> None:
    file = read("")
    assert ("127.0.0.1:8080", {}, ()) == (
        str(file.settings.listen),
        dict(file.upstreams),
        file.routes,
    )


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        (":8080", "0.0.0.0", 8080),
        ("'[::1]:0'", "::1", 0),
        ("localhost:1", "localhost", 1),
    ],
)
def test_listen_is_host_and_port(written: str, host: str, port: int) -> None:
    assert (host, port) == read(f"listen: {written}").settings.listen


def test_an_operation_goes_below_the_base_url_or_has_a_path_of_its_own() -> None:
    openai = http(read(FULL), "openai")
    assert "https://api.openai.com/v1/embeddings" == url_of(openai, "embeddings", "/embeddings")
    assert "https://api.openai.com/v1/chat/completions" == url_of(openai, "chat", "/other")


@pytest.mark.parametrize("written", ['"${OPENAI_API_KEY:-}"', "", "''"])
def test_an_upstream_whose_credential_is_empty_is_reported_and_left_out(written: str) -> None:
    file = read(f"upstreams:\n  openai: {{url: https://x, credential: {written}}}\n", {})
    assert file.upstreams["openai"].left_out
    (warning,) = file.warnings
    assert (2, "warning") == (warning.line, warning.severity)
    assert "'openai' is left out" in warning.message


def test_an_upstream_without_a_credential_needs_none() -> None:
    file = read("upstreams: {local: {url: http://127.0.0.1:9000}}")
    assert (False, ()) == (file.upstreams["local"].left_out, file.warnings)


# Slips


def keys(node: Node) -> Iterator[tuple[tuple[Part, ...], Text]]:
    """Every name in a document, with the path of what it stands in."""
    match node:
        case Mapping():
            for name, key in node.keys.items():
                yield node.path, key
                yield from keys(node.entries[name])
        case Sequence():
            for item in node.items:
                yield from keys(item)


def is_setting(path: tuple[Part, ...], name: str) -> bool:
    """Whether gateway.yaml itself knows the name; others are free, or belong to a plugin."""
    named = ("stores", "upstreams", "models", "chains", "apps", "prices")
    match path:
        case (section,) if section in named:
            return False
        case ("stores", _):
            return name == "kind"
        case ("apps", _):
            return name == "app"
        case ("upstreams", "echo"):
            return name == "kind"
        case ("upstreams", _, "headers" | "paths"):
            return False
        case ("chains", *_) | ("routes", _, "override" | "chain", *_):
            return False
    return True


SETTINGS = [
    pytest.param(key, id=".".join(map(str, key.path)))
    for path, key in keys(document(FULL).root)
    if is_setting(path, key.text)
]


@pytest.mark.parametrize("key", SETTINGS)
def test_a_typo_in_any_key_is_located_and_the_right_word_is_suggested(key: Text) -> None:
    lines = FULL.splitlines(keepends=True)
    line, middle = lines[key.line - 1], len(key.text) // 2
    typo = key.text[:middle] + key.text[middle + 1 :] if middle > 1 else f"{key.text}x"
    start = key.column - 1
    assert line[start:].startswith(key.text)
    lines[key.line - 1] = line[:start] + typo + line[start + len(key.text) :]
    expected = f"unknown setting '{typo}'; did you mean '{key.text}'?"
    place = f"config/gateway.yaml:{key.line}:{key.column}: error: {expected}"
    found = problems("".join(lines))
    assert place in [str(problem) for problem in found]
    assert "sk-canary" not in "".join(problem.pretty() for problem in found)


def test_the_example_sets_everything_that_can_be_set() -> None:
    classes = [
        kind
        for kind in vars(model).values()
        if isinstance(kind, type) and issubclass(kind, Settings) and kind is not Settings
    ]
    there = {key.text for path, key in keys(document(FULL).root)}
    assert set() == {name for kind in classes for name in kind.model_fields} - there


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("listen: 8080", (1, 9), "'8080' is no address; write host:port or :port"),
        ("listen: a:99999", (1, 9), "is no address"),
        ("stores: [a]", (1, 9), "'stores' holds names, each with its settings; found a list"),
        ("stores: {a: memory}", (1, 13), "a store is settings with a kind; found 'memory'"),
        ("stores: {a: {url: x}}", (1, 10), "the store 'a' needs a kind"),
        ("stores: {a: }", (1, 10), "the store 'a' needs a kind"),
        ("upstreams: x", (1, 12), "'upstreams' holds names"),
        ("upstreams: {a: x}", (1, 16), "an upstream is settings; found 'x'"),
        ("upstreams: {a/b: {kind: echo}}", (1, 13), "cannot be the name of an upstream"),
        ("upstreams: {a: {dialect: x}}", (1, 16), "'url' is missing"),
        ("upstreams: {a: {url: 'ftp://x'}}", (1, 22), "no URL of the kind needed"),
        ("upstreams: {a: {url: 'https://'}}", (1, 22), "no URL of the kind needed"),
        ("upstreams: {a: {url: 'https://u:p@h'}}", (1, 22), "use 'credential'"),
        ("upstreams: {a: {url: 'https://h/?q=1'}}", (1, 22), "leave out what begins with '?'"),
        ("upstreams: {a: {url: 'https://h:x'}}", (1, 22), "this is no URL"),
        ("upstreams: {a: {url: 'https://h h'}}", (1, 22), "no spaces"),
        ("upstreams: {a: {url: 'https://[::'}}", (1, 22), "this is no URL"),
        (
            "upstreams: {a: {url: 'https://h', headers: {'x y': z}}}",
            (1, 45),
            "'x y' is not the name of a header",
        ),
        (
            'upstreams: {a: {url: "https://h", headers: {x: "a\\r\\nb: c"}}}',
            (1, 48),
            "a header cannot carry this",
        ),
        (
            'upstreams: {a: {url: "https://h", credential: "key\\n"}}',
            (1, 47),
            "a header cannot carry this",
        ),
        (
            "upstreams: {a: {url: 'https://h', paths: {chat: v1}}}",
            (1, 49),
            "'v1' is no path",
        ),
        (
            "upstreams: {a: {url: 'https://h', proxy: 'ssh://x'}}",
            (1, 42),
            "no URL of the kind needed",
        ),
        (
            "upstreams: {a: {url: 'https://h', transport: htp1}}",
            (1, 46),
            "did you mean 'http1'?",
        ),
        ("upstreams: {a: {kind: echo, priority: x}}", (1, 39), "expected a whole number"),
        ("models: {a: openai/gpt}", (1, 13), "expected a list of targets"),
        ("models: {a: []}", (1, 13), "a list must not be empty"),
        ("models: {a: [x/y, /z]}", (1, 19), "a target is written upstream/model"),
        ("models: {a: [{model: m}]}", (1, 14), "a target has an upstream and a model"),
        ("models: {a: [{upstream: x, provider: y}]}", (1, 14), "a target has an upstream"),
        ("models: {a: [{upstrem: x, model: y}]}", (1, 15), "did you mean 'upstream'?"),
        (
            "models: {a: {targets: [x/y], fallback_on: [timeot]}}",
            (1, 44),
            "did you mean 'timeout'?",
        ),
        ("chains: {a: auth}", (1, 13), "a chain is a list of filters"),
        ("chains: {a: }", (1, 10), "a chain is a list of filters"),
        ("chains: {a: []}", (1, 13), "a chain is a list of filters"),
        ("chains: {a: [[b]]}", (1, 14), "expected the name of a filter"),
        ("chains: {a: [b: c]}", (1, 17), "the filter 'b' takes settings (name: value); found 'c'"),
        (
            "chains:\n  a:\n    - b:\n      ttl: 1s\n",
            (4, 7),
            "'ttl' stands beside the filter 'b', not below it",
        ),
        ("routes: {a: b}", (1, 9), "'routes' is a list"),
        ("routes: [x]", (1, 10), "expected settings"),
        ("routes: [{chain: a}]", (1, 10), "'match' is missing"),
        ("routes: [{match: GET /, chain: {a: b}}]", (1, 32), "a chain is a list"),
        ("routes: [{match: GET /, override: x}]", (1, 35), "'override' holds filters"),
        ("routes: [{match: GET /, override: {a: on}}]", (1, 39), "'a' takes settings, or off"),
        ("prices: {x: {input: -1, output: 1}}", (1, 21), "must be at least 0"),
        ("models: {m: {targets: [a/b], timeout: 0}}", (1, 39), "'0' must be more than 0"),
        ("models: {m: [{upstream: a, timeout: 0s}]}", (1, 37), "'0s' must be more than 0"),
        (
            'upstreams: {a: {url: "https://a.test", timeouts: {total: 0s}}}',
            (1, 58),
            "'0s' must be more than 0",
        ),
        ("edge: {max_url_bytes: 0}", (1, 23), "must be at least 256"),
        ("edge: {max_header_bytes: 1}", (1, 26), "must be at least 1024"),
        ("edge: {max_headers: 0}", (1, 21), "must be at least 1"),
        ("log: {level: loud}", (1, 14), "is none of debug, info, warning and error"),
        ("[a]", (1, 1), "expected settings (name: value), found a list"),
        ("just text", (1, 1), "expected settings (name: value), found 'just text'"),
    ],
)
def test_each_slip_is_located_and_explained(text: str, place: tuple[int, int], words: str) -> None:
    found = problems(text)
    assert (place, True) in [((p.line, p.column), words in p.message) for p in found], found
    assert 1 == len(found)


def test_all_sections_complain_at_once_in_the_order_of_the_file() -> None:
    text = (
        "listn: x\nstores: {a: x}\nupstreams: {b: {url: x}}\nmodels: {c: x}\n"
        "chains: {d: x}\nroutes: x\nlog: {level: x}\n"
    )
    assert [1, 2, 3, 4, 5, 6, 7] == [problem.line for problem in problems(text)]


@pytest.mark.parametrize("name", sorted(set(HttpUpstream.model_fields) - {"kind", "url"}))
@pytest.mark.parametrize("value", ['"${V}"', '["${V}"]', '{x: "${V}"}', '"sk-canary-4711\\n"'])
def test_no_complaint_repeats_a_secret(name: str, value: str) -> None:
    text = f"upstreams:\n  a:\n    url: https://h\n    {name}x: {value}\n    {name}: {value}\n"
    with pytest.raises(ConfigInvalid) as invalid:
        read(text, {"V": "canary-4711\n"})
    assert "canary" not in invalid.value.pretty() + invalid.value.to_json()


@pytest.mark.parametrize("name", ["kind", "url"])
def test_no_complaint_about_what_decides_the_rest_repeats_a_secret(name: str) -> None:
    with pytest.raises(ConfigInvalid) as invalid:
        read(f'upstreams: {{a: {{{name}: ["${{V}}"], x: "${{V}}"}}}}', {"V": "canary-4711"})
    assert "canary" not in invalid.value.pretty() + invalid.value.to_json()


def test_no_entry_shows_a_secret() -> None:
    assert "canary" not in repr(read(FULL))


# The schema


class Config(Settings):
    max_chars: int = setting(20_000, "Longest prompt accepted.")


def test_the_schema_describes_every_setting_and_the_filters_given() -> None:
    schema = json_schema({"prompt_cap": Config})
    assert "https://json-schema.org/draft/2020-12/schema" == schema["$schema"]
    assert set(model.GatewaySettings.model_fields) == set(schema["properties"])
    entry = schema["$defs"]["chain"]["items"]["anyOf"][1]["properties"]["prompt_cap"]
    definition = schema["$defs"][entry["$ref"].rpartition("/")[2]]
    assert "Longest prompt accepted." == definition["properties"]["max_chars"]["description"]
    assert False is definition["additionalProperties"]


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = json_schema({"a": Config, "b": Config}, {"memory": Config}, {"echo": Config})

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(schema))
    assert found
    assert set() == {ref.rpartition("/")[2] for ref in found} - set(schema["$defs"])


def test_the_schema_knows_the_kinds_it_is_given() -> None:
    schema = json_schema({}, {"memory": Config}, {"echo": Config})
    store = schema["properties"]["stores"]["additionalProperties"]
    assert ({"const": "memory"}, ["kind"]) == (store["properties"]["kind"], store["required"])
    echo = schema["properties"]["upstreams"]["additionalProperties"]["anyOf"][1]
    assert {"kind", "dialect", "models", "priority", "max_chars"} == set(echo["properties"])


def test_the_schema_knows_apps_by_name_and_by_their_settings() -> None:
    schema = json_schema({}, apps={"keys": Config})
    name, settings = schema["properties"]["apps"]["additionalProperties"]["anyOf"]
    assert "string" == name["type"]
    assert ({"const": "keys"}, ["app"]) == (settings["properties"]["app"], settings["required"])
    assert {"app", "body_limit", "listener", "max_chars"} == set(settings["properties"])


def test_the_schema_takes_a_duration_as_it_is_written() -> None:
    schema = json_schema({})
    timeouts = schema["$defs"]["TimeoutSettings"]["properties"]
    assert "string" in timeouts["connect"]["type"]
    assert "5s" == timeouts["connect"]["default"]

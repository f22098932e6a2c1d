"""Configuration from variables: two JSON lists of earlier set-ups, and the well-known providers.

Three layers, the first that has a name wins: the file, `MINI_LLM_PROVIDERS` and `MINI_LLM_ROUTING`,
and the standard providers whose key is set, with the default routes that lead to them. What the
file has but nobody can answer, for want of credentials, gives way to the second layer.

The JSON lists hold no keys. The key of provider `my-host` is read from `MY_HOST_API_KEY`; a
provider whose `authHeader` is empty needs none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import Field

from passy_proxy.config import document as doc
from passy_proxy.config.document import Document, Node, Source, empty
from passy_proxy.config.model import (
    BaseURL,
    FallbackOn,
    GatewayFile,
    HttpUpstream,
    ModelEntry,
    TargetEntry,
    UpstreamEntry,
    gateway_file,
)
from passy_proxy.config.problem import MASK, ConfigInvalid, Problem
from passy_proxy.config.settings import S, Settings, read, setting
from passy_proxy.units import LONGEST

E = TypeVar("E", UpstreamEntry, ModelEntry)

_DECODER = json.JSONDecoder()

PROVIDERS = "MINI_LLM_PROVIDERS"
ROUTING = "MINI_LLM_ROUTING"
ANTHROPIC_VERSION = "2023-06-01"
DEFAULT_TIMEOUT_MS = 30_000

_LLAMA_70B = "meta-llama/Meta-Llama-3.1-70B-Instruct"
_LLAMA_8B = "meta-llama/Meta-Llama-3.1-8B-Instruct"


class EndpointSettings(Settings):
    chat: str = setting(..., "Path of chat completions, below baseUrl.", pattern="^/")
    models: str = setting("", "Path of the list of models, below baseUrl.", pattern="^(/|$)")


class ProviderSettings(Settings):
    """One element of MINI_LLM_PROVIDERS. The names are those of its JSON."""

    id: str = setting(..., "The provider's id.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    name: str = setting(..., "Its name, for people.")
    baseUrl: BaseURL = setting(..., "Where it is reached.")
    authHeader: str = setting(..., "The header its key is sent in.")
    authPrefix: str = setting(..., "What stands before the key.")
    apiVersion: str = setting("", "API version, where there is one.")
    endpoints: EndpointSettings = setting(..., "Paths below baseUrl.")
    models: tuple[str, ...] = setting(..., "The models it serves; * is any.")
    priority: int = setting(0, "Lowest first.")
    timeout: int | None = setting(None, "Milliseconds an attempt may take.", gt=0)


class LegacyTarget(Settings):
    provider: str = setting(..., "The id of a provider.", min_length=1)
    model: str = setting(..., "The model's name there.", min_length=1)
    priority: int | None = setting(None, "Lowest first.")


class LegacyRoute(Settings):
    """One element of MINI_LLM_ROUTING."""

    alias: str = setting(..., "What clients ask for.", min_length=1)
    targets: Annotated[tuple[LegacyTarget, ...], Field(min_length=1)] = setting(
        ..., "Who can answer."
    )
    fallbackOn: tuple[FallbackOn, ...] = setting((), "What moves on to the next target.")
    timeout: int = setting(
        DEFAULT_TIMEOUT_MS, "Milliseconds for each attempt.", gt=0, le=int(LONGEST * 1000)
    )


class _Standard(NamedTuple):
    name: str
    url: str
    chat: str
    models: tuple[str, ...]
    dialect: str = "openai"
    auth_header: str = "Authorization"
    auth_prefix: str = "Bearer "
    api_version: str = ""


_STANDARD = (
    _Standard(
        "openai",
        "https://api.openai.com/v1",
        "/v1/chat/completions",
        ("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"),
    ),
    _Standard(
        "anthropic",
        "https://api.anthropic.com",
        "/v1/messages",
        ("claude-3-5-sonnet-20241022", "claude-3-opus", "claude-3-haiku"),
        dialect="anthropic",
        auth_header="x-api-key",
        auth_prefix="",
        api_version=ANTHROPIC_VERSION,
    ),
    _Standard(
        "nebius",
        "https://api.studio.nebius.ai/v1",
        "/v1/chat/completions",
        (_LLAMA_70B, _LLAMA_8B),
    ),
    _Standard(
        "deepinfra",
        "https://api.deepinfra.com/v1/openai",
        "/v1/openai/chat/completions",
        (_LLAMA_70B, _LLAMA_8B),
    ),
)
# alias, targets, what moves on to the next, seconds
_DEFAULT_ROUTES: tuple[tuple[str, tuple[tuple[str, str], ...], frozenset[str], float], ...] = (
    (
        "llama-70b",
        (("nebius", _LLAMA_70B), ("deepinfra", _LLAMA_70B)),
        frozenset({"5xx", "timeout", "rate_limit"}),
        30.0,
    ),
    (
        "llama-8b",
        (("nebius", _LLAMA_8B), ("deepinfra", _LLAMA_8B)),
        frozenset({"5xx", "timeout"}),
        30.0,
    ),
    ("gpt-4o", (("openai", "gpt-4o"),), frozenset(), 60.0),
    (
        "claude-sonnet",
        (("anthropic", "claude-3-5-sonnet-20241022"),),
        frozenset({"5xx"}),
        60.0,
    ),
)


def key_variable(provider: str) -> str:
    """The variable a provider's key is read from: `my-host` → `MY_HOST_API_KEY`, and `01-ai` →
    `_01_AI_API_KEY`, since no variable begins with a digit."""
    name = re.sub(r"\W", "_", provider, flags=re.ASCII).upper() + "_API_KEY"
    return f"_{name}" if name[0].isdigit() else name


def layers(file: Document | None, env: Mapping[str, str]) -> GatewayFile:
    """The file and what the environment adds to it; ConfigInvalid with the problems of all."""
    problems: list[Problem] = []
    found = GatewayFile()
    read: object = None
    try:
        found = gateway_file(file) if file else found
    except ConfigInvalid as error:
        problems += error.problems
        read = error.read
    upstreams = _collect(legacy_providers, env, problems)
    models = _collect(legacy_routes, env, problems)
    standard = _collect(standard_providers, env, problems)
    if problems:
        raise ConfigInvalid(problems, read)
    usable = {entry.name for entry in upstreams if not entry.left_out}
    kept = [e for e in found.upstreams.values() if not (e.left_out and e.name in usable)]
    merged = _by_name([*kept, *upstreams, *standard])
    routed = {entry.name for entry in models}
    written = [e for e in found.models.values() if e.name not in routed or _answered(e, merged)]
    aliases = _by_name([*written, *models, *default_routes(merged)])
    warnings = [
        w for entry in merged.values() if entry.layer == "MINI_LLM" for w in _keyless(entry)
    ]
    warnings += _unused("provider", upstreams, merged)
    warnings += _unused("alias", models, aliases)
    return replace(found, upstreams=merged, models=aliases, warnings=(*found.warnings, *warnings))


def standard_providers(env: Mapping[str, str]) -> list[UpstreamEntry]:
    """The well-known providers whose key is set in `env`."""
    entries = []
    for known in _STANDARD:
        variable = key_variable(known.name)
        if not (key := _variable(env, variable)):
            continue
        node = Node(Source(variable), 0, 0, ())
        texts = {
            "url": known.url,
            "dialect": known.dialect,
            "auth_header": known.auth_header,
            "auth_prefix": known.auth_prefix,
            "api_version": known.api_version,
        }
        models = doc.Sequence(
            node.source, 0, 0, (), tuple(_text(node, model) for model in known.models)
        )
        paths = _texts(node, {"chat": known.chat, "models": "/v1/models"})
        made = {"credential": _key(node, key), "models": models, "paths": paths}
        fields = {**_texts(node, texts).entries, **made}
        settings = _settings(node, fields)
        entries.append(UpstreamEntry(known.name, settings, empty(node), node, "standard"))
    return entries


def default_routes(upstreams: Mapping[str, UpstreamEntry]) -> list[ModelEntry]:
    """The four aliases of earlier set-ups, as far as their upstreams are there."""
    node = Node(Source("default routes"), 0, 0, ())
    routes = []
    for alias, targets, fallback_on, timeout in _DEFAULT_ROUTES:
        there = tuple(TargetEntry(*target, node) for target in targets if target[0] in upstreams)
        if there:
            routes.append(ModelEntry(alias, there, node, fallback_on, timeout, "standard"))
    return routes


def legacy_providers(env: Mapping[str, str]) -> list[UpstreamEntry]:
    """The upstreams of MINI_LLM_PROVIDERS; ConfigInvalid with all that is wrong there."""
    elements, problems = _elements(env, PROVIDERS, ProviderSettings)
    entries: dict[str, UpstreamEntry] = {}
    for node, provider in elements:
        if provider.id in entries:
            place = node.find(["id"])
            problems.append(place.problem(f"the provider '{provider.id}' is already in the list"))
            continue
        try:
            entries[provider.id] = _upstream(provider, node, env)
        except ConfigInvalid as error:
            problems += error.problems
    if problems:
        raise ConfigInvalid(problems)
    return list(entries.values())


def legacy_routes(env: Mapping[str, str]) -> list[ModelEntry]:
    """The aliases of MINI_LLM_ROUTING; ConfigInvalid with all that is wrong there."""
    elements, problems = _elements(env, ROUTING, LegacyRoute)
    entries: dict[str, ModelEntry] = {}
    for node, route in elements:
        if route.alias in entries:
            place = node.find(["alias"])
            problems.append(place.problem(f"the alias '{route.alias}' is already in the list"))
        targets = tuple(
            TargetEntry(
                target.provider, target.model, node.find(["targets", index]), target.priority
            )
            for index, target in enumerate(route.targets)
        )
        entries[route.alias] = ModelEntry(
            route.alias,
            targets,
            node,
            frozenset(route.fallbackOn),
            route.timeout / 1000,
            "MINI_LLM",
        )
    if problems:
        raise ConfigInvalid(problems)
    return list(entries.values())


def _upstream(provider: ProviderSettings, node: Node, env: Mapping[str, str]) -> UpstreamEntry:
    """A provider as an upstream: its endpoints become the base URL and whole paths."""
    root = provider.baseUrl
    prefix = urlsplit(root).path
    chat = provider.endpoints.chat
    anthropic = chat.endswith("/messages")
    paths = {"messages" if anthropic else "chat": prefix + chat}
    own = "/v1/messages" if anthropic else "/chat/completions"
    below = root + chat.removesuffix(own) if chat.endswith(own) else root
    if provider.endpoints.models:
        paths["models"] = prefix + provider.endpoints.models
    key = _variable(env, key_variable(provider.id)) if provider.authHeader else ""
    fields = {
        "url": _text(node.find(["baseUrl"]), below),
        "credential": _key(node.find(["id"]), key),
        "dialect": _text(node, "anthropic" if anthropic else "openai"),
        "auth_header": _text(node.find(["authHeader"]), provider.authHeader or "Authorization"),
        "auth_prefix": _text(node.find(["authPrefix"]), provider.authPrefix),
        "api_version": _text(node, provider.apiVersion or (ANTHROPIC_VERSION if anthropic else "")),
        "paths": _texts(node.find(["endpoints", "chat"]), paths),
        "models": node.find(["models"]),
        "priority": _text(node, str(provider.priority)),
    }
    if provider.timeout:
        fields["timeouts"] = _texts(node.find(["timeout"]), {"total": f"{provider.timeout}ms"})
    settings = _settings(node, fields)
    left_out = bool(provider.authHeader) and not key
    return UpstreamEntry(provider.id, settings, empty(node), node, "MINI_LLM", left_out)


def _settings(node: Node, fields: Mapping[str, Node]) -> HttpUpstream:
    settings = read(
        HttpUpstream, doc.Mapping(node.source, node.line, node.column, node.path, fields)
    )
    if isinstance(settings, list):
        raise ConfigInvalid(settings)
    return settings


def _text(at: Node, text: str) -> doc.Text:
    """`text`, which came about at this place."""
    return doc.Text(at.source, at.line, at.column, at.path, text, text)


def _key(at: Node, key: str) -> doc.Text:
    """A key, which no message repeats."""
    return doc.Text(at.source, at.line, at.column, at.path, key, MASK, tainted=True)


def _texts(at: Node, texts: Mapping[str, str]) -> doc.Mapping:
    entries = {name: _text(at, text) for name, text in texts.items()}
    return doc.Mapping(at.source, at.line, at.column, at.path, entries)


def _variable(env: Mapping[str, str], name: str) -> str:
    """The variable, or nothing; ConfigInvalid if it should be in a file that cannot be read."""
    try:
        return env.get(name, "")
    except OSError as error:
        message = f"the file it names cannot be read: {error.strerror or error}"
        raise ConfigInvalid([Problem(f"{name}_FILE", 0, 0, message)]) from None


def _elements(
    env: Mapping[str, str], variable: str, settings: type[S]
) -> tuple[list[tuple[Node, S]], list[Problem]]:
    """The elements of a JSON array that can be read, and what is wrong with the others."""
    text = _variable(env, variable)
    if not text.strip():
        return [], []
    root = json_nodes(text, variable)
    if not isinstance(root, doc.Sequence):
        raise ConfigInvalid([root.problem("expected a JSON array of objects")])
    elements: list[tuple[Node, S]] = []
    problems: list[Problem] = []
    for item in root.items:
        found = read(settings, item)
        if isinstance(found, list):
            problems += found
        else:
            elements.append((item, found))
    return elements, problems


def _collect(
    layer: Callable[[Mapping[str, str]], list[E]], env: Mapping[str, str], problems: list[Problem]
) -> list[E]:
    try:
        return layer(env)
    except ConfigInvalid as error:
        problems += error.problems
        return []


def _by_name(entries: Iterable[E]) -> dict[str, E]:
    """The first entry of each name."""
    named: dict[str, E] = {}
    for entry in entries:
        named.setdefault(entry.name, entry)
    return named


def _answered(entry: ModelEntry, upstreams: Mapping[str, UpstreamEntry]) -> bool:
    """Whether somebody can answer for an alias, as far as credentials go."""
    named = (upstreams.get(target.upstream) for target in entry.targets)
    return any(upstream is None or not upstream.left_out for upstream in named)


def _unused(what: str, entries: Iterable[E], chosen: Mapping[str, E]) -> Iterator[Problem]:
    """A warning for each entry that another layer goes before."""
    for entry in entries:
        first = chosen[entry.name]
        if first is not entry:
            message = f"the {what} '{entry.name}' is not used: {first.origin} goes first"
            yield entry.node.problem(message, "leave it out in one of the two", warning=True)


def _keyless(entry: UpstreamEntry) -> Iterator[Problem]:
    if entry.left_out:
        variable = key_variable(entry.name)
        message = f"the upstream '{entry.name}' is left out, since {variable} is not set"
        yield entry.node.problem(message, f"set {variable}", warning=True)


def json_nodes(text: str, variable: str) -> Node:
    """JSON text as nodes; ConfigInvalid where it is not JSON, too large or too deep."""
    source = Source(variable, tuple(text.splitlines()), pointers=True)
    if len(text) > doc.MAX_BYTES:
        raise ConfigInvalid([Problem(variable, 0, 0, f"longer than {doc.MAX_BYTES} characters")])
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        place = Node(source, error.lineno, error.colno, ())
        hint = "a JSON array of objects, with double quotes and no comma after the last"
        raise ConfigInvalid([place.problem(f"not JSON: {error.msg}", hint)]) from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ConfigInvalid([Problem(variable, 1, 1, f"not JSON: {reason}")]) from None
    return _Placed(text, source).document()


def _no_constant(name: str) -> str:
    raise ValueError(f"{name} is no JSON value")


class _Placed:
    """Walks a text known to be JSON, and notes where each value stands."""

    _SPACE = re.compile(r"[ \t\r\n]*")
    _ATOM = re.compile(r"[^\s,\]}]+")

    def __init__(self, text: str, source: Source) -> None:
        self.text = text
        self.source = source
        self.position = 0
        self.line = 1
        self.begin = 0
        self.problems: list[Problem] = []

    def document(self) -> Node:
        root = self.value(())
        if self.problems:
            raise ConfigInvalid(self.problems)
        return root

    def next(self) -> str:
        """The next character that is not space; line and column move along."""
        space = self._SPACE.match(self.text, self.position)
        assert space is not None  # it matches nothing, too
        self.line += space[0].count("\n")
        if "\n" in space[0]:
            self.begin = space.start() + space[0].rindex("\n") + 1
        self.position = space.end()
        return self.text[self.position]

    def string(self) -> str:
        text, self.position = _DECODER.raw_decode(self.text, self.position)
        return str(text)

    def value(self, path: tuple[doc.Part, ...]) -> Node:
        first = self.next()
        at = self.source, self.line, self.position - self.begin + 1, path
        if len(path) > doc.MAX_DEPTH:
            raise ConfigInvalid([Node(*at).problem(f"nested deeper than {doc.MAX_DEPTH} levels")])
        if first == "{":
            entries, keys = self.members(path)
            return doc.Mapping(*at, entries, keys)
        if first == "[":
            return doc.Sequence(*at, self.items(path))
        if first == '"':
            text = self.string()
            return doc.Text(*at, text, text)
        atom = self._ATOM.match(self.text, self.position)
        assert atom is not None
        self.position = atom.end()
        null = atom[0] == "null"
        return doc.Text(*at, "" if null else atom[0], atom[0], blank=null)

    def items(self, path: tuple[doc.Part, ...]) -> tuple[Node, ...]:
        self.position += 1
        items: list[Node] = []
        while self.next() != "]":
            items.append(self.value((*path, len(items))))
            if self.next() == ",":
                self.position += 1
        self.position += 1
        return tuple(items)

    def members(self, path: tuple[doc.Part, ...]) -> tuple[dict[str, Node], dict[str, doc.Text]]:
        self.position += 1
        entries: dict[str, Node] = {}
        keys: dict[str, doc.Text] = {}
        while self.next() != "}":
            at = self.source, self.line, self.position - self.begin + 1
            name = self.string()
            key = doc.Text(*at, (*path, name), name, name)
            if name in keys:
                self.problems.append(key.problem("this name is already in the object"))
            keys[name] = key
            self.next()  # the colon
            self.position += 1
            entries[name] = self.value((*path, name))
            if self.next() == ",":
                self.position += 1
        self.position += 1
        return entries, keys


def to_yaml(upstreams: Iterable[UpstreamEntry], models: Iterable[ModelEntry]) -> str:
    """Upstreams and aliases as sections of gateway.yaml, for `passy config import-env`.

    Keys become references to the variables they are read from; no key is ever written.
    """
    lines = ["# Keys stay in the environment; these are references to them.", "upstreams:"]
    for entry in upstreams:
        if isinstance(entry.settings, HttpUpstream):
            lines += [f"  {_scalar(entry.name)}:  # from {entry.origin}"]
            keyed = bool(entry.settings.credential) or entry.left_out
            credential = f"${{{key_variable(entry.name)}:-}}" if keyed else ""
            settings = _written(entry.settings, credential)
            lines += [f"    {name}: {value}" for name, value in settings]
    lines += ["models:"]
    for model in models:
        lines += [f"  {_scalar(model.name)}:  # from {model.origin}", "    targets:"]
        lines += [f"      - {_target(target)}" for target in model.targets]
        if model.fallback_on is not None:
            lines.append(f"    fallback_on: {_flow(sorted(model.fallback_on))}")
        if model.timeout is not None:
            lines.append(f"    timeout: {round(model.timeout * 1000)}ms")
    return "\n".join(lines) + "\n"


def _written(upstream: HttpUpstream, credential: str) -> Iterator[tuple[str, str]]:
    yield "dialect", _scalar(upstream.dialect)
    yield "url", _scalar(upstream.url)
    if credential:
        yield "credential", f'"{credential}"'
    for field in ("auth_header", "auth_prefix", "api_version"):
        if (value := getattr(upstream, field)) != HttpUpstream.model_fields[field].default:
            yield field, _scalar(value)
    yield "paths", _flow(upstream.paths)
    yield "models", _flow(upstream.models)
    if upstream.priority:
        yield "priority", str(upstream.priority)
    if "timeouts" in upstream.model_fields_set:
        yield "timeouts", f"{{total: {round(upstream.timeouts.total * 1000)}ms}}"


def _target(target: TargetEntry) -> str:
    if target.priority is None:
        return _scalar(f"{target.upstream}/{target.model}")
    model = {"upstream": target.upstream, "model": target.model, "priority": str(target.priority)}
    return _flow(model)


def _flow(value: Mapping[str, str] | Iterable[str]) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(k)}: {_scalar(v)}' for k, v in value.items())}}}"
    return f"[{', '.join(map(_scalar, value))}]"


def _scalar(text: str) -> str:
    """A YAML scalar that means this text, and no variable."""
    if re.fullmatch(r"[A-Za-z0-9/][\w./-]*(?::[\w./-]+)*", text, flags=re.ASCII):
        return text
    return json.dumps(text.replace("${", "$${"), ensure_ascii=False)

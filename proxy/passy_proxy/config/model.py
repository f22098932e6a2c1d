"""The shape of gateway.yaml: what each section may hold, and the entries made from it.

Typed where the gateway itself is the reader. What belongs to a plugin (a filter's settings, a
store's, an in-process upstream's) stays a node of the tree; `build.py` reads it with the plugin's
own Settings class, and complains in the same way.
"""

from __future__ import annotations

import re
from collections import abc
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema, model_validator

from passy_proxy.config.document import Document, Mapping, Node, Sequence, Text, empty
from passy_proxy.config.problem import ConfigInvalid, Problem, nearest, quoted
from passy_proxy.config.settings import (
    OptionalSecret,
    S,
    Secret,
    Settings,
    hide_secrets,
    read,
    setting,
)
from passy_proxy.units import Count, Duration, Size

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")
_APP_PATH = re.compile(r"/|(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(value: object) -> Address:
    """`host:port`, `[::1]:port`, or `:port` for all interfaces → Address; ValueError otherwise."""
    if isinstance(value, Address):
        return value
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})", str(value))
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{quoted(str(value))} is no address; write host:port or :port")
    return Address(match[1] or match[2] or "0.0.0.0", int(match[3]))


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{quoted(value)} is not the name of a header")
    return value


def _header_value(value: Secret) -> Secret:
    text = value.reveal()
    if not text.isascii() or not text.isprintable() or text != text.strip():
        reason = "a line break, a space at an end, or a character outside ASCII"
        raise ValueError(f"a header cannot carry this: it has {reason}")
    return value


def _header_text(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("a header cannot carry this: a character outside printable ASCII")
    return value


def _origin(value: str, schemes: tuple[str, ...]) -> str:
    """The checked URL; no message repeats it, since it may hold a password."""
    example = f"{schemes[-1]}://host[:port]"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"this is no URL; write {example}") from None
    if parts.scheme not in schemes or not host or port == 0:
        raise ValueError(f"this is no URL of the kind needed; write {example}")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("a URL has no spaces and only ASCII characters")
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise ValueError("leave out what begins with '?' or '#'")
    return value


def _base_url(value: str) -> str:
    if "@" in urlsplit(_origin(value, ("http", "https"))).netloc:
        raise ValueError("no user or password in a URL; use 'credential'")
    return value.rstrip("/")


def _proxy_url(value: Secret) -> Secret:
    if value:
        _origin(value.reveal(), ("https", "socks5", "socks5h", "http"))
    return value


def _absolute_path(value: str) -> str:
    if not re.fullmatch(r"/[!-\"$-~]*", value):
        raise ValueError(f"{quoted(value)} is no path; it starts with '/' and has no spaces")
    return value


def _reachable(value: str) -> str:
    try:
        ip_network(value.strip("[]"), strict=False)
    except ValueError:
        if not _HOST.fullmatch(value) or value.replace(".", "").isdigit():
            message = f"{quoted(value)} is no network, no address and no name of a host"
            raise ValueError(message) from None
    return value


Reachable = Annotated[str, AfterValidator(_reachable)]
ListenAddress = Annotated[
    Address, BeforeValidator(address), WithJsonSchema({"type": "string", "pattern": ":[0-9]+$"})
]
HeaderName = Annotated[str, AfterValidator(_token)]
HeaderText = Annotated[str, AfterValidator(_header_text)]
HeaderSecret = Annotated[OptionalSecret, AfterValidator(_header_value)]
BaseURL = Annotated[str, AfterValidator(_base_url)]
ProxyURL = Annotated[OptionalSecret, AfterValidator(_proxy_url)]
AbsolutePath = Annotated[str, AfterValidator(_absolute_path)]
Subtree = Annotated[Node, WithJsonSchema({})]
FallbackOn = Literal["5xx", "4xx", "timeout", "rate_limit"]
Listener = Literal["main", "admin"]
"""Of `listen`, where clients connect, or of `admin: {listen: …}`."""


class TimeoutSettings(Settings):
    connect: Duration = setting("5s", "Longest wait for a connection.", gt=0)
    tls: Duration = setting("5s", "Longest TLS handshake.", gt=0)
    write: Duration = setting(
        "30s", "Longest wait for the upstream to take more of a request.", gt=0
    )
    first_byte: Duration = setting("60s", "Longest wait for the beginning of an answer.", gt=0)
    idle: Duration = setting("60s", "Longest silence in the middle of an answer.", gt=0)
    total: Duration = setting("590s", "Longest an attempt may take, everything counted.", gt=0)
    pool: Duration = setting("5s", "Longest wait for a free connection.")


class UpstreamSettings(Settings):
    """What every upstream has, whatever its kind."""

    kind: str = setting("http", "http, or an in-process upstream a plugin brings, such as echo.")
    dialect: str = setting("openai", "What the provider speaks: openai, anthropic, ….")
    models: tuple[str, ...] = setting(("*",), "Model names served there; * stands for any.")
    priority: int = setting(0, "Order among upstreams that serve the same model, lowest first.")


class HttpUpstream(UpstreamSettings):
    """A provider account reached over HTTP."""

    url: BaseURL = setting(..., "The provider's base URL: operations of the dialect go below it.")
    credential: HeaderSecret = setting(
        "", "The provider's key. Given but empty: the upstream is reported and left out."
    )
    auth_header: HeaderName = setting("Authorization", "The header the key is sent in.")
    auth_prefix: HeaderText = setting("Bearer ", "What stands before the key, spaces included.")
    headers: dict[HeaderName, HeaderSecret] = setting({}, "More headers for every request.")
    forward_headers: tuple[HeaderName, ...] = setting((), "Headers of the client to pass on.")
    api_version: HeaderText = setting("", "API version, where the dialect has one.")
    paths: dict[str, AbsolutePath] = setting(
        {}, "Operation → whole path on the provider's host, where it is not the dialect's own."
    )
    timeouts: TimeoutSettings = setting({}, "Time limits of one attempt.")
    max_connections: int = setting(256, "Most connections at once.", ge=1, le=100_000)
    keep_alive: Duration = setting(
        "4s", "How long an unused connection is kept, where the provider gives no hint of its own."
    )
    http2: bool = setting(False, "Whether HTTP/2 may be used.")
    proxy: ProxyURL = setting("", "URL of an outbound proxy: http, https, socks5 or socks5h.")
    ca_file: str = setting("", "File of the CA certificates to trust instead of the system's.")
    verify: bool = setting(
        True, "Whether the provider's certificate is checked. Off is warned of at every start."
    )
    transport: Literal["auto", "http1", "httpcore"] = setting(
        "auto", "auto is http1, or httpcore where HTTP/2 or a proxy asks for it."
    )


class TargetSettings(Settings):
    """`upstream/model` in long form."""

    upstream: str = setting("", "The name of an upstream.")
    provider: str = setting("", "The same as upstream, as earlier set-ups call it.")
    model: str = setting("", "The model's name there; empty leaves the client's as it is.")
    priority: int | None = setting(None, "Lowest first; the order of the list without it.")
    weight: float = setting(1.0, "Share among targets of one priority.", ge=0, le=1_000_000)
    timeout: Duration | None = setting(
        None, "Longest wait for the head of this target's answer, in each attempt.", gt=0
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        upstream, _, model = value.partition("/")
        if not upstream.strip():
            raise ValueError("a target is written upstream/model")
        return {"upstream": upstream, "model": model}

    @model_validator(mode="after")
    def _one_upstream(self) -> TargetSettings:
        if bool(self.upstream) == bool(self.provider):
            raise ValueError("a target has an upstream and a model: {upstream: …, model: …}")
        return self


class ModelSettings(Settings):
    """An alias in long form; a plain list is its targets."""

    targets: tuple[TargetSettings, ...] = setting(..., "Who can answer, best first.", min_length=1)
    fallback_on: tuple[FallbackOn, ...] | None = setting(
        None, "What moves on to the next target; the chain's fallback decides without it."
    )
    timeout: Duration | None = setting(
        None,
        "Longest wait for the head of an answer (connection, first byte), in each attempt.",
        gt=0,
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("expected a list of targets: [upstream/model]")
        return {"targets": value} if isinstance(value, list) else value


class RouteSettings(Settings):
    match: str = setting(..., "Method and path: POST /v1/chat/completions. * stands for any.")
    dialect: str = setting("openai", "What the clients of this route speak.")
    chain: Subtree | None = setting(None, "The name of a chain, or its filters as a list.")
    override: Subtree | None = setting(None, "Filter → other settings on this route, or off.")
    operation: str = setting("", "What the dialect calls this; known from the path without it.")
    body: Literal["read", "stream"] = setting("read", "stream: pass the body on as it arrives.")
    body_limit: Size = setting("32MiB", "Largest body accepted.")
    json_depth: int = setting(128, "Deepest nesting of a JSON body.", ge=1, le=512)
    json_keys: int = setting(
        10_000,
        "Most members of one object in a JSON body; it may have ten times as many objects, lists "
        "and members in all.",
        ge=1,
        le=10_000_000,
    )
    json_digits: int = setting(
        10_000, "Most digits of a number in a JSON body.", ge=1, le=100_000_000
    )
    multipart_parts: int = setting(100, "Most parts of a multipart body.", ge=1, le=1_000_000)
    root: str = setting("", "Beginning of the path that a pass-through leaves out: /v1.")
    listener: Listener = setting("main", "Where it is asked: at listen, or at admin's.")


class AppSettings(Settings):
    """What every application has, whatever else can be said of it."""

    app: str = setting(..., "The name of the application: keys, admin, ….")
    body_limit: Size = setting("1MiB", "Largest body of a request to it.", ge=1)
    listener: Listener | None = setting(
        None, "Where it is asked: main, at listen, or admin. The app admin is at admin without it."
    )


class AdminSettings(Settings):
    """The listener of those who run the gateway, apart from that of clients."""

    listen: ListenAddress = setting(
        "127.0.0.1:9901",
        "Where they connect: host:port or :port. It is opened where a route or an app is there.",
    )


class EdgeSettings(Settings):
    """What the listening side allows."""

    max_header_bytes: Size = setting("32KiB", "Largest request head.", ge=1024)
    max_headers: int = setting(100, "Most header lines of a request.", ge=1, le=10_000)
    max_url_bytes: Size = setting("8KiB", "Longest request target.", ge=256)
    max_connections_per_ip: int = setting(
        10_000, "Most connections from one address (IPv6: from one /64); 0 is no limit.", ge=0
    )
    header_timeout: Duration = setting("10s", "Longest a client may take to send a head.")
    body_rate: Size = setting("1KiB", "Least a client must send of a body, a second.", ge=1)
    body_grace: Duration = setting("10s", "Time before that is looked at.")
    write_timeout: Duration = setting("30s", "Longest a client may take none of an answer.")
    write_rate: Size = setting(
        "1KiB", "Least a client must take of an answer, a second, once it is write_timeout behind."
    )
    keep_alive: Duration = setting("75s", "How long an unused client connection is kept.")
    lame_duck: Duration = setting(
        "5s", "After SIGTERM: how long it goes on accepting while /readyz says 503."
    )
    shutdown_timeout: Duration = setting("60s", "After that: how long running answers may take.")
    loop_lag: Duration = setting("100ms", "From which delay on a blocked event loop is reported.")
    loop_dead: Duration = setting(
        "10s", "From when on a worker whose loop is blocked is replaced; 0s is never."
    )
    start_timeout: Duration = setting(
        "2m", "From when on a worker that has not come to serve is replaced; 0s is never."
    )


class ConnectionSettings(Settings):
    """How upstreams are found and reached. A change needs a restart."""

    dns_ttl: Duration = setting("30s", "How long the addresses of a name are used.", ge=0)
    dns_stale: Duration = setting(
        "5m", "How long they are used beyond that while the name cannot be resolved.", ge=0
    )
    dns_patience: Duration = setting(
        "1s", "How long to wait for new addresses where there are old ones to be used.", gt=0
    )
    dns_lookups: int = setting(
        32,
        "Most names being resolved at once, for the operator's upstreams and tenants' each.",
        ge=1,
        le=1_000,
    )
    tenants_may_reach: tuple[Reachable, ...] = setting(
        (),
        "Networks, addresses and names that organisations' own upstreams may have besides public "
        "ones; http and any port are allowed there. Metadata services never are.",
    )
    hops: int = setting(
        8, "Most gateways a request may have passed, which ends a loop of them.", ge=1, le=100
    )


class OverloadSettings(Settings):
    """When a process refuses more, so that what it has begun comes to its end.

    Of memory, file descriptors and loop lag: from nine tenths of what is written here, answers end
    their connections; beyond it new requests get a 503, and health is still told.
    """

    max_requests: int = setting(4096, "Most requests at once in a process; 0 is no limit.", ge=0)
    max_connections: int = setting(
        0, "Most client connections of a process; 0 is as many as its file descriptors allow.", ge=0
    )
    memory: Size = setting(
        0, "Most memory of a process; 0 is memory_share of the cgroup's, or of the machine's."
    )
    memory_share: float = setting(0.95, "Share of the memory there is.", gt=0, le=1)
    descriptors: float = setting(
        0.9, "Share of the file descriptors a process may open (ulimit -n).", gt=0, le=1
    )
    loop_lag: Duration = setting(
        "1s", "How late the event loop may be, twice in a row; 0 is any time."
    )


class LogSettings(Settings):
    level: Literal["debug", "info", "warning", "error"] = setting("info", "Least that is logged.")
    format: Literal["auto", "json", "pretty"] = setting(
        "auto", "auto is pretty on a terminal and json elsewhere."
    )


class PriceSettings(Settings):
    """What a model costs, in US dollars."""

    input: float = setting(..., "Price of tokens read.", ge=0)
    output: float = setting(..., "Price of tokens written.", ge=0)
    cached_input: float | None = setting(None, "Price of tokens read from a cache.", ge=0)
    cache_write: float | None = setting(None, "Price of tokens written into a cache.", ge=0)
    reasoning: float | None = setting(None, "Price of tokens thought, not shown.", ge=0)
    audio_input: float | None = setting(None, "Price of audio tokens read.", ge=0)
    audio_output: float | None = setting(None, "Price of audio tokens written.", ge=0)
    per: Count = setting("1M", "How many tokens the prices are for.", ge=1)


class GatewaySettings(Settings):
    """The top of gateway.yaml."""

    listen: ListenAddress = setting("127.0.0.1:8080", "Where clients connect: host:port or :port.")
    admin: AdminSettings = setting({}, "The listener of those who run the gateway.")
    plugins: tuple[str, ...] = setting((), "Plugins that bring something other than filters.")
    stores: Subtree | None = setting(None, "Name → store: where state is kept.")
    upstreams: Subtree | None = setting(None, "Name → provider account.")
    models: Subtree | None = setting(None, "What clients ask for → who can answer.")
    chains: Subtree | None = setting(None, "Name → filters in the order of execution.")
    routes: Subtree | None = setting(None, "Which chain answers which request.")
    apps: Subtree | None = setting(None, "Path → application: what else is served there.")
    prices: dict[str, PriceSettings] = setting({}, "upstream/model, * allowed → what it costs.")
    edge: EdgeSettings = setting({}, "Limits of the listening side.")
    connect: ConnectionSettings = setting({}, "How upstreams are found and reached.")
    overload: OverloadSettings = setting({}, "When to refuse more.")
    log: LogSettings = setting({}, "What is logged, and how.")
    time_filters: int = setting(
        0,
        "Every how many-th request of a chain is timed filter by filter, for its page in the"
        " portal; 1 is each. 0 is none, and costs nothing.",
        ge=0,
        le=1_000_000,
    )


Layer = Literal["file", "MINI_LLM", "standard"]


@dataclass(frozen=True, slots=True)
class UpstreamEntry:
    """An upstream. `rest`: settings that an in-process kind reads itself."""

    name: str
    settings: UpstreamSettings
    rest: Mapping
    node: Node
    layer: Layer = "file"
    left_out: bool = False
    written: Mapping | None = None
    """Its settings as they stand there."""

    def at(self, name: str) -> Node:
        """Where one of its settings is, or would be."""
        return self.written.entries.get(name, self.node) if self.written else self.node

    @property
    def origin(self) -> str:
        """Where it was configured, for people."""
        return self.node.place


@dataclass(frozen=True, slots=True)
class TargetEntry:
    upstream: str
    model: str
    node: Node
    priority: int | None = None
    weight: float = 1.0
    timeout: float | None = None
    """Seconds."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """An alias. `fallback_on` None: as the chain's terminal filter sees fit."""

    name: str
    targets: tuple[TargetEntry, ...]
    node: Node
    fallback_on: frozenset[str] | None = None
    timeout: float | None = None
    layer: Layer = "file"

    @property
    def origin(self) -> str:
        return self.node.place


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """One filter of a chain; `node` is where its name stands."""

    name: str
    settings: Mapping
    node: Node


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """`chain` is a name, or the filters themselves. In `override`, None means off."""

    settings: RouteSettings
    chain: str | tuple[ChainEntry, ...]
    override: abc.Mapping[str, Mapping | None]
    node: Mapping


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """A store; `settings` are its kind's own, without `kind`."""

    name: str
    kind: str
    settings: Mapping
    node: Node
    at: Node
    """Where its kind stands."""


@dataclass(frozen=True, slots=True)
class AppEntry:
    """An application at a path; `rest`: settings that it reads itself."""

    path: str
    settings: AppSettings
    rest: Mapping
    node: Node
    at: Node
    """Where its name stands."""


@dataclass(frozen=True, slots=True)
class GatewayFile:
    """A whole configuration, read but not yet resolved: no name in it was looked up."""

    settings: GatewaySettings = field(default_factory=GatewaySettings)
    stores: abc.Mapping[str, StoreEntry] = field(default_factory=dict)
    upstreams: abc.Mapping[str, UpstreamEntry] = field(default_factory=dict)
    models: abc.Mapping[str, ModelEntry] = field(default_factory=dict)
    chains: abc.Mapping[str, tuple[ChainEntry, ...]] = field(default_factory=dict)
    routes: tuple[RouteEntry, ...] = ()
    apps: tuple[AppEntry, ...] = ()
    warnings: tuple[Problem, ...] = ()
    root: Node | None = None


def gateway_file(document: Document) -> GatewayFile:
    """The entries of a document; ConfigInvalid with everything that is wrong with it."""
    reader = _Reader()
    root = document.root
    upstreams = root.entries.get("upstreams") if isinstance(root, Mapping) else None
    for upstream in upstreams.entries.values() if isinstance(upstreams, Mapping) else ():
        hide_secrets(HttpUpstream, upstream)  # Before any complaint quotes a line of theirs.
    top = reader.read(GatewaySettings, root)
    result = GatewayFile(
        settings=top or GatewaySettings(),
        stores=reader.stores(reader.section(root, "stores")),
        upstreams=reader.upstreams(reader.section(root, "upstreams")),
        models=reader.models(reader.section(root, "models")),
        chains=reader.chains(reader.section(root, "chains")),
        routes=reader.routes(root.entries.get("routes") if isinstance(root, Mapping) else None),
        apps=reader.apps(reader.section(root, "apps")),
        root=root,
    )
    warnings = tuple(p for p in reader.problems if p.severity == "warning")
    if len(warnings) < len(reader.problems):
        raise ConfigInvalid(reader.problems, result)
    return replace(result, warnings=warnings)


class _Reader:
    """Reads the sections one after the other and remembers what is wrong with any of them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def complain(self, node: Node, message: str, hint: str | None = None) -> None:
        self.problems.append(node.problem(message, hint))

    def read(self, settings: type[S], node: Node) -> S | None:
        found = read(settings, node)
        if isinstance(found, list):
            self.problems += found
            return None
        return found

    def section(self, root: Node, name: str) -> Mapping:
        node = root.entries.get(name) if isinstance(root, Mapping) else None
        return self.settings(node, f"'{name}' holds names, each with its settings") or empty(root)

    def settings(self, node: Node | None, expected: str) -> Mapping | None:
        """`node` if it is settings; nothing, if nothing is written there."""
        if isinstance(node, Mapping):
            return node
        if node is not None and not (isinstance(node, Text) and node.blank):
            found = quoted(node.raw) if isinstance(node, Text) else node.kind
            self.complain(node, f"{expected}; found {found}")
        return None

    def stores(self, section: Mapping) -> dict[str, StoreEntry]:
        entries: dict[str, StoreEntry] = {}
        for name, node in section.entries.items():
            place = section.keys[name]
            store = self.settings(node, "a store is settings with a kind") or empty(place)
            kind = store.entries.get("kind")
            if isinstance(kind, Text) and kind.text:
                entries[name] = StoreEntry(name, kind.text, store.without("kind"), place, kind)
            elif meant := None if kind else nearest("kind", store.entries):
                message = f"unknown setting {quoted(meant)}; did you mean 'kind'?"
                self.complain(store.keys[meant], message, "write kind")
            elif isinstance(node, Mapping) or (isinstance(node, Text) and node.blank):
                hint = "for instance kind: memory"
                self.complain(place, f"the store {quoted(name)} needs a kind", hint)
        return entries

    def upstreams(self, section: Mapping) -> dict[str, UpstreamEntry]:
        entries: dict[str, UpstreamEntry] = {}
        for name, node in section.entries.items():
            place = section.keys[name]
            if not _UPSTREAM_NAME.fullmatch(name):
                hint = "letters, digits, '.', '_' and '-'; a '/' separates it from a model"
                self.complain(place, f"{quoted(name)} cannot be the name of an upstream", hint)
            found = self.settings(node, "an upstream is settings")
            if found is None and _blank(node):
                found = empty(place)
            if found is not None and (entry := self.upstream(name, found, place)) is not None:
                entries[name] = entry
        return entries

    def upstream(self, name: str, node: Mapping, place: Node) -> UpstreamEntry | None:
        kind = node.entries.get("kind")
        if isinstance(kind, Text) and kind.text not in ("", "http"):
            shared = tuple(UpstreamSettings.model_fields)
            rest = node.without(*shared)
            known = self.read(UpstreamSettings, node.without(*rest.entries))
            return UpstreamEntry(name, known, rest, place, written=node) if known else None
        settings = self.read(HttpUpstream, node)
        if settings is None:
            return None
        # Given and empty is a key that nobody set; not given at all, the provider needs none.
        left_out = "credential" in node and not settings.credential
        if left_out:
            at = node.entries["credential"]
            message = f"the upstream '{name}' is left out, since its credential is empty"
            self.problems.append(at.problem(message, how_to_set(at), warning=True))
        if not settings.verify and settings.url.startswith("https:"):
            at = node.entries["verify"]
            message = (
                f"the certificate of {name} is not checked: anyone on the way can read its key"
            )
            hint = "name the CA it has in ca_file instead"
            self.problems.append(at.problem(message, hint, warning=True))
        return UpstreamEntry(name, settings, empty(place), place, left_out=left_out, written=node)

    def models(self, section: Mapping) -> dict[str, ModelEntry]:
        entries: dict[str, ModelEntry] = {}
        for name, node in section.entries.items():
            settings = self.read(ModelSettings, node)
            if settings is None:
                continue
            listed = node.entries["targets"] if isinstance(node, Mapping) else node
            places = listed.items if isinstance(listed, Sequence) else ()
            entries[name] = ModelEntry(
                name,
                tuple(map(target_entry, settings.targets, places)),
                section.keys[name],
                None if settings.fallback_on is None else frozenset(settings.fallback_on),
                settings.timeout,
            )
        return entries

    def chains(self, section: Mapping) -> dict[str, tuple[ChainEntry, ...]]:
        return {
            name: self.chain(node if not _blank(node) else section.keys[name])
            for name, node in section.entries.items()
        }

    def chain(self, node: Node) -> tuple[ChainEntry, ...]:
        if not isinstance(node, Sequence) or not node.items:
            self.complain(node, "a chain is a list of filters, the last of them terminal")
            return ()
        return tuple(entry for item in node.items if (entry := self.filter(item)))

    def filter(self, item: Node) -> ChainEntry | None:
        if isinstance(item, Text) and item.text:
            return ChainEntry(item.text, empty(item), item)
        if not isinstance(item, Mapping) or not item.entries:
            self.complain(item, "expected the name of a filter, or name: settings")
            return None
        (name, node), *more = item.entries.items()
        place = item.keys[name]
        if more:
            second = item.keys[more[0][0]]
            hint = f"indent it two spaces deeper than {name}, or begin it with '- '"
            message = f"{quoted(second.text)} stands beside the filter {quoted(name)}, not below it"
            self.complain(second, message, hint)
            return None
        expected = f"the filter {quoted(name)} takes settings (name: value)"
        return ChainEntry(name, self.settings(node, expected) or empty(place), place)

    def routes(self, node: Node | None) -> tuple[RouteEntry, ...]:
        if node is None or _blank(node):
            return ()
        if not isinstance(node, Sequence):
            self.complain(node, "'routes' is a list; begin each route with '- '")
            return ()
        return tuple(route for item in node.items if (route := self.route(item)))

    def route(self, item: Node) -> RouteEntry | None:
        settings = self.read(RouteSettings, item)
        if settings is None or not isinstance(item, Mapping):
            return None
        chain: str | tuple[ChainEntry, ...] = "default"
        if isinstance(settings.chain, Text):
            chain = settings.chain.text
        elif settings.chain is not None:
            chain = self.chain(settings.chain)
        return RouteEntry(settings, chain, self.override(settings.override), item)

    def apps(self, section: Mapping) -> tuple[AppEntry, ...]:
        found = (self.app(path, node, section.keys[path]) for path, node in section.entries.items())
        return tuple(entry for entry in found if entry)

    def app(self, path: str, node: Node, place: Node) -> AppEntry | None:
        if not _APP_PATH.fullmatch(path):
            hint = "for instance /keys, without a slash at its end; / for the whole host"
            self.complain(place, f"{quoted(path)} is no path for an app", hint)
            return None
        if isinstance(node, Text) and node.text:
            return AppEntry(path, AppSettings(app=node.text), empty(place), place, node)
        if not isinstance(node, Mapping):
            self.complain(
                place, f"at {quoted(path)} there is no app", "write its name, or app: name"
            )
            return None
        rest = node.without(*AppSettings.model_fields)
        if "app" not in node and (meant := nearest("app", node.entries)):
            message = f"unknown setting {quoted(meant)}; did you mean 'app'?"
            self.complain(node.keys[meant], message, "write app")
            return None
        settings = self.read(AppSettings, node.without(*rest.entries))
        if settings is None:
            return None
        return AppEntry(path, settings, rest, place, node.entries["app"])

    def override(self, node: Node | None) -> dict[str, Mapping | None]:
        section = self.settings(node, "'override' holds filters, each with settings or off")
        overrides: dict[str, Mapping | None] = {}
        for name, value in section.entries.items() if section else ():
            if isinstance(value, Text) and value.text.casefold() in ("off", "no", "false"):
                overrides[name] = None
            elif found := self.settings(value, f"{quoted(name)} takes settings, or off"):
                overrides[name] = found
        return overrides


def target_entry(settings: TargetSettings, node: Node) -> TargetEntry:
    """What a model's target comes down to."""
    return TargetEntry(
        settings.upstream or settings.provider,
        settings.model,
        node,
        settings.priority,
        settings.weight,
        settings.timeout,
    )


def _blank(node: Node) -> bool:
    return isinstance(node, Text) and node.blank


def how_to_set(node: Node) -> str | None:
    """The variable that a value is to be taken from."""
    written = re.search(r"\$\{([A-Za-z_][A-Za-z0-9_]*)", node.raw if isinstance(node, Text) else "")
    return f"set {written[1]}" if written else None

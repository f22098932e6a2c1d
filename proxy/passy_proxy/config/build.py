"""Configuration → snapshot: every name looked up, every filter made, every chain compiled.

Nothing is started here, and nothing stops at the first mistake: all that can be found wrong is,
each with its place in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Hashable, Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints
from weakref import WeakKeyDictionary

from passy_proxy.body import JsonLimits
from passy_proxy.chain import BadFilter, Chain
from passy_proxy.clocks import SampledChain
from passy_proxy.config.document import Mapping, Node, Text, plain
from passy_proxy.config.model import (
    AppEntry,
    ChainEntry,
    GatewayFile,
    HttpUpstream,
    Listener,
    ModelEntry,
    RouteEntry,
    StoreEntry,
    TargetEntry,
    UpstreamEntry,
    how_to_set,
)
from passy_proxy.config.problem import ConfigInvalid, Problem, nearest, suggestion
from passy_proxy.config.settings import Secret, Settings, read, setting
from passy_proxy.config.snapshot import Snapshot
from passy_proxy.connections import Connections
from passy_proxy.dialect import Dialect
from passy_proxy.faults import LinkSettings
from passy_proxy.filter import Filter, Terminal
from passy_proxy.issue import Administered
from passy_proxy.keyring import Keyring
from passy_proxy.models import Choice, Model, Models
from passy_proxy.mount import Mount
from passy_proxy.price_book import PriceBook
from passy_proxy.prices import Prices
from passy_proxy.records import Credential
from passy_proxy.registry import BadPlugin, Registry
from passy_proxy.remembered import Remembered
from passy_proxy.route import Route, RouteTable
from passy_proxy.shared import Shared
from passy_proxy.site import Site
from passy_proxy.stores import (
    Alerts,
    Books,
    Changes,
    Counters,
    Directory,
    Ledger,
    Store,
    Switchboard,
    Vault,
)
from passy_proxy.transport import DEFAULT_LIMITS, Limits, Timeouts, Transport
from passy_proxy.transport.connect import VERIFIED, BadOrigin, Connector, Origin, Tls, parse_origin
from passy_proxy.transport.head import SECRET
from passy_proxy.upstream import Upstream, Upstreams
from passy_proxy.veil import SHORTEST
from passy_proxy.vitals import Vitals

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.application import Application

STORES = (Counters, Directory, Vault, Ledger, Books, Alerts, Changes, Administered, Switchboard)
"""A setting of one of these types is written as the name of a store."""

GIVEN = (Keyring, Models, Upstreams, Prices, Connections, Vitals, Remembered)
"""Types of settings that nobody writes: the gateway hands over its own."""

Given = dict[str, object]
"""Settings that are live objects, by name."""

LINK = LinkSettings.model_fields.keys()

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "*")

OPERATIONS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/responses": "responses",
    "/messages": "messages",
    "/messages/count_tokens": "count_tokens",
}
"""End of a route's path → what a dialect calls it, where the route does not say."""


class Parts:
    """What builds share: the installed plugins, live objects, the process's own things."""

    def __init__(
        self, registry: Registry, shared: Shared, site: Site, log: FilteringBoundLogger
    ) -> None:
        self.registry = registry
        self.shared = shared
        self.site = site
        self.log = log
        self.connector = Connector()


def build(file: GatewayFile, parts: Parts, hash: str) -> Snapshot:
    """A snapshot, not started. Raises ConfigInvalid with everything that is wrong."""
    made = Snapshot(file.settings, hash=hash, log=parts.log, shared=parts.shared)
    for _ in building(made, file, parts):
        pass
    return made


def building(made: Snapshot, file: GatewayFile, parts: Parts) -> Generator[None, None, None]:
    """Build ``made`` in small steps, so that others have their turns in between. Raises as
    `build`."""
    try:
        yield from _Builder(made, file, parts).steps()
    except BaseException:  # Also of who does not want it any more.
        # What was taken from `shared` has not been started, so forgetting it is all there is to do.
        parts.shared.forget(made.held)
        raise


def also_wrong(invalid: ConfigInvalid, parts: Parts) -> ConfigInvalid:
    """The same with what is wrong in settings of plugins, in a file that could be read in part: who
    has mended the one is not told of the other then."""
    if not isinstance(invalid.read, GatewayFile):
        return invalid
    made = Snapshot(invalid.read.settings, hash="", log=parts.log, shared=parts.shared)
    try:
        problems = _Builder(made, invalid.read, parts).settings_alone()
    finally:
        parts.shared.forget(made.held)
    return ConfigInvalid([*invalid.problems, *problems])


def named(entry: RouteEntry) -> str:
    """What the chain of a route is called."""
    name = entry.chain if isinstance(entry.chain, str) else "its own"
    return f"{name}, overridden" if entry.override else name


class _Absent:
    """Stands for a store that was not found, so that the other settings are read all the same."""

    def _nothing(self) -> None: ...

    take = settle = prime = principal = providers = credentials = record = _nothing
    publish = listen = hears = spent = admin = _nothing
    raise_alert = alerted = hooks = switches = _nothing


ABSENT = _Absent()


class _Builder:
    def __init__(self, made: Snapshot, file: GatewayFile, parts: Parts) -> None:
        self.file = file
        self.parts = parts
        self.registry = parts.registry
        self.made = made
        self.problems: list[Problem] = []
        self.filters: dict[tuple[object, ...], Filter] = {}
        self.given: dict[type, object] = {}
        self.chains: dict[str, Chain | None] = {}
        """Those that routes take as they are."""
        self.places: dict[int, list[str]] = {}
        self.left_out: list[Problem] = []
        section = file.root.entries.get("stores") if isinstance(file.root, Mapping) else None
        written = section.entries if isinstance(section, Mapping) else {}
        self.unread = written.keys() - file.stores.keys()
        """Stores that are written, and wrong, which has been said."""

    def settings_alone(self) -> list[Problem]:
        """What is wrong with settings, each on its own: nothing but stores is made of them."""
        self.plugins()
        self.made.stores = self.stores()
        self.made.upstreams = Upstreams()
        self.made.models = Models([], self.made.upstreams)
        self.give()
        for upstream in self.file.upstreams.values():
            if not isinstance(upstream.settings, HttpUpstream):
                self.configured_in_process(upstream)
        own = [route.chain for route in self.file.routes if not isinstance(route.chain, str)]
        for chain in (*self.file.chains.values(), *own):
            for one in chain:
                self.configured(one, one.settings)
        for app in self.file.apps:
            self.configured_app(app)
        return self.problems

    def steps(self) -> Iterator[None]:
        """The whole, or ConfigInvalid. What there may be thousands of is a step each."""
        made, file = self.made, self.file
        self.plugins()
        made.stores = self.stores()
        yield
        made.upstreams = Upstreams()
        yield from self.upstreams(made.upstreams)
        made.upstreams.left_out = frozenset(
            name for name, entry in file.upstreams.items() if entry.left_out
        )
        models: list[Model] = []
        for model in file.models.values():
            models.append(self.model(model))
            yield
        made.models = Models(models, made.upstreams)
        self.give()
        yield
        routes: dict[Listener, list[Route]] = {"main": [], "admin": []}
        for entry in file.routes:
            if route := self.route(entry):
                routes[entry.settings.listener].append(route)
            yield
        mounts: dict[Listener, list[Mount]] = {"main": [], "admin": []}
        for app in file.apps:
            if mount := self.mount(app):
                mounts[mount.listener].append(mount)
        used = {entry.chain for entry in file.routes if isinstance(entry.chain, str)}
        for name, chain in file.chains.items():
            if name not in used:  # Mistakes in it are mistakes as in any other.
                for one in chain:
                    self.filter(one, one.settings)
                yield
        short = [place for one in mounts["admin"] for place in one.short()]
        made.routes = RouteTable(routes["main"], mounts["main"])
        made.admin_routes = RouteTable(routes["admin"], [*mounts["admin"], *short])
        self.listeners()
        made.filters = list(self.filters.values())
        made.warnings = (*file.warnings, *self.left_out, *self.unpriced())
        if self.problems:
            raise ConfigInvalid(self.problems)

    def give(self) -> None:
        """Make what is the gateway's own, for the settings that nobody writes."""
        made, site = self.made, self.parts.site
        made.connections = self.connections()
        book = PriceBook(site.data / "prices.json", self.parts.log)
        made.prices = Prices(self.file.settings.prices, book)
        self.given = {
            Keyring: site.keyring,
            Models: made.models,
            Upstreams: made.upstreams,
            Prices: made.prices,
            Connections: made.connections,
            Vitals: site.vitals,
            Remembered: self.remembered(),
        }

    def listeners(self) -> None:
        """Complain of two that want one address."""
        settings = self.file.settings
        at, root = settings.admin.listen, self.file.root
        if self.made.administered and at.port and at == settings.listen and root is not None:
            message = f"clients and those who run the gateway cannot both connect to {at}"
            hint = "another port, or listener: main at what is to be asked there"
            self.complain(root.find(("admin", "listen")), message, hint)

    def unpriced(self) -> Iterator[Problem]:
        """A warning for each price of an upstream that there is not."""
        for name in self.file.settings.prices:
            upstream = name.partition("/")[0]
            # An organisation's own upstreams are in no file.
            own = upstream.startswith("custom-") or "*" in upstream
            if own or upstream in self.file.upstreams or self.file.root is None:
                continue
            hint = suggestion(upstream, self.file.upstreams)
            at = self.file.root.find(("prices", name), key=True)
            message = f"the price {name!r} is of no upstream that is configured{hint}"
            yield at.problem(message, "write upstream/model", warning=True)

    def complain(self, node: Node, message: str, hint: str | None = None) -> None:
        self.problems.append(node.problem(message, hint))

    def found(self, kind: str, name: str, node: Node, look_up: Any) -> Any:
        """What ``look_up`` says of ``name``, or ``None`` and a complaint."""
        try:
            thing = look_up(name)
        except BadPlugin as exc:
            self.complain(node, str(exc))
            return None
        if thing is None:
            meant = nearest(name, self.registry.installed())
            hint = f"did you mean {meant!r}?" if meant else "is its package installed?"
            self.complain(node, f"no {kind} is named {name!r}; {hint}")
        return thing

    def plugins(self) -> None:
        root = self.file.root
        for position, name in enumerate(self.file.settings.plugins):
            assert root is not None  # Something in it named the plugin.
            node = root.find(("plugins", position))
            self.found("plugin", name, node, self.registry.load)

    # What the filters use

    def stores(self) -> dict[str, Store]:
        made = {}
        for name, entry in self.file.stores.items():
            store = self.store(entry)
            if store is not None:
                made[name] = store
        return made

    def store(self, entry: StoreEntry) -> Store | None:
        kind = self.found("kind of store", entry.kind, entry.at, self.registry.store)
        if kind is None:
            return None
        settings = self.read(settings_of(kind), entry.settings)
        if settings is None:
            return None
        key = ("store", entry.kind, repr(plain(entry.settings)))
        self.made.store_keys[entry.name] = key
        store: Store | None = self.attempted(
            entry.node,
            f"the store {entry.name}",
            lambda: self.share(key, lambda: kind(settings, self.parts.site), "stop"),
        )
        return store

    def attempted(self, node: Node, name: str, make: Any) -> Any:
        """What a plugin's code makes, or ``None`` and a complaint, whatever it raises."""
        try:
            return make()
        except Exception as exc:
            self.complain(node, f"{name} cannot be made: {exc or repr(exc)}")
            return None

    def share(self, key: Hashable, make: Any, close: str) -> Any:
        thing = self.parts.shared.take(key, make, close)
        self.made.held.append(key)
        return thing

    def read(
        self, settings: type[Settings], node: Node, given: Map[str, object] | None = None
    ) -> Any:
        read_in = read(settings, node, given)
        if isinstance(read_in, list):
            self.problems += read_in
            return None
        return read_in

    def upstreams(self, made: Upstreams) -> Iterator[None]:
        # Of several that list the same model, the one that comes first is asked.
        for entry in sorted(self.file.upstreams.values(), key=lambda one: one.settings.priority):
            if not entry.left_out and (upstream := self.upstream(entry)) is not None:
                made[entry.name] = upstream
            yield

    def upstream(self, entry: UpstreamEntry) -> Upstream | None:
        if not isinstance(entry.settings, HttpUpstream):
            return self.in_process(entry)
        http = entry.settings
        dialect: Dialect | None = self.found(
            "dialect", http.dialect, entry.at("dialect"), self.registry.dialect
        )
        transport = self.transport(http, entry.node)
        if dialect is None or transport is None:
            return None
        stated = http.model_fields_set
        secret = http.credential.reveal()
        origin = parse_origin(http.url)
        headers = [
            (name.lower().encode(), value.reveal().encode()) for name, value in http.headers.items()
        ]
        return Upstream(
            name=entry.name,
            transport=transport,
            dialect=dialect,
            credential=Credential(secret) if secret else None,
            url=http.url,
            verified=http.verify,
            path=origin.base_path,
            paths={operation: path.encode() for operation, path in http.paths.items()},
            auth_header=http.auth_header.lower().encode()
            if "auth_header" in stated
            else dialect.auth_header,
            auth_prefix=http.auth_prefix.encode()
            if "auth_prefix" in stated
            else dialect.auth_prefix,
            headers=tuple(headers),
            secrets=tuple(
                value for name, value in headers if SECRET(name) and len(value) >= SHORTEST
            ),
            api_version=http.api_version,
            forward_headers=frozenset(name.lower().encode() for name in http.forward_headers),
            models=http.models,
            timeouts=Timeouts(**dict(http.timeouts)),
            key=entry.name,
            origin=entry.origin,
        )

    def configured_in_process(self, entry: UpstreamEntry) -> tuple[Any, Any] | None:
        """Its kind and its settings, if they can be read."""
        kind = self.found(
            "kind of upstream", entry.settings.kind, entry.at("kind"), self.registry.upstream
        )
        settings = None if kind is None else self.read(settings_of(kind), entry.rest)
        return None if settings is None else (kind, settings)

    def in_process(self, entry: UpstreamEntry) -> Upstream | None:
        if (known := self.configured_in_process(entry)) is None:
            return None
        kind, settings = known
        key = ("upstream", entry.name, entry.settings.kind, repr(plain(entry.rest)))
        transport = self.attempted(
            entry.node,
            f"the upstream {entry.name}",
            lambda: self.share(key, lambda: kind(settings), "aclose"),
        )
        if transport is None:
            return None
        return Upstream(
            name=entry.name,
            transport=transport,
            dialect=None,
            models=entry.settings.models,
            key=entry.name,
            origin=entry.origin,
        )

    def transport(self, http: HttpUpstream, node: Node) -> Transport | None:
        try:
            origin = root_of(parse_origin(http.url))
        except BadOrigin as exc:
            self.complain(node, f"the url cannot be used: {exc}")
            return None
        if http.ca_file:
            try:
                self.parts.connector.tls_context(Tls(http.ca_file, http.verify))
            except OSError as exc:
                self.complain(node, f"ca_file {http.ca_file!r} cannot be read: {exc}")
                return None
        limits = Limits(http.max_connections, http.keep_alive)
        tls = Tls(http.ca_file or None, http.verify)
        proxy = http.proxy.reveal()
        other = http.transport == "httpcore" or http.http2 or bool(proxy)
        key = ("transport", origin, limits, tls, http.http2, http.proxy, other)
        connector = self.parts.connector

        def make() -> Transport:
            if not other:
                return plain_transport(origin, connector, limits, tls)
            from passy_proxy.transport.httpcore import HttpcoreTransport

            return HttpcoreTransport(
                origin, connector, limits, tls, http2=http.http2, proxy=proxy or None
            )

        transport: Transport = self.share(key, make, "aclose")
        return transport

    def connections(self) -> Connections:
        """One for all snapshots: organisations' pools stay warm over a reload too."""
        connector, dialects = self.parts.connector, self.registry.dialect

        def make(url: str, restricted: bool = True) -> Transport:
            origin = parse_origin(url, restricted, connector.settings.allow)
            return plain_transport(root_of(origin), connector)

        made: Connections = self.share("connections", lambda: Connections(make, dialects), "aclose")
        return made

    def remembered(self) -> Remembered:
        """One for all snapshots."""
        site = self.parts.site

        def make() -> Remembered:
            return Remembered(site.data, site.keyring, self.parts.log)

        made: Remembered = self.share("remembered", make, "aclose")
        return made

    def model(self, entry: ModelEntry) -> Model:
        choices, missing = [], []
        for position, target in enumerate(entry.targets):
            known = self.file.upstreams.get(target.upstream)
            if known is None:
                hint = suggestion(target.upstream, self.file.upstreams)
                message = f"{entry.name!r} names an unknown upstream {target.upstream!r}{hint}"
                self.complain(target.node, message, "write upstream/model")
            elif known.left_out:
                missing.append(target.upstream)
            elif (upstream := self.made.upstreams.get(target.upstream)) is not None:
                choices.append(choice(entry, target, upstream, position))
        return Model(entry.name, choices, missing, entry.origin)

    # Applications

    def configured_app(self, entry: AppEntry) -> tuple[type[Application], Given, Any] | None:
        """Its kind, what was handed over and its settings, if they can be read."""
        kind: type[Application] | None = self.found(
            "app", entry.settings.app, entry.at, self.registry.app
        )
        if kind is None:
            return None
        settings = settings_of(kind)
        given = self.live(settings, entry.rest, entry.at)
        config = self.read(settings, entry.rest, given)
        if config is None or ABSENT in given.values():
            return None
        return kind, given, config

    def mount(self, entry: AppEntry) -> Mount | None:
        if (known := self.configured_app(entry)) is None:
            return None
        kind, given, config = known
        if (name := switched_off(config)) is not None:
            message = f"the app at {entry.path} is left out, since its {name} is off"
            node = entry.rest.entries[name]
            how = how_to_set(node)
            self.left_out.append(node.problem(message, how, warning=True))
            self.made.apps_left_out[entry.path] = how or f"set {name}"
            return None
        live = tuple((name, id(thing)) for name, thing in given.items())
        key = ("app", entry.path, kind, live, repr(plain(entry.rest)))
        log = self.parts.log.bind(app=kind.name)
        application = self.attempted(
            entry.node,
            f"the app at {entry.path}",
            lambda: self.share(key, lambda: kind(config, log), "stop"),
        )
        if application is None:
            return None
        self.made.app_keys[entry.path] = key
        path = entry.path.rstrip("/")
        listener = entry.settings.listener or kind.listener
        return Mount(path, application, int(entry.settings.body_limit), entry.node.place, listener)

    # Chains

    def route(self, entry: RouteEntry) -> Route | None:
        settings = entry.settings
        method, _, path = settings.match.strip().partition(" ")
        path = path.strip()
        if not self.matched(entry, method, path):
            return None
        at = entry.node.entries.get("dialect", entry.node)
        dialect = self.found("dialect", settings.dialect, at, self.registry.dialect)
        chain = self.chain(entry)
        if dialect is None or chain is None:
            return None
        streamed = settings.body == "stream"
        operation = settings.operation or ("" if streamed else operation_of(path))
        if not operation and "targets" in chain.terminal.needs and not streamed:
            at = entry.node.entries.get("match", entry.node)
            message = f"it is not known what {path!r} does, which {chain.terminal.name} needs"
            self.complain(at, message + meant(path), "or say it with 'operation'")
        return Route(
            match=settings.match,
            method=method,
            path=path,
            chain=chain,
            dialect=dialect,
            operation=operation,
            streamed_upload=streamed,
            body_limit=int(settings.body_limit),
            root=len(settings.root),
            json_limits=JsonLimits(settings.json_depth, settings.json_keys, settings.json_digits),
            parts=settings.multipart_parts,
            origin=entry.node.place,
            places=tuple(self.places[id(chain)]),
            ran=f"{named(entry)}@{self.made.hash.decode()}",
        )

    def matched(self, entry: RouteEntry, method: str, path: str) -> bool:
        """Whether the route's match is one, and its root the beginning of the path."""
        settings, before = entry.settings, len(self.problems)
        at = entry.node.entries.get("match", entry.node)
        if not path.startswith("/") or "*" in path[:-1]:
            example = "for instance POST /v1/chat/completions"
            self.complain(at, f"{settings.match!r} is no match", example)
        elif method not in METHODS:
            likely = nearest(method, METHODS)
            hint = f"write {likely} {path}" if likely else f"one of {', '.join(METHODS)}"
            self.complain(at, f"there is no method {method!r}{suggestion(method, METHODS)}", hint)
        rest = path[len(settings.root) :]
        if settings.root and not (path.startswith(settings.root) and rest[:1] in ("", "/", "*")):
            self.complain(
                entry.node.entries.get("root", entry.node),
                f"{settings.root!r} is not the beginning of {path!r}",
            )
        return len(self.problems) == before

    def chain(self, entry: RouteEntry) -> Chain | None:
        written = entry.chain
        if isinstance(written, str):
            at = entry.node.entries.get("chain", entry.node)
            if written not in self.file.chains:
                hint = suggestion(written, self.file.chains)
                self.complain(at, f"no chain is named {written!r}{hint}")
                return None
            if not entry.override:
                if written not in self.chains:
                    self.chains[written] = self.linked(entry, self.file.chains[written])
                return self.chains[written]
            written = self.file.chains[written]
        return self.linked(entry, written)

    def linked(self, entry: RouteEntry, written: tuple[ChainEntry, ...]) -> Chain | None:
        known = [one.name for one in written]
        for name in entry.override:
            if name not in known:
                at = entry.node.find(("override", name), key=True)
                hint = suggestion(name, known)
                self.complain(at, f"this chain has no filter {name!r}{hint}")
        filters = []
        for one in written:
            override = entry.override.get(one.name, one.settings)
            if override is not None:  # None is off.
                filters.append((one, self.filter(one, override)))
        return self.compiled(
            [(one, made) for one, made in filters if made is not None], len(filters)
        )

    def configured(
        self, entry: ChainEntry, settings: Mapping
    ) -> tuple[type[Filter], Given, Any] | None:
        """A filter's kind, what was handed over and its settings, if they can be read."""
        kind: type[Filter] | None = self.found(
            "filter", entry.name, entry.node, self.registry.filter
        )
        if kind is None:
            return None
        config_class = settings_of(kind)
        if twice := sorted(own_settings(kind).model_fields.keys() & LINK):
            message = f"{entry.name} has a setting {twice[0]!r} of its own, which every filter has"
            self.complain(entry.node, message)
            return None
        given = self.live(config_class, settings, entry.node)
        config = self.read(config_class, settings, given)
        if config is None or ABSENT in given.values():
            return None
        return kind, given, config

    def filter(self, entry: ChainEntry, override: Mapping) -> Filter | None:
        """The filter of one chain entry; equal settings share one."""
        settings = entry.settings.merged(override) if override is not entry.settings else override
        if (known := self.configured(entry, settings)) is None:
            return None
        kind, given, config = known
        live = tuple((name, id(thing)) for name, thing in given.items())
        rest = tuple((f, repr(plain(settings.entries[f]))) for f in settings.entries)
        key = (kind, live, tuple(sorted(rest)))
        if key not in self.filters:
            log = self.parts.log.bind(filter=entry.name)
            made = self.attempted(entry.node, entry.name, lambda: kind(config, log))
            if made is None:
                return None
            self.filters[key] = made
        return self.filters[key]

    def live(self, config_class: type[Settings], settings: Mapping, at: Node) -> Given:
        """Stores and the gateway's own parts, for the settings that are of their types.

        ABSENT is given for a store that was not found, and complained of.
        """
        unknown = settings.entries.keys() - config_class.model_fields.keys()
        given: Given = {}
        for name, declared in config_class.model_fields.items():
            kinds = {declared.annotation, *get_args(declared.annotation)}
            if own := kinds & self.given.keys():
                given[name] = self.given[own.pop()]
            elif wanted := kinds & set(STORES):
                node = settings.entries.get(name)
                if node is None and not declared.is_required():
                    continue
                if node is None and self.file.stores and nearest(name, unknown):
                    given[name] = ABSENT  # It is there, misspelt, and that will be said.
                    continue
                store = self.named_store(name, wanted.pop(), node, at)
                given[name] = ABSENT if store is None else store
        return given

    def named_store(self, field: str, kind: type, node: Node | None, at: Node) -> Store | None:
        """The store that a filter's setting names."""
        if not (self.file.stores or self.unread):
            # A file without stores means: keep everything in memory.
            store = self.memory(at)
            if store is not None and not isinstance(store, kind):
                self.complain(at, f"{field!r} needs a store, and there are no stores")
                return None
            return store
        names = ", ".join(self.file.stores)
        if not isinstance(node, Text) or not node.text:
            self.complain(node or at, f"{field!r} needs the name of a store; there are {names}")
            return None
        store = self.made.stores.get(node.text)
        if store is None:
            if node.text not in self.file.stores and node.text not in self.unread:
                meant = nearest(node.text, self.file.stores)
                hint = f"did you mean {meant!r}?" if meant else f"there are {names}"
                self.complain(node, f"no store is named {node.text!r}; {hint}")
            return None
        if not isinstance(store, kind):
            what = kind.__name__.lower()
            self.complain(
                node, f"the store {node.text!r} is of kind {store.kind}, which has no {what}"
            )
            return None
        return store

    def memory(self, at: Node) -> Store | None:
        if "memory" not in self.made.stores:
            kind = self.found("kind of store", "memory", at, self.registry.store)
            if kind is None:
                return None
            key = self.made.store_keys["memory"] = ("store", "memory", "")
            store = self.share(key, lambda: kind(settings_of(kind)(), self.parts.site), "stop")
            self.made.stores["memory"] = store
        return self.made.stores["memory"]

    def compiled(self, filters: list[tuple[ChainEntry, Filter]], wanted: int) -> Chain | None:
        """The chain, if every filter was made and the order is one that can work."""
        if len(filters) < wanted or not filters:
            return None  # What is missing has been said; of the rest's order nothing can be.
        before = len(self.problems)
        provided: dict[str, str] = {"body": "the core", "credentials": "the core"}
        there: dict[Filter, ChainEntry] = {}
        for position, (entry, filter) in enumerate(filters):
            if (first := there.setdefault(filter, entry)) is not entry:
                message = f"{entry.name} is in this chain already, as it is here"
                hint = f"keep one of the two (lines {first.node.line}, {entry.node.line})"
                self.complain(entry.node, message, hint)
            last = position == len(filters) - 1
            if isinstance(filter, Terminal) is not last:
                self.complain(entry.node, self.misplaced(entry, last))
            for need in sorted(filter.needs - provided.keys()):
                self.complain(entry.node, self.unmet(entry, need, filters))
            if filter.provides or last:
                self.check_closed(entry, filter)
            provided |= dict.fromkeys(filter.provides, entry.name)
        if len(self.problems) > before:
            return None
        beat = getattr(filters[-1][1].config, "heartbeat", 0.0)
        try:
            chain = self.chained([filter for _, filter in filters], beat)
            self.places[id(chain)] = [entry.node.place for entry, _ in filters]
            return chain
        except BadFilter as exc:
            [entry] = [entry for entry, filter in filters if filter is exc.filter][:1]
            self.complain(entry.node, str(exc))
            return None

    def chained(self, filters: list[Filter], beat: float) -> Chain:
        every = self.file.settings.time_filters
        if every:
            return SampledChain(filters, heartbeat=beat, every=every)
        return Chain(filters, heartbeat=beat)

    def check_closed(self, entry: ChainEntry, filter: Filter) -> None:
        """Complain of a filter that may fail unnoticed although others rest on it."""
        if getattr(filter.config, "on_error", "closed") != "open":
            return
        what = ", ".join(sorted(filter.provides)) or "the answer"
        at = entry.settings.entries.get("on_error", entry.node)
        message = f"{entry.name} cannot be open: without it there is no {what}"
        self.complain(at, message, "write on_error: closed")

    @staticmethod
    def misplaced(entry: ChainEntry, last: bool) -> str:
        if last:
            words = "a chain ends in a terminal filter, and {} is none; add fallback or direct"
            return words.format(entry.name)
        return f"{entry.name} is terminal: nothing can stand behind it"

    @staticmethod
    def unmet(entry: ChainEntry, need: str, filters: list[tuple[ChainEntry, Filter]]) -> str:
        message = f"{entry.name} needs {need}, but no earlier filter provides it"
        for other, filter in filters:
            if need in filter.provides:
                return f"{message}; put it after {other.name!r} (line {other.node.line})"
        return message


def switched_off(config: Settings) -> str | None:
    """A secret without which an application answers nobody, and that is ``off``."""
    for name, declared in type(config).model_fields.items():
        if declared.annotation is Secret and declared.is_required() and not getattr(config, name):
            return name
    return None


def choice(entry: ModelEntry, target: TargetEntry, upstream: Upstream, position: int) -> Choice:
    """One target of an alias; its time limit is the target's, else the alias's, else the
    upstream's."""
    limit = target.timeout if target.timeout is not None else entry.timeout
    timeouts = None
    if limit is not None:
        # The limit is on the wait for an answer; a stream that has begun may go on for longer.
        first = dataclasses.replace(upstream.timeouts, first_byte=limit)
        timeouts = replace(first, connect=min(limit, first.connect or limit))
    priority = position if target.priority is None else target.priority
    weighted = any(other.weight != 1.0 for other in entry.targets)
    if weighted and target.priority is None:
        priority = 0
    return Choice(upstream, target.model, priority, target.weight, timeouts, entry.fallback_on)


def root_of(origin: Origin) -> Origin:
    """The origin without its base path: what dialects ask for is the whole path."""
    return replace(origin, base_path=b"")


def plain_transport(
    origin: Origin,
    connector: Connector,
    limits: Limits = DEFAULT_LIMITS,
    tls: Tls = VERIFIED,
) -> Transport:
    """HTTP/1.1 straight to the origin: by our own transport, or by httpcore without httptools."""
    if HAVE_HTTPTOOLS:
        from passy_proxy.transport.http1 import Http1Transport

        return Http1Transport(origin, connector, limits, tls)
    from passy_proxy.transport.httpcore import HttpcoreTransport

    return HttpcoreTransport(origin, connector, limits, tls)


def settings_of(kind: type[Any]) -> type[Settings]:
    """The settings class of a store or in-process upstream, or what can be set of a filter: its
    ``config`` annotation, and what every filter has."""
    own = own_settings(kind)
    return linked(own, kind.on_error) if issubclass(kind, Filter) else own


@cache
def linked(own: type[Settings], on_error: str) -> type[Settings]:
    """``own`` with the fields of `LinkSettings`, ``on_error`` as the filter has it."""
    shared = LinkSettings.model_fields
    fields: dict[str, Any] = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
        "__annotations__": get_type_hints(LinkSettings, include_extras=True),
        "on_error": setting(on_error, shared["on_error"].description or ""),
        "hook_timeout": shared["hook_timeout"],
    }
    fields["__annotations__"] = {name: fields["__annotations__"][name] for name in shared}
    return type(own.__name__, (own,), fields)


def own_settings(kind: type[Any]) -> type[Settings]:
    """The settings class that a plugin has written."""
    known = _OWN.get(kind)
    if known is None:
        known = _OWN[kind] = _declared(kind)
    return known


_OWN: WeakKeyDictionary[type, type[Settings]] = WeakKeyDictionary()


def _declared(kind: type[Any]) -> type[Settings]:
    declared = getattr(kind, "Settings", None) or get_type_hints(kind).get("config")
    return declared if isinstance(declared, type) and issubclass(declared, Settings) else Settings


def meant(path: str) -> str:
    """The known path that this one is probably meant to be, as a question; or nothing."""
    known = [start + end for end in OPERATIONS for start in ("/v1", "")]
    return suggestion(path, known)


def operation_of(path: str) -> str:
    """What a dialect calls the operation of a route's path; empty for one that is passed
    through."""
    for end, operation in OPERATIONS.items():
        if path.endswith(end) and (operation != "completions" or "/chat/" not in path):
            return operation
    return ""


try:
    import httptools  # noqa: F401

    HAVE_HTTPTOOLS = True
except ImportError:
    HAVE_HTTPTOOLS = False

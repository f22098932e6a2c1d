"""What is installed: names in YAML → classes, and which distribution each came from.

Installed is not enabled: an entry point of the group ``passy`` is imported only when a
configuration names it. Our own plugins come in by the same door.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import pluggy

from passy_proxy.application import Application
from passy_proxy.dialect import Dialect
from passy_proxy.filter import Filter
from passy_proxy.hookspecs import ProcessHooks
from passy_proxy.stores import Store

GROUP = "passy"


class BadPlugin(Exception):
    """A plugin that cannot be loaded; the message says which and why."""


@dataclass(slots=True)
class Plugin:
    """One loaded entry point and what it brought."""

    name: str
    distribution: str
    version: str
    filters: list[type[Filter]] = field(default_factory=list)
    dialects: list[Dialect] = field(default_factory=list)
    stores: dict[str, type[Store]] = field(default_factory=dict)
    upstreams: dict[str, type[Any]] = field(default_factory=dict)
    apps: list[type[Application]] = field(default_factory=list)


class Origin(NamedTuple):
    """What is known of an entry point without importing it."""

    name: str
    distribution: str
    version: str


class Registry:
    """Finds and loads plugins by name; remembers what each one brought."""

    def __init__(self) -> None:
        self._plugins = pluggy.PluginManager("passy")
        self._plugins.add_hookspecs(ProcessHooks)
        self._points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=GROUP):
            self._points.setdefault(point.name, []).append(point)
        self.loaded: dict[str, Plugin] = {}
        self.filters: dict[str, type[Filter]] = {}
        self.dialects: dict[str, Dialect] = {}
        self.stores: dict[str, type[Store]] = {}
        self.upstreams: dict[str, type[Any]] = {}
        self.apps: dict[str, type[Application]] = {}

    def installed(self) -> list[str]:
        """The names of all entry points, loaded or not."""
        return sorted(self._points)

    def origins(self) -> list[Origin]:
        """Of all entry points, loaded or not, by name; two that claim one name are both there."""
        points = {(name, *_owner(p)) for name, found in self._points.items() for p in found}
        return [Origin(*point) for point in sorted(points)]

    def load(self, name: str) -> Plugin | None:
        """Import the entry point ``name``, once; ``None`` when nothing of that name is
        installed."""
        if name in self.loaded:
            return self.loaded[name]
        points = self._points.get(name)
        if not points:
            return None
        if len({point.value for point in points}) > 1:
            owners = " and ".join(sorted(_owner(point)[0] for point in points))
            raise BadPlugin(f"{owners} both bring a plugin named {name!r}; uninstall one of them")
        try:
            module = points[0].load()
        except Exception as exc:
            raise BadPlugin(
                f"the plugin {name!r} of {_owner(points[0])[0]} cannot be imported: {exc!r}"
            ) from exc
        return self.add(name, module, *_owner(points[0]))

    def add(
        self, name: str, module: ModuleType | object, distribution: str = "", version: str = ""
    ) -> Plugin:
        """Register an imported plugin; tests and embedders hand theirs in here."""
        try:
            self._plugins.register(module, name)
            self._plugins.check_pending()
        except (pluggy.PluginValidationError, ValueError) as exc:
            raise BadPlugin(f"the plugin {name!r} does not fit: {exc}") from exc
        plugin = Plugin(name, distribution, version)
        hooks = self._plugins.subset_hook_caller
        others = [p for p in self._plugins.get_plugins() if p is not module]
        for found in hooks("passy_filters", others)():
            plugin.filters += found
        for found in hooks("passy_dialects", others)():
            plugin.dialects += found
        for found in hooks("passy_stores", others)():
            plugin.stores |= found
        for found in hooks("passy_upstreams", others)():
            plugin.upstreams |= found
        for found in hooks("passy_apps", others)():
            plugin.apps += found
        self.filters |= {one.name: one for one in plugin.filters}
        self.dialects |= {one.name: one for one in plugin.dialects}
        self.stores |= plugin.stores
        self.upstreams |= plugin.upstreams
        self.apps |= {one.name: one for one in plugin.apps}
        self.loaded[name] = plugin
        return plugin

    def provenance(self) -> list[dict[str, object]]:
        """Where the loaded plugins come from: of each distribution its name, its version, and the
        SHA-256 of the list (RECORD) in which its installer wrote down the hash of each file."""
        found: dict[str, dict[str, object]] = {}
        for name, plugin in self.loaded.items():
            known = found.setdefault(
                plugin.distribution,
                {
                    "distribution": plugin.distribution,
                    "version": plugin.version,
                    "record": self._record(name),
                    "plugins": [],
                },
            )
            known["plugins"] = [*cast(list[str], known["plugins"]), name]
        return list(found.values())

    def _record(self, name: str) -> str | None:
        points = self._points.get(name)
        distribution = points[0].dist if points else None
        record = distribution.read_text("RECORD") if distribution else None
        return hashlib.sha256(record.encode()).hexdigest() if record else None

    def owner(self, file: str) -> Plugin | None:
        """The loaded plugin that a source file belongs to: its own module or package, else one
        beside it."""
        beside = None
        for name, plugin in self.loaded.items():
            own = getattr(self._plugins.get_plugin(name), "__file__", None)
            if own is None:
                continue
            path = Path(own)
            if file == own or (path.stem == "__init__" and Path(file).is_relative_to(path.parent)):
                return plugin
            if beside is None and Path(file).parent == path.parent:
                beside = plugin
        return beside

    def filter(self, name: str) -> type[Filter] | None:
        """The filter class a chain means by ``name``."""
        if name not in self.filters:
            self.load(name)
        return self.filters.get(name)

    def dialect(self, name: str) -> Dialect | None:
        if name not in self.dialects:
            self.load(name)
        return self.dialects.get(name)

    def store(self, kind: str) -> type[Store] | None:
        if kind not in self.stores:
            self.load(kind)
        return self.stores.get(kind)

    def upstream(self, kind: str) -> type[Any] | None:
        if kind not in self.upstreams:
            self.load(kind)
        return self.upstreams.get(kind)

    def app(self, name: str) -> type[Application] | None:
        if name not in self.apps:
            self.load(name)
        return self.apps.get(name)


def _owner(point: EntryPoint) -> tuple[str, str]:
    return _named(point.dist) if point.dist else ("an unnamed package", "")


@cache
def _named(distribution: Distribution) -> tuple[str, str]:
    """Name and version. Its file is read anew each time one of them is asked for."""
    return distribution.name, distribution.version

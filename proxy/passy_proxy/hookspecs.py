"""Process hooks: what a plugin package may bring. All are called before the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from passy_proxy.application import Application
    from passy_proxy.dialect import Dialect
    from passy_proxy.filter import Filter
    from passy_proxy.stores import Store

hookspec = pluggy.HookspecMarker("passy")
hookimpl = pluggy.HookimplMarker("passy")
"""Marks the functions of a plugin's module that are process hooks."""


class ProcessHooks:
    """The kinds of parts a plugin contributes."""

    @hookspec
    def passy_filters(self) -> list[type[Filter]]:
        """Filter classes; each is named in chains by its ``name``."""
        raise NotImplementedError

    @hookspec
    def passy_dialects(self) -> list[Dialect]:
        """Dialects; each is named in upstreams and routes by its ``name``."""
        raise NotImplementedError

    @hookspec
    def passy_stores(self) -> dict[str, type[Store]]:
        """Store classes by the ``kind`` that YAML names."""
        raise NotImplementedError

    @hookspec
    def passy_upstreams(self) -> dict[str, type[Any]]:
        """In-process upstreams by ``kind``: transports with a ``Settings`` class."""
        raise NotImplementedError

    @hookspec
    def passy_apps(self) -> list[type[Application]]:
        """Applications; each is named under ``apps:`` by its ``name``."""
        raise NotImplementedError

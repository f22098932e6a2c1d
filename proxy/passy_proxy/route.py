"""Routes: which chain answers which request, and in which dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passy_proxy.body import JsonLimits
from passy_proxy.dialect import Dialect

if TYPE_CHECKING:
    from passy_proxy.chain import Chain
    from passy_proxy.mount import Mount

JSON_LIMITS = JsonLimits()


@dataclass(slots=True, eq=False)
class Route:
    """One line of ``routes:``, compiled."""

    match: str
    """As written: ``POST /v1/chat/completions``."""
    method: str
    """``*`` is any."""
    path: str
    """Exact, or ending in ``*`` for everything below."""
    chain: Chain
    dialect: Dialect
    operation: str
    """Empty where the body is only passed through."""
    streamed_upload: bool
    body_limit: int
    root: int
    """Length of the prefix (``/v1``) that pass-through drops."""
    json_limits: JsonLimits = JSON_LIMITS
    """What a JSON body may hold."""
    parts: int = 100
    """Most parts of a multipart body."""
    origin: str = ""
    """Where it stands in the configuration."""
    places: tuple[str, ...] = ()
    """Where each filter of its chain stands."""
    ran: str = ""
    """What the books say that ran: the chain's name and the configuration's hash."""


class RouteTable:
    """Finds the route for a method and path: one dictionary look-up for exact routes.

    Applications have their places in it too: behind an exact route, and among those that end in
    ``*`` by the length of their paths.
    """

    def __init__(self, routes: Sequence[Route], mounts: Sequence[Mount] = ()) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._prefixes: list[tuple[str, Route | None]] = []
        self.all = tuple(routes)
        for route in routes:
            if route.path.endswith("*"):
                self._prefixes.append((route.path[:-1], route))
            else:
                self._exact.setdefault((route.method, route.path), route)
        self.mounts = sorted(mounts, key=lambda mount: -len(mount.path))
        self._prefixes += [(mount.path, None) for mount in mounts]
        # The longest prefix is the most specific; between equals a route comes before an
        # application, and YAML order decides between routes.
        self._prefixes.sort(key=lambda prefix: -len(prefix[0]))
        self._spoken = {route.path: route.dialect for route in reversed(self.all)}
        self._longest = max(map(len, self._spoken), default=0)

    def find(self, method: str, path: str) -> Route | None:
        """The route for a request, or ``None``."""
        route = self._exact.get((method, path)) or self._exact.get(("*", path))
        return route or self._below(method, path)

    def _below(self, method: str, path: str) -> Route | None:
        for prefix, route in self._prefixes:
            if not path.startswith(prefix):
                continue
            if route is None:
                if path[len(prefix) : len(prefix) + 1] in ("", "/"):
                    return None
            elif route.method in (method, "*"):
                return route
        return None

    def mount(self, path: str) -> Mount | None:
        """The application at a path for which `find` knows no route."""
        for mount in self.mounts:
            if path.startswith(mount.path) and path[len(mount.path) :][:1] in ("", "/"):
                return mount
        return None

    def spoken(self, path: str) -> Dialect | None:
        """What the clients of a path speak, also where no route is for their method or goes
        further down; ``None`` where nobody says."""
        above = path[: self._longest + 1]
        while above:
            if (dialect := self._spoken.get(above)) is not None:
                return dialect
            above = above.rpartition("/")[0]
        below = (route for prefix, route in self._prefixes if route and path.startswith(prefix))
        return next((route.dialect for route in below), None)

    def methods(self, path: str) -> list[str]:
        """The methods some route has for ``path``, for a 405."""
        exact = {method for method, known in self._exact if known == path}
        below = {r.method for prefix, r in self._prefixes if r and path.startswith(prefix)}
        return sorted(exact | below)

"""Routes: which chain answers which request, and in which dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passy_proxy.body import JsonLimits
from passy_proxy.dialect import Dialect

if TYPE_CHECKING:
    from passy_proxy.chain import Chain

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


class RouteTable:
    """Finds the route for a method and path: one dictionary look-up for exact routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._prefixes: list[Route] = []
        self.all = tuple(routes)
        for route in routes:
            if route.path.endswith("*"):
                self._prefixes.append(route)
            else:
                self._exact.setdefault((route.method, route.path), route)
        # The longest prefix is the most specific; YAML order decides between equals.
        self._prefixes.sort(key=lambda route: -len(route.path))
        self._spoken = {route.path: route.dialect for route in reversed(self.all)}
        self._longest = max(map(len, self._spoken), default=0)

    def find(self, method: str, path: str) -> Route | None:
        """The route for a request, or ``None``."""
        route = self._exact.get((method, path)) or self._exact.get(("*", path))
        return route or self._below(method, path)

    def _below(self, method: str, path: str) -> Route | None:
        for route in self._prefixes:
            if path.startswith(route.path[:-1]) and route.method in (method, "*"):
                return route
        return None

    def spoken(self, path: str) -> Dialect | None:
        """What the clients of a path speak, also where no route is for their method or goes
        further down; ``None`` where nobody says."""
        above = path[: self._longest + 1]
        while above:
            if (dialect := self._spoken.get(above)) is not None:
                return dialect
            above = above.rpartition("/")[0]
        below = (route for route in self._prefixes if path.startswith(route.path[:-1]))
        return next((route.dialect for route in below), None)

    def methods(self, path: str) -> list[str]:
        """The methods some route has for ``path``, for a 405."""
        exact = {method for method, known in self._exact if known == path}
        below = {r.method for r in self._prefixes if path.startswith(r.path[:-1])}
        return sorted(exact | below)

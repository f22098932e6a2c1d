"""How upstreams are reached: transports for the configured ones and for organisations' own."""

from __future__ import annotations

from collections.abc import Callable

from passy_proxy.dialect import Dialect
from passy_proxy.records import CustomProvider
from passy_proxy.transport import Transport
from passy_proxy.upstream import Upstream


class Connections:
    """Makes upstreams of organisations' own providers, each with a pool of its own.

    A provider's pool is kept while it is used and dropped when its settings change. Connections are
    made under the SSRF rules: its URL is a tenant's word, not the operator's.
    """

    KEPT = 1_000

    def __init__(
        self, make: Callable[[str, bool], Transport], dialects: Callable[[str], Dialect | None]
    ) -> None:
        self._make = make
        self._dialects = dialects
        self._custom: dict[tuple[str, str], tuple[CustomProvider, Upstream]] = {}

    def custom(self, provider: CustomProvider) -> Upstream:
        """The upstream of ``provider``. Raises BadOrigin (a ValueError) for a URL it may not
        have."""
        key = (provider.organisation, provider.id)
        known = self._custom.pop(key, None)
        if known is None or known[0] != provider:
            known = (provider, self.built(provider))
        self._custom[key] = known
        if len(self._custom) > self.KEPT:
            del self._custom[next(iter(self._custom))]
        return known[1]

    def transport(self, url: str, *, restricted: bool = True) -> Transport:
        """A transport of the caller's own, to be closed by it; ``restricted`` by the SSRF rules,
        which is for words of tenants. Raises BadOrigin (a ValueError)."""
        return self._make(url, restricted)

    async def aclose(self) -> None:
        """Close all pools: idle connections now, busy ones when their answers end."""
        for _, upstream in self._custom.values():
            await upstream.transport.aclose()
        self._custom.clear()

    def built(self, provider: CustomProvider) -> Upstream:
        """One that is not kept: its transport is closed by the caller. Raises as `custom`."""
        dialect = self._dialects(provider.dialect)
        if dialect is None:
            raise ValueError(f"no dialect is named {provider.dialect!r}")
        path = provider.url.partition("://")[2].partition("/")[2].rstrip("/")
        return Upstream(
            name=f"custom-{provider.id}",
            transport=self._make(provider.url, True),
            dialect=dialect,
            url=provider.url,
            path=b"/" + path.encode() if path else b"",
            auth_header=dialect.auth_header,
            auth_prefix=dialect.auth_prefix,
            models=provider.models,
            owner=provider.organisation,
            key=provider.id,
        )

"""Terminal: the routing table over HTTP, for whoever holds the admin token.

The shape is the one earlier set-ups were written in: ``providers`` and ``routes`` with
``fallbackOn`` and milliseconds. No credential is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest

from passy_proxy import (
    Attempt,
    Dispatch,
    Exchange,
    Model,
    Models,
    Reply,
    Settings,
    StrongSecretOrOff,
    Terminal,
    Upstream,
    Upstreams,
    credentials,
    hookimpl,
    json,
    setting,
)


class Config(Settings):
    token: StrongSecretOrOff = setting(
        "off", "The admin token, of 32 random bytes or more; off: nobody is answered."
    )
    models: Models = setting("models", "The table of models; there is one, written under models:.")
    upstreams: Upstreams = setting("upstreams", "The upstreams; they are written under upstreams:.")


class Routing(Terminal):
    name = "routing"
    needs = frozenset({"credentials"})
    config: Config

    @property
    def closed(self) -> bool:
        return not self.config.token

    async def start(self) -> None:
        self._token = self.config.token.reveal().encode()
        self._shown = credentials(self)
        self._body = json.dumps(
            {
                "providers": [provider(one) for one in self.config.upstreams.values()],
                "routes": [route(one) for one in self.config.models.aliases],
            }
        )

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if not self._token:
            return Reply(403, "admin_disabled", "Set PASSY_ADMIN_TOKEN to ask for this.")
        scheme, _, shown = self._shown(ex.request).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not compare_digest(shown.strip(), self._token):
            return Reply(401, "invalid_admin_token", "This needs the admin token.")
        return Reply(200, "routing", body=self._body)


def provider(upstream: Upstream) -> dict[str, object]:
    """An upstream, without its credential."""
    return {
        "id": upstream.name,
        "name": upstream.name,
        "baseUrl": upstream.url,
        "models": list(upstream.models),
        "dialect": upstream.dialect.name if upstream.dialect else None,
        "verified": upstream.verified,
    }


def route(model: Model) -> dict[str, object]:
    """An alias and its targets, lowest priority first; and who it would need besides, that is left
    out for want of a credential."""
    choices = model.choices
    first = choices[0] if choices else None
    limit = first.timeouts.first_byte if first and first.timeouts else None
    return {
        "alias": model.name,
        "targets": [
            {"provider": one.upstream.name, "model": one.model, "priority": one.priority}
            for one in choices
        ],
        "fallbackOn": sorted(first.fallback_on)
        if first and first.fallback_on is not None
        else None,
        "timeout": round(limit * 1000) if limit else None,
        "leftOut": list(model.missing),
    }


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [Routing]

"""Terminal: ``GET /v1/models`` and ``/v1/models/{id}``, as far as the caller's key goes."""

from __future__ import annotations

from collections.abc import Sequence

from passy_proxy import (
    Attempt,
    Dispatch,
    Exchange,
    Models,
    Principal,
    Reply,
    Settings,
    StoreUnavailable,
    Terminal,
    Vault,
    hookimpl,
    json,
    setting,
)
from passy_proxy.models import may_reach, may_use


class Config(Settings):
    models: Models = setting("models", "The table of models; there is one, written under models:.")
    vault: Vault | None = setting(
        None, "The store that knows organisations' own upstreams, whose models are listed too."
    )


class ModelList(Terminal):
    name = "models"
    needs = frozenset({"principal"})
    config: Config

    async def start(self) -> None:
        models = self.config.models
        self._cards = {name: card(name, models.owner(name)) for name in models.names()}

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        asked = ex.request.path.partition("/models")[2].strip("/")
        principal = ex.principal
        known = {**await self.own(ex), **self._cards}
        if asked and asked not in known and "*" not in asked:
            # A pattern is not listed, and stands for models all the same.
            found = self.config.models.find(asked)
            if found is not None and (targets := found.at(asked)):
                known[asked] = card(asked, targets[0].upstream.name)
        cards = [
            one for name, one in known.items() if principal is None or self.lists(principal, name)
        ]
        # Both families of clients ask at this path; Anthropic's say so by this header.
        native = ex.request.header(b"anthropic-version") is not None
        if asked:
            cards = [one for one in cards if one["id"] == asked]
            if not cards:
                message = f"The model {asked[:200]!r} does not exist, or this key may not use it."
                body = json.dumps(anthropic_error(message, ex.id)) if native else None
                return Reply(404, "model_not_found", message, param="model", body=body)
            return listed(anthropic_card(cards[0]) if native else cards[0])
        if native:
            return listed(anthropic_list([anthropic_card(one) for one in cards]))
        return listed({"object": "list", "data": cards})

    def lists(self, principal: Principal, name: str) -> bool:
        """Whether somebody may use a model, and reach who answers for it."""
        if not may_use(principal, name):
            return False
        if principal.upstreams is None:
            return True
        targets = self.config.models.targets(name)
        return any(may_reach(principal, target.upstream) for target in targets)

    async def own(self, ex: Exchange) -> dict[str, dict[str, object]]:
        """Cards of the models that the caller's organisation serves itself, by name."""
        vault, principal = self.config.vault, ex.principal
        if vault is None or principal is None or principal.organisation is None:
            return {}
        try:
            providers = await vault.providers(principal.organisation)
        except StoreUnavailable:
            return {}
        return {
            name: card(name, f"custom-{provider.id}")
            for provider in providers
            if provider.active
            for name in provider.models
            if name.find("*") < 0
        }


CREATED = 1_735_689_600
"""2025-01-01: aliases have no date of their own, and clients want a number."""


def card(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": owner}


def anthropic_card(one: dict[str, object]) -> dict[str, object]:
    return {
        "type": "model",
        "id": one["id"],
        "display_name": one["id"],
        "created_at": "2025-01-01T00:00:00Z",
    }


def anthropic_list(cards: list[dict[str, object]]) -> dict[str, object]:
    return {
        "data": cards,
        "has_more": False,
        "first_id": cards[0]["id"] if cards else None,
        "last_id": cards[-1]["id"] if cards else None,
    }


def anthropic_error(message: str, request_id: str) -> dict[str, object]:
    error = {"type": "not_found_error", "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def listed(body: dict[str, object]) -> Reply:
    return Reply(200, "models", body=json.dumps(body))


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [ModelList]

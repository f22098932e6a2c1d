"""What clients ask for → who can answer, best first.

Order of the rules for an asked name: an alias of that exact name; an alias with ``*`` that matches
it (the most specific first); ``upstream/model`` of a configured upstream; an upstream that lists
the name among its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from math import inf, log
from random import random
from typing import TYPE_CHECKING

from passy_plugins import switches as steering
from passy_proxy import (
    Exchange,
    Filter,
    Model,
    Models,
    Principal,
    Remembered,
    Reply,
    Settings,
    Switchboard,
    Target,
    hookimpl,
    setting,
)
from passy_proxy.models import may_reach, may_use

if TYPE_CHECKING:
    from passy_plugins.following import Following
    from passy_proxy import Switch
    from passy_proxy.models import Choice


REMEMBERED = 1_000
LONGEST = 200
"""Characters of a name worth remembering."""


class Config(Settings):
    models: Models = setting("models", "The table of models; there is one, written under models:.")
    direct: bool = setting(
        True, "Also take upstream/model, and names an upstream lists, without an alias."
    )
    switchboard: Switchboard | None = setting(
        None,
        "The store that says which targets people have pinned or disabled; without one the "
        "configuration alone does.",
    )
    remembered: Remembered = setting("remembered", "What is known, on disk.")


class Alias(Filter):
    name = "alias"
    needs = frozenset({"body"})
    provides = frozenset({"targets"})
    config: Config

    @property
    def when_away(self) -> str:
        known = "what was pinned or disabled stays so, as it was heard last"
        return known if self.config.switchboard is not None else ""

    async def start(self) -> None:
        # What a name leads to, for those that lead to the same targets each time.
        self._fixed: dict[str, Sequence[Target]] = {}
        self._models = self.config.models
        self._following: Following[Switch] | None = None
        if (board := self.config.switchboard) is not None:
            self._following = steering.following(
                board, self.config.remembered, self.switch, self.log
            )
            await self._following.start()

    async def stop(self) -> None:
        if self._following is not None:
            await self._following.stop()

    def switch(self, switches: Sequence[Switch]) -> None:
        """From now on these hold."""
        self._models = self.config.models.switched(switches)
        self._fixed.clear()

    def on_request(self, ex: Exchange) -> Reply | None:
        name = ex.request.head.model
        principal = ex.principal
        if principal is not None and (
            principal.models is not None or principal.above or principal.upstreams is not None
        ):
            return self.within(ex, name, principal)
        if ex.targets:
            return None  # An earlier filter chose already: an organisation's own upstream.
        targets = self._fixed.get(name)
        if targets is None:
            return self.look_up(ex, name)
        ex.targets = targets
        return None

    def within(self, ex: Exchange, name: str, principal: Principal) -> Reply | None:
        """The targets for who may not use all there is."""
        if not may_use(principal, name):
            return not_allowed(f"This key may not use the model {name[:200]!r}.")
        mine = [target for target in ex.targets if may_reach(principal, target.upstream)]
        if not mine:
            targets = self._fixed.get(name)
            if targets is not None:
                ex.targets = targets
            elif (reply := self.look_up(ex, name)) is not None:
                return reply
            mine = [target for target in ex.targets if may_reach(principal, target.upstream)]
        if not mine:
            reach = ", ".join(principal.upstreams or ()) or "no upstream"
            kind = "test key" if principal.is_test else "key"
            return not_allowed(f"This {kind} may only reach {reach}, not the model {name[:200]!r}.")
        ex.targets = mine
        return None

    def look_up(self, ex: Exchange, name: str) -> Reply | None:
        """The targets for a name that is not remembered."""
        models = self._models
        model = models.alias(name, self.config.direct)
        targets: Sequence[Target] | None
        if model is not None:
            targets = shuffled(model, name) if model.weighted else model.targets or model.at(name)
        else:
            targets = models.direct(name) if self.config.direct else None
        if not targets:
            return self.unknown(name, model, found=targets is not None)
        # Patterns take any name, of any length: those of clients must not fill the memory.
        if (model is None or not model.weighted) and len(name) <= LONGEST:
            if len(self._fixed) >= REMEMBERED:
                self._fixed.clear()
            self._fixed[name] = targets
        ex.targets = targets
        return None

    def unknown(self, name: str, model: Model | None, *, found: bool) -> Reply:
        models, shown = self._models, repr(name[:200])
        if model is not None and model.disabled:
            return Reply(
                503,
                "no_healthy_target",
                f"Nobody is asked for the model {shown} now: those who run this gateway have "
                f"disabled {' and '.join(model.disabled)}.",
                [(b"x-should-retry", b"false")],
                param="model",
            )
        if found:
            missing = ", ".join(models.missing(name)) or "its provider"
            return Reply(
                503,
                "no_healthy_target",
                f"No provider for the model {shown} is configured: {missing} has no credential.",
                [(b"x-should-retry", b"false")],
                param="model",
            )
        near = get_close_matches(name[:100], models.names()[:1_000], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
        return Reply(
            404,
            "model_not_found",
            f"The model {shown} does not exist here.{hint} GET /v1/models lists those that do.",
            param="model",
        )


def not_allowed(message: str) -> Reply:
    return Reply(403, "model_not_allowed", message, param="model")


def shuffled(model: Model, name: str) -> Sequence[Target]:
    """The targets with, inside each priority, a weighted draw for first place and so on."""
    ordered: list[Target] = []
    for tier in model.tiers:
        ordered += [choice.at(name) for choice in sorted(tier, key=draw, reverse=True)]
    return ordered


def draw(choice: Choice) -> float:
    """Sorting by log(u)/w is a weighted draw without replacement; weight 0 always comes last."""
    return log(1.0 - random()) / choice.weight if choice.weight else -inf


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Alias]

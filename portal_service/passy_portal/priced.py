"""What the models of an organisation cost, as the gateway reckons it, of which nobody knows, and
what people set.

Who runs the gateway sets what shared providers cost, and an organisation what its own do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.models import PriceShown, price_shown
from passy_plugins.api.prices import check, settings_of, told
from passy_portal import operating
from passy_portal.pages.reading import LAST, days_before, spent_by
from passy_portal.view import console_of
from passy_proxy.prices import SET, price_of

if TYPE_CHECKING:
    from fastapi import Request

    from passy_plugins.api.prices import Rates
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console
    from passy_proxy import SetPrice


NOT_THEIRS = "What shared providers cost is set by who runs the gateway."


@dataclass(slots=True)
class Priced:
    """A model at a provider."""

    upstream: str
    """As gateway.yaml names it."""
    provider: str
    """As people do."""
    model: str
    price: PriceShown | None
    asked: bool
    """The price list is being asked."""
    names: list[str] = field(default_factory=list)
    """What it is asked for by."""

    ours: SetPrice | None = None
    """What somebody set it to. A gateway goes by it within seconds."""

    @property
    def target(self) -> str:
        return f"{self.upstream}/{self.model}"

    @property
    def overlaid(self) -> bool:
        """Whether the configuration says so, and not the price list."""
        return self.price is not None and self.price.source.startswith("prices: ")

    @property
    def unknown(self) -> bool:
        return self.price is None and not self.asked


async def prices(accounts: Accounts, visitor: Visitor, console: Console) -> list[Priced]:
    """By provider and model. Targets that stand for any name have no one price. Raises
    `GatewayAway`."""
    own = await accounts.admin.list_providers(visitor.organisation)
    called = {f"custom-{one.id}": one.name for one in own}
    answered = await console.get(f"/organisations/{visitor.organisation}/models")
    found: dict[tuple[str, str], Priced] = {}
    for row in answered["rows"]:
        for target in row["targets"] if row["allowed"] else ():
            if "*" in target["model"]:
                continue
            upstream, model, price = target["upstream"], target["model"], target["price"]
            known = PriceShown(**price) if price else None
            one = found.setdefault(
                (upstream, model),
                Priced(
                    upstream, called.get(upstream, upstream), model, known, target["price_asked"]
                ),
            )
            if row["name"] not in one.names:
                one.names.append(row["name"])
    for ours in await accounts.admin.list_prices():
        upstream, _, model = ours.target.partition("/")
        priced = found.get((upstream, model))
        if priced is None and upstream.startswith("custom-") and upstream not in called:
            continue  # Another organisation's.
        if priced is None:
            title = called.get(upstream, upstream)
            priced = found[upstream, model] = Priced(upstream, title, model, None, False)
        priced.ours = ours
        priced.price = price_shown(price_of(ours.target, settings_of(ours), SET))
        priced.asked = False
    return [found[key] for key in sorted(found)]


async def unpriced(accounts: Accounts, visitor: Visitor) -> dict[str, int]:
    """Models that were asked for in the last days → requests whose cost nobody knows."""
    sums = await spent_by(accounts.admin, visitor, "model", days_before(LAST))
    return {model: one.unpriced for model, one in sums.items() if one.unpriced}


async def may_set(request: Request, accounts: Accounts, visitor: Visitor, target: str) -> bool:
    """Whether it is theirs to say what ``target`` costs. 404 for the provider of others."""
    upstream = target.partition("/")[0]
    if not upstream.startswith("custom-"):
        return await operating.operates(request, accounts, visitor)
    own = await accounts.admin.list_providers(visitor.organisation)
    if upstream not in {f"custom-{one.id}" for one in own}:
        raise absent("provider")
    return True


async def set_price(
    request: Request, accounts: Accounts, visitor: Visitor, target: str, rates: Rates | None
) -> None:
    """``None`` leaves it to the configuration and the price list again. Raises `GatewayAway`; 403
    where it is not theirs to say, 404 for an upstream that there is not."""
    if not await may_set(request, accounts, visitor, target):
        raise Denied(403, "not_allowed", NOT_THEIRS)
    if rates is not None and not target.startswith("custom-"):
        rows = await console_of(request).get("/upstreams")
        check(target, [*(one["name"] for one in rows["rows"]), *rows["left_out"]])
    async with accounts.noting(visitor.who, "price.set", target) as noted:
        before = await accounts.admin.list_prices()
        was = next((one for one in before if one.target == target), None)
        noted.before = {"rates": was.rates if was else None}
        noted.after = {"rates": told(rates)}
        if noted.before == noted.after:
            noted.left_out = True
            return
        await accounts.admin.set_price(target, told(rates), visitor.user)

"""What the models of an organisation cost, as the gateway reckons it, and of which nobody knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from passy_plugins.api.models import PriceShown
from passy_portal.pages.reading import LAST, days_before, spent_by

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console


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
    told = await console.get(f"/organisations/{visitor.organisation}/models")
    found: dict[tuple[str, str], Priced] = {}
    for row in told["rows"]:
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
    return [found[key] for key in sorted(found)]


async def unpriced(accounts: Accounts, visitor: Visitor) -> dict[str, int]:
    """Models that were asked for in the last days → requests whose cost nobody knows."""
    sums = await spent_by(accounts.admin, visitor, "model", days_before(LAST))
    return {model: one.unpriced for model, one in sums.items() if one.unpriced}


def overlay(missing: list[Priced]) -> str:
    """What to add to gateway.yaml, with the prices to be filled in."""
    rows: list[Any] = [
        f"  {one.upstream}/{one.model}: {{input: 0.00, output: 0.00, per: 1M}}" for one in missing
    ]
    return "\n".join(["prices:", *rows])

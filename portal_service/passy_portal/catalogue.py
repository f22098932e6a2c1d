"""What can be asked for here: the gateway's models for an organisation, with what the books of the
last 24 hours say of each target."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic import Field

from passy_plugins.api.models import ModelShown, PriceShown, TargetShown
from passy_plugins.api.words import Shown, shown_at
from passy_portal.recent import Answered, Recent, recent

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console


class TargetSeen(TargetShown):
    title: str = Field(description="What people call the upstream.")
    requests: int = Field(description="Answered lately, of those for this model.")
    first_ms: int | None = Field(description="To the first byte, the median, of what ended well.")

    @property
    def pattern(self) -> bool:
        return "*" in self.model

    @property
    def known(self) -> list[str]:
        """What the price list knows of what it can do, as far as that has a price of its own."""
        return capabilities(self.price) if self.price is not None else []


class ModelSeen(ModelShown):
    targets: list[TargetSeen]  # type: ignore[assignment]
    requests: int = Field(description="Answered lately, by whomever.")

    @property
    def unpriced(self) -> bool:
        """Whether somebody may answer at a price that nobody knows."""
        return any(
            one.price is None and not one.price_asked and not one.pattern for one in self.targets
        )


class ModelsSeen(Shown):
    rows: list[ModelSeen]
    workers: int
    since: str = Field(description="What `requests` and `first_ms` are of; 24 hours or less.")


async def catalogue(accounts: Accounts, visitor: Visitor, console: Console) -> ModelsSeen:
    """Raises `GatewayAway`."""
    told = await console.get(f"/organisations/{visitor.organisation}/models")
    lately = await recent(accounts.admin, visitor)
    providers = await accounts.admin.list_providers(visitor.organisation)
    titles = {f"custom-{one.id}": one.name for one in providers}
    spread = _by_row([row["name"] for row in told["rows"]], lately)
    return ModelsSeen(
        rows=[_seen(row, titles, spread.get(row["name"], [])) for row in told["rows"]],
        workers=told["workers"],
        since=str(shown_at(lately.since / 1000)),
    )


_Found = tuple[str, str, Answered]
"""The upstream that answered, the model's name there, and how often."""


def _by_row(names: list[str], lately: Recent) -> dict[str, list[_Found]]:
    """Who answered, by the row of the table that was asked: the exact name, else the longest
    pattern."""
    exact = set(names)
    patterns = sorted((name for name in names if "*" in name), key=len, reverse=True)
    found: dict[str, list[_Found]] = {}
    for (model, upstream, there), answered in lately.targets.items():
        row = model if model in exact else next(
            (one for one in patterns if fnmatchcase(model, one)), None
        )  # fmt: skip
        if row is not None:
            found.setdefault(row, []).append((upstream, there, answered))
    return found


def _seen(row: dict[str, Any], titles: dict[str, str], spread: list[_Found]) -> ModelSeen:
    targets = []
    for one in row["targets"]:
        mine = [each for upstream, there, each in spread
                if upstream == one["upstream"] and fnmatchcase(there, one["model"])]  # fmt: skip
        both = Answered(
            sum(each.requests for each in mine), [ms for each in mine for ms in each.firsts]
        )
        title = titles.get(one["upstream"], one["upstream"])
        targets.append(
            TargetSeen(**one, title=title, requests=both.requests, first_ms=both.first_ms)
        )
    requests = sum(each.requests for _, _, each in spread)
    return ModelSeen(**{**row, "targets": targets}, requests=requests)


def capabilities(price: PriceShown) -> list[str]:
    """In words: a kind of tokens that has a price of its own is one that the model knows."""
    said = []
    if price.cached != price.input:
        said.append("prompt cache")
    if price.reasoning != price.output:
        said.append("reasoning")
    if price.audio_input != price.input or price.audio_output != price.output:
        said.append("audio")
    if price.above is not None:
        said.append(f"other prices above {price.above:,} tokens")
    return said

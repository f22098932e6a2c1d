"""What can be asked for here: the gateway's models for an organisation, with what the books of the
last 24 hours say of each target."""

from __future__ import annotations

from datetime import datetime
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
    switched_by: str = Field(
        description="Who pinned or disabled it; told to those who run the gateway."
    )
    requests: int = Field(description="Answered lately, of those for this model.")
    first_ms: int | None = Field(description="To the first byte, the median, of what ended well.")

    @property
    def label(self) -> str:
        """As switches name it."""
        return f"{self.upstream}/{self.model}"

    @property
    def switched_at(self) -> float:
        """Unix seconds; 0 where nobody decided anything."""
        return datetime.fromisoformat(self.switch.at).timestamp() if self.switch else 0.0

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
    def answering(self) -> int:
        """How many of its targets are not switched off."""
        return sum(one.switch is None or one.switch.state == "pinned" for one in self.targets)

    @property
    def unpriced(self) -> bool:
        """Whether somebody may answer at a price that nobody knows."""
        return any(
            one.price is None and not one.price_asked and not one.pattern for one in self.targets
        )


class ModelsSeen(Shown):
    rows: list[ModelSeen]
    switchable: bool = Field(description="Whether the gateway goes by what is switched here.")
    workers: int
    since: str = Field(description="What `requests` and `first_ms` are of; 24 hours or less.")


async def catalogue(
    accounts: Accounts, visitor: Visitor, console: Console, *, runs: bool
) -> ModelsSeen:
    """``runs``: whether they run the gateway, and are told whose decisions are shown. Raises
    `GatewayAway`."""
    told = await console.get(f"/organisations/{visitor.organisation}/models")
    lately = await recent(accounts.admin, visitor)
    providers = await accounts.admin.list_providers(visitor.organisation)
    titles = {f"custom-{one.id}": one.name for one in providers}
    spread = _by_row([row["name"] for row in told["rows"]], lately)
    switched = [one["switch"] for row in told["rows"] for one in row["targets"] if one["switch"]]
    for one in switched if not runs else ():
        one["by"] = ""
    people = await _people(accounts, {one["by"] for one in switched if one["by"]})
    return ModelsSeen(
        rows=[
            _seen(row, titles, people, spread.get(row["name"], []), held=told["switchable"])
            for row in told["rows"]
        ],
        switchable=told["switchable"],
        workers=told["workers"],
        since=str(shown_at(lately.since / 1000)),
    )


_Found = tuple[str, str, Answered]
"""The upstream that answered, the model's name there, and how often."""


async def _people(accounts: Accounts, ids: set[str]) -> dict[str, str]:
    """What users are called."""
    found = {id: await accounts.admin.get_user(id) for id in ids}
    return {id: (one.email or one.name or id) if one else "somebody who left"
            for id, one in found.items()}  # fmt: skip


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


_ORDER = {"pinned": -1, "disabled": 1}
"""Of targets that are switched, among the others: who is asked first stands first."""


def _seen(
    row: dict[str, Any],
    titles: dict[str, str],
    people: dict[str, str],
    spread: list[_Found],
    *,
    held: bool,
) -> ModelSeen:
    """``held``: whether the gateway goes by what is switched."""
    targets = []
    for one in row["targets"]:
        mine = [each for upstream, there, each in spread
                if upstream == one["upstream"] and fnmatchcase(there, one["model"])]  # fmt: skip
        both = Answered(
            sum(each.requests for each in mine), [ms for each in mine for ms in each.firsts]
        )
        title = titles.get(one["upstream"], one["upstream"])
        by = people.get(one["switch"]["by"], "") if one["switch"] else ""
        targets.append(
            TargetSeen(**one, title=title, switched_by=by, requests=both.requests,
                       first_ms=both.first_ms)
        )  # fmt: skip
    if held:
        targets.sort(key=lambda one: _ORDER[one.switch.state] if one.switch else 0)
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

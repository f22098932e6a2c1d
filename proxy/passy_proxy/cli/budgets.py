"""Add, list, change and remove budgets of organisations, teams, users and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from passy_proxy import json
from passy_proxy.cli._books import Dollars, Setting, on_books, print_table, run, tell_all
from passy_proxy.cli._shown import budget_dict
from passy_proxy.cli._terms import fail
from passy_proxy.issue import DEFAULT_ALERTS, KINDS, NewBudget, StoredBudget
from passy_proxy.periods import PERIODS
from passy_proxy.units import Count

NANOS = 10**9
"""In a dollar."""


class Percents(click.ParamType[tuple[int, ...]]):
    name = "50,80,100"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            return tuple(int(each) for each in value.split(",") if each.strip())
        except ValueError:
            self.fail("write percentages with commas, such as 50,80,100", param, ctx)


AMOUNTS = (
    click.option("--usd", type=Dollars(), help="US dollars."),
    click.option("--tokens", type=Setting(Count, "10M"), help="Tokens in and out."),
    click.option("--soft/--hard", default=None, help="Only tell, or refuse what is beyond it."),
    click.option("--alerts", type=Percents(), help="Percentages at which somebody is told."),
)


def amount_options(command: Any) -> Any:
    for option in reversed(AMOUNTS):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """Add, list, change and remove budgets of organisations, teams, users and keys."""


@command.command()
@on_books
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("subject", metavar="ID")
@amount_options
@click.option("--per", "period", type=click.Choice(PERIODS), default="month", help="[month]")
def add(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    kind: Any,
    subject: str,
    **given: Any,
) -> None:
    """Set a budget in dollars or tokens."""
    if (given["usd"] is None) == (given["tokens"] is None):
        raise click.UsageError("give either --usd or --tokens")
    new = NewBudget(
        kind,
        subject,
        "tokens" if given["usd"] is None else "usd",
        given["tokens"] if given["usd"] is None else round(given["usd"] * NANOS),
        given["period"],
        not given["soft"],
        DEFAULT_ALERTS if given["alerts"] is None else given["alerts"],
    )
    made = run(lambda store: store.add_budget(new), config, data, url)
    click.echo(json.dumps(budget_dict(made)).decode() if as_json else made.budget.id)


@command.command("list")
@on_books
@click.option("--kind", type=click.Choice(KINDS), help="Only those of this kind.")
@click.option("--of", "subject", help="Only those of what has this id.")
def list_(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    kind: Any,
    subject: str | None,
) -> None:
    """List the budgets, oldest first."""
    found = run(lambda store: store.list_budgets(kind, subject), config, data, url)
    tell_all(
        map(budget_dict, found),
        ("ID", "Of", "Budget", "Per", "Beyond it"),
        map(_row, found),
        "no budgets yet; try: passy budgets add KIND ID --usd 100",
        as_json,
    )


@command.command()
@on_books
@click.argument("id", metavar="ID")
@amount_options
def change(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str, **given: Any
) -> None:
    """Change a budget. What was spent stays spent; gateways follow within seconds."""

    async def work(store: Any) -> StoredBudget | None:
        known: StoredBudget | None = await store.get_budget(id)
        if known is None:
            return None
        said: dict[str, Any] = {}
        unit = known.budget.unit
        if given["tokens" if unit == "usd" else "usd"] is not None:
            raise ValueError(f"{id} is a budget in {unit}; add another one")
        if given[unit] is not None:
            said["amount"] = round(given["usd"] * NANOS) if unit == "usd" else given["tokens"]
        if given["soft"] is not None:
            said["hard"] = not given["soft"]
        if given["alerts"] is not None:
            said["alerts"] = given["alerts"]
        await store.change_budget(id, **said)
        changed: StoredBudget | None = await store.get_budget(id)
        return changed

    found = run(work, config, data, url)
    if found is None:
        fail(f"there is no budget {id}; try: passy budgets list")
    if as_json:
        click.echo(json.dumps(budget_dict(found)))
    else:
        print_table(("ID", "Of", "Budget", "Per", "Beyond it"), [_row(found)])


@command.command()
@on_books
@click.argument("id", metavar="ID")
def remove(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Take a budget away."""
    if not run(lambda store: store.remove_budget(id), config, data, url):
        fail(f"there is no budget {id}; try: passy budgets list")
    click.echo(json.dumps({"id": id, "removed": True}) if as_json else f"{id} is removed")


def _row(stored: StoredBudget) -> tuple[str, ...]:
    budget = stored.budget
    if budget.unit == "usd":
        amount = f"${budget.amount / NANOS:.12g}"
    else:
        amount = f"{budget.amount:,} tokens"
    beyond = "refuse" if budget.hard else "tell"
    return budget.id, f"{stored.kind} {stored.subject}", amount, budget.period, beyond

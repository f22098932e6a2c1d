"""Show what was asked and spent: a table with a line of each, as Usage in the portal has it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click

from passy_proxy import json
from passy_proxy.cli._books import on_books, run
from passy_proxy.cli._terms import fail
from passy_proxy.config.problem import printable
from passy_proxy.units import parse_duration

HOUR, DAY = 3_600_000, 86_400_000
UNITS = {"hour": HOUR, "day": DAY}
BY = {
    "model": "model",
    "provider": "upstream",
    "upstream-model": "upstream_model",
    "key": "key",
    "team": "team",
    "user": "user",
    "organisation": "organisation",
    "tag": "tag",
    "route": "route",
    "outcome": "outcome",
    "status": "status",
}
"""What people call a dimension → what the books do."""
ORDERS = ("cost", "requests", "tokens")
STEPS = "▁▂▃▄▅▆▇█"
MOST_STEPS = 48
"""Of a line; a longer time is told in fewer, wider ones."""


class Since(click.ParamType[int]):
    """``7d`` or ``24h``, as whole days or hours of UTC that end with the one that runs; or a date.
    Milliseconds."""

    name = "7d|24h|DATE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        now = int(time.time() * 1000)
        try:
            return _day(date.fromisoformat(value))
        except ValueError:
            pass
        try:
            length = round(parse_duration(value) * 1000)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        unit = HOUR if length == DAY or (length < 2 * DAY and length % DAY) else DAY
        if not 0 < length <= now:
            self.fail("write how long ago, such as 7d, or a date", param, ctx)
        return int(now // unit * unit + unit - max(length // unit, 1) * unit)


class Until(click.ParamType[int]):
    """A date, which is the last one. Milliseconds of its end."""

    name = "DATE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return _day(date.fromisoformat(value)) + DAY
        except ValueError:
            self.fail("write a date such as 2027-01-31", param, ctx)


def _day(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY


def narrowing(command: Any) -> Any:
    for name in reversed(BY):
        command = click.option(f"--{name}", metavar="NAME", help=f"Only of this {name}.")(command)
    return command


@click.command()
@on_books
@click.option("--by", type=click.Choice(list(BY)), default="model", help="[model]")
@click.option("--since", type=Since(), default="7d", help="How long, or from which day on. [7d]")
@click.option("--until", type=Until(), help="The last day. [today]")
@click.option("--unit", type=click.Choice(list(UNITS)), help="Of the line. [day; hour up to 2d]")
@click.option("--order", type=click.Choice(ORDERS), default="cost", help="What comes first. [cost]")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, help="Rows shown. [20]")
@click.option("--csv", "as_csv", is_flag=True, help="Each day or hour as a line of CSV; all rows.")
@narrowing
def command(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, **given: Any
) -> None:
    """Show what was asked and spent.

    Days and hours are those of UTC, the one that runs among them. A key, team or user is named by
    its id. --csv has the columns of the file that Usage in the portal gives.
    """
    until = given["until"] or int(time.time() * 1000) // HOUR * HOUR + HOUR
    if given["since"] >= until:
        raise click.BadParameter("it is after --until", param_hint="--since")
    unit = given["unit"] or ("hour" if until - given["since"] <= 2 * DAY else "day")
    if given["until"] is None and unit == "day":
        until = int(time.time() * 1000) // DAY * DAY + DAY
    values = {BY[name]: v for name in BY if (v := given[name.replace("-", "_")]) is not None}
    question = Question(given["since"], until, unit, given["by"], values, given["order"])
    if given["as_csv"]:
        run(lambda store: write_csv(store, question), config, data, url)
        return
    told = run(lambda store: asked_of(store, question), config, data, url)
    if as_json:
        click.echo(json.dumps(as_dict(told)))
    else:
        draw(told, given["limit"])


@dataclass(frozen=True, slots=True)
class Question:
    since: int
    until: int
    unit: str
    by: str
    values: Mapping[Any, str]
    order: str

    @property
    def starts(self) -> Sequence[int]:
        step = UNITS[self.unit]
        return range(self.since // step * step, self.until, step)


@dataclass(frozen=True, slots=True)
class Row:
    value: str
    name: str
    """What people call it."""
    sums: Any
    pace: Any
    line: Sequence[int]
    """What it is put in order by, at each start."""


@dataclass(frozen=True, slots=True)
class Told:
    question: Question
    totals: Any
    pace: Any
    rows: Sequence[Row]


async def asked_of(store: Any, question: Question) -> Told:
    """What the books of ``store`` say."""
    from passy_plugins.stores.sql.reports import Asked, Pace

    reports = reports_of(store)
    asked = Asked(question.since, question.until, question.values)
    by: Any = BY[question.by]
    names = await names_of(store, question.by)
    totals = await reports.totals(asked)
    nothing = Pace(0, ())
    pace = await reports.pace(asked)
    paces = await reports.pace(asked, "total", [by])
    counted = {"cost": ("cost_nanos",), "requests": ("requests",), "tokens": ("input", "output")}
    lines = await reports.series(asked, question.unit, [by], counted[question.order])
    rows = []
    async for groups in reports.all_groups(asked, "total", [by], question.order):
        for group in groups:
            value = group.by[0]
            line = [sum(lines.get((at, (value,)), (0,))) for at in question.starts]
            name = names.get(value, value) or "none"
            rows.append(Row(value, name, group.sums, paces.get((None, (value,)), nothing), line))
    return Told(question, totals, pace.get((None, ()), nothing), rows)


async def write_csv(store: Any, question: Question) -> None:
    from passy_plugins.api.files import csv_of
    from passy_plugins.api.usage import Counts, bin_of, flat
    from passy_plugins.stores.sql.reports import Asked

    asked = Asked(question.since, question.until, question.values)
    names = await names_of(store, question.by)
    by: Any = BY[question.by]
    columns = [question.unit, question.by, "name", *Counts.model_fields]
    out = sys.stdout.buffer
    out.write(csv_of([dict(zip(columns, columns, strict=True))], columns))
    async for groups in reports_of(store).all_groups(asked, question.unit, [by], "time"):
        lines = []
        for group in groups:
            line = flat(bin_of(group, [question.by]))
            at = line.pop("at")
            line[question.unit] = at[:10] if question.unit == "day" else at
            line["name"] = names.get(group.by[0], "")
            lines.append(line)
        out.write(csv_of(lines, columns))
    out.flush()


def reports_of(store: Any) -> Any:
    reports = getattr(store, "reports", None)
    if reports is None:
        fail("this store keeps no books that can be asked")
    return reports


async def names_of(store: Any, by: str) -> Mapping[str, str]:
    """Of ids, what people call them."""
    if by == "key":
        return {key.id: key.name or key.shown for key in await store.list_keys(None, deleted=True)}
    if by == "team":
        return {team.id: team.name for team in await store.list_teams()}
    if by == "user":
        return {user.id: user.email or user.name for user in await store.list_users()}
    if by == "organisation":
        return {each.id: each.name for each in await store.list_organisations()}
    if by == "provider":
        return {f"custom-{each.id}": each.name for each in await store.list_providers()}
    return {}


def as_dict(told: Told) -> dict[str, Any]:
    """For a program; times in ISO 8601, money in dollars as text."""
    from passy_plugins.api.usage import counts

    question = told.question

    def facts(sums: Any, pace: Any) -> dict[str, Any]:
        said = {"p50_first_ms": pace.percentile(0.5), "p95_first_ms": pace.percentile(0.95)}
        return counts(sums) | said

    return {
        "since": moment(question.since),
        "until": moment(question.until),
        "unit": question.unit,
        "by": question.by,
        "order": question.order,
        "starts": [moment(at) for at in question.starts],
        "rows": [
            {"value": row.value, "name": row.name, **facts(row.sums, row.pace), "line": row.line}
            for row in told.rows
        ],
        "totals": facts(told.totals, told.pace),
    }


def moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def draw(told: Told, limit: int) -> None:
    """A table for people. Where there is no room the line goes first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    question, totals = told.question, told.totals
    if not totals.requests:
        click.echo("nothing was asked in this time")
        return
    titles = ["Cost", "Requests", "Failed"]
    if console.width >= 100:
        titles += ["In", "Out"]
    if console.width >= 76:
        titles += ["p50", "p95"]
    cells = [dict(zip(CELLS, cells_of(row), strict=True)) for row in told.rows[:limit]]
    taken = sum(3 + max(len(t), *(len(each[t]) for each in cells)) for t in titles)
    longest = max(len(row.name) for row in told.rows[:limit])
    name = max(8, min(longest, 40, console.width - taken - len(STEPS) - 6))
    room = max(len(STEPS), min(MOST_STEPS, console.width - name - taken - 6))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(question.by.capitalize(), overflow="fold", min_width=name, max_width=name)
    table.add_column("Cost", justify="right", no_wrap=True)
    table.add_column(f"By {question.unit}", no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row, told_ in zip(told.rows, cells, strict=False):
        line = spark(row.line, room)
        texts = [printable(row.name), told_["Cost"], line, *(told_[title] for title in titles[1:])]
        table.add_row(*map(Text, texts))
    since, until = (moment(at)[:16].replace("T", " ") for at in (question.since, question.until))
    console.print(Text(f"{since} to {until} UTC", style="dim"))
    console.print(table)
    if (more := len(told.rows) - limit) > 0:
        console.print(Text(f"… and {more} more: --limit {len(told.rows)}", style="dim"))
    failed = 100 * (totals.requests - totals.ok) / totals.requests
    console.print(
        f"[bold]{money(totals.cost_nanos)}[/] for {totals.requests:,} requests,"
        f" {failed:.1f} % failed, {totals.saved:,} saved by fallback;"
        f" first token p50 {ms(told.pace.percentile(0.5))},"
        f" p95 {ms(told.pace.percentile(0.95))}",
        highlight=False,
    )
    if totals.unpriced:
        console.print(
            f"[yellow]+ {totals.unpriced:,} requests have no known price:"
            " the cost is a lower bound",
            highlight=False,
        )


CELLS = ("Cost", "Requests", "Failed", "In", "Out", "p50", "p95")


def cells_of(row: Row) -> Sequence[str]:
    sums = row.sums
    return (
        money(sums.cost_nanos) + ("+" if sums.unpriced else ""),
        f"{sums.requests:,}",
        f"{sums.requests - sums.ok:,}",
        short(sums.input),
        short(sums.output),
        ms(row.pace.percentile(0.5)),
        ms(row.pace.percentile(0.95)),
    )


def spark(values: Sequence[int], room: int = MOST_STEPS) -> str:
    """A line of bars, the highest of them full; nothing is a space, and little is seen. In less
    ``room`` several values share a bar."""
    width = max(1, -(-len(values) // room))
    summed = [sum(values[n : n + width]) for n in range(0, len(values), width)]
    top = max(summed, default=0)
    return "".join(
        STEPS[max(0, -(-value * len(STEPS) // top) - 1)] if value > 0 else " " for value in summed
    )


def money(nanos: int) -> str:
    """Cents from a dollar on, three digits that count below."""
    if nanos >= 10**9 or nanos == 0:
        return f"${nanos / 10**9:,.2f}"
    return f"${float(f'{nanos / 10**9:.3g}'):.12f}".rstrip("0")


def short(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= size:
            return f"{number / (1_000 if unit == 'k' else size):.3g} {unit}"
    return f"{number:,}"


def ms(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value} ms" if value < 1_000 else f"{value / 1000:.1f} s"

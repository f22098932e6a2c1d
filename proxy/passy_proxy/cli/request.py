"""Show one request with its tries, drawn as a line of time."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import click

from passy_proxy import json, retold
from passy_proxy.cli._books import on_books, run
from passy_proxy.cli._exchanges import (
    COLOURS,
    books_of,
    exchange_dict,
    key_name,
    money,
    status,
)
from passy_proxy.cli._terms import fail
from passy_proxy.config.problem import printable
from passy_proxy.records import UsageRecord

PARTS = {
    "queue": ("·", "white", "waits for a free connection"),
    "connect": ("-", "magenta", "connects"),
    "head": ("░", "blue", "waits for the head"),
    "stream": ("█", "green", "the answer"),
    "failed": ("▒", "red", "failed"),
}
"""Part of a try → its sign, its colour, and what it is."""


@click.command()
@on_books
@click.argument("request_id", metavar="ID")
def command(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, request_id: str
) -> None:
    """Show one request with its tries, drawn as a line of time.

    ID is what clients get as x-request-id.
    """

    async def work(store: object) -> tuple[UsageRecord, str] | None:
        books = books_of(store)
        record = await books.exchanges.exchange(request_id)
        return None if record is None else (record, await key_name(books, record.key_id, {}))

    found = run(work, config, data, url)
    if found is None:
        fail(f"no request {request_id} in the books; it is there a moment after it has ended")
    record, key = found
    if as_json:
        click.echo(json.dumps(exchange_dict(record)))
        return
    for line in told(record, key, shutil.get_terminal_size().columns):
        click.echo(line)


def told(record: UsageRecord, key: str, width: int) -> list[str]:
    """For people."""
    at = datetime.fromtimestamp(record.at, UTC)
    model, answered = printable(record.model) or record.route, printable(record.upstream_model)
    asked = f"{model} → {record.upstream}/{answered}" if record.upstream else model
    facts = [
        f"{at:%Y-%m-%d %H:%M:%S} UTC",
        record.route,
        *([f"key {printable(key)}"] if key else []),
    ]
    lines = [
        f"{click.style(asked, bold=True)}  {status(record)} {record.outcome}",
        click.style(" · ".join(facts), dim=True),
        click.style(record.id, dim=True),
        "",
        retold.meaning(record).replace("`", ""),
    ]
    lines += [f"{flag}  {retold.FLAGS[flag]}" for flag in retold.flags(record)]
    if record.attempts:
        lines += ["", *drawn(record, width)]
    if took := retold.filters_of(record):
        each = " · ".join(f"{one.filter} {one.ms:.3g} ms" for one in took)
        lines += ["", f"filters: {each}"]
    return [*lines, "", summed(record)]


def summed(record: UsageRecord) -> str:
    """What it came to, in one line."""
    parts = [f"{record.duration_ms:,} ms in all"]
    if record.first_ms:
        parts.append(f"first byte after {record.first_ms:,} ms")
    cached = f" ({record.cached:,} cached)" if record.cached else ""
    thought = f" ({record.reasoning:,} for reasoning)" if record.reasoning else ""
    parts.append(f"tokens {record.input:,} in{cached}, {record.output:,} out{thought}")
    if record.estimated:
        parts.append("estimated")
    if record.cost_nanos is None:
        parts.append("no price known")
    else:
        parts.append(
            f"{money(record.cost_nanos)}" + (f" at {record.price}" if record.price else "")
        )
    return " · ".join(parts)


def drawn(record: UsageRecord, width: int) -> list[str]:
    """One line for each try, its reasons below it, and what the signs are."""
    names = [f"{printable(each.upstream)} {retold.mark(each)}" for each in record.attempts]
    left = min(max(map(len, names)), 28)
    room = max(20, min(width, 110) - left - 4)
    end, lines, met = retold.end_of(record), [], dict[str, None]()
    for place, attempt in enumerate(record.attempts):
        bar, at = "", 0
        for part in retold.parts(record, place):
            met[part.name] = None
            start = min(max(at, part.start * room // end), room - 1)
            stop = max(start + 1, part.end * room // end)
            sign, colour, _ = PARTS[part.name]
            bar += " " * (start - at) + click.style(sign * (stop - start), fg=colour)
            at = stop
        colour = COLOURS["failed" if attempt.failure else "ok"]
        lines.append(f"  {click.style(names[place][:left].ljust(left), fg=colour)}  {bar}")
        lines += [f"  {' ' * left}  {line}" for line in reasons(record, place)]
    scale = f"{end:,} ms"
    lines.append(click.style(f"  {' ' * left}  0{scale:>{room - 1}}", dim=True))
    signs = [f"{click.style(PARTS[name][0], fg=PARTS[name][1])} {PARTS[name][2]}" for name in met]
    return [*lines, f"  {' ' * left}  {'  '.join(signs)}"]


def reasons(record: UsageRecord, place: int) -> list[str]:
    """When a try was made, how long its parts took, and why it is no answer."""
    attempt = record.attempts[place]
    took = [f"{part.name} {part.end - part.start:,} ms" for part in retold.parts(record, place)]
    lines = [click.style(f"after {attempt.started_ms:,} ms: {', '.join(took)}", dim=True)]
    if attempt.failure:
        detail = retold.detail(attempt)
        lines.append(retold.reason(attempt) + (f": {printable(detail)}" if detail else ""))
    if attempt.maybe_billed:
        lines.append("the provider may have billed it")
    return lines

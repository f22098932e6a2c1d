"""What a chart and the table beside it show: one measure by time, for a few groups and the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.sql.reports import Asked, Pace, Reports, Sums
from passy_portal.figures import NONE, count, milliseconds, money
from passy_portal.spans import Span

if TYPE_CHECKING:
    from passy_portal.figures import Told

MOST = 5
"""Groups with a colour of their own; the others are one."""


Found = Mapping[tuple[int | None, tuple[str, ...]], Sequence[int]]
"""As `Reports.series` gives it."""


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    counted: Sequence[str]
    """The fields of `Sums` that it is made of."""
    of: Callable[..., int]
    """Of the values of those."""
    told: Told

    def of_sums(self, sums: Sums) -> int:
        return self.of(*(getattr(sums, name) for name in self.counted))


MEASURES: dict[str, Measure] = {
    "cost": Measure("Cost", ("cost_nanos",), int, money),
    "requests": Measure("Requests", ("requests",), int, count),
    "tokens": Measure("Tokens", ("input", "output"), lambda read, written: read + written, count),
    "errors": Measure("Errors", ("requests", "ok"), lambda all, ok: all - ok, count),
}
LATENCY = "latency"
PERCENTILES = {"half": 0.5, "nearly all": 0.95}
SHOWS = {**{name: each.name for name, each in MEASURES.items()}, LATENCY: "First byte"}


@dataclass(frozen=True, slots=True)
class Series:
    """``values``: for each start of the span one of each name."""

    names: Sequence[str]
    values: Sequence[Sequence[int | None]]
    told: Told
    before: Sequence[int] = ()
    """All names together, in the time before."""


def by_groups(
    span: Span, measure: Measure, first: Mapping[str, str], found: Found, all: Sequence[int] | None
) -> Series:
    """``first``: values that have a name of their own; ``found``: what there is of them, by time.
    ``all``: what all there is comes to, of which the rest is the others'; ``None`` where one
    request may be of several."""
    columns = {value: place for place, value in enumerate(first)}
    places = {start: place for place, start in enumerate(span.starts)}
    values = [[0] * (len(first) + 1) for _ in places]
    for (at, (value,)), counts in found.items():
        values[places[at or 0]][columns.get(value, len(first))] += measure.of(*counts)
    if all is not None:
        for row, of_all in zip(values, all, strict=True):
            row[-1] = of_all - sum(row[:-1])
    names = [*first.values(), "others"]
    if not any(row[-1] for row in values) and len(names) > 1:
        names, values = names[:-1], [row[:-1] for row in values]
    return Series(names, values, measure.told)


def ended(span: Span, found: Iterable[tuple[int | None, int, int]]) -> Series:
    """Requests, those that ended well and the others; ``found``: times, requests, and how many of
    them ended well."""
    values = {start: [0, 0] for start in span.starts}
    for at, requests, ok in found:
        values[at or 0][0] += ok
        values[at or 0][1] += requests - ok
    return Series(["ended well", "failed"], list(values.values()), count)


async def whole(reports: Reports, asked: Asked, span: Span, measure: Measure) -> list[int]:
    """A measure of all there is, by time."""
    found = await reports.series(asked, span.unit, (), measure.counted)
    nothing = (0,) * len(measure.counted)
    return [measure.of(*found.get((start, ()), nothing)) for start in span.starts]


async def pace(reports: Reports, asked: Asked, span: Span) -> Series:
    """Milliseconds to the first byte of an answer: p50 and p95."""
    found = await reports.pace(asked, span.unit)
    values = [
        [found.get((start, ()), Pace()).percentile(part) for part in PERCENTILES.values()]
        for start in span.starts
    ]
    return Series(["p50", "p95"], values, milliseconds)


def change(now: int, before: int) -> str:
    """``+12 %``, ``39 times``; a dash where there was nothing before."""
    if not before:
        return "new" if now else NONE
    if now >= 10 * before:
        return f"{now / before:,.0f} times"
    percent = 100 * (now - before) / before
    return "unchanged" if abs(percent) < 0.5 else f"{percent:+.0f} %"


def as_rows(span: Span, series: Series) -> list[tuple[str, Sequence[Any], int | None]]:
    """For the table: label, values, and what all came to in the time before."""
    before: Sequence[int | None] = series.before or [None] * len(span.starts)
    return list(zip(span.labels, series.values, before, strict=True))

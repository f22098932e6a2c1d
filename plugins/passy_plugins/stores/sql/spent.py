"""What many have spent in several spans of whole days, in one look at the books.

It is what `Books.spent` says of each: sums of days, and records that are in no sum yet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Select, case, func, select, text, union_all

from passy_plugins.stores.sql.counted import capped
from passy_plugins.stores.sql.schema import usage, usage_days
from passy_plugins.stores.sql.sums import SUBJECTS

if TYPE_CHECKING:
    from sqlalchemy import Row

    from passy_proxy.issue import Kind

Span = tuple[int, int]
"""From and before, in milliseconds of Unix time: both begin a day of UTC."""


class Spent(NamedTuple):
    nanos: int = 0
    """Billionths of a dollar."""
    tokens: int = 0


def spent_in(kind: Kind, subjects: Collection[str], spans: Sequence[Span]) -> Select[Any]:
    """A row for each of the ``subjects`` that spent something: its id, and of each span dollars and
    tokens."""
    name = SUBJECTS[kind]
    begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    c = usage_days.c
    days = select(
        c[name].label("subject"), c.start.label("at"), c.cost_nanos.label("nanos"),
        (c.input + c.output).label("tokens"),
    ).where(
        c[name].in_(subjects), text(f"usage_days.{name} <> ''"), c.start >= begin, c.start < end
    )  # fmt: skip
    at = usage.c.at + 0  # As an expression: those few are found by being in no sum.
    late = select(
        usage.c[name], usage.c.at, capped("cost_nanos"), capped("input") + capped("output")
    ).where(text("usage.summed = 0"), at >= begin, at < end, usage.c[name].in_(subjects))
    rows = union_all(days, late).subquery()
    sums = []
    for place, (first, last) in enumerate(spans):
        within = (rows.c.at >= first) & (rows.c.at < last)
        for each in ("nanos", "tokens"):
            value = func.sum(case((within, rows.c[each]), else_=0))
            sums.append(value.label(f"{each}{place}"))
    return select(rows.c.subject, *sums).group_by(rows.c.subject)


def told(rows: Sequence[Row[Any]]) -> Mapping[str, Sequence[Spent]]:
    """Of the rows of `spent_in`: subject → what it spent in each span."""
    return {
        row[0]: [Spent(int(row[n]), int(row[n + 1])) for n in range(1, len(row), 2)] for row in rows
    }

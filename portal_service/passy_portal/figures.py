"""Numbers for people: money to the last digit that counts, tokens that fit, and bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from passy_proxy.units import dollars

NANOS = 1_000_000_000
NONE = "\N{EN DASH}"
Told = Callable[[Any], str]
"""Makes text of a value."""


def money(nanos: int | None) -> str:
    """US dollars: cents from a dollar on, three digits that count below, and zero only where it is
    zero."""
    if nanos is None:
        return NONE
    if abs(nanos) >= NANOS or nanos == 0:
        cents = round(abs(nanos) / 10_000_000)
        return f"{'-' if nanos < 0 else ''}${cents // 100:,}.{cents % 100:02}"
    rounded = round(nanos, min(0, 3 - len(str(abs(nanos)))))
    text = dollars(rounded)
    whole, _, rest = text.partition(".")
    return f"{'-' if nanos < 0 else ''}${whole.lstrip('-')}.{rest.ljust(2, '0')}"


def count(number: int) -> str:
    """``12,345``."""
    return f"{number:,}"


def short(number: int) -> str:
    """``9,999``, ``12.3 k``, ``130 M``: for places with the whole number beside them."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**4, "k")):
        if abs(number) >= size:
            value = number / (1_000 if unit == "k" else size)
            return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:,.0f} {unit}"
    return count(number)


def milliseconds(ms: int | None) -> str:
    """``850 ms``, ``2.4 s``."""
    if ms is None:
        return NONE
    return f"{ms:,} ms" if ms < 1_000 else f"{ms / 1000:,.1f} s"


def percent(part: float, whole: float) -> str:
    """``0.4 %``; a dash of nothing."""
    if not whole:
        return NONE
    value = 100 * part / whole
    return f"{value:.1f} %" if 0 < value < 10 else f"{value:.0f} %"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar, in hundredths of the chart."""

    y: float
    height: float
    series: int
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    width: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Stacked bars, lines, or both. The numbers beside it are text of the page, so that they keep
    their size."""

    bars: tuple[Bar, ...]
    names: tuple[str, ...]
    """Of the series."""
    top: int
    """What its upper edge stands for."""
    labels: tuple[str, ...]
    """Of the first, the middle and the last bar."""
    lines: tuple[str, ...] = ()
    """Paths of SVG."""


def stacked(
    labels: Sequence[str],
    names: Sequence[str],
    values: Sequence[Sequence[int | None]],
    told: Told,
    before: Sequence[int] = (),
) -> Chart:
    """``values``: for each label one of each name; ``before``: what all of them came to in a time
    before, drawn as a line."""
    top = nice(max((*(sum(each or 0 for each in row) for row in values), *before), default=0))
    step = 100 / max(len(labels), 1)
    bars = []
    for place, (label, row) in enumerate(zip(labels, values, strict=True)):
        pieces, floor = [], 100.0
        for series, value in enumerate(row):
            if value:
                height = max(100 * value / top, 0.4)
                floor -= height
                name = names[series]
                title = f"{label}{f' · {name}' if name else ''}: {told(value)}"
                pieces.append(Piece(round(floor, 3), round(height, 3), series, title))
        bars.append(Bar(round(place * step + step * 0.12, 3), round(step * 0.76, 3), tuple(pieces)))
    lines = (_line(before, top),) if before else ()
    return Chart(tuple(bars), tuple(names), top, _marks(labels), lines)


def lined(
    labels: Sequence[str], names: Sequence[str], values: Sequence[Sequence[int | None]]
) -> Chart:
    """Lines, which end where there is no value; ``values`` as for `stacked`."""
    top = nice(max((value for row in values for value in row if value is not None), default=0))
    columns = [[row[series] for row in values] for series in range(len(names))]
    return Chart((), tuple(names), top, _marks(labels), tuple(_line(each, top) for each in columns))


def _marks(labels: Sequence[str]) -> tuple[str, ...]:
    return (labels[0], labels[len(labels) // 2], labels[-1]) if labels else ()


def _line(values: Sequence[int | None], top: int) -> str:
    """As a path of SVG. A value that stands alone is a short stroke."""
    step = 100 / max(len(values), 1)
    parts, open_ = [], False
    for place, value in enumerate(values):
        if value is None:
            open_ = False
            continue
        x, y = round((place + 0.5) * step, 3), round(100 - 100 * value / top, 3)
        parts.append(f"L{x} {y}" if open_ else f"M{round(x - step * 0.2, 3)} {y}L{x} {y}")
        open_ = True
    return "".join(parts)


def nice(value: int) -> int:
    """The next round number: 1, 2 or 5 with zeros."""
    if value <= 1:
        return 1
    size: int = 10 ** (len(str(value)) - 1)
    return next(size * step for step in (1, 2, 5, 10) if size * step >= value)

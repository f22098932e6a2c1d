"""Numbers for people: money to the last digit that counts, tokens that fit, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passy_proxy.units import dollars

NANOS = 1_000_000_000
NONE = "\N{EN DASH}"


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
    """Stacked bars. The numbers beside it are text of the page, so that they keep their size."""

    bars: tuple[Bar, ...]
    names: tuple[str, ...]
    """Of the series."""
    top: int
    """What its upper edge stands for."""
    labels: tuple[str, ...]
    """Of the first, the middle and the last bar."""


def stacked(
    labels: Sequence[str], names: Sequence[str], values: Sequence[Sequence[int]], told: object
) -> Chart:
    """``values``: for each label one of each name. ``told`` makes text of a value."""
    assert callable(told)
    top = nice(max((sum(row) for row in values), default=0))
    step = 100 / max(len(labels), 1)
    bars = []
    for place, (label, row) in enumerate(zip(labels, values, strict=True)):
        pieces, floor = [], 100.0
        for series, value in enumerate(row):
            if value > 0:
                height = max(100 * value / top, 0.4)
                floor -= height
                name = names[series]
                title = f"{label}{f' · {name}' if name else ''}: {told(value)}"
                pieces.append(Piece(round(floor, 3), round(height, 3), series, title))
        bars.append(Bar(round(place * step + step * 0.12, 3), round(step * 0.76, 3), tuple(pieces)))
    marks = (labels[0], labels[len(labels) // 2], labels[-1]) if labels else ()
    return Chart(tuple(bars), tuple(names), top, marks)


def nice(value: int) -> int:
    """The next round number: 1, 2 or 5 with zeros."""
    if value <= 1:
        return 1
    size: int = 10 ** (len(str(value)) - 1)
    return next(size * step for step in (1, 2, 5, 10) if size * step >= value)

"""Quantities as people write them: `30s`, `10MiB`, `100k`, `60/min`; and back.

The parsers raise ValueError with an example of a right spelling. `Duration`, `Size`, `Count` and
`RateSetting` are the same as types of settings: the field holds seconds, bytes, a number or a
`Rate`; YAML shows the text, and so does a JSON Schema made with `mode="serialization"` (pydantic
runs the serialisers of defaults in no other mode).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

_NUMBER = r"\d+(?:_\d+)*(?:\.\d+)?"
_SPAN = rf"({_NUMBER})\s*(ms|sec|s|min|m|hour|h|day|d)"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*", re.ASCII)
_ONE_SPAN = re.compile(_SPAN, re.ASCII)
_SPANS = re.compile(rf"\s*(?:{_SPAN}\s*)+", re.ASCII)
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MILLISECONDS |= {"sec": 1000, "min": 60_000, "hour": 3_600_000, "day": 86_400_000}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_TIMES = {"": 1, "k": 10**3, "m": 10**6}
_PERIODS = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}

LONGEST = 365 * 86_400.0
"""Seconds that a setting may say."""

_DURATION_LIKE = "a number with a unit (ms, s, m, h, d), like 30s, 250ms or 1h30m"
_SIZE_LIKE = "bytes with or without a unit (KB, MB, GB, KiB, MiB, GiB), like 10MiB"
_DAYS_LIKE = "whole days, like 90d"
_COUNT_LIKE = "a whole number, with k or M if you like: 60, 100k, 1.5M"
_RATE_LIKE = "a count per s, min, h or day, like 60/min or 100k/min"


@dataclass(frozen=True, slots=True)
class Rate:
    """`amount` units in every period of `seconds`."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        """`60/min`: what `parse_rate` reads."""
        return f"{self.amount}/{_PERIODS.get(self.seconds) or duration(self.seconds)}"


def _in_a_year(seconds: float) -> float:
    if seconds > LONGEST:
        raise ValueError("more than 365 days, which is hardly meant; 0 often stands for no limit")
    return seconds


def parse_duration(text: str) -> float:
    """Seconds of `250ms`, `30s`, `5m`, `1h30m`, `1d`; `0` needs no unit."""
    if text.strip() == "0":
        return 0.0
    if not _SPANS.fullmatch(text):
        raise _wrong(text, _DURATION_LIKE)
    spans = _ONE_SPAN.findall(text)
    return float(sum(Decimal(number) * _MILLISECONDS[unit] for number, unit in spans) / 1000)


def parse_size(text: str) -> int:
    """Bytes of `10MiB`, `64KB`, `1GB` or `4096`; the case of the unit does not matter."""
    return _whole(text, _BYTES, _SIZE_LIKE)


def parse_count(text: str) -> int:
    """The number that `100k`, `1.5M`, `20_000` or `60` stands for."""
    return _whole(text, _TIMES, _COUNT_LIKE)


def parse_days(text: str) -> int:
    """How many days `90d` is."""
    return _whole(text, {"d": 1}, _DAYS_LIKE)


def dollars(nanos: int) -> str:
    """Billionths of a dollar as dollars, without loss: ``0.0000135``."""
    whole, rest = divmod(abs(nanos), 1_000_000_000)
    text = f"{whole}.{rest:09}".rstrip("0").rstrip(".")
    return f"-{text}" if nanos < 0 else text


def parse_rate(text: str) -> Rate:
    """The rate that `60/min`, `100k/min`, `5/s`, `1M/day` or `10/30s` stands for."""
    amount, slash, period = text.partition("/")
    period = period.strip()
    try:
        seconds = parse_duration(period if period[:1].isdigit() else f"1{period}")
        count = parse_count(amount)
    except ValueError:
        raise _wrong(text, _RATE_LIKE) from None
    if not slash or seconds < 1:
        raise _wrong(text, _RATE_LIKE)
    return Rate(count, seconds)


def duration(seconds: float) -> str:
    """`6m0s`, `1h0m0s`, `1.5s`, `20ms`, `0s`: as Go prints it, in milliseconds and rounded up.

    OpenAI tells in this form when a limit resets; rounded down, that would be too early. A
    negative time is `0s`.
    """
    exact = Decimal(repr(max(0.0, float(seconds)))) * 1000
    milliseconds = int(exact) + (exact % 1 > 0)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def size(count: int) -> str:
    """`10MiB`, `64KB`, `4097B`: the shortest exact spelling that `parse_size` reads."""
    units = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6, "KB": 1000}
    exact = [f"{count // unit}{name}" for name, unit in units.items() if count and not count % unit]
    return min([*exact, f"{count}B"], key=len)


def _whole(text: str, units: dict[str, int], like: str) -> int:
    found = _QUANTITY.fullmatch(text)
    unit = units.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise _wrong(text, like)
    total = Decimal(found[1]) * unit
    if total % 1:
        raise _wrong(text, like)
    return int(total)


def _wrong(text: str, like: str) -> ValueError:
    shown = text if len(text) <= 40 else text[:37] + "..."
    return ValueError(f"{shown!r} is not understood; write {like}")


def _written(parse: Callable[[str], object]) -> BeforeValidator:
    """Text is parsed; what code gives as a value is left to the type."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _schema(like: str, *types: str, examples: list[str]) -> WithJsonSchema:
    kind = types[0] if len(types) == 1 else list(types)
    return WithJsonSchema({"type": kind, "description": f"Write {like}.", "examples": examples})


Duration = Annotated[
    float,
    _written(parse_duration),
    Field(ge=0, allow_inf_nan=False, strict=True),
    AfterValidator(_in_a_year),
    PlainSerializer(duration, return_type=str, when_used="json"),
    _schema(_DURATION_LIKE, "string", examples=["30s", "250ms"]),
]
"""Seconds, written `30s`."""

Days = Annotated[
    int,
    _written(parse_days),
    Field(ge=1, le=36_500, strict=True),
    PlainSerializer(lambda days: f"{days}d", return_type=str, when_used="json"),
    _schema(_DAYS_LIKE, "string", examples=["90d"]),
]
"""Whole days, written `90d`."""

Size = Annotated[
    int,
    _written(parse_size),
    Field(ge=0, strict=True),
    PlainSerializer(size, return_type=str, when_used="json"),
    _schema(_SIZE_LIKE, "string", "integer", examples=["10MiB", "64KB"]),
]
"""Bytes, written `10MiB`."""

Count = Annotated[
    int,
    _written(parse_count),
    Field(ge=0, strict=True),
    _schema(_COUNT_LIKE, "string", "integer", examples=["100k", "60"]),
]
"""A whole number, written `100k`."""

RateSetting = Annotated[
    Rate,
    _written(parse_rate),
    PlainSerializer(str, return_type=str, when_used="json"),
    _schema(_RATE_LIKE, "string", examples=["60/min", "100k/min"]),
]
"""A `Rate`, written `60/min`."""

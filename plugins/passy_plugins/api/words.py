"""The values that requests to the two applications may hold, and how answers show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from passy_proxy.units import Rate, parse_rate

_NEVER = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
"""What has no place in a line."""
_LINE = rf"^[^{_NEVER}]*$"
_NAME = rf"^[^{_NEVER}]*[^\s{_NEVER}][^{_NEVER}]*$"
_EMAIL = rf"^[^@\s{_NEVER}]+@[^@\s{_NEVER}]+$"
_RATE = r"^[1-9][0-9]{0,8}[kM]?/(s|min|h|day|[1-9][0-9]{0,5}s)$"
_ID = r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$"
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, tzinfo=UTC)


class Body(BaseModel):
    """What is sent: nothing is guessed, and no name is accepted that means nothing."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Shown(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Line = Annotated[str, Field(max_length=200, pattern=_LINE)]
"""Text of one line, as people write it."""
Name = Annotated[str, Field(max_length=200, pattern=_NAME)]
"""The same, and not only spaces."""
Email = Annotated[str, Field(max_length=254, pattern=_EMAIL)]
Id = Annotated[str, Field(pattern=_ID)]
"""What names a thing of ours."""
UserId = Annotated[str, Field(min_length=1, max_length=200, pattern=_LINE)]
"""What names a user, as the service that knows its users does."""
Cursor = Annotated[str, Field(min_length=1, max_length=4_000, pattern=r"^[A-Za-z0-9_-]+$")]
"""Where the next page begins, as the last one said."""
Models = Annotated[list[Name], Field(max_length=1_000)]
"""Names of models; ``*`` stands for anything."""


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A number without a fraction, as JSON has it: 20 is 20.0."""


def _rate(value: object) -> Rate:
    if not isinstance(value, str) or not re.fullmatch(_RATE, value):
        raise ValueError("write a rate as 60/min, 100k/h or 10/30s")
    return parse_rate(value)


RateText = Annotated[
    Rate,
    BeforeValidator(_rate),
    WithJsonSchema({"type": "string", "pattern": _RATE, "examples": ["60/min", "100k/h"]}),
]
"""A rate as gateway.yaml has it."""

_SPANS = {1.0: "s", 60.0: "min", 3_600.0: "h", 86_400.0: "day"}


def rate_shown(rate: Rate | None) -> str | None:
    """As `RateText` reads it."""
    if rate is None:
        return None
    return f"{rate.amount}/{_SPANS.get(rate.seconds, f'{rate.seconds:g}s')}"


def _moment(value: object) -> datetime:
    if not isinstance(value, str) or not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError("write a time as ISO 8601: 2026-11-26T10:00:00Z")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("this is no time; write ISO 8601: 2026-11-26T10:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        return max(EARLIEST, min(moment.astimezone(UTC), LATEST))
    except OverflowError:
        return LATEST if moment.year > 5000 else EARLIEST


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A time, or a date and its midnight; UTC where it does not say. What is before 1970 is 1970."""


def shown_at(seconds: float | None) -> str | None:
    """A moment of Unix time, to the millisecond."""
    if seconds is None:
        return None
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def changed(body: BaseModel) -> Mapping[str, Any]:
    """What a PATCH names, ``null`` among it."""
    return {name: getattr(body, name) for name in body.model_fields_set}

"""The values that requests to the two applications may hold, and how answers show them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from passy_proxy.units import Rate, parse_rate

_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
_ID = r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}$"
LATEST = datetime(9999, 12, 31, tzinfo=UTC)


class Body(BaseModel):
    """What is sent: nothing is guessed, and no name is accepted that means nothing."""

    model_config = ConfigDict(
        extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Shown(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _line(value: str) -> str:
    if not _LINE.fullmatch(value):
        raise ValueError("a control character, or half of one, cannot be part of this")
    return value


Line = Annotated[str, AfterValidator(_line), Field(max_length=200)]
"""Text of one line, as people write it."""
Name = Annotated[str, AfterValidator(_line), Field(min_length=1, max_length=200)]
"""The same, and not empty."""
Email = Annotated[str, AfterValidator(_line), Field(max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")]
Id = Annotated[str, Field(pattern=_ID)]
"""What names a thing of ours."""
UserId = Annotated[str, AfterValidator(_line), Field(min_length=1, max_length=200)]
"""What names a user, as the service that knows its users does."""
Cursor = Annotated[str, Field(min_length=1, max_length=4_000, pattern=r"^[A-Za-z0-9_-]+$")]
"""Where the next page begins, as the last one said."""
Models = Annotated[list[Name], Field(max_length=1_000)]
"""Names of models; ``*`` stands for anything."""


def _rate(value: object) -> Rate:
    if not isinstance(value, str):
        raise ValueError("write a rate as text: 60/min")
    rate: Rate = parse_rate(value)
    if rate.amount > 1 << 53:
        raise ValueError("this is more than anybody can count")
    return rate


RateText = Annotated[
    Rate,
    BeforeValidator(_rate),
    WithJsonSchema({"type": "string", "examples": ["60/min", "100k/h"]}),
]
"""A rate as gateway.yaml has it."""

_SPANS = {1.0: "s", 60.0: "min", 3_600.0: "h", 86_400.0: "day"}


def rate_shown(rate: Rate | None) -> str | None:
    """As `RateText` reads it."""
    if rate is None:
        return None
    return f"{rate.amount}/{_SPANS.get(rate.seconds, f'{rate.seconds:g}s')}"


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("write a time as ISO 8601: 2026-11-26T10:00:00Z")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("this is no time; write ISO 8601: 2026-11-26T10:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("no calendar goes that far") from None
    if not datetime(1970, 1, 1, tzinfo=UTC) <= moment <= LATEST:
        raise ValueError("times are from 1970 to 9999")
    return moment


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "examples": ["2026-11-26", "2026-11-26T10:00:00Z"]}),
]
"""A date or a time, UTC where it does not say."""


def shown_at(seconds: float | None) -> str | None:
    """A moment of Unix time, to the millisecond."""
    if seconds is None:
        return None
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def changed(body: BaseModel) -> Mapping[str, Any]:
    """What a PATCH names, ``null`` among it."""
    return {name: getattr(body, name) for name in body.model_fields_set}

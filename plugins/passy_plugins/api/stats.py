"""What the workers of a host have counted, in JSON or as lines of text: the numbers that
`metrics_page` has for Prometheus, without the shapes of its histograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from passy_plugins.api.errors import responses
from passy_plugins.api.words import Shown
from passy_plugins.metrics import LABELS, TABLE
from passy_plugins.metrics_page import (
    COUNTERS,
    EXCHANGES,
    GAUGES,
    labelled,
    number,
    tokens_by_model,
)

if TYPE_CHECKING:
    from passy_proxy import Vitals
    from passy_proxy.vitals import Tables

router = APIRouter(tags=["gateway"])


class Number(Shown):
    name: str = Field(examples=["passy_requests_total"])
    labels: dict[str, str]
    value: float

    def __str__(self) -> str:
        return f"{self.name}{labelled(self.labels.items())}: {number(self.value)}"


class Stats(Shown):
    workers: int = Field(description="Whose numbers these are, added up: all of this host.")
    counters: list[Number] = Field(description="Since the gateway began.")
    gauges: list[Number] = Field(description="As it is now.")


@router.get(
    "/stats",
    response_model=Stats,
    responses=responses(401, 422) | {200: {"content": {"text/plain": {}}}},
)
async def stats(
    request: Request,
    format: Annotated[Literal["json", "text"], Query(description="text: name{labels}: value")] = (
        "json"
    ),
) -> Stats | Response:
    """What was counted, and how things are; `/metrics` has more of it for Prometheus."""
    vitals: Vitals = request.app.state.gateway().site.vitals
    counted, present = vitals.gather()
    exchanges = counted.get(TABLE, {})
    counters = [
        *(
            Number(name=name, labels=dict(zip(LABELS, key, strict=True)), value=value)
            for name, _, worked_out in EXCHANGES
            for key, row in sorted(exchanges.items())
            if (value := worked_out(key, row))
        ),
        *(
            Number(name="passy_tokens_total", labels=labels, value=count)
            for labels, count in tokens_by_model(exchanges)
        ),
        *plain(COUNTERS, counted),
    ]
    found = Stats(
        workers=max(1, len(vitals.slots)), counters=counters, gauges=list(plain(GAUGES, present))
    )
    if format == "json":
        return found
    return PlainTextResponse("".join(f"{one}\n" for one in (*counters, *found.gauges)))


def plain(families: Mapping[str, tuple[str, str, str]], tables: Tables) -> Iterator[Number]:
    """Those of one number each."""
    for name, (metric, _, label) in families.items():
        for key, row in sorted(tables.get(name, {}).items()):
            labels = {label: key[0]} if label else {}
            yield Number(name=metric, labels=labels, value=row[0])

"""Usage: sums by time and by whatever is asked, single exchanges, and both as files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field, field_validator

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import Paging
from passy_plugins.api.errors import absent, responses
from passy_plugins.api.files import Format, exported
from passy_plugins.api.words import Line, Moment, Shown, shown_at
from passy_plugins.stores.sql.reports import Asked, Bucket, Dimension, Group, Order, Sums
from passy_proxy import retold
from passy_proxy.records import UsageRecord
from passy_proxy.units import dollars

router = APIRouter(tags=["usage"])

DAYS = 30
"""Before now: what is looked at without ``since``."""


class Counts(Shown):
    """What some exchanges come to."""

    requests: int
    ok: int = Field(description="Those of them that ended well.")
    input: int = Field(description="Tokens read, cached and cache_write among them.")
    output: int
    cached: int
    cache_write: int
    reasoning: int
    audio_input: int
    audio_output: int
    cost_usd: str = Field(description="US dollars, to the last billionth.", examples=["0.0000135"])
    unpriced: int = Field(description="Answers of no known price: cost_usd is a lower bound.")
    estimated: int = Field(description="Exchanges whose tokens the provider did not tell.")
    saved: int = Field(
        description="Answered by another upstream or model than was asked first, which had failed."
    )
    average_ms: int | None = Field(description="From a request's arrival to its end.")
    average_first_ms: int | None = Field(description="To the first byte of the answer.")


class Bin(Counts):
    """The sums of one time and one value of each dimension."""

    at: str | None = Field(description="Where its hour or day begins, UTC.")
    by: dict[str, str] = Field(description="Dimension → value; empty where there was none.")


class Usage(Shown):
    since: str
    until: str
    rows: list[Bin]
    totals: Counts = Field(description="Of all that is asked for, on whatever page.")
    cursor: str | None


class Try(Shown):
    """One attempt at an upstream."""

    upstream: str
    model: str
    status: int = Field(description="0 when no answer began.")
    failure: str = Field(description="Empty for the one that answered.")
    started_ms: int = Field(description="After the request's arrival.")
    head_ms: int = Field(description="To the head of its answer, or to its failure.")
    maybe_billed: bool
    queue_ms: int = Field(description="Of head_ms, in the queue for a connection.")
    connect_ms: int = Field(
        description="Of head_ms, to make one; 0 where one was at hand, or it is not known."
    )
    credential: str = Field(
        description="The organisation's own key that was shown; empty: the operator's, or none."
    )
    ran: str = Field(
        description="The chain and the hash of the configuration; empty where it is not known.",
        examples=["default@4f2a91c0"],
    )


class Exchange(Shown):
    """One request and what became of it."""

    id: str
    at: str
    key_id: str
    organisation: str
    team: str
    user: str
    tags: list[str]
    route: str
    model: str = Field(description="As asked.")
    upstream: str
    upstream_model: str
    outcome: str
    status: int
    streamed: bool
    input: int
    output: int
    cached: int
    cache_write: int
    reasoning: int
    audio_input: int
    audio_output: int
    estimated: bool
    cost_usd: str | None = Field(description="null: no price is known, which is not zero.")
    price: str
    first_ms: int
    duration_ms: int


class FilterTime(Shown):
    filter: str
    ms: float = Field(description="In its hooks until the answer ended, with what they waited for.")


class WholeExchange(Exchange):
    attempts: list[Try]
    filters: list[FilterTime] = Field(
        description="What each filter took, in the order of the chain; empty unless it was timed: "
        "see `time_filters`."
    )


class Exchanges(Shown):
    rows: list[Exchange]
    cursor: str | None


class Filters(Shown):
    """Which exchanges are meant."""

    since: Moment | None = Field(
        default=None, description="The first moment; 30 days before `until`."
    )
    until: Moment | None = Field(default=None, description="The first moment after; now.")
    model: Line | None = Field(default=None, description="As asked.")
    upstream: Line | None = None
    upstream_model: Line | None = None
    key_id: Line | None = None
    team: Line | None = None
    user: Line | None = None
    organisation: Line | None = None
    tag: Line | None = None
    route: Line | None = None
    outcome: Line | None = None
    status: Line | None = None
    search: Line = Field(
        default="", description="What an id begins with, or what is in a model's name."
    )

    def asked(self) -> Asked:
        """In the words of the books."""
        until = self.until or datetime.now(UTC)
        since = self.since or max(until - timedelta(days=DAYS), datetime(1970, 1, 1, tzinfo=UTC))
        if since > until:
            raise Denied(422, "invalid_value", "since is after until.", "query.since")
        names = {"key_id": "key"}
        values: dict[Any, str] = {}
        for name in Filters.model_fields:
            value = getattr(self, name)
            if name not in ("since", "until", "search") and value is not None:
                values[names.get(name, name)] = value
        # Up to and with the last millisecond that has begun by now.
        return Asked(
            milliseconds(since), milliseconds(until) + (not self.until), values, self.search
        )


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class Grouping(Shown):
    bucket: Bucket = Field(default="day", description="Hours and days are those of UTC.")
    by: list[Dimension] = Field(default=[], max_length=4, description="Dimensions, each once.")
    order: Order = Field(
        default="time", description="time goes forward; the others begin with the most."
    )

    @field_validator("by")
    @classmethod
    def _each_once(cls, by: list[Dimension]) -> list[Dimension]:
        if len(set(by)) < len(by):
            raise ValueError("a dimension is named twice")
        return by


FILTERS = responses(400, 401, 422, 503)


# FastAPI takes one model of query parameters; each of these routes has all of them in one.
class UsageQuery(Filters, Grouping, Paging): ...


class UsageExport(Filters, Grouping):
    format: Format = "csv"


class ExchangesQuery(Filters, Paging): ...


class ExchangesExport(Filters):
    format: Format = "csv"


@router.get("/usage", responses=FILTERS)
async def usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Usage:
    """Sums by hour or day, and by whatever is asked for. What has two tags counts for each."""
    admin = await request.app.state.desk.admin()
    asked = query.asked()
    page = await admin.reports.groups(
        asked, query.bucket, query.by, query.order, query.limit, query.cursor
    )
    totals = await admin.reports.totals(asked)
    return Usage(
        since=str(shown_at(asked.since / 1000)),
        until=str(shown_at(asked.until / 1000)),
        rows=[Bin(**bin_of(group, query.by)) for group in page.rows],
        totals=Counts(**counts(totals)),
        cursor=page.cursor,
    )


@router.get("/usage/export", response_class=StreamingResponse, responses=FILTERS)
async def export_usage(
    request: Request, query: Annotated[UsageExport, Query()]
) -> StreamingResponse:
    """The same as a file, all of it."""
    admin = await request.app.state.desk.admin()
    pages = admin.reports.all_groups(query.asked(), query.bucket, query.by, query.order)

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for groups in pages:
            yield [flat(bin_of(group, query.by)) for group in groups]

    columns = ["at", *query.by, *Counts.model_fields]
    return await exported("usage", query.format, columns, rows())


@router.get("/exchanges", responses=FILTERS)
async def exchanges(request: Request, query: Annotated[ExchangesQuery, Query()]) -> Exchanges:
    """Single exchanges, latest first."""
    admin = await request.app.state.desk.admin()
    page = await admin.reports.exchanges(query.asked(), query.limit, query.cursor)
    return Exchanges(
        rows=[Exchange(**exchange_of(record)) for record in page.rows], cursor=page.cursor
    )


@router.get("/exchanges/export", response_class=StreamingResponse, responses=FILTERS)
async def export_exchanges(
    request: Request, query: Annotated[ExchangesExport, Query()]
) -> StreamingResponse:
    """The same as a file, all of it."""
    admin = await request.app.state.desk.admin()
    pages = admin.reports.all_exchanges(query.asked())

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for records in pages:
            yield [exchange_of(record) for record in records]

    return await exported("exchanges", query.format, list(Exchange.model_fields), rows())


@router.get("/exchanges/{id}", responses=responses(400, 401, 404, 422, 503))
async def exchange(request: Request, id: Line) -> WholeExchange:
    """One of them with every attempt."""
    admin = await request.app.state.desk.admin()
    record = await admin.reports.exchange(id)
    if record is None:
        raise absent("exchange")
    return whole(record)


def counts(sums: Sums) -> dict[str, Any]:
    """The fields of `Counts`."""
    told = sums._asdict()
    told["cost_usd"] = dollars(told.pop("cost_nanos"))
    for name in ("duration_ms", "first_ms"):
        total = told.pop(name)
        average = "average_ms" if name == "duration_ms" else "average_first_ms"
        told[average] = total // sums.requests if sums.requests else None
    return {name: told[name] for name in Counts.model_fields}


def bin_of(group: Group, by: Sequence[str]) -> dict[str, Any]:
    """The fields of `Bin`."""
    at = None if group.at is None else shown_at(group.at / 1000)
    return {"at": at, "by": dict(zip(by, group.by, strict=True)), **counts(group.sums)}


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """With its dimensions beside the rest, for a file."""
    return {"at": row.pop("at"), **row.pop("by"), **row}


def whole(record: UsageRecord) -> WholeExchange:
    """With its attempts, and with what the filters took where that was timed."""
    attempts = [Try(**each._asdict()) for each in retold.attempts_of(record)]
    filters = [FilterTime(**each._asdict()) for each in retold.filters_of(record)]
    return WholeExchange(attempts=attempts, filters=filters, **exchange_of(record))


def exchange_of(record: UsageRecord) -> dict[str, Any]:
    """The fields of `Exchange`."""
    told = record._asdict()
    del told["attempts"]
    nanos = told.pop("cost_nanos")
    told["cost_usd"] = None if nanos is None else dollars(nanos)
    told["at"] = shown_at(record.at)
    told["user"] = told.pop("user_id")
    told["tags"] = [tag for tag in record.tags.split(",") if tag]
    return {name: told[name] for name in Exchange.model_fields}

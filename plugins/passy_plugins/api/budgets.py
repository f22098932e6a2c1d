"""Budgets of organisations, teams, users and keys, and the webhooks that hear of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field, model_validator

from passy_plugins.alerts import tried
from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import IfMatch, Paging, admin_of, editing, present, tagged
from passy_plugins.api.errors import responses
from passy_plugins.api.providers import TRY, snapshot_of
from passy_plugins.api.words import Body, Id, Shown, UserId, Whole, shown_at
from passy_plugins.stores.sql.issued import NANOS
from passy_proxy.issue import DEFAULT_ALERTS, Kind, NewBudget, StoredBudget, Webhook
from passy_proxy.periods import Period
from passy_proxy.records import Budget

router = APIRouter(tags=["budgets"])

MOST = 9_000_000_000_000_000
Unit = Literal["usd", "tokens"]
Amount = Annotated[float, Field(ge=0, le=MOST, description="US dollars, or tokens.")]
Alerts = Annotated[
    list[Annotated[Whole, Field(ge=1, le=1_000)]],
    Field(max_length=20, description="Percentages at which somebody is told."),
]


class BudgetTerms(Body):
    """How much of what may be spent, and when."""

    unit: Unit
    amount: Amount
    period: Period = "month"
    hard: bool = Field(
        default=True, description="Whether it refuses when it is used up, or only tells."
    )
    alerts: Alerts = Field(default=list(DEFAULT_ALERTS))

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        check(self.amount, self.unit)
        return self


class NewBudgetBody(BudgetTerms):
    kind: Kind = Field(description="Whose it is.")
    subject: UserId = Field(description="The id of that.")


class BudgetChange(Body):
    amount: Amount = 0
    hard: bool = True
    alerts: Alerts = Field(default=list(DEFAULT_ALERTS))


class BudgetHeld(Shown):
    id: str
    unit: Unit
    amount: float
    period: Period
    hard: bool
    alerts: list[int]


class BudgetShown(BudgetHeld):
    kind: Kind
    subject: str
    created_at: str | None


class BudgetsQuery(Paging):
    kind: Kind | None = None
    subject: UserId | None = None


class Budgets(Shown):
    rows: list[BudgetShown]
    cursor: str | None


def _reachable(url: str) -> str:
    try:
        there = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:  # A port that is none, brackets that are no address.
        there = False
    if not there:
        raise ValueError("this leads nowhere; write https://hooks.example.com/…")
    return url


HookUrl = Annotated[
    str, Field(max_length=2_000, pattern=r"^https?://[!-~]+$"), AfterValidator(_reachable)
]


class NewWebhook(Body):
    organisation: Id | None = Field(
        default=None, description="null: the operator's, told of everything."
    )
    url: HookUrl


class WebhookShown(Shown):
    id: str
    organisation: str | None
    url: str
    events: list[str]
    created_at: str | None


class WebhookMade(WebhookShown):
    secret: str = Field(description="What its messages are signed with. It is shown this once.")


class WebhookChange(Body):
    events: Annotated[list[Literal["budget.alert"]], Field(max_length=1)] = Field(
        description="What it is told of; nothing while this is empty."
    )


class WebhookTried(Shown):
    """What came of a message that means nothing."""

    taken: bool = Field(description="It was answered with 2xx.")
    status: int = Field(description="Of the answer; 0 where there was none.")
    ms: int
    reason: str = Field(description="Why there was none.")


class WebhooksQuery(Paging):
    organisation: Id | None = None


class Webhooks(Shown):
    rows: list[WebhookShown]
    cursor: str | None


ONE = responses(400, 401, 404, 422, 503)


@router.post("/budgets", status_code=201, responses=responses(400, 401, 413, 422, 503))
async def create_budget(request: Request, new: NewBudgetBody) -> BudgetShown:
    """Set how much may be spent."""
    amount = nanos(new.amount, new.unit)
    wanted = NewBudget(
        new.kind, new.subject, new.unit, amount, new.period, new.hard, tuple(new.alerts)
    )
    return budget(await (await admin_of(request)).add_budget(wanted))


@router.get("/budgets", responses=responses(400, 401, 422, 503))
async def list_budgets(request: Request, query: Annotated[BudgetsQuery, Query()]) -> Budgets:
    """All of them, oldest first."""
    wanted = {"kind": query.kind, "subject": query.subject}
    values = {name: value for name, value in wanted.items() if value is not None}
    page = await (await admin_of(request)).lists.budgets(values, query.limit, query.cursor)
    return Budgets(rows=[budget(one) for one in page.rows], cursor=page.cursor)


@router.get("/budgets/{id}", responses=ONE)
async def show_budget(request: Request, response: Response, id: Id) -> BudgetShown:
    """What is known of one."""
    return tagged(response, await known(request, id))


@router.patch("/budgets/{id}", responses=responses(400, 401, 404, 412, 413, 422, 503))
async def change_budget(
    request: Request, response: Response, id: Id, change: BudgetChange, if_match: IfMatch = None
) -> BudgetShown:
    """Change what is named. What was spent stays spent."""
    async with editing(request, id, if_match, lambda: known(request, id)) as admin:
        named: dict[str, Any] = {name: getattr(change, name) for name in change.model_fields_set}
        if "amount" in named:
            unit = (await known(request, id)).unit
            try:
                check(change.amount, unit)
            except ValueError as error:
                raise Denied(422, "invalid_value", str(error), "body.amount") from None
            named["amount"] = nanos(change.amount, unit)
        present(await admin.change_budget(id, **named), "budget")
        return tagged(response, await known(request, id))


@router.delete("/budgets/{id}", status_code=204, responses=ONE)
async def delete_budget(request: Request, id: Id) -> Response:
    """Spend without it."""
    present(await (await admin_of(request)).remove_budget(id), "budget")
    return Response(status_code=204)


# Webhooks


@router.post("/webhooks", status_code=201, responses=responses(400, 401, 413, 422, 503))
async def create_webhook(request: Request, new: NewWebhook) -> WebhookMade:
    """Have somebody told of budgets that run out."""
    made, secret = await (await admin_of(request)).add_webhook(new.organisation, new.url)
    return WebhookMade(secret=secret, **webhook(made))


@router.get("/webhooks", responses=responses(400, 401, 422, 503))
async def list_webhooks(request: Request, query: Annotated[WebhooksQuery, Query()]) -> Webhooks:
    """All of them, oldest first."""
    values = {} if query.organisation is None else {"organisation": query.organisation}
    lists = (await admin_of(request)).lists
    page = await lists.webhooks(values, query.limit, query.cursor)
    return Webhooks(rows=[WebhookShown(**webhook(one)) for one in page.rows], cursor=page.cursor)


@router.patch("/webhooks/{id}", responses=responses(400, 401, 404, 413, 422, 503))
async def change_webhook(request: Request, id: Id, change: WebhookChange) -> WebhookShown:
    """Tell it of something else, or of nothing for now."""
    admin = await admin_of(request)
    present(await admin.change_webhook(id, change.events), "webhook")
    return WebhookShown(**webhook(present(await admin.get_webhook(id), "webhook")))


@router.post("/webhooks/{id}/test", responses=TRY)
async def try_webhook(request: Request, id: Id) -> WebhookTried:
    """Send it a signed message of the type `webhook.test`, once."""
    admin = await admin_of(request)
    hook = present(await admin.open_webhook(id), "webhook")
    sent = await tried(snapshot_of(request).connections, hook)
    return WebhookTried(taken=sent.taken, status=sent.status, ms=sent.ms, reason=sent.reason)


@router.delete("/webhooks/{id}", status_code=204, responses=ONE)
async def delete_webhook(request: Request, id: Id) -> Response:
    """Tell it no more."""
    present(await (await admin_of(request)).remove_webhook(id), "webhook")
    return Response(status_code=204)


def check(amount: float, unit: str) -> None:
    """ValueError for what cannot be counted."""
    if unit == "tokens" and not float(amount).is_integer():
        raise ValueError("tokens are counted in whole numbers")
    if unit == "usd" and amount * NANOS > MOST:
        raise ValueError("a budget is at most nine million dollars")


def nanos(amount: float, unit: str) -> int:
    """As the books count."""
    return round(amount * NANOS) if unit == "usd" else int(amount)


async def known(request: Request, id: str) -> BudgetShown:
    return budget(present(await (await admin_of(request)).get_budget(id), "budget"))


def budget(one: StoredBudget) -> BudgetShown:
    return BudgetShown(
        **held(one.budget), kind=one.kind, subject=one.subject, created_at=shown_at(one.created)
    )


def held(one: Budget) -> dict[str, Any]:
    """The fields of `BudgetHeld`."""
    return {
        "id": one.id,
        "unit": one.unit,
        "amount": told(one.amount, one.unit),
        "period": one.period,
        "hard": one.hard,
        "alerts": list(one.alerts),
    }


def told(amount: int, unit: str) -> float:
    """What the books have counted, as people write it."""
    return amount / NANOS if unit == "usd" else float(amount)


def webhook(one: Webhook) -> dict[str, Any]:
    """The fields of `WebhookShown`."""
    return {
        "id": one.id,
        "organisation": one.organisation,
        "url": one.url,
        "events": list(one.events),
        "created_at": shown_at(one.created),
    }

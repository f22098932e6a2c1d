"""How much may be spent: dollars or tokens in each day, week, month, or ever.

Budgets are set on keys, users, teams and organisations, and all of them hold. What a request may
cost is reserved in all of them at once on the way in, and settled with what it did cost. So of many
requests at the same time no more are admitted than the budget pays for. A hard budget refuses what
does not fit; a soft one admits and tells. What is behind the counters is in `spending.py`.

It stands behind `alias`, since the price depends on who will answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Annotated, Literal

from pydantic import AfterValidator

from passy_plugins.alerts import Teller
from passy_plugins.spending import Account, Accounts, Charge, settled, told
from passy_plugins.usage import COST
from passy_proxy import (
    Alerts,
    Books,
    Claim,
    Connections,
    Count,
    Counters,
    Duration,
    Exchange,
    Filter,
    Grant,
    Prices,
    Principal,
    Reply,
    Room,
    Settings,
    StashKey,
    StoreUnavailable,
    StrongSecret,
    Target,
    Usage,
    hookimpl,
    prompt_estimate,
    setting,
)
from passy_proxy.estimate import METERED
from passy_proxy.log import Alarms
from passy_proxy.prices import Price
from passy_proxy.records import Budget
from passy_proxy.stores import Hook
from passy_proxy.structs import Struct
from passy_proxy.transport.origin import parse_origin

NANOS = 10**9
"""In a dollar."""
PATIENCE = 2.0
"""Seconds that a request waits for a price that is being looked up."""
TURNS = 3
"""How often counters are asked for one request: they may forget what they were told."""
FREE = frozenset(("count_tokens",))
"""Operations that cost nothing and are no models' answers."""


def address(url: str) -> str:
    parse_origin(url)
    return url


class WebhookSettings(Settings):
    url: Annotated[str, AfterValidator(address)] = setting(
        ..., "Where alerts are sent: an https or http address."
    )
    secret: StrongSecret = setting(..., "What the messages are signed with.")


class Config(Settings):
    counters: Counters = setting(..., "The store that counts.")
    books: Books | None = setting(
        None, "The store that knows what was spent before: without one, counters begin at nothing."
    )
    alerts: Alerts | None = setting(
        None, "The store that knows what was told, and organisations' webhooks."
    )
    webhooks: tuple[WebhookSettings, ...] = setting((), "Where the operator is told of alerts.")
    output_guess: Count = setting(
        1_024, "Output tokens reserved for a request that sets no maximum.", ge=0
    )
    unpriced: Literal["refuse", "admit"] = setting(
        "refuse",
        "What cannot be reckoned under a hard budget, a model without a known price or a path that"
        " is passed through: refuse it, or admit it uncounted.",
    )
    trial: float | None = setting(
        None,
        "Dollars that a trial key may spend altogether, unless it has a hard budget in dollars.",
        ge=0,
        le=9_000_000,
    )
    hard_unavailable: Literal["refuse", "admit"] = setting(
        "refuse", "Under a hard budget while the counters or the books cannot be asked."
    )
    soft_unavailable: Literal["refuse", "admit"] = setting(
        "admit", "The same where all budgets are soft."
    )
    lease: Duration = setting(
        "20m",
        "How long a reservation is kept whose request never ends, since its process was killed:"
        " twice as long as a request may take.",
        ge=1,
    )
    interval: Duration = setting(
        "15s", "How often counters are compared with the books, and alerts looked for.", ge=0.05
    )
    prices: Prices = setting("prices", "What tokens cost; overlays are written under prices:.")
    connections: Connections = setting("connections", "Where webhooks are reached.")


class Held(Struct, gc=False):
    """What was reserved for an exchange."""

    accounts: Sequence[Account]
    grant: Grant


HELD: StashKey[Held] = StashKey("budgets.held")


class Budgets(Filter):
    name = "budgets"
    vouches = True
    needs = frozenset({"principal", "body"})
    config: Config

    @property
    def when_away(self) -> str:
        hard, soft = self.config.hard_unavailable, self.config.soft_unavailable
        does = {"refuse": "503", "admit": "admitted uncounted"}
        return f"hard budgets: {does[hard]}; soft ones: {does[soft]}"

    async def start(self) -> None:
        config = self.config
        hooks = tuple(
            Hook(f"webhook {number}", one.url, one.secret)
            for number, one in enumerate(config.webhooks, 1)
        )
        self._counters = config.counters
        self._price = config.prices.of
        alerts = Untold() if config.alerts is None else config.alerts
        self._teller = Teller(alerts, hooks, config.connections, self.log)
        self._accounts = Accounts(
            config.counters, config.books, self._teller, config.lease, config.interval, self.log
        )
        self._accounts.start()
        self._alarms = Alarms()

    async def stop(self) -> None:
        if (accounts := getattr(self, "_accounts", None)) is not None:
            await accounts.stop()
            await self._teller.stop()

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        principal = ex.principal
        assert principal is not None
        own: Sequence[Budget] = principal.budgets
        if principal.is_trial and self.config.trial is not None:
            own = self.with_trial(principal)
        if not own and not principal.above:
            return None
        charge = self._accounts.charge(principal, own, ex.at)
        if not charge.accounts or HELD in ex.stash or ex.request.operation in FREE:
            return None
        tokens = self.tokens(ex)
        if tokens is None:
            return self.unreckoned(ex, charge, ex.request.path)
        if not charge.paid:
            return self.reserve(ex, charge, tokens, 0)
        nanos = 0
        for target in ex.targets:
            price = self._price(target, ex.request.head.model, ex.at)
            if price is None:
                return self.looked_up(ex, charge, tokens)
            nanos = max(nanos, price.cost(Usage(*tokens)))
        if not ex.targets:
            return self.unreckoned(ex, charge, repr(ex.request.head.model[:200]))
        return self.reserve(ex, charge, tokens, nanos)

    def with_trial(self, principal: Principal) -> Sequence[Budget]:
        """The key's budgets, with that of all trial keys where it has none of its own."""
        own = principal.budgets
        if any(budget.hard and budget.unit == "usd" for budget in own):
            return own
        amount = round((self.config.trial or 0) * NANOS)
        return (*own, Budget(f"trial:{principal.key_id}", "usd", amount, "total"))

    def tokens(self, ex: Exchange) -> tuple[int, int] | None:
        """What it may read and write; ``None`` where nobody knows."""
        request = ex.request
        if request.operation not in METERED:
            return None
        if request.operation == "embeddings":
            return prompt_estimate(request.body), 0
        head = request.head
        longest = self.config.output_guess if head.max_tokens is None else head.max_tokens
        return prompt_estimate(request.body), longest * head.n

    async def looked_up(
        self, ex: Exchange, charge: Charge, tokens: tuple[int, int]
    ) -> Reply | None:
        """With prices that may be on their way."""
        nanos = 0
        for target in ex.targets:
            price = await self.price(ex, target)
            if price is None:
                return await waited(self.unreckoned(ex, charge, target.label, tokens))
            nanos = max(nanos, price.cost(Usage(*tokens)))
        return await waited(self.reserve(ex, charge, tokens, nanos))

    async def price(self, ex: Exchange, target: Target) -> Price | None:
        known: asyncio.Future[Price | None] = asyncio.get_running_loop().create_future()

        def learn(price: Price | None) -> None:
            if not known.done():
                known.set_result(price)

        model = target.model or ex.request.head.model
        self.config.prices.when_known(target.upstream, model, ex.at, learn)
        try:
            async with asyncio.timeout(PATIENCE):
                return await known
        except TimeoutError:
            return None

    def unreckoned(
        self, ex: Exchange, charge: Charge, what: str, tokens: tuple[int, int] = (0, 0)
    ) -> Reply | Awaitable[Reply | None] | None:
        """What a request may cost is not known."""
        if charge.hard and self.config.unpriced == "refuse":
            message = (
                f"What {what} costs is not known here, so it cannot be held against a budget."
                " Ask for another model, or have the operator set its price."
            )
            return Reply(403, "price_unknown", message, [NO_RETRY], param="model")
        return self.reserve(ex, charge, tokens, 0)

    def reserve(
        self, ex: Exchange, charge: Charge, tokens: tuple[int, int], nanos: int
    ) -> Reply | Awaitable[Reply | None] | None:
        """In all accounts, or in none."""
        used, claims, accounts = tokens[0] + tokens[1], [], []
        for account in charge.accounts:
            cost = used if account.budget.unit == "tokens" else nanos
            if cost:  # What is free takes nothing, however little is left.
                accounts.append(account)
                claims.append(Claim(account.key, account.limit, cost))
        if not claims:
            return None
        try:
            grant = self._counters.take(claims)
        except StoreUnavailable:
            return self.undecided(ex, accounts)
        if isinstance(grant, Grant) and not grant.unknown:
            return self.decided(ex, accounts, grant)
        return self.asked(ex, accounts, claims, grant)

    async def asked(
        self,
        ex: Exchange,
        accounts: Sequence[Account],
        claims: Sequence[Claim],
        answer: Grant | Awaitable[Grant],
    ) -> Reply | None:
        """With a store that answers later, or that has to be told what was spent before."""
        try:
            for more in reversed(range(TURNS)):
                grant = answer if isinstance(answer, Grant) else await answer
                if not grant.unknown:
                    return self.decided(ex, accounts, grant)
                if more:
                    unknown = {claim.key for claim in grant.unknown}
                    await self._accounts.prime([each for each in accounts if each.key in unknown])
                    answer = self._counters.take(claims)
        except StoreUnavailable:
            pass
        return self.undecided(ex, accounts)

    def decided(self, ex: Exchange, accounts: Sequence[Account], grant: Grant) -> Reply | None:
        if grant.admitted:
            ex.stash[HELD] = Held(accounts, grant)
            return None
        for account, room, claim in zip(accounts, grant.rooms, grant.claims, strict=True):
            if room.retry:
                account.exhausted = room.remaining * NEARLY < room.limit
                return refused(account, room, claim.cost)
        raise AssertionError("refused by no account")

    def undecided(self, ex: Exchange, accounts: Sequence[Account]) -> Reply | None:
        """The counters or the books cannot be asked."""
        hard = any(account.budget.hard for account in accounts)
        policy = self.config.hard_unavailable if hard else self.config.soft_unavailable
        if policy == "refuse":
            return UNAVAILABLE
        if (kept_back := self._alarms.due("unchecked")) is not None:
            budgets = [account.budget.id for account in accounts]
            self.log.warning(
                "budget_unchecked", request_id=ex.id, budgets=budgets, kept_back=kept_back
            )
        return None

    def on_complete(self, ex: Exchange) -> Awaitable[None] | None:
        held = ex.stash.get(HELD)
        if held is None:
            return None
        used, nanos = self.spent(ex)
        actual = [used if account.budget.unit == "tokens" else nanos for account in held.accounts]
        try:
            done = self._counters.settle(held.grant, actual)
        except StoreUnavailable:
            return None  # It comes back by its lease, and what it cost by the books.
        return None if done is None else settled(done)

    def spent(self, ex: Exchange) -> tuple[int, int | None]:
        """Tokens, and dollars where their price is known: what the books have, or will have."""
        usage = ex.usage
        if usage is None or not ex.attempts:
            return 0, 0
        used = usage.input + usage.output
        if (cost := ex.stash.get(COST)) is not None:
            return used, cost[0]
        price = self._price(ex.attempts[-1].target, ex.request.head.model, ex.at)
        return used, None if price is None else price.cost(usage)


class Untold:
    """`Alerts` where no store keeps them: each process tells for itself."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str, int]] = set()

    async def raise_alert(self, budget: str, window: str, percent: int, patience: float) -> bool:
        return (budget, window, percent) not in self._told

    async def alerted(self, budget: str, window: str, percent: int) -> None:
        self._told.add((budget, window, percent))

    async def hooks(self, organisation: str | None, event: str) -> Sequence[Hook]:
        return ()


async def waited(answer: Reply | Awaitable[Reply | None] | None) -> Reply | None:
    return answer if answer is None or isinstance(answer, Reply) else await answer


def refused(account: Account, room: Room, cost: int) -> Reply:
    """429, in the words that clients know: to ask again is of no use."""
    budget, window = account.budget, account.window
    whose = "this key" if account.kind == "key" else f"the {account.kind}"
    name = f"{PERIOD[budget.period]} budget of {whose}"
    amount, rest = shown(budget, room.limit), shown(budget, room.remaining)
    if room.remaining:
        message = (
            f"What is left of the {name} ({rest} of {amount}) does not cover this request, which"
            f" may use {shown(budget, cost)}."
        )
    else:
        message = f"The {name} ({amount}) is used up."
    if window.end == inf:
        message += " It does not begin anew."
    else:
        message += (
            f" It begins anew on {datetime.fromtimestamp(window.end, UTC):%Y-%m-%d}, 0:00 UTC."
        )
    return Reply(429, "insufficient_quota", message, [NO_RETRY])


def shown(budget: Budget, amount: int) -> str:
    return f"{amount:,} tokens" if budget.unit == "tokens" else f"${told(budget, amount)}"


NEARLY = 20
"""A budget that refuses and has less than a twentieth left counts as used up."""
PERIOD = {"day": "daily", "week": "weekly", "month": "monthly", "total": "total"}
NO_RETRY = (b"x-should-retry", b"false")
UNAVAILABLE = Reply(
    503,
    "budget_unavailable",
    "The budget cannot be checked now. Try again shortly.",
    [(b"retry-after", b"1")],
)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Budgets]

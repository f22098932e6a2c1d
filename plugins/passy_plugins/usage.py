"""Metering: one record for each exchange, with exact tokens where the provider told them, its cost,
and every attempt inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from passy_proxy import (
    Attempt,
    AttemptRecord,
    Exchange,
    Filter,
    Head,
    Ledger,
    Models,
    Prices,
    Settings,
    StashKey,
    Upstream,
    UsageRecord,
    hookimpl,
    setting,
)
from passy_proxy.prices import Price


class Config(Settings):
    ledger: Ledger = setting(..., "The store that keeps the books.")
    prices: Prices = setting("prices", "What tokens cost; overlays are written under prices:.")
    models: Models = setting("models", "The table of models, whose prices are looked up at start.")


class Metering(Filter):
    name = "usage"
    config: Config

    async def start(self) -> None:
        self._record = self.config.ledger.record
        self._price = self.config.prices.price
        models = self.config.models
        targets = [target for model in models.aliases for target in model.targets]
        for name in models.names():
            targets += models.direct(name) or ()
        self.config.prices.start(targets)

    async def stop(self) -> None:
        await self.config.prices.stop()

    def on_response(self, ex: Exchange, head: Head) -> None:
        # A plain answer was read whole before its head is sent, so its cost is known in time.
        usage = ex.usage
        if usage is None or usage.estimated or not ex.attempts:
            return
        upstream, model = asked(ex)
        price = self._price(upstream, model, ex.at)
        if price is not None:
            nanos = price.cost(usage)
            ex.stash[COST] = (nanos, price.text)
            head.headers.append((b"x-passy-cost-usd", b"%d.%09d" % divmod(nanos, 1_000_000_000)))

    def on_complete(self, ex: Exchange) -> None:
        usage = ex.usage
        if ex.reply is not None and ex.reply.status == 401:
            return  # Nobody we know, and nobody was asked: strangers cannot grow the books.
        cost = ex.stash.get(COST)
        if cost is not None or usage is None or not ex.attempts:
            self._record(record(ex, cost or UNPRICED))
            return
        upstream, model = asked(ex)
        price = self._price(upstream, model, ex.at)
        if price is not None:
            self._record(record(ex, (price.cost(usage), price.text)))
            return
        # Perhaps the price is being looked up right now. The record can wait for it: the client has
        # its answer, and nothing of the exchange is held meanwhile.
        unpriced, keep = record(ex, UNPRICED), self._record

        def enter(price: Price | None) -> None:
            if price is None:
                keep(unpriced)
            else:
                keep(unpriced._replace(cost_nanos=price.cost(usage), price=price.text))

        self.config.prices.when_known(upstream, model, ex.at, enter)


def asked(ex: Exchange) -> tuple[Upstream, str]:
    """Who was asked last, and for which model there."""
    target = ex.attempts[-1].target
    return target.upstream, target.model or ex.request.head.model


def record(ex: Exchange, cost: tuple[int | None, str]) -> UsageRecord:
    """What the books keep of ``ex``; ``cost`` in billionths of a dollar, and the price as text."""
    attempts = ex.attempts
    started = ex.started
    asked_model = ex.request.head.model
    upstream = model = ""
    if attempts:
        target = attempts[-1].target
        upstream, model = target.upstream.name, target.model or asked_model
    input, output, cached, write, reasoning, heard, spoken, guessed = ex.usage or NONE
    principal = ex.principal
    fields = (
        ex.id,
        ex.at,
        principal.key_id if principal else "",
        (principal.organisation or "") if principal else "",
        ex.route.match,
        asked_model,
        upstream,
        model,
        ex.outcome.code or ex.outcome.kind,
        ex.status,
        ex.request.head.stream,
        input,
        output,
        cached,
        write,
        reasoning,
        heard,
        spoken,
        guessed,
        *cost,
        int((ex.written_at - started) * 1000) if ex.written_at else 0,
        int((monotonic() - started) * 1000),
        tuple([attempt_record(attempt, started) for attempt in attempts]),
    )
    return _new(UsageRecord, fields)


_new = tuple.__new__  # A named tuple's own takes a Python call more.
COST: StashKey[tuple[int, str]] = StashKey("usage.cost")
UNPRICED = (None, "")
NONE = (0, 0, 0, 0, 0, 0, 0, False)


def attempt_record(attempt: Attempt, started: float) -> AttemptRecord:
    """One try, as the books keep it."""
    failure = attempt.failure
    fields = (
        attempt.target.upstream.name,
        attempt.target.model,
        attempt.status,
        f"{failure.kind}: {failure.message}" if failure else "",
        int((attempt.started - started) * 1000),
        int((attempt.head_at - attempt.started) * 1000),
        # A refusal by status costs nothing; silence after a sent request may, and so may an answer
        # that its client did not wait for.
        failure.sent and failure.kind != "status" if failure else not attempt.status,
    )
    return _new(AttemptRecord, fields)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Metering]

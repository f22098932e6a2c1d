"""Metering: one record for each exchange, with exact tokens where the provider told them, its cost,
and every attempt inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from passy_proxy import (
    Exchange,
    Filter,
    Head,
    Ledger,
    Models,
    Prices,
    Settings,
    StashKey,
    Usage,
    UsageRecord,
    UsageRow,
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
    vouches = True
    config: Config

    async def start(self) -> None:
        self._record = self.config.ledger.record
        self._price = self.config.prices.of
        models = self.config.models
        targets = [target for model in models.aliases for target in model.targets]
        for name in models.names():
            targets += models.direct(name) or ()
        self.config.prices.start(targets)

    async def stop(self) -> None:
        await self.config.prices.stop()

    def on_response(self, ex: Exchange, head: Head) -> None:
        # A plain answer was read whole before its head is sent, so its cost is known in time.
        usage, attempts = ex.usage, ex.attempts
        if usage is None or usage.estimated or not attempts:
            return
        price = self._price(attempts[-1].target, ex.request.head.model, ex.at)
        if price is not None:
            nanos = price.cost(usage)
            ex.stash[COST] = (nanos, price.text)
            head.lines += b"x-passy-cost-usd: %d.%09d\r\n" % divmod(nanos, 1_000_000_000)

    def on_complete(self, ex: Exchange) -> None:
        reply = ex.reply
        if reply is not None and reply.status == 401:
            return  # Nobody we know, and nobody was asked: strangers cannot grow the books.
        cost = ex.stash.get(COST)
        usage = ex.usage
        if cost is None and usage is not None and ex.attempts:
            price = self._price(ex.attempts[-1].target, ex.request.head.model, ex.at)
            if price is None:
                self._record_later(ex, usage)
                return
            cost = (price.cost(usage), price.text)
        self._record(row(ex, cost or UNPRICED))

    def _record_later(self, ex: Exchange, usage: Usage) -> None:
        """Perhaps the price is being looked up right now. The record can wait for it: the client
        has its answer, and nothing of the exchange is held meanwhile."""
        unpriced, keep = row(ex, UNPRICED), self._record

        def enter(price: Price | None) -> None:
            if price is None:
                keep(unpriced)
            else:
                record, nanos = UsageRecord.of(unpriced), price.cost(usage)
                keep(record._replace(cost_nanos=nanos, price=price.text).row())

        target = ex.attempts[-1].target
        model = target.model or ex.request.head.model
        self.config.prices.when_known(target.upstream, model, ex.at, enter)


def row(ex: Exchange, cost: tuple[int | None, str]) -> UsageRow:
    """What the books keep of ``ex``, in the order of `UsageRecord`.

    ``cost`` is in billionths of a dollar, and the price as text.
    """
    started, written_at = ex.started, ex.written_at
    principal, outcome, head = ex.principal, ex.outcome, ex.request.head
    asked = head.model
    upstream = model = ""
    attempts = []
    for attempt in ex.attempts:
        target, began, failure = attempt.target, attempt.started, attempt.failure
        upstream, model, status = target.upstream.name, target.model, attempt.status
        if failure is None:
            # An answer that its client did not wait for may have cost something.
            why, billed = "", not status
        else:
            # So may silence after a sent request; a refusal by status costs nothing.
            why = f"{failure.kind}: {failure.message}"
            billed = failure.sent and failure.kind != "status"
        head_ms = int((attempt.head_at - began) * 1000)
        began_ms = int((began - started) * 1000)
        attempts.append((upstream, model, status, why, began_ms, head_ms, billed))
    input, output, cached, write, reasoning, heard, spoken, guessed = ex.usage or NONE
    nanos, price = cost
    return (
        ex.id,
        int(ex.at * 1000 + 0.5),
        principal.key_id if principal else "",
        (principal.organisation or "") if principal else "",
        ex.route.match,
        asked,
        upstream,
        (model or asked) if attempts else "",
        outcome.code or outcome.kind,
        ex.status,
        1 if head.stream else 0,
        input,
        output,
        cached,
        write,
        reasoning,
        heard,
        spoken,
        1 if guessed else 0,
        nanos,
        price,
        int((written_at - started) * 1000) if written_at else 0,
        int((monotonic() - started) * 1000),
        attempts,
    )


COST: StashKey[tuple[int, str]] = StashKey("usage.cost")
UNPRICED = (None, "")
NONE = (0, 0, 0, 0, 0, 0, 0, False)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Metering]

"""Metering: one record for each exchange, with exact tokens where the provider told them, its cost,
and every attempt inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from passy_proxy import Attempt, AttemptRecord, Exchange, Filter, Head, Ledger, Prices, Settings
from passy_proxy import UsageRecord, hookimpl, setting


class Config(Settings):
    ledger: Ledger = setting(..., "The store that keeps the books.")
    prices: Prices = setting("prices", "What tokens cost; overlays are written under prices:.")


class Metering(Filter):
    name = "usage"
    config: Config

    async def start(self) -> None:
        self._record = self.config.ledger.record
        self._price = self.config.prices.price

    def on_response(self, ex: Exchange, head: Head) -> None:
        # A plain answer was read whole before its head is sent, so its cost is known in time.
        usage = ex.usage
        if usage is None or usage.estimated or not ex.attempts:
            return
        target = ex.attempts[-1].target
        price = self._price(target.upstream.name, target.model, ex.at)
        if price is not None:
            nanos = price.cost(usage)
            head.headers.append((b"x-passy-cost-usd", b"%d.%09d" % divmod(nanos, 1_000_000_000)))

    def on_complete(self, ex: Exchange) -> None:
        self._record(self.record(ex))

    def record(self, ex: Exchange) -> UsageRecord:
        """What the books keep of ``ex``."""
        attempts = ex.attempts
        started = ex.started
        usage = ex.usage
        cost, source = None, ""
        upstream = model = ""
        if attempts:
            target = attempts[-1].target
            upstream, model = target.upstream.name, target.model
            if usage is not None:
                price = self._price(upstream, model, ex.at)
                if price is not None:
                    cost, source = price.cost(usage), price.source
        input, output, cached, write, reasoning, heard, spoken, guessed = usage or NONE
        principal = ex.principal
        return UsageRecord(
            ex.id,
            ex.at,
            principal.key_id if principal else "",
            (principal.organisation or "") if principal else "",
            ex.route.match,
            ex.request.head.model,
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
            cost,
            source,
            int((ex.written_at - started) * 1000) if ex.written_at else 0,
            int((monotonic() - started) * 1000),
            tuple([attempt_record(attempt, started) for attempt in attempts]),
        )


NONE = (0, 0, 0, 0, 0, 0, 0, False)


def attempt_record(attempt: Attempt, started: float) -> AttemptRecord:
    """One try, as the books keep it."""
    failure = attempt.failure
    return AttemptRecord(
        attempt.target.upstream.name,
        attempt.target.model,
        attempt.status,
        f"{failure.kind}: {failure.message}" if failure else "",
        int((attempt.started - started) * 1000),
        int((attempt.head_at - attempt.started) * 1000),
        # A refusal by status costs nothing; silence after a sent request may.
        failure is not None and failure.sent and failure.kind != "status",
    )


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Metering]

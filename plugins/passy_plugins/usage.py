"""Metering: one record for each exchange, with exact tokens where the provider told them, its cost,
and every attempt inside.

The books hear of each attempt before it begins and of the exchange's end before the client does:
whatever becomes of this process, an answer that a client saw complete has its record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Literal

from passy_plugins.tariff import followed
from passy_proxy import (
    Attempt,
    Exchange,
    Filter,
    Head,
    Ledger,
    Models,
    Prices,
    Principal,
    Remembered,
    Reply,
    Settings,
    StashKey,
    Target,
    Tariff,
    Usage,
    UsageRow,
    hookimpl,
    setting,
)
from passy_proxy.estimate import METERED, estimated
from passy_proxy.evidence import Seal
from passy_proxy.json import said
from passy_proxy.prices import Price

if TYPE_CHECKING:
    from passy_plugins.following import Following
    from passy_proxy.config.model import PriceSettings
    from passy_proxy.records import SetPrice


class Config(Settings):
    ledger: Ledger = setting(..., "The store that keeps the books.")
    prices: Prices = setting("prices", "What tokens cost; overlays are written under prices:.")
    remembered: Remembered = setting("remembered", "What is known, on disk.")
    models: Models = setting("models", "The table of models, whose prices are looked up at start.")
    when_client_leaves: Literal["stop", "drain"] = setting(
        "stop",
        "In the middle of an answer: stop the provider, and estimate what it had said; or read its"
        " answer to the end, to record what it says that it cost.",
    )
    unanswered: Literal["nothing", "prompt"] = setting(
        "nothing",
        "What is recorded when a client leaves before the provider has said a word: no tokens, or"
        " an estimate of the prompt's.",
    )
    when_full: Literal["refuse", "serve"] = setting(
        "refuse",
        "When the journal's disk is full, so that no record can be kept: refuse new requests, or"
        " serve them unmetered, which is counted and logged.",
    )
    evidence: bool = setting(
        False,
        "Enter digests of what the provider said and of what the client was sent with each record,"
        " and who changed it, so that `passy verify` finds every later change of the books.",
    )


Way = tuple[Target, str, bool, object, int]
"""What is asked of whom, for whom: a principal's identity, since its value takes long to hash."""
MILLION = Usage(input=1_000_000)
NOTE = b'["%b",%d,%d,%d,%b,[%b]]'
"""A `BegunRow`."""


class Metering(Filter):
    name = "usage"
    vouches = True
    config: Config

    @property
    def when_away(self) -> str:
        full = "503" if self.config.when_full == "refuse" else "served unmetered, and counted"
        return f"records wait in the journal; when its disk is full: {full}"

    async def start(self) -> None:
        self._ledger = self.config.ledger
        self._begin = self.config.ledger.begin
        self._record = self.config.ledger.record
        self._drains = self.config.when_client_leaves == "drain"
        self._guesses = self.config.unanswered == "prompt"
        self._serve = self.config.when_full == "serve"
        self._seals = self.config.evidence
        self.unmetered = 0
        """Exchanges that left no record."""
        self._asked: dict[Way, tuple[Principal | None, bytes]] = {}
        """The principal is kept: as long as it is, nobody else has its identity."""
        self._price = self.config.prices.of
        await self.config.prices.start(self.config.models.served())
        self._following: Following[SetPrice] | None = None
        if isinstance(self._ledger, Tariff):
            self._following = followed(self._ledger, self.config.remembered, self.set, self.log)
            await self._following.start()

    def set(self, prices: Mapping[str, PriceSettings]) -> None:
        """From now on these hold; what has begun may still end with what held before."""
        self.config.prices.set(getattr(self._ledger, "place", ""), prices)
        self._asked.clear()

    async def stop(self) -> None:
        if self.unmetered:
            self.log.warning("unmetered_requests", count=self.unmetered)
        if self._following is not None:
            await self._following.stop()
        await self.config.prices.stop()

    def on_request(self, ex: Exchange) -> Reply | None:
        if self._ledger.full and not self._serve:
            message = "No usage could be recorded now, so nothing is served. Try again later."
            return Reply(503, "metering_unavailable", message, [(b"retry-after", b"5")])
        if self._seals:
            ex.seal = Seal()
        return None

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        if self._drains:
            ex.drains = True
        request = ex.request
        head = request.head
        way = (attempt.target, head.model, head.stream, ex.route, id(ex.principal))
        known = self._asked.get(way) or self.asked(ex, attempt, way)
        at = int(ex.at * 1000 + 0.5)
        size = len(request.body) if request.operation in METERED else 0
        began = int((attempt.started - ex.started) * 1000)
        before = b"" if ex.attempts[0] is attempt else earlier(ex)
        self._begin(ex.id, NOTE % (ex.id.encode(), at, size, began, known[1], before))

    def asked(self, ex: Exchange, attempt: Attempt, way: Way) -> tuple[Principal | None, bytes]:
        """What a `BegunRow` says of the question, as JSON; remembered where it may come again."""
        principal, target, head = ex.principal, attempt.target, ex.request.head
        price = self._price(target, head.model, ex.at)
        asked = (
            *(principal.whose if principal else NOBODY),
            ex.route.match,
            head.model,
            1 if head.stream else 0,
            target.upstream.name,
            target.model or head.model,
            None if price is None else price.cost(MILLION),
            "" if price is None else price.text,
        )
        known = (principal, said(asked))
        if len(head.model) <= LONGEST_NAME:
            if len(self._asked) >= REMEMBERED:
                self._asked.clear()
            self._asked[way] = known
        return known

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

    def on_end(self, ex: Exchange) -> Awaitable[None] | None:
        attempts, reply = ex.attempts, ex.reply
        if reply is not None and not attempts and unrecorded(reply):
            return None
        cost = ex.stash.get(COST)
        usage = ex.usage
        if usage is None and self._guesses and ex.gone and any(map(reached, attempts)):
            usage = ex.usage = estimated(ex.request.body, 0)
        if cost is None and usage is not None and attempts:
            price = self._price(attempts[-1].target, ex.request.head.model, ex.at)
            if price is None:
                self._price_later(ex.id, ex.at, ex.request.head.model, attempts[-1].target, usage)
            else:
                cost = ex.stash[COST] = (price.cost(usage), price.text)
        proof = None if ex.seal is None else ex.seal.proof(ex)
        kept = self._record(row(ex, cost or UNPRICED), proof)
        if kept is True:
            return None
        if kept is False:
            self.unmetered += 1
            return None
        return self._count(kept)

    async def _count(self, kept: Awaitable[bool]) -> None:
        if not await kept:
            self.unmetered += 1

    def _price_later(self, id: str, at: float, asked: str, target: Target, usage: Usage) -> None:
        """Perhaps the price is being looked up right now. The record does not wait for it, and
        nothing of the exchange is held meanwhile."""
        enter_price = self.config.ledger.price

        def enter(price: Price | None) -> None:
            if price is not None:
                enter_price(id, price.cost(usage), price.text)

        self.config.prices.when_known(target.upstream, target.model or asked, at, enter)


def unrecorded(reply: Reply) -> bool:
    """Nobody we know was answered, and strangers cannot grow the books; or there is no room."""
    return reply.status == 401 or reply.code == "metering_unavailable"


def reached(attempt: Attempt) -> bool:
    """Whether its upstream may have read the prompt."""
    return attempt.failure is None or attempt.failure.sent


def earlier(ex: Exchange) -> bytes:
    """Of each attempt but the last whom it asked, and how many milliseconds after the exchange
    began; without the brackets of a list."""
    asked = ex.request.head.model
    told = [
        (
            attempt.target.upstream.name,
            attempt.target.model or asked,
            int((attempt.started - ex.started) * 1000),
        )
        for attempt in ex.attempts[:-1]
    ]
    return said(tuple(told))[1:-1]


def row(ex: Exchange, cost: tuple[int | None, str]) -> UsageRow:
    """What the books keep of ``ex``, in the order of `UsageRecord`.

    ``cost`` is in billionths of a dollar, and the price as text.
    """
    started, written_at = ex.started, ex.written_at
    principal, outcome, head = ex.principal, ex.outcome, ex.request.head
    asked = head.model
    upstream = model = ""
    attempts, ran = [], ex.route.ran
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
        built = attempt.built
        waits = NO_WAITS if built is None else (built.queue_ms, built.connect_ms)
        credential = attempt.credential
        shown = "" if credential is None else credential.id
        attempts.append(
            (upstream, model, status, why, began_ms, head_ms, billed, *waits, shown, ran)
        )
    answered = (model or asked) if attempts else ""
    code = outcome.code or outcome.kind
    first_ms = int((written_at - started) * 1000) if written_at else 0
    return (
        (ex.id, int(ex.at * 1000 + 0.5))
        + (NOBODY if principal is None else principal.whose)
        + (ex.route.match, asked, upstream, answered, code, ex.status, head.stream)
        + (ex.usage or NONE)
        + cost
        + (first_ms, int((monotonic() - started) * 1000), attempts)
    )


REMEMBERED = 1_000
"""Questions whose words are kept as JSON."""
LONGEST_NAME = 200
COST: StashKey[tuple[int, str]] = StashKey("usage.cost")
UNPRICED = (None, "")
NONE = Usage()
NO_WAITS = (0, 0)
NOBODY = ("", "", "", "", "")


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Metering]

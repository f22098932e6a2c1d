"""What tokens cost: what people have set first, then the configuration's overlay, then the price
list of genai-prices."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import lru_cache
from ipaddress import ip_address
from math import gcd, inf
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from passy_proxy.listing import Question, Rates, Tier
from passy_proxy.price_book import PriceBook, keep
from passy_proxy.records import Usage
from passy_proxy.tasks import in_turns

if TYPE_CHECKING:
    from passy_proxy.config.model import PriceSettings
    from passy_proxy.upstream import Target, Upstream

ATTO = 10**18
NANO = 10**9
"""Attodollars in a billionth of a dollar."""
MILLION = 10**12
"""Attodollars a token that make a dollar a million tokens."""


class Price:
    """What one model's tokens cost, from one moment until another."""

    __slots__ = ("_rates", "_tiers", "above", "always", "rates", "since", "source", "text", "until")

    def __init__(
        self, tiers: Iterable[Tier], source: str, since: float = -inf, until: float = inf
    ) -> None:
        first, *more = tiers
        self._rates = reckoned(first.rates)
        self._tiers = [(tier.above, reckoned(tier.rates)) for tier in more]
        self.rates = first.rates
        """As they are written, of a request that reads no more than `above` tokens."""
        self.above = more[0].above if more else inf
        self.source = source
        """Where it is from."""
        self.text = text_of([first, *more], source)
        """For the books: US dollars a million tokens of each kind, and the source."""
        self.since = since
        self.until = until
        """Unix seconds, exclusive; another price may hold then."""
        self.always = since == -inf and until == inf

    def cost(self, usage: Usage) -> int:
        """Billionths of a US dollar, rounded half up."""
        input, output, cached, write, reasoning, heard, spoken, _ = usage
        rates = self._rates if input <= self.above else self._reached(input)
        nano, base, read, written, of_read, of_written = rates
        cost = base + input * read + output * written
        if cached or write or reasoning or heard or spoken:
            if cached + write + heard > input or reasoning + spoken > output:
                cached, write, heard = parts(input, (cached, write, heard), of_read)
                reasoning, spoken = parts(output, (reasoning, spoken), of_written)
            on_cached, on_write, on_heard = of_read
            on_reasoning, on_spoken = of_written
            cost += cached * on_cached + write * on_write + heard * on_heard
            cost += reasoning * on_reasoning + spoken * on_spoken
        return cost // nano

    def _reached(self, input: int) -> Reckoned:
        return next(rates for above, rates in reversed(self._tiers) if input > above)


KINDS = {
    "cached": "input",
    "cache_write": "input",
    "audio_input": "input",
    "reasoning": "output",
    "audio_output": "output",
}
"""Kinds of tokens that may cost something else than those they are among."""


def text_of(tiers: Sequence[Tier], source: str) -> str:
    """``2.5 in, 10 out, 1.25 cached per 1M (where it is from)``. Kinds that cost like any other are
    left out."""
    told = "; ".join(
        f"above {tier.above} tokens {_told(tier.rates)}" if number else _told(tier.rates)
        for number, tier in enumerate(tiers)
    )
    return f"{told} ({source})"


def _told(rates: Rates) -> str:
    parts = [f"{rates.input / MILLION:.12g} in", f"{rates.output / MILLION:.12g} out"]
    for kind, among in KINDS.items():
        rate = getattr(rates, kind)
        if rate != getattr(rates, among):
            parts.append(f"{rate / MILLION:.12g} {kind}")
    fee = f", {rates.request / ATTO:.12g} a request" if rates.request else ""
    return f"{', '.join(parts)} per 1M{fee}"


Reckoned = tuple[int, int, int, int, tuple[int, int, int], tuple[int, int]]
"""How to reckon, in a unit of which each rate is a multiple: a billionth of a dollar; what every
request costs, with half a billionth for rounding; a token read; one written; and what each kind
costs more than those: cached, written into a cache, audio heard; thought, audio spoken."""


def reckoned(rates: Rates) -> Reckoned:
    """From attodollars, in the largest unit there is: small numbers are multiplied faster."""
    read, written = rates.input, rates.output
    unit = gcd(NANO, *rates)
    return (
        NANO // unit,
        rates.request // unit + NANO // unit // 2,
        read // unit,
        written // unit,
        (
            (rates.cached - read) // unit,
            (rates.cache_write - read) // unit,
            (rates.audio_input - read) // unit,
        ),
        ((rates.reasoning - written) // unit, (rates.audio_output - written) // unit),
    )


def parts(whole: int, counts: Sequence[int], surcharges: Sequence[int]) -> list[int]:
    """``counts`` of one ``whole`` cut down so that they fit into it, the last ones first.

    Some overlap (audio that was also cached), and some providers count wrongly. A kind that costs
    like any other takes up no room.
    """
    fitting = []
    for count, surcharge in zip(counts, surcharges, strict=True):
        part = min(count, whole) if surcharge else 0
        whole -= part
        fitting.append(part)
    return fitting


FREE = Price([Tier(-1, Rates(*[0] * 8))], "free")
"""Of transports that say so (``free``): nobody has to be paid for what is made in this process."""


class Prices:
    """Prices by upstream and model. ``None`` means unknown, which is never shown as free."""

    KEPT = 4_096

    def __init__(self, overlay: Mapping[str, PriceSettings], book: PriceBook | None = None) -> None:
        self._exact = {name: price_of(name, one) for name, one in overlay.items()}
        self._patterns = sorted((name for name in overlay if "*" in name), key=len, reverse=True)
        self._set: dict[str, dict[str, Price]] = {}
        """By who says it: upstream/model → what people have set."""
        self._book = book
        self._known: dict[tuple[str, str, str], Price] = {}
        self._unknown: dict[tuple[str, str, str], None] = {}
        self._lasting: dict[Target, Price | None] = {}
        """Targets that live as long as this, and their price if it is known and holds always."""

    def set(self, teller: str, written: Mapping[str, PriceSettings]) -> None:
        """These go before all others from now on, and replace what ``teller`` said before. What was
        reckoned is not reckoned anew."""
        self._set[teller] = {name: price_of(name, one, SET) for name, one in written.items()}
        self._known.clear()
        self._unknown.clear()
        self._lasting = dict.fromkeys(self._lasting)

    async def start(self, targets: Iterable[Target] = ()) -> None:
        """Open the price list and ask, in the background, what ``targets`` cost."""
        if self._book is not None:
            self._book.open()
        await in_turns(self._asking(targets))

    def _asking(self, targets: Iterable[Target]) -> Generator[None, None, None]:
        now = time()
        for target in targets:
            self._lasting[target] = None
            self.of(target, target.model, now)
            yield

    async def stop(self) -> None:
        """Ask nothing more; whoever waits is told that the price is unknown."""
        if self._book is not None:
            await self._book.close()

    def of(self, target: Target, model: str, at: float) -> Price | None:
        """The same at ``target``, for a request that asked for ``model``."""
        price = self._lasting.get(target)
        if price is None:
            price = self.price(target.upstream, target.model or model, at)
            if price is not None and price.always and target in self._lasting:
                self._lasting[target] = price
        return price

    def price(self, upstream: Upstream, model: str, at: float) -> Price | None:
        """The price of ``model`` at ``upstream`` at the Unix time ``at``, if it is known by now."""
        key = (upstream.name, upstream.url, model)
        price = self._known.get(key)
        if price is not None and price.since <= at < price.until:
            return price
        return None if key in self._unknown else self._find(key, upstream, at)

    def known_soon(self, upstream: Upstream, model: str) -> bool:
        """Whether the price list is being asked for it."""
        asked = question_of(upstream, model)
        return self._book is not None and asked is not None and self._book.asks(asked)

    def context(self, upstream: Upstream, model: str) -> int | None:
        """Tokens that fit into a request and its answer, as far as the list is known to say."""
        asked = question_of(upstream, model)
        answer = self._book.answer(asked) if self._book is not None and asked is not None else None
        return (answer.listing.context or None) if answer and answer.listing else None

    def when_known(
        self, upstream: Upstream, model: str, at: float, then: Callable[[Price | None], None]
    ) -> None:
        """Call ``then`` with the price: at once, or when the price list has said what it knows."""
        price = self.price(upstream, model, at)
        question = question_of(upstream, model)
        if price is not None or self._book is None or question is None:
            then(price)
        else:
            self._book.when_known(question, lambda: then(self.price(upstream, model, at)))

    def _find(self, key: tuple[str, str, str], upstream: Upstream, at: float) -> Price | None:
        model = key[2]
        price = self._overlaid(f"{upstream.name}/{model}")
        if price is None and getattr(upstream.transport, "free", False):
            price = FREE
        if price is None and self._book is not None and (asked := question_of(upstream, model)):
            answer = self._book.answer(asked)
            if answer is None:
                return None  # Not known yet; the next one may be luckier.
            if answer.listing is not None:
                period, since, until = answer.listing.period(at)
                if not period.tiers:
                    return None
                source = f"{self._book.source}: {answer.listing.name}"
                price = Price(period.tiers, source, since, until)
        if price is None:
            keep(self._unknown, key, None, self.KEPT)
        else:
            keep(self._known, key, price, self.KEPT)
        return price

    def _overlaid(self, name: str) -> Price | None:
        for told in self._set.values():
            if (price := told.get(name)) is not None:
                return price
        if (exact := self._exact.get(name)) is not None:
            return exact
        return next((self._exact[p] for p in self._patterns if fnmatchcase(name, p)), None)


SET, WRITTEN = "set", "prices"
"""How the source of a price begins that people have set, or the configuration says."""


def price_of(name: str, written: PriceSettings, source: str = WRITTEN) -> Price:
    """The price that somebody wrote for ``name``."""
    per = int(written.per)

    def rate(price: float | None, otherwise: int = 0) -> int:
        # The shortest text of a float is the text it was written as: no cent is lost to binary.
        return otherwise if price is None else round(Fraction(repr(price)) * ATTO / per)

    read, spoken = rate(written.input), rate(written.output)
    rates = Rates(
        request=0,
        input=read,
        output=spoken,
        cached=rate(written.cached_input, read),
        cache_write=rate(written.cache_write, read),
        reasoning=rate(written.reasoning, spoken),
        audio_input=rate(written.audio_input, read),
        audio_output=rate(written.audio_output, spoken),
    )
    return Price([Tier(-1, rates)], f"{source}: {name}")


def question_of(upstream: Upstream, model: str) -> Question | None:
    """What to ask the list; ``None`` for what nobody sells: in this process, on this network."""
    if not model or not sells(upstream.url):
        return None
    # An operator's name for an upstream says what it is; an organisation's does not.
    return Question(upstream.url, upstream.name if upstream.owner == "operator" else "", model)


@lru_cache(1024)
def sells(url: str) -> bool:
    """Whether somebody may sell at ``url``: not in this process, nor on this network. Asked with
    each request that has no price."""
    host = urlsplit(url).hostname
    if not host:
        return False
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".localhost", ".local", ".internal"))

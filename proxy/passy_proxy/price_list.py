"""``python -m passy_proxy.price_list``: reads genai-prices for a gateway, in a process of its own.

Its import takes longer than a gateway's start and more memory than a gateway has. A line of
standard input is a JSON list of questions, a line of standard output the list of their answers; the
end of the input is the end of it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal

import msgspec
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
)

from passy_proxy.listing import Answer, Listing, Period, Question, Rates, Tier

ATTO = 10**18

Listed = Decimal | TieredPrices


def answer(question: Question) -> Answer:
    """What the list says of one model."""
    providers = get_snapshot().providers
    provider = provider_of(question, providers)
    if provider is None:
        return Answer(None, provider=False)
    model = provider.find_model(question.model, all_providers=providers)
    if model is None:
        return Answer(None)
    periods = periods_of(model)
    if not any(period.tiers for period in periods):
        return Answer(None)
    return Answer(Listing(f"{provider.id}/{model.id}", periods, model.context_window or 0))


def provider_of(question: Question, providers: Sequence[Provider]) -> Provider | None:
    """By address; else by name, where one was told."""
    for provider in providers:
        if re.match(provider.api_pattern, question.url):
            return provider
    return next((p for p in providers if p.id == question.provider), None)


def periods_of(model: ModelInfo) -> tuple[Period, ...]:
    free = model.id.endswith(":free")
    if isinstance(model.prices, ModelPrice):
        return (Period(tiers_of(model.prices, free)),)
    return tuple(period_of(one, free) for one in model.prices)


def period_of(one: ConditionalPrice, free: bool) -> Period:
    tiers = tiers_of(one.prices, free)
    match one.constraint:
        case None:
            return Period(tiers)
        case StartDateConstraint(start_date=day):
            return Period(tiers, since=datetime.combine(day, time(), UTC).timestamp())
        case constraint:
            hours = (second_of_day(constraint.start_time), second_of_day(constraint.end_time))
            return Period(tiers, daily=hours)


def second_of_day(moment: time) -> float:
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.combine(datetime(2000, 1, 2), zoned).timestamp() % 86_400


def tiers_of(prices: ModelPrice, free: bool) -> tuple[Tier, ...]:
    """Empty where tokens have no price: a price that is not listed is not nought."""
    listed: dict[str, Listed] = {
        name: price for name, price in vars(prices).items() if price is not None
    }
    if "input_mtok" not in listed and "output_mtok" not in listed and not (free and not listed):
        return ()
    starts = {
        tier.start
        for price in listed.values()
        if isinstance(price, TieredPrices)
        for tier in price.tiers
    }
    return tuple(Tier(above, rates_of(listed, above)) for above in (-1, *sorted(starts)))


def rates_of(listed: Mapping[str, Listed], above: int) -> Rates:
    """The rates of a request that reads more than ``above`` tokens."""

    def rate(name: str, otherwise: int = 0, per: int = 1_000_000) -> int:
        price = listed.get(name)
        if price is None:
            return otherwise
        if isinstance(price, TieredPrices):
            reached = [tier.price for tier in price.tiers if tier.start <= above]
            price = reached[-1] if reached else price.base
        return round(price * ATTO / per)

    read, written = rate("input_mtok"), rate("output_mtok")
    return Rates(
        request=rate("requests_kcount", per=1_000),
        input=read,
        output=written,
        cached=rate("cache_read_mtok", read),
        cache_write=rate("cache_write_mtok", read),
        reasoning=rate("output_reasoning_mtok", written),
        audio_input=rate("input_audio_mtok", read),
        audio_output=rate("output_audio_mtok", written),
    )


def main() -> None:
    """Answer until nobody asks."""
    if hasattr(os, "nice"):
        os.nice(5)  # No answer is awaited as urgently as the gateway's own work.
    questions = msgspec.json.Decoder(list[Question])
    for line in sys.stdin.buffer:
        answers = [answer(question) for question in questions.decode(line)]
        sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

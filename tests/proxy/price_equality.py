"""Compares our integers with genai-prices' own Decimals, for every model it lists.

A test runs it in a process of its own. It prints each cost that differs, then how many agreed and
how many models have no price for tokens.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import Usage as TheirUsage

from passy_proxy.listing import Question
from passy_proxy.price_list import answer
from passy_proxy.prices import Price
from passy_proxy.records import Usage

USAGES = (
    Usage(1, 1),
    Usage(1_234, 567),
    Usage(10_007, 333, cached=9_001),
    Usage(250_001, 1_003, cached=7, cache_write=100_001, reasoning=900),
    Usage(200_000, 17, cache_write=3),
    Usage(272_001, 8_191, cached=272_000),
    Usage(5_003, 4_001, audio_input=3_001, audio_output=2_003),
    Usage(5_003, 4_001, cached=1_009, audio_input=3_001, reasoning=11, audio_output=2_003),
)
TIMES = tuple(
    datetime(*when, tzinfo=UTC).timestamp()
    for when in ((2024, 6, 1, 0, 29, 59), (2026, 10, 19, 3, 0), (2027, 2, 1, 12, 30))
)


def theirs(usage: Usage) -> TheirUsage:
    return TheirUsage(
        input_tokens=usage.input,
        output_tokens=usage.output,
        cache_read_tokens=usage.cached,
        cache_write_tokens=usage.cache_write,
        output_reasoning_tokens=usage.reasoning,
        input_audio_tokens=usage.audio_input,
        output_audio_tokens=usage.audio_output,
        cache_audio_read_tokens=0,
        cache_audio_write_tokens=0,
    )


def main() -> None:
    agreed, unpriced = 0, 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            found = answer(Question("", provider.id, model.id)).listing
            listed = provider.find_model(model.id)
            if found is None or listed is None:
                unpriced += 1
                continue
            for at in TIMES:
                period, since, until = found.period(at)
                assert since <= at < until
                if not period.tiers:
                    continue
                price = Price(period.tiers, "", since, until)
                for usage in USAGES:
                    exact = listed.calc_price(
                        theirs(usage),
                        provider,
                        genai_request_timestamp=datetime.fromtimestamp(at, UTC),
                    ).total_price
                    nanos = int((exact * 10**9).quantize(Decimal(1), ROUND_HALF_UP))
                    if nanos == price.cost(usage):
                        agreed += 1
                    else:
                        sys.stdout.write(f"{found.name} {usage}: {price.cost(usage)} != {exact}\n")
    sys.stdout.write(f"{agreed} {unpriced}\n")


if __name__ == "__main__":
    main()

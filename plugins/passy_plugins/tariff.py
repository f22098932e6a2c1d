"""Prices that people have set, as `usage` follows them: in the store of the books."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from passy_plugins.following import Decided, Following
from passy_proxy import SetPrice
from passy_proxy.config.model import PriceSettings

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy import Remembered, Tariff


def followed(
    tariff: Tariff,
    remembered: Remembered,
    hold: Callable[[Mapping[str, PriceSettings]], None],
    log: FilteringBoundLogger,
) -> Following[SetPrice]:
    """Calls ``hold`` with all prices, at once where there are any and at each change."""

    def taken(prices: Sequence[SetPrice]) -> None:
        told: dict[str, PriceSettings] = {}
        for one in prices:
            try:
                told[one.target] = PriceSettings.model_validate(one.rates)
            except ValidationError as error:  # Of a later version, or by somebody else's hand.
                log.error("price_unusable", target=one.target, reason=str(error))
        hold(told)
        log.info("prices_set", prices={one.target: one.rates for one in prices})

    return Following(Decided("price", tariff, tariff.tariff, SetPrice, taken), remembered, log)

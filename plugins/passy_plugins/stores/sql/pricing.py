"""The writing side of prices that people set."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, insert, select

from passy_plugins.stores.sql.schema import set_prices
from passy_plugins.stores.sql.writing import Writing, now, text_of
from passy_proxy.json import dumps, loads
from passy_proxy.records import SetPrice

PRICED = "price"
"""The kind of change that an edit here is told as; its subject is the target."""


class Pricing(Writing):
    """Part of `Admin`."""

    async def list_prices(self) -> list[SetPrice]:
        """By target."""
        return [
            SetPrice(row.target, loads(row.rates), row.set_by, row.at / 1000)
            for row in await self._read(select(set_prices).order_by(set_prices.c.target))
        ]

    async def set_price(self, target: str, rates: Mapping[str, float] | None, by: str = "") -> None:
        """See `SetPrice`; ``None`` leaves it to the configuration and the price list again."""
        async with self._connected() as connection:
            await connection.execute(delete(set_prices).where(set_prices.c.target == target))
            if rates is not None:
                told = dumps(dict(rates)).decode()
                row = insert(set_prices).values(
                    target=text_of(target), rates=told, set_by=by, at=now()
                )
                await connection.execute(row)
            await self._note(connection, PRICED, target)

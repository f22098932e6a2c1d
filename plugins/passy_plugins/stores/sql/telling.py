"""Who is told of a budget, and that it is told once: alerts and webhooks in the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.sealed import hook_owner
from passy_proxy.config.settings import Secret
from passy_proxy.json import loads
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.stores import Hook

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.stores.sql.database import Row
    from passy_plugins.stores.sql.driver import Database


class Telling:
    """Part of `Sql`: `Alerts`."""

    _reader: Database
    _writer: Database
    _keyring: Keyring
    _log: FilteringBoundLogger

    async def raise_alert(self, budget: str, window: str, percent: int, patience: float) -> bool:
        now = int(time.time() * 1000)
        before = now - int(patience * 1000)
        values = (budget, window, percent, now, before)
        return bool(await self._writer.fetch(statements.BEGIN_ALERT, *values))

    async def alerted(self, budget: str, window: str, percent: int) -> None:
        now = int(time.time() * 1000)
        await self._writer.fetch(statements.ALERTED, now, budget, window, percent)

    async def hooks(self, organisation: str | None, event: str) -> Sequence[Hook]:
        """One whose secret cannot be opened is left out, and logged."""
        rows = await self._reader.fetch(statements.OPERATORS_HOOKS)
        if organisation is not None:
            rows += await self._reader.fetch(statements.HOOKS, organisation)
        wanted = [row for row in rows if event in loads(cast(str, row[4]))]
        if not wanted:
            return []
        return await asyncio.to_thread(
            lambda: [hook for row in wanted if (hook := self._opened(row)) is not None]
        )

    def _opened(self, row: Row) -> Hook | None:
        id, organisation, url, sealed, _ = cast("tuple[str, str | None, str, str, str]", row)
        try:
            secret = self._keyring.open(sealed, *hook_owner(organisation, id))
        except KeyringError as error:
            self._log.error("webhook_unusable", webhook=id, reason=str(error))
            return None
        return Hook(id, url, Secret(secret))

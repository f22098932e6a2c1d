"""What was asked some days ago: entered into the books of a gateway by the ledger itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site

if TYPE_CHECKING:
    from harness.gateway import Gateway


def asked(number: int, at: float, **facts: object) -> UsageRecord:
    """One that ended well: 60 tokens in and 40 out, for a cent. ``at``: Unix seconds."""
    record = UsageRecord(
        f"req_{number:032x}", at, "", "", "", "", "", "POST /v1/chat/completions", "one", "echo",
        "echo", "ok", 200, False, 60, 40, 0, 0, 0, 0, 0, False, 10_000_000, "", 5, 10, (),
    )  # fmt: skip
    return record._replace(**facts)


def enter(gateway: Gateway, records: Sequence[UsageRecord]) -> None:
    """All of them are in its books when this returns."""
    url = gateway.variables.get("DATABASE_URL") or f"sqlite:///{gateway.folder}/.passy/passy.db"
    keyring = Keyring.load(gateway.folder / "data", gateway.variables.get("PASSY_SECRET_KEYS"))

    async def within() -> None:
        site, left = Site(gateway.folder / "past", keyring), [*records]
        while True:
            store = Sql(SqlSettings(url=Secret(url)), site)
            await store.start()
            for record in left:
                assert store.record(record.row()) is True
            await store.stop()
            left = []
            if not store.waiting:  # On a busy machine some may: the next one begins with that.
                break

    asyncio.run(within())

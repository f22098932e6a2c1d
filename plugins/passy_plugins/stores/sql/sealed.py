"""Where sealed secrets stand, whom they are bound to, and how those of an organisation are opened.

What an envelope is bound to is all that says which row it belongs to: the organisation, what the
secret is for, the column with the row's own id, and a number that grows with each new secret. So
neither another row's nor this row's earlier secret opens in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from passy_plugins.stores.sql import statements
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.records import Credential

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.stores.sql.database import Row
    from passy_plugins.stores.sql.driver import Database


LONG = 16
"""Characters of a secret of which four say little."""


def bound_to(organisation: str, upstream: str, id: str, version: int) -> tuple[str, ...]:
    """The owner of a credential's envelope."""
    return organisation, upstream, f"credential {id}", str(version)


def hook_owner(organisation: str | None, id: str) -> tuple[str, ...]:
    """The owner of the envelope of a webhook's secret."""
    return organisation or "", "webhook", f"webhook {id}", "1"


def last_four(secret: str) -> str:
    """What may be shown of a secret."""
    return secret[-4:] if len(secret) >= LONG else ""


async def opened(keyring: Keyring, organisation: str, rows: Sequence[Row]) -> list[Credential]:
    """The credentials of ``rows`` (see `statements.CREDENTIALS`). In a thread: the first one loads
    what opens them, and there may be many."""
    if not rows:
        return []
    return await asyncio.to_thread(
        lambda: [
            _opened(keyring, organisation, cast("tuple[str, str, int, str]", row)) for row in rows
        ]
    )


def _opened(keyring: Keyring, organisation: str, row: tuple[str, str, int, str]) -> Credential:
    id, upstream, version, sealed = row
    try:
        secret = keyring.open(sealed, *bound_to(organisation, upstream, id, version))
    except KeyringError as error:
        return Credential("", organisation, id, upstream, str(error))
    return Credential(secret, organisation, id, upstream)


async def have_keys(
    database: Database, keyring: Keyring, log: FilteringBoundLogger, *, serve: bool
) -> None:
    """`KeyringError` when active credentials are sealed with keys that were not given; where it is
    to ``serve`` whoever does not need them, a line in the log for each key."""
    missing: dict[str, int] = {}
    for key_id, count in await database.fetch(statements.SEALED_WITH):
        if (name := cast(str, key_id)) not in keyring:
            missing[name] = cast(int, count)
    if serve:
        for key_id, count in missing.items():
            log.error("secret_key_missing", key_id=key_id, credentials=count)
    elif missing:
        told = "; ".join(
            f"{count} {'credential is' if count == 1 else 'credentials are'} sealed with {key_id}"
            for key_id, count in missing.items()
        )
        raise KeyringError(
            f"a secret key is missing: {told}. Give it in PASSY_SECRET_KEYS; or, to serve whoever "
            "needs none of these, set when_key_missing: serve for this store"
        )

"""What all parts of `Admin` write with: a transaction for each edit, with a note in ``changes``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Executable, Row, delete, insert

from passy_plugins.stores.sql.schema import changes
from passy_plugins.stores.sql.statements import rate_text
from passy_proxy.addresses import parse_network
from passy_proxy.json import dumps
from passy_proxy.keyring import Keyring
from passy_proxy.records import Limits

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

TOLD_FOR = 86_400_000
"""Milliseconds for which an edit is kept in ``changes``: workers look there every few seconds."""
LONGEST_TAG = 64
MOST_TAGS = 16


class Writing:
    """Part of `Admin`."""

    _keyring: Keyring
    _noted: dict[AsyncConnection, list[tuple[str, str]]]
    """What each transaction under way has edited."""

    def _connected(self) -> AbstractAsyncContextManager[AsyncConnection]:
        raise NotImplementedError

    async def _read(self, statement: Executable) -> Sequence[Row[Any]]:
        async with self._connected() as connection:
            return (await connection.execute(statement)).all()

    async def _change(self, kind: str, subject: str, *statements: Executable) -> int:
        """Run them in one transaction, and leave a note that ``subject`` was edited; how many rows
        the first one touched. If those were none, nothing is done."""
        async with self._connected() as connection:
            touched = (await connection.execute(statements[0])).rowcount
            if not touched:
                return 0
            for statement in statements[1:]:
                await connection.execute(statement)
            await self._note(connection, kind, subject)
        return touched

    async def _note(self, connection: AsyncConnection, kind: str, subject: str) -> None:
        at = now()
        await connection.execute(delete(changes).where(changes.c.at < at - TOLD_FOR))
        await connection.execute(insert(changes).values(kind=kind, subject=subject, at=at))
        self._noted[connection].append((kind, subject))


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(8)}"


def now() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


# What columns hold of what people say


def text_of(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text cannot hold a NUL character")
    return value


def name_of(value: str) -> str:
    if not value.strip():
        raise ValueError("give a name")
    return text_of(value)


def status_of(value: str) -> str:
    if value not in ("active", "disabled"):
        raise ValueError(f"no status {value!r}; write active or disabled")
    return value


def concurrency_of(value: int | None) -> int | None:
    if value is not None and not 1 <= value < 1 << 31:
        raise ValueError("concurrency is at least 1")
    return value


def list_of(names: Sequence[str] | None) -> str | None:
    """Models and upstreams: exact names, or patterns with ``*``."""
    if names is None:
        return None
    for name in names:
        name_of(name)
    return dumps(list(dict.fromkeys(names))).decode()


def networks_of(ranges: Sequence[str] | None) -> str | None:
    """Address ranges, as they are compared: without the bits of a host."""
    return None if ranges is None else list_of([str(parse_network(each)) for each in ranges])


def tags_of(tags: Iterable[str]) -> str:
    kept = list(dict.fromkeys(tags))
    if len(kept) > MOST_TAGS:
        raise ValueError(f"no more than {MOST_TAGS} tags")
    for tag in kept:
        if not tag.strip() or "," in tag or not tag.isprintable() or len(tag) > LONGEST_TAG:
            raise ValueError(
                f"{tag[:LONGEST_TAG]!r} is no tag: up to {LONGEST_TAG} printable characters"
                " without a comma"
            )
    return ",".join(kept)


Coder = Callable[[Any], Any]

LIMITS: Mapping[str, Coder] = {
    "requests": rate_text,
    "tokens": rate_text,
    "concurrency": concurrency_of,
    "models": list_of,
}
"""Field → its column's value, for what can be held on each level."""


def coded(fields: Mapping[str, Any], coders: Mapping[str, Coder]) -> dict[str, Any]:
    """Columns of ``fields``. ValueError for a value that cannot be, and for one nobody knows."""
    if unknown := fields.keys() - coders.keys():
        raise ValueError(f"cannot set {', '.join(sorted(unknown))}")
    return {name: coders[name](value) for name, value in fields.items()}


def limits_in(limits: Limits) -> dict[str, Any]:
    """``limits`` as fields."""
    return {
        "requests": limits.requests,
        "tokens": limits.tokens,
        "concurrency": limits.concurrency,
    }

"""The writing side of what people decide of the targets of aliases."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from passy_plugins.stores.sql.schema import switches
from passy_plugins.stores.sql.writing import Writing, now, text_of
from passy_proxy.records import Switch, SwitchState

SWITCHED = "switch"
"""The kind of change that an edit here is told as; its subject is the alias."""


class Switching(Writing):
    """Part of `Admin`."""

    async def list_switches(self) -> list[Switch]:
        """By alias and target."""
        mine = switches.c
        wanted = select(switches).order_by(mine.model, mine.target)
        return [
            Switch(row.model, row.target, row.state, row.switched_by, row.at / 1000)
            for row in await self._read(wanted)
        ]

    async def switch(
        self, model: str, target: str, state: SwitchState | None, by: str = ""
    ) -> None:
        """Decide it; ``None`` leaves the target to the configuration again. Of an alias one target
        is pinned: who pins another releases it."""
        mine = switches.c
        async with self._connected() as connection:
            gone = delete(switches).where(mine.model == model)
            await connection.execute(gone.where(mine.target == target))
            if state == "pinned":
                await connection.execute(gone.where(mine.state == "pinned"))
            if state is not None:
                row = insert(switches).values(
                    model=text_of(model), target=text_of(target), state=state, switched_by=by,
                    at=now(),
                )  # fmt: skip
                await connection.execute(row)
            await self._note(connection, SWITCHED, model)

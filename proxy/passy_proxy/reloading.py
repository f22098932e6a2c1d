"""One reload for all workers, and what became of it in each.

Whoever is asked tries it first: what is wrong with a file is wrong for all, and then nobody else is
told. What it takes, the others take through their supervisor, and show in their slots.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passy_proxy.gateway import Gateway
    from passy_proxy.pulse import Slot

PATIENCE = 15.0
"""Seconds for the others to take it."""
LOOK = 0.02


async def reload_all(gateway: Gateway) -> dict[int, str]:
    """Reload in every worker. Number of a worker that does not run what this one does → why not;
    empty where all do. Look at ``gateway.problem`` first: where it says something, nobody took it.
    """
    vitals = gateway.site.vitals
    others = {number: slot for number, slot in enumerate(vitals.slots) if number != vitals.number}
    before = {number: (slot.taken, slot.refused) for number, slot in others.items()}
    if not await gateway.reload() or not others or gateway.tell_others is None:
        return {}
    gateway.tell_others()
    hash = gateway.snapshot.hash.decode()
    end = monotonic() + PATIENCE
    waiting, failed = dict(others), {}
    while waiting and monotonic() < end:
        for number, slot in list(waiting.items()):
            taken, refused = before[number]
            if slot.refused > refused:
                failed[number] = "it refuses this configuration; its log says why"
                del waiting[number]
            elif slot.ready and slot.taken > taken and slot.configuration == hash:
                del waiting[number]
        await asyncio.sleep(LOOK if waiting else 0)
    return failed | {number: late(slot) for number, slot in waiting.items()}


def late(slot: Slot) -> str:
    """Why a worker is still waited for."""
    if not slot.ready:
        return f"it has not come to serve within {PATIENCE:g} s"
    return f"after {PATIENCE:g} s it still runs {slot.configuration}"

"""What all workers do that one was asked for, and what became of it in each.

Whoever is asked does it first; the others are told through their supervisor, and show in their
slots what they did. A reload that this one refuses is told to nobody: what is wrong with a file is
wrong for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING

from passy_proxy.supervisor import AWAY, BACK, RELOAD

if TYPE_CHECKING:
    from passy_proxy.gateway import Gateway
    from passy_proxy.pulse import Slot

PATIENCE = 15.0
"""Seconds for the others to do it."""
LOOK = 0.02

Failed = dict[int, str]
"""Number of a worker that did not come to it → why not; empty where all did."""


async def reload_all(gateway: Gateway) -> Failed:
    """Reload in every worker. Look at ``gateway.problem`` first: where it says something, nobody
    took it."""
    others = beside(gateway)
    before = {number: (slot.taken, slot.refused) for number, slot in others.items()}
    if not await gateway.reload() or not others or gateway.tell_others is None:
        return {}
    gateway.tell_others(RELOAD)
    hash = gateway.snapshot.hash.decode()

    def verdict(number: int, slot: Slot) -> str | None:
        taken, refused = before[number]
        if slot.refused > refused:
            return "it refuses this configuration; its log says why"
        runs = slot.ready and slot.taken > taken and slot.configuration == hash
        return "" if runs else None

    late = await waited(others, verdict)
    return {
        number: why or f"after {PATIENCE:g} s it still runs {others[number].configuration}"
        for number, why in late.items()
    }


async def drain_all(gateway: Gateway, away: bool) -> Failed:
    """`Gateway.drain` in every worker."""
    gateway.drain(away)
    others = beside(gateway)
    if not others or gateway.tell_others is None:
        return {}
    gateway.tell_others(AWAY if away else BACK)
    late = await waited(others, lambda _, slot: "" if slot.drained is away else None)
    return {
        number: why or f"after {PATIENCE:g} s it has not heard of it"
        for number, why in late.items()
    }


def beside(gateway: Gateway) -> dict[int, Slot]:
    """The workers beside the one of this gateway."""
    vitals = gateway.site.vitals
    return {number: slot for number, slot in enumerate(vitals.slots) if number != vitals.number}


async def waited(
    others: Mapping[int, Slot], verdict: Callable[[int, Slot], str | None]
) -> dict[int, str]:
    """Wait for all verdicts: empty of who did it, else why it will not, ``None`` while it may
    still. What is left: those who will not, and with an empty reason those who are late."""
    end = monotonic() + PATIENCE
    waiting, failed = dict(others), Failed()
    while waiting:
        for number, slot in list(waiting.items()):
            if (why := verdict(number, slot)) is not None:
                del waiting[number]
                if why:
                    failed[number] = why
        if not waiting or monotonic() >= end:
            break
        await asyncio.sleep(LOOK)
    unready = f"it has not come to serve within {PATIENCE:g} s"
    return failed | {number: "" if slot.ready else unready for number, slot in waiting.items()}

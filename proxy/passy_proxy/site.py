"""Where this gateway lives: what a store needs to know of its surroundings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from passy_proxy.keyring import Keyring
from passy_proxy.log import unconfigured
from passy_proxy.vitals import Vitals

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.board import Board


@dataclass(frozen=True, slots=True)
class Site:
    """Handed to every store when it is built."""

    data: Path
    """The folder for everything the gateway itself keeps on disk."""
    keyring: Keyring
    log: FilteringBoundLogger = field(default_factory=unconfigured, repr=False)
    """The gateway's own, which masks what looks like a secret."""
    vitals: Vitals = field(default_factory=Vitals, repr=False)
    """Where the process counts."""
    board: Board | None = field(default=None, repr=False)
    """What it has in common with the workers beside it, if there are any."""
    carries_traffic: bool = True
    """Whether it is a gateway's: what nobody asks has nothing to record."""

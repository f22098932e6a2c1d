"""Where this gateway lives: what a store needs to know of its surroundings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from passy_proxy.keyring import Keyring


@dataclass(frozen=True, slots=True)
class Site:
    """Handed to every store when it is built."""

    data: Path
    """The folder for everything the gateway itself keeps on disk."""
    keyring: Keyring

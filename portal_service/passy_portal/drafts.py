"""A key between its test and its entry: sealed, and good in the session that pasted it alone.

The page carries the envelope, which the browser cannot open; so nothing is entered that nobody
wants, and no key is ever sent back.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from passy_proxy import json
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from passy_portal.accounts import Visitor
    from passy_proxy.keyring import Keyring

GOOD_FOR = 900.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a key is for: a shared upstream by its name, or what is at a URL."""

    upstream: str = ""
    url: str = ""
    dialect: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A key that was tried, and how that ended."""

    secret: str
    place: Place
    ok: bool

    def __repr__(self) -> str:
        return f"Draft({self.place!r}, ok={self.ok})"


def sealed(keyring: Keyring, visitor: Visitor, draft: Draft) -> str:
    told = {**asdict(draft), "until": time.time() + GOOD_FOR}
    return keyring.seal(json.dumps(told).decode(), *_owner(visitor))


def opened(keyring: Keyring, visitor: Visitor, text: str) -> Draft | None:
    """``None`` for what is too old, of another session, or none of ours."""
    try:
        told = json.loads(keyring.open(text, *_owner(visitor)))
    except (KeyringError, ValueError):
        return None
    if told.pop("until") < time.time():
        return None
    return Draft(told["secret"], Place(**told["place"]), told["ok"])


def _owner(visitor: Visitor) -> tuple[str, ...]:
    return visitor.organisation, "portal draft", visitor.session, "1"

"""Who is asking: ``Authorization: Bearer``, ``x-api-key`` or ``api-key``, looked up by HMAC.

A key that could not have been issued (prefix, length, checksum) costs no look-up, except in a
directory that holds keys of any make and says so by ``takes_any_key``. What the directory says is
remembered for ``ttl``; unknown keys in a memory of their own, which random ones cannot grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, time
from typing import NamedTuple

from passy_proxy import (
    Directory,
    Duration,
    Exchange,
    Filter,
    Keyring,
    Principal,
    Reply,
    Settings,
    StoreUnavailable,
    hookimpl,
    keys,
    setting,
)


class Config(Settings):
    directory: Directory = setting(..., "The store that knows the keys.")
    keyring: Keyring = setting("keyring", "The secret keys of this installation.")
    ttl: Duration = setting("30s", "How long an answer of the directory is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long a known key is still taken while the directory cannot be asked.", ge=0
    )
    known: int = setting(100_000, "How many known keys are remembered at most.", ge=1)
    unknown: int = setting(10_000, "How many unknown keys are remembered at most.", ge=1)


class Seen(NamedTuple):
    """What the directory said of a digest, and until when that may be used."""

    principal: Principal | None
    fresh: float
    stale: float


NEVER_SEEN = Seen(None, 0.0, 0.0)


class Memory:
    """The latest ``size`` entries, oldest forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[bytes, Seen] = {}
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, digest: bytes, seen: Seen) -> None:
        self._entries.pop(digest, None)
        self._entries[digest] = seen
        if len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]

    def forget(self, digest: bytes) -> None:
        self._entries.pop(digest, None)


class Auth(Filter):
    name = "auth"
    provides = frozenset({"principal"})
    config: Config

    async def start(self) -> None:
        self._digest = keys.Digester(self.config.keyring.pepper)
        self._known = Memory(self.config.known)
        self._unknown = Memory(self.config.unknown)
        self._any = bool(getattr(self.config.directory, "takes_any_key", False))

    async def on_request(self, ex: Exchange) -> Reply | None:
        key = shown_key(ex)
        if key is None:
            return denied("No API key was given. Send it as 'Authorization: Bearer sk-passy-…'.")
        digest = self._digest(key)
        seen = self._known.get(digest, NEVER_SEEN)
        principal = seen.principal
        if seen.fresh <= monotonic():
            try:
                issued = self._any or keys.well_formed(key)
                principal = await self.look_up(digest, seen, issued=issued)
            except StoreUnavailable:
                return UNDECIDED
        if principal is None:
            return denied("The API key is not known here. Check that it was copied whole.")
        if principal.disabled:
            return denied("The API key was disabled.")
        if principal.expires is not None and principal.expires <= time():
            return denied("The API key has expired.")
        ex.principal = principal
        return None

    async def look_up(self, digest: bytes, seen: Seen, *, issued: bool) -> Principal | None:
        """Ask the directory; a stale answer serves while it cannot be asked."""
        now = monotonic()
        if not issued or self._unknown.get(digest, NEVER_SEEN).fresh > now:
            return None
        try:
            principal = await self.config.directory.principal(digest)
        except StoreUnavailable:
            if seen.stale > now:
                return seen.principal
            raise
        answer = Seen(principal, now + self.config.ttl, now + self.config.stale)
        if principal is None:
            self._known.forget(digest)
            self._unknown.put(digest, answer)
        else:
            self._unknown.forget(digest)
            self._known.put(digest, answer)
        return principal


def shown_key(ex: Exchange) -> bytes | None:
    """The key the client shows; ``Authorization`` wins over the others."""
    get = ex.request.fields.get
    if (value := get(b"authorization")) is not None:
        scheme, _, key = value.partition(b" ")
        return key.strip() or None if scheme.lower() == b"bearer" else None
    value = get(b"x-api-key") or get(b"api-key")
    return (value.strip() or None) if value else None


def denied(message: str) -> Reply:
    return Reply(401, "invalid_api_key", message, [(b"www-authenticate", b"Bearer")])


UNDECIDED = Reply(
    503,
    "directory_unavailable",
    "The key cannot be checked now. Try again shortly.",
    [(b"retry-after", b"1")],
)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Auth]

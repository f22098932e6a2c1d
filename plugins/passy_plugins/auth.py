"""Who is asking: ``Authorization: Bearer``, ``x-api-key`` or ``api-key``, looked up by HMAC.

A key that could not have been issued (prefix, length, checksum) costs no look-up, except in a
directory that holds keys of any make and says so by ``takes_any_key``. What the directory says is
remembered for ``ttl``; unknown keys in a memory of their own, which random ones cannot grow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
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
    credentials,
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
    needs = frozenset({"credentials"})
    provides = frozenset({"principal"})
    config: Config

    async def start(self) -> None:
        self._shown = credentials(self)
        self._digest = keys.Digester(self.config.keyring.pepper)
        self._known = Memory(self.config.known)
        self._unknown = Memory(self.config.unknown)
        self._any = bool(getattr(self.config.directory, "takes_any_key", False))
        # Known keys by the very value of the header that showed them, which saves reading and
        # hashing it again. One memory for each way to show a key: what is good in one header may
        # be none in another.
        self._bearers = Memory(self.config.known)
        self._bare = Memory(self.config.known)

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        get = self._shown(ex.request).get
        shown = get(b"authorization")  # It wins over the others.
        if shown is not None:
            seen = self._bearers.get(shown, NEVER_SEEN)
        else:
            shown = get(b"x-api-key") or get(b"api-key") or b""
            seen = self._bare.get(shown, NEVER_SEEN)
        if seen.fresh > monotonic():
            principal = seen.principal
            assert principal is not None
            if principal.expires is None or principal.expires > time():
                ex.principal = principal
                return None
        return self.read(ex, shown)

    def read(self, ex: Exchange, shown: bytes) -> Reply | Awaitable[Reply | None] | None:
        """All of it, for a header that is not remembered or may not let in."""
        if b"authorization" in self._shown(ex.request):
            memory, key = self._bearers, bearer(shown)
        else:
            memory, key = self._bare, shown.strip()
        if not key:
            return denied("No API key was given. Send it as 'Authorization: Bearer sk-passy-…'.")
        digest = self._digest(key)
        seen = self._known.get(digest, NEVER_SEEN)
        if seen.fresh <= monotonic():
            memory.forget(shown)
            return self.asked(ex, key, digest, seen)
        principal = seen.principal
        assert principal is not None
        # Space around a key says nothing, but would let one key fill the memory.
        if len(shown) - len(key) <= LONGEST_SCHEME and not principal.disabled:
            memory.put(shown, seen)
        return admit(ex, principal)

    async def asked(self, ex: Exchange, key: bytes, digest: bytes, seen: Seen) -> Reply | None:
        """The directory's word on a key, where nothing fresh is remembered."""
        try:
            issued = self._any or keys.well_formed(key)
            return admit(ex, await self.look_up(digest, seen, issued=issued))
        except StoreUnavailable:
            return UNDECIDED

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


LONGEST_SCHEME = len(b"Bearer ")


def bearer(value: bytes) -> bytes:
    """The key in an ``Authorization`` header; empty where there is none."""
    scheme, _, key = value.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def admit(ex: Exchange, principal: Principal | None) -> Reply | None:
    """Let in who may enter; for others what they are told."""
    if principal is None:
        return denied("The API key is not known here. Check that it was copied whole.")
    if principal.disabled:
        return denied("The API key was disabled.")
    if principal.expires is not None and principal.expires <= time():
        return denied("The API key has expired.")
    ex.principal = principal
    return None


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

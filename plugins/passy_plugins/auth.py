"""Who is asking: ``Authorization: Bearer``, ``x-api-key`` or ``api-key``, looked up by HMAC.

A key that could not have been issued (prefix, length, checksum) costs no look-up, except in a
directory that holds keys of any make and says so by ``takes_any_key``. What the directory says is
remembered (`known_keys.py`), unknown keys in a memory of their own, which random ones cannot grow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import monotonic, time

from passy_plugins.known_keys import NEVER_SEEN, Known, Memory
from passy_proxy import (
    Changes,
    Directory,
    Duration,
    Exchange,
    Filter,
    Keyring,
    Principal,
    Remembered,
    Reply,
    Settings,
    credentials,
    duration,
    hookimpl,
    keys,
    setting,
)
from passy_proxy.addresses import NetworkSetting, client_address, within


class Config(Settings):
    directory: Directory = setting(..., "The store that knows the keys.")
    changes: Changes | None = setting(
        None, "A store that tells of edits sooner than the directory does, such as a Redis."
    )
    keyring: Keyring = setting("keyring", "The secret keys of this installation.")
    remembered: Remembered = setting("remembered", "What is known, on disk.")
    ttl: Duration = setting("30s", "How long an answer of the directory is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long a known key is still taken while the directory cannot be asked.", ge=0
    )
    patience: Duration = setting(
        "2s", "How long the directory may take to answer, before it counts as away.", ge=0.001
    )
    trusted_proxies: tuple[NetworkSetting, ...] = setting(
        (),
        "Address ranges of proxies in front, whose X-Forwarded-For is believed; for keys that may"
        " only be used from certain addresses.",
    )
    known: int = setting(100_000, "How many known keys are remembered at most.", ge=1)
    unknown: int = setting(10_000, "How many unknown keys are remembered at most.", ge=1)


class Auth(Filter):
    name = "auth"
    needs = frozenset({"credentials"})
    provides = frozenset({"principal"})
    config: Config

    @property
    def when_away(self) -> str:
        stale = duration(self.config.stale)
        return f"keys known in the last {stale} are taken, 503 for others"

    async def start(self) -> None:
        self._shown = credentials(self)
        self._digest = keys.Digester(self.config.keyring.pepper)
        self._any = bool(getattr(self.config.directory, "takes_any_key", False))
        # Known keys by the very value of the header that showed them, which saves reading and
        # hashing it again. One memory for each way to show a key: what is good in one header may
        # be none in another.
        self._bearers = Memory(self.config.known)
        self._bare = Memory(self.config.known)
        self._known = Known(self.config, self.log)
        self._known.start()

    async def stop(self) -> None:
        if (known := getattr(self, "_known", None)) is not None:
            await known.stop()

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        get = self._shown(ex.request).get
        shown = get(b"authorization")  # It wins over the others.
        if shown is not None:
            seen = self._bearers.get(shown, NEVER_SEEN)
        else:
            shown = get(b"x-api-key") or get(b"api-key") or b""
            seen = self._bare.get(shown, NEVER_SEEN)
        if seen.due > monotonic():
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
            why = ""
            if memory is self._bearers and shown.strip().lower() not in (b"", b"bearer"):
                why = ": the Authorization header does not begin with 'Bearer '"
            message = f"No API key was given{why}. Send it as 'Authorization: Bearer sk-passy-…'."
            return denied(message)
        digest = self._digest(key)
        seen = self._known.now(digest)
        if seen is None:
            memory.forget(shown)
            return self.asked(ex, key, digest)
        principal = seen.principal
        # Space around a key says nothing, but would let one key fill the memory.
        if (
            principal is not None
            and not principal.disabled
            and principal.networks is None
            and len(shown) - len(key) <= LONGEST_SCHEME
        ):
            memory.put(shown, seen)
        return self.admit(ex, principal)

    async def asked(self, ex: Exchange, key: bytes, digest: bytes) -> Reply | None:
        """The directory's word on a key, where nothing fresh is remembered."""
        if not (self._any or keys.well_formed(key)):
            return self.admit(ex, None)
        seen = await self._known.look_up(digest)
        return UNDECIDED if seen is None else self.admit(ex, seen.principal)

    def admit(self, ex: Exchange, principal: Principal | None) -> Reply | None:
        """Let in who may enter; for others what they are told."""
        if principal is None:
            return denied("The API key is not known here. Check that it was copied whole.")
        if principal.disabled:
            return denied("The API key was disabled.")
        if principal.expires is not None and principal.expires <= time():
            return denied("The API key has expired.")
        ex.principal = principal
        if principal.networks is not None:
            trusted = self.config.trusted_proxies
            address = client_address(ex.downstream.peer, ex.request.headers, trusted)
            if not within(principal.networks, address):
                whence = f" It was shown from {address}." if address else ""
                message = f"This API key may only be used from certain addresses.{whence}"
                return Reply(403, "address_not_allowed", message)
        return None


LONGEST_SCHEME = len(b"Bearer ")


def bearer(value: bytes) -> bytes:
    """The key in an ``Authorization`` header; empty where there is none."""
    scheme, _, key = value.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


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

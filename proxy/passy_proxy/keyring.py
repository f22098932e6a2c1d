"""The secret keys of an installation, what they seal, and the pepper of its client keys.

The ring is an ordered list of long random texts. **The first one seals, all of them open**, so a
new key is put in front and the old ones stay until everything has been wrapped again
(``passy secrets rotate``). **The pepper comes from the last one**, so that putting a key in front
leaves every stored digest of a client key valid.

The last key can go too. What hangs on a key beside what it sealed (the digests of client keys, the
links of evidence) hangs on keys derived from it, and those alone are in the entry that takes its
place: ``retired:<key id>:<derived keys>``, as `Keyring.retired` gives it. Such an entry opens
nothing, so that who finds it can read neither this database nor a copy from before.

Each use has its own key, derived by HMAC-SHA-256 with a label: what one of them gives away says
nothing about the others.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from passy_proxy import envelope
from passy_proxy.envelope import KeyringError as KeyringError
from passy_proxy.envelope import UnknownKey as UnknownKey
from passy_proxy.strength import weakness

FILE = "secret.key"
_RETIRED = "retired:"
_DERIVED = 32


class _Entry(NamedTuple):
    """One of the ring: what was derived from it."""

    id: str
    sealing: bytes
    """Empty for a retired one."""
    pepper: bytes
    evidence: bytes


class Keyring:
    """Derives the pepper, seals and opens. Its text form names key ids only."""

    __slots__ = ("_attesting", "_entries", "_keys", "first", "last", "pepper")

    def __init__(self, texts: Sequence[str], source: str = "PASSY_SECRET_KEYS") -> None:
        """``texts`` in the order of the ring; ``source`` is what a complaint calls them."""
        if not texts:
            raise KeyringError(f"{source} holds no key; give a random text of 32 bytes or more")
        ring = [_entry(text, f"key {n} of {source}") for n, text in enumerate(texts, 1)]
        if not ring[0].sealing:
            raise KeyringError(f"the first key of {source} is a retired one, which seals nothing")
        self._entries = {entry.id: entry for entry in reversed(ring)}
        self._keys = {entry.id: entry.sealing for entry in reversed(ring) if entry.sealing}
        self._attesting = {entry.id: entry.evidence for entry in ring}
        self.first = ring[0].id
        """The id of the key that seals."""
        self.last = ring[-1].id
        """The id of the key that the pepper comes from."""
        self.pepper = ring[-1].pepper
        """What ``keys.digest`` is made with."""

    @classmethod
    def load(cls, data: Path, listed: str | None) -> Keyring:
        """The ring from ``listed`` (comma-separated, the value of ``PASSY_SECRET_KEYS``).

        Without it (``None``), from ``<data>/secret.key``, which is made when there is none. An
        empty ``listed`` is a mistake, not a wish for a fresh key.
        """
        if listed is not None:
            return cls(_split(listed))
        path = data / FILE
        return cls(_split(_text_of(path)), str(path))

    def __contains__(self, key_id: str) -> bool:
        """Whether it opens what was sealed with that key."""
        return key_id in self._keys

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.ids)})"

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all keys, in the order of the ring."""
        return tuple(reversed(self._entries))

    def seal(self, plain: str, *owner: str) -> str:
        """An `envelope` under the first key, bound to ``owner``.

        ``owner`` says whose it is and where it stands, as in ``(organisation, provider, field,
        version)``: moved to another row, it does not open.
        """
        return envelope.sealed(self.first, self._keys[self.first], plain.encode(), owner)

    def open(self, sealed: str, *owner: str) -> str:
        """What was sealed. Raises `KeyringError`: unknown key, other owner, or damaged."""
        return envelope.opened(self._keys, sealed, owner).decode()

    def rewrap(self, sealed: str, *owner: str) -> str:
        """The same under the first key; the very same where it is already. Raises like `open`."""
        return envelope.rewrapped(self._keys, self.first, sealed, owner)

    def retired(self, key_id: str) -> str:
        """The entry to put in the place of a key of the ring that shall open nothing any more.
        KeyError where there is none."""
        entry = self._entries[key_id]
        derived = base64.urlsafe_b64encode(entry.pepper + entry.evidence).decode().rstrip("=")
        return f"{_RETIRED}{key_id}:{derived}"

    def attest(self, data: bytes) -> str:
        """A text that only who has the key can make of ``data``: ``<key id>:<HMAC-SHA-256>``."""
        return f"{self.first}:{hmac.digest(self._attesting[self.first], data, 'sha256').hex()}"

    def attested(self, data: bytes, text: str) -> bool:
        """Whether `attest` made ``text`` of ``data``; `KeyringError` when the key is not ours."""
        key_id, _, made = text.partition(":")
        key = self._attesting.get(key_id)
        if key is None:
            raise KeyringError(f"sealed with key {key_id[:8]!a}, which is not among those given")
        return hmac.compare_digest(
            hmac.digest(key, data, "sha256").hex().encode(), made.encode(errors="replace")
        )

    def mark(self) -> str:
        """A text that is equal for rings of equal pepper and gives nothing of it away."""
        return hmac.digest(self.pepper, b"passy/mark/v1", "sha256").hex()[:32]


def _entry(text: str, name: str) -> _Entry:
    if text.startswith(_RETIRED):
        return _retired(text, name)
    if why := weakness(text):
        raise KeyringError(f"{name} {why}")
    key = text.encode()
    return _Entry(
        _derived(key, "passy/id/v1").hex()[:8],
        _derived(key, "passy/seal/v1"),
        _derived(key, "passy/pepper/v1"),
        _derived(key, "passy/evidence/v1"),
    )


def _retired(text: str, name: str) -> _Entry:
    key_id, _, derived = text.removeprefix(_RETIRED).partition(":")
    try:
        raw = base64.b64decode(derived + "=" * (-len(derived) % 4), b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 2 * _DERIVED or not key_id:
        raise KeyringError(f"{name} is no retired key as `passy secrets retire` gives it")
    return _Entry(key_id, b"", raw[:_DERIVED], raw[_DERIVED:])


def _split(text: str) -> list[str]:
    return [part for each in text.split(",") if (part := each.strip())]


def _derived(key: bytes, label: str) -> bytes:
    return hmac.digest(key, label.encode(), "sha256")


def _text_of(path: Path) -> str:
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path)
        return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & 0o077:
            raise KeyringError(
                f"{path} can be read by others than its owner; run: chmod 600 {path}"
            )
        return file.read().decode(errors="replace")


def _create(path: Path) -> None:
    """A fresh key, complete before it has its name; of two processes at once the first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_urlsafe(48).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()

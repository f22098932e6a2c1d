"""The secret keys of an installation, what they seal, and the pepper of its client keys.

The ring is an ordered list of long random texts. **The first one seals, all of them open**, so a
new key is put in front and the old ones stay until everything has been sealed again. **The pepper
comes from the last one**, so that putting a key in front leaves every stored digest of a client
key valid; the last key is what the client keys hang on and is the one never to drop.

Each use has its own key, derived by HMAC-SHA-256 with a label: what one of them gives away says
nothing about the others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

FILE = "secret.key"
MIN_BYTES = 32
_MIN_DISTINCT = 8
_NONCE_BYTES = 12


class KeyringError(ValueError):
    """The secret keys are missing, weak, readable by others, or not those that sealed."""


class Keyring:
    """Derives the pepper, seals and opens. Its text form names key ids only."""

    __slots__ = ("_attesting", "_keys", "first", "pepper")

    def __init__(self, texts: Sequence[str], source: str = "PASSY_SECRET_KEYS") -> None:
        """``texts`` in the order of the ring; ``source`` is what a complaint calls them."""
        if not texts:
            raise KeyringError(f"{source} holds no key; give a random text of 32 bytes or more")
        ring = [_checked(text, f"key {n} of {source}") for n, text in enumerate(texts, 1)]
        self._keys = {_id(key): _derived(key, "passy/seal/v1") for key in reversed(ring)}
        self._attesting = {_id(key): _derived(key, "passy/evidence/v1") for key in ring}
        self.first = _id(ring[0])
        """The id of the key that seals."""
        self.pepper = _derived(ring[-1], "passy/pepper/v1")
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
        return key_id in self._keys

    def __repr__(self) -> str:
        return f"Keyring({', '.join(reversed(self._keys))})"

    def seal(self, plain: str, *owner: str) -> str:
        """AES-256-GCM as ``v1:<key id>:<nonce>:<ciphertext>``, bound to ``owner``.

        ``owner`` says whose it is, as in ``(organisation, provider, field)``: moved to another
        row, it does not open.
        """
        from cryptography.hazmat.primitives.ciphers.aead import (
            AESGCM,  # 6 MB, and a start needs none
        )

        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._keys[self.first]).encrypt(nonce, plain.encode(), _bound(owner))
        return f"v1:{self.first}:{_b64(nonce)}:{_b64(sealed)}"

    def open(self, sealed: str, *owner: str) -> str:
        """What was sealed. Raises `KeyringError`: unknown key, other owner, or damaged."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        version, _, rest = sealed.partition(":")
        key_id, _, rest = rest.partition(":")
        if version != "v1":
            raise KeyringError("a sealed value is damaged or of a later version")
        key = self._keys.get(key_id)
        if key is None:
            raise KeyringError(
                f"sealed with key {key_id}, which is not among the secret keys given"
            )
        nonce, _, body = rest.partition(":")
        try:
            return AESGCM(key).decrypt(_unb64(nonce), _unb64(body), _bound(owner)).decode()
        except (InvalidTag, ValueError):
            raise KeyringError("a sealed value is damaged or belongs elsewhere") from None

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


def _checked(text: str, name: str) -> bytes:
    key = text.encode()
    if len(key) < MIN_BYTES:
        raise KeyringError(f"{name} has {len(key)} bytes; a secret key needs {MIN_BYTES} or more")
    if len(set(key)) < _MIN_DISTINCT:
        raise KeyringError(f"{name} is not random; try: openssl rand -base64 36")
    return key


def _split(text: str) -> list[str]:
    return [part for each in text.split(",") if (part := each.strip())]


def _derived(key: bytes, label: str) -> bytes:
    return hmac.digest(key, label.encode(), "sha256")


def _id(key: bytes) -> str:
    return _derived(key, "passy/id/v1").hex()[:8]


def _bound(owner: Sequence[str]) -> bytes:
    """``owner`` so that no two differing sequences give the same bytes."""
    return hashlib.sha256(repr(tuple(map(str, owner))).encode()).digest()


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


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

"""Envelopes: a secret under a data key of its own, and that key under a key of the ring.

    v2:<key id>:<nonce, wrapped data key>:<nonce, ciphertext>

Both are AES-256-GCM, the nonces random, the bytes in base 64 for URLs without padding. Both are
bound to their owner (whose it is, and where it stands), to this format and to what they are: moved
to another row, or put in each other's place, they do not open. A new key of the ring is a new
wrapping of 80 characters; the ciphertext stays as it is, and nobody needs to see what is in it.

``v1:<key id>:<nonce>:<ciphertext>``, sealed by a key of the ring itself and bound to the first two
words of the owner alone, is what was written before. It still opens, and `rewrapped` makes it new.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping, Sequence

FORMAT = "v2"
_EARLIER = "v1"
_NONCE = 12
_KEY = 32


class KeyringError(ValueError):
    """The secret keys are missing, weak, readable by others, or not those that sealed."""


class UnknownKey(KeyringError):
    """What was sealed needs a key that was not given."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"sealed with key {key_id}, which is not among the secret keys given")
        self.key_id = key_id


class Damaged(KeyringError):
    """It was changed, or belongs elsewhere."""


def sealed(key_id: str, key: bytes, plain: bytes, owner: Sequence[str]) -> str:
    """An envelope of ``plain`` under ``key``."""
    data_key = secrets.token_bytes(_KEY)
    wrapped = _encrypt(key, data_key, _bound("key", owner))
    return f"{FORMAT}:{key_id}:{wrapped}:{_encrypt(data_key, plain, _bound('text', owner))}"


def opened(keys: Mapping[str, bytes], envelope: str, owner: Sequence[str]) -> bytes:
    """What is in it. Raises `UnknownKey`, or `Damaged`."""
    version, key, rest = _parts(keys, envelope)
    if version == _EARLIER:
        nonce, _, text = rest.partition(":")
        return _decrypt(key, _raw(nonce) + _raw(text), _bound_before(owner))
    wrapped, _, text = rest.partition(":")
    data_key = _decrypt(key, _raw(wrapped), _bound("key", owner))
    return _decrypt(data_key, _raw(text), _bound("text", owner))


def rewrapped(keys: Mapping[str, bytes], first: str, envelope: str, owner: Sequence[str]) -> str:
    """The same under the key ``first``; the very same if that is so already. Raises `UnknownKey`,
    or `Damaged`."""
    if key_id(envelope) == first and envelope.startswith(FORMAT):
        return envelope
    version, key, rest = _parts(keys, envelope)
    if version == _EARLIER:
        return sealed(first, keys[first], opened(keys, envelope, owner), owner)
    wrapped, _, text = rest.partition(":")
    bound = _bound("key", owner)
    data_key = _decrypt(key, _raw(wrapped), bound)
    return f"{FORMAT}:{first}:{_encrypt(keys[first], data_key, bound)}:{text}"


def key_id(envelope: str) -> str:
    """Which key of the ring it needs; empty where that cannot be read."""
    version, _, rest = envelope.partition(":")
    return rest.partition(":")[0] if version in (FORMAT, _EARLIER) else ""


def _parts(keys: Mapping[str, bytes], envelope: str) -> tuple[str, bytes, str]:
    """Format, key and the rest."""
    version, _, rest = envelope.partition(":")
    if version not in (FORMAT, _EARLIER):
        raise Damaged("a sealed value is damaged or of a later version")
    name, _, rest = rest.partition(":")
    if (key := keys.get(name)) is None:
        raise UnknownKey(name[:16] if name.isalnum() and name.isascii() else ascii(name[:16]))
    return version, key, rest


def _encrypt(key: bytes, plain: bytes, bound: bytes) -> str:
    # 6 MB, and a start needs none.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE)
    text = nonce + AESGCM(key).encrypt(nonce, plain, bound)
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _decrypt(key: bytes, text: bytes, bound: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(text[:_NONCE], text[_NONCE:], bound)
    except (InvalidTag, ValueError):
        raise Damaged("a sealed value is damaged or belongs elsewhere") from None


def _raw(text: str) -> bytes:
    """Of base 64. One that can be written in two ways is not what we wrote."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        raise Damaged("a sealed value is damaged") from None
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
        raise Damaged("a sealed value is damaged")
    return raw


def _bound(what: str, owner: Sequence[str]) -> bytes:
    """``owner`` so that no two differing sequences give the same bytes."""
    return hashlib.sha256(repr((FORMAT, what, *map(str, owner))).encode()).digest()


def _bound_before(owner: Sequence[str]) -> bytes:
    return hashlib.sha256(repr(tuple(map(str, owner[:2]))).encode()).digest()

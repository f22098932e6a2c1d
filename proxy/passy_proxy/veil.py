"""Keeping what was shown to an upstream from whoever reads its answer."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 8
"""What is shorter than a key can be is a placeholder, and a word like any other."""
REDACTED = b"[redacted]"


def veiled(text: bytes, secrets: Sequence[bytes]) -> bytes:
    """``text`` without the secrets; the same object where none is in it."""
    for secret in secrets:
        if text.find(secret) >= 0:  # ``in`` would first try to take it for a number.
            text = text.replace(secret, REDACTED)
    return text


def begins(data: bytes, secret: bytes) -> int:
    """How many bytes at the end of ``data`` are the beginning of ``secret``."""
    tail = data[1 - len(secret) :]
    at = tail.find(secret[:1])
    while at >= 0 and not secret.startswith(tail[at:]):
        at = tail.find(secret[:1], at + 1)
    return len(tail) - at if at >= 0 else 0


class Veil:
    """Hides secrets in an answer that comes in pieces, also those that are cut in two.

    What may be the beginning of one is held back until the next piece. No secret holds a line
    end, so of whole messages, which end with one, nothing ever is.
    """

    __slots__ = ("_secrets", "held", "only")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = secrets
        self.only = secrets[0] if len(secrets) == 1 else b""
        """The one secret there is; otherwise what is in any text."""
        self.held = b""

    def __call__(self, data: bytes, end: bool = False) -> bytes:
        """What may be passed on now; at the ``end``, all of it."""
        if self.held:
            data = self.held + data
            self.held = b""
        data = veiled(data, self._secrets)
        if end or data.endswith(b"\n") or not self._secrets:
            return data
        if begun := max(begins(data, secret) for secret in self._secrets):
            self.held = data[-begun:]
            data = data[:-begun]
        return data


LONGEST_LEFT = 7
"""Characters of a secret in a row that a text may hold: providers show so many to name a key."""


def concealed(text: str, secret: str) -> str:
    """A short ``text`` without ``secret``, and without any long piece of it."""
    shortest = LONGEST_LEFT + 1
    if len(secret) < SHORTEST or not text:
        return text
    kept, place = [], 0
    while place < len(text):
        size = shortest
        while size <= len(text) - place and text[place : place + size] in secret:
            size += 1
        if size > shortest:
            kept.append(REDACTED.decode())
            place += size - 1
        else:
            kept.append(text[place])
            place += 1
    return "".join(kept)

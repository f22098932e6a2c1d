"""Whether a secret is one: long enough, and nothing that somebody would try."""

from __future__ import annotations

from itertools import pairwise

SHORTEST = 32
"""Bytes."""
_MIN_DISTINCT = 8

_PLACEHOLDERS = (
    "changeit",
    "changeme",
    "changethis",
    "default",
    "donotuse",
    "example",
    "fillmein",
    "insecure",
    "insertyour",
    "letmein",
    "notasecret",
    "password",
    "placeholder",
    "putyour",
    "qwerty",
    "replaceme",
    "replacethis",
    "supersecret",
    "topsecret",
    "yourkey",
    "yoursecret",
    "yourtoken",
)
"""Without spaces and dashes, in small letters. Of a million random texts none has one of them."""
_BETWEEN = str.maketrans("", "", " -_.")

TRY = "try: openssl rand -base64 36"


def weakness(text: str) -> str | None:
    """What is wrong with a secret, as the end of a sentence that begins with its name; ``None``
    where nothing is. It says nothing of the text but its length."""
    secret = text.encode(errors="replace")
    if not secret:
        return f"is empty; {TRY}"
    if len(secret) < SHORTEST:
        return f"has {len(secret)} bytes; a secret needs {SHORTEST} or more; {TRY}"
    if len(set(secret)) < _MIN_DISTINCT or _repeats(secret) or _counts(secret):
        return f"is not random; {TRY}"
    squeezed = text.casefold().translate(_BETWEEN)
    if any(word in squeezed for word in _PLACEHOLDERS):
        return f"looks like the default of an example; {TRY}"
    return None


def _repeats(secret: bytes) -> bool:
    """The same piece again and again."""
    periods = range(1, len(secret) // 2 + 1)
    return any(secret.startswith(secret[period:]) for period in periods)


def _counts(secret: bytes) -> bool:
    """One after the other, as in 0123 and dcba, for at least half of it."""
    steps = sum(abs(a - b) <= 1 for a, b in pairwise(secret))
    return steps * 2 >= len(secret)

"""Passwords: Argon2id, a few at a time, since each takes 19 MiB and a core for a moment."""

from __future__ import annotations

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST = 12
"""Characters."""
LONGEST = 200
AT_ONCE = 2

_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_nobodys = _hasher.hash("nobody's password, so that unknown accounts take as long as known ones")


class Passwords:
    """Hashes in threads."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def hash(self, password: str) -> str:
        """ValueError for one that would be guessed, or is no password."""
        if why := weakness(password):
            raise ValueError(why)
        async with self._turns:
            return await asyncio.to_thread(_hasher.hash, password)

    async def fits(self, password: str, hashed: str | None) -> bool:
        """Whether it is the one; takes as long where there is none."""
        async with self._turns:
            return await asyncio.to_thread(fits, password[: LONGEST + 1], hashed)


def fits(password: str, hashed: str | None) -> bool:
    """Whether it is the one; blocks."""
    try:
        _hasher.verify(hashed or _nobodys, password)
    except (VerificationError, InvalidHashError):
        return False
    return hashed is not None


def weakness(password: str) -> str | None:
    """What is wrong with it, as a sentence."""
    if len(password) < SHORTEST:
        return f"A password has {SHORTEST} characters or more."
    if len(password) > LONGEST:
        return f"A password has no more than {LONGEST} characters."
    if len(set(password)) < 5:
        return "This password is too easy to guess."
    return None

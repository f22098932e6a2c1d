"""How often `fallback` tries again, and when: its budget, and what upstreams say in Retry-After."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import monotonic, time

from passy_proxy import Attempt

WAITS = frozenset({b"retry-after", b"retry-after-ms"})
BUSY = frozenset({429, 503, 529})
"""Statuses that say: later."""


KEY_REFUSED = frozenset({401, 402, 403, 429})
"""Statuses that speak of the key, and not of the request."""


def key_refused(attempt: Attempt) -> bool:
    """Whether its upstream refused the key that was shown, and has done nothing else."""
    failure = attempt.failure
    return failure is not None and failure.kind == "status" and failure.status in KEY_REFUSED


def brought(attempt: Attempt) -> bool:
    """Whether an organisation's own key was shown: refused, it is not replaced by another's."""
    return attempt.credential is not None and attempt.credential.owner != "operator"


def spent(attempt: Attempt) -> bool:
    """Whether the body was an upload that was passed on as it came: there is no other."""
    return not isinstance(attempt.request.body, bytes)


def another_key(attempt: Attempt) -> bool:
    """Whether the same target may be asked again, with the next key of whose key it refused."""
    return attempt.spare and key_refused(attempt) and not spent(attempt)


class Budget:
    """Bounds tries that help nobody: to a share of the requests, but some there may be.

    Both are counted over the last while: at the end of each ``SPAN`` seconds what was counted so
    far is worth half. That is looked to when a try is made; requests are only added up.
    """

    SPAN = 5.0

    def __init__(self, percent: int, floor: int, clock: Callable[[], float] = monotonic) -> None:
        self.asked = 0
        """Requests."""
        self.spent = 0
        self._percent = percent
        self._floor = floor
        self._clock = clock
        self._until = clock() + self.SPAN

    def allows(self) -> bool:
        """Whether there is room for one more."""
        self._age()
        return self.spent < max(self._floor, self.asked * self._percent // 100)

    def spend(self) -> None:
        """One more is made, allowed or not."""
        self._age()
        self.spent += 1

    def _age(self) -> None:
        now = self._clock()
        if now >= self._until:
            halvings = int((now - self._until) / self.SPAN) + 1
            self._until = now + self.SPAN
            self.asked >>= halvings
            self.spent >>= halvings

    def give_back(self) -> None:
        """A try that was counted has helped, or was none."""
        if self.spent:
            self.spent -= 1


def seconds_to_wait(attempt: Attempt) -> float | None:
    """After how many seconds a busy upstream wants to be asked again; ``None`` if it did not say
    so."""
    failure, fields = attempt.failure, attempt.fields
    if failure is None or failure.kind != "status" or failure.status not in BUSY:
        return None
    exact = number(fields.get(b"retry-after-ms", b""))
    if exact is not None:
        return exact / 1000
    said = fields.get(b"retry-after", b"")
    seconds = number(said)
    if seconds is not None or not said:
        return seconds
    try:
        return max(parsedate_to_datetime(said.decode("ascii")).timestamp() - time(), 0.0)
    except ValueError:
        return None


def number(text: bytes) -> float | None:
    """A length of time as headers write it: digits, perhaps with a fraction."""
    digits = text.replace(b".", b"", 1)
    return float(text) if digits.isdigit() and len(digits) < 16 else None

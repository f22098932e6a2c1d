"""Books have days, of UTC, and a test that speaks of today may run at midnight."""

from __future__ import annotations

import time

DAY = 86_400


def now_within_a_day(seconds: float = 60) -> int:
    """The time in ms. When fewer than so many seconds of the day are left, the next one has begun
    before this returns."""
    left = DAY - time.time() % DAY
    if left < seconds:
        time.sleep(left + 0.1)
    return int(time.time() * 1000)

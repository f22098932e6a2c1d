"""Passive outlier ejection: an upstream that keeps failing is left alone for a while.

The numbers are Envoy's. After so many failures in a row (no connection, no answer in time, a broken
one, 500 and above) an upstream is out: `fallback` passes it over and asks the next target at once.
It comes back by itself, each time after a longer while, and is forgiven as it stays well.

Of the targets of one request no more than a share is passed over, though always one may be, and
never the last one, unless that is wished for. What is seen is this worker's own, in memory. A new
configuration takes it over for the upstreams that stay as they are, where these numbers do.
Organisations' own upstreams and keys do not count: what one of them meets says nothing to the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import NamedTuple
from weakref import WeakKeyDictionary

from passy_proxy import (
    Attempt,
    Duration,
    Exchange,
    Failure,
    Filter,
    Settings,
    Transport,
    Upstream,
    Upstreams,
    Vitals,
    hookimpl,
    setting,
)
from passy_proxy.veil import veiled


class Config(Settings):
    failures: int = setting(5, "Failures in a row after which an upstream is left alone.", ge=1)
    rest: Duration = setting(
        "30s", "How long, the first time; twice that the second time, and so on.", gt=0
    )
    longest: Duration = setting("300s", "No longer than this.", gt=0)
    interval: Duration = setting(
        "10s", "Each time it has been well for so long, one of the times is forgotten.", gt=0
    )
    share: int = setting(
        10,
        "How many of the upstreams of one model may be passed over, in percent; one always may.",
        ge=0,
        le=100,
    )
    last: bool = setting(
        False, "Also pass over the last upstream of a model, and answer 503 at once."
    )
    upstreams: Upstreams = setting("upstreams", "Those that there are now.")
    vitals: Vitals = setting("vitals", "What knows this process.")


@dataclass(slots=True)
class Trouble:
    """What is remembered of an upstream that failed, until it is forgiven."""

    failures: int = 0
    """In a row."""
    times: int = 0
    """How often it was left alone."""
    since: float = 0.0
    until: float = 0.0
    """When it went out and when it is back; seconds of the clock."""
    well: float | None = None
    """Since when it has answered again."""

    def forgiven(self, now: float, interval: float) -> int:
        """How many of the ``times`` count no more."""
        return 0 if self.well is None else int((now - self.well) / interval)


class LastFailure(NamedTuple):
    """``at``: Unix seconds; ``status`` is 0 where none was answered."""

    at: float
    kind: str
    status: int
    message: str


Mark = tuple[str, Transport]
"""An upstream, as it is known from one configuration to the next: they share its connections."""
Numbers = tuple[int, float, float, float, int, bool]
LONGEST = 300
"""Of a message that is kept."""
KEPT: WeakKeyDictionary[Vitals, dict[Numbers, dict[Mark, Trouble]]] = WeakKeyDictionary()
"""What the breakers of a process know, those that go by the same numbers together."""
FAILED: WeakKeyDictionary[Vitals, dict[str, LastFailure]] = WeakKeyDictionary()
"""The latest failure of each upstream that a process has seen."""
GAUGE = "upstream_ejected"
"""Among the vitals: how many workers leave an upstream alone."""
NEWS = "upstream_failed"
"""And how it failed last."""


def told(vitals: Vitals) -> dict[str, LastFailure]:
    """The latest failures, as `last_failures` reads them."""
    return dict(FAILED.get(vitals, {}))


def last_failures(vitals: Vitals) -> dict[str, LastFailure]:
    """The latest failure of each upstream that a breaker of any worker has seen."""
    return {name: LastFailure(*last) for name, last in vitals.latest(NEWS).items()}


def left_alone(vitals: Vitals) -> dict[str, float]:
    """Upstreams that this process leaves alone now → seconds until they are asked again."""
    now, found = monotonic(), dict[str, float]()
    for known in KEPT.get(vitals, {}).values():
        for (name, _), trouble in known.items():
            if now < trouble.until:
                found[name] = max(found.get(name, 0.0), trouble.until - now)
    return found


def mark(upstream: Upstream) -> Mark:
    return upstream.name, upstream.transport


class Breaker(Filter):
    name = "breaker"
    on_error = "open"
    vouches = True
    config: Config

    async def start(self) -> None:
        self.clock: Callable[[], float] = monotonic
        said = self.config
        numbers = (said.failures, said.rest, said.longest, said.interval, said.share, said.last)
        # Empty while all are well, so that the usual request asks for nothing else.
        self._known = KEPT.setdefault(said.vitals, {}).setdefault(numbers, {})
        vitals = said.vitals
        vitals.gauge(GAUGE, lambda: {(name,): 1.0 for name in left_alone(vitals)})
        vitals.tell(NEWS, lambda: told(vitals))
        self._failed = FAILED.setdefault(vitals, {})
        here = set(map(mark, said.upstreams.values()))
        for gone in self._known.keys() - here:
            del self._known[gone]
        for name in self._failed.keys() - said.upstreams.keys():
            del self._failed[name]

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        return self.look(ex, attempt.target.upstream) if self._known else None

    def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        if attempt.failure is not None or self._known or ex.outcome.kind != "ok":
            self.count(ex, attempt)

    def look(self, ex: Exchange, upstream: Upstream) -> Failure | None:
        """Whether ``upstream`` is passed over in this exchange, and why."""
        now = self.clock()
        if not self.is_out(upstream, now):
            return None
        # Without targets there is nobody but the one who was asked, as with `direct`.
        several = dict.fromkeys([target.upstream for target in ex.targets] or [upstream])
        most = max(1, len(several) * self.config.share // 100)
        if not self.config.last:
            most = min(most, len(several) - 1)
        out = [one for one in several if self.is_out(one, now)]
        out.sort(key=lambda one: self._known[mark(one)].since)
        if upstream not in out[:most]:
            return None
        left = self._known[mark(upstream)].until - now
        message = f"it failed too often and is left alone for {left:.0f} s more"
        return Failure("ejected", message, after=left)

    def is_out(self, upstream: Upstream, now: float) -> bool:
        trouble = self._known.get(mark(upstream))
        return trouble is not None and now < trouble.until

    def count(self, ex: Exchange, attempt: Attempt) -> None:
        """Take in how an attempt ended."""
        upstream, credential = attempt.target.upstream, attempt.credential
        if upstream.owner != "operator" or (credential and credential.owner != "operator"):
            return
        well = verdict(ex, attempt)
        trouble = self._known.get(mark(upstream))
        if well is None or (well and trouble is None):
            return
        if not well:
            self._failed[upstream.name] = failure_of(ex, attempt)
        now = self.clock()
        if trouble is None:
            trouble = self._known[mark(upstream)] = Trouble()
        if now < trouble.until:
            return  # It was asked before it went out, or because nobody else was there.
        if well:
            self.forgive(upstream, trouble, now)
            return
        trouble.failures += 1
        if trouble.failures >= self.config.failures:
            self.eject(upstream, trouble, now)

    def forgive(self, upstream: Upstream, trouble: Trouble, now: float) -> None:
        trouble.failures = 0
        if trouble.times and trouble.well is None:
            trouble.well = now
            self.log.info("upstream_well", upstream=upstream.name)
        if trouble.forgiven(now, self.config.interval) >= trouble.times:
            del self._known[mark(upstream)]

    def eject(self, upstream: Upstream, trouble: Trouble, now: float) -> None:
        times = max(trouble.times - trouble.forgiven(now, self.config.interval), 0) + 1
        rest = min(self.config.rest * times, self.config.longest)
        self._known[mark(upstream)] = Trouble(times=times, since=now, until=now + rest)
        self.log.warning(
            "upstream_ejected", upstream=upstream.name, failures=trouble.failures, seconds=rest
        )


FAILING = frozenset({"connect", "timeout", "broken", "protocol", "stream"})


def verdict(ex: Exchange, attempt: Attempt) -> bool | None:
    """Whether an attempt shows its upstream well (true) or failing; ``None`` where it shows
    neither."""
    failure = attempt.failure
    if failure is not None:
        if failure.kind == "status":
            return failure.status < 500
        return False if failure.kind in FAILING else None
    if "upstream_broken" in (ex.outcome.kind, ex.outcome.code):
        return None if ex.outcome.code == "shutdown" else False
    if ex.outcome.code == "stream_error":
        return False
    return True if attempt.status else None


def failure_of(ex: Exchange, attempt: Attempt) -> LastFailure:
    """What is told of an attempt that failed, without what its upstream was shown."""
    failure = attempt.failure
    if failure is None:
        return LastFailure(time(), "stream", 0, ex.outcome.code or "it broke off")
    said = veiled(failure.message.encode(), attempt.secrets).decode("utf-8", "replace")
    return LastFailure(time(), failure.kind, failure.status, said[:LONGEST])


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Breaker]

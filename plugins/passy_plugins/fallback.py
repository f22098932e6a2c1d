"""Terminal: try the targets in order until one answers.

When the next target may be asked (``fallback_on`` is the alias's, else this filter's):

=============================================  ==================  ===========================
what happened                                  same target         next target
=============================================  ==================  ===========================
not connected, refused by a filter             once, in budget     always
429                                            --                  ``rate_limit`` (or ``4xx``)
any 5xx, an error event before content         --                  ``5xx``
another 4xx                                    never               only where ``4xx`` is named, and
                                                                   never after 401, 402 and 403 for
                                                                   an organisation's own key
timeout, cut or garbage after it was sent      never               ``timeout`` / ``5xx``, and only
                                                                   if the route is replay-safe
anything after the first byte for the client   never               never
=============================================  ==================  ===========================
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from passy_proxy import (
    Attempt,
    Dispatch,
    Duration,
    Exchange,
    Failure,
    Reply,
    Settings,
    Terminal,
    failed_reply,
    hookimpl,
    setting,
)

Condition = Literal["5xx", "4xx", "timeout", "rate_limit"]


class Config(Settings):
    attempts: int = setting(10, "Most tries for one exchange, over all targets.", ge=1, le=100)
    fallback_on: tuple[Condition, ...] = setting(
        ("5xx", "timeout", "rate_limit"),
        "What sends an exchange on to the next target, for aliases that do not say themselves.",
    )
    commit: Literal["head", "first_event"] = setting(
        "first_event",
        "When an answer is settled on: at its head, or at the first event of its stream.",
    )
    first_event: Duration = setting(
        "20s", "How long a stream may take from its head to its first event.", gt=0
    )
    retries: int = setting(
        1, "Tries more at the same target when it could not even be connected to.", ge=0, le=5
    )
    on_unknown_outcome: Literal["fallback", "fail"] = setting(
        "fallback",
        "When a request was sent and nothing came back: ask the next target (the first may still "
        "bill it), or fail.",
    )
    heartbeat: Duration = setting(
        "15s", "Silence in a stream before a comment is sent to keep it alive; 0s is never.", ge=0
    )


class Budget:
    """Bounds retries at one target to a fifth of what runs, and never below three."""

    SHARE = 5
    FLOOR = 3

    def __init__(self) -> None:
        self.running = 0
        self.retrying = 0

    def allows(self) -> bool:
        return self.retrying < max(self.FLOOR, self.running // self.SHARE)


class Fallback(Terminal):
    name = "fallback"
    needs = frozenset({"targets", "body"})
    config: Config

    async def start(self) -> None:
        self._named = frozenset(self.config.fallback_on)
        self._most = self.config.attempts
        self._wait_first = self.config.commit == "first_event"
        self._budget = Budget()

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if not ex.targets:
            return Reply(503, "no_healthy_target", "Nobody is there to answer this request.")
        budget = self._budget
        budget.running += 1
        try:
            for place, target in enumerate(ex.targets, 1):
                attempt = await dispatch(ex, target)
                if attempt.whole:
                    pass
                elif attempt.failure is None:
                    await self.settle_on(attempt)
                elif unconnected(attempt.failure):
                    left = len(ex.targets) - place
                    attempt = await self.again(ex, dispatch, attempt, left)
                if (
                    attempt.failure is None
                    or len(ex.attempts) >= self._most
                    or not self.may_follow(attempt)
                ):
                    break
        finally:
            budget.running -= 1
        return attempt if attempt.failure is None else self.last_word(ex, attempt)

    async def again(self, ex: Exchange, dispatch: Dispatch, attempt: Attempt, left: int) -> Attempt:
        """The same target once more, while it cannot be connected to and the budget allows.

        Never at the expense of the ``left`` targets that have not been asked.
        """
        for _ in range(self.config.retries):
            if not unconnected(attempt.failure) or not self._budget.allows():
                break
            if len(ex.attempts) + left >= self._most:
                break
            self._budget.retrying += 1
            try:
                attempt = await dispatch(ex, attempt.target)
            finally:
                self._budget.retrying -= 1
        if attempt.failure is None:
            await self.settle_on(attempt)
        return attempt

    async def settle_on(self, attempt: Attempt) -> None:
        """Wait for what the commitment rests on; a stream must start in time."""
        if not (attempt.streamed and self._wait_first):
            await attempt.ready(first_event=False)
            return
        try:
            async with asyncio.timeout(self.config.first_event):
                await attempt.ready(first_event=True)
        except TimeoutError:
            waited = self.config.first_event
            attempt.failure = Failure("timeout", f"no event within {waited:g} s", sent=True)

    def may_follow(self, attempt: Attempt) -> bool:
        """Whether the table above allows another target after this failure."""
        failure = attempt.failure
        assert failure is not None
        if not failure.sent:
            return True
        chosen = attempt.target.fallback_on
        named = self._named if chosen is None else chosen
        if failure.kind == "status":
            if failure.status in CREDENTIAL_REFUSED and brought(attempt):
                return False
            return bool(conditions(failure.status) & named)
        if failure.kind == "stream":
            return "5xx" in named
        if self.config.on_unknown_outcome == "fail" or not attempt.request.replay_safe:
            return False
        return ("timeout" if failure.kind == "timeout" else "5xx") in named

    def last_word(self, ex: Exchange, attempt: Attempt) -> Attempt | Reply:
        """What the client hears when no target answered."""
        failure = attempt.failure
        assert failure is not None
        alone = len(ex.attempts) == 1
        if failure.kind == "status" and (alone and attempt.target.fallback_on is None):
            return attempt
        if failure.kind == "status" and not self.may_follow(attempt):
            return attempt
        return failed_reply(ex)


def unconnected(failure: Failure | None) -> bool:
    """Whether the upstream never saw anything of the request, for want of a connection."""
    return failure is not None and failure.kind == "connect" and not failure.sent


CREDENTIAL_REFUSED = frozenset({401, 402, 403})


def brought(attempt: Attempt) -> bool:
    """Whether an organisation's own key was shown: refused, it is not replaced by another's."""
    return attempt.credential is not None and attempt.credential.owner != "operator"


def conditions(status: int) -> frozenset[str]:
    """The words of ``fallback_on`` that name a status."""
    if status >= 500:
        return frozenset({"5xx"})
    if status == 429:
        return frozenset({"rate_limit", "4xx"})
    return frozenset({"4xx"}) if status >= 400 else frozenset()


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [Fallback]

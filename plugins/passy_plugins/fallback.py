"""Terminal: try the targets in order until one answers.

When a request may be sent again (``fallback_on`` is the alias's, else this filter's):

=============================================  ==================  ===========================
what happened                                  same target         next target
=============================================  ==================  ===========================
not connected                                  ``retries``         always
refused by a filter, no counterpart            never               always
503 and 529, 429                               after Retry-After,  ``5xx``, ``rate_limit``
                                               if ``retry_after``  (``4xx`` is 429 too)
                                               allows that long
another 5xx                                    only with           ``5xx``
                                               ``retry_on: 5xx``
an error before content in a 200               never               ``5xx``
401, 402, 403 and 429 for an organisation's    with its next own   after 429 alone, and never with
own key                                        key, at once        the operator's key (``byok``)
another 4xx                                    never               only where ``4xx`` is named
timeout, cut or garbage after it was sent      never               ``timeout`` / ``5xx``, and only
                                                                   if the request is replay-safe
anything after the first byte for the client   never               never
=============================================  ==================  ===========================

Every try at the same target needs a place in the budget, and so does one at a target whose last
try failed: going on to who is well costs nothing, but when nobody is, tries stay within a fifth of
the requests. What a filter passes over (``ejected``) is no try at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from passy_plugins.retrying import (
    BUSY,
    WAITS,
    Budget,
    another_key,
    brought,
    seconds_to_wait,
    spent,
)
from passy_proxy import (
    Attempt,
    Dispatch,
    Duration,
    Exchange,
    Failure,
    Reply,
    Settings,
    Target,
    Terminal,
    failed_reply,
    hookimpl,
    made,
    setting,
    single,
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
        1,
        "Tries more at the same target, when it could not even be connected to or as the next two "
        "settings say.",
        ge=0,
        le=5,
    )
    retry_on: tuple[Literal["5xx"], ...] = setting(
        (),
        "What else is tried again at the same target: 5xx is a complete answer of 500 and above, "
        "but for 503 and 529, to a request that is replay-safe.",
    )
    retry_after: Duration = setting(
        "0s",
        "The longest Retry-After of a 429, 503 or 529 that is waited for, to try the same target "
        "again when there is no other; 0s is never.",
        ge=0,
    )
    budget: int = setting(
        20,
        "Tries beyond the first that are not expected to help (at the same target, or at one whose "
        "last try failed), in percent of the requests of the last seconds.",
        ge=0,
        le=100,
    )
    budget_floor: int = setting(
        15, "How many of them there may be in some seconds, however few requests there are.", ge=0
    )
    on_unknown_outcome: Literal["fallback", "fail"] = setting(
        "fallback",
        "When a request was sent and nothing came back: ask the next target (the first may still "
        "bill it), or fail.",
    )
    heartbeat: Duration = setting(
        "15s", "Silence in a stream before a comment is sent to keep it alive; 0s is never.", ge=0
    )


class Fallback(Terminal):
    name = "fallback"
    needs = frozenset({"targets", "body"})
    config: Config

    async def start(self) -> None:
        config = self.config
        self._named = frozenset(config.fallback_on)
        self._most = config.attempts
        self._wait_first = config.commit == "first_event"
        self._budget = Budget(config.budget, config.budget_floor)
        # Failures in a row, by target; who is not in it is well, as far as is known.
        self._ill: dict[str, int] = {}

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if not ex.targets:
            return Reply(503, "no_healthy_target", "Nobody is there to answer this request.")
        self._budget.asked += 1
        attempt = await dispatch(ex, ex.targets[0])
        if not attempt.whole:
            if attempt.failure is None:
                await self.settle_on(attempt)
            if attempt.failure is not None:
                return await self.go_on(ex, dispatch, attempt)
        if self._ill:
            self._ill.pop(attempt.target.label, None)
        return attempt

    async def go_on(self, ex: Exchange, dispatch: Dispatch, attempt: Attempt) -> Attempt | Reply:
        """The first try failed: the others, as far as they may be asked."""
        self.note(attempt)
        rest = list(ex.targets[1:])
        while True:
            attempt = await self.again(ex, dispatch, attempt, len(rest))
            if attempt.failure is None:
                return attempt
            target = self.following(ex, attempt, rest)
            if target is None:
                break
            attempt = await self.ask(ex, dispatch, target)
        if self.config.retry_after:
            attempt = await self.in_time(ex, dispatch, attempt)
        return attempt if attempt.failure is None else self.last_word(ex, attempt)

    def following(self, ex: Exchange, attempt: Attempt, rest: list[Target]) -> Target | None:
        """Who is asked after this failure, taken out of the ``rest``."""
        if made(ex) >= self._most or not self.may_follow(attempt):
            return None
        while rest:
            target = rest.pop(0)
            if target.label not in self._ill or not made(ex) or self._budget.allows():
                return target
        return None

    async def ask(self, ex: Exchange, dispatch: Dispatch, target: Target) -> Attempt:
        """One try more, which counts against the budget unless it turns out well."""
        counted = made(ex) > 0
        if counted:
            self._budget.spend()
        attempt = await dispatch(ex, target)
        if attempt.failure is None and not attempt.whole:
            await self.settle_on(attempt)
        if not self.note(attempt) and counted:
            self._budget.give_back()
        return attempt

    def note(self, attempt: Attempt) -> bool:
        """Remember how the target is; whether it is in trouble."""
        failure, label = attempt.failure, attempt.target.label
        if failure is not None and failure.kind in ELSEWHERE:
            return False
        if failure is not None and failure.status == 429 and brought(attempt):
            return False  # It is that key's trouble, and nobody else's.
        if failure is None or (failure.kind == "status" and not overloaded(failure.status)):
            self._ill.pop(label, None)
            return False
        if label not in self._ill and len(self._ill) >= REMEMBERED:
            self._ill.clear()  # Names can be the clients': they must not fill the memory.
        self._ill[label] = self._ill.get(label, 0) + 1
        return True

    async def again(self, ex: Exchange, dispatch: Dispatch, attempt: Attempt, left: int) -> Attempt:
        """The same target once more, where that may help and the budget allows.

        Never at the expense of the ``left`` targets that have not been asked. Another key is none
        of these tries: who shows it is somebody else to the upstream.
        """
        while another_key(attempt) and made(ex) < self._most:
            attempt = await self.ask(ex, dispatch, attempt.target)
        for _ in range(self.config.retries):
            if not self.may_repeat(attempt) or not self._budget.allows():
                break
            if made(ex) + left >= self._most:
                break
            attempt = await self.ask(ex, dispatch, attempt.target)
        return attempt

    async def in_time(self, ex: Exchange, dispatch: Dispatch, attempt: Attempt) -> Attempt:
        """The last target once more, as soon as it said, if it said so and that is soon enough."""
        for _ in range(self.config.retries):
            wait = seconds_to_wait(attempt)
            if wait is None or wait > self.config.retry_after or made(ex) >= self._most:
                break
            if spent(attempt) or not self._budget.allows():
                break
            await asyncio.sleep(wait)
            attempt = await self.ask(ex, dispatch, attempt.target)
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

    def may_repeat(self, attempt: Attempt) -> bool:
        """Whether the table above allows the same target at once after this failure."""
        failure = attempt.failure
        if failure is None:
            return False
        if failure.kind == "connect":
            return not failure.sent
        if failure.kind != "status" or spent(attempt):  # of others there may be no request to ask
            return False
        return (
            failure.status >= 500
            and failure.status not in BUSY
            and "5xx" in self.config.retry_on
            and attempt.request.replay_safe
        )

    def may_follow(self, attempt: Attempt) -> bool:
        """Whether the table above allows another target after this failure."""
        failure = attempt.failure
        assert failure is not None
        if not failure.sent:
            return True
        if spent(attempt):
            return False
        chosen = attempt.target.fallback_on
        named = self._named if chosen is None else chosen
        if failure.kind == "status":
            if failure.status in CREDENTIAL_REFUSED and brought(attempt):
                return False
            return bool(conditions(failure.status) & named)
        if failure.kind == "stream":  # It said 200, so it may have done what it was asked.
            return "5xx" in named and attempt.request.replay_safe
        if self.config.on_unknown_outcome == "fail" or not attempt.request.replay_safe:
            return False
        return ("timeout" if failure.kind == "timeout" else "5xx") in named

    def last_word(self, ex: Exchange, attempt: Attempt) -> Attempt | Reply:
        """What the client hears when no target answered."""
        failure = attempt.failure
        assert failure is not None
        if failure.kind == "status" and attempt.status >= 400:
            following = self.may_follow(attempt)
            if not following or (single(ex) and attempt.target.fallback_on is None):
                # Where a retry of ours was held back, or nobody has been well for a while, one of
                # the client's would only add to the trouble.
                asked = {one.target.label for one in ex.attempts}
                held_back = following and len(asked) < len(ex.targets)
                if failure.status >= 500 and (held_back or self.failing(attempt)):
                    attempt.failure = replace(failure, final=True)
                return attempt
        return failed_reply(ex)

    def failing(self, attempt: Attempt) -> bool:
        """Whether the target has failed for a while, and does not say when it will be well."""
        failures = self._ill.get(attempt.target.label, 0)
        return failures > PATIENCE and WAITS.isdisjoint(attempt.fields)


REMEMBERED = 1_000
"""Targets in trouble that are kept in mind."""
PATIENCE = 3
"""Failures in a row that are left to the clients' own retries."""
ELSEWHERE = frozenset({"refused", "untranslatable", "ejected", "pool"})
"""Kinds of failure that say nothing of the target."""
CREDENTIAL_REFUSED = frozenset({401, 402, 403})


def overloaded(status: int) -> bool:
    """Whether a status tells of the upstream's trouble, and not of the request's."""
    return status >= 500 or status == 429


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

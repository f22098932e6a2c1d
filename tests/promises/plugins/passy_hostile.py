"""A plugin that does wrong on request: one fault in one hook, as its settings say."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from passy_proxy import Exchange, Filter, Reply, Settings, hookimpl, setting
from passy_proxy.chain import HOOKS

BROKEN = b"1\r\nx-evil: 1"


class Config(Settings):
    hook: str = setting(..., "The hook that goes wrong.")
    fault: str = setting(..., "How it does.")


def throw(*_: object) -> None:
    raise LookupError("sk-canary in a message")


def leave(*_: object) -> None:
    sys.exit("a plugin may not end the process")


def stray(*_: object) -> None:
    raise asyncio.CancelledError


def hog(*_: object) -> bytearray:
    return bytearray(1 << 62)


def wrong(*_: object) -> object:
    return {"neither": "a reply nor an event"}


async def hang(*_: object) -> None:
    await asyncio.sleep(3600)


async def swallow(*_: object) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def raise_late(*_: object) -> None:
    await asyncio.sleep(0)
    raise LookupError("sk-canary in a message")


def look(ex: Exchange, it: Any = None) -> None:
    """Tells all that it is shown: what a plugin that logs too much would."""
    request = ex.request
    shown: list[object] = [
        request.headers,
        dict(request.fields),
        ex.principal,
        ex.targets,
        ex.stash,
    ]
    shown += [request.header(name) for name in (b"authorization", b"x-api-key", b"cookie")]
    shown += [request.path, request.query, ex.attempts, ex.reply, ex.head, ex.outcome, ex.usage, it]
    shown += [getattr(attempt, "credential", None) for attempt in ex.attempts]
    shown += [repr(ex), ex.snapshot, ex.snapshot.settings, ex.snapshot.upstreams]
    if not ex.depth:
        shown.append(request.body)
    print("shown", ascii(shown), file=sys.stderr, flush=True)


def poison(ex: Exchange, it: Any = None) -> None:
    """Puts headers into the client's request, for itself or for whoever comes next."""
    for act in (
        lambda: ex.request.headers.append((b"authorization", b"Bearer sk-canary-planted")),
        lambda: ex.request.headers.__setitem__(0, (b"x-canary", b"planted")),
        lambda: ex.request.fields.__setitem__(b"authorization", b"Bearer sk-canary-planted"),
        lambda: ex.request.fields.pop(b"content-type"),
    ):
        try:
            act()
        except (AttributeError, TypeError):
            continue
        print("poisoned", file=sys.stderr, flush=True)


def edit(edited: Callable[[Any], None]) -> Callable[..., Any]:
    """Edits the head at hand: the answer's, the upstream request's, or that of a reply."""

    def hook(ex: Exchange, it: Any = None) -> Reply | None:
        if it is None and ex.status == 0 and not ex.attempts:
            reply = Reply(400, "hostile", "A reply with a header of mine.")
            edited(reply)
            return reply
        if hasattr(it, "credential"):
            edited(it.request)
        else:
            edited(it if hasattr(it, "headers") else ex.head)
        return None

    return hook


FAULTS: dict[str, Callable[..., Any]] = {
    "raise": throw,
    "exit": leave,
    "stray": stray,
    "hog": hog,
    "wrong": wrong,
    "hang": hang,
    "swallow": swallow,
    "late": raise_late,
    "look": look,
    "poison": poison,
    "line_break": edit(lambda it: it.headers.append((b"x-a", BROKEN))),
    "pseudo": edit(lambda it: it.headers.append((b":status", b"204"))),
    "text": edit(lambda it: it.headers.insert(0, ("x-a", "b"))),
    "length": edit(lambda it: it.headers.append((b"Content-Length", b"3"))),
    "none": edit(lambda it: setattr(it, "headers", None)),
    "replaced": edit(lambda it: it.headers.__setitem__(0, (b"x a", b"b"))),
}


class Hostile(Filter):
    name = "hostile"
    config: Config


class Onlooker(Filter):
    """Tells on standard error which ends it has seen, of the exchange that ``x-case`` names."""

    name = "onlooker"
    config: Config

    def on_attempt_end(self, ex: Exchange, attempt: Any) -> None:
        self.tell(ex, "on_attempt_end")

    def on_end(self, ex: Exchange) -> None:
        self.tell(ex, "on_end")

    def on_complete(self, ex: Exchange) -> None:
        self.tell(ex, f"on_complete {ex.outcome}")

    def tell(self, ex: Exchange, what: str) -> None:
        word = (ex.request.header(b"x-case") or b"").decode()
        print(f"seen {word} {what}", file=sys.stderr, flush=True)


def hook_of(name: str) -> Callable[..., Any]:
    """``name`` with the arguments of its contract."""

    def run(self: Hostile, ex: Exchange, *more: object) -> Any:
        return FAULTS[self.config.fault](ex, *more) if self.config.hook == name else None

    if name in ("on_attempt", "on_attempt_end"):
        return lambda self, ex, attempt: run(self, ex, attempt)
    if name == "on_response":
        return lambda self, ex, head: run(self, ex, head)
    if name == "on_event":
        return lambda self, ex, event: run(self, ex, event)
    return lambda self, ex: run(self, ex)


for each in HOOKS:
    setattr(Hostile, each, hook_of(each))


@hookimpl
def passy_filters() -> list[type[Filter]]:
    return [Hostile, Onlooker]

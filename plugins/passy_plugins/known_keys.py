"""What is known of keys, and how it is kept true: the memory of `auth`.

A directory is asked for a key once, by whoever comes first; then again beside the requests, before
its answer has had its time, so that a key in use never waits for it. While it is away one question
a second finds out whether it is back, and what it said in the last ``stale`` holds: from memory, or
after a start from what `Remembered` has on disk.

An edit ends what is known of the keys that it concerns, in memory and on disk, at once. They are
then asked for again without waiting for a request, so that the next process knows of it too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from pydantic import TypeAdapter

from passy_plugins.questions import PAUSE, Questions
from passy_proxy import Changes, Principal, StoreUnavailable, Tasks
from passy_proxy.remembered import Said
from passy_proxy.stores import ANYTHING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.auth import Config

BRIEF = 0.1
"""Seconds that who is known waits for an answer; it is then taken when it comes."""
SHARE = 10
"""So many times in ``stale`` what is known is written to disk."""
ASKED_AT_ONCE = 1_000
"""Keys that are asked for again without waiting for a request, after an edit."""
STRIDE = 2_000
"""Entries looked through before somebody else may have the loop."""
RECENT = 1_000
"""Edits that answers under way are held against."""
UNCONCERNED = frozenset(("provider", "credential", "webhook", "switch"))
"""Edits of these change nothing about who somebody is."""


class Seen:
    """What the directory said of a digest, and until when that may be used. Several memories hold
    the same one, so what ends it ends it in all of them."""

    __slots__ = ("due", "fresh", "kept", "principal", "stale")

    def __init__(
        self, principal: Principal | None, due: float = 0.0, fresh: float = 0.0, stale: float = 0.0
    ) -> None:
        self.principal = principal
        """``None``: there is no such key, or no more."""
        self.due = due
        """When it is to be asked for again."""
        self.fresh = fresh
        """Until when it is good without an answer."""
        self.stale = stale
        """Until when it is good while there is none to be had."""
        self.kept = 0.0
        """When it was last put on disk."""

    def end(self) -> None:
        self.due = self.fresh = self.stale = 0.0


NEVER_SEEN = Seen(None)


class Asked(NamedTuple):
    """When the directory was asked."""

    began: float
    at: float
    """The same by the clock on the wall."""
    edits: int
    """How many edits had been told of by then."""


class Memory:
    """The latest ``size`` entries, oldest forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[bytes, Seen] = {}
        self.get = self._entries.get
        self.items = self._entries.items
        self.clear = self._entries.clear

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, digest: bytes, seen: Seen) -> None:
        self._entries.pop(digest, None)
        self._entries[digest] = seen
        if len(self._entries) > self._size:
            del self._entries[next(iter(self._entries))]

    def forget(self, digest: bytes) -> None:
        self._entries.pop(digest, None)


class Known:
    """What is known of keys, and how it is kept true."""

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        self._config = config
        self._directory = config.directory
        self._tasks = Tasks(log)
        self._known = Memory(config.known)
        self._unknown = Memory(config.unknown)
        place = getattr(config.directory, "place", "")
        self._kind = f"auth {place}" if place and config.stale else ""
        """Whose entries on disk are ours; empty where there are none."""
        self._questions = Questions("directory", self._answer, self._tasks, log)
        self._unlisten: list[Callable[[], None]] = []
        self._edits: set[tuple[str, str]] = set()
        self._told = 0
        """How many edits were told of."""
        self._latest: deque[tuple[str, str]] = deque(maxlen=RECENT)
        """The last of them."""
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        directory: object = self._directory
        sooner = self._config.changes
        if isinstance(directory, Changes):
            self._unlisten.append(directory.listen(self.told))
        if sooner is not None and sooner is not directory:
            self._unlisten.append(sooner.listen(self.told_sooner))

    async def stop(self) -> None:
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten.clear()
        await self._tasks.stop()

    def now(self, digest: bytes) -> Seen | None:
        """What is known of a key without waiting for anybody; ``None``: it has to be looked up."""
        seen = self._known.get(digest) or self._unknown.get(digest)
        now = monotonic()
        if seen is None or (seen.fresh <= now and seen.due <= now):
            return None
        if seen.due <= now and seen.principal is not None:
            seen.due = min(now + PAUSE, seen.fresh)
            if self._questions.may_ask(now):
                self._questions.ask(digest)
        return seen

    async def look_up(self, digest: bytes) -> Seen | None:
        """Ask the directory; what it said before serves while it cannot be asked. ``None``: nobody
        knows."""
        now = monotonic()
        known = self._known.get(digest)
        holds = known is not None and known.stale > now
        if self._questions.may_ask(now):
            asking = self._questions.ask(digest)
            # While it is away, who is known need not wait to hear that it still is; nor for long
            # to find that out.
            if not (self._questions.away and holds):
                # Of all that wait for one answer any may leave.
                brief = BRIEF if holds and self._config.ttl else None
                await asyncio.wait([asking], timeout=brief)
            if asking.done() and (answer := asking.result()) is not None:
                return answer
        known = self._known.get(digest)
        if known is None or known.stale <= now:
            known = await self._recalled(digest)
        now = monotonic()
        if known is None or known.stale <= now:
            return None
        known.due = min(now + PAUSE, known.stale)
        return known

    async def _answer(self, digest: bytes) -> Seen | None:
        asked = Asked(monotonic(), time(), self._told)
        try:
            async with asyncio.timeout(self._config.patience):
                principal = await self._directory.principal(digest)
        except (StoreUnavailable, TimeoutError) as error:
            self._questions.failed(error, monotonic())
            return None
        self._questions.answered()
        return self._learned(digest, principal, asked)

    def _learned(self, digest: bytes, principal: Principal | None, asked: Asked) -> Seen:
        """What the directory answered."""
        ttl, stale, began = self._config.ttl, self._config.stale, asked.began
        seen = self._known.get(digest)
        if self._edited_since(asked, principal):
            # It may be from before the edit: for those who wait for it, and for nobody else.
            if seen is not None:
                seen.end()
                self._known.forget(digest)
            return Seen(principal)
        if seen is None and principal is None:
            seen = Seen(None, fresh=began + ttl)
            self._unknown.put(digest, seen)
            if self._kind:  # The disk may still know it, from before a start.
                self._keep(digest, seen, asked.at, only_known=True)
            return seen
        if seen is None or seen.principal != principal:
            if seen is not None:
                seen.end()
            seen = Seen(principal)
        seen.due, seen.fresh, seen.stale = began + ttl / 2, began + ttl, began + stale
        self._unknown.forget(digest)
        self._known.put(digest, seen)
        if self._kind and began >= seen.kept + stale / SHARE:
            # Soon again: another worker may only then hear of the edit that made it new.
            seen.kept = began if seen.kept else began - stale / SHARE
            self._keep(digest, seen, asked.at)
        return seen

    def _keep(self, digest: bytes, seen: Seen, at: float, *, only_known: bool = False) -> None:
        about = [f"{kind}:{subject}" for kind, subject in concerned(seen.principal)]
        said = Said(PRINCIPAL.dump_json(seen.principal), at, self._config.stale, about)
        self._config.remembered.put(self._kind, digest, said, only_known=only_known)

    async def _recalled(self, digest: bytes) -> Seen | None:
        """What the disk knows, from before a start or from another worker."""
        if not self._kind:
            return None
        told = self._told
        found = await self._config.remembered.find(self._kind, digest)
        if found is None or told != self._told:  # It may be from before an edit.
            return None
        try:
            principal = PRINCIPAL.validate_json(found.value)
        except ValueError:  # Of another version of ours.
            return None
        known, stale = self._known.get(digest), monotonic() + found.left
        if known is None or known.stale < stale:
            known = Seen(principal, stale=stale)
            self._known.put(digest, known)
        return known

    # Edits

    def told_sooner(self, kind: str, subject: str) -> None:
        """By another store than the directory. What that one has missed the directory will tell,
        if it can: each time the other is back is no reason to ask for all keys again."""
        if kind != ANYTHING or not getattr(self._directory, "hears", False):
            self.told(kind, subject)

    def told(self, kind: str, subject: str) -> None:
        """Somebody was edited, or may have been."""
        if kind in UNCONCERNED:
            return
        self._edits.add((kind, subject))
        if kind != ANYTHING:
            self._told += 1
            self._latest.append((kind, subject))
            self._unknown.clear()
            if self._kind:
                self._config.remembered.edited(f"{kind}:{subject}")
        if self._looking is None:
            self._looking = self._tasks.start(self._look_through())

    def _edited_since(self, asked: Asked, principal: Principal | None) -> bool:
        """Whether anything was edited since then that may concern the answer."""
        missed = self._told - asked.edits
        if not missed:
            return False
        if missed > RECENT or principal is None:
            return True
        about = concerned(principal)
        latest = list(self._latest)[-missed:]
        return any(edit in about or edit[0] not in CONCERNED for edit in latest)

    async def _look_through(self) -> None:
        """End what is known of all that were edited, then ask for them again."""
        ended: dict[bytes, None] = {}
        while self._edits:
            edits, self._edits = self._edits, set()
            # Without a name, or of something that is no part of a principal: it may be any.
            named = {edit for edit in edits if edit[0] in CONCERNED}
            suspect = len(named) < len(edits)
            for number, (digest, seen) in enumerate(list(self._known.items()), 1):
                if not named.isdisjoint(concerned(seen.principal)):
                    seen.end()
                    self._known.forget(digest)
                    ended[digest] = None
                elif suspect:
                    # Good for a moment yet, in which it is asked for again.
                    seen.due, seen.fresh = 0.0, min(seen.fresh, monotonic() + PAUSE)
                if number % STRIDE == 0:
                    await asyncio.sleep(0)
        self._looking = None
        for digest in list(ended)[:ASKED_AT_ONCE]:
            if not self._questions.may_ask(monotonic()):
                return
            if await self._questions.ask(digest) is None:
                return


CONCERNED = frozenset(("key", "organisation", "team", "user"))


def concerned(principal: Principal | None) -> set[tuple[str, str]]:
    """Whose edits change what a principal may."""
    if principal is None:
        return set()
    found = {("key", principal.key_id), *((level.kind, level.id) for level in principal.above)}
    levels = (
        ("organisation", principal.organisation),
        ("team", principal.team),
        ("user", principal.user),
    )
    found.update((kind, id) for kind, id in levels if id is not None)
    return found


PRINCIPAL: TypeAdapter[Principal | None] = TypeAdapter(Principal | None)

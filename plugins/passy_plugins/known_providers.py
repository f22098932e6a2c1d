"""What is known of the providers and keys that organisations brought: the memory of `byok`.

A vault is asked once for an organisation, by whoever comes first; then again beside the requests,
before its answer has had its time. While it is away, what it said in the last ``stale`` holds: from
memory, or after a start from what `Remembered` has on disk, where all of it is sealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import TypeAdapter

from passy_proxy import Changes, Credential, CustomProvider, StoreUnavailable, Tasks
from passy_proxy.keyring import KeyringError
from passy_proxy.remembered import Said
from passy_proxy.stores import ANYTHING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.byok import Config

ORGANISATION = "organisation"
"""The kind of change that an edit of providers and credentials is told as."""
PAUSE = 1.0
"""Seconds between two questions of a vault that is away, for each organisation."""
BRIEF = 0.1
"""Seconds that a request waits for the vault, where there is something to go on without it."""
SHARE = 10
"""So many times in ``stale`` what is known is written to disk."""


class Own(NamedTuple):
    """An organisation's own credentials for one upstream."""

    usable: tuple[Credential, ...]
    """In the order in which they are shown."""
    trouble: str
    """Why another one is not among them; empty when all are."""


NOTHING = Own((), "")


class Brought(NamedTuple):
    """What an organisation brought, and until when that may be used."""

    providers: Sequence[CustomProvider]
    """Those that are active, best first."""
    own: Mapping[str, Own]
    """By the upstream's key."""
    due: float
    """When it is asked for again, beside the requests."""
    fresh: float
    """Until when nobody waits for that."""
    stale: float
    """Until when it is good while there is no answer."""
    edited: bool = False
    """It is known not to be the latest: who comes waits for the answer, if there is any."""


class Answer(NamedTuple):
    """What the vault said, as it is kept on disk."""

    providers: tuple[CustomProvider, ...]
    credentials: tuple[Credential, ...]


ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)


class Known:
    """What is known of organisations, kept true."""

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        self._config = config
        self._tasks = Tasks(log)
        self._entries: dict[str, Brought] = {}
        self.get = self._entries.get
        place = getattr(config.vault, "place", "")
        self._kind = f"byok {place}" if place and config.stale else ""
        """Whose entries on disk are ours; empty where there are none."""
        self._kept: dict[str, float] = {}
        """When each was last put on disk."""
        self._asking: dict[str, asyncio.Task[Brought | None]] = {}
        self._edited: set[str] = set()
        """Edited while the vault was being asked."""
        self._away = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._unlisten: list[Callable[[], None]] = []

    def start(self) -> None:
        sources = [self._config.vault, self._config.changes]
        for source in {id(each): each for each in sources}.values():
            if isinstance(source, Changes):
                self._unlisten.append(source.listen(self.told))

    async def stop(self) -> None:
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._tasks.stop()
        self._entries.clear()

    def now(self, organisation: str) -> Brought | None:
        """What may be used without waiting; ``None``: it has to be looked up."""
        known, now = self._entries.get(organisation), monotonic()
        if known is None or known.due > now:
            return known
        if known.fresh <= now and not self._away:
            return None
        if known.stale <= now or known.edited:
            return None
        self._ask(organisation)
        known = known._replace(due=min(now + PAUSE, known.stale))
        self._entries[organisation] = known
        return known

    async def look_up(self, organisation: str) -> Brought:
        """Ask the vault; what it said before serves while it is away. `StoreUnavailable` when
        nothing is known."""
        known = self._entries.get(organisation)
        holds = known is not None and known.stale > monotonic() and not known.edited
        asking = self._ask(organisation)
        # Of all that wait for one answer any may leave.
        await asyncio.wait([asking], timeout=BRIEF if holds else None)
        if asking.done() and (answer := asking.result()) is not None:
            return answer
        known, now = self._entries.get(organisation), monotonic()
        if known is None or known.stale <= now:
            known = await self._recalled(organisation)
        now = monotonic()
        if known is None or known.stale <= now:
            raise StoreUnavailable("the vault is away, and nothing is known")
        known = known._replace(due=min(now + PAUSE, known.stale), edited=False)
        self._remember(organisation, known)
        return known

    def _ask(self, organisation: str) -> asyncio.Task[Brought | None]:
        asking = self._asking.get(organisation)
        if asking is None:
            asking = self._asking[organisation] = self._tasks.start(self._answer(organisation))
            asking.add_done_callback(lambda _: self._asking.pop(organisation, None))
        return asking

    async def _answer(self, organisation: str) -> Brought | None:
        vault, config = self._config.vault, self._config
        while True:
            self._edited.discard(organisation)
            began, at = monotonic(), time()
            try:
                async with asyncio.timeout(config.patience):
                    providers = await vault.providers(organisation)
                    credentials = await vault.credentials(organisation)
            except (StoreUnavailable, TimeoutError):
                self._away = True
                return None
            self._away = False
            if organisation not in self._edited:
                break
        answer = Answer(tuple(providers), tuple(credentials))
        ends = (began + config.ttl / 2, began + config.ttl, began + config.stale)
        known = brought(answer, *ends)
        self._remember(organisation, known)
        if self._kind and began >= self._kept.get(organisation, -inf) + config.stale / SHARE:
            self._keep(organisation, answer, at)
            remember(self._kept, organisation, began, config.known)
        return known

    def _remember(self, organisation: str, known: Brought) -> None:
        remember(self._entries, organisation, known, self._config.known)
        if self._sweeper is None:
            self._sweep_in(self._config.stale)

    # On disk

    def _keep(self, organisation: str, answer: Answer, at: float) -> None:
        text = ANSWER.dump_json(answer).decode()
        sealed = self._config.keyring.seal(text, "remembered", organisation).encode()
        said = Said(sealed, at, self._config.stale, [f"{ORGANISATION}:{organisation}"])
        self._config.remembered.put(self._kind, organisation.encode(), said)

    async def _recalled(self, organisation: str) -> Brought | None:
        """What the disk knows, from before a start or from another worker."""
        if not self._kind:
            return None
        found = await self._config.remembered.find(self._kind, organisation.encode())
        if found is None:
            return None
        try:
            sealed = found.value.decode()
            text = self._config.keyring.open(sealed, "remembered", organisation)
            answer = ANSWER.validate_json(text)
        except (KeyringError, ValueError):  # Another key ring's, or another version's.
            return None
        return brought(answer, 0.0, 0.0, monotonic() + found.left)

    # Edits

    def told(self, kind: str, subject: str) -> None:
        """Something was edited: who it may concern is asked anew."""
        if kind == ORGANISATION:
            concerned = [subject]
            if self._kind:
                self._config.remembered.edited(f"{kind}:{subject}")
        elif kind == ANYTHING:
            concerned = [*self._entries, *self._asking]
        else:
            return
        for organisation in concerned:
            self._edited.add(organisation)
            self._kept.pop(organisation, None)
            if (known := self._entries.get(organisation)) is not None:
                edited = known._replace(due=0.0, fresh=0.0, edited=kind == ORGANISATION)
                self._entries[organisation] = edited

    # Secrets do not stay

    def _sweep_in(self, seconds: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(seconds + 0.01, self._sweep)

    def _sweep(self) -> None:
        """No key stays in memory for longer than it may be shown."""
        self._sweeper = None
        now = monotonic()
        for organisation, known in list(self._entries.items()):
            if known.stale <= now:
                del self._entries[organisation]
        if self._entries:
            self._sweep_in(min(known.stale for known in self._entries.values()) - now)


def brought(answer: Answer, due: float, fresh: float, stale: float) -> Brought:
    """What can be used of an answer."""
    active = [provider for provider in answer.providers if provider.active]
    active.sort(key=lambda provider: provider.priority)
    return Brought(active, by_upstream(answer.credentials), due, fresh, stale)


def by_upstream(credentials: Iterable[Credential]) -> dict[str, Own]:
    """What can be shown, by what it is for."""
    found: dict[str, Own] = {}
    for one in credentials:
        usable, trouble = found.get(one.upstream, NOTHING)
        if one.trouble:
            trouble = trouble or one.trouble
        elif one.secret.isascii() and one.secret.isprintable():
            usable = (*usable, one)
        else:
            trouble = trouble or "it has characters that no header can carry"
        found[one.upstream] = Own(usable, trouble)
    return found


K = TypeVar("K")
V = TypeVar("V")


def remember(entries: dict[K, V], key: K, value: V, most: int) -> None:
    """Put ``value`` last; of more than ``most`` entries the first is forgotten."""
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > most:
        del entries[next(iter(entries))]

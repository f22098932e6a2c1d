"""What organisations brought, and how it is kept true: the memory of `byok`.

A vault is asked for an organisation once, by whoever comes first; then again beside the requests,
before its answer has had its time. While it is away one question a second finds out whether it is
back, and what it said in the last ``stale`` holds: from memory, or after a start from what
`Remembered` has on disk, where it lies in an envelope under the secret keys.

Keys of theirs are in memory for as long as they may be shown and no longer, asked for or not; of
what was edited nothing is left at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from passy_plugins.questions import PAUSE, Questions
from passy_proxy import Changes, Credential, CustomProvider, StoreUnavailable, Tasks, json
from passy_proxy.keyring import KeyringError
from passy_proxy.remembered import Said
from passy_proxy.stores import ANYTHING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.byok import Config

SHARE = 10
"""So many times in ``stale`` what is known is written to disk."""
KINDS = frozenset(("credential", "organisation"))
"""Edits that are about what an organisation brought; their subject is the organisation."""


class Own(NamedTuple):
    """An organisation's own credentials for one upstream."""

    usable: tuple[Credential, ...]
    """In the order in which they are shown."""
    trouble: str
    """Why another one is not among them; empty when all are."""


class Brought:
    """What an organisation brought, and until when that may be used."""

    __slots__ = ("due", "fresh", "kept", "own", "providers", "stale")

    def __init__(
        self, providers: Sequence[CustomProvider], credentials: Iterable[Credential]
    ) -> None:
        active = [provider for provider in providers if provider.active]
        self.providers = sorted(active, key=lambda provider: provider.priority)
        """Those that are active, best first."""
        self.own: Mapping[str, Own] = by_upstream(credentials)
        """By the upstream's key."""
        self.due = 0.0
        """When it is to be asked for again."""
        self.fresh = 0.0
        """Until when it is good without an answer."""
        self.stale = 0.0
        """Until when it is good while there is none to be had."""
        self.kept = 0.0
        """When it was last put on disk."""

    def __repr__(self) -> str:
        return f"Brought({len(self.providers)} providers, keys for {', '.join(self.own)})"


class Memory:
    """What is known of organisations."""

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        self._config = config
        self._vault = config.vault
        self._tasks = Tasks(log)
        self._entries: dict[str, Brought] = {}
        self.get = self._entries.get
        place = getattr(config.vault, "place", "")
        self._kind = f"byok {place}" if place and config.stale else ""
        """Whose entries on disk are ours; empty where there are none."""
        self._questions = Questions("vault", self._answer, self._tasks, log)
        self._told = 0
        """How many edits were told of."""
        self._unlisten: list[Callable[[], None]] = []
        self._sweeper: asyncio.TimerHandle | None = None

    def start(self) -> None:
        sources = [self._vault, self._config.changes]
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

    async def look_up(self, organisation: str) -> Brought | None:
        """Where nothing is known, or what is known is to be asked for again. ``None``: nobody
        knows."""
        now = monotonic()
        known = self._entries.get(organisation)
        if known is not None and known.fresh > now:
            known.due = min(now + PAUSE, known.fresh)
            if self._questions.may_ask(now):
                self._questions.ask(organisation)
            return known
        if self._questions.may_ask(now):
            asking = self._questions.ask(organisation)
            # While it is away, who is known need not wait to hear that it still is.
            if not self._questions.away or known is None or known.stale <= now:
                answer = await asyncio.shield(asking)  # Of all that wait for it any may leave.
                if answer is not None:
                    return answer
        known = self._entries.get(organisation)
        if known is None or known.stale <= now:
            known = await self._recalled(organisation)
        now = monotonic()
        if known is None or known.stale <= now:
            return None
        known.due = min(now + PAUSE, known.stale)
        return known

    async def _answer(self, organisation: str) -> Brought | None:
        began, at, told = monotonic(), time(), self._told
        try:
            async with asyncio.timeout(self._config.patience):
                providers = await self._vault.providers(organisation)
                credentials = await self._vault.credentials(organisation)
        except (StoreUnavailable, TimeoutError) as error:
            self._questions.failed(error, monotonic())
            return None
        self._questions.answered()
        known = Brought(providers, credentials)
        if told != self._told:
            return known  # It may be from before the edit: for those who wait for it alone.
        ttl, stale = self._config.ttl, self._config.stale
        known.due, known.fresh, known.stale = began + ttl / 2, began + ttl, began + stale
        before = self._entries.get(organisation)
        known.kept = before.kept if before is not None else 0.0
        self._remember(organisation, known)
        if self._kind and began >= known.kept + stale / SHARE:
            known.kept = began
            value = await asyncio.to_thread(self._sealed, organisation, providers, credentials)
            if told == self._told:
                about = [f"{kind}:{organisation}" for kind in KINDS]
                said = Said(value, at, stale, about)
                self._config.remembered.put(self._kind, organisation.encode(), said)
        return known

    def _remember(self, organisation: str, known: Brought) -> None:
        entries = self._entries
        entries.pop(organisation, None)
        entries[organisation] = known
        if len(entries) > self._config.known:
            del entries[next(iter(entries))]
        if self._sweeper is None:
            self._sweep_in(known.stale - monotonic())

    # On disk

    def _sealed(
        self,
        organisation: str,
        providers: Sequence[CustomProvider],
        credentials: Sequence[Credential],
    ) -> bytes:
        """In a thread: the first one loads what seals."""
        if not providers and not credentials:
            return b""
        said = [[asdict(one) for one in providers], [asdict(one) for one in credentials]]
        return self._config.keyring.seal(
            json.dumps(said).decode(), self._kind, organisation
        ).encode()

    def _opened(self, organisation: str, value: bytes) -> Brought:
        if not value:
            return Brought((), ())
        said = self._config.keyring.open(value.decode(), self._kind, organisation)
        providers, credentials = json.loads(said.encode())
        listed = [CustomProvider(**one | {"models": tuple(one["models"])}) for one in providers]
        return Brought(listed, [Credential(**one) for one in credentials])

    async def _recalled(self, organisation: str) -> Brought | None:
        """What the disk knows, from before a start or from another worker."""
        if not self._kind:
            return None
        told = self._told
        found = await self._config.remembered.find(self._kind, organisation.encode())
        if found is None:
            return None
        try:
            known = await asyncio.to_thread(self._opened, organisation, found.value)
        except (KeyringError, ValueError, TypeError):  # Of another version, or another ring.
            return None
        known.stale = monotonic() + found.left
        there = self._entries.get(organisation)
        if told == self._told and (there is None or there.stale < known.stale):
            self._remember(organisation, known)
        return known

    # Edits, and what has had its time

    def told(self, kind: str, subject: str) -> None:
        """Something was edited, or may have been."""
        if kind == ANYTHING:
            self._told += 1
            for known in self._entries.values():
                known.due = known.fresh = 0.0  # It serves on where nobody can be asked.
        elif kind in KINDS:
            self._told += 1
            self._entries.pop(subject, None)
            if self._kind:
                self._config.remembered.edited(f"{kind}:{subject}")

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


NOTHING = Own((), "")

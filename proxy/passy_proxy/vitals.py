"""The numbers of a process and of the workers beside it.

Whoever counts keeps a row of plain numbers in a `Table` and adds to it: nothing is locked, named or
looked up while requests run. Only when somebody asks are the tables of all workers added up. Each
worker publishes its own once a second, so that one answers for all, and the next in the place of
one that died goes on from where it was: a counter never falls while the service lasts.

Keys are for labels and come from the configuration, never from what a client wrote. In case some do
not, a table has a size: rows beyond are counted together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from passy_proxy import json
from passy_proxy.pulse import Slot

Key = tuple[str, ...]
Row = list[float]
Table = dict[Key, Row]
Tables = dict[str, Table]
News = Mapping[str, Sequence[Any]]
"""By a name of the configuration: the Unix time of an event, then what there is to say of it."""

ROWS = 2_000
"""Most rows of a table."""
OTHER = "other"
PUBLISHED = 1.0
"""Seconds between two publications."""


class Vitals:
    """What a process counts. ``slots`` are those of all workers, ``number`` is its own; without any
    it is alone and nobody watches it."""

    def __init__(self, slots: Sequence[Slot] = (), number: int = 0) -> None:
        self.slots = tuple(slots)
        self.number = number
        self.slot = self.slots[number] if slots else None
        self._tables: Tables = {}
        self._read: dict[str, Callable[[], Mapping[Key, float]]] = {}
        self._now: dict[str, Callable[[], Mapping[Key, float]]] = {}
        self._told: dict[str, Callable[[], News]] = {}
        self._before = _counted(self.slot.published()) if self.slot else {}
        """What those counted that were here before."""

    def table(self, name: str) -> Table:
        """The table of that name, as long as the process lives."""
        return self._tables.setdefault(name, {})

    def row(self, name: str, key: Key, width: int) -> Row:
        """A row to add to. In a full table it is the one for all that has no row of its own."""
        table = self.table(name)
        if key not in table and len(table) >= ROWS:
            key = (OTHER,) * len(key)
        return table.setdefault(key, [0] * width)

    def count(self, name: str, read: Callable[[], Mapping[Key, float]]) -> None:
        """``read`` says how often things have happened, each time it is asked."""
        self._read[name] = read

    def gauge(self, name: str, read: Callable[[], Mapping[Key, float]]) -> None:
        """``read`` says how things are, each time it is asked."""
        self._now[name] = read

    def tell(self, name: str, read: Callable[[], News]) -> None:
        """``read`` says what happened last, each time it is asked."""
        self._told[name] = read

    def latest(self, name: str) -> dict[str, Sequence[Any]]:
        """What happened last in any worker, of each."""
        newest = dict(read()) if (read := self._told.get(name)) is not None else {}
        for number, slot in enumerate(self.slots):
            if number != self.number:
                for key, event in _news(slot.published()).get(name, {}).items():
                    if key not in newest or newest[key][0] < event[0]:
                        newest[key] = event
        return newest

    def gather(self) -> tuple[Tables, Tables]:
        """What all workers have counted, and how things are with all of them, added up."""
        counted, present = self._publish()
        for number, slot in enumerate(self.slots):
            if number != self.number:
                published = slot.published()
                _add(counted, _counted(published))
                if slot.ready:
                    _add(present, _present(published))
        if self.slots:
            restarts: Table = {(str(n),): [slot.restarts] for n, slot in enumerate(self.slots)}
            counted["worker_restarts"] = restarts
        return counted, present

    async def publish(self) -> None:
        """Let the workers beside this one know, until cancelled."""
        while True:
            self._publish()
            await asyncio.sleep(PUBLISHED)

    def _publish(self) -> tuple[Tables, Tables]:
        """What is said to whoever asks was published before, so that it stays said."""
        counted, present = self._counts(), self._gauges()
        if len(self.slots) > 1 and self.slot is not None:
            told = {
                name: {key: list(event) for key, event in read().items()}
                for name, read in self._told.items()
            }
            self.slot.publish(json.dumps([_listed(counted), _listed(present), told]))
        return counted, present

    def _counts(self) -> Tables:
        counts: Tables = {}
        _add(counts, self._before)
        _add(counts, self._tables)
        _add(counts, _asked(self._read))
        return counts

    def _gauges(self) -> Tables:
        return _asked(self._now)


def _asked(readers: Mapping[str, Callable[[], Mapping[Key, float]]]) -> Tables:
    return {name: {key: [value] for key, value in read().items()} for name, read in readers.items()}


def _add(to: Tables, more: Tables) -> None:
    for name, table in more.items():
        sums = to.setdefault(name, {})
        for key, row in table.items():
            known = sums.get(key)
            sums[key] = list(row) if known is None else [a + b for a, b in zip(known, row)]  # noqa: B905


def _listed(tables: Tables) -> dict[str, list[tuple[Key, Row]]]:
    return {name: list(table.items()) for name, table in tables.items()}


def _counted(published: bytes) -> Tables:
    return _read_back(published, 0)


def _present(published: bytes) -> Tables:
    return _read_back(published, 1)


def _news(published: bytes) -> dict[str, News]:
    news: dict[str, News] = json.loads(published)[2] if published else {}
    return news


def _read_back(published: bytes, which: int) -> Tables:
    if not published:
        return {}
    listed = json.loads(published)[which]
    return {name: {tuple(key): row for key, row in table} for name, table in listed.items()}

"""Purses that the workers of a host have in common: one for all of them, see `purse.py`.

Each is a place on the `Board`, found by a digest of its name. There, beside what is settled, every
worker has what is open with it: so it alone changes that, and what a killed one had open lapses by
its lease. Of its own open parts a worker keeps a list.

Places are never emptied. A purse that finds none takes that of its neighbour which was left alone
for the longest time; who comes for that one again has the books tell what was spent.
"""

from __future__ import annotations

from hashlib import blake2b
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from passy_plugins.stores.purse import SECOND, Part, Purse, Purses
from passy_proxy.board import Board
from passy_proxy.stores import Allowance, Room

if TYPE_CHECKING:
    from passy_proxy.site import Site

_NAME, _REST, _TIMES, _ENDS, _SETTLED, _TOUCHED, _LEFT, _LEFT_DUE, _WORKERS = range(9)
"""Of a place: two halves of the digest; how often it was begun; when its window ends, the bits of
Unix seconds; what is settled, and when that or anything open last changed; what is open of workers
that are gone, and when the last of that lapses. Then for each worker what is open, and when the
last of that lapses."""
_FLOAT, _WHOLE = Struct("<d"), Struct("<q")
LARGEST: Final = 2**62
NEIGHBOURS = 16
"""Places where a purse may be."""
MOST_KNOWN = 100_000
KEPT: WeakKeyDictionary[Board, SharedPurses] = WeakKeyDictionary()
"""A process has them once: what it has open it knows, whatever configuration it runs."""


def purses_of(site: Site) -> Purses | SharedPurses:
    """Where budgets are counted at a site: in common, where there are several workers."""
    board = site.board
    if board is None:
        return Purses()
    known = KEPT.get(board)
    if known is None:
        known = KEPT[board] = SharedPurses(board, site.vitals.number)
    return known


class SharedPurses:
    """Purses by their names. ``with purses:`` several things are done at once, as far as others
    can see; ``held`` while that is so."""

    def __init__(self, board: Board, number: int) -> None:
        """``number``: of this worker."""
        self._board = board
        self._cells = board.cells
        self._words = _WORKERS + 2 * board.workers
        self._places = len(board.cells) // self._words
        self._number = number
        self._known: dict[str, SharedPurse] = {}

    def __len__(self) -> int:
        """How many this worker knows."""
        return len(self._known)

    @property
    def held(self) -> bool:
        return self._board.held

    def __enter__(self) -> None:
        self._board.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._board.__exit__()

    def __getitem__(self, key: str) -> SharedPurse:
        if (purse := self.get(key)) is None:
            raise KeyError(key)
        return purse

    def get(self, key: str) -> SharedPurse | None:
        """``None`` where nobody counts it."""
        known = self._known.get(key)
        if known is not None and known.there:
            return known
        with self._board:
            name, rest = digested(key)
            for at in self._around(name):
                if self._cells[at] == name and self._cells[at + _REST] == rest:
                    return self._know(key, at)
        return None

    def begin(self, key: str, ends: float, settled: int, now: int) -> None:
        """Count it in a window that ends then, in place of an earlier one."""
        cells = self._cells
        with self._board:
            name, rest = digested(key)
            places = self._around(name)
            own = (one for one in places if cells[one] == name and cells[one + _REST] == rest)
            oldest = min(places, key=lambda one: cells[one + _TIMES] and cells[one + _TOUCHED])
            at = next(own, oldest)
            cells[at] = cells[at + _REST] = 0  # Nobody's, should we be killed now.
            cells[at + _TIMES] += 1
            cells[at + _ENDS] = in_cell(ends)
            cells[at + _SETTLED] = min(settled, LARGEST)
            cells[at + _TOUCHED] = now
            for offset in range(_LEFT, self._words):
                cells[at + offset] = 0
            cells[at + _REST] = rest
            cells[at] = name
            self._know(key, at)

    def _around(self, name: int) -> list[int]:
        first = name % self._places
        return [(first + step) % self._places * self._words for step in range(NEIGHBOURS)]

    def _know(self, key: str, at: int) -> SharedPurse:
        """Begin to use what is at a place."""
        if len(self._known) >= MOST_KNOWN:
            self._known = {name: one for name, one in self._known.items() if one.parts}
        self._known[key] = purse = SharedPurse(self._board, at, self._words, self._number)
        return purse


class SharedPurse(Purse):
    """A place, as one worker uses it."""

    __slots__ = ("_board", "_cells", "_mine", "_name", "_times", "_until", "_workers")

    def __init__(self, board: Board, at: int, words: int, number: int) -> None:
        """What its predecessor under that ``number`` had open is left over from now on."""
        self._board = board
        self._cells = cells = board.cells[at : at + words]
        self._name, self._times = cells[_NAME], cells[_TIMES]
        self._mine = _WORKERS + 2 * number
        self._workers = range(_WORKERS, words, 2)
        self._until = 0
        self.ends = out_of_cell(cells[_ENDS])
        self.parts = {}
        self.serial = 0
        if left := cells[self._mine]:
            cells[_LEFT_DUE] = max(cells[_LEFT_DUE], cells[self._mine + 1])
            cells[_LEFT] += left
            cells[self._mine] = 0

    @property
    def there(self) -> bool:
        """Whether its place is still its own."""
        return self._cells[_TIMES] == self._times and self._cells[_NAME] == self._name

    def take(self, limit: Allowance, cost: int, place: int, now: int) -> Part | None:
        self.lapse(now)
        if not self.there or (limit.hard and self._used() + cost > limit.amount):
            return None
        cells, mine, due = self._cells, self._mine, now + round(limit.lease * SECOND)
        self.serial = serial = self.serial + 1
        self.parts[serial] = (due, cost)
        cells[mine + 1] = max(cells[mine + 1], due)
        cells[mine] += cost
        cells[_TOUCHED] = now
        return Part(self, serial, cost, place)

    def lapse(self, now: int) -> None:
        self._until = now
        super().lapse(now)

    def settle(self, part: Part, used: int | None, now: int) -> None:
        with self._board:
            self.give_back(part)
            if self.there:
                spent = part.cost if used is None else max(used, 0)
                self._cells[_SETTLED] = min(self._cells[_SETTLED] + spent, LARGEST)
                self._cells[_TOUCHED] = now

    def agree(self, spent: int, quiet: float, now: int) -> None:
        cells = self._cells
        if spent > cells[_SETTLED] or now - cells[_TOUCHED] > quiet * SECOND:
            cells[_SETTLED] = min(spent, LARGEST)

    def room(self, limit: Allowance, wanted: int = 0) -> Room:
        left = limit.amount - self._used()
        return Room(limit.amount, max(left, 0), 0.0, inf if limit.hard and wanted > left else 0.0)

    def _close(self, cost: int) -> None:
        if self.there:
            self._cells[self._mine] -= cost

    def _used(self) -> int:
        """Settled and open, as of the last look at the clock."""
        cells, now = self._cells, self._until
        used = cells[_SETTLED] + (cells[_LEFT] if cells[_LEFT_DUE] > now else 0)
        for at in self._workers:
            if cells[at] and cells[at + 1] > now:
                used += cells[at]
        return used


def digested(key: str) -> tuple[int, int]:
    """Two numbers, neither of them 0."""
    whole = blake2b(key.encode(), digest_size=16).digest()
    name, rest = whole[:8], whole[8:]
    return (
        int.from_bytes(name, "little", signed=True) or 1,
        int.from_bytes(rest, "little", signed=True) or 1,
    )


def in_cell(ends: float) -> int:
    """The same bits as a whole number."""
    (bits,) = _WHOLE.unpack(_FLOAT.pack(ends))
    return int(bits)


def out_of_cell(bits: int) -> float:
    (ends,) = _FLOAT.unpack(_WHOLE.pack(bits))
    return float(ends)

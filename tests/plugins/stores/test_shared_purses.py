"""L3: budgets that the workers of a host count in common, without a Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from multiprocessing import Pipe

import pytest

from passy_plugins.stores.buckets import SECOND, Buckets
from passy_plugins.stores.shared_purses import NEIGHBOURS, SharedPurses
from passy_proxy.board import Board
from passy_proxy.stores import Allowance, Claim, Grant, StoreUnavailable

LEASE = 60.0
NOW = 1_000 * SECOND
BUDGET = Allowance(100, "ever", inf, hard=True, lease=LEASE)


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(2, 1 << 20)
    yield board
    board.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def worker(board: Board, number: int, clock: Clock) -> Buckets:
    """As one that was just born under that number."""
    return Buckets(clock, SharedPurses(board, number))


def spend(counters: Buckets, cost: int, key: str = "budget") -> Grant:
    grant = counters.take([Claim(key, BUDGET, cost)])
    if grant.unknown:
        counters.prime(key, BUDGET, 0)
        grant = counters.take([Claim(key, BUDGET, cost)])
    return grant


def left(counters: Buckets) -> int:
    return spend(counters, 1_000).rooms[0].remaining


def test_L3_what_one_worker_takes_and_settles_the_other_one_sees(
    board: Board, clock: Clock
) -> None:
    one, other = worker(board, 0, clock), worker(board, 1, clock)
    grant = spend(one, 60)
    assert grant.admitted
    assert not spend(other, 50).admitted
    assert spend(other, 40).admitted
    assert (0, 0) == (left(one), left(other))
    one.settle(grant, [10])
    assert (50, 50) == (left(one), left(other))
    other.prime("budget", BUDGET, 30)  # What the books have is a lower bound.
    assert 30 == left(one)


def test_L3_what_a_killed_worker_had_open_is_kept_for_its_lease(board: Board, clock: Clock) -> None:
    one, other = worker(board, 0, clock), worker(board, 1, clock)
    settled = spend(one, 20)
    one.settle(settled, [20])
    spend(one, 30)
    clock.now += 10 * SECOND
    heir = worker(board, 0, clock)  # ``one`` is gone.
    assert (50, 50) == (left(heir), left(other))
    assert spend(heir, 5).admitted
    clock.now = NOW + round(LEASE * SECOND) + 1
    assert 75 == left(other)
    assert 75 == left(heir)
    clock.now += 10 * SECOND
    assert (80, 80) == (left(heir), left(other))


def test_L6_places_are_bounded_and_the_longest_untouched_one_goes(clock: Clock) -> None:
    board = Board(2, 8 * (8 + 4) * NEIGHBOURS)  # So many places, and all are neighbours.
    one, other = worker(board, 0, clock), worker(board, 1, clock)
    for number in range(NEIGHBOURS + 1):
        clock.now += SECOND
        assert spend(one, 10, f"budget {number}").admitted
    assert other.take([Claim("budget 0", BUDGET, 1)]).unknown
    assert 90 == other.take([Claim("budget 1", BUDGET, 1_000)]).rooms[0].remaining
    # Who had it open settles it nowhere; the books will tell.
    late = spend(one, 10, "budget 1")
    for number in range(NEIGHBOURS):
        clock.now += SECOND
        spend(other, 1, f"another {number}")
    one.settle(late, [10])
    assert one.take([Claim("budget 1", BUDGET, 1)]).unknown
    board.close()


def test_L3_of_workers_at_the_same_time_exactly_what_is_there_is_admitted(board: Board) -> None:
    """Real processes, without any pause between two of their attempts."""
    large = Allowance(10_000, "ever", inf, hard=True, lease=LEASE)
    counters = Buckets(purses=SharedPurses(board, 0))
    counters.prime("budget", large, 0)
    lines, pids = [], []
    for number in range(2):
        here, there = Pipe(duplex=False)
        pid = os.fork()
        if not pid:
            admitted = 0
            try:
                mine = Buckets(purses=SharedPurses(board, number))
                for _ in range(6_000):
                    with suppress(StoreUnavailable):  # The other one may have lost its core.
                        grant = mine.take([Claim("budget", large, 2)])
                        admitted += grant.admitted
                        mine.settle(grant, [2])
                there.send(admitted)
            finally:
                os._exit(0)
        there.close()
        lines.append(here)
        pids.append(pid)
    admitted = [line.recv() for line in lines]
    for pid in pids:
        os.waitpid(pid, 0)
    assert 5_000 == sum(admitted)
    grant = counters.take([Claim("budget", large, 10_000)])
    assert 0 == grant.rooms[0].remaining


def test_L3_a_worker_that_stops_with_the_board_holds_nobody_up_and_its_end_lets_go(
    board: Board, clock: Clock
) -> None:
    one = worker(board, 0, clock)
    assert spend(one, 10).admitted
    here, there = Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        board.__enter__()
        there.send("held")
        signal.pause()
        os._exit(0)
    assert "held" == here.recv()
    with pytest.raises(StoreUnavailable):
        one.take([Claim("budget", BUDGET, 1)])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert 89 == spend(one, 1).rooms[0].remaining

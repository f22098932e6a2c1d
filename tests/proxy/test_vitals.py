"""What workers count is added up, and goes on after the death of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from passy_proxy.pulse import Slot
from passy_proxy.vitals import OTHER, ROWS, Vitals


@pytest.fixture
def slots() -> Iterator[list[Slot]]:
    slots = [Slot(), Slot()]
    yield slots
    for slot in slots:
        slot.close()


def test_alone_it_says_what_it_counted() -> None:
    vitals = Vitals()
    row = vitals.row("t", ("a", "b"), 2)
    row[0] += 1
    row[1] += 0.5
    assert vitals.row("t", ("a", "b"), 2) is row
    vitals.count("c", lambda: {("x",): 3})
    vitals.gauge("g", lambda: {(): 7})
    counted, present = vitals.gather()
    assert {"t": {("a", "b"): [1, 0.5]}, "c": {("x",): [3]}} == counted
    assert {"g": {(): [7]}} == present


def test_the_counts_of_all_are_added_and_gauges_of_those_that_live(slots: list[Slot]) -> None:
    one, two = Vitals(slots, 0), Vitals(slots, 1)
    for vitals, times in ((one, 1), (two, 10)):
        vitals.row("t", ("a",), 1)[0] += times
        vitals.gauge("g", lambda times=times: {(): times})
        vitals.gather()
    slots[1].ready = True
    counted, present = one.gather()
    assert ({("a",): [11]}, {(): [11]}) == (counted["t"], present["g"])
    slots[1].ready = False
    assert {(): [1]} == one.gather()[1]["g"]
    assert {("a",): [11]} == one.gather()[0]["t"]


def test_the_next_worker_goes_on_from_where_the_last_one_was(slots: list[Slot]) -> None:
    first = Vitals(slots, 0)
    first.row("t", ("a",), 1)[0] += 5
    first.count("c", lambda: {(): 2})
    first.gauge("g", lambda: {(): 9})
    first.gather()
    slots[0].restarted()
    second = Vitals(slots, 0)
    second.row("t", ("a",), 1)[0] += 1
    second.count("c", lambda: {(): 1})
    counted, present = second.gather()
    assert ({("a",): [6]}, {(): [3]}) == (counted["t"], counted["c"])
    assert {} == present
    assert {("0",): [1], ("1",): [0]} == counted["worker_restarts"]


def test_a_table_has_a_size() -> None:
    vitals = Vitals()
    for number in range(ROWS + 50):
        vitals.row("t", (str(number), "x"), 1)[0] += 1
    counted = vitals.gather()[0]["t"]
    assert ROWS + 1 == len(counted)
    assert [50] == counted[OTHER, OTHER]

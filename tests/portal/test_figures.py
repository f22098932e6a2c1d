"""Numbers as people read them, and bars that show what they say."""

from __future__ import annotations

import pytest

from passy_portal.figures import count, money, nice, percent, stacked


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (13_500, "$0.0000135"),
        (123_456, "$0.000123"),
        (119_400_000, "$0.119"),
        (500_000_000, "$0.50"),
        (999_900_000, "$1.00"),
        (1_000_000_000, "$1.00"),
        (1_234_567_890_000, "$1,234.57"),
        (-13_500, "-$0.0000135"),
        (None, "\N{EN DASH}"),
    ],
)
def test_money_keeps_the_digits_that_count(nanos: int | None, text: str) -> None:
    assert text == money(nanos)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "\N{EN DASH}"), (0, 9, "0 %"), (1, 200, "0.5 %"), (1, 4, "25 %"), (9, 9, "100 %")],
)
def test_percent(part: int, whole: int, text: str) -> None:
    assert text == percent(part, whole)


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (2, 2), (3, 5), (7, 10), (10, 10), (11, 20), (501, 1000)]
)
def test_a_scale_ends_at_a_round_number(value: int, top: int) -> None:
    assert top == nice(value)


def test_bars_stand_on_each_other_and_are_as_high_as_their_values() -> None:
    chart = stacked(["a", "b", "c"], ["x", "y"], [(30, 20), (0, 0), (100, 0)], count)
    assert (100, ("a", "b", "c")) == (chart.top, chart.labels)
    first, second, third = chart.bars
    assert [(70, 30), (50, 20)] == [(piece.y, piece.height) for piece in first.pieces]
    assert () == second.pieces
    assert [(0, 100)] == [(piece.y, piece.height) for piece in third.pieces]
    assert "a · x: 30" == first.pieces[0].title
    assert 0 < first.x < first.x + first.width < second.x


def test_what_is_little_is_seen_all_the_same() -> None:
    chart = stacked(["a"], ["x", "y"], [(100_000, 1)], count)
    assert all(piece.height >= 0.4 for piece in chart.bars[0].pieces)


def test_no_days_are_no_bars() -> None:
    assert ((), ()) == (stacked([], ["x"], [], count).bars, stacked([], [], [], count).labels)

"""What clients may ask for, and who answers it."""

from __future__ import annotations

from typing import Any

import pytest

from passy_proxy.models import Choice, Model, Models, serves
from passy_proxy.upstream import Target, Upstream

UNUSED: Any = None
DIALECT: Any = object()
ECHO = Upstream("echo", UNUSED, None)
ONE = Upstream("one", UNUSED, DIALECT, models=("listed", "family-*"))
TWO = Upstream("two", UNUSED, DIALECT)
MODELS = Models(
    [
        Model("fast", [Choice(ONE, "family-a"), Choice(TWO, "b", priority=1)]),
        Model("gpt-*", [Choice(TWO, "*")]),
        Model("gpt-4*", [Choice(ONE, "family-*")]),
        Model("poor", [], missing=["away"]),
    ],
    {"echo": ECHO, "one": ONE, "two": TWO},
)


def labels(targets: tuple[Target, ...] | None) -> list[str] | None:
    return None if targets is None else [target.label for target in targets]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fast", ["one/family-a", "two/b"]),
        ("gpt-3", ["two/gpt-3"]),
        ("gpt-4o", ["one/family-gpt-4o"]),
        ("poor", []),
        ("unheard", None),
        ("Fast", None),
    ],
)
def test_an_alias_is_found_by_name_or_by_its_longest_pattern(
    name: str, expected: list[str] | None
) -> None:
    model = MODELS.find(name)
    assert expected == (None if model is None else labels(model.at(name)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("listed", ["one/listed"]),
        ("one/listed", ["one/listed"]),
        ("one/family-x", ["one/family-x"]),
        ("one/other", None),
        ("two/anything/at/all", ["two/anything/at/all"]),
        ("two", None),
        ("two/", None),
        ("echo", ["echo/echo"]),
        ("echo:slow", ["echo/echo:slow"]),
        ("echo/echo:500", ["echo/echo:500"]),
        ("three/x", None),
        ("", None),
    ],
)
def test_a_target_can_be_named_without_an_alias(name: str, expected: list[str] | None) -> None:
    assert expected == labels(MODELS.direct(name))


def test_the_names_that_can_be_asked_for_are_listed_with_who_answers() -> None:
    assert ["fast", "echo", "listed"] == MODELS.names()
    assert ["one", "echo", "one"] == [MODELS.owner(name) for name in MODELS.names()]
    assert ("away",) == MODELS.missing("poor")
    assert () == MODELS.missing("unheard")


def test_targets_of_equal_priority_make_a_tier() -> None:
    choices = [Choice(ONE, "a", 1), Choice(TWO, "b", 0), Choice(TWO, "c", 1, weight=2.0)]
    model = Model("m", choices)
    assert [["b"], ["a", "c"]] == [[one.model for one in tier] for tier in model.tiers]
    assert model.weighted
    assert not Model("m", choices[:2]).weighted


def test_a_header_made_of_a_models_name_cannot_end_early() -> None:
    assert b"one/a???b?" == Target.at(ONE, "a\r\n\0b\N{SNOWMAN}").header


@pytest.mark.parametrize(
    ("patterns", "model", "expected"),
    [
        (("a", "b-*"), "a", True),
        (("a", "b-*"), "b-1", True),
        (("a", "b-*"), "ab", False),
        (("*",), "anything/at:all", True),
        ((), "a", False),
    ],
)
def test_patterns_serve_models(patterns: tuple[str, ...], model: str, expected: bool) -> None:
    assert expected is serves(patterns, model)

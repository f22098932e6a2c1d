"""Nodes → settings: located complaints in plain words, and secrets that stay secret."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from enum import Enum
from typing import Any, Literal, Protocol, runtime_checkable

import pytest
from pydantic import ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from passy_proxy.config.document import Node, parse
from passy_proxy.config.problem import Problem
from passy_proxy.config.settings import OptionalSecret, Secret, Settings, read, setting
from passy_proxy.units import Duration, Size

CANARY = "canary-value-4711"


class Colour(Enum):
    red = "red"
    green = "green"


class Inner(Settings):
    depth: int = setting(2, "How deep.", ge=1, le=9, multiple_of=2)
    label: str = setting("ab", "A label.", min_length=2, max_length=4, pattern="^[a-z]+$")


@runtime_checkable
class Counters(Protocol):
    def take(self) -> int: ...


class Everything(Settings):
    requests: int = setting(60, "Requests in a minute.", gt=0, lt=1000)
    share: float = setting(0.5, "A share.")
    on: bool = setting(False, "A switch.")
    mode: Literal["open", "closed"] = setting("open", "A choice.")
    colour: Colour = setting(Colour.red, "A colour.")
    names: tuple[str, ...] = setting((), "Names.", max_length=2)
    numbers: list[int] = setting([], "Numbers.")
    unique: frozenset[str] = setting(frozenset(), "Unique names.")
    inner: Inner = setting({}, "More settings.")
    inners: dict[str, Inner] = setting({}, "Many of them.")
    listed: tuple[Inner, ...] = setting((), "A list of them.")
    maybe: Inner | None = setting(None, "One or none.")
    either: int | Inner = setting(1, "A number or settings.")
    ttl: Duration = setting("30s", "How long.")
    size: Size = setting("1MiB", "How large.")
    key: Secret = setting("default-secret", "A secret.")
    credential: OptionalSecret = setting("", "A secret that may be empty.")
    subtree: Node | None = setting(None, "Left to others.")
    checked: str = setting("ok", "Checked by hand.")
    custom: str = setting("ok", "Checked with an error of its own type.")

    @field_validator("checked")
    @classmethod
    def _checked(cls, value: str) -> str:
        if value != "ok":
            raise ValueError(f"{value!r} is not ok")
        return value

    @field_validator("custom")
    @classmethod
    def _custom(cls, value: str) -> str:
        if value != "ok":
            raise PydanticCustomError("own_type", "{value} is not ok", {"value": value})
        return value

    @model_validator(mode="after")
    def _together(self) -> Everything:
        if self.requests == 13:
            raise ValueError(f"13 does not go with {self.checked} and {self.names}")
        return self


class Needy(Settings):
    url: str = setting(..., "Where it is.")
    name: str = setting(..., "What it is called.")


def found(
    text: str, settings: type[Settings] = Everything, env: dict[str, str] | None = None
) -> Any:
    return read(settings, parse(text, "gateway.yaml", env or {}).root)


def problems(
    text: str, settings: type[Settings] = Everything, env: dict[str, str] | None = None
) -> list[Problem]:
    result = found(text, settings, env)
    assert isinstance(result, list)
    return result


def test_text_becomes_what_the_field_says() -> None:
    text = (
        "{requests: 012, share: 1e-1, on: on, mode: closed, colour: green, names: [no, off],"
        " numbers: ['7'], unique: [a, a], inner: {depth: 4}, inners: {x: {depth: 6}},"
        " listed: [{label: xyz}], maybe: {depth: 2}, either: {depth: 8}, ttl: 2m, size: 2KiB,"
        " key: k, credential: c}"
    )
    value = found(text)
    assert isinstance(value, Everything)
    assert (12, 0.1, True, "closed", Colour.green) == (
        value.requests,
        value.share,
        value.on,
        value.mode,
        value.colour,
    )
    assert (("no", "off"), [7], frozenset("a")) == (value.names, value.numbers, value.unique)
    assert (4, 6, "xyz", 2) == (
        value.inner.depth,
        value.inners["x"].depth,
        value.listed[0].label,
        value.maybe.depth if value.maybe else None,
    )
    assert Inner(depth=8) == value.either
    assert (120, 2048) == (value.ttl, value.size)
    assert ("k", "c") == (value.key.reveal(), value.credential.reveal())


@pytest.mark.parametrize(
    ("word", "value"),
    [("on", True), ("yes", True), ("true", True), ("off", False), ("no", False), ("FALSE", False)],
)
def test_a_switch_has_the_words_people_use(word: str, value: bool) -> None:
    assert value is found(f"on: {word}").on


def test_defaults_are_written_as_in_the_file() -> None:
    value = Everything()
    assert (30, 1 << 20) == (value.ttl, value.size)
    assert Inner() == value.inner


def test_a_name_with_nothing_after_it_counts_as_not_set() -> None:
    assert Everything() == found("requests:\nnames:\ninner:\nmaybe:\n")
    assert ["'url' is missing", "'name' is missing"] == [
        p.message for p in problems("url:\n", Needy)
    ]


def test_settings_are_frozen() -> None:
    value = Everything()
    with pytest.raises(ValidationError):
        value.requests = 3


def test_a_field_without_a_description_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Bare\.count has no description"):

        class Bare(Settings):
            count: int = 3


def test_a_subtree_is_handed_over_as_it_is() -> None:
    value = found("subtree: {a: 1}")
    assert isinstance(value.subtree, Node)
    assert 10 == value.subtree.column


def test_live_objects_take_the_place_of_their_names() -> None:
    class Config(Settings):
        counters: Counters = setting(..., "Where counts are kept.")

    class Live:
        def take(self) -> int:
            return 1

    node = parse("counters: state", "gateway.yaml", {}).root
    live = Live()
    value = read(Config, node, {"counters": live})
    assert isinstance(value, Config)
    assert live is value.counters
    unresolved = read(Config, node)
    assert isinstance(unresolved, list)
    assert "the name of something configured elsewhere" in unresolved[0].message


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("{requsts: 3}", (1, 2), "unknown setting 'requsts'; did you mean 'requests'?"),
        ("{zzz: 3}", (1, 2), "unknown setting 'zzz'"),
        ("inner: {dept: 3}", (1, 9), "unknown setting 'dept'; did you mean 'depth'?"),
        ("inners: {x: {dept: 3}}", (1, 14), "unknown setting 'dept'; did you mean 'depth'?"),
        ("listed:\n- {}\n- dept: 3", (3, 3), "unknown setting 'dept'; did you mean 'depth'?"),
        ("maybe: {dept: 3}", (1, 9), "unknown setting 'dept'; did you mean 'depth'?"),
        ("requests: many", (1, 11), "expected a whole number, found 'many'"),
        ("requests: 1.5", (1, 11), "expected a whole number, found '1.5'"),
        ("requests: ''", (1, 11), "expected a whole number, found ''"),
        ("requests: [1]", (1, 11), "expected a whole number, found a list"),
        ("requests: 0", (1, 11), "'0' must be more than 0"),
        ("requests: 1000", (1, 11), "'1000' must be less than 1000"),
        ("share: big", (1, 8), "expected a number, found 'big'"),
        ("share: nan", (1, 8), "expected a number that is not infinite, found 'nan'"),
        (
            "on: perhaps",
            (1, 5),
            "expected on or off (yes, no, true and false will do), found 'perhaps'",
        ),
        ("on: {}", (1, 5), "expected on or off (yes, no, true and false will do), found settings"),
        ("mode: opem", (1, 7), "'opem' is none of open and closed; did you mean 'open'?"),
        ("mode: [open]", (1, 7), "a list is none of open and closed"),
        ("colour: gren", (1, 9), "'gren' is none of red and green; did you mean 'green'?"),
        ("names: x", (1, 8), "expected a list, found 'x'"),
        ("names: {a: 1}", (1, 8), "expected a list, found settings"),
        ("names: [a, {b: 1}]", (1, 12), "expected one text, found settings"),
        ("names: [a, b, c]", (1, 8), "a list must have at most 2 entries"),
        ("numbers: [1, x]", (1, 14), "expected a whole number, found 'x'"),
        ("unique: x", (1, 9), "expected a list, found 'x'"),
        ("inner: x", (1, 8), "expected settings (name: value), found 'x'"),
        ("inner: [x]", (1, 8), "expected settings (name: value), found a list"),
        ("inners: x", (1, 9), "expected settings (name: value), found 'x'"),
        ("inner: {depth: 0}", (1, 16), "'0' must be at least 1"),
        ("inner: {depth: 10}", (1, 16), "'10' must be at most 9"),
        ("inner: {depth: 3}", (1, 16), "'3' must be a multiple of 2"),
        ("inner: {label: a}", (1, 16), "'a' must have at least 2 characters"),
        ("inner: {label: abcde}", (1, 16), "'abcde' must have at most 4 characters"),
        ("inner: {label: '12'}", (1, 16), "'12' must have the form ^[a-z]+$"),
        ("checked: bad", (1, 10), "'bad' is not ok"),
        ("custom: bad", (1, 9), "bad is not ok"),
        ("requests: 13", (1, 1), "13 does not go with ok and ()"),
        ("key: ''", (1, 6), "this secret is empty, which would let anybody in"),
        ("key: []", (1, 6), "expected one text, found a list"),
        ("[a]", (1, 1), "expected settings (name: value), found a list"),
    ],
)
def test_each_kind_of_error_is_located_and_in_plain_words(
    text: str, place: tuple[int, int], message: str
) -> None:
    (problem,) = problems(text)
    assert message == problem.message
    assert place == (problem.line, problem.column)


@pytest.mark.parametrize("text", ["ttl: soon", "size: huge", "ttl: [1]", "size: {}"])
def test_units_are_located(text: str) -> None:
    (problem,) = problems(text)
    assert (1, text.index(":") + 3) == (problem.line, problem.column)


def test_what_is_missing_is_named_with_its_purpose() -> None:
    (problem,) = problems("name: x", Needy)
    assert ("'url' is missing", "Where it is.") == (problem.message, problem.hint)


def test_a_misspelt_name_is_not_also_missing() -> None:
    assert ["unknown setting 'urll'; did you mean 'url'?"] == [
        p.message for p in problems("{urll: x, name: y}", Needy)
    ]


def test_what_can_be_set_is_listed_when_nothing_is_near() -> None:
    assert (
        "what can be set here: name and url" == problems("{q: 1, url: u, name: n}", Needy)[0].hint
    )


def test_all_problems_come_at_once_each_at_its_place() -> None:
    text = "requests: many\ninner:\n  dept: 3\nmode: shut\nlisted:\n  - label: x\n"
    places = {(p.line, p.column) for p in problems(text)}
    assert {(1, 11), (3, 3), (4, 7), (6, 12)} == places


def test_a_value_that_fits_no_branch_of_a_union_is_one_problem() -> None:
    assert [(1, 9)] == [(p.line, p.column) for p in problems("either: x")]


def test_no_message_speaks_pydantic() -> None:
    texts = [
        "requsts: 1",
        "requests: x",
        "mode: x",
        "names: x",
        "inner: x",
        "either: [x]",
        "key: ''",
    ]
    for text in texts:
        for problem in problems(text):
            for word in ("Input", "pydantic", "http", "extra_forbidden", "type=", "Literal"):
                assert word not in problem.pretty()


@pytest.mark.parametrize(
    "name",
    sorted(set(Everything.model_fields) - {"maybe", "key", "credential", "subtree"}),
)
def test_what_a_variable_holds_is_never_repeated(name: str) -> None:
    for value in ("${V}", "x${V}"):
        found = problems(f'{name}: "{value}"', env={"V": CANARY})
        assert found
        for problem in found:
            assert CANARY not in problem.pretty() + str(problem.record())


def test_a_complaint_about_several_settings_repeats_no_variable() -> None:
    (problem,) = problems("requests: 13\nnames: ['${V}']", env={"V": CANARY})
    assert "13 does not go with ok and ('${V}',)" == problem.message


def test_a_secret_under_a_misspelt_name_is_not_repeated() -> None:
    for name in ("credental", "creds", "api_keyy", "kee"):
        for value in ("${V}", f"sk-{CANARY}"):
            for problem in problems(f"{name}: {value}", env={"V": CANARY}):
                assert CANARY not in problem.pretty() + str(problem.record())


def test_an_error_of_the_model_itself_shows_no_values() -> None:
    with pytest.raises(ValidationError) as error:
        Everything.model_validate({"key": ["x"], "requests": CANARY})
    assert CANARY not in str(error.value)


# Secret


def test_a_secret_shows_itself_to_reveal_only() -> None:
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        ",".join(map(str, [secret])),
        f"{secret!r}",
        f"{[secret]}",
    ]
    value = Everything(key=secret, credential=Secret(CANARY))
    shown += [repr(value), str(value), str(value.model_dump()), value.model_dump_json()]
    assert not [text for text in shown if CANARY in text]
    assert CANARY == secret.reveal()


def test_secrets_are_equal_when_their_values_are() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("ä") != Secret("a")
    assert Secret("a") != "a"
    assert 1 == len({Secret("a"), Secret("a")})


def test_a_secret_is_not_pickled_and_copies_are_itself() -> None:
    secret = Secret("a")
    assert secret is copy.copy(secret) is copy.deepcopy(secret)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_an_empty_secret_is_refused_unless_the_field_allows_it() -> None:
    assert not found("credential: ''").credential
    assert "empty" in problems("key: ${V}", env={"V": ""})[0].message


def test_the_json_schema_of_a_secret_is_a_password() -> None:
    assert "password" == Everything.model_json_schema()["properties"]["key"]["format"]


def test_a_sequence_is_not_taken_for_a_mapping_of_settings() -> None:
    class Outer(Settings):
        rows: Sequence[Inner] = setting((), "Rows.")

    (problem,) = problems("rows: [{dept: 2}]", Outer)
    assert (1, 9) == (problem.line, problem.column)
    assert "did you mean 'depth'" in problem.message

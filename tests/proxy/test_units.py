"""Durations, sizes, counts and rates: read, refused, printed, and as settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from passy_proxy.units import (
    Count,
    Duration,
    Rate,
    RateSetting,
    Size,
    duration,
    parse_count,
    parse_duration,
    parse_rate,
    parse_size,
    size,
)


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_duration, "30s", 30.0),
        (parse_duration, "250ms", 0.25),
        (parse_duration, "5m", 300.0),
        (parse_duration, "5min", 300.0),
        (parse_duration, "1h", 3600.0),
        (parse_duration, "1d", 86400.0),
        (parse_duration, "1h30m", 5400.0),
        (parse_duration, "6m0s", 360.0),
        (parse_duration, "1.5s", 1.5),
        (parse_duration, " 2 s ", 2.0),
        (parse_duration, "0", 0.0),
        (parse_size, "10MiB", 10 * 1024 * 1024),
        (parse_size, "64KB", 64_000),
        (parse_size, "64kb", 64_000),
        (parse_size, "1GB", 10**9),
        (parse_size, "2GiB", 2 << 30),
        (parse_size, "1.5KiB", 1536),
        (parse_size, "4096", 4096),
        (parse_size, "5B", 5),
        (parse_count, "60", 60),
        (parse_count, "100k", 100_000),
        (parse_count, "1.5M", 1_500_000),
        (parse_count, "20_000", 20_000),
        (parse_rate, "60/min", Rate(60, 60.0)),
        (parse_rate, "100k/min", Rate(100_000, 60.0)),
        (parse_rate, "5/s", Rate(5, 1.0)),
        (parse_rate, "1M/day", Rate(1_000_000, 86400.0)),
        (parse_rate, "7 / h", Rate(7, 3600.0)),
        (parse_rate, "10/30s", Rate(10, 30.0)),
        (parse_rate, "0/min", Rate(0, 60.0)),
    ],
)
def test_a_quantity_is_read(parse: Callable[[str], object], text: str, expected: object) -> None:
    assert expected == parse(text)


@pytest.mark.parametrize(
    ("parse", "like", "texts"),
    [
        (parse_duration, "30s", ["", "30", "s", "-1s", "1e3s", "1 year", "1s x", "1.s", "\u0663s"]),
        (parse_size, "10MiB", ["", "MiB", "10Mi", "1TB", "-1", "1.5", "0.0003KB", "10 M B"]),
        (parse_count, "100k", ["", "k", "1.5", "1.0005k", "ten", "1e3", "100kk", "1__0", "5/s"]),
        (parse_rate, "60/min", ["", "60", "/min", "60/", "60/year", "60/5ms", "x/min", "6/0s"]),
    ],
)
def test_what_is_no_quantity_is_refused_with_an_example(
    parse: Callable[[str], object], like: str, texts: list[str]
) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=like) as refusal:
            parse(text)
        assert repr(text) in str(refusal.value)


def test_a_long_text_is_not_repeated_whole_in_the_refusal() -> None:
    with pytest.raises(ValueError, match=r"'x{37}\.\.\.' is not understood"):
        parse_count("x" * 5000)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (-3, "0s"),
        (0.02, "20ms"),
        (0.0001, "1ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.001, "1m30.001s"),
        (3600, "1h0m0s"),
        (90_061, "25h1m1s"),
    ],
)
def test_a_duration_prints_as_go_does(seconds: float, expected: str) -> None:
    assert expected == duration(seconds)


@given(st.floats(0, 1e7))
def test_a_printed_duration_reads_back_and_is_never_too_short(seconds: float) -> None:
    read = parse_duration(duration(seconds))
    assert seconds <= read <= seconds + 0.00101


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0B"),
        (7, "7B"),
        (64_000, "64KB"),
        (1 << 16, "64KiB"),
        (10 << 20, "10MiB"),
        (10**7, "10MB"),
        (3 << 30, "3GiB"),
        (1025, "1025B"),
    ],
)
def test_a_size_prints_short_and_exact(count: int, expected: str) -> None:
    assert expected == size(count)


@given(st.integers(0, 1 << 50))
def test_a_printed_size_reads_back(count: int) -> None:
    assert count == parse_size(size(count))


@pytest.mark.parametrize("text", ["60/min", "5/s", "7/h", "1/day", "10/30s"])
def test_a_printed_rate_reads_back(text: str) -> None:
    assert text == str(parse_rate(text))


class Limits(BaseModel):
    timeout: Duration = Field(default=30.0, description="Patience.")
    body: Size = 10 << 20
    tokens: Count = 5
    requests: RateSetting = Rate(60, 60.0)


def test_settings_are_written_as_text_and_held_as_values() -> None:
    limits = Limits.model_validate(
        {"timeout": "250ms", "body": "64KB", "tokens": "100k", "requests": "5/s"}
    )
    assert (0.25, 64_000, 100_000, Rate(5, 1.0)) == tuple(dict(limits).values())


def test_settings_take_values_from_code() -> None:
    limits = Limits(timeout=2, body=3, tokens=4, requests=Rate(1, 1.0))
    assert (2, 3, 4, Rate(1, 1.0)) == tuple(dict(limits).values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", "soon"),
        ("timeout", -1.0),
        ("timeout", float("inf")),
        ("timeout", True),
        ("body", -1),
        ("body", 1.5),
        ("tokens", True),
        ("tokens", None),
        ("requests", 60),
    ],
)
def test_a_wrong_setting_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Limits.model_validate({field: value})


def test_settings_print_as_they_are_written() -> None:
    expected = '{"timeout":"30s","body":"10MiB","tokens":5,"requests":"60/min"}'
    assert expected == Limits().model_dump_json()
    assert Limits() == Limits.model_validate_json(Limits().model_dump_json())


def test_the_schema_of_a_setting_shows_text_and_examples() -> None:
    properties = Limits.model_json_schema(mode="serialization")["properties"]
    assert "Patience." == properties["timeout"]["description"]
    assert "string" == properties["timeout"]["type"]
    assert ["string", "integer"] == properties["body"]["type"]
    assert ["60/min", "100k/min"] == properties["requests"]["examples"]
    assert "60/min" == properties["requests"]["default"]
    assert "30s" == properties["timeout"]["default"]

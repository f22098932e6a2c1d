"""Complaints: where, what, and what to try; and never a secret."""

from __future__ import annotations

import json

import pytest

from passy_proxy.config.problem import ConfigInvalid, Problem, nearest, quoted, redacted


def test_a_problem_reads_like_a_compiler_error() -> None:
    problem = Problem("config/gateway.yaml", 31, 7, "rate_limit needs a principal")
    assert "config/gateway.yaml:31:7: error: rate_limit needs a principal" == str(problem)


def test_a_problem_of_a_whole_file_names_the_file_alone() -> None:
    assert "gateway.yaml: error: cannot be read" == str(
        Problem("gateway.yaml", 0, 0, "cannot be read")
    )


def test_people_see_the_line_with_a_caret_and_what_to_try() -> None:
    problem = Problem("a.yaml", 2, 3, "unknown", "write requests", source="  requsts: 3")
    assert [
        "a.yaml:2:3: error: unknown",
        "      requsts: 3",
        "      ^",
        "    try: write requests",
    ] == problem.pretty().splitlines()


def test_the_caret_stands_below_its_column_in_a_long_line() -> None:
    source = " " * 300 + "here" + " " * 300
    _, excerpt, caret = Problem("a", 1, 301, "x", source=source).pretty().splitlines()
    assert excerpt.index("here") == caret.index("^")


def test_programs_get_json_with_every_problem() -> None:
    invalid = ConfigInvalid([Problem("a", 2, 1, "second"), Problem("a", 1, 1, "first", "hint")])
    assert [
        {
            "path": "a",
            "line": 1,
            "column": 1,
            "message": "first",
            "hint": "hint",
            "severity": "error",
        },
        {
            "path": "a",
            "line": 2,
            "column": 1,
            "message": "second",
            "hint": None,
            "severity": "error",
        },
    ] == json.loads(invalid.to_json())


def test_a_count_of_the_errors_ends_the_page_and_warnings_are_not_in_it() -> None:
    problems = [Problem("a", 1, 1, "x"), Problem("a", 2, 1, "y", severity="warning")]
    assert ConfigInvalid(problems).pretty().endswith("\n1 error")


def test_the_same_problem_is_told_once() -> None:
    assert 1 == len(ConfigInvalid([Problem("a", 1, 1, "x")] * 3).problems)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("requsts", "requests"), ("Requests", "requests"), ("zzz", None), ("", None)],
)
def test_the_nearest_word_is_suggested_or_none(word: str, meant: str | None) -> None:
    assert meant == nearest(word, ["requests", "tokens", "per"])


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefgh12345678",
        "sk-ant-api03-abcdefgh",
        "gsk_abcdefgh12345678",
        "AKIAIOSFODNN7EXAMPLE",
        "hf_abcdefgh12345678",
    ],
)
def test_texts_that_look_like_keys_are_masked_in_messages(secret: str) -> None:
    assert secret not in str(Problem("a", 1, 1, f"what is {secret}?"))
    assert secret not in quoted(secret)


def test_a_password_in_a_url_is_masked() -> None:
    assert "postgres://•••@host/db" == redacted("postgres://ann:hunter2@host/db")


@pytest.mark.parametrize(
    "line",
    [
        "credential: hunter2",
        "  openai: {url: https://x, credental: hunter2, models: [a]}",
        "api_key: 'hunter2'",
        'password: "hunter2',
        "x-api-key: hunter2",
        "    url: postgres://ann:hunter2@host/db",
        "  anything: hunter2hunter2hunter2hunter2",
    ],
)
def test_the_excerpt_hides_what_may_be_a_secret_and_keeps_columns(line: str) -> None:
    problem = Problem("a", 1, 1, "x", source=line)
    assert "hunter2" not in problem.pretty()
    assert len(line) == len(problem.source)


@pytest.mark.parametrize(
    "line",
    [
        "  gpt-4o: [openai/meta-llama/Meta-Llama-3.1-70B-Instruct]",
        '  openai: {url: https://api.openai.com/v1, credential: "${OPENAI_API_KEY:-}"}',
        "    - rate_limit: {counters: state, per: model, requests: 60/min, tokens: 9k/min}",
        "  /keys:      {app: keys,  store: books}",
        "  claude-sonnet: [anthropic/claude-3-5-sonnet-20241022, claude-3-5-sonnet-20241022]",
    ],
)
def test_the_excerpt_shows_ordinary_lines_as_they_are(line: str) -> None:
    assert line == Problem("a", 1, 1, "x", source=line).source


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in quoted("\x1b[31mred")

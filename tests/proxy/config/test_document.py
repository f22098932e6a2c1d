"""YAML text → located nodes; a configuration is untrusted input."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from passy_proxy.config import document
from passy_proxy.config.document import (
    Document,
    Environment,
    Mapping,
    Sequence,
    Text,
    environment,
    parse,
    plain,
)
from passy_proxy.config.problem import ConfigInvalid, Problem


def read(text: str | bytes, variables: dict[str, str] | None = None) -> Document:
    return parse(text, "gateway.yaml", Environment(variables or {}))


def problems(text: str | bytes, variables: dict[str, str] | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigInvalid) as invalid:
        read(text, variables)
    return invalid.value.problems


def test_yaml_never_guesses_types() -> None:
    text = "a: off\nb: no\nc: 012\nd: 1e3\ne: 2020-01-01\nf: ~\ng: null\nh: 0x10\ni: 1:30"
    expected = ["off", "no", "012", "1e3", "2020-01-01", "~", "null", "0x10", "1:30"]
    found = plain(read(text).root)
    assert isinstance(found, dict)
    assert expected == list(found.values())


def test_every_node_knows_its_place() -> None:
    root = read("a: 1\nb:\n  - x\n  - {c: d}\n").root
    assert isinstance(root, Mapping)
    place = root.find(["b", 1, "c"])
    assert (4, 9) == (place.line, place.column)
    assert (4, 6) == (lambda key: (key.line, key.column))(root.find(["b", 1, "c"], key=True))
    assert ("b", 1, "c") == place.path


def test_a_location_that_leads_nowhere_ends_at_the_last_node_on_the_way() -> None:
    root = read("a: {b: [x]}").root
    place = root.find(["a", "b", 0, "function-after", 7])
    assert isinstance(place, Text)
    assert "x" == place.text


def test_columns_count_characters_and_not_bytes() -> None:
    assert 13 == read("{äöü: '€€', b: 1}").root.find(["b"], key=True).column


def test_an_empty_document_has_no_settings() -> None:
    for text in ("", "# nothing\n", "---\n", "\ufeff"):
        assert {} == plain(read(text).root)


def test_a_byte_order_mark_does_not_move_columns() -> None:
    assert 1 == read(b"\xef\xbb\xbfa: 1").root.find(["a"], key=True).column


def test_block_scalars_and_quotes_are_understood() -> None:
    text = "a: |\n  one\n  two\nb: >-\n  one\n  two\nc: 'it''s'\nd: \"\\u00e4\\n\"\n"
    expected = {"a": "one\ntwo\n", "b": "one two", "c": "it's", "d": "ä\n"}
    assert expected == plain(read(text).root)


def test_a_repeated_name_is_refused_and_both_lines_are_named() -> None:
    (problem,) = problems("a: 1\nb: 2\na: 3\n")
    assert (3, 1) == (problem.line, problem.column)
    assert "'a' is already set in line 1" == problem.message
    assert problem.hint is not None
    assert "lines 1, 3" in problem.hint


def test_all_repetitions_are_told_at_once() -> None:
    assert [2, 3] == [p.line for p in problems("a: {b: 1,\n b: 2}\na: 3\n")]


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: &x 1\n", (1, 4), "anchors"),
        ("a: *x\n", (1, 4), "aliases"),
        ("a: &x [*x]\n", (1, 4), "anchors"),
        ("*x : 1\n", (1, 1), "aliases"),
        ("<<: {a: 1}\n", (1, 1), "merge keys"),
        ("a: !!python/object/apply:os.system ['true']\n", (1, 4), "tags"),
        ("a: !!str 1\n", (1, 4), "tags"),
        ("a: !env X\n", (1, 4), "tags"),
        ("a: ! x\n", (1, 4), "tags"),
        ("a: 1\n---\nb: 2\n", (2, 1), "second document"),
        ("? [a]\n: 1\n", (1, 3), "not a list"),
        ("${NAME}: 1\n", (1, 1), "no variable"),
    ],
)
def test_what_is_not_read_is_refused_where_it_stands(
    text: str, place: tuple[int, int], word: str
) -> None:
    first = problems(text)[0]
    assert place == (first.line, first.column)
    assert word in first.message


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a {b: *a}\n",
        "x: &x 1\ny: [" + "*x," * 100_000 + "]\n",
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "a: " + "${A:-" * 50_000,
        "a: x\n" * 100_000,
        "a: " + "'" * 100_001,
        "- !x y\n" * 100_000,
    ],
    ids=[
        "billion laughs",
        "recursive",
        "100k aliases",
        "lists",
        "mappings",
        "dashes",
        "complex keys",
        "expansions",
        "repetitions",
        "quotes",
        "tags",
    ],
)
@pytest.mark.parametrize("loader", [document._Loader, yaml.SafeLoader])
def test_a_hostile_document_is_refused_quickly_and_in_few_words(
    text: str, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_Loader", loader)
    begin = time.process_time()
    found = problems(text)
    assert time.process_time() - begin < 10
    assert 1 <= len(found) <= document.MAX_PROBLEMS + 1


def test_depth_is_bounded_exactly() -> None:
    depth = document.MAX_DEPTH
    assert isinstance(read("[" * depth + "]" * depth).root, Sequence)
    assert "deeper than 64" in problems("[" * (depth + 1) + "]" * (depth + 1))[0].message


def test_size_is_bounded_exactly() -> None:
    text = "a: " + "x" * (document.MAX_BYTES - 3)
    assert {"a": text[3:]} == plain(read(text).root)
    assert "larger than 1 MiB" in problems(text + "x")[0].message
    assert "larger than 1 MiB" in problems((text + "x").encode())[0].message


def test_variables_cannot_add_up_to_more_than_a_document() -> None:
    text = "a: [" + "'${BIG}'," * 40 + "]"
    assert "add up" in problems(text, {"BIG": "x" * 50_000})[-1].message


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: 1\n\tb: 2\n", (2, 1), "tab"),
        ("a:\n\t- b\n", (2, 1), "tab"),
        ("a: 'x\nb: 2\n", (1, 4), "quote"),
        ('a: "x\nb: 2\n', (1, 4), "quote"),
        ("a: [1, 2\nb: 3\n", (1, 4), "',' or ']'"),
        ("a: b\nc: [\n", (3, 1), "before it is not closed"),
        ("a: {b: 1\nc: 3\n", (1, 4), "',' or '}'"),
        ("a: {b: ${X}}\n", (1, 9), "',' or '}'"),
        ("a:\n  b: 1\n c: 2\n", (3, 2), "indentation"),
        ("a: 1\n- b\n", (2, 1), "indentation"),
        ("a: b: c\n", (1, 5), "': '"),
        ("a: @x\n", (1, 4), "start with this character"),
        ('a: "\\q"\n', (1, 5), "escape"),
        ("a: 1\nb: \x07\n", (2, 4), "U+0007"),
        ("%YAML 3.0\n---\na: 1\n", (1, 1), "YAML"),
    ],
)
def test_a_syntax_error_is_located_and_explained(
    text: str, place: tuple[int, int], word: str
) -> None:
    problem = problems(text)[-1]
    assert place == (problem.line, problem.column)
    assert word in problem.message


def test_a_variable_inside_braces_is_told_to_be_quoted() -> None:
    hint = problems("a: {b: ${X}}\n")[-1].hint
    assert hint is not None
    assert '"${NAME}"' in hint


@pytest.mark.parametrize("content", [b"a: \xff\n", "a: ä".encode("utf-16"), b"a: \xed\xa0\x80"])
def test_other_encodings_are_refused(content: bytes) -> None:
    assert "not UTF-8 text" == problems(content)[0].message


def test_other_encodings_are_located() -> None:
    (problem,) = problems(b"a: 1\nbc: \xff\n")
    assert (2, 5) == (problem.line, problem.column)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200), st.text("{}[]:,-?&*!|>'\"%@`$# \n\tab<")
    )
)
def test_any_content_is_read_or_refused_with_located_problems(content: bytes | str) -> None:
    for problem in _outcome(content):
        assert "gateway.yaml" == problem.path
        assert problem.pretty()


def _outcome(content: bytes | str) -> tuple[Problem, ...]:
    """The problems of a document, which are at least one if it cannot be read."""
    try:
        plain(read(content).root)
    except ConfigInvalid as invalid:
        return invalid.problems or (Problem("nothing said", 0, 0, ""),)
    return ()


# Variables


def test_variables_are_expanded_in_values() -> None:
    text = "a: ${A}\nb: x-${A}-${B:-dflt}\nc: ${EMPTY:-dflt}\nd: ${E:-}\ne: ${EMPTY}"
    expected = {"a": "1", "b": "x-1-dflt", "c": "dflt", "d": "", "e": ""}
    assert expected == plain(read(text, {"A": "1", "EMPTY": ""}).root)


def test_two_dollars_stand_for_one_and_nothing_is_expanded() -> None:
    text = "a: $${A}\nb: $A\nc: $$\nd: ${A}$${A}"
    expected = {"a": "${A}", "b": "$A", "c": "$$", "d": "1${A}"}
    assert expected == plain(read(text, {"A": "1"}).root)


def test_what_a_variable_holds_is_not_expanded_again() -> None:
    assert {"a": "${B}"} == plain(read("a: ${A}", {"A": "${B}", "B": "no"}).root)


def test_what_a_variable_holds_is_not_yaml() -> None:
    assert {"a": "x\nb: {c: 1}"} == plain(read("a: ${A}", {"A": "x\nb: {c: 1}"}).root)


def test_an_empty_variable_is_empty_where_the_default_is_for_none_at_all() -> None:
    text = "a: ${EMPTY-off}\nb: ${UNSET-off}\nc: ${SET-off}\nd: ${UNSET-a-b}"
    found = plain(read(text, {"EMPTY": "", "SET": "x"}).root)
    assert {"a": "", "b": "off", "c": "x", "d": "a-b"} == found


def test_a_missing_variable_is_located_and_the_nearest_is_named() -> None:
    (problem,) = problems("a:\n  - ${OPENAI_API_KY}\n", {"OPENAI_API_KEY": "canary"})
    assert (2, 5) == (problem.line, problem.column)
    assert "the variable OPENAI_API_KY is not set; OPENAI_API_KEY is" == problem.message
    assert problem.hint is not None
    assert "${OPENAI_API_KY:-" in problem.hint


@pytest.mark.parametrize("written", ["${", "${A", "${A B}", "${}", "${1A}", "${A:-${B}}", "${A+b}"])
def test_a_malformed_variable_is_located(written: str) -> None:
    first = problems(f"a: '{written}'", {"A": "1"})[0]
    assert (1, 4) == (first.line, first.column)
    assert first.hint is not None
    assert "${NAME:-default}" in first.hint


def test_all_missing_variables_are_told_at_once() -> None:
    assert [1, 2] == [p.line for p in problems("a: ${X}\nb: ${Y}\n")]


def test_a_secret_file_is_read_without_its_last_newline(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    assert {"a": "sk-1"} == plain(read(f"a: ${{file:{tmp_path}/key}}").root)


def test_a_relative_secret_file_starts_from_the_folder_of_the_configuration(
    tmp_path: Path,
) -> None:
    (tmp_path / "key").write_text("sk-1")
    (tmp_path / "gateway.yaml").write_text("a: ${file:key}")
    assert {"a": "sk-1"} == plain(document.load(tmp_path / "gateway.yaml", {}).root)


def test_a_secret_file_that_cannot_be_read_is_located(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"x" * (document.MAX_SECRET_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("missing", "pipe", "big", "binary", "", "nul\\0"):
        (problem,) = problems(f'a: "${{file:{tmp_path}/{name}}}"')
        assert (1, 4) == (problem.line, problem.column)
        assert "cannot be read" in problem.message


def test_a_value_made_from_a_variable_is_tainted_and_shown_as_written() -> None:
    root = read("a: x${KEY}\nb: plain\nc: $${KEY}", {"KEY": "canary"}).root
    assert {"a": "x${KEY}", "b": "plain", "c": "$${KEY}"} == plain(root, shown=True)
    tainted = [root.find([name]) for name in "abc"]
    assert [True, False, False] == [t.tainted for t in tainted if isinstance(t, Text)]
    assert "canary" not in repr(root.find(["a"]))


def test_an_environment_reads_the_file_that_name_file_points_to(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    env = Environment({"TOKEN_FILE": str(tmp_path / "token"), "OTHER": "x", "OTHER_FILE": "/no"})
    assert "secret" == env["TOKEN"]
    assert "TOKEN" in env
    assert "x" == env["OTHER"]
    assert {"a": "secret"} == plain(parse("a: ${TOKEN}", "f", env).root)
    assert "secret" not in repr(env)


def test_a_name_file_that_cannot_be_read_is_located() -> None:
    (problem,) = problems("a: ${TOKEN:-x}", {"TOKEN_FILE": "/does/not/exist"})
    assert "TOKEN_FILE" in problem.message
    assert (1, 4) == (problem.line, problem.column)


def test_the_environment_of_the_process_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSY_TEST_VARIABLE", "one")
    env = environment()
    monkeypatch.setenv("PASSY_TEST_VARIABLE", "two")
    assert "one" == env["PASSY_TEST_VARIABLE"]


# Files


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigInvalid) as invalid:
            document.load(path, {})
        (problem,) = invalid.value.problems
        assert str(problem).startswith(f"{path}: error: cannot be read")


def test_a_file_over_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ConfigInvalid, match="larger than 1 MiB"):
        document.load(path, {})


# Overrides


def test_merged_settings_keep_the_place_each_came_from() -> None:
    root = read("below: {a: 1, b: {c: 2, d: 3}}\nover: {b: {c: 9}, e: 4}\n").root
    assert isinstance(root, Mapping)
    below, over = root.entries["below"], root.entries["over"]
    assert isinstance(below, Mapping)
    assert isinstance(over, Mapping)
    merged = below.merged(over)
    assert {"a": "1", "b": {"c": "9", "d": "3"}, "e": "4"} == plain(merged)
    assert [1, 2, 1] == [merged.find(p).line for p in (["a"], ["b", "c"], ["b", "d"])]
    assert {"a": "1", "b": {"c": "2", "d": "3"}} == plain(below)


def test_json_pointers_escape_what_they_must() -> None:
    assert "/a~1b/0/c~0d" == document.pointer(["a/b", 0, "c~d"])

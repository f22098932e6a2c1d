"""Request bodies: what is refused, what is read, and that an edit changes nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passy_proxy import body_stdlib
from passy_proxy.body import (
    MAX_DEPTH,
    Answer,
    BadBody,
    JsonLimits,
    member_span,
    read_answer,
    read_head,
    rewrite,
    splice_model,
    usage_of,
    with_include_usage,
)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


def with_value(value: bytes) -> bytes:
    return b'{"model":"m","x":' + value + b"}"


HOSTILE: list[tuple[bytes, str, str | None]] = [
    # no JSON at all
    (b"", "is empty", None),
    (b" \n\t", "is empty", None),
    (b"model=gpt", "invalid character at byte 0", None),
    (b"{", "ends too early", None),
    (b'{"model":"m"', "ends too early at byte 12", None),
    (b'{"model":"m', "ends too early", None),
    (b'{"model":"m"}x', "trailing characters at byte 13", None),
    (b'{"model":"m"}{"model":"n"}', "trailing characters", None),
    (b'{"model":"m"}\x00', "trailing characters", None),
    (b'{"model":"m",}', "trailing comma", None),
    (b'{"model":"m" "x":1}', "byte 13", None),
    (b"{'model':'m'}", "keys must be strings", None),
    (b"{model:1}", "keys must be strings", None),
    (b'{"model":"m",\n "x": oops}', "line 2, column 7", None),
    (b'{"model":"m" /* fast */}', "byte 13", None),
    (b'\xa0{"model":"m"}', "not valid UTF-8 at byte 0", None),
    ('\u00a0{"model":"m"}'.encode(), "byte 0", None),
    ('{"model":"m"}'.encode("utf-16"), "not valid UTF-8 at byte 0", None),
    (b'\xef\xbb\xbf{"model":"m"}', "byte order mark", None),
    # values
    (with_value(b"NaN"), "NaN and Infinity are not JSON, at byte 17", None),
    (with_value(b"Infinity"), "NaN and Infinity", None),
    (with_value(b"-Infinity"), "not valid JSON", None),
    (with_value(b"01"), "invalid number", None),
    (with_value(b"1."), "invalid number", None),
    (with_value(b".5"), "invalid character", None),
    (with_value(b"+1"), "invalid character", None),
    (with_value(b"0x10"), "byte 18", None),
    (with_value(b"True"), "invalid character", None),
    (with_value(b"[1,]"), "trailing comma", None),
    (with_value(b'"a\nb"'), "invalid character", None),
    (with_value(b'"\x00"'), "invalid character", None),
    (with_value(b'"\\q"'), "escape", None),
    (with_value(b'"\\u12"'), "escape", None),
    (with_value(b'"\\ud83d oh"'), "half a surrogate pair at byte 18", None),
    (with_value(b'"\\udc00"'), "half a surrogate pair", None),
    (with_value(b'"\\ud83d"'), "half a surrogate pair", None),
    # UTF-8
    (with_value(b'"\xff"'), "not valid UTF-8 at byte 18", None),
    (with_value(b'"\xc0\x80"'), "not valid UTF-8", None),
    (with_value(b'"\xed\xa0\x80"'), "not valid UTF-8", None),
    (with_value(b'"\xf0\x9f\x98"'), "not valid UTF-8", None),
    (with_value(b'"' + b"x" * 40_000 + b'\xe2\x82"'), "at byte 40018", None),
    (b'{"model":"m\xff"}', "not valid UTF-8 at byte 11", None),
    (b'{"mod\xffel":"m","model":"n"}', "not valid UTF-8", None),
    # shape
    (b"[]", "not a JSON object", None),
    (b'"model"', "not a JSON object", None),
    (b"null", "not a JSON object", None),
    (b"7", "not a JSON object", None),
    (b"{}", "'model' is missing", "model"),
    (b'{"x":{"model":"m"}}', "'model' is missing", "model"),
    (b'{"x":"model"}', "'model' is missing", "model"),
    (b'{"Model":"m"}', "'model' is missing", "model"),
    (b'{"model":""}', "must not be empty", "model"),
    (b'{"model":null}', "expected string", "model"),
    (b'{"model":7}', "expected string", "model"),
    (b'{"model":["m"]}', "expected string", "model"),
    (b'{"model":"m","stream":"true"}', "expected boolean", "stream"),
    (b'{"model":"m","stream":1}', "expected boolean", "stream"),
    (b'{"model":"m","stream_options":[]}', "expected object", "stream_options"),
    (b'{"model":"m","stream_options":{"include_usage":1}}', "boolean", "stream_options"),
    (b'{"model":"m","max_tokens":"5"}', "expected number", "max_tokens"),
    (b'{"model":"m","max_tokens":1e999}', "out of range", "max_tokens"),
    (b'{"model":"m","n":"2"}', "expected number", "n"),
    # two readers, two models
    (b'{"model":"a","model":"b"}', "given 2 times", "model"),
    (b'{"model":"a","model":"a"}', "given 2 times", "model"),
    (b'{"model":"a","\\u006dodel":"b"}', "given 2 times", "model"),
    (b'{"\\u006D\\u006f\\u0064\\u0065\\u006C":"a" , "model" :"b"}', "given 2 times", "model"),
    (b'{"\\u006dodel":"a","mod\\u0065l":"b"}', "given 2 times", "model"),
    (b'{"model":7,"model":"b"}', "expected string", "model"),
    (b'{"model":"a","x":"' + b"y" * 5000 + b'","model":"b"}', "given 2 times", "model"),
    (b'{"model":"a","stream":true,"stream":false}', "given 2 times", "stream"),
    (b'{"model":"a","n":1,"n":9}', "given 2 times", "n"),
    (b'{"model":"a","n":9,"n":null}', "given 2 times", "n"),
    (b'{"model":"a","max_tokens":1,"max_tokens":9}', "given 2 times", "max_tokens"),
    (b'{"model":"a","max_tokens":1,"m\\u0061x_tokens":9}', "given 2 times", "max_tokens"),
    (b'{"model":"a","stream_options":{},"stream_options":null}', "2 times", "stream_options"),
    (b'{"model":"a","stream":false,"str\\u0065am":true}', "given 2 times", "stream"),
    # depth
    (with_value(nested(MAX_DEPTH)), "nested deeper than 128", None),
    (with_value(nested(MAX_DEPTH // 2, b'[{"k":', b"}]").replace(b":}", b":0}")), "nested", None),
    (with_value(nested(500)), "nested deeper than 128", None),
    (with_value(nested(200_000)), "nested deeper than 128", None),
    (with_value(b"[" * 200_000), "nested deeper than 128", None),
    (with_value(b'["]",' * 128 + b"0" + b"]" * 128), "nested deeper than 128", None),
    (with_value(b'["\\"]",' * 128 + b"0" + b"]" * 128), "nested deeper than 128", None),
    (with_value(b'["\\\\",' * 128 + b"0" + b"]" * 128), "nested deeper than 128", None),
    (with_value(b"[[]," * 128 + b"0" + b"]" * 128), "nested deeper than 128", None),
    (b'{"model":"m","messages":[{},' + nested(127) + b"]}", "nested deeper than 128", None),
    (b'{"model":"m","messages":[' + nested(127) + b'],"messages":[]}', "nested", None),
    (b'{"model":"m","x":' + nested(128) + b',"x":1}', "nested", None),
]


@pytest.mark.parametrize(("body", "message", "param"), HOSTILE)
def test_a_hostile_body_is_refused_with_its_reason(
    body: bytes, message: str, param: str | None
) -> None:
    with pytest.raises(BadBody) as refusal:
        read_head(body)
    assert message in refusal.value.message
    assert param == refusal.value.param
    assert len(refusal.value.message) < 200


FINE: list[tuple[bytes, tuple[str, bool, bool, int | None, int]]] = [
    (b'{"model":"m"}', ("m", False, False, None, 1)),
    (b' \r\n\t{ "model" : "m" } \n', ("m", False, False, None, 1)),
    (b'{"\\u006dodel":"m"}', ("m", False, False, None, 1)),
    (b'{"model":"m","stream":true}', ("m", True, False, None, 1)),
    (b'{"stream":true,"model":"m"}', ("m", True, False, None, 1)),
    (b'{"stream":null,"model":"m"}', ("m", False, False, None, 1)),
    (b'{"str\\u0065am":true,"model":"m"}', ("m", True, False, None, 1)),
    (b'{"model":"m","x":{"stream":true}}', ("m", False, False, None, 1)),
    (b'{"model":"m","x":{"stream":true},"stream":false}', ("m", False, False, None, 1)),
    (b'{"x":{"model":"no"},"model":"m"}', ("m", False, False, None, 1)),
    (b'{"model":"m","x":{"model":"no"}}', ("m", False, False, None, 1)),
    (b'{"x":{"model":"no"},"model":"m","y":{"model":"no"}}', ("m", False, False, None, 1)),
    (b'{"x":"model","model":"m","y":"model"}', ("m", False, False, None, 1)),
    (b'{"model":"model"}', ("model", False, False, None, 1)),
    (b'{"model":"stream"}', ("stream", False, False, None, 1)),
    (b'{"stream":true,"model":"stream"}', ("stream", True, False, None, 1)),
    (b'{"x":"' + b"y" * 2000 + b'","model":"model"}', ("model", False, False, None, 1)),
    (b'{"x":"\\"model\\":\\"no\\"","model":"m"}', ("m", False, False, None, 1)),
    (b'{"x\\"model":"no","model":"m"}', ("m", False, False, None, 1)),
    (b'{"\\\\":"a","model":"m"}', ("m", False, False, None, 1)),
    (b'{"Model":"no","MODEL":"no","model":"m"}', ("m", False, False, None, 1)),
    (b'{"model":"a\\"b\\\\","x":1}', ('a"b\\', False, False, None, 1)),
    (
        '{"model":"gr\u00f6\u00dfe-\U0001f600"}'.encode(),
        ("größe-\U0001f600", False, False, None, 1),
    ),
    (b'{"model":"\\ud83d\\ude00"}', ("\U0001f600", False, False, None, 1)),
    (b'{"model":"m","stream_options":null}', ("m", False, False, None, 1)),
    (b'{"model":"m","stream_options":{"include_usage":true}}', ("m", False, True, None, 1)),
    (b'{"model":"m","stream_options":{"include_usage":false}}', ("m", False, False, None, 1)),
    (b'{"model":"m","max_tokens":5}', ("m", False, False, 5, 1)),
    (b'{"model":"m","max_tokens":5,"max_completion_tokens":6}', ("m", False, False, 6, 1)),
    (b'{"model":"m","max_tokens":5,"max_output_tokens":7}', ("m", False, False, 5, 1)),
    (b'{"model":"m","max_output_tokens":7.0}', ("m", False, False, 7, 1)),
    (b'{"model":"m","max_tokens":-1,"n":-3}', ("m", False, False, None, 1)),
    (b'{"model":"m","max_tokens":0,"n":4}', ("m", False, False, 0, 4)),
    (b'{"model":"m","max_tokens":null,"n":null}', ("m", False, False, None, 1)),
    (with_value(b"1e999"), ("m", False, False, None, 1)),
    (with_value(b"9" * 5000), ("m", False, False, None, 1)),
    (with_value(nested(127)), ("m", False, False, None, 1)),
    (with_value(b'["]",' * 127 + b"0" + b"]" * 127), ("m", False, False, None, 1)),
    (with_value(b"[[]," * 126 + b"[]" + b"]" * 126), ("m", False, False, None, 1)),
    (with_value(b'"' + b"[" * 5000 + b'"'), ("m", False, False, None, 1)),
    (with_value(b'"' + b'[\\"{' * 5000 + b'"'), ("m", False, False, None, 1)),
    (with_value(b"[" + b"[]," * 5000 + b"{}]"), ("m", False, False, None, 1)),
    (b'{"model":"m","messages":[{},' + nested(126) + b"]}", ("m", False, False, None, 1)),
    (b'{"model":"m","messages":"' + b"[" * 200 + b'"}', ("m", False, False, None, 1)),
    (b'{"model":"m","messages":7,"x":"' + b"[" * 200 + b'"}', ("m", False, False, None, 1)),
]


@pytest.mark.parametrize(("body", "expected"), FINE)
def test_an_unusual_body_is_read(body: bytes, expected: tuple[Any, ...]) -> None:
    head = read_head(body)
    found = (head.model, head.stream, head.include_usage, head.max_tokens, head.n)
    assert expected == found


@pytest.mark.parametrize("body", [body for body, _ in FINE])
def test_splicing_changes_the_model_value_alone(body: bytes) -> None:
    span = member_span(body, "model")
    assert span is not None
    expected = body[: span[0]] + b'"a \\"new\\" one"' + body[span[1] :]
    assert expected == splice_model(body, read_head(body), 'a "new" one')


def test_splicing_the_same_name_returns_the_very_same_bytes() -> None:
    body = b'{ "model":"\\u006d" }'
    assert splice_model(body, read_head(body), "m") is body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b' {"model":"m"}', b' {"stream_options":{"include_usage":true},"model":"m"}'),
        (
            b'{"model":"m","stream_options":null}',
            b'{"model":"m","stream_options":{"include_usage":true}}',
        ),
        (
            b'{"model":"m","stream_options": { } }',
            b'{"model":"m","stream_options": {"include_usage":true } }',
        ),
        (
            b'{"stream_options":{"x":{"include_usage":1}},"model":"m"}',
            b'{"stream_options":{"include_usage":true,"x":{"include_usage":1}},"model":"m"}',
        ),
        (
            b'{"stream_\\u006fptions":{"x":1, "include_usage" : false },"model":"m"}',
            b'{"stream_\\u006fptions":{"x":1, "include_usage" : true },"model":"m"}',
        ),
        (
            b'{"model":"m","stream_options":{"include_usage":null}}',
            b'{"model":"m","stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_include_usage_is_added_or_edited_in_place(body: bytes, expected: bytes) -> None:
    head = read_head(body)
    assert expected == with_include_usage(body, head)
    assert expected.replace(b'"m"', b'"longer"') == rewrite(body, head, "longer", True)
    assert expected == rewrite(body, head, "m", True)
    assert read_head(expected).include_usage


def test_a_body_that_includes_usage_already_is_left_alone() -> None:
    body = b'{"model":"m","stream_options":{"include_usage":true}}'
    assert with_include_usage(body, read_head(body)) is body


def test_stream_options_given_twice_are_refused_when_they_must_be_edited() -> None:
    body = b'{"model":"m","stream_options":{"include_usage":true},"stream_options":{}}'
    with pytest.raises(BadBody, match="2 times"):
        with_include_usage(body, read_head(body))


def test_rewriting_without_edits_returns_the_very_same_bytes() -> None:
    body = b'{"model":"m"}'
    assert rewrite(body, read_head(body), None, False) is body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":[1,{"b":2}] , "b" : {"c":"}"} }', b'{"c":"}"}'),
        (b'{"\\u0062":null}', b"null"),
        (b'{"b":-1.5e3}', b"-1.5e3"),
        (b'{"a":"b","c":{"b":1}}', None),
        (b'{"a":"\\"b\\":1"}', None),
        (b"{}", None),
    ],
)
def test_a_member_is_found_at_the_top_level_only(body: bytes, expected: bytes | None) -> None:
    span = member_span(body, "b")
    assert expected == (None if span is None else body[slice(*span)])


def test_a_member_name_that_is_no_identifier_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="not an ASCII identifier"):
        member_span(b"{}", ":")


# Any JSON object, written with any spacing and any mixture of escapes.

SPECIAL = [
    "model",
    "stream",
    "include_usage",
    "stream_options",
    'x"model',
    "model\\",
    "{",
    "]",
    "é",
]
KEYS = st.sampled_from(SPECIAL) | st.text(max_size=5)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | KEYS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(
    KEYS.filter(lambda key: key not in ("model", "stream", "stream_options", "n")),
    VALUES,
    max_size=6,
)
HEADS = st.fixed_dictionaries(
    {"model": st.text(min_size=1, max_size=8) | st.sampled_from(SPECIAL)},
    optional={
        "stream": st.booleans() | st.none(),
        "stream_options": st.none()
        | st.dictionaries(KEYS.filter(lambda key: key != "include_usage"), VALUES, max_size=2)
        | st.just({"a": 1, "include_usage": False}),
    },
)


def written(value: object, draw: st.DataObject) -> str:
    """`value` as JSON, spaced and escaped at random."""

    def space() -> str:
        return draw.draw(st.sampled_from(["", "", "", " ", "\n", "\t\r "]))

    def text(string: str) -> str:
        if draw.draw(st.integers(0, 3)):
            return json.dumps(string, ensure_ascii=draw.draw(st.booleans()))
        units = memoryview(string.encode("utf-16-be")).cast("B")
        pairs = zip(units[::2], units[1::2], strict=True)
        return '"' + "".join(f"\\u{high:02x}{low:02X}" for high, low in pairs) + '"'

    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return "[" + space() + ",".join(written(item, draw) + space() for item in value) + "]"
    if isinstance(value, dict):
        members = (
            f"{space()}{text(key)}{space()}:{space()}{written(item, draw)}{space()}"
            for key, item in value.items()
        )
        return "{" + (",".join(members) or space()) + "}"
    return json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(OBJECTS, HEADS, st.text(min_size=1, max_size=8), st.data())
def test_an_edit_changes_what_it_says_and_no_other_byte(
    rest: dict[str, Any], steering: dict[str, Any], name: str, draw: st.DataObject
) -> None:
    members = list({**rest, **steering}.items())
    value = dict(draw.draw(st.permutations(members)))
    body = (" " + written(value, draw) + "\n").encode()
    head = read_head(body)
    assert (value["model"], value.get("stream") is True) == (head.model, head.stream)

    spliced = splice_model(body, head, name)
    assert json.loads(spliced) == {**value, "model": name}
    assert list(json.loads(spliced)) == list(value)
    span = member_span(body, "model")
    assert span is not None
    start, end = span
    assert json.loads(body[start:end]) == value["model"]
    assert spliced[:start] == body[:start]
    assert spliced[len(spliced) - (len(body) - end) :] == body[end:]

    options = {**(value.get("stream_options") or {}), "include_usage": True}
    both = rewrite(body, head, name, True)
    assert json.loads(both) == {**value, "model": name, "stream_options": options}
    assert both == with_include_usage(spliced, read_head(spliced))
    for key in rest:
        if key.isascii() and key.isidentifier():
            span = member_span(both, key)
            assert span is not None
            assert json.loads(both[slice(*span)]) == rest[key]


@settings(max_examples=200, deadline=None)
@given(OBJECTS, HEADS, HEADS, st.data())
def test_a_model_given_twice_is_refused_wherever_and_however_it_is_spelled(
    rest: dict[str, Any], one: dict[str, Any], two: dict[str, Any], draw: st.DataObject
) -> None:
    members = [written({key: value}, draw)[1:-1] for key, value in rest.items()]
    members += [written({"model": head["model"]}, draw)[1:-1] for head in (one, two)]
    body = ("{" + ",".join(draw.draw(st.permutations(members))) + "}").encode()
    with pytest.raises(BadBody, match="'model' is given 2 times"):
        read_head(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60).map(lambda junk: b'{"model":"m",' + junk + b"}") | st.binary())
def test_whatever_is_read_is_json_with_that_model_and_the_rest_is_refused(body: bytes) -> None:
    try:
        head = read_head(body)
    except BadBody:
        return
    first: list[str] = []
    json.loads(body, object_pairs_hook=lambda pairs: first.append(dict(pairs).get("model", "")))
    assert head.model == first[-1]


def depth_of(value: object) -> int:
    children: Iterable[object]
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list):
        children = value
    else:
        return 0
    return 1 + max((depth_of(child) for child in children), default=0)


BRANCH = st.sampled_from(["[%s]", '{"k":%s}', '["]",%s]', '[[],{},%s,"{"]', '{"\\"}":%s,"a":[]}'])


@settings(max_examples=200, deadline=None)
@given(st.lists(BRANCH, min_size=110, max_size=140), st.sampled_from(["x", "messages", "tools"]))
def test_depth_is_told_exactly(branches: list[str], member: str) -> None:
    text = "0"
    for branch in branches:
        text = branch.replace("%s", text)
    body = f'{{"model":"m","{member}":[{{}},{{"a":[]}},{text}]}}'.encode()
    if depth_of(json.loads(body)) <= MAX_DEPTH:
        assert "m" == read_head(body).model
    else:
        with pytest.raises(BadBody, match="nested deeper"):
            read_head(body)


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    "filling",
    [
        b"[],",
        b'"",',
        b'"ab",',
        b'["]"],',
        b'{"model":1},',
        b'"model",',
        b'{"a":"' + b"\\\\" * 50 + b'"},',
        nested(120) + b",",
        '"\U0001f600",'.encode(),
        b"9" * 100 + b",",
    ],
)
@pytest.mark.parametrize("member", ["messages", "x"])
def test_four_mebibytes_of_anything_are_judged_in_linear_time(filling: bytes, member: str) -> None:
    listed = filling * (4 * MEBIBYTE // len(filling))
    body = b'{"a":1,"%b":[%b0],"model":"m"}' % (member.encode(), listed)
    begun = time.process_time()
    try:
        splice_model(body, read_head(body), "n")
    except BadBody as refusal:
        few = "members are called 'model'", "objects, lists and members"
        assert any(words in refusal.message for words in few)  # noqa: PT017
    assert time.process_time() - begun < 5


def test_the_model_and_usage_of_an_answer_are_read() -> None:
    body = b'{"choices":[{"usage":1}],"model":"m","usage":{"total_tokens":3,"details":{"a":1}}}'
    expected = {"total_tokens": 3, "details": {"a": 1}}
    assert Answer("m", expected) == read_answer(body)
    assert expected == usage_of(body)


@pytest.mark.parametrize("body", [b"{}", b'{"usage":null,"choices":[]}', b'{"x":{"usage":{}}}'])
def test_an_answer_without_usage_has_none(body: bytes) -> None:
    assert Answer() == read_answer(body)
    assert usage_of(body) is None


@pytest.mark.parametrize("body", [b"", b"[DONE]", b'{"usage":{', b'{"usage":{"a":"\xff"}}', b"[]"])
def test_what_is_no_json_answer_has_no_usage(body: bytes) -> None:
    assert read_answer(body) is None
    assert usage_of(body) is None


@pytest.mark.parametrize(
    ("limits", "value", "words"),
    [
        (JsonLimits(depth=3), b"[[0]]", None),
        (JsonLimits(depth=3), b"[[[0]]]", "nested deeper than 3 levels"),
        (JsonLimits(keys=3), b'{"a":0,"b":0,"c":0}', None),
        (JsonLimits(keys=3), b'{"a":0,"b":0,"c":0,"d":0}', "more than 3 members"),
        (JsonLimits(keys=3), b'[{"a":0,"b":0,"c":0},{"a":0,"b":0,"c":0}]', None),
        (
            JsonLimits(keys=3),
            b'{"a":{"a":0},"b":{"a":0},"c":{"a":0},"d":{}}',
            "more than 3 members",
        ),
        (JsonLimits(keys=3), b'"' + b"{:" * 50 + b'"', None),
        (JsonLimits(keys=3), b"[%b[]]" % (b"[]," * 40), "more than 30 objects, lists and members"),
        (JsonLimits(keys=30, depth=3), b"[%b[[[0]]]]" % (b'{"a":0},' * 40), "nested deeper than 3"),
        (JsonLimits(digits=3), b"[123,456.789e123]", None),
        (JsonLimits(digits=3), b"1234", "more than 3 digits"),
        (JsonLimits(digits=3), b"0.1234", "more than 3 digits"),
        (JsonLimits(digits=3), b'"1234\\"1234"', None),
        (JsonLimits(digits=3), b'["\\\\",1234]', "more than 3 digits"),
    ],
)
def test_limits_hold_exactly(limits: JsonLimits, value: bytes, words: str | None) -> None:
    body = with_value(value)
    if words is None:
        assert "m" == read_head(body, limits).model
        assert "m" == body_stdlib.read_head(body, stdlib(limits)).model
        return
    with pytest.raises(BadBody, match=words):
        read_head(body, limits)
    with pytest.raises(body_stdlib.BadBody, match=words):
        body_stdlib.read_head(body, stdlib(limits))


def stdlib(limits: JsonLimits) -> body_stdlib.JsonLimits:
    return body_stdlib.JsonLimits(limits.depth, limits.keys, limits.digits)


VALUES = st.recursive(
    st.sampled_from([0, 12, 123, 1234, 12.5, "", "a:b", "[{", "1234", '\\"', "\\"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=5)
    ),
    max_leaves=40,
)


def within(value: object, limits: JsonLimits, depth: int = 2) -> bool:
    """The same by a reader that has it all before it."""
    if isinstance(value, dict | list):
        if depth > limits.depth or (isinstance(value, dict) and len(value) > limits.keys):
            return False
        inner = value.values() if isinstance(value, dict) else value
        return all(within(one, limits, depth + 1) for one in inner)
    return isinstance(value, str) or max(map(len, str(value).split("."))) <= limits.digits


@given(value=VALUES, depth=st.integers(2, 6), keys=st.integers(2, 5), digits=st.integers(2, 4))
def test_limits_are_what_a_whole_reading_would_find(
    value: object, depth: int, keys: int, digits: int
) -> None:
    limits = JsonLimits(depth, keys, digits)
    limits.parts = 1_000_000
    body = json.dumps({"model": "m", "x": value}).encode()
    try:
        read_head(body, limits)
    except BadBody:
        assert not within(value, limits)
    else:
        assert within(value, limits)

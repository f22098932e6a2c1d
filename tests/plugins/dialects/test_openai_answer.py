"""OpenAI's taps: every stream is fed whole, byte by byte and cut at random, with one result."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from passy_plugins.dialects.openai import OpenAI
from passy_plugins.dialects.openai_answer import AnswerTap, usage_of
from passy_plugins.dialects.watch import HELD
from passy_proxy.dialect import Tap
from passy_proxy.exchange import Request
from passy_proxy.records import Usage

Asked = Callable[..., Request]

OPENAI = OpenAI()
STREAM = b'{"model":"m","stream":true}'
WITH_USAGE = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
DONE = b"data: [DONE]\n\n"
USAGE = b'{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}'
LAST = b'data: {"id":"c","model":"gpt-4o","choices":[],"usage":' + USAGE + b"}\n\n"


def chunk(delta: bytes, finish: bytes = b"null", more: bytes = b"") -> bytes:
    return (
        b'data: {"id":"c","object":"chat.completion.chunk","model":"gpt-4o","choices":'
        b'[{"index":0,"delta":' + delta + b',"finish_reason":' + finish + b"}]" + more + b"}\n\n"
    )


def text(words: bytes, more: bytes = b',"usage":null') -> bytes:
    return chunk(b'{"content":"' + words + b'"}', more=more)


ROLE = chunk(b'{"role":"assistant","content":""}')
STOP = chunk(b"{}", b'"stop"')
WORDS = [b"Hello", b' \\"big\\" ', b"wide\\\\", b" w\xc3\xb6rld", b" usage", b"[DONE]", b" error"]
SAID = b"".join(map(text, WORDS))
WHOLE = ROLE + SAID + STOP + LAST + DONE


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The ways a stream may come off a socket."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    yield [part + b"\n\n" for part in data.split(b"\n\n") if part]
    dice = random.Random(len(data))
    for _ in range(30):
        places = sorted(dice.sample(range(1, len(data)), min(dice.randint(1, 12), len(data) - 1)))
        yield [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def fed(tap: Tap, pieces: list[bytes]) -> tuple[bytes, Tap]:
    return b"".join(map(tap.feed, pieces)) + tap.finish(), tap


def every_way(make: Callable[[], Tap], data: bytes) -> tuple[bytes, Tap]:
    """The result of feeding ``data``, having checked that it is the same in all ways."""
    expected, tap = fed(make(), [data])
    told = seen(tap)
    for pieces in cuts(data):
        if b"".join(pieces) == data:
            out, other = fed(make(), pieces)
            assert (expected, told) == (out, seen(other))
    return expected, tap


def seen(tap: Tap) -> tuple[Any, ...]:
    return tap.usage, tap.model, tap.finish_reason, tap.done, tap.error, tap.text_bytes


def streamed(asked: Asked, body: bytes = STREAM, operation: str = "chat") -> Callable[[], Tap]:
    return lambda: OPENAI.tap(asked(body, operation), True, "openai")


def test_the_usage_chunk_we_asked_for_is_not_shown(asked: Asked) -> None:
    out, tap = every_way(streamed(asked), WHOLE)
    assert ROLE + SAID + STOP + DONE == out
    assert Usage(9, 3) == tap.usage
    assert ("gpt-4o", "stop", True, "") == (tap.model, tap.finish_reason, tap.done, tap.error)


def test_the_usage_chunk_the_client_asked_for_is_shown(asked: Asked) -> None:
    out, tap = every_way(streamed(asked, WITH_USAGE), WHOLE)
    assert WHOLE == out
    assert Usage(9, 3) == tap.usage


def test_a_read_of_whole_messages_is_passed_on_as_the_same_object(asked: Asked) -> None:
    tap = streamed(asked)()
    for read in (ROLE, *map(text, WORDS), text(b"a") + text(b"b"), STOP, DONE):
        assert tap.feed(read) is read


def test_written_text_is_counted_in_bytes(asked: Asked) -> None:
    _, tap = every_way(streamed(asked), ROLE + SAID + STOP + DONE)
    assert tap.usage is None
    assert sum(map(len, WORDS)) == tap.text_bytes


def test_padding_is_not_counted_and_usage_behind_it_is_found(asked: Asked) -> None:
    noise = random.Random(7)
    words = [bytes(noise.choices(b"abcdefgh", k=noise.randint(1, 9))) for _ in range(60)]
    padded = [text(w, b',"obfuscation":"' + w[::-1] + b'"') for w in words]
    told = text(b"x", b',"usage":' + USAGE + b',"obfuscation":"ab"')
    data = ROLE + b"".join(padded) + told + STOP + DONE
    out, tap = every_way(streamed(asked), data)
    assert data == out
    assert sum(map(len, words)) + 1 == tap.text_bytes
    assert Usage(9, 3) == tap.usage


@pytest.mark.parametrize("front", [b"c", b"ccc"])
def test_a_chunk_that_begins_later_is_counted_from_where_its_text_begins(
    asked: Asked, front: bytes
) -> None:
    first = text(b"first", b',"usage":null,"obfuscation":"x"')
    for more in (b',"usage":null,"obfuscation":"yz"', b',"usage":null,"obfuscation":"x"'):
        other = text(b"other", more).replace(b'"c"', b'"%b"' % front)
        tap = streamed(asked)()
        for read in (first, other, first, other):
            assert tap.feed(read) is read
        assert 20 == tap.text_bytes


@pytest.mark.parametrize(
    "hidden", [b'x"}\n\ndata: [DONE]\n\ndata: {"y":"', b"x\n\ndata: [DONE]\n\n"]
)
def test_nothing_hides_in_the_padding(asked: Asked, hidden: bytes) -> None:
    tap = streamed(asked)()
    tap.feed(text(b"a", b',"usage":null,"obfuscation":"x"'))
    tap.feed(text(b"a", b',"usage":null,"obfuscation":"%b"' % hidden))
    assert tap.done


def test_what_follows_the_padding_is_read(asked: Asked) -> None:
    tap = streamed(asked)()
    tap.feed(text(b"a", b',"usage":null,"obfuscation":"x"'))
    tap.feed(text(b"a", b',"usage":null,"obfuscation":"x","usage":' + USAGE + b',"y":"z"'))
    assert Usage(9, 3) == tap.usage


def test_nothing_hides_in_the_text(asked: Asked) -> None:
    tap = streamed(asked)()
    tap.feed(text(b"a"))
    tap.feed(text(b"a\n\ndata: [DONE]\n\n"))
    assert tap.done


@pytest.mark.parametrize(
    "delta",
    [
        b'{"reasoning_content":"12345678"}',
        b'{"reasoning":"12345678"}',
        b'{"refusal":"12345678"}',
        b'{"tool_calls":[{"index":0,"function":{"arguments":"12345678"}}]}',
        b'{"content": "12345678"}',
    ],
)
def test_whatever_is_generated_is_counted(asked: Asked, delta: bytes) -> None:
    data = ROLE + chunk(delta) * 5 + STOP + DONE
    _, tap = every_way(streamed(asked), data)
    assert 40 == tap.text_bytes


def test_usage_in_a_chunk_with_choices_stays(asked: Asked) -> None:
    data = ROLE + chunk(b'{"content":"a"}', b'"stop"', b',"usage": ' + USAGE) + DONE
    out, tap = every_way(streamed(asked), data)
    assert data == out
    assert Usage(9, 3) == tap.usage


def test_the_last_usage_counts(asked: Asked) -> None:
    earlier = text(b"a", b',"usage":{"prompt_tokens":9,"completion_tokens":1}')
    data = ROLE + earlier + text(b"b") + STOP + LAST + DONE
    out, tap = every_way(streamed(asked), data)
    assert data.replace(LAST, b"") == out
    assert Usage(9, 3) == tap.usage


def test_usage_that_is_only_talked_about_is_not_believed(asked: Asked) -> None:
    talk = b'\\"usage\\":{\\"prompt_tokens\\":999,\\"completion_tokens\\":999}'
    args = chunk(b'{"tool_calls":[{"index":0,"function":{"arguments":"' + talk + b'"}}]}')
    nested = chunk(b'{"content":"x","usage":{"prompt_tokens":77,"completion_tokens":7}}')
    data = ROLE + text(talk) + args + nested + STOP + DONE
    out, tap = every_way(streamed(asked), data)
    assert (data, None) == (out, tap.usage)


def test_other_line_ends_and_comments_pass(asked: Asked) -> None:
    data = (b": hello\n\n" + ROLE + SAID + STOP).replace(b"\n", b"\r\n")
    hidden = LAST.replace(b"\n", b"\r\n")
    out, tap = every_way(streamed(asked), data + hidden + DONE)
    assert data + DONE == out
    assert (Usage(9, 3), True) == (tap.usage, tap.done)


def test_lines_that_end_in_carriage_returns_are_read(asked: Asked) -> None:
    data = (ROLE + STOP + LAST + DONE).replace(b"\n", b"\r")
    _, tap = every_way(streamed(asked), data)
    assert (Usage(9, 3), True, "stop") == (tap.usage, tap.done, tap.finish_reason)


def test_an_event_over_several_data_lines_is_read(asked: Asked) -> None:
    data = b'event: x\ndata: {"choices":[],\ndata: "usage":' + USAGE + b"}\n\n"
    out, tap = every_way(streamed(asked), data + STOP + DONE)
    assert STOP + DONE == out
    assert Usage(9, 3) == tap.usage


def test_a_truncated_stream_is_not_done(asked: Asked) -> None:
    for data in (ROLE + SAID, ROLE + SAID + STOP[:40], ROLE[:30]):
        _, tap = every_way(streamed(asked), data)
        assert not tap.done
    _, tap = fed(streamed(asked)(), [])
    assert not tap.done


def test_half_a_message_is_held_back(asked: Asked) -> None:
    tap = streamed(asked)()
    assert ROLE == tap.feed(ROLE + STOP[:30])
    assert STOP + ROLE == tap.feed(STOP[30:] + ROLE + SAID[:9])


def test_a_forgotten_end_marker_is_added(asked: Asked) -> None:
    out, tap = every_way(streamed(asked), ROLE + SAID + STOP + LAST)
    assert ROLE + SAID + STOP + DONE == out
    assert tap.done
    out, tap = every_way(streamed(asked), ROLE + STOP.rstrip(b"\n"))
    assert ROLE + STOP + DONE == out


def test_an_end_marker_without_its_blank_line_is_one(asked: Asked) -> None:
    data = ROLE + STOP + b"data: [DONE]"
    out, tap = every_way(streamed(asked), data)
    assert (data, True) == (out, tap.done)


@pytest.mark.parametrize(
    "error",
    [b'{"message":"overloaded","type":"server_error"}', b'"overloaded"', b'{"code":"overloaded"}'],
)
def test_an_error_event_is_noticed_and_passed_on(asked: Asked, error: bytes) -> None:
    data = ROLE + text(b"a") + b'data: {"error":' + error + b"}\n\n"
    out, tap = every_way(streamed(asked), data)
    assert (data, "overloaded") == (out, tap.error)
    assert tap.done, "the client was told: nothing is to be added"


def test_an_error_that_is_null_is_none(asked: Asked) -> None:
    _, tap = every_way(streamed(asked), ROLE + text(b"a", b',"error":null') + STOP + DONE)
    assert "" == tap.error


def test_a_huge_message_is_passed_on_before_its_end(asked: Asked) -> None:
    tap = streamed(asked)()
    big = text(b"x" * (4 * HELD))
    out = b""
    for at in range(0, len(big), 1000):
        out += tap.feed(big[at : at + 1000])
        assert at + 1000 - len(out) <= HELD + 1000
    out += tap.feed(STOP + LAST) + tap.feed(DONE) + tap.finish()
    assert big + STOP + DONE == out
    assert (Usage(9, 3), True) == (tap.usage, tap.done)


def test_usage_at_the_end_of_a_huge_message_is_found(asked: Asked) -> None:
    filler = b'"x":"' + b"y" * (3 * HELD) + b'",'
    event = (
        b'event: response.completed\ndata: {"type":"response.completed","response":{'
        + filler
        + b'"status":"completed","usage":{"input_tokens":5,"output_tokens":7}}}\n\n'
    )
    for size in (777, 65536, len(event)):
        tap = OPENAI.tap(asked(STREAM, "responses"), True, "openai")
        pieces = [event[at : at + size] for at in range(0, len(event), size)]
        out, tap = fed(tap, pieces)
        assert event == out
        assert (Usage(5, 7), True) == (tap.usage, tap.done)


def test_an_unterminated_line_costs_bounded_memory(asked: Asked) -> None:
    tap = streamed(asked)()
    passed = sum(len(tap.feed(b"z" * 65536)) for _ in range(200))
    assert 200 * 65536 == passed
    assert not tap.done


def test_text_completions_are_watched_alike(asked: Asked) -> None:
    words = [b'data: {"model":"m","choices":[{"text":"' + w + b'"}]}\n\n' for w in (b"ab", b"cde")]
    stop = b'data: {"model":"m","choices":[{"text":"","finish_reason":"length"}]}\n\n'
    data = b"".join(words) + stop + LAST + DONE
    out, tap = every_way(streamed(asked, STREAM, "completions"), data)
    assert data.replace(LAST, b"") == out
    assert (5, "length", Usage(9, 3)) == (tap.text_bytes, tap.finish_reason, tap.usage)


def named(kind: str, members: bytes) -> bytes:
    return b'event: %s\ndata: {"type":"%s",%s}\n\n' % (kind.encode(), kind.encode(), members)


RESPONSE = b'"response":{"id":"r","model":"gpt-5","status":"%s","error":%s,"usage":%s}'
BEGUN = named("response.created", RESPONSE % (b"in_progress", b"null", b"null"))
DELTA = named("response.output_text.delta", b'"sequence_number":4,"delta":"Hello"')
USED = (
    b'{"input_tokens":20,"input_tokens_details":{"cached_tokens":4},"output_tokens":6,'
    b'"output_tokens_details":{"reasoning_tokens":2},"total_tokens":26}'
)


@pytest.mark.parametrize("ended", ["completed", "incomplete"])
def test_a_streamed_response_tells_its_usage_in_its_last_event(asked: Asked, ended: str) -> None:
    last = named(f"response.{ended}", RESPONSE % (ended.encode(), b"null", USED))
    data = BEGUN + DELTA * 3 + last
    out, tap = every_way(streamed(asked, STREAM, "responses"), data)
    assert data == out, "no [DONE] is added"
    assert (Usage(20, 6, 4, 0, 2), 15) == (tap.usage, tap.text_bytes)
    assert ("gpt-5", ended, True, "") == (tap.model, tap.finish_reason, tap.done, tap.error)


def test_a_failed_response_is_an_error(asked: Asked) -> None:
    failed = RESPONSE % (b"failed", b'{"code":"server_error","message":"oh"}', b"null")
    _, tap = every_way(
        streamed(asked, STREAM, "responses"), BEGUN + named("response.failed", failed)
    )
    assert ("oh", True) == (tap.error, tap.done)
    error = b'event: error\ndata: {"type":"error","code":"x","message":"no","param":null}\n\n'
    _, tap = every_way(streamed(asked, STREAM, "responses"), BEGUN + error)
    assert ("no", True) == (tap.error, tap.done)


def test_a_cut_response_is_not_done(asked: Asked) -> None:
    _, tap = every_way(streamed(asked, STREAM, "responses"), BEGUN + DELTA)
    assert not tap.done


def test_a_stream_of_an_unknown_kind_is_done_when_it_ends(asked: Asked) -> None:
    request = asked(b"", "", rest="/audio/speech")
    data = b'data: {"type":"speech.audio.done","usage":{"input_tokens":1,"output_tokens":2}}\n\n'
    out, tap = every_way(lambda: OPENAI.tap(request, True, "openai"), data)
    assert (data, Usage(1, 2), True) == (out, tap.usage, tap.done)


PLAIN = (
    b'{ "id":"c", "model":"gpt-4o-mini", "choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hi there"},"finish_reason":"length"}], "usage": %s, "unheard_of": 1 }'
)


def plain(asked: Asked, body: bytes, pieces: list[bytes] | None = None) -> tuple[bytes, Tap]:
    return fed(OPENAI.tap(asked(b'{"model":"m"}'), False, "openai"), pieces or [body])


def test_a_plain_answer_is_passed_on_as_the_same_object(asked: Asked) -> None:
    body = PLAIN % USAGE
    tap = OPENAI.tap(asked(b'{"model":"m"}'), False, "openai")
    assert tap.feed(body) is body
    assert b"" == tap.finish()
    assert (Usage(9, 3), "gpt-4o-mini", "length") == (tap.usage, tap.model, tap.finish_reason)
    assert tap.done


def test_a_plain_answer_in_pieces_is_read_alike(asked: Asked) -> None:
    body = PLAIN % USAGE
    for pieces in cuts(body):
        if b"".join(pieces) == body:
            out, tap = plain(asked, body, pieces)
            assert (body, Usage(9, 3)) == (out, tap.usage)


RESPONSE_BODY = b'{"id":"r","model":"gpt-5","output":[],"status":"completed","usage":%s}'
DETAILED = (
    b'{"prompt_tokens":20,"completion_tokens":6,"total_tokens":26,"prompt_tokens_details":'
    b'{"cached_tokens":4,"audio_tokens":1},"completion_tokens_details":{"reasoning_tokens":2,'
    b'"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
ODD = [
    b"null", b"{}", b"[]", b'{"prompt_tokens":5,"completion_tokens":3}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":9}',
    b'{"prompt_tokens":-5,"completion_tokens":3,"total_tokens":-2}',
    b'{"prompt_tokens":5.0,"completion_tokens":3,"total_tokens":8}',
    b'{"prompt_tokens":5,"output_tokens":3,"total_tokens":5}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"input_tokens_details":'
    b'{"cached_tokens":2}}',
    b'{"prompt_tokens":5,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":2}}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_cache_hit_tokens":4}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":null}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":'
    b'{"cached_tokens":9,"audio_tokens":9}}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"completion_tokens_details":'
    b'{"reasoning_tokens":4,"audio_tokens":4}}',
    b'{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"\xff":1}',
]  # fmt: skip


@pytest.mark.parametrize("operation", ["chat", "embeddings", "responses", ""])
@pytest.mark.parametrize("usage", [USAGE, DETAILED, USED, *ODD])
@pytest.mark.parametrize("shape", [PLAIN, RESPONSE_BODY, b'{"error":{"message":"no"},"usage":%s}'])
def test_a_whole_answer_is_read_as_one_in_pieces(
    asked: Asked, operation: str, usage: bytes, shape: bytes
) -> None:
    body = shape % usage
    request = asked(b'{"model":"m"}', operation)
    at_once, slowly = (OPENAI.tap(request, False, "openai") for _ in range(2))
    assert at_once.whole(body) is body
    assert body == b"".join(map(slowly.feed, (body[:9], body[9:]))) + slowly.finish()
    assert seen(slowly) == seen(at_once)


@pytest.mark.parametrize(
    ("operation", "shape", "usage", "told"),
    [
        ("chat", PLAIN, USAGE, Usage(9, 3)),
        ("chat", PLAIN, DETAILED, Usage(20, 6, 4, 0, 2, 1)),
        ("embeddings", PLAIN, b'{"prompt_tokens":8,"total_tokens":8}', Usage(8, 0)),
        ("responses", RESPONSE_BODY, USED, Usage(20, 6, 4, 0, 2)),
    ],
)
def test_the_usage_of_every_day_is_read_by_one_decode(
    asked: Asked, operation: str, shape: bytes, usage: bytes, told: Usage
) -> None:
    tap = OPENAI.tap(asked(b'{"model":"m"}', operation), False, "openai")
    assert isinstance(tap, AnswerTap)
    counted = tap.read_counts(shape % usage)
    assert counted is not None
    assert told == counted[1]


def test_a_plain_answer_without_usage_is_measured(asked: Asked) -> None:
    _, tap = plain(asked, PLAIN % b"null")
    assert (None, 8) == (tap.usage, tap.text_bytes)


def test_a_huge_plain_answer_tells_its_usage_in_its_tail(asked: Asked) -> None:
    vectors = b"[" + b"0.25," * 600_000 + b"0]"
    body = b'{"data":[{"embedding":%s}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}'
    body %= vectors
    _, tap = plain(asked, body, [body[at : at + 65536] for at in range(0, len(body), 65536)])
    assert (Usage(8, 0), True) == (tap.usage, tap.done)


def test_an_error_in_a_plain_answer_is_noticed(asked: Asked) -> None:
    _, tap = plain(asked, b'{"error":{"message":"no"}}')
    assert "no" == tap.error


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff\xfe", b'{"usage":', b'"usage"'])
def test_what_is_no_answer_does_no_harm(asked: Asked, body: bytes) -> None:
    out, tap = plain(asked, body, [body])
    assert (body, None) == (out, tap.usage)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": -5, "completion_tokens": 3}, Usage(0, 3)),
        ({"prompt_tokens": 5, "completion_tokens": 10**30}, Usage(5, 1 << 40)),
        ({"prompt_tokens": 5.5, "completion_tokens": 3.0}, None),
        ({"prompt_tokens": True, "completion_tokens": "3"}, None),
        ({"prompt_tokens": 5.5, "completion_tokens": 3}, None),
        ({"prompt_tokens": 5.0, "completion_tokens": 3.0}, Usage(5, 3)),
        ({"prompt_tokens": 5, "total_tokens": 12}, Usage(5, 7)),
        ({"completion_tokens": 5, "total_tokens": 12}, Usage(7, 5)),
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
        ({}, None),
        (None, None),
        ([1], None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 99, "audio_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 2},
            },
            Usage(10, 4, 10, 0, 4, 3, 2),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 5},
            },
            Usage(10, 4, 3, 5),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 4, "prompt_cache_hit_tokens": 6},
            Usage(10, 4, 6),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": None},
            Usage(10, 4),
        ),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "total_tokens": 44,
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(10, 34, 0, 0, 30),
        ),
    ],
)
def test_usage_is_what_was_said_within_reason(said: object, usage: Usage | None) -> None:
    assert usage == usage_of(said)


@pytest.mark.parametrize("first", [True, False])
def test_usage_is_found_at_either_end_of_a_long_answer(asked: Asked, first: bool) -> None:
    tap = OPENAI.tap(asked(b'{"model":"m"}'), False, "openai")
    usage, pad = b'"usage":' + USAGE, b'"x":"' + b"y" * 100_000 + b'"'
    tap.feed(b'{"model":"gpt-4o",' + (usage if first else b'"a":1') + b",")
    for at in range(20):
        tap.feed(b"%b," % pad.replace(b"x", b"x%d" % at, 1))
    tap.feed((b'"a":1' if first else usage) + b"}")
    tap.finish()
    assert ("gpt-4o", Usage(9, 3)) == (tap.model, tap.usage)


def test_the_text_of_a_long_answer_without_usage_is_estimated(asked: Asked) -> None:
    tap = OPENAI.tap(asked(b'{"model":"m"}'), False, "openai")
    tap.feed(b'{"choices":[{"message":{"content":"')
    for _ in range(3):
        tap.feed(b"y" * 1_000_000)
    tap.feed(b'"}}]}')
    tap.finish()
    assert tap.usage is None
    assert tap.text_bytes >= 3_000_000


@pytest.mark.parametrize("request_body", [STREAM, WITH_USAGE])
@pytest.mark.parametrize("odd", [b"", chunk(b"{}", b'"length"'), b"data: {\n\n", b": ping\r\n\r\n"])
def test_a_burst_is_read_as_its_messages_one_by_one_are(
    asked: Asked, request_body: bytes, odd: bytes
) -> None:
    """The end of a burst is looked at closely, what is before it all at once: if that is right."""
    plain = [text(b"word %d" % number) for number in range(60)]
    for place in (0, 30, 57, 60):
        messages = [ROLE, *plain[:place], odd, *plain[place:], STOP, LAST, DONE]

        def found(pieces: list[bytes]) -> tuple[object, ...]:
            out, tap = fed(OPENAI.tap(asked(request_body), True, "openai"), pieces)
            return out, tap.usage, tap.text_bytes, tap.finish_reason, tap.done, tap.error, tap.model

        assert found(messages) == found([b"".join(messages)])


def numbered(number: int, words: bytes, finish: bytes = b"null") -> bytes:
    return (
        b'data: {"seq":%d,"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
        % (number, words, finish)
    )


def test_half_a_message_is_not_overtaken_by_the_next_read(asked: Asked) -> None:
    words = [b"one", b"two", b"three", b"four", b"five", b"SIX", b"seven"]
    said = [
        numbered(number, word, b'"stop"' if word == b"three" else b"null")
        for number, word in enumerate(words, 5)
    ]
    stream = b"".join([*said, DONE])
    places = [20, len(b"".join(said[:5])) + 1, len(b"".join(said[:6]))]
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    out, _ = fed(OPENAI.tap(asked(WITH_USAGE), True, "openai"), pieces)
    assert stream == out


@pytest.mark.parametrize("ending", [DONE, b'data: {"error":{"message":"it broke"}}\n\n'])
def test_an_end_is_seen_beside_a_chunk_with_two_choices(asked: Asked, ending: bytes) -> None:
    one = b'{"index":%d,"delta":{"content":"a"},"finish_reason":null}'
    two = b'data: {"choices":[%b,%b]}\n\n' % (one % 0, one % 1)
    _, tap = fed(OPENAI.tap(asked(STREAM), True, "openai"), [two + ending])
    assert tap.done
    assert ("" if ending is DONE else "it broke") == tap.error


@pytest.mark.parametrize("depth", [300, 900, 1015])
def test_what_is_nested_without_end_is_only_doubtful(asked: Asked, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    counts = b'{"prompt_tokens":9,"completion_tokens":3,"x":' + deep + b"}"
    end = b'data: {"choices":[{"delta":{},"finish_reason":%b}],"usage":%b}\n\n' % (deep, counts)
    out, tap = fed(OPENAI.tap(asked(WITH_USAGE), True, "openai"), [text(b"hi"), end, DONE])
    assert text(b"hi") + end + DONE == out
    assert tap.finish_reason
    assert Usage(9, 3) == tap.usage
    plain = b'{"choices":[],"usage":%b}' % counts
    read = AnswerTap()
    assert plain == read.whole(plain)
    assert Usage(9, 3) == read.usage
    refused = AnswerTap()
    refused.whole(b'{"error":{"message":%b}}' % deep)
    assert refused.error


@pytest.mark.parametrize("blank", [b"\r", b"\r\n\r\n", b"\n\r\n"])
def test_U10_what_a_stream_ends_with_is_found_beside_any_number_of_blank_lines(
    asked: Asked, blank: bytes
) -> None:
    """Which are no messages to be looked at one by one."""
    front = text(b"hi") + blank * (65_536 // len(blank))
    spent = [1.0]
    while min(spent) >= 0.02 and len(spent) < 9:
        tap = OPENAI.tap(asked(WITH_USAGE), True, "openai")
        began = time.thread_time()
        assert front + STOP + LAST + DONE == tap.feed(front + STOP + LAST + DONE)
        spent.append(time.thread_time() - began)
        assert (True, "stop", Usage(9, 3), 2) == (
            tap.done,
            tap.finish_reason,
            tap.usage,
            tap.text_bytes,
        )
    assert min(spent) < 0.02

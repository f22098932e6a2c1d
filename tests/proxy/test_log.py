"""Logs: lines written off the path, and no secret in them."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest

from passy_proxy.log import PENDING, LineWriter, configure

KEY = "sk-proj-0123456789abcdefghij"


@pytest.mark.parametrize("format", ["json", "pretty"])
def test_no_key_is_written_whatever_brought_it(format: str) -> None:
    stream = io.StringIO()
    log = configure("debug", format, stream)
    try:
        secret = KEY  # A local variable: rich tracebacks would show it.
        raise LookupError(f"refused: {secret}")
    except LookupError as exc:
        log.error("fault", exc_info=exc, header=f"Bearer {KEY}", problem=f"in {KEY}")
    written = stream.getvalue()
    assert "LookupError" in written
    assert "fault" in written
    assert KEY not in written


def test_lines_for_programs_are_json() -> None:
    stream = io.StringIO()
    log = configure("info", "auto", stream)
    log.debug("hidden")
    log.warning("shown", count=3)
    [line] = stream.getvalue().splitlines()
    said = json.loads(line)
    assert ("shown", "warning", 3) == (said["event"], said["level"], said["count"])


def read(end: int) -> bytes:
    data = b""
    while piece := os.read(end, 65536):
        data += piece
    return data


def test_lines_come_out_whole_and_in_order() -> None:
    end, start = os.pipe()
    writer = LineWriter[int](start, lambda number: b"%d\n" % number, interval=0.001)
    writer.start()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(end)))
    reader.start()
    for number in range(5_000):
        writer.put(number)
    writer.stop()
    os.close(start)
    reader.join(20)
    os.close(end)
    assert list(range(5_000)) == [int(line) for line in got[0].split()]
    assert 0 == writer.dropped


def test_a_line_that_cannot_be_said_silences_no_other() -> None:
    end, start = os.pipe()
    writer = LineWriter[str](start, lambda text: text.encode() + b"\n", interval=0.001)
    for text in ("one", "\ud800", "two"):
        writer.put(text)
    writer.start()
    writer.stop()
    os.close(start)
    assert b"one\ntwo\n" == read(end)
    os.close(end)
    assert 1 == writer.dropped


def test_what_nobody_takes_is_dropped_and_counted() -> None:
    writer = LineWriter[int](-1, lambda number: b"x")
    for number in range(PENDING + 3):
        writer.put(number)
    assert 3 == writer.dropped
    writer.start()
    writer.stop()
    assert PENDING + 3 == writer.dropped

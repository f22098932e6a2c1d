"""Logs: lines written off the path, and no secret in them."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from passy_proxy.config.model import LogSettings
from passy_proxy.log import (
    BATCH,
    PENDING,
    PENDING_BYTES,
    REPEAT_SPAN,
    REPEATS,
    LineWriter,
    Records,
    configure,
    configured,
    flush,
)

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


@pytest.mark.parametrize("interval", [0.001, 3_600.0])
def test_lines_come_out_whole_and_in_order(interval: float) -> None:
    end, start = os.pipe()
    writer = LineWriter(start, interval)
    writer.start()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(end)))
    reader.start()
    for number in range(5_000):
        writer.put(b"%d" % number)
    writer.stop()
    os.close(start)
    reader.join(20)
    os.close(end)
    assert b"".join([b"%d\n" % number for number in range(5_000)]) == got[0]
    assert 0 == writer.dropped


def test_many_lines_are_written_before_their_time() -> None:
    end, start = os.pipe()
    writer = LineWriter(start, interval=3_600.0)
    writer.start()
    for _ in range(BATCH + 1):
        writer.put(b"line")
    assert b"line\n" == os.read(end, 5)
    writer.stop()
    os.close(start)
    os.close(end)


def test_a_full_pipe_holds_nobody_up() -> None:
    end, start = os.pipe()
    writer = LineWriter(start, interval=0.001)
    writer.start()
    for _ in range(PENDING):
        writer.put(b"x" * 100)
    assert 0 == writer.dropped
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(end)))
    reader.start()
    writer.stop()
    os.close(start)
    reader.join(20)
    os.close(end)
    assert PENDING == got[0].count(b"\n")


def test_what_nobody_takes_is_dropped_and_counted() -> None:
    writer = LineWriter(-1)
    for _ in range(PENDING + 3):
        writer.put(b"x")
    assert 3 == writer.dropped
    writer.start()
    writer.stop()
    assert PENDING + 3 == writer.dropped


def test_long_lines_that_wait_are_bounded_by_their_bytes() -> None:
    writer = LineWriter(-1)
    line = b"x" * (1 << 20)
    for _ in range(BATCH + 20):
        writer.put(line)
    assert 20 - (PENDING_BYTES >> 20) == writer.dropped


def test_a_descriptor_has_one_writer_that_is_flushed() -> None:
    end, start = os.pipe()
    writer = LineWriter.of(start)
    assert writer is LineWriter.of(start)
    for number in range(50):
        writer.put(b"%d" % number)
        flush()
        assert b"%d\n" % number == os.read(end, 100)
    del LineWriter._all[start]
    writer.stop()
    os.close(start)
    os.close(end)


def test_one_message_of_a_library_is_not_written_without_end() -> None:
    stream = io.StringIO()
    passing_on = Records(configure("info", "json", stream))
    library = logging.Logger("library")
    library.addHandler(passing_on)
    for number in range(1_000):
        library.error("accept failed %d", number)
    library.error("another")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert REPEATS + 1 == len(lines)
    assert ("accept failed 0", "error", "library") == (
        lines[0]["event"],
        lines[0]["level"],
        lines[0]["logger"],
    )
    next(iter(passing_on._seen.values()))[0] -= REPEAT_SPAN
    library.error("accept failed %d", 1_000)
    assert 1_000 - REPEATS == json.loads(stream.getvalue().splitlines()[-1])["not_shown"]


def test_a_start_loads_nothing_for_tracebacks_that_nobody_wants() -> None:
    look = "import sys, passy_proxy.log; sys.exit('rich.console' in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-c", look]).returncode


def test_the_environment_may_say_the_level_in_capitals(capfd: pytest.CaptureFixture[str]) -> None:
    log = configured(LogSettings(), {"PASSY_LOG_LEVEL": "ERROR", "PASSY_LOG_FORMAT": "JSON"})
    log.info("quiet")
    log.error("loud")
    assert "loud" == json.loads(capfd.readouterr().err)["event"]

"""What is written in one turn of the loop goes out together, in order, and none of it is lost."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import Any, cast

import pytest

from passy_proxy.outbox import MOST, Outbox, outbox_of

pytestmark = pytest.mark.anyio


class Writer:
    """A connection whose transport is a list."""

    def __init__(self, sent: list[bytes]) -> None:
        self.sent = sent
        self.held = b""

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def release(self) -> None:
        if data := self.held:
            self.held = b""
            self.write(data)


def write(outbox: Outbox, sent: list[bytes], data: bytes) -> Writer:
    writer = Writer(sent)
    outbox.write(writer, cast(Any, writer), data)
    return writer


async def test_the_first_message_goes_at_once_and_the_others_at_the_end_of_the_turn() -> None:
    outbox, sent = Outbox(asyncio.get_running_loop()), list[bytes]()
    for _ in range(2):
        sent.clear()
        for number in range(4):
            write(outbox, sent, b"%d" % number)
        assert sent == [b"0"]
        await asyncio.sleep(0)
        assert sent == [b"0", b"1", b"2", b"3"]


async def test_no_more_than_some_are_held() -> None:
    outbox, sent = Outbox(asyncio.get_running_loop()), list[bytes]()
    told = []
    for number in range(2 * MOST + 2):
        write(outbox, sent, b"%d" % number)
        told.append(len(sent))
    assert told == [1] * MOST + [MOST + 1] * MOST + [2 * MOST + 1] * 2
    await asyncio.sleep(0)
    assert sent == [b"%d" % number for number in range(2 * MOST + 2)]


async def test_what_was_released_early_is_not_sent_twice() -> None:
    outbox, sent = Outbox(asyncio.get_running_loop()), list[bytes]()
    for number in range(3):
        writer = write(outbox, sent, b"%d" % number)
    writer.release()
    assert sent == [b"0", b"2"]
    await asyncio.sleep(0)
    assert sent == [b"0", b"2", b"1"]


async def test_a_faulty_connection_does_not_keep_the_others_messages() -> None:
    loop = asyncio.get_running_loop()
    outbox, sent, told = Outbox(loop), list[bytes](), list[Any]()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    for number in range(4):
        writer = write(outbox, sent, b"%d" % number)
        if number == 1:
            writer.sent = cast(Any, None)
    await asyncio.sleep(0)
    assert sent == [b"0", b"2", b"3"]
    assert [AttributeError] == [type(error) for error in told]
    loop.set_exception_handler(None)


async def test_what_is_sent_in_the_end_knows_nothing_of_who_sends_it() -> None:
    """A transport keeps the context of a write for what it calls later."""
    who, found = ContextVar("who", default="nobody"), list[str]()

    class Curious(Writer):
        def write(self, data: bytes) -> None:
            found.append(who.get())

    def begin() -> None:
        who.set("somebody")
        for _ in range(1 + MOST + 1):
            writer = Curious([])
            outbox.write(writer, cast(Any, writer), b"x")

    outbox = Outbox(asyncio.get_running_loop())
    copy_context().run(begin)
    await asyncio.sleep(0)
    assert found == ["somebody"] + ["nobody"] * (MOST + 1)


async def test_a_loop_has_one_outbox() -> None:
    loop = asyncio.get_running_loop()
    assert outbox_of(loop) is outbox_of(loop)

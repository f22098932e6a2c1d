"""An upstream that sends bytes, not messages, and keeps a ledger of what it was asked.

Its behaviour is a list of steps, as a catalogue writes them; it begins when a request has come to
its end (or its head has, after ``early``):

    early                   do not wait for the request's body
    {send: "HTTP/1.1 …"}    bytes (see `harness.catalogue.raw`)
    {drip: "…", gap: 0.05}  the same, one at a time
    {chunk: "…"}            bytes as one chunk of a chunked body
    {stamp: "… %s …"}       the same; ``%s`` becomes the moment it is sent (time.monotonic)
    {wait: 0.2}             seconds; in a script of Python's also a threading.Event, until which
                            a chunk is sent every 5 seconds if it is given as ``saying``
    hold                    until the other side leaves
    read                    what still comes of the request, until its end
    shut                    no more bytes from here (FIN); keep reading
    close                   close in order
    reset                   RST

After the last step the connection stays open for the next request, which begins the next script.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import h11

from harness.catalogue import raw
from passy_proxy.testing import completion

Step = str | dict[str, Any]
LONGEST = 60.0
"""Seconds that a ``hold`` lasts when nobody leaves."""


@dataclass(slots=True, eq=False)
class Hit:
    """One request, as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    connection: int
    """Number of its connection, from 1."""
    at: float = field(default_factory=time.monotonic)
    body: bytes = b""
    whole: threading.Event = field(default_factory=threading.Event)
    """Set when the body has all come."""
    sent: int = 0
    """Steps whose bytes have left the process."""
    closed: float | None = None
    """When its connection was gone, on the clock of ``at``."""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class RawUpstream:
    """Listens on loopback with an event loop of its own, in a thread; so tests may block.

    ``with RawUpstream(steps) as upstream``. ``script`` chooses the steps for a hit; one that looks
    at the body is a generator that yields ``read`` first. Without one all are answered by
    ``steps``. ``hits`` is the ledger; ``errors`` holds what was no HTTP.
    """

    def __init__(
        self,
        steps: Sequence[Step] = (),
        *,
        script: Callable[[Hit], Iterable[Step]] | None = None,
        ssl: Any = None,
        idle: float | None = None,
        port: int = 0,
    ) -> None:
        """``idle``: seconds after an answer when a connection without another request is closed.
        ``port``: where it listens, if not on a free one."""
        self.hits: list[Hit] = []
        self.errors: list[str] = []
        self.connections = 0
        """Accepted so far."""
        self.open = 0
        """Open now."""
        self._script = script or (lambda _: steps)
        self._ssl = ssl
        self.idle = idle
        self.port = port
        self._serving: set[asyncio.Task[None] | None] = set()  # asyncio itself keeps none
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> RawUpstream:
        self._thread.start()
        self._server = self._call(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024, ssl=self._ssl)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}"

    def until(self, met: Callable[[], Any], patience: float = 120.0) -> Any:
        """What ``met`` says as soon as it is something."""
        end = time.monotonic() + patience
        while not (found := met()):
            assert time.monotonic() < end, f"it never came; hits: {self.hits}"
            time.sleep(0.005)
        return found

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._serving.add(asyncio.current_task())
        number, hit = self.connections, None
        left = b""
        try:
            while True:
                wire = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
                if left:  # to receive nothing would be the end
                    wire.receive_data(left)
                # Between two requests: the first one may take its time on a busy machine.
                async with asyncio.timeout(self.idle if hit else None):
                    request = await self._event(wire, reader)
                if not isinstance(request, h11.Request):
                    return
                headers = [(n.decode(), v.decode("latin-1")) for n, v in request.headers]
                target = request.target.decode("latin-1")
                hit = Hit(request.method.decode(), target, headers, number)
                self.hits.append(hit)
                steps = iter(self._script(hit))
                first = next(steps, "read")
                if first != "early":
                    await self._body(wire, reader, hit)
                    steps = chain([first], steps)
                for step in steps:
                    if not await self._step(step, wire, reader, writer, hit):
                        return
                    hit.sent += 1
                await self._body(wire, reader, hit)
                left = wire.trailing_data[0]
        except h11.RemoteProtocolError as error:
            self.errors.append(str(error))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._serving.discard(asyncio.current_task())
            writer.transport.abort()
            if hit is not None:
                self._loop.call_soon(self._gone, hit)  # Behind what closes the socket.

    @staticmethod
    def _gone(hit: Hit) -> None:
        hit.closed = time.monotonic()

    async def _event(self, wire: h11.Connection, reader: asyncio.StreamReader) -> Any:
        while (event := wire.next_event()) is h11.NEED_DATA:
            wire.receive_data(await reader.read(1 << 16))
        return event

    async def _body(self, wire: h11.Connection, reader: asyncio.StreamReader, hit: Hit) -> None:
        later: list[bytes] = []  # of a large body, which is not copied again for each piece
        while not hit.whole.is_set():
            event = await self._event(wire, reader)
            if isinstance(event, h11.Data):
                if len(hit.body) < 1 << 20:
                    hit.body += bytes(event.data)
                else:
                    later.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                hit.body = b"".join([hit.body, *later])
                hit.whole.set()
            else:
                raise ConnectionError("it left within its request")

    async def _step(
        self,
        step: Step,
        wire: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hit: Hit,
    ) -> bool:
        """Whether the connection goes on."""
        if isinstance(step, dict):
            await self._act(step, writer)
        elif step == "read":
            await self._body(wire, reader, hit)
        elif step == "hold":
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST):
                    while await reader.read(1 << 16):
                        pass
            return False
        elif step == "shut":
            writer.write_eof()
        elif step == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        elif step == "close":
            await writer.drain()
            writer.close()
            with suppress(TimeoutError):  # over TLS asyncio may never say so
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
            return False
        else:
            raise AssertionError(f"no such step: {step}")
        return True

    async def _act(self, step: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if isinstance(step.get("wait"), threading.Event):
            said = time.monotonic()
            while not step["wait"].is_set():  # It is set in another thread.
                await asyncio.sleep(0.02)
                if "saying" in step and time.monotonic() - said > 5:
                    said = time.monotonic()
                    await self._act({"chunk": step["saying"]}, writer)
        elif "wait" in step:
            await asyncio.sleep(step["wait"])
        elif "send" in step:
            writer.write(raw(step["send"]))
            await writer.drain()
        elif "chunk" in step:
            data = raw(step["chunk"])
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        elif "stamp" in step:
            data = (step["stamp"] % repr(time.monotonic())).encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        elif "drip" in step:
            for byte in raw(step["drip"]):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(step.get("gap", 0.0))
        else:
            raise AssertionError(f"no such step: {step}")


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "real",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 1},
}


def whole(body: str, status: int = 200, kind: str = "application/json") -> list[Step]:
    """An answer in one piece."""
    head = f"HTTP/1.1 {status} So\r\ncontent-type: {kind}\r\ncontent-length: "
    return [{"send": f"{head}{len(body)}\r\n\r\n{body}"}]


def plainly(hit: Hit) -> list[Step]:
    """A script: a chat completion for whoever asks, and a message where messages are asked for."""
    asked = hit.target.startswith("/v1/messages")
    return whole(json.dumps(MESSAGE if asked else completion()))


@contextmanager
def refusing() -> Iterator[str]:
    """A base URL at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """A base URL at which connecting never ends: the queue of its listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def slamming() -> Iterator[str]:
    """A base URL at which every connection is accepted and closed at once."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with suppress(OSError):  # One who has left already is no end of it.
                    listener.accept()[0].close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

"""The edge: the HTTP/1.1 protocol class that uvicorn runs in place of its own.

uvicorn listens, does TLS and signals, starts workers and the application's lifespan; this file does
what happens on a connection. Three rules keep it small:

* One request at a time. The next head on a connection is not looked at before the answer to the
  previous one is out, so pipelined requests are answered in order by having no way to be otherwise.
* No task, timer or future that is not needed. One task runs the application for a connection's
  requests, one after the other; a hang-up is a call; a body that has come is given without waiting;
  deadlines are one attribute, looked at by the sweep of `timers.py`.
* What `framing.py` refuses, nobody sees. The answer to it comes from here, and ends the connection.

A client that shuts down only its sending side counts as one that left: a proxy cannot tell the two
apart in time, and an answer nobody waits for costs money.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import select
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from passy_proxy.cycle import STATUS_LINES, Cycle
from passy_proxy.framing import (
    CHUNKED,
    Alike,
    Chunks,
    HeadLimits,
    HeadReader,
    Refused,
    RequestHead,
    asked_for,
)
from passy_proxy.outbox import Outbox, outbox_of
from passy_proxy.refusal import Said, plainly
from passy_proxy.timers import NEVER, Sweep, sweep_of

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_log = logging.getLogger("uvicorn.error")

EXTENSION = "passy.edge"
"""Where an application finds its Cycle: ``scope["extensions"]["passy.edge"]``."""

Direct = Callable[[RequestHead, Cycle], Awaitable[None]]
"""An application may have a method ``answer`` of this kind: it is asked in place of the application
itself, and spared the making and reading of a scope. It may have ``refused`` like `plainly`, to
say in its own words what is refused here."""

# What a connection is busy with; says what its deadline is for.
_IDLE: Final = 0  # between requests
_HEAD: Final = 1  # a request has begun, or its first one is due
_BODY: Final = 2  # the application runs, the body has not all come
_BUSY: Final = 3  # the application runs, the body is here
_REST: Final = 4  # answered; the rest of the body is thrown away
_CLOSING: Final = 5  # nothing more is read, the last bytes are on their way

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
_UNTAKEN: Final[int | None] = getattr(termios, "TIOCOUTQ", None)  # Linux: also of sockets
_NOT_SENT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_INT = struct.Struct("i")
_LEFT = select.POLLERR | select.POLLHUP | getattr(select, "POLLRDHUP", 0)
_EXTRA: Final = 32  # connections beyond the most there may be: for questions about health
_EXTRA_TIMEOUT: Final = 1.0  # seconds
_LOOKS: Final = 4  # within the time in which a client has to take something


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """How much a client may send, how slowly, and for how long it may do nothing.

    Bytes and seconds. A client must send its body at ``body_rate`` bytes a second, looked at after
    ``body_grace``. ``high_water`` is the most that is buffered for an application that does not
    read, of requests that wait for their turn, and for a client that does not read; such a client
    is given more once it has taken all that, and about ``unsent_bytes`` more wait in the system. It
    must take something every ``write_timeout``, and ``write_rate`` bytes a second beyond that time.
    ``rest_bytes`` and ``rest_timeout`` say how much of a body is thrown away after an early answer
    before the connection is given up.
    ``connections_per_ip`` 0 means any number.
    """

    head: HeadLimits = field(default_factory=HeadLimits)
    body_bytes: int = 512 * 1024 * 1024
    header_timeout: float = 10.0
    body_rate: float = 1024.0
    body_grace: float = 10.0
    keep_alive: float = 75.0
    write_timeout: float = 30.0
    write_rate: float = 1024.0
    high_water: int = 64 * 1024
    unsent_bytes: int = 128 * 1024
    rest_bytes: int = 64 * 1024
    rest_timeout: float = 1.0
    connections_per_ip: int = 0
    linger: float = 0.5
    """At the end of the process: how long a connection stays after an answer that did not announce
    the end, for the request that its client may be sending already."""


class Edge:
    """What the connections of one worker share. Give it to uvicorn as ``http=``.

    The bounds ``most_…`` and ``shrinking`` are set by `overload.py`; see its Gate.
    """

    def __init__(
        self, limits: EdgeLimits | None = None, spared: frozenset[str] = frozenset()
    ) -> None:
        """``spared``: paths of GET requests that are answered whatever the load."""
        self.limits = limits or EdgeLimits()
        self.heads = HeadReader(self.limits.head)
        self.draining = False
        """Say ``connection: close`` in every answer, so that clients go elsewhere."""
        self.shrinking = False
        self.spared = spared
        self.most_requests = self.most_connections = self.most_held = sys.maxsize
        self.held = 0
        self.refused: dict[str, int] = {}
        """How many requests got an answer from here instead of from the application, by code."""
        self._connections: set[Connection] = set()
        self._peers: dict[str, int] = {}
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b"\r\n"

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        if not config.loaded:
            config.load()
        self._connections = cast("set[Connection]", server_state.connections)
        return Connection(self, config, server_state, app_state, _loop)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """``date``, ``server`` and uvicorn's own, and the end of the head.

        Rendered when uvicorn makes a new list, which is once a second.
        """
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"
        return self._default_lines

    @property
    def open(self) -> int:
        """Connections there are."""
        return len(self._connections)

    def close_idle(self) -> None:
        """Close connections that have had their answer and wait for a request."""
        for connection in [each for each in self._connections if each.phase == _IDLE]:
            connection.close()

    def count(self, code: str) -> None:
        """One more was refused."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def enter(self, peer: str) -> bool:
        """Count a connection; or do not, and return False, if its address has enough."""
        count = self._peers.get(peer, 0)
        if peer and 0 < self.limits.connections_per_ip <= count:
            return False
        self._peers[peer] = count + 1
        return True

    def leave(self, peer: str) -> None:
        if (count := self._peers.pop(peer) - 1) > 0:
            self._peers[peer] = count


def edge(limits: EdgeLimits | None = None, spared: frozenset[str] = frozenset()) -> Edge:
    """What ``uvicorn.Config(http=...)`` takes."""
    return Edge(limits, spared)


class Connection(asyncio.Protocol):
    """One client connection: reads requests, runs the application, keeps the deadlines."""

    __slots__ = (
        "alike",
        "app",
        "app_state",
        "began",
        "behind",
        "buffer",
        "chunks",
        "client",
        "config",
        "connections",
        "counted",
        "cycle",
        "deadline",
        "direct",
        "edge",
        "held",
        "left",
        "limits",
        "loop",
        "moved",
        "outbox",
        "paused_reading",
        "paused_writing",
        "phase",
        "received",
        "scope",
        "server_state",
        "shutting_down",
        "since",
        "spare",
        "stalled",
        "stay",
        "sweep",
        "task",
        "tasks",
        "transport",
        "turn",
        "unsent",
        "writable",
    )

    transport: asyncio.Transport
    sweep: Sweep
    outbox: Outbox

    def __init__(
        self,
        edge: Edge,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.edge = edge
        self.limits = edge.limits
        self.config = config
        self.app = config.loaded_app
        self.server_state = server_state
        self.app_state = app_state
        self.tasks = server_state.tasks
        self.connections = cast("set[Connection]", server_state.connections)
        self.loop = loop or asyncio.get_running_loop()
        self.client: tuple[str, int] | None = None
        self.scope: dict[str, Any] = {}  # what this connection's requests have in common
        self.direct: Direct | None = None
        if not config.root_path:
            self.direct = getattr(self.app, "answer", None)
        self.alike: Alike | None = None  # its latest head
        self.cycle: Cycle | None = None
        self.task: asyncio.Task[None] | None = None  # that waits for the next request
        self.turn: asyncio.Future[Cycle | None] | None = None  # and how it learns of it
        self.phase = _HEAD
        self.deadline = NEVER
        self.held = b""  # a whole answer, the latest one: while it waits, nothing else happens here
        self.buffer = bytearray()  # a head that has not ended, or requests that wait
        self.chunks: Chunks | None = None
        self.left = 0  # bytes of the body still to come, unless chunked
        self.began = 0.0  # when the body, or the reading of it after a pause, began
        self.received = 0  # bytes since then
        self.unsent = 0  # bytes the client has not taken, at the last look
        self.behind = 0  # the same when it fell behind
        self.since = 0.0  # when that was
        self.moved = 0.0  # when it last took something
        self.paused_reading = False
        self.paused_writing = False
        self.shutting_down = False
        self.stalled = False  # cut because it took too little of its answer
        self.spare = False  # one too many: it may ask for health, and nothing else
        self.counted = False  # among those of its address
        self.stay = False  # another request may follow the body that is thrown away
        self.writable: asyncio.Event | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.connections.add(self)
        self.client = _address(transport.get_extra_info("peername"))
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": _address(transport.get_extra_info("sockname")),
            "client": self.client,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        # Down to nothing: of a piece that is half written all of it stays in memory.
        self.transport.set_write_buffer_limits(self.limits.high_water, 0)
        self._bound_queue()
        self.sweep = sweep_of(self.loop)
        self.sweep.add(self)
        self.outbox = outbox_of(self.loop)
        self.deadline = self.sweep.now + self.limits.header_timeout
        self.counted = self.edge.enter(self._peer)
        if not self.counted:
            self.refuse(Refused(503, "too_many_connections", "Your address has too many open."))
        elif len(self.connections) > self.edge.most_connections:
            self._be_spare()

    def connection_lost(self, exc: Exception | None) -> None:
        self.held = b""
        self.connections.discard(self)
        self.sweep.discard(self)
        if self.counted:
            self.edge.leave(self._peer)
        self.phase = _CLOSING
        self._client_left()
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    def eof_received(self) -> None:
        """Half-closed counts as closed; the transport closes itself when we return."""
        self.release()
        self._client_left()

    def data_received(self, data: bytes) -> None:
        if self.outbox.waiting:  # Much may be there to be read, and they have waited enough.
            self.outbox.send()
        phase = self.phase
        if phase == _IDLE:
            self._read_head(data)
        elif phase == _HEAD:
            self._more_head(data)
        elif phase == _BODY:
            self._read_body(data)
        elif phase == _BUSY:
            self.buffer += data
            if len(self.buffer) > self.limits.high_water:
                self._pause_reading()
                if not self.paused_writing:
                    self.deadline = self.sweep.now
        elif phase == _REST:
            self._skip(data)

    def pause_writing(self) -> None:
        self.paused_writing = True
        self._await_progress()

    def resume_writing(self) -> None:
        self.paused_writing = False
        if self.writable is not None:
            self.writable.set()
        if self.phase == _BODY:
            self._await_body()
        elif self.phase == _REST:
            self.deadline = self.sweep.now + self.limits.rest_timeout
        elif self.phase == _BUSY:
            self.deadline = self.sweep.now if self.paused_reading else NEVER
            # asyncio's transports do not bear being closed in this call, so not at once
            self.loop.call_soon(self._go_on)

    def send_whole(self, answer: bytes, cycle: Cycle) -> None:
        """A whole answer: with others of this turn, where nothing is about to happen here."""
        if cycle.keep_alive and cycle.complete and not self.buffer:
            self.outbox.write(self, self.transport, answer)
        else:
            self.transport.write(answer)

    def release(self) -> None:
        """Send what is held. A client that does not take it gets no further."""
        if answer := self.held:
            self.held = b""
            self.transport.write(answer)
            if self.paused_writing and self.phase == _IDLE:
                self.phase = _BUSY

    def shutdown(self) -> None:
        """The server stops: an idle connection closes, a busy one after its answer.

        While the edge drains there is time to do it so that no request meets a closing connection:
        who was answered just now, or has just come, may be about to ask.
        """
        self.shutting_down = True
        if self.phase > _HEAD:
            return
        if not self.edge.draining:
            self.close()
        elif self.phase == _IDLE:
            since = self.deadline - self.limits.keep_alive
            self.deadline = since + self.limits.linger
        elif not self.buffer:
            self.deadline = min(self.deadline, self.loop.time() + self.limits.linger)

    def expire(self, now: float) -> None:
        """The deadline has passed; what that means depends on what was waited for."""
        phase = self.phase
        if self.paused_reading and self._hung_up():
            self._client_left()
            self.cut()
        elif self.paused_writing or phase == _CLOSING:
            self._check_progress(now)
        elif self.paused_reading:
            pass  # looked at again by the next sweep
        elif phase == _HEAD and self.buffer:
            self.refuse(Refused(408, "request_timeout", "The head of the request came too slowly."))
        elif phase == _BODY:
            due = self.began + self.limits.body_grace + self.received / self.limits.body_rate
            self.deadline = due if due > now else NEVER
            if due <= now and self.cycle is not None:
                self.cycle.body_is_slow()
        elif phase > _HEAD or not self._asked():
            self.close()

    def want_body(self, cycle: Cycle) -> None:
        """The application waits for the body."""
        if cycle.expects_continue:
            cycle.expects_continue = False
            if not cycle.started:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._await_body()
        elif self.paused_reading:
            self._resume_reading()
            self._await_body()

    def stays(self, cycle: Cycle) -> bool:
        """Whether the connection can serve another request after this answer."""
        edge = self.edge
        if edge.draining or edge.shrinking or self.shutting_down:
            return False
        if cycle.expects_continue or cycle.slow:
            return False
        return cycle.complete or (self.chunks is None and self.left <= self.limits.rest_bytes)

    def answered(self, cycle: Cycle) -> None:
        """The answer has its last byte: the transport has it, or it waits for the turn's end."""
        self.cycle = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not cycle.complete:
            self._rest(cycle.keep_alive)
        elif not cycle.keep_alive:
            self.close()
        else:
            self._next()

    def close(self) -> None:
        """Close once the client has taken what was written."""
        self.release()
        self.phase = _CLOSING
        self._await_progress()
        self.transport.close()

    def cut(self) -> None:
        """Reset the connection, so that a client can tell it from an answer that has ended."""
        self.phase = _CLOSING
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def refuse(self, refusal: Refused) -> None:
        """Answer in place of the application, and end the connection."""
        cycle = self.cycle
        self.cycle = None
        if cycle is not None:
            cycle.leave()
            if cycle.started:
                self.cut()
                return
        if not refusal.path:
            refusal.path = cycle.head.line.path if cycle is not None else asked_for(self.buffer)
        self._tell(refusal)
        self.chunks = None
        self.left = self.limits.rest_bytes + 1
        self._rest(stay=False)

    def _tell(self, refusal: Refused, connection: bytes = b"close") -> None:
        self.edge.count(refusal.code)
        said = getattr(self.app, "refused", plainly)(refusal)
        lines = self.edge.default_lines(self.server_state.default_headers)
        self.transport.write(_message(said, b"connection: %b\r\n%b" % (connection, lines)))

    @property
    def announced(self) -> int:
        """Bytes of the body that a chunk has promised and that are not here."""
        return self.chunks.announced if self.chunks is not None else 0

    @property
    def _peer(self) -> str:
        if self.client is None:
            return ""
        address = self.client[0]
        # Who has one IPv6 address has 2**64 of them.
        return _network(address) if ":" in address else address

    def _asked(self) -> bool:
        """Whether a request has come that was not read yet: to close now would reset it."""
        sock = self.transport.get_extra_info("socket")
        with contextlib.suppress(ImportError, OSError):  # No such thing on Windows.
            from fcntl import ioctl
            from termios import FIONREAD

            return sock is not None and any(ioctl(sock.fileno(), FIONREAD, bytes(4)))
        return False

    def _client_left(self) -> None:
        if self.cycle is not None:
            self.cycle.leave()
        if self.writable is not None:
            self.writable.set()

    def _be_spare(self) -> None:
        """There are too many: this one has a moment to ask for health, and is then gone."""
        if len(self.connections) > self.edge.most_connections + _EXTRA:
            self.edge.count("overloaded")
            self.cut()
            return
        self.spare = True
        self.deadline = self.sweep.now + min(_EXTRA_TIMEOUT, self.limits.header_timeout)

    def _bound_queue(self) -> None:
        """Have the system hold little that it could not send yet.

        Else it takes megabytes for a client that reads nothing, and it is long before that shows.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is not None and _NOT_SENT is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _NOT_SENT, self.limits.unsent_bytes)

    def _hung_up(self) -> bool:
        """Whether the client has left, although nobody reads what it sends."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(sock.fileno(), _LEFT)
        return bool(poll.poll(0))

    def _untaken(self) -> int:
        """Bytes that wait here, and those that wait in the system for the client's taking.

        The latter tell that it takes something long before the transport can see it.
        """
        size = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and _UNTAKEN is not None:
            with contextlib.suppress(OSError):
                (queued,) = _INT.unpack(fcntl.ioctl(sock.fileno(), _UNTAKEN, bytes(_INT.size)))
                return size + int(queued)
        return size

    def _await_progress(self) -> None:
        """From here on the client has to take."""
        self.since = self.moved = now = self.sweep.now
        self.behind = self.unsent = self._untaken()
        self.deadline = now + self.limits.write_timeout / _LOOKS

    def _check_progress(self, now: float) -> None:
        """Cut a client that takes nothing, or too little over a longer time."""
        limits = self.limits
        unsent = self._untaken()
        if unsent < self.unsent:
            self.moved = now
        self.unsent = unsent
        due = self.moved + limits.write_timeout
        if limits.write_rate:
            taken = max(0, self.behind - unsent)
            due = min(due, self.since + limits.write_timeout + taken / limits.write_rate)
        if now < due:
            self.deadline = min(due, now + limits.write_timeout / _LOOKS)
            return
        self.deadline = NEVER
        self.stalled = True
        self._client_left()
        self.cut()

    def _go_on(self) -> None:
        """The client has read; a request may have waited for that."""
        if self.phase == _BUSY and self.cycle is None:
            self._next()

    def _next(self) -> None:
        """Ready for another request, which may already be here."""
        if self.paused_writing:  # First the client has to take what it was answered.
            self.phase = _BUSY
            return
        limits = self.limits
        self.phase = _IDLE
        if self.shutting_down:
            if not self.edge.draining:
                self.close()
                return
            # By the clock itself: of so little time none is to be lost to a sweep that is late.
            self.deadline = self.loop.time() + limits.linger
        else:
            self.deadline = self.sweep.now + limits.keep_alive
        if self.paused_reading:
            self._resume_reading()
        if self.buffer:
            self._read_buffered()

    def _read_head(self, data: bytes) -> None:
        """``data`` begins with a head, and nothing waits in the buffer."""
        try:
            if self.alike is not None and (found := self.alike.read(data)) is not None:
                head, end = found
            elif (end := data.find(b"\r\n\r\n") + 4) >= 4:
                head = self._head(data[:end])
            else:
                self.buffer += data
                self._await_head()
                return
            self._begin(head, data[end:])
        except Refused as refusal:
            self.refuse(refusal)

    def _head(self, raw: bytes) -> RequestHead:
        """Read a head, and remember it for the next one. Raises Refused."""
        head = self.edge.heads.read(raw)
        self.alike = Alike.of(raw, head, self.limits.head.head)
        return head

    def _more_head(self, data: bytes) -> None:
        """Another piece of a head, or the first one of a connection: its deadline stands."""
        seen = max(0, len(self.buffer) - 3)
        self.buffer += data
        if self.buffer.find(b"\r\n\r\n", seen) >= 0:
            self._read_buffered()
            return
        try:
            self.edge.heads.check_unfinished(self.buffer, seen)
        except Refused as refusal:
            self.refuse(refusal)

    def _read_buffered(self) -> None:
        """The buffer begins with a head; take one request out of it."""
        buffer = self.buffer
        end = buffer.find(b"\r\n\r\n") + 4
        try:
            if end < 4:
                self._await_head()
                return
            head = self._head(bytes(buffer[:end]))
            size = len(buffer) if head.length == CHUNKED else end + head.length
            rest = bytes(buffer[end:size])
            del buffer[:size]
            self._begin(head, rest)
        except Refused as refusal:
            self.refuse(refusal)

    def _await_head(self) -> None:
        """A head has begun. Raises Refused."""
        self.phase = _HEAD
        self.deadline = self.sweep.now + self.limits.header_timeout
        self.edge.heads.check_unfinished(self.buffer)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """Run the application on a request. Raises Refused."""
        if len(self.tasks) >= self.edge.most_requests or self.spare:
            line = head.line
            if line.method != "GET" or line.path not in self.edge.spared:
                self._shed(head, rest)
                return
        length = head.length
        if length > self.limits.body_bytes:
            raise Refused(413, "request_too_large", f"The limit is {self.limits.body_bytes} bytes.")
        self.deadline = NEVER
        if len(rest) >= length >= 0:
            self.phase = _BUSY
            if len(rest) > length:
                self.buffer += rest[length:]
                rest = rest[:length]
            self.cycle = cycle = Cycle(self, head, rest)
        else:
            self.phase = _BODY
            self.cycle = cycle = Cycle(self, head, None)
            self.left = length
            self.chunks = Chunks() if length == CHUNKED else None
            if not cycle.expects_continue:
                self._await_body()
            if rest:
                self._read_body(rest)
        if self.cycle is None:  # what came with the head was refused, so nobody will serve it
            self.edge.held -= cycle.held
            return
        turn = self.turn
        if turn is not None and not turn.done():
            assert self.task is not None
            self.turn = None
            self.tasks.add(self.task)
            turn.set_result(cycle)
        else:
            self.tasks.add(self.loop.create_task(self._serve(cycle)))

    def _shed(self, head: RequestHead, rest: bytes) -> None:
        """Refuse a request for want of room. Who has sent all of it, and no more, may try again on
        this connection: a new one would cost both sides more."""
        refusal = Refused(503, "overloaded", "The gateway is overloaded. Try again in a moment.")
        refusal.path = head.line.path
        edge = self.edge
        if (
            len(rest) != head.length
            or self.buffer
            or self.paused_writing
            or not head.keep_alive
            or head.line.method == "HEAD"
            or edge.shrinking
            or edge.draining
            or self.shutting_down
            or self.spare
        ):
            raise refusal
        self._tell(refusal, b"keep-alive")
        self._next()

    async def _serve(self, cycle: Cycle | None) -> None:
        """Run the application on a request, and then on those that follow.

        A task costs more than all else that happens here, so it is kept. It ends with its
        connection, or when the next request came before this one was done with (and got a task of
        its own), or when the application left something in it that is none of the next one's
        business: a context variable, a cancellation.
        """
        task = asyncio.current_task()
        assert task is not None
        clean = copy_context()
        while cycle is not None:
            cycle.task = task
            try:
                if self.direct is not None:
                    await self.direct(cycle.head, cycle)
                else:
                    await self.app(self.scope_of(cycle), cycle.receive, cycle.send)
                if not (cycle.finished or cycle.gone or cycle.slow):
                    _log.error("the application left a request without a complete answer")
            except Exception:
                _log.exception("the application failed")
            finally:
                self.tasks.discard(task)
                if cycle.held:
                    self.edge.held -= cycle.held
                    cycle.held = 0
                if not (cycle.finished or cycle.gone):
                    cycle.give_up()
            cycle = None  # its body need not wait for the next one
            if (
                self.cycle is not None
                or self.turn is not None
                or self.phase == _CLOSING
                or task.cancelling()
                or copy_context() != clean
            ):
                return
            self.task = task
            self.turn = turn = self.loop.create_future()
            cycle = await turn

    def scope_of(self, cycle: Cycle) -> dict[str, Any]:
        """What ASGI tells an application of a request."""
        line = cycle.head.line
        root_path = self.config.root_path
        return self.scope | {
            "http_version": "1.1" if line.minor else "1.0",
            "root_path": root_path,
            "method": line.method,
            "path": root_path + line.path,
            "raw_path": root_path.encode() + line.raw_path,
            "query_string": line.query,
            "headers": list(cycle.head.headers),
            "state": self.app_state.copy(),
            "extensions": {EXTENSION: cycle},
        }

    def _await_body(self) -> None:
        """From here on the client has to send."""
        self.began = self.sweep.now
        self.received = 0
        self.deadline = self.began + self.limits.body_grace

    def _read_body(self, data: bytes) -> None:
        cycle = self.cycle
        assert cycle is not None
        self.received += len(data)
        if self.chunks is not None:
            self._read_chunks(self.chunks, cycle, data)
            return
        self.left -= len(data)
        if self.left > 0:
            cycle.arrive(data)
            self._hold_back(cycle)
        elif self.left == 0:
            cycle.arrive(data)
            self._body_ended(cycle, b"")
        else:
            cycle.arrive(data[: self.left])
            self._body_ended(cycle, data[self.left :])

    def _read_chunks(self, chunks: Chunks, cycle: Cycle, data: bytes) -> None:
        try:
            if pieces := chunks.feed(data):
                cycle.arrive(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if cycle.size + chunks.announced > self.limits.body_bytes:
                message = f"The limit is {self.limits.body_bytes} bytes."
                raise Refused(413, "request_too_large", message)
        except Refused as refusal:
            self.refuse(refusal)
            return
        if chunks.done:
            self.chunks = None
            self._body_ended(cycle, chunks.rest)
        else:
            self._hold_back(cycle)

    def _hold_back(self, cycle: Cycle) -> None:
        """Stop reading while the application has enough to do."""
        if cycle.buffered > self.limits.high_water:
            edge = self.edge
            if not cycle.wants_all:
                self._pause_reading()
                self.deadline = self.sweep.now  # looked at by each sweep: it may leave meanwhile
            elif edge.held > edge.most_held:
                self.refuse(Refused(503, "overloaded", "There is no room for the body now."))

    def _body_ended(self, cycle: Cycle, rest: bytes) -> None:
        self.phase = _BUSY
        if not self.paused_writing:
            self.deadline = NEVER
        cycle.end_body()
        if rest:
            self.buffer += rest

    def _rest(self, stay: bool) -> None:
        """The answer is out, the body is not in: throw it away, for a while.

        Closing at once would reset the connection, and the answer might be lost with it.
        """
        self.phase = _REST
        self.received = 0
        self.stay = stay
        if not self.paused_writing:
            self.deadline = self.sweep.now + self.limits.rest_timeout
        if self.paused_reading:
            self._resume_reading()
        if not stay and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _skip(self, data: bytes) -> None:
        self.received += len(data)
        rest = b""
        try:
            if self.chunks is not None:
                self.chunks.feed(data)
                ended, rest = self.chunks.done, self.chunks.rest
            else:
                self.left -= len(data)
                ended = self.left <= 0
                rest = data[self.left :] if self.left else b""
        except Refused:
            self.close()
            return
        if ended and self.stay:
            self.chunks = None
            self.buffer += rest
            self._next()
        elif ended or self.received > self.limits.rest_bytes:
            self.close()

    def _pause_reading(self) -> None:
        if not self.paused_reading and not self.transport.is_closing():
            self.paused_reading = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        self.paused_reading = False
        if not self.transport.is_closing():
            self.transport.resume_reading()


def _address(name: object) -> tuple[str, int] | None:
    """An IP address and port; a Unix socket has none."""
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return None


def _message(said: Said, default_lines: bytes) -> bytes:
    """The whole answer to a request that is refused."""
    status, body, lines = said
    return b"%b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b%b%b" % (
        STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status,
        len(body),
        lines,
        default_lines,
        body,
    )


def _network(address: str) -> str:
    """The /64 of an IPv6 address; the address itself if it maps one of IPv4."""
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    mapped = packed.startswith(bytes(10) + b"\xff\xff")
    return address if mapped else packed[:8].hex()

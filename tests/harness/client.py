"""A client that sends bytes and keeps what comes: for what no library would send."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11


@dataclass(slots=True)
class Told:
    """What a connection said until its end, or until nothing more came."""

    data: bytes
    end: str
    """``fin``, ``reset``, or ``open``: it is still there."""
    seconds: float

    def answers(self, *methods: str) -> list[Answer]:
        """The final answers in it, in order; ``methods`` are those they answer (GET is enough)."""
        found, left = [], self.data
        for method in [*methods, *["GET"] * 1000]:
            if not left:
                break
            answer, left = _answer(method, left, self.end != "open")
            found.append(answer)
        return found

    def answer(self, method: str = "GET") -> Answer:
        """The one answer in it."""
        found = self.answers(method)
        assert 1 == len(found), f"{len(found)} answers: {self.data[:2000]!r}"
        return found[0]


@dataclass(slots=True)
class Answer:
    """One message. ``whole`` is false when it was cut within its body."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def _answer(method: str, data: bytes, ended: bool) -> tuple[Answer, bytes]:
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    wire.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    wire.send(h11.EndOfMessage())
    wire.receive_data(data)
    if ended:
        wire.receive_data(b"")
    head: h11.Response | None = None
    body, whole = b"", False
    try:
        while True:
            event = wire.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                whole = True
                break
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        if head is None:
            raise
    assert head is not None, f"no answer in {data[:500]!r}"
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status_code, headers, body, whole), wire.trailing_data[0] if whole else b""


def send(
    url: str,
    pieces: bytes | Iterable[bytes],
    *,
    gap: float = 0.0,
    quiet: float = 60.0,
    patience: float = 60.0,
    shut: bool = False,
) -> Told:
    """Send ``pieces`` with ``gap`` seconds between, then listen until the end, until ``quiet``
    seconds without a byte, or ``patience`` seconds in all. ``shut`` sends FIN after the last."""
    address = urlsplit(url)
    began = time.monotonic()
    with socket.create_connection((address.hostname, address.port), timeout=patience) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number, piece in enumerate([pieces] if isinstance(pieces, bytes) else pieces):
                if number and gap:
                    time.sleep(gap)
                sock.sendall(piece)
            if shut:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It was refused before its end; what was said is still to be read.
        data, end = b"", "open"
        while (left := began + patience - time.monotonic()) > 0:
            sock.settimeout(min(quiet, left))
            try:
                piece = sock.recv(1 << 16)
            except TimeoutError:
                break
            except OSError:
                end = "reset"
                break
            if not piece:
                end = "fin"
                break
            data += piece
    return Told(data, end, time.monotonic() - began)

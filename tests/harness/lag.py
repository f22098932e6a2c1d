"""How long a gateway keeps somebody waiting who asks for nothing but a sign of life."""

from __future__ import annotations

import http.client
import threading
import time
from urllib.parse import urlsplit


class Pulse:
    """Asks ``/livez`` again and again on one connection while it is entered; `longest` is in
    seconds."""

    def __init__(self, url: str, gap: float = 0.002) -> None:
        self._host = urlsplit(url).netloc
        self._gap = gap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.waits: list[float] = []

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        return max(self.waits)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=30)
        while not self._stop.is_set():
            begun = time.monotonic()
            connection.request("GET", "/livez")
            connection.getresponse().read()
            self.waits.append(time.monotonic() - begun)
            self._stop.wait(self._gap)
        connection.close()

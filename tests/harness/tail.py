"""One who watches the portal's live tail, without a browser."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from harness.gateway import PATIENCE
from harness.portal import Browser


class Watch(threading.Thread):
    """Takes events until it is told to ``stop``, and comes back where it was whenever its
    connection ends: by itself too, after ``most`` events, or after a second without any."""

    def __init__(self, browser: Browser, query: dict[str, str], place: str, most: int = 0) -> None:
        super().__init__(daemon=True)
        self.ids: list[str] = []
        """Of all rows, in the order in which they came."""
        self.at: dict[str, float] = {}
        """Monotonic seconds at which each of them came."""
        self.ended = ""
        """What the portal said at the end."""
        self.came_back = 0
        self.lost = False
        self._browser = browser
        self._query = query
        self._place = place
        self._most = most
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        with suppress(OSError, AttributeError):  # It may have none just now.
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(PATIENCE)
        assert not self.is_alive()

    def run(self) -> None:
        while not (self._over.is_set() or self.ended):
            try:
                self._watch()
            except (OSError, http.client.HTTPException):
                if self._over.wait(0.1):
                    return
            self.came_back += 1

    def _watch(self) -> None:
        host = self._browser.gateway.url.partition("//")[2]
        connection = http.client.HTTPConnection(host, timeout=1.0 if self._most else PATIENCE)
        self._connection = connection
        cookies = "; ".join(f"{n}={v}" for n, v in self._browser.cookies.items())
        told = {"cookie": cookies, "accept": "text/event-stream"}
        query = urlencode({**self._query, **({} if self.came_back else {"place": self._place})})
        if self.came_back:
            told["last-event-id"] = self._place
        try:
            connection.request("GET", f"/portal/requests/tail?{query}", headers=told)
            answer = connection.getresponse()
            assert 200 == answer.status, answer.read()
            self._read(answer)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> None:
        event: dict[str, str] = {}
        events = 0
        while not self._over.is_set():
            try:
                read = answer.readline()
            except TimeoutError:
                return  # Nothing came for a while: as good a moment as any to come back.
            if not read:
                return  # Its end, perhaps within an event, which will come again.
            if line := read.decode().rstrip("\n"):
                name, _, value = line.partition(":")
                event[name] = value.strip()
                continue
            self._taken(event)
            events += "data" in event
            event = {}
            if answer.isclosed() or (self._most and events >= self._most) or self.ended:
                return

    def _taken(self, event: dict[str, str]) -> None:
        if event.get("event") == "end":
            self.ended = event["data"]
            return
        if "data" in event:
            piece: dict[str, Any] = json.loads(event["data"])
            rows = re.findall(r'data-id="([^"]+)"', piece.get("rows", ""))[::-1]
            assert piece["count"] == len(rows)
            self.lost |= piece["lost"]
            self.ids += rows
            self.at |= dict.fromkeys(rows, time.monotonic())
        if event.get("id"):
            self._place = event["id"]

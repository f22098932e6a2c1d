"""Clients that ask gateways from a few threads until they are told to stop."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.gateway import Gateway

CHAT = "/v1/chat/completions"
PATIENCE = 90
"""Seconds that an answer may take; only a hang takes so long."""
PAUSE = 0.005
"""Seconds between two requests of a thread."""


class Clients:
    """The ledger of what they saw. Each thread keeps to one of the ``gateways``, in turn."""

    def __init__(
        self, gateways: Sequence[Gateway], key: str, body: str | bytes, threads: int
    ) -> None:
        self._asked = (CHAT, body, {"authorization": f"Bearer {key}"})
        self._ended = threading.Event()
        self.whole: list[str] = []
        """Ids of answers that were seen whole."""
        self.refused: list[str] = []
        """Ids of those that said 429."""
        self.others: Counter[str] = Counter()
        """Other statuses, and how connections broke."""
        self._pool = ThreadPoolExecutor(threads)
        places = [each.url.partition("//")[2] for each in gateways]
        asked = [places[number % len(places)] for number in range(threads)]
        self._asking = [self._pool.submit(self._ask, place) for place in asked]

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> Clients:
        self._ended.set()
        for each in self._asking:
            each.result(PATIENCE)
        self._pool.shutdown()
        return self

    def _ask(self, place: str) -> None:
        with closing(HTTPConnection(place, timeout=PATIENCE)) as connection:
            while not self._ended.wait(PAUSE):
                try:
                    connection.request("POST", *self._asked)
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, HTTPException) as error:
                    self.others[type(error).__name__] += 1
                    connection.close()  # The next request opens it again.
                    continue
                id = answer.headers["x-request-id"]
                if answer.status == 200:
                    self.whole.append(id)
                elif answer.status == 429:
                    self.refused.append(id)
                else:
                    self.others[str(answer.status)] += 1

"""Requests to a demo that is served, so that its portal does not live in the past alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from passy_portal.demo.cast import EMBEDDINGS, MESSAGES, WORK, Ask, Work
from passy_portal.demo.trouble import among
from passy_proxy.json import dumps

PAUSE = 2.5
"""Seconds between two requests, on average."""
LONGEST = 60.0
WORDS = (
    "Why does my order not arrive?", "Summarise this ticket in one sentence.",
    "Which of these reviews are about the battery?", "Write a test for the parser.",
    "Translate the greeting into Portuguese.", "What changed between the two releases?",
)  # fmt: skip


class Asked(NamedTuple):
    """One request, ready to be sent."""

    path: str
    body: dict[str, Any]


async def living(url: str, keys: Mapping[str, str]) -> None:
    """Ask the gateway at ``url`` now and then, with the ``keys`` of `WORK`, by name."""
    random = Random()
    works = [work for work in WORK if work.name in keys and work.state in ("active", "rolled")]
    while True:
        await asyncio.sleep(random.expovariate(1 / PAUSE))
        work = works[among(random, [work.a_day for work in works])]
        try:
            await asyncio.wait_for(ask(url, keys[work.name], asked(random, work)), LONGEST)
        except (OSError, TimeoutError):
            continue  # It is about to stop, or has refused: a client would come again, too.


def asked(random: Random, work: Work) -> Asked:
    """What somebody who has this key asks next."""
    one: Ask = work.asks[among(random, [each.weight for each in work.asks])]
    words = " ".join(random.choices(WORDS, k=random.randint(1, 5)))
    body: dict[str, Any] = {"model": one.model}
    if one.route == EMBEDDINGS:
        body["input"] = words
    else:
        body["messages"] = [{"role": "user", "content": words}]
        body["stream"] = random.random() < one.streamed
    if one.route == MESSAGES:
        body["max_tokens"] = 400
    return Asked(one.route.partition(" ")[2], body)


async def ask(url: str, key: str, asked: Asked) -> None:
    """Send it, and read the answer to its end."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        body = dumps(asked.body)
        head = (
            f"POST {asked.path} HTTP/1.1\r\nhost: {at.netloc}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        while await reader.read(65_536):
            pass
    finally:
        writer.close()

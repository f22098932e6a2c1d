"""One line for each exchange, on standard output: JSON for programs, a short form on a terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Literal

from passy_proxy import (
    Exchange,
    Filter,
    LineWriter,
    Settings,
    hookimpl,
    made,
    setting,
)
from passy_proxy.config.problem import printable
from passy_proxy.keys import hidden
from passy_proxy.structs import Struct, dumped


class Config(Settings):
    format: Literal["auto", "json", "pretty"] = setting(
        "auto", "auto is pretty on a terminal and json elsewhere."
    )


LONGEST_NAME = 200
"""Characters of a model's name that are logged: it is the client's word, and may be megabytes."""

FLAGS = {
    "connect": "UC",
    "pool": "UO",
    "timeout": "UT",
    "broken": "UC",
    "protocol": "UC",
    "ejected": "UO",
}
"""Failure of an attempt → response flag, after Envoy's."""

CODES = {
    "rate_limit_exceeded": "RL",
    "insufficient_quota": "BL",
    "no_healthy_target": "UH",
}


class AccessLog(Filter):
    name = "access_log"
    on_error = "open"
    config: Config

    async def start(self) -> None:
        format = self.config.format
        pretty = format == "pretty" or (format == "auto" and sys.stdout.isatty())
        self._line = as_text if pretty else as_json
        self._writer = LineWriter.of(sys.stdout.fileno())

    async def stop(self) -> None:
        await asyncio.to_thread(self._writer.flush)

    def on_complete(self, ex: Exchange) -> None:
        # Text at once: facts that wait to become text would keep parts of the exchange alive.
        try:
            self._writer.put(self._line(ex))
        except (ValueError, TypeError):  # One that cannot be said.
            self._writer.drop()


def flags(ex: Exchange) -> str:
    """What went otherwise than usual, two letters each, after Envoy's response flags."""
    found = [FLAGS[a.failure.kind] for a in ex.attempts if a.failure and a.failure.kind in FLAGS]
    if len({attempt.target.label for attempt in ex.attempts}) > 1:
        found.append("FB")
    if ex.outcome.kind == "client_gone":
        found.append("DC")
    elif ex.outcome.kind == "upstream_broken":
        found.append("UC")
    elif ex.outcome.kind == "replied":
        found.append(CODES.get(ex.outcome.code, "LR"))
    return ",".join(dict.fromkeys(found))


class Line(Struct, omit_defaults=True, gc=False):
    """The canonical line; times in milliseconds. A struct is made and dumped in half the time of a
    dict."""

    time: str
    request_id: str
    method: str
    path: str
    status: int
    outcome: str
    ms: float
    first_ms: float | None
    key: str | None
    organisation: str | None
    model: str | None
    stream: bool
    upstream: str | None
    attempts: int
    flags: str
    input: int | None
    output: int | None
    estimated: bool | None
    client_retry: str | None = None


def as_json(ex: Exchange) -> bytes:
    """The canonical line, for programs."""
    started, written_at = ex.started, ex.written_at
    request, principal, usage, attempts = ex.request, ex.principal, ex.usage, ex.attempts
    head, outcome, kind, count = request.head, ex.outcome, ex.outcome.kind, len(attempts)
    second, millisecond = divmod(int(ex.at * 1000), 1000)
    retry = request.fields.get(b"x-stainless-retry-count")
    line = Line(
        clock(second) + MILLISECONDS[millisecond],
        ex.id,
        request.method,
        hidden(request.path),
        499 if kind == "client_gone" else ex.status,
        outcome.code or kind,
        int((monotonic() - started) * 10_000 + 0.5) / 10,
        int((written_at - started) * 10_000 + 0.5) / 10 if written_at else None,
        principal.key_id if principal else None,
        principal.organisation if principal else None,
        head.model[:LONGEST_NAME] or None,
        head.stream,
        attempts[-1].target.label if attempts else None,
        count if count < 2 else made(ex),
        "" if count == 1 and kind == "ok" else flags(ex),
        usage and usage.input,
        usage and usage.output,
        usage and usage.estimated,
    )
    if retry is not None and retry != b"0":
        line.client_retry = retry.decode("ascii", "replace")
    return dumped(line)


MILLISECONDS = [f".{number:03}+00:00" for number in range(1000)]


@lru_cache(maxsize=256)
def clock(second: int) -> str:
    """Date and time of a Unix second, UTC. Exchanges end in no order, so more than one is kept."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def as_text(ex: Exchange) -> bytes:
    """One line for people, coloured by status."""
    status = 499 if ex.outcome.kind == "client_gone" else ex.status
    colour = 32 if status < 400 else 33 if status < 500 else 31
    time = datetime.fromtimestamp(ex.at, UTC).astimezone().strftime("%H:%M:%S")
    request, usage = ex.request, ex.usage
    what = hidden(f"{request.method} {request.path} {request.head.model[:LONGEST_NAME]}").rstrip()
    upstream = f" → {printable(ex.attempts[-1].target.label)}" if ex.attempts else ""
    tokens = f" · {usage.input} in, {usage.output} out" if usage else ""
    flagged = flags(ex)
    notes = f" [{flagged}]" if flagged else ""
    took = f"{(monotonic() - ex.started) * 1000:.0f} ms"
    return (
        f"\x1b[2m{time}\x1b[0m \x1b[{colour}m{status}\x1b[0m "
        f"{printable(what)}{upstream}{tokens} · {took}{notes}"
    ).encode()


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [AccessLog]

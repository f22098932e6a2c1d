"""One line for each exchange, on standard output: JSON for programs, a short form on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal, NamedTuple

from passy_proxy import (
    Exchange,
    Filter,
    LineWriter,
    Principal,
    Settings,
    Usage,
    hookimpl,
    json,
    setting,
)


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
}
"""Failure of an attempt → response flag, after Envoy's."""

CODES = {
    "rate_limit_exceeded": "RL",
    "insufficient_quota": "BL",
    "no_healthy_target": "UH",
}


class AccessLog(Filter):
    name = "access_log"
    config: Config

    async def start(self) -> None:
        format = self.config.format
        pretty = format == "pretty" or (format == "auto" and sys.stdout.isatty())
        render = as_text if pretty else as_json
        self._writer: LineWriter[tuple[Any, ...]] = LineWriter(
            sys.stdout.fileno(), lambda fields: render(Line._make(fields))
        )
        self._writer.start()

    async def stop(self) -> None:
        self._writer.stop()
        if self._writer.dropped:
            self.log.warning("access_lines_dropped", count=self._writer.dropped)

    def on_complete(self, ex: Exchange) -> None:
        # Facts only, not the exchange: that would keep its body until the line is written.
        request = ex.request
        self._writer.put(
            (
                ex.at,
                ex.id,
                request.method,
                request.path,
                499 if ex.outcome.kind == "client_gone" else ex.status,
                ex.outcome.code or ex.outcome.kind,
                monotonic() - ex.started,
                ex.written_at - ex.started if ex.written_at else None,
                ex.principal,
                request.head.model[:LONGEST_NAME],
                request.head.stream,
                ex.attempts[-1].target.label if ex.attempts else None,
                len(ex.attempts),
                flags(ex),
                ex.usage,
                request.fields.get(b"x-stainless-retry-count"),
            )
        )


class Line(NamedTuple):
    """What is known of an exchange when it ends; times in seconds."""

    at: float
    id: str
    method: str
    path: str
    status: int
    outcome: str
    seconds: float
    first: float | None
    principal: Principal | None
    model: str
    stream: bool
    upstream: str | None
    attempts: int
    flags: str
    usage: Usage | None
    client_retry: bytes | None


def flags(ex: Exchange) -> str:
    """What went otherwise than usual, two letters each, after Envoy's response flags."""
    if ex.outcome.kind == "ok" and len(ex.attempts) == 1:
        return ""
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


def as_json(line: Line) -> bytes:
    """The canonical line, for programs."""
    principal, usage = line.principal, line.usage
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(line.at, UTC).isoformat(timespec="milliseconds"),
        "request_id": line.id,
        "method": line.method,
        "path": line.path,
        "status": line.status,
        "outcome": line.outcome,
        "ms": round(line.seconds * 1000, 1),
        "first_ms": None if line.first is None else round(line.first * 1000, 1),
        "key": principal.key_id if principal else None,
        "organisation": principal.organisation if principal else None,
        "model": line.model or None,
        "stream": line.stream,
        "upstream": line.upstream,
        "attempts": line.attempts,
        "flags": line.flags,
        "input": usage.input if usage else None,
        "output": usage.output if usage else None,
        "estimated": usage.estimated if usage else None,
    }
    if line.client_retry not in (None, b"0"):
        fields["client_retry"] = line.client_retry.decode("ascii", "replace")
    return json.dumps(fields) + b"\n"


def as_text(line: Line) -> bytes:
    """One line for people, coloured by status."""
    colour = 32 if line.status < 400 else 33 if line.status < 500 else 31
    time = datetime.fromtimestamp(line.at, UTC).astimezone().strftime("%H:%M:%S")
    what = printable(f"{line.method} {line.path} {line.model}".rstrip())
    upstream = f" → {printable(line.upstream)}" if line.upstream else ""
    usage = line.usage
    tokens = f" · {usage.input} in, {usage.output} out" if usage else ""
    notes = f" [{line.flags}]" if line.flags else ""
    took = f"{line.seconds * 1000:.0f} ms"
    return (
        f"\x1b[2m{time}\x1b[0m \x1b[{colour}m{line.status}\x1b[0m "
        f"{what}{upstream}{tokens} · {took}{notes}\n"
    ).encode()


def printable(text: str) -> str:
    """Without control characters: a client's path or model may not move the cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [AccessLog]

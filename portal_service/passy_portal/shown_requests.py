"""Requests as pages show them, and what people call what is in them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from passy_portal.pages.reading import key_names
from passy_portal.snippets import Snippet
from passy_proxy import retold
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

PLACEHOLDER = "…"
OWN = "custom-"
"""Before the id of an organisation's own provider, in the books."""
_BODIES: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": PLACEHOLDER}]},
    "/messages": {"max_tokens": 1024, "messages": [{"role": "user", "content": PLACEHOLDER}]},
    "/completions": {"prompt": PLACEHOLDER},
    "/embeddings": {"input": PLACEHOLDER},
    "/responses": {"input": PLACEHOLDER},
}
"""End of a route's path → what a body has there beside the model."""


@dataclass(frozen=True, slots=True)
class Row:
    """One of a list."""

    record: UsageRecord
    key: str
    """What people call its key."""
    providers: Mapping[str, str]
    """What people call the providers of their own."""

    @property
    def ending(self) -> str:
        return retold.ending(self.record)

    @property
    def flags(self) -> tuple[str, ...]:
        return retold.flags(self.record)

    @property
    def way(self) -> str:
        return retold.route(self.record.attempts, self.providers)

    @property
    def tags(self) -> list[str]:
        return [tag for tag in self.record.tags.split(",") if tag]


async def rows_of(admin: Admin, records: Sequence[UsageRecord]) -> list[Row]:
    """With the names of their keys and providers. All are of one organisation."""
    if not records:
        return []
    mine = records[0].organisation
    names = await key_names(admin, mine, {record.key_id for record in records})
    met = {attempt.upstream for record in records for attempt in record.attempts}
    providers: dict[str, str] = {}
    if any(name.startswith(OWN) for name in met):
        own = await admin.list_providers(mine)
        providers = {f"{OWN}{each.id}": each.name for each in own}
    return [Row(record, names.get(record.key_id, record.key_id), providers) for record in records]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar, in thousandths of the whole."""

    name: str
    x: float
    width: float
    title: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt on the line of time."""

    number: int
    label: str
    said: str
    """The same for who cannot see it."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    bars: tuple[Bar, ...]
    end: int
    """Milliseconds."""
    first: float | None
    """Where the client had the first byte, in thousandths; ``None`` where it had none."""
    names: tuple[str, ...]
    """Of the parts there are, in their order."""


PARTS = {
    "queue": "waiting for a free connection",
    "connect": "connecting",
    "head": "waiting for the answer's head",
    "stream": "the answer",
    "failed": "failed",
}


def timeline(row: Row) -> Timeline:
    """One bar for each try."""
    record = row.record
    end = retold.end_of(record)
    bars, met = [], set()
    for place, attempt in enumerate(record.attempts):
        pieces, said = [], []
        for part in retold.parts(record, place):
            met.add(part.name)
            x = 1000 * part.start / end
            width = max(1000 * (part.end - part.start) / end, 4.0)
            title = f"{PARTS[part.name]}: {part.end - part.start} ms"
            pieces.append(Piece(part.name, round(min(x, 996.0), 1), round(width, 1), title))
            said.append(title)
        name = row.providers.get(attempt.upstream, attempt.upstream)
        label = f"{name} {retold.mark(attempt)}"
        began = f"begun after {attempt.started_ms} ms"
        bars.append(Bar(place + 1, label, f"{label}, {began}; {', '.join(said)}", tuple(pieces)))
    first = 1000 * record.first_ms / end if record.first_ms else None
    return Timeline(tuple(bars), end, first, tuple(name for name in PARTS if name in met))


class Ran(NamedTuple):
    """What a request ran through, as its tries say; empty where there was none, or an old one."""

    chain: str
    hash: str
    filters: list[retold.Took]
    """What each of them took, where that was timed."""


def ran(record: UsageRecord) -> Ran:
    told, filters = retold.what_ran(record.attempts[-1]) if record.attempts else ("", [])
    chain, _, hash = told.rpartition("@")
    return Ran(chain, hash, filters)


def as_curl(origin: str, record: UsageRecord) -> Snippet | None:
    """What asks the same model in the same way, without what was said and without a key; ``None``
    for what was no question to a model."""
    method, _, path = record.route.partition(" ")
    ends = [end for end in _BODIES if path.endswith(end)]
    if method != "POST" or not ends or not record.model:
        return None
    body = {"model": record.model, **_BODIES[max(ends, key=len)]}
    if record.streamed:
        body["stream"] = True
    text = json.dumps(body, ensure_ascii=False)
    return Snippet(
        "curl",
        f"curl {shlex.quote(origin + path)} \\\n"
        '  -H "Authorization: Bearer $PASSY_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(text)}",
    )

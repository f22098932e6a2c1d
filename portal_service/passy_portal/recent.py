"""What the last 24 hours were like, from the latest records of an organisation: which upstreams
were tried and failed, who answered for which model, and how soon.

It looks at no more than the latest `MOST` records, so that it takes no longer in busy books;
`Recent` says since when it is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from passy_plugins.stores.sql.counted import conditions
from passy_plugins.stores.sql.reports import Asked
from passy_plugins.stores.sql.schema import usage, usage_days
from passy_portal.pages.reading import DAY, narrowed, now
from passy_proxy import retold
from passy_proxy.json import loads
from passy_proxy.records import AttemptRecord

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Visitor

MOST = 5_000
"""Records."""
REMEMBERED = 90 * DAY
"""How far back the last success is looked for."""


@dataclass(slots=True)
class Tried:
    """An upstream, as far as it was tried."""

    attempts: int = 0
    failed: int = 0
    last_ok: float | None = None
    """Unix seconds: of the latest request that it answered; of its day, before yesterday."""
    last_failure: str = ""
    """Why the latest try that failed did."""

    @property
    def health(self) -> str:
        """``idle``, ``well``, ``shaky`` or ``failing``."""
        if not self.attempts:
            return "idle"
        if self.failed * 2 >= self.attempts:
            return "failing"
        return "shaky" if self.failed * 20 > self.attempts else "well"


@dataclass(slots=True)
class Answered:
    """Who answered for a model."""

    requests: int = 0
    firsts: list[int] = field(default_factory=list)
    """Milliseconds to the first byte, of what ended well."""

    @property
    def first_ms(self) -> int | None:
        """The median."""
        return round(median(self.firsts)) if self.firsts else None


NOT_SENT = ("ejected:", "refused:", "untranslatable:")
"""How failures begin that say nothing of the upstream: it was not asked."""

Target = tuple[str, str, str]
"""The model that was asked for, the upstream, and the model's name there."""


@dataclass(slots=True)
class Recent:
    since: int
    """Milliseconds: everything from here on was looked at."""
    whole: bool
    """Whether that is 24 hours."""
    upstreams: dict[str, Tried] = field(default_factory=dict)
    credentials: dict[str, Tried] = field(default_factory=dict)
    """The same by the organisation's own key that was shown."""
    targets: dict[Target, Answered] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    """Requests that were answered by somebody, by the model that was asked for."""

    def of(self, upstream: str) -> Tried:
        return self.upstreams.get(upstream) or Tried()

    def with_key(self, credential: str) -> Tried:
        return self.credentials.get(credential) or Tried()


async def recent(admin: Admin, visitor: Visitor) -> Recent:
    """Within what the visitor may see."""
    until = now()
    asked = Asked(until - DAY, until, narrowed(visitor))
    latest = (
        select(*(usage.c[name] for name in _READ))
        .where(usage.c.at >= asked.since, *conditions(usage, asked))
        .order_by(usage.c.at.desc())
        .limit(MOST)
    )
    longer = (
        select(usage_days.c.upstream, func.max(usage_days.c.start))
        .where(
            usage_days.c.start >= until - REMEMBERED,
            usage_days.c.outcome == "ok",
            *conditions(usage_days, asked),
        )
        .group_by(usage_days.c.upstream)
    )
    async with admin.connected() as connection:
        rows = (await connection.execute(latest)).all()
        days = (await connection.execute(longer)).all()
    whole = len(rows) < MOST
    found = Recent(asked.since if whole else rows[-1].at, whole)
    for at, model, upstream, upstream_model, outcome, status, first_ms, attempts in rows:
        well = outcome == "ok" and status < 400
        for each in (AttemptRecord(*attempt) for attempt in loads(attempts)):
            _count(found.upstreams.setdefault(each.upstream, Tried()), each)
            if each.credential:
                key = found.credentials.setdefault(each.credential, Tried())
                _count(key, each)
                if well and not each.failure:
                    key.last_ok = key.last_ok or at / 1000
        if not upstream:
            continue
        found.models[model] = found.models.get(model, 0) + 1
        answered = found.targets.setdefault((model, upstream, upstream_model), Answered())
        answered.requests += 1
        if well:
            answered.firsts.append(first_ms)
            tried = found.upstreams.setdefault(upstream, Tried())
            tried.last_ok = tried.last_ok or at / 1000
    for upstream, start in days:
        tried = found.upstreams.setdefault(upstream, Tried())
        tried.last_ok = tried.last_ok or start / 1000
    return found


_READ = (
    "at", "model", "upstream", "upstream_model", "outcome", "status", "first_ms", "attempts",
)  # fmt: skip


def _count(tried: Tried, attempt: AttemptRecord) -> None:
    """Rows come latest first."""
    if attempt.failure.startswith(NOT_SENT):
        return
    tried.attempts += 1
    if attempt.failure:
        tried.failed += 1
        tried.last_failure = tried.last_failure or told(attempt)


def told(attempt: AttemptRecord) -> str:
    """Why it failed, as people read it: ``status 429``, ``timeout: no answer within 5 s``."""
    detail = retold.detail(attempt)
    kind = retold.kind(attempt)
    return f"{kind} {attempt.status}" if kind == "status" else f"{kind}: {detail}".rstrip(": ")

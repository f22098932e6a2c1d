"""Counting: how many exchanges, how long, how many tokens, what they cost; for `metrics_page`.

An exchange adds to one row of numbers, found by what it asked for and how it ended: as few as can
be, since the page works out the rest. Labels are
names of the configuration: a model is the alias it was found by (``gpt-*``), and what no alias
covers is `other`; an organisation's own upstream is `custom`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import monotonic

from passy_plugins.usage import COST
from passy_proxy import Exchange, Filter, Models, Settings, Upstream, Vitals, hookimpl, setting
from passy_proxy.vitals import OTHER, Row

TABLE = "exchanges"
LABELS = ("model", "upstream", "status", "outcome")
BOUNDS = tuple(0.01 * 2**power for power in range(14))
"""Seconds, as OpenTelemetry advises for `gen_ai` durations: 10 ms to 82 s."""
TOKENS = ("input", "output", "cached", "cache_write", "reasoning")

SECONDS, FIRST_SECONDS, COST_NANOS, MORE_ATTEMPTS = range(4)
FIRST_TOKEN = 4
DURATIONS = FIRST_TOKEN + len(TOKENS)
FIRSTS = DURATIONS + len(BOUNDS) + 1
WIDTH = FIRSTS + len(BOUNDS) + 1

REMEMBERED = 1_000
"""Ways to a row that are kept: one is by the name a client wrote, and those have no end."""
LONGEST = 200
CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
CODES = 200
"""Different ends of exchanges. There are a few dozen; a plugin of bad taste makes more."""


class Config(Settings):
    models: Models = setting("models", "The table of models; there is one, written under models:.")
    vitals: Vitals = setting("vitals", "Where the process counts.")


class Metrics(Filter):
    name = "metrics"
    on_error = "open"
    config: Config

    async def start(self) -> None:
        self._rows: dict[tuple[str, Upstream | None, int, str], Row] = {}
        self._codes: set[str] = set()

    def on_complete(self, ex: Exchange) -> None:
        attempts, outcome, began = ex.attempts, ex.outcome, ex.started
        upstream = attempts[-1].target.upstream if attempts else None
        way = (ex.request.head.model, upstream, ex.status, outcome.code or outcome.kind)
        row = self._rows.get(way)
        if row is None:
            row = self._row(*way)
        seconds = monotonic() - began
        row[SECONDS] += seconds
        row[DURATIONS + bisect_left(BOUNDS, seconds)] += 1
        if len(attempts) > 1:
            row[MORE_ATTEMPTS] += len(attempts) - 1
        if ex.request.head.stream and ex.written_at:
            seconds = ex.written_at - began
            row[FIRST_SECONDS] += seconds
            row[FIRSTS + bisect_left(BOUNDS, seconds)] += 1
        usage = ex.usage
        if usage is not None:
            row[FIRST_TOKEN] += usage.input
            row[FIRST_TOKEN + 1] += usage.output
            if usage.cached or usage.cache_write or usage.reasoning:
                row[FIRST_TOKEN + 2] += usage.cached
                row[FIRST_TOKEN + 3] += usage.cache_write
                row[FIRST_TOKEN + 4] += usage.reasoning
            cost = ex.stash.get(COST)
            if cost is not None:
                row[COST_NANOS] += cost[0]

    def _row(self, asked: str, upstream: Upstream | None, status: int, code: str) -> Row:
        """The row for a way that is not remembered."""
        name = "none" if upstream is None else upstream.name
        if upstream is not None and upstream.owner != "operator":
            name = "custom"
        if code not in self._codes:
            if len(self._codes) >= CODES:
                code = OTHER
            self._codes.add(code)
        key = (self._model(asked), name, CLASSES[min(5, status // 100)], code)
        row = self.config.vitals.row(TABLE, key, WIDTH)
        if len(asked) <= LONGEST:
            if len(self._rows) >= REMEMBERED:
                self._rows.clear()
            self._rows[asked, upstream, status, code] = row
        return row

    def _model(self, asked: str) -> str:
        """A name of the configuration for what was asked for."""
        if not asked:
            return "none"
        models = self.config.models
        found = models.find(asked) if len(asked) <= LONGEST else None
        return found.name if found is not None else asked if asked in models.listed else OTHER


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Metrics]

"""Terminal: the numbers of all workers, in the text form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hmac import compare_digest
from itertools import accumulate

from passy_plugins.metrics import (
    BOUNDS,
    COST_NANOS,
    DURATIONS,
    FIRST_SECONDS,
    FIRST_TOKEN,
    FIRSTS,
    LABELS,
    MORE_ATTEMPTS,
    SECONDS,
    TABLE,
    TOKENS,
)
from passy_proxy import (
    Attempt,
    Dispatch,
    Exchange,
    Reply,
    Settings,
    StrongSecretOrOff,
    Terminal,
    Vitals,
    credentials,
    hookimpl,
    setting,
)
from passy_proxy.vitals import Table

TEXT = b"text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "edge_refused": ("passy_edge_refused_total", "Requests refused before any filter.", "code"),
    "filter_failures": ("passy_filter_failures_total", "Hooks that failed.", "filter"),
    "loop_blocked": ("passy_loop_blocked_total", "Times an event loop was held up.", ""),
    "loop_blocked_seconds": ("passy_loop_blocked_seconds_total", "And for how long in all.", ""),
    "limits_undecided": (
        "passy_limits_undecided_total",
        "Requests of which the store of limits decided nothing.",
        "instead",
    ),
    "log_dropped": ("passy_log_lines_dropped_total", "Log lines that nobody took.", ""),
    "reloads": ("passy_reloads_total", "Configurations taken, and refused.", "result"),
    "worker_restarts": ("passy_worker_restarts_total", "Workers that were replaced.", "worker"),
    "upstream_opened": ("passy_upstream_connections_opened_total", "Opened so far.", "upstream"),
    "upstream_reused": ("passy_upstream_connections_reused_total", "Used again.", "upstream"),
}
GAUGES = {
    "in_flight": ("passy_requests_in_flight", "Exchanges that run now.", ""),
    "connections": ("passy_connections", "Open connections of clients.", ""),
    "loop_lag": ("passy_loop_lag_seconds", "How late the latest beat of a loop was.", "worker"),
    "configuration": ("passy_configuration_current", "Workers that run what the file says.", ""),
    "upstream_ejected": ("passy_upstream_ejected", "Workers that leave it alone.", "upstream"),
    "draining": ("passy_draining", "Workers to which no client is to be sent.", ""),
    "upstream_open": ("passy_upstream_connections", "Open connections to it.", "upstream"),
    "upstream_idle": ("passy_upstream_connections_idle", "Those that are not in use.", "upstream"),
    "upstream_waiting": ("passy_upstream_waiting", "Attempts without a connection.", "upstream"),
}


class Config(Settings):
    token: StrongSecretOrOff = setting(
        "off", "What the reader has to show, of 32 random bytes or more; off: see public."
    )
    public: bool = setting(False, "Answer anybody, where there is no token.")
    vitals: Vitals = setting("vitals", "Where the process counts.")


class MetricsPage(Terminal):
    name = "metrics_page"
    needs = frozenset({"credentials"})
    config: Config

    @property
    def closed(self) -> bool:
        return not (self.config.token or self.config.public)

    async def start(self) -> None:
        self._token = self.config.token.reveal().encode()
        self._shown = credentials(self)

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if self._token:
            scheme, _, shown = self._shown(ex.request).get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not compare_digest(shown.strip(), self._token):
                return Reply(401, "invalid_metrics_token", "This needs the token for metrics.")
        elif not self.config.public:
            return Reply(403, "metrics_disabled", "Set PASSY_METRICS_TOKEN to ask for this.")
        page = "".join(rendered(self.config.vitals)).encode()
        return Reply(200, "metrics", body=page, content_type=TEXT)


def rendered(vitals: Vitals) -> Iterator[str]:
    """The page, in pieces."""
    counted, present = vitals.gather()
    yield from exchanges(counted.get(TABLE, {}))
    for kind, families, tables in (("counter", COUNTERS, counted), ("gauge", GAUGES, present)):
        for name, (metric, told, label) in families.items():
            table = tables.get(name)
            if table:
                yield headed(metric, kind, told)
                for key, row in sorted(table.items()):
                    yield f"{metric}{labelled(zip((label,), key, strict=False))} {number(row[0])}\n"


def exchanges(table: Table) -> Iterator[str]:
    """The families that one table of exchanges makes."""
    rows = sorted(table.items())
    for metric, told, worked_out in EXCHANGES:
        yield headed(metric, "counter", told)
        for key, row in rows:
            if value := worked_out(key, row):
                yield f"{metric}{labelled(zip(LABELS, key, strict=True))} {number(value)}\n"
    # What OpenTelemetry calls gen_ai.client.token.usage; cached and cache_write are in input,
    # reasoning is in output.
    yield headed("passy_tokens_total", "counter", "Tokens, by kind.")
    for labels, count in tokens_by_model(table):
        yield f"passy_tokens_total{labelled(labels.items())} {number(count)}\n"
    yield from histogram(
        "passy_request_duration_seconds", "From request to end.", rows, DURATIONS, SECONDS
    )
    yield from histogram(
        "passy_first_byte_seconds",
        "From request to first byte, of streams.",
        rows,
        FIRSTS,
        FIRST_SECONDS,
    )


def ended(key: tuple[str, ...], row: list[float]) -> float:
    return sum(row[DURATIONS : DURATIONS + len(BOUNDS) + 1])


def tried(key: tuple[str, ...], row: list[float]) -> float:
    _, upstream, _, _ = key
    return row[MORE_ATTEMPTS] + (ended(key, row) if upstream != "none" else 0)


def cost(key: tuple[str, ...], row: list[float]) -> float:
    return row[COST_NANOS] * 1e-9


EXCHANGES = (
    ("passy_requests_total", "Exchanges, by how they ended.", ended),
    ("passy_attempts_total", "Tries at upstreams.", tried),
    ("passy_cost_usd_total", "What they cost, where that is known.", cost),
)
"""Counters of one number for each row of the table: name, what it tells, and how it is found."""


def tokens_by_model(table: Table) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and how many, of each kind that there were."""
    by_model: dict[tuple[str, ...], list[float]] = {}
    for key, row in sorted(table.items()):
        sums = by_model.setdefault(key[:2], [0] * len(TOKENS))
        for place in range(len(TOKENS)):
            sums[place] += row[FIRST_TOKEN + place]
    for key, sums in by_model.items():
        for kind, count in zip(TOKENS, sums, strict=True):
            if count:
                yield {**dict(zip(LABELS, key, strict=False)), "kind": kind}, count


def histogram(
    metric: str, told: str, rows: Sequence[tuple[tuple[str, ...], list[float]]], at: int, total: int
) -> Iterator[str]:
    yield headed(metric, "histogram", told)
    for key, row in rows:
        buckets = list(accumulate(row[at : at + len(BOUNDS) + 1]))
        if not buckets[-1]:
            continue
        pairs = list(zip(LABELS, key, strict=True))
        for bound, count in zip((*map(number, BOUNDS), "+Inf"), buckets, strict=True):
            yield f"{metric}_bucket{labelled([*pairs, ('le', bound)])} {number(count)}\n"
        yield f"{metric}_sum{labelled(pairs)} {number(row[total])}\n"
        yield f"{metric}_count{labelled(pairs)} {number(buckets[-1])}\n"


def headed(metric: str, kind: str, told: str) -> str:
    return f"# HELP {metric} {told}\n# TYPE {metric} {kind}\n"


def labelled(pairs: Iterable[tuple[str, str]]) -> str:
    """``{a="b"}``; nothing for no label."""
    said = ",".join(f'{name}="{escaped(value)}"' for name, value in pairs if name)
    return f"{{{said}}}" if said else ""


def escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.9g}"


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [MetricsPage]

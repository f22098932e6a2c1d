"""What a run is reduced to: medians with their range, and ratios between targets of one run."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import msgspec

Figures = dict[str, float]

#: name → (heading, decimals)
FIGURES = {
    "cpu_us_per_request": ("CPU µs/request", 1),
    "requests_per_s": ("requests/s", 0),
    "p50_us": ("p50 µs", 0),
    "p95_us": ("p95 µs", 0),
    "p99_us": ("p99 µs", 0),
    "added_p50_us": ("p50 added µs", 0),
    "added_p95_us": ("p95 added µs", 0),
    "added_p99_us": ("p99 added µs", 0),
    "cpu_us_per_chunk": ("CPU µs/chunk", 1),
    "chunks_per_s": ("chunks/s", 0),
    "first_chunk_p50_us": ("first chunk p50 µs", 0),
    "added_first_chunk_p50_us": ("first chunk added µs", 0),
    "chunk_p50_us": ("chunk p50 µs", 0),
    "chunk_p99_us": ("chunk p99 µs", 0),
    "cpu_us_per_burst": ("CPU µs/burst", 0),
    "bursts_per_s": ("bursts/s", 0),
    "rss_idle_mb": ("RSS idle MB", 1),
    "rss_loaded_mb": ("RSS loaded MB", 1),
    "waited_json": ("waited % (json)", 1),
    "waited_latency": ("waited % (latency)", 1),
    "waited_burst": ("waited % (burst)", 1),
    "waited_chunks": ("waited % (chunks)", 1),
    "start_s": ("start s", 2),
}
#: Figures of which a ratio says something; the direct line has no part in them.
COMPARED = (
    "cpu_us_per_request",
    "added_p50_us",
    "cpu_us_per_chunk",
    "added_first_chunk_p50_us",
    "cpu_us_per_burst",
    "rss_loaded_mb",
)
YARDSTICKS = ("envoy", "nginx", "passy", "against")
_ADDED = ("p50_us", "p95_us", "p99_us", "first_chunk_p50_us")
_DIRECT = "direct"


class Median(msgspec.Struct, frozen=True):
    """Median and range over the repetitions."""

    median: float
    low: float
    high: float
    count: int


def summary(values: Iterable[float]) -> Median | None:
    """Median and range; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Median(median(ordered), ordered[0], ordered[-1], len(ordered))


class Samples:
    """Figures by target and repetition."""

    def __init__(self) -> None:
        self.found: dict[str, dict[int, Figures]] = {}

    def add(self, target: str, repetition: int, figures: Figures) -> None:
        self.found.setdefault(target, {}).setdefault(repetition, {}).update(figures)

    def complete(self) -> Samples:
        """With what each target adds to the direct line's latency of the same repetition."""
        whole = Samples()
        for target, repetitions in self.found.items():
            for repetition, figures in repetitions.items():
                floor = self.found.get(_DIRECT, {}).get(repetition, {})
                added = {
                    f"added_{name}": figures[name] - floor[name]
                    for name in _ADDED
                    if target != _DIRECT and name in figures and name in floor
                }
                whole.add(target, repetition, {**figures, **added})
        return whole

    def medians(self, target: str) -> dict[str, Median]:
        """Every figure of one target over its repetitions."""
        runs = self.found.get(target, {}).values()
        return {
            name: found
            for name in FIGURES
            if (found := summary(figures[name] for figures in runs if name in figures))
        }

    def ratio(self, target: str, yardstick: str, name: str) -> Median | None:
        """`target` over `yardstick`, repetition by repetition."""
        mine, theirs = self.found.get(target, {}), self.found.get(yardstick, {})
        return summary(
            mine[run][name] / theirs[run][name]
            for run in mine.keys() & theirs.keys()
            if mine[run].get(name, 0) > 0 and theirs[run].get(name, 0) > 0  # noise can be negative
        )

    def ratios(self) -> dict[str, dict[str, dict[str, Median]]]:
        """target → yardstick → figure → ratio."""
        return {
            target: against
            for target in self.found
            if target != _DIRECT
            and (
                against := {
                    yardstick: compared
                    for yardstick in YARDSTICKS
                    if yardstick != target
                    and (
                        compared := {
                            name: ratio
                            for name in COMPARED
                            if (ratio := self.ratio(target, yardstick, name))
                        }
                    )
                }
            )
        }

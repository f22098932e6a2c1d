"""The run as a JSON document and as tables for a terminal."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from passy_bench.plan import Bench
from passy_bench.results import COMPARED, FIGURES, YARDSTICKS, Median

_PACKAGES = ("uvicorn", "uvloop", "httptools", "httpcore", "orjson", "msgspec", "pluggy")
_WAITED = ("waited_json", "waited_latency", "waited_burst", "waited_chunks")
_TABLES = {
    "Requests": (
        "cpu_us_per_request",
        "requests_per_s",
        "p50_us",
        "p95_us",
        "p99_us",
        "added_p50_us",
        "added_p95_us",
        "added_p99_us",
    ),
    "Streams": (
        "cpu_us_per_chunk",
        "chunks_per_s",
        "first_chunk_p50_us",
        "added_first_chunk_p50_us",
        "chunk_p50_us",
        "chunk_p99_us",
        "cpu_us_per_burst",
        "bursts_per_s",
    ),
    "Process": ("start_s", "rss_idle_mb", "rss_loaded_mb", *_WAITED),
}


def document(bench: Bench, before: dict[str, str | int]) -> dict[str, Any]:
    """Everything about a finished run, ready for JSON; `before` describes the machine then."""
    samples = bench.ran.samples.complete()
    return {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**before, "pinned": bench.cores is not None},
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "effort": msgspec.to_builtins(bench.effort),
        "scenarios": list(bench.scenarios),
        "targets": {
            name: {
                "version": version,
                "medians": msgspec.to_builtins(samples.medians(name)),
                "samples": list(samples.found.get(name, {}).values()),
            }
            for name, version in bench.ran.versions.items()
        },
        "ratios": msgspec.to_builtins(samples.ratios()),
        "left_out": bench.ran.left_out,
        "failures": bench.ran.failures,
    }


def save(found: dict[str, Any], file: Path) -> None:
    """Write the document, indented, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")


def tables(bench: Bench) -> RenderableType:
    """Medians (range) by target, the ratios, and what is missing and why."""
    return Group(*_figures(bench), *_ratios(bench), *_remarks(bench))


def _figures(bench: Bench) -> Iterator[Table]:
    samples = bench.ran.samples.complete()
    medians = {name: samples.medians(name) for name in bench.ran.versions}
    for title, names in _TABLES.items():
        known = {name for found in medians.values() for name in found}
        shown = [
            name
            for name in names  # beside what is added, one absolute latency is enough
            if name in known and not (name in ("p95_us", "p99_us") and f"added_{name}" in known)
        ]
        if shown:
            rows = [
                (target, [_cell(found.get(name), FIGURES[name][1]) for name in shown])
                for target, found in medians.items()
                if any(name in found for name in shown)
            ]
            yield _table(title, [FIGURES[name][0] for name in shown], rows)


def _ratios(bench: Bench) -> Iterator[Table]:
    ratios = bench.ran.samples.complete().ratios()
    for yardstick in YARDSTICKS:
        compared = {target: found.get(yardstick, {}) for target, found in ratios.items()}
        shown = [name for name in COMPARED if any(name in found for found in compared.values())]
        if shown:
            rows = [
                (target, [_cell(found.get(name), 2) for name in shown])
                for target, found in compared.items()
                if found
            ]
            yield _table(f"Ratio to {yardstick}", [FIGURES[name][0] for name in shown], rows)


def _table(title: str, headings: Sequence[str], rows: list[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("target", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for target, cells in rows:
        table.add_row(target, *cells)
    return table


def _cell(found: Median | None, decimals: int) -> str:
    if found is None:
        return "–"  # noqa: RUF001
    middle, low, high = (f"{x:,.{decimals}f}" for x in (found.median, found.low, found.high))
    return middle if found.count == 1 else f"{middle} ({low}-{high})"


def _remarks(bench: Bench) -> Iterator[Text]:
    yield Text(f"Medians (range) of {bench.effort.repeat}; compare within this run only.")
    if "direct" in bench.ran.versions:
        yield Text("direct: the mock alone, on the core of the load; its CPU is the mock's.")
    yield Text("waited: how long the target was kept from its core by others; near 0 is sound.")
    if bench.cores is None:
        yield Text("Not pinned: this machine gives fewer than two cores.", style="yellow")
    for name, reason in bench.ran.left_out.items():
        yield Text(f"LEFT OUT {name}: {reason}", style="bold red")
    for failure in bench.ran.failures:
        yield Text(f"FAILED {failure}", style="bold red")

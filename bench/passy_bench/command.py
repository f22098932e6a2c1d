"""The command line of the bench."""

from __future__ import annotations

import ipaddress
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from passy_bench import machine, report
from passy_bench.plan import ANSWER_LIMIT, LOADS, SCENARIOS, Bench, Effort, answers_streams
from passy_bench.servers import BenchError
from passy_bench.targets import BUILDERS, CHECKOUT, PATH, Target
from passy_proxy.cli import Exit

_TABLE_WIDTH = 180
_URL_LIMIT = 20_000
_OPEN_FILES = 65_536


class Names(click.ParamType[tuple[str, ...]]):
    """A comma-separated choice of known words."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        words = value.split(",") if isinstance(value, str) else value
        for word in words:
            if word not in self.known:
                self.fail(f"{word!r} is none of {', '.join(self.known)}", param, ctx)
        return tuple(dict.fromkeys(words))


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The options as given; `file` is where `--json` points."""

    url: str | None
    targets: tuple[str, ...]
    against: str | None
    scenarios: tuple[str, ...]
    repeat: int
    seconds: float
    connections: int
    streams: int
    quick: bool
    file: Path | None
    key: str | None
    model: str
    i_own_this: bool

    @property
    def effort(self) -> Effort:
        return Effort(
            seconds=0.5 if self.quick else self.seconds,
            repeat=1 if self.quick else self.repeat,
            connections=self.connections,
            streams=self.streams,
            limit=_URL_LIMIT if self.url else ANSWER_LIMIT,
        )


@click.command()
@click.argument("url", required=False)
@click.option(
    "--targets",
    type=Names(tuple(BUILDERS)),
    default=",".join(BUILDERS),
    help=f"Some of {','.join(BUILDERS)}.",
)
@click.option("--against", metavar="PATH|COMMIT", help="Another passy, measured in the same run.")
@click.option(
    "--scenarios",
    type=Names(SCENARIOS),
    default=",".join(SCENARIOS),
    help=f"Some of {','.join(SCENARIOS)}.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="Medians are of so many.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 60),
    default=3.0,
    show_default=True,
    help="Counted per scenario.",
)
@click.option(
    "--connections", type=click.IntRange(1, 1000), default=64, show_default=True, help="In json."
)
@click.option(
    "--streams", type=click.IntRange(1, 2000), default=200, show_default=True, help="In chunks."
)
@click.option("--quick", is_flag=True, help="One short repetition, half a minute: a rough idea.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to save the figures.")
@click.option("--key", envvar="PASSY_BENCH_KEY", help="API key for URL.")
@click.option("--model", default="echo", show_default=True, help="Model to ask for at URL.")
@click.option("--i-own-this", is_flag=True, help="Allow a URL that is not on this machine.")
def command(**given: object) -> int:
    """Measure passy next to Envoy, nginx and a stock stack, or measure URL.

    A mock provider, a load generator and one target at a time run on this machine. Without URL the
    figures are CPU per request and per streamed chunk, latency, memory and start time.
    """
    asked = msgspec.convert(given, Asked)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _open_files()
    before = machine.description()
    try:
        bench = _measured(asked)
    except BenchError as problem:
        raise click.ClickException(str(problem)) from problem
    console = Console()
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    console.print(report.tables(bench))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    file = asked.file or CHECKOUT / "bench" / "results" / f"{stamp}.json"
    report.save(report.document(bench, before), file)
    console.print(f"saved {file}", soft_wrap=True)
    return Exit.failed if bench.ran.failures or not bench.ran.samples.found else Exit.ok


def _measured(asked: Asked) -> Bench:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, refresh_per_second=2) as progress:
        task = progress.add_task("building the targets")

        def tell(step: str) -> None:
            progress.update(task, description=step, advance=1)

        if asked.url is not None:
            target = _target(asked.url, asked)
            streams = answers_streams(target, asked.model)
            able = LOADS if streams else LOADS[:2]
            bench = Bench(
                [target.name], [s for s in asked.scenarios if s in able], asked.effort, tell
            )
            progress.update(task, total=bench.steps)
            bench.run_url(target, asked.model)
            return bench
        if not sys.platform.startswith("linux"):
            raise BenchError("only Linux shows the CPU time of other programs; try: a URL")
        names = (*asked.targets, *((asked.against,) if asked.against else ()))
        bench = Bench(names, asked.scenarios, asked.effort, tell)
        progress.update(task, total=bench.steps)
        bench.run()
        return bench


def _target(url: str, asked: Asked) -> Target:
    """The URL as a target. Raises click.UsageError for one that may be somebody else's."""
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise click.UsageError(f"not an http or https URL: {url}")
    if not asked.i_own_this and not _is_loopback(where.hostname):
        raise click.UsageError(
            f"{where.hostname} is not this machine; try: --i-own-this, if it is yours to load"
        )
    path = where.path.rstrip("/")
    complete = path if path.endswith("/completions") else path.removesuffix("/v1") + PATH
    return Target(
        name=where.netloc.rpartition("@")[2],
        version=complete,
        url=f"{where.scheme}://{where.netloc.rpartition('@')[2]}{complete}",
        folder=CHECKOUT,
        headers={"authorization": f"Bearer {asked.key}"} if asked.key else {},
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_files() -> None:
    """Room for a thousand streams in the programs started from here, within what is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

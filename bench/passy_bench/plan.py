"""Which loads each target gets, and in which order.

A repetition takes the targets one after the other, and the next repetition takes them again in a
rotated order: what changes on the machine meanwhile hits all of them. Each time a target is started
anew, warmed up by each kind of load before it is counted, and stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from passy_bench import machine
from passy_bench.load import Load, Outcome
from passy_bench.results import Figures, Samples
from passy_bench.servers import ENVIRONMENT, BenchError, Program, ask, first_answer, running, stop
from passy_bench.site import LeftOut, Site
from passy_bench.targets import BUILDERS, CHECKOUT, MODEL, Target, against

SCENARIOS = ("json", "latency", "burst", "chunks", "rss", "start")
LOADS = SCENARIOS[:4]  # in this order: the many streams come last, they leave connections behind
STREAM_CHUNKS = 100
ANSWER_LIMIT = 1_000_000
_BODY_BYTES = 955
_LOAD_GRACE = 60.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much load: `seconds` counted per scenario (latency: twice that), streams 50 chunks/s."""

    seconds: float = 3.0
    repeat: int = 3
    connections: int = 64
    rate: float = 100.0
    streams: int = 200
    pause_ms: int = 20
    limit: int = ANSWER_LIMIT  # answers per measurement

    @property
    def warmup(self) -> float:
        return min(1.0, self.seconds / 2)

    @property
    def chunks(self) -> int:
        """Chunks of a paced stream, so many that each ends and begins anew while counted."""
        return max(1, min(STREAM_CHUNKS, int(self.seconds * 1000 / self.pause_ms)))


@dataclass(slots=True)
class Ran:
    """What a run gave: samples and versions of the targets, peers left out, and what failed."""

    samples: Samples = field(default_factory=Samples)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def request_body(*, chunks: int = 0, pause_ms: int = 0, model: str = MODEL) -> str:
    """A chat completion request of 955 bytes; the mock reads its pace from two of the fields."""
    request: dict[str, object] = {"model": model, "temperature": 0.2, "user": "bench"}
    if chunks:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        request |= {"max_tokens": chunks, "seed": pause_ms}
    question = {"role": "user", "content": ""}
    request["messages"] = [{"role": "system", "content": "You answer briefly."}, question]
    missing = _BODY_BYTES - len(json.dumps(request, separators=(",", ":")))
    question["content"] = ("What does a gateway cost? " * 50)[:missing]
    return json.dumps(request, separators=(",", ":"))


def loads(target: Target, effort: Effort, model: str) -> dict[str, Load]:
    """The load of each scenario for this target."""
    life = effort.chunks * effort.pause_ms / 1000  # streams begin apart, so that they end apart
    common = Load(
        url=target.url,
        headers=dict(target.headers),
        body=request_body(model=model),
        connections=effort.connections,
        warmup=effort.warmup,
        seconds=effort.seconds,
        limit=effort.limit,
    )
    change = msgspec.structs.replace
    paced = request_body(chunks=effort.chunks, pause_ms=effort.pause_ms, model=model)
    streams = change(common, stream=True, spread=life, warmup=life + effort.warmup / 2)
    burst = request_body(chunks=STREAM_CHUNKS, model=model)
    return {
        "json": common,
        "latency": change(common, rate=effort.rate, seconds=2 * effort.seconds),
        "burst": change(common, stream=True, connections=16, body=burst),
        "chunks": change(streams, connections=effort.streams, body=paced),
    }


def figures(scenario: str, outcome: Outcome) -> Figures:
    """The figures a scenario stands for, named as in `results.FIGURES`."""
    cpu_us, seconds = outcome.cpu_ns / 1000, outcome.seconds
    found: Figures = {}
    if scenario == "json":
        found = {"requests_per_s": outcome.answers / seconds}
        found["cpu_us_per_request"] = cpu_us / outcome.answers
    elif scenario == "latency" and outcome.latency:
        latency = outcome.latency
        found = {"p50_us": latency.p50, "p95_us": latency.p95, "p99_us": latency.p99}
    elif scenario == "chunks":
        found = {"chunks_per_s": outcome.chunks / seconds}
        found["cpu_us_per_chunk"] = cpu_us / outcome.chunks
        if outcome.first_chunk:
            found["first_chunk_p50_us"] = outcome.first_chunk.p50
        if outcome.chunk:
            found |= {"chunk_p50_us": outcome.chunk.p50, "chunk_p99_us": outcome.chunk.p99}
    elif scenario == "burst":
        found = {"bursts_per_s": outcome.answers / seconds}
        found["cpu_us_per_burst"] = cpu_us / outcome.answers
    if not outcome.cpu_ns:  # nobody's CPU was watched
        return {name: value for name, value in found.items() if not name.startswith("cpu")}
    return {**found, f"waited_{scenario}": 100 * outcome.waited_ns / 1e9 / seconds}


@dataclass(slots=True)
class Bench:
    """A run: `names` of targets, their scenarios, the effort, and whom to tell of each step."""

    names: Sequence[str]
    scenarios: Sequence[str]
    effort: Effort
    tell: Tell
    ran: Ran = field(default_factory=Ran)
    down: set[str] = field(default_factory=set)  # did not start once, so is not tried again
    cores: tuple[int, int] | None = field(default_factory=machine.two_cores)

    @property
    def steps(self) -> int:
        return self.effort.repeat * len(self.names) * (1 + len(self.loaded))

    @property
    def loaded(self) -> list[str]:
        return [scenario for scenario in LOADS if scenario in self.scenarios]

    @property
    def target_core(self) -> int | None:
        return self.cores[0] if self.cores else None

    @property
    def load_core(self) -> int | None:
        return self.cores[1] if self.cores else None

    def run(self) -> Ran:
        """Measure every target in front of the mock. Needs Linux: it reads other programs' CPU."""
        with tempfile.TemporaryDirectory(prefix="passy-bench-") as folder, ExitStack() as stack:
            stack.enter_context(machine.pinned(self.load_core))
            site, mock_pid = stack.enter_context(self.mock(Path(folder)))
            targets = self.build(site)
            for repetition in range(self.effort.repeat):
                shift = repetition % max(1, len(targets))
                for target in targets[shift:] + targets[:shift]:
                    if target.name not in self.down:
                        self.visit(target, repetition, mock_pid)
        return self.ran

    def run_url(self, target: Target, model: str) -> Ran:
        """Measure something that runs already, from outside."""
        self.ran.versions[target.name] = target.version
        with machine.pinned(self.load_core):
            for repetition in range(self.effort.repeat):
                self.tell(f"{target.name}: warm-up")
                self.load(target, repetition, [], model)
        return self.ran

    @contextmanager
    def mock(self, folder: Path) -> Iterator[tuple[Site, int]]:
        site = Site(folder, machine.free_port(), self.load_core)
        program = Program(
            command=[sys.executable, "-m", "passy_bench.mock", "--port", str(site.mock_port)],
            folder=site.room("mock"),
            env={"PYTHONPATH": str(CHECKOUT / "bench")},
            core=self.load_core,
        )
        with site.stack, running(program) as child:
            log = program.folder / "output.log"
            first_answer(child, log, site.mock, (request_body(), {}))
            yield site, child.pid

    def build(self, site: Site) -> list[Target]:
        targets = []
        for name in self.names:
            try:
                builder = BUILDERS.get(name)
                target = builder(site) if builder else against(site, name)
            except LeftOut as reason:
                self.ran.left_out[name] = str(reason)
                continue
            except BenchError as problem:
                self.ran.failures.append(f"{name}: {problem}")
                continue
            targets.append(target)
            self.ran.versions[target.name] = target.version
        return targets

    def visit(self, target: Target, repetition: int, mock_pid: int) -> None:
        """Start the target, put it under each load, stop it."""
        self.tell(f"{target.name}: start")
        if not target.command:
            self.load(target, repetition, [mock_pid], MODEL)
            return
        program = Program(
            command=target.command, folder=target.folder, env=target.env, core=self.target_core
        )
        began = time.perf_counter()
        with running(program) as child:
            try:
                log = target.folder / "output.log"
                first_answer(child, log, target.url, (request_body(), target.headers))
            except BenchError as problem:
                self.ran.failures.append(f"{target.name}, start: {problem}")
                self.down.add(target.name)
                return
            start = time.perf_counter() - began
            pids = machine.session_pids(child.pid)
            idle = machine.rss_mb(pids)
            self.load(target, repetition, pids, MODEL)
            found = {"start_s": start, "rss_idle_mb": idle}
            if self.loaded:
                found["rss_loaded_mb"] = machine.rss_mb(machine.session_pids(child.pid))
            wanted = {"start": ("start_s",), "rss": ("rss_idle_mb", "rss_loaded_mb")}
            names = [name for key in self.scenarios for name in wanted.get(key, ())]
            self.ran.samples.add(
                target.name, repetition, {name: found[name] for name in names if name in found}
            )

    def load(self, target: Target, repetition: int, pids: list[int], model: str) -> None:
        for scenario, load in loads(target, self.effort, model).items():
            if scenario not in self.scenarios:
                continue
            self.tell(f"{target.name}: {scenario}")
            try:
                outcome = self.measure(msgspec.structs.replace(load, pids=pids))
            except BenchError as problem:
                self.ran.failures.append(f"{target.name}, {scenario}: {problem}")
                continue
            self.ran.samples.add(target.name, repetition, figures(scenario, outcome))

    def measure(self, load: Load) -> Outcome:
        """One load in a process of its own. Raises BenchError unless every answer was good."""
        child = subprocess.Popen(  # on the core of the load, as this process is
            [sys.executable, "-m", "passy_bench.load"],
            env={**ENVIRONMENT, "PYTHONPATH": str(CHECKOUT / "bench")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            limit = load.warmup + load.seconds + _LOAD_GRACE
            given = msgspec.json.encode(load)
            answer, complaint = child.communicate(given, timeout=limit)
        except subprocess.TimeoutExpired as late:
            raise BenchError(f"the load did not end within {limit:.0f} s") from late
        finally:
            stop(child)
        if child.returncode:
            raise BenchError(complaint.decode(errors="replace").strip().rpartition("\n")[2])
        outcome = msgspec.json.decode(answer, type=Outcome)
        if outcome.failed:
            bad, first = outcome.failed, outcome.first_failure
            raise BenchError(f"{bad} of {bad + outcome.answers} requests failed, first: {first}")
        if not (outcome.chunks if load.stream else outcome.answers):
            raise BenchError("no answer came while counting")
        return outcome


def answers_streams(target: Target, model: str) -> bool:
    """Whether a URL answers a chat completion, and with events when asked to stream."""
    status, answer = ask(target.url, request_body(model=model), target.headers)
    if status != 200:
        raise BenchError(f"{target.url} answered {status}: {answer[:300].decode(errors='replace')}")
    status, answer = ask(target.url, request_body(chunks=1, model=model), target.headers)
    return status == 200 and b"data: {" in answer

"""`passy bench`: its figures have a shape, its programs end with it, it loads nobody else."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness.gateway import until

importlib.import_module("passy_proxy.cli.bench")  # puts `bench/` on the path
results = importlib.import_module("passy_bench.results")
targets = importlib.import_module("passy_bench.targets")

PASSY = [sys.executable, "-c", "from passy_proxy.cli import main; main()", "bench"]
SMALL = ["--seconds", "0.2", "--repeat", "1", "--connections", "4", "--streams", "4"]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux shows the CPU time of other programs"
)


def bench(*arguments: str, limit: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PASSY, *arguments], capture_output=True, text=True, timeout=limit, check=False
    )


def test_a_short_run_saves_every_figure_of_each_target(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = bench("--targets", "direct,stock", *SMALL, "--json", str(file))
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    found = json.loads(file.read_bytes())
    assert {"direct", "stock"} == found["targets"].keys()
    assert [] == found["failures"]
    medians = found["targets"]["stock"]["medians"]
    assert list(results.FIGURES) == list(medians)
    relative = {name for name in medians if name.startswith(("added_", "waited_"))}
    assert all(figure["median"] > 0 for name, figure in medians.items() if name not in relative)
    assert medians.keys() - relative - found["targets"]["direct"]["medians"].keys() == {
        "start_s",
        "rss_idle_mb",
        "rss_loaded_mb",
    }
    assert {"date", "machine", "versions", "effort", "ratios"} <= found.keys()
    assert "CPU µs/request" in ended.stdout


@pytest.mark.large
def test_a_gateway_on_a_valkey_and_a_postgresql_is_compared_with_the_embedded_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "figures.json"
    few = [*SMALL, "--scenarios", "json", "--json", str(file)]
    ended = bench("--targets", "passy,scaled", *few)
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    found = json.loads(file.read_bytes())
    assert ([], {}) == (found["failures"], found["left_out"])
    assert found["ratios"]["scaled"]["passy"]["cpu_us_per_request"]["median"] > 0
    assert [] == list(
        Path(tempfile.gettempdir()).glob("passy-bench-postgres-*/data/postmaster.pid")
    )


def test_only_the_named_scenarios_are_run(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    bench("--targets", "direct", "--scenarios", "json", *SMALL, "--json", str(file))
    medians = json.loads(file.read_bytes())["targets"]["direct"]["medians"]
    assert ["cpu_us_per_request", "requests_per_s", "waited_json"] == list(medians)


OTHER = """
import json, sys
import uvloop, yaml
sys.path.append({bench!r})
from passy_bench import mock

def main():
    if sys.argv[1:3] == ["keys", "create"]:
        print(json.dumps({{"key": "sk-passy-other"}}))
    else:
        config = sys.argv[sys.argv.index("--config") + 1]
        port = yaml.safe_load(open(config))["listen"].partition(":")[2]
        uvloop.run(mock.serve(int(port)))
"""


def test_another_checkout_is_run_from_its_own_sources(tmp_path: Path) -> None:
    other, file = tmp_path / "other", tmp_path / "figures.json"
    (other / "proxy" / "passy_proxy").mkdir(parents=True)
    source = OTHER.format(bench=str(Path(__file__).parents[1] / "bench"))
    (other / "proxy" / "passy_proxy" / "__init__.py").touch()
    (other / "proxy" / "passy_proxy" / "cli.py").write_text(source)
    (other / "config").mkdir()
    (other / "config" / "gateway.yaml").write_text("listen: 127.0.0.1:8080\n")
    (other / "pyproject.toml").write_text("[project]\nname = 'passy-gateway'\nversion = '0'\n")
    only = ["--targets", "direct", "--scenarios", "json,start"]
    ended = bench(*only, "--against", str(other), *SMALL, "--json", str(file))
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    target = json.loads(file.read_bytes())["targets"]["against"]
    assert "other" == target["version"]
    assert {"cpu_us_per_request", "start_s"} <= target["medians"].keys()


def test_a_target_that_cannot_start_is_a_failure_and_the_others_are_measured(
    tmp_path: Path,
) -> None:
    file = tmp_path / "figures.json"
    only = ["--targets", "direct", "--scenarios", "json"]
    ended = bench(*only, "--against", "no-such-commit", *SMALL, "--json", str(file))
    assert 1 == ended.returncode
    found = json.loads(file.read_bytes())
    assert ["no-such-commit: neither a folder nor a commit of this checkout"] == found["failures"]
    assert found["targets"]["direct"]["medians"]["requests_per_s"]["median"] > 0


def test_an_unknown_target_is_a_usage_error_that_names_the_known_ones() -> None:
    ended = bench("--targets", "direct,apache")
    assert 2 == ended.returncode
    assert "'apache' is none of direct, nginx, envoy, stock, passy" in ended.stderr


def test_a_url_that_is_not_on_this_machine_is_refused() -> None:
    ended = bench("http://192.0.2.1/v1")
    assert 2 == ended.returncode
    assert "192.0.2.1 is not this machine" in ended.stderr
    assert "--i-own-this" in ended.stderr


def test_a_url_on_this_machine_is_measured_from_outside(tmp_path: Path) -> None:
    plan = importlib.import_module("passy_bench.plan")
    file = tmp_path / "figures.json"
    run = plan.Bench(["direct"], [], plan.Effort(), lambda step: None)
    with run.mock(tmp_path) as (site, _):
        ended = bench(f"{site.mock}/v1", *SMALL, "--json", str(file))
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    found = json.loads(file.read_bytes())["targets"]
    [(name, target)] = found.items()
    assert site.mock == f"http://{name}"
    expected = {
        "requests_per_s",
        "p50_us",
        "p95_us",
        "p99_us",
        "chunks_per_s",
        "first_chunk_p50_us",
        "chunk_p50_us",
        "chunk_p99_us",
        "bursts_per_s",
    }
    assert expected == target["medians"].keys()
    assert all(figure["median"] > 0 for figure in target["medians"].values())


class Refusal(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429)
        self.send_header("content-length", "8")
        self.end_headers()
        self.wfile.write(b"too fast")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_a_url_that_refuses_gives_its_answer_instead_of_figures() -> None:
    with refusing() as url:
        ended = bench(url, *SMALL)
    assert 1 == ended.returncode
    assert "answered 429: too fast" in ended.stderr


def test_an_interrupted_run_leaves_no_program_behind() -> None:
    run = subprocess.Popen(
        [*PASSY, "--targets", "stock", "--scenarios", "json", "--seconds", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        mock, stock, load = (
            child_of(run.pid, f"passy_bench.{name}") for name in ("mock", "stock", "load")
        )
        run.send_signal(signal.SIGINT)
        assert 130 == run.wait(120)
    finally:
        run.kill()
        run.wait()
    until(lambda: not any(map(runs, (mock, stock, load))) or None)


def runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def child_of(parent: int, module: str) -> int:
    """The pid of the child that runs `module`, once there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ppid = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if ppid == str(parent) and module in words:
                return int(folder.name)
        time.sleep(0.02)
    raise AssertionError(f"{module} was never started")


def test_ratios_compare_within_a_repetition() -> None:
    samples = results.Samples()
    for repetition, (mine, theirs) in enumerate([(20.0, 10.0), (90.0, 30.0), (8.0, 8.0)]):
        samples.add("passy", repetition, {"cpu_us_per_request": mine})
        samples.add("envoy", repetition, {"cpu_us_per_request": theirs})
    expected = results.Median(median=2.0, low=1.0, high=3.0, count=3)
    assert expected == samples.ratios()["passy"]["envoy"]["cpu_us_per_request"]


def test_a_repetition_without_the_yardstick_makes_no_ratio() -> None:
    samples = results.Samples()
    samples.add("passy", 0, {"cpu_us_per_request": 20.0})
    samples.add("envoy", 1, {"cpu_us_per_request": 10.0})
    assert {} == samples.ratios()


def test_latency_is_shown_as_what_is_added_to_the_direct_line() -> None:
    samples = results.Samples()
    samples.add("direct", 0, {"p50_us": 200.0})
    samples.add("passy", 0, {"p50_us": 650.0})
    whole = samples.complete()
    assert 450.0 == whole.medians("passy")["added_p50_us"].median
    assert "added_p50_us" not in whole.medians("direct")


def test_the_measured_gateway_differs_only_by_the_mock_and_by_its_limits() -> None:
    chain = ["access_log", {"rate_limit": {"counters": "state", "requests": "60/min"}}, "alias"]
    document = {
        "listen": "127.0.0.1:8080",
        "upstreams": {"echo": {"kind": "echo"}},
        "models": {"echo": ["echo/echo"]},
        "chains": {"default": chain},
    }
    settings = targets.gateway_settings(document, "http://127.0.0.1:9", 10)
    assert "127.0.0.1:10" == settings["listen"]
    assert {"kind": "echo"} == settings["upstreams"]["echo"]
    assert "http://127.0.0.1:9/v1" == settings["upstreams"]["mock"]["url"]
    assert ["mock/gpt-4o-mini"] == settings["models"]["bench"]
    limited = {"rate_limit": {"counters": "state", "requests": "1000000000/min"}}
    assert ["access_log", limited, "alias"] == settings["chains"]["default"]

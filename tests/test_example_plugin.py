"""The example package of the tutorial, as a stranger would use it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from harness.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs/examples/prompt_cap"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with passy's wheel, its locked dependencies and the example's
    wheel."""
    room = tmp_path_factory.mktemp("fresh")
    wheels, python = room / "wheels", room / "venv/bin/python"
    uv = [Path(sys.executable).with_name("uv"), "--quiet"]
    for package in (ROOT, EXAMPLE):
        source = room / package.name
        # Some of it is written by other tests at this moment.
        left_out = shutil.ignore_patterns(
            ".venv", ".git", "node_modules", ".*_cache", ".hypothesis", "__pycache__"
        )
        shutil.copytree(package, source, ignore=left_out)
        here = ["--python", sys.executable, "--no-build-isolation", "--wheel"]
        subprocess.run([*uv, "build", *here, "--out-dir", wheels, source], check=True)
    subprocess.run([*uv, "venv", "--python", sys.executable, room / "venv"], check=True)
    install = [*uv, "pip", "install", "--python", python]
    subprocess.run([*install, "--require-hashes", "-r", ROOT / "requirements.lock"], check=True)
    subprocess.run([*install, "--no-deps", *wheels.glob("*.whl")], check=True)
    return python


def test_its_own_tests_pass(fresh: Path) -> None:
    # pytest itself comes from this environment; the plugin and passy from the fresh one.
    site = Path(pytest.__file__).parents[1]
    code = (
        f"import sys; sys.path.append({str(site)!r}); "
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [fresh, "-c", code, "-q", "-p", "no:cacheprovider", "tests"],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


def test_a_gateway_that_names_it_refuses_long_prompts(fresh: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [fresh.with_name("passy"), "serve", "--config", EXAMPLE / "gateway.yaml"]
    gateway = subprocess.Popen(
        [*command, "--data", tmp_path, "--listen", f"127.0.0.1:{port}"],
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    try:
        status, body = ask(port, "short")
        assert (200, "short") == (status, body["choices"][0]["message"]["content"])
        status, body = ask(port, "x" * 41)
        assert (413, "prompt_too_long") == (status, body["error"]["code"])
        assert "41 characters; the limit is 40." == body["error"]["message"]
    finally:
        gateway.terminate()
        time.sleep(0.1)
        gateway.terminate()  # Nobody needs the lame-duck time here.
        gateway.wait(90)


def test_its_settings_are_checked_and_shown_like_ours(fresh: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "gateway.yaml"
    wrong.write_text((EXAMPLE / "gateway.yaml").read_text().replace("max_chars", "max_char"))
    passy = fresh.with_name("passy")
    ran = subprocess.run([passy, "check", wrong], capture_output=True, text=True, cwd=tmp_path)
    assert 78 == ran.returncode
    assert "gateway.yaml:8:20" in ran.stderr
    assert "did you mean 'max_chars'?" in ran.stderr
    shown = subprocess.run(
        [passy, "plugins", "prompt_cap", "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    [plugin] = json.loads(shown.stdout)
    assert "passy-prompt-cap" == plugin["distribution"]
    assert 20_000 == plugin["parts"][0]["settings"]["max_chars"]["default"]


def ask(port: int, text: str) -> tuple[int, dict]:
    """One chat completion; waits for the gateway to listen."""
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, body.encode(), timeout=90) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the gateway does not listen")


def test_an_installed_gateway_starts_in_an_empty_folder(fresh: Path, tmp_path: Path) -> None:
    """Without a checkout: what it runs with and the portal's pages are in the wheel."""
    port = free_port()
    home = tmp_path / "home"
    home.mkdir()
    gateway = subprocess.Popen(
        [fresh.with_name("passy"), "up"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PORT": str(port)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert gateway.stdout is not None
        told = ""
        while "first request" not in told:
            line = gateway.stdout.readline()
            assert line, told
            told += line
        assert "config built-in" in told
        assert "echo → 200" in told
        link = next(word for word in told.split() if "/portal/first?link=" in word)
        page = read(link)
        for path in ("/portal/static/portal.css", "/portal/static/portal.js"):
            assert path in page
            assert read(f"http://127.0.0.1:{port}{path}")
    finally:
        gateway.terminate()
        gateway.communicate(timeout=90)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=90) as answer:
        assert 200 == answer.status
        return str(answer.read().decode())

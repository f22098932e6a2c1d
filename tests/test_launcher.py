"""`./passy`: from a fresh checkout to a running command, and what may go wrong on the way.

The checkouts here are small: the real launcher, one locked package, a build backend of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHON = os.path.realpath(sys.executable)
UV = Path(sys.executable).with_name("uv")
PATIENCE = 120.0

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1"
"""

BACKEND = """\
import os, zipfile
from pathlib import Path

COMMAND = "def main():\\n    import sys, thing\\n    print(thing.NAME, *sys.argv[1:])\\n"
FILES = {
    "tiny.py": COMMAND,
    "tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n",
    "tiny-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "tiny-1.dist-info/entry_points.txt": "[console_scripts]\\npassy = tiny:main\\n",
    "tiny-1.dist-info/RECORD": "",
}

def build_editable(directory, config_settings=None, metadata_directory=None):
    if "TINY_HOLD" in os.environ:
        Path(os.environ["TINY_HOLD"]).read_text()
    with zipfile.ZipFile(Path(directory, "tiny-1-py3-none-any.whl"), "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    return "tiny-1-py3-none-any.whl"
"""


def wheel(folder: Path, name: str) -> str:
    """Put a wheel of one module into the folder; gives the line that locks it."""
    about = f"{name}-1.dist-info"
    file = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"NAME = {name!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return f"{name}==1 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


@dataclass
class Checkout:
    """A small project with the real launcher, on a machine with Python, perhaps uv, no network."""

    root: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "passy"), *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def has(self, module: str) -> bool:
        """Whether a file is among the installed packages."""
        return any(self.root.glob(f".venv/lib/*/site-packages/{module}"))

    @contextmanager
    def held(self) -> Iterator[subprocess.Popen[str]]:
        """A first run that waits in the middle of its installation until the block ends."""
        hold = self.root / "hold"
        os.mkfifo(hold)
        process = self.start(TINY_HOLD=str(hold))
        with hold.open("w"):  # opens when the build backend has come to it
            yield process
        hold.unlink()


@dataclass
class Installed(Checkout):
    """A checkout after its first run."""

    first: tuple[int, str, str]


def checkout(folder: Path, *, uv: bool) -> Checkout:
    root, tools, wheels = folder / "checkout", folder / "bin", folder / "wheels"
    for place in (root, tools, wheels):
        place.mkdir()
    shutil.copy(ROOT / "passy", root)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    for name in ("build", "model", "dev", "bench"):
        (root / f"requirements-{name}.lock").touch()
    (root / "requirements.lock").write_text(wheel(wheels, "thing"))
    (root / "requirements-test.lock").write_text(wheel(wheels, "more"))
    for tool in ("sh", "cat", "cksum", "dirname", "readlink", "rm"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    if uv:
        (tools / "uv").symlink_to(UV)
    environment = {"PATH": str(tools), "HOME": str(folder), "PASSY_PYTHON": PYTHON}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    environment |= {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(wheels)}
    return Checkout(root, environment)


@pytest.fixture(scope="module", params=["pip", "uv"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    fresh = checkout(tmp_path_factory.mktemp(request.param), uv=request.param == "uv")
    return Installed(fresh.root, fresh.environment, fresh.run("up", "--port", "1"))


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    return checkout(tmp_path, uv=True)


def test_the_first_run_installs_from_the_locks_and_runs_the_command(installed: Installed) -> None:
    code, out, err = installed.first
    assert (0, "thing up --port 1\n") == (code, out), err
    assert "building .venv" in err
    assert "installing requirements.lock" in err


def test_a_later_run_needs_no_package_index_and_says_nothing(installed: Installed) -> None:
    nowhere = str(installed.root / "nowhere")
    ran = installed.run("up", PIP_FIND_LINKS=nowhere, UV_FIND_LINKS=nowhere)

    assert (0, "thing up\n", "") == ran


def test_a_command_with_an_extra_installs_it_once(installed: Installed) -> None:
    assert not installed.has("more.py")

    code, out, err = installed.run("test", "-x")
    assert (0, "thing test -x\n") == (code, out), err
    assert "requirements-test.lock" in err
    assert "building" not in err
    assert installed.has("more.py")

    assert (0, "thing test\n", "") == installed.run("test")


def test_a_changed_project_file_is_installed_again(installed: Installed) -> None:
    with (installed.root / "pyproject.toml").open("a") as project:
        project.write("# another entry point, say\n")

    code, out, err = installed.run()
    assert (0, "thing\n") == (code, out), err
    assert "installing" in err
    assert "building" not in err


@pytest.mark.parametrize("uv", [False, True], ids=["pip", "uv"])
def test_a_package_with_another_hash_is_refused(uv: bool, tmp_path: Path) -> None:
    victim = checkout(tmp_path, uv=uv)
    with zipfile.ZipFile(tmp_path / "wheels/thing-1-py3-none-any.whl", "a") as archive:
        archive.writestr("stowaway.py", "")

    code, out, err = victim.run("up")
    assert code != 0
    assert "" == out
    assert "hash" in err.lower()
    assert not victim.has("stowaway.py")


def test_a_moved_checkout_is_built_anew(fresh: Checkout) -> None:
    fresh.run()
    fresh.root = fresh.root.rename(fresh.root.with_name("moved"))

    code, out, err = fresh.run()
    assert (0, "thing\n") == (code, out), err
    assert "building .venv" in err


def test_it_works_from_elsewhere_and_through_links(fresh: Checkout, tmp_path: Path) -> None:
    fresh.run()
    elsewhere = tmp_path / "a folder"
    elsewhere.mkdir()
    (elsewhere / "relative").symlink_to(Path("..", "checkout", "passy"))
    (elsewhere / "twice").symlink_to("relative")

    for command in (["./twice"], ["sh", "relative"], [str(elsewhere / "twice")]):
        ran = subprocess.run(
            command, cwd=elsewhere, env=fresh.environment, capture_output=True, text=True
        )
        assert ("thing\n", "") == (ran.stdout, ran.stderr)


def test_an_interrupted_installation_is_built_anew(fresh: Checkout) -> None:
    with fresh.held() as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    assert (fresh.root / ".venv").is_dir()

    code, out, err = fresh.run()
    assert (0, "thing\n") == (code, out), err
    assert "building .venv" in err


def test_a_second_launcher_waits_for_the_first(fresh: Checkout) -> None:
    with fresh.held() as first:
        second = fresh.start("second")
        assert second.stderr
        assert "waiting for another ./passy" in second.stderr.readline()
    assert ("thing\n", 0) == (first.communicate(timeout=PATIENCE)[0], first.returncode)
    assert ("thing second\n", "") == second.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(("took", "taken"), [(700, "b"), (900, "a")])
def test_of_several_pythons_the_first_is_taken_unless_one_is_much_faster(
    took: int, taken: str, tmp_path: Path
) -> None:
    fresh = checkout(tmp_path, uv=False)
    for name, python, time in (("python3.13", "a", 1000), ("python3.11", "b", took)):
        found = tmp_path / "bin" / name
        found.write_text(f"#!/bin/sh\necho 3.13 {time} /nowhere/{python}\n")
        found.chmod(0o755)
    _, _, err = fresh.run("up", PASSY_PYTHON="")
    assert f"/nowhere/{taken}:" in err, "which is then called, and is not there"


def test_a_machine_without_a_fitting_python_is_told_so(fresh: Checkout) -> None:
    code, out, err = fresh.run("up", PASSY_PYTHON="false")
    assert (69, "") == (code, out)
    assert "passy: needs Python 3.11 or newer, which PASSY_PYTHON=false is not\n" == err
    assert not (fresh.root / ".venv").exists()


def test_a_python_without_venv_is_told_the_package_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    without = 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv.pop())'
    bare.write_text(f"#!/bin/sh\nexec {PYTHON} -c '{without}' \"$2\"\n")
    bare.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"

    code, out, err = checkout(tmp_path, uv=False).run("up", PASSY_PYTHON=str(bare))
    assert (69, "") == (code, out)
    assert err.endswith(f": apt install python{version}-venv\n")


LOCKS = sorted(ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_and_hashes_every_package_and_names_no_host(lock: Path) -> None:
    entries = lock.read_text().replace("\\\n", " ").splitlines()
    pins = [entry for entry in entries if not entry.startswith("#")]

    assert pins
    assert [] == [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin]
    assert "://" not in lock.read_text()


def test_the_locks_agree_with_the_project_and_with_each_other() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = document["project"]["optional-dependencies"]
    asked = {
        "": document["project"]["dependencies"],
        "-build": document["build-system"]["requires"],
    }
    asked |= {f"-{extra}": extras[extra] for extra in ("test", "dev", "bench", "fuzz")}
    runtime = pinned("")

    for name, requirements in asked.items():
        pins = pinned(name)
        for requirement in map(Requirement, requirements):
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            assert pins[requirement.name.lower()] in requirement.specifier
        assert {} == {
            package: version
            for package, version in pins.items()
            if runtime.get(package, version) != version
        }


def pinned(name: str) -> dict[str, str]:
    """Package → version in one lock file."""
    lines = (ROOT / f"requirements{name}.lock").read_text().splitlines()
    found = [Requirement(line.rstrip(" \\")) for line in lines if line[:1].isalnum()]
    found = [one for one in found if one.marker is None or one.marker.evaluate()]
    return {package.name: str(package.specifier).removeprefix("==") for package in found}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_import_no_command(option: str) -> None:
    program = (
        "import sys\nfrom passy_proxy.cli import cli\n"
        f"cli.main([{option!r}], prog_name='passy', standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('passy_proxy.cli.')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert ran.stdout.splitlines()[0].startswith(
        "passy 0." if "version" in option else "Usage: passy"
    )
    assert "[]" == ran.stdout.splitlines()[-1]


def passy(*arguments: str) -> tuple[int, str]:
    """Exit code and all output of the installed command."""
    command = Path(sys.executable).with_name("passy")
    ran = subprocess.run(
        [command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, ran.stdout


def test_the_test_command_hands_arguments_to_pytest_and_its_exit_code_back() -> None:
    code, out = passy("test", "--fast", "--collect-only", "-khost", "tests/test_layers.py")
    assert pytest.ExitCode.NO_TESTS_COLLECTED == code
    assert "deselected" in out.splitlines()[-1]


def test_the_test_command_leaves_the_large_tests_to_those_who_ask(tmp_path: Path) -> None:
    file = tmp_path / "test_marked.py"
    tests = [f"@pytest.mark.{marker}\ndef test_{marker}(): pass" for marker in ("large", "node")]
    file.write_text("\n".join(["import pytest", *tests, "def test_plain(): pass"]))

    def collected(*options: str) -> int:
        config = ("-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider")
        return passy("test", *options, *config, "--collect-only", "-q", str(file))[1].count("::")

    assert 2 == collected()
    assert 1 == collected("--fast")
    assert 3 == collected("--large")


def test_a_mistyped_command_is_told_the_nearest() -> None:
    code, out = passy("tset")
    assert 2 == code
    assert "Did you mean 'test'?" in out

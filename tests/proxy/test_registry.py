"""Plugins: found by name, imported only when named, and told where they came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from passy_proxy import Filter, hookimpl
from passy_proxy import registry as module
from passy_proxy.registry import BadPlugin, Registry

Install = Callable[[str, str], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution on the path: its name, and the source of its only module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        record = tmp_path / f"{name}-1.2.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (record / "entry_points.txt").write_text(f"[passy]\n{name} = {name}\n")

    return install


ROGUE = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
GOOD = """
from passy_proxy import Filter, hookimpl

class Good(Filter):
    name = "visiting"

@hookimpl
def passy_filters():
    return [Good]
"""


def test_what_is_installed_and_not_named_is_not_imported(
    installed: Install, tmp_path: Path
) -> None:
    installed("rogue_plugin", ROGUE)
    registry = Registry()
    assert "rogue_plugin" in registry.installed()
    assert registry.filter("alias") is not None
    assert registry.filter("nothing_of_the_kind") is None
    assert "rogue_plugin" not in sys.modules
    assert not (tmp_path / "rogue_plugin.ran").exists()

    registry.load("rogue_plugin")
    assert (tmp_path / "rogue_plugin.ran").exists()


def test_a_start_imports_no_plugin_that_its_configuration_does_not_name(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
import structlog
from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.site import Site
from passy_proxy.testing import KEYRING
text = "{{upstreams: {{echo: {{kind: echo}}}}, routes: [{{match: GET /x, chain: [static]}}]}}"
parts = Parts(Registry(), Shared(), Site(Path({str(tmp_path)!r}), KEYRING), structlog.get_logger())
build(layers(parse(text, "x", {{}}), {{}}), parts, "hash")
print(sorted(name for name in sys.modules if name.startswith("passy_plugins.")))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = ended.stdout
    assert "passy_plugins.static" in loaded
    assert "passy_plugins.echo" in loaded
    for other in ("fallback", "auth", "stores", "anthropic", "byok"):
        assert f"passy_plugins.{other}" not in loaded


def test_a_plugin_of_somebody_else_brings_a_filter(installed: Install) -> None:
    installed("visiting", GOOD)
    registry = Registry()
    kind = registry.filter("visiting")
    assert kind is not None
    assert issubclass(kind, Filter)
    plugin = registry.loaded["visiting"]
    assert ("visiting", "1.2", [kind]) == (plugin.distribution, plugin.version, plugin.filters)
    assert plugin is registry.load("visiting")


def test_a_plugin_that_cannot_be_imported_says_whose_it_is(installed: Install) -> None:
    installed("broken_plugin", "import nothing_of_the_kind")
    with pytest.raises(BadPlugin, match=r"'broken_plugin' of broken_plugin .*nothing_of_the_kind"):
        Registry().filter("broken_plugin")


def test_a_misspelt_process_hook_is_refused(installed: Install) -> None:
    installed("misspelt_plugin", GOOD.replace("passy_filters", "passy_filtres"))
    with pytest.raises(BadPlugin, match="passy_filtres"):
        Registry().load("misspelt_plugin")


def test_two_distributions_may_not_bring_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("twin", f"{owner}.twin", "passy") for owner in ("one", "two")]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    with pytest.raises(BadPlugin, match="both bring a plugin named 'twin'"):
        Registry().load("twin")


def test_an_embedder_hands_its_plugin_in() -> None:
    class Own(Filter):
        name = "own"

    class Plugin:
        @hookimpl
        def passy_filters(self) -> list[type[Filter]]:
            return [Own]

    registry = Registry()
    registry.add("own", Plugin())
    assert Own is registry.filter("own")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("filter", "alias"), ("dialect", "openai"), ("store", "memory"), ("upstream", "echo")],
)
def test_what_we_bring_comes_in_by_the_same_door(kind: str, name: str) -> None:
    registry = Registry()
    look_up = getattr(registry, kind)
    assert look_up(name) is not None
    assert "passy-gateway" == registry.loaded[name].distribution
    assert look_up("nothing_of_the_kind") is None

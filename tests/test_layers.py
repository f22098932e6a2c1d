"""Imports point inward: portal → plugins → proxy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INWARD = {"passy_portal": "portal_service", "passy_plugins": "plugins", "passy_proxy": "proxy"}
"""Package → its folder, the outermost first."""


def imported(source: str) -> Iterator[str]:
    """The modules that a file imports: at the top, in functions, and for type checkers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def outward(package: str, source: str) -> list[str]:
    """The imports in a file of `package` that name a package further out."""
    order = list(INWARD)
    forbidden = order[: order.index(package)]
    return [name for name in imported(source) if name.partition(".")[0] in forbidden]


@pytest.mark.parametrize("package", INWARD)
def test_no_file_imports_a_package_further_out(package: str) -> None:
    files = sorted((ROOT / INWARD[package] / package).rglob("*.py"))
    found = {str(file.relative_to(ROOT)): outward(package, file.read_text()) for file in files}

    assert found
    assert {} == {file: names for file, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import passy_portal", ["passy_portal"]),
        ("def f() -> None:\n    from passy_portal.app import App", ["passy_portal.app"]),
        ("if TYPE_CHECKING:\n    import passy_proxy, passy_portal.app", ["passy_portal.app"]),
        ("from passy_proxy import Filter\nfrom . import passy_portal", []),
    ],
)
def test_an_outward_import_is_found_wherever_it_hides(source: str, expected: list[str]) -> None:
    assert expected == outward("passy_plugins", source)

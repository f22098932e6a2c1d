"""Catalogues: cases as data, one YAML file each, read by the tests as parameters.

A catalogue is a list of mappings; each has a ``name`` of its own. Bytes are written as text whose
characters are bytes (``"\\x00"``, ``"\\r\\n"``); `raw` makes them so. For long ones there is
``{repeat: "a", times: 9000}``, for others than latin-1 ``{utf8: "…"}``; a list is joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast."""
FOLDER = Path(__file__).parents[1] / "promises/catalogues"


def entries(name: str) -> list[dict[str, Any]]:
    """The cases of ``catalogues/<name>.yaml``, in order."""
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    found: list[dict[str, Any]] = yaml.load(text, LOADER)
    names = [entry["name"] for entry in found]
    twice = {each for each in names if names.count(each) > 1}
    assert not twice, f"{name}.yaml names cases twice: {sorted(twice)}"
    return found


def cases(name: str) -> list[Any]:
    """The same as parameters, each with its name as id."""
    return [pytest.param(entry, id=entry["name"]) for entry in entries(name)]


def raw(written: str | dict[str, Any] | list[Any]) -> bytes:
    """The bytes that a catalogue writes down."""
    if isinstance(written, str):
        return written.encode("latin-1")
    if isinstance(written, list):
        return b"".join(raw(part) for part in written)
    if "utf8" in written:
        return str(written["utf8"]).encode()
    return raw(written["repeat"]) * int(written["times"])

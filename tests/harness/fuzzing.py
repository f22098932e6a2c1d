"""Fuzz targets: where they are, what they begin with, and what they once found."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import fuzz
import yaml

from harness.catalogue import FOLDER, raw

CRASHES = Path(fuzz.__file__).with_name("crashes")
LONGEST_SEED = 64 << 10

TARGETS = sorted(
    module.name for module in pkgutil.iter_modules(fuzz.__path__) if module.name != "run"
)


def target(name: str) -> Any:
    """The module of a target."""
    return import_module(f"fuzz.{name}")


def seeds(name: str) -> list[bytes]:
    """What to begin with: the target's own, and those of every catalogue that is named like it.

    A case of a catalogue gets two bytes before it where the target's own have them, which is what
    chooses the splits.
    """
    module = target(name)
    found = list(module.SEEDS)
    steered = name in ("edge", "sse")
    for path in sorted(FOLDER.rglob("*.yaml")):
        if any(word in str(path.relative_to(FOLDER)) for word in module.WORDS):
            for text in written(yaml.safe_load(path.read_text("utf-8"))):
                found.append(b"\0" * (1 + (name == "sse")) * steered + text)
    return found


def written(value: Any) -> Iterator[bytes]:
    """All the bytes that stand in a catalogue, long ones left out."""
    if isinstance(value, str) and len(value) > 3:
        try:
            yield raw(value)
        except UnicodeEncodeError:
            yield value.encode()
    elif isinstance(value, list):
        parts = [part for each in value for part in written(each)]
        yield from parts
        joined = b"".join(parts)
        if len(parts) > 1 and len(joined) <= LONGEST_SEED:
            yield joined
    elif isinstance(value, dict):
        if "utf8" in value or ("repeat" in value and int(value["times"]) <= LONGEST_SEED):
            yield raw(value)[:LONGEST_SEED]
        else:
            for name, each in value.items():
                if name not in ("name", "why", "expect"):
                    yield from written(each)


def crashes(name: str) -> list[Path]:
    """Inputs that showed a fault once."""
    return sorted((CRASHES / name).glob("*"))

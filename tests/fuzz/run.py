"""Drive one target with atheris: ``python run.py TARGET CORPUS [libFuzzer's options]``."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

NAME = sys.argv.pop(1)
IS_OURS = {
    "edge": ("passy_proxy.framing", "passy_proxy.edge", "passy_proxy.cycle"),
    "sse": ("passy_proxy.sse", "passy_plugins.dialects"),
    "splice": ("passy_proxy.body_msgspec", "passy_proxy.body_stdlib"),
    "config": ("passy_proxy.config",),
    "journal": ("passy_proxy.journal", "passy_proxy.recovery"),
}

with atheris.instrument_imports(include=list(IS_OURS[NAME])):
    from harness.fuzzing import target

    check = target(NAME).check

if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()

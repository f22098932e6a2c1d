"""How long a gateway keeps somebody waiting: never longer than its loop is busy with others.

Measured as CPU of the loop's thread, since on a machine that others use the clock tells of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.gateway import Gateway


def busy(gateway: Gateway) -> float:
    """Seconds of CPU that its loop has used so far."""
    main = Path(f"/proc/{gateway.process.pid}")
    assert "" == (main / f"task/{main.name}/children").read_text(), "it has workers of its own"
    return int((main / "schedstat").read_text().split()[0]) / 1e9

"""Request bodies read and edited in place: by msgspec, or by the standard library without it.

Both have the same names; what they are, `body_msgspec.__all__` says.
"""

from __future__ import annotations

try:
    from passy_proxy.body_msgspec import *  # noqa: F403
except ImportError:
    from passy_proxy.body_stdlib import *  # type: ignore[assignment]  # noqa: F403

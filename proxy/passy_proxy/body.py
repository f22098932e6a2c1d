"""Request bodies read and edited in place: by msgspec, or by the standard library without it."""

from __future__ import annotations

try:
    from passy_proxy.body_msgspec import (
        MAX_DEPTH,
        Answer,
        BadBody,
        Head,
        member_span,
        read_answer,
        read_head,
        rewrite,
        splice_model,
        usage_of,
        with_include_usage,
    )
except ImportError:
    from passy_proxy.body_stdlib import (  # type: ignore[assignment]
        MAX_DEPTH,
        Answer,
        BadBody,
        Head,
        member_span,
        read_answer,
        read_head,
        rewrite,
        splice_model,
        usage_of,
        with_include_usage,
    )

__all__ = [
    "MAX_DEPTH",
    "Answer",
    "BadBody",
    "Head",
    "member_span",
    "read_answer",
    "read_head",
    "rewrite",
    "splice_model",
    "usage_of",
    "with_include_usage",
]

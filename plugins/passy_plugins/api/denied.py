"""A request that is answered with an error of ours. Alone in its file, since whoever only learns of
the applications imports it too, and must not import what they are made with."""

from __future__ import annotations

from collections.abc import Sequence


class Denied(Exception):
    """``status`` and ``code`` are the answer's, ``param`` is where the mistake stands; ``problems``
    are all of them where there may be several, each its place and its message."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        problems: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param if param is not None or not problems else problems[0][0]
        self.problems = problems

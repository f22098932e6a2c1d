"""Terminal: one upstream, no second chance. For paths that are passed through as they are.

An organisation's next key for it is none: the first was refused, and nothing was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from passy_plugins.retrying import another_key
from passy_proxy import (
    Attempt,
    Dispatch,
    Exchange,
    Reply,
    Settings,
    Target,
    Terminal,
    Upstreams,
    failed_reply,
    hookimpl,
    setting,
)
from passy_proxy.models import may_reach

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Config(Settings):
    upstream: str = setting(..., "The upstream that answers.")
    upstreams: Upstreams = setting("upstreams", "Where its name is looked up.")


class Direct(Terminal):
    name = "direct"
    config: Config

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        super().__init__(config, log)
        name, known = config.upstream, config.upstreams
        upstream = known.get(name)
        if upstream is None and name not in known.left_out:
            names = ", ".join(sorted({*known, *known.left_out})) or "none"
            raise ValueError(f"no upstream is named {name!r}; there are {names}")
        self._target = None if upstream is None else Target.at(upstream, "")

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if self._target is None:
            name = self.config.upstream
            message = f"{ex.request.path} is answered by {name}, which has no credential here."
            return Reply(503, "no_healthy_target", message, [(b"x-should-retry", b"false")])
        principal = ex.principal
        if principal is None:
            pass
        elif not may_reach(principal, self._target.upstream):
            name = self.config.upstream
            message = f"This key may not reach {name}, which answers {ex.request.path}."
            return Reply(403, "upstream_not_allowed", message)
        elif principal.models is not None or any(one.models is not None for one in principal.above):
            # What is passed through is not looked into, so which model it names cannot be known.
            return Reply(
                403,
                "model_not_allowed",
                f"This key is limited to certain models, and {ex.request.path} takes any.",
            )
        attempt = await dispatch(ex, self._target)
        while another_key(attempt):
            attempt = await dispatch(ex, self._target)
        await attempt.ready(first_event=False)
        failure = attempt.failure
        return attempt if failure is None or failure.kind == "status" else failed_reply(ex)


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [Direct]

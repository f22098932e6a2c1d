"""Terminal: a fixed answer, for health checks, probes and pre-flight requests."""

from __future__ import annotations

from collections.abc import Sequence

from passy_proxy import (
    Attempt,
    Dispatch,
    Exchange,
    Filter,
    Reply,
    Settings,
    Terminal,
    hookimpl,
    setting,
)


class Config(Settings):
    status: int = setting(200, "The status.", ge=200, le=599)
    body: str = setting("", "The body, as it is sent.")
    content_type: str = setting("application/json", "What the body is.", pattern="^[ -~]+$")


class Static(Terminal):
    name = "static"
    needs = frozenset()
    config: Config

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        config = self.config
        content_type = config.content_type.encode()
        return Reply(config.status, "static", body=config.body.encode(), content_type=content_type)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Static]

"""Terminal: one upstream, no second chance. For paths that are passed through as they are."""

from __future__ import annotations

from collections.abc import Sequence

from passy_proxy import Attempt, Dispatch, Exchange, Reply, Settings, Target, Terminal, Upstreams
from passy_proxy import failed_reply, hookimpl, setting


class Config(Settings):
    upstream: str = setting(..., "The upstream that answers.")
    upstreams: Upstreams = setting("upstreams", "Where its name is looked up.")


class Direct(Terminal):
    name = "direct"
    config: Config

    async def start(self) -> None:
        upstream = self.config.upstreams.get(self.config.upstream)
        self._target = Target.at(upstream, "") if upstream is not None else None

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Attempt | Reply:
        if self._target is None:
            name = self.config.upstream
            message = f"{ex.request.path} is answered by {name}, which has no credential here."
            return Reply(503, "no_healthy_target", message)
        attempt = await dispatch(ex, self._target)
        await attempt.ready(first_event=False)
        failure = attempt.failure
        return attempt if failure is None or failure.kind == "status" else failed_reply(ex)


@hookimpl
def passy_filters() -> Sequence[type[Terminal]]:
    return [Direct]

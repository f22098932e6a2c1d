"""Refuse prompts longer than the operator allows."""

from __future__ import annotations

from passy_proxy import Exchange, Filter, Reply, Settings, hookimpl, setting


class Config(Settings):
    max_chars: int = setting(20_000, "Longest prompt accepted, counted over all messages.", ge=1)


class PromptCap(Filter):
    name = "prompt_cap"
    needs = frozenset({"body"})
    config: Config

    def on_request(self, ex: Exchange) -> Reply | None:
        messages = ex.request.json.get("messages", [])
        size = sum(len(str(message.get("content", ""))) for message in messages)
        if size > self.config.max_chars:
            limit = self.config.max_chars
            return Reply(413, "prompt_too_long", f"{size} characters; the limit is {limit}.")
        return None


@hookimpl
def passy_filters() -> list[type[Filter]]:
    return [PromptCap]

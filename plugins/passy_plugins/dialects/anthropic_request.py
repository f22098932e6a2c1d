"""A chat completion as a request to Anthropic's Messages API (version 2023-06-01).

What maps one to one is a table; what has another structure (messages, tools, content) is code. What
cannot be said is either left out and named (:attr:`Translation.dropped`) or, where leaving it out
would answer another question than the one asked, refused with Untranslatable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from passy_plugins.dialects.anthropic_content import Messages, Shape
from passy_plugins.dialects.anthropic_schema import limited
from passy_proxy import json
from passy_proxy.dialect import Untranslatable

MAX_TOKENS = 4096
"""Anthropic must be told a limit: this one, when the client states none."""

JSON_TOOL = "answer_in_json"
"""What an older model is made to call for an answer after a schema: the input is the answer."""

CARRIED = frozenset(
    (
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "user",
    )
)
NEUTRAL: dict[str, object] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "metadata": {},
    "modalities": ["text"],
    "presence_penalty": 0,
    "store": False,
    "top_logprobs": 0,
}
"""Values that ask for nothing: leaving them out changes nothing, so they are not named."""

SAMPLING = ("temperature", "top_p", "top_k")
SERVICE_TIERS = {
    "auto": "auto",
    "default": "standard_only",
    "fast": "auto",
    "priority": "auto",
    "scale": "auto",
}
BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
"""Tokens of thought per ``reasoning_effort``, for models that count them."""
SMALLEST_BUDGET = 1024

VERSION = re.compile(r"claude-(?:[a-z]+-)*?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
NEWEST = (99, 0)

THINKS, ONE_SAMPLING = (3, 7), (4, 1)
STRUCTURED, ADAPTIVE, NO_SAMPLING = (4, 5), (4, 6), (4, 7)
"""Model versions from which on something is so."""

EFFORTS = ("low", "medium", "high")


def version_of(model: str) -> tuple[int, int]:
    """``claude-3-5-sonnet-20241022`` → (3, 5). A name that tells nothing counts as the newest."""
    found = VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else NEWEST


class Translation:
    """One chat completion request (``said``, never changed) for one model of Anthropic's."""

    def __init__(self, said: Shape, model: str) -> None:
        self.said = said
        self.model = model
        self.version = version_of(model)
        self.dropped = [
            name
            for name, value in said.items()
            if name not in CARRIED and value is not None and NEUTRAL.get(name, ...) != value
        ]
        self.sent: Shape = {"model": model}

    def body(self) -> Shape:
        """The request's body; it also completes ``dropped``. Raises Untranslatable."""
        said, sent = self.said, self.sent
        if said.get("n") not in (None, 1):
            raise Untranslatable("Anthropic gives one answer per request: 'n' must be 1.", "n")
        messages = Messages(said.get("messages"))
        sent["messages"] = messages.turns
        self.dropped += messages.lost
        system = messages.system
        self._limit()
        self._tools()
        system = self._format(system)
        if system:
            sent["system"] = system
        self._reasoning(messages)
        self._sampling()
        self._rest()
        return sent

    def _limit(self) -> None:
        limit = self.said.get("max_completion_tokens") or self.said.get("max_tokens")
        self.sent["max_tokens"] = limit if limit is not None else MAX_TOKENS

    def _rest(self) -> None:
        said, sent = self.said, self.sent
        if said.get("stream"):
            sent["stream"] = True
        stop = said.get("stop")
        stops = stop if isinstance(stop, list) else [stop] if stop else []
        # Anthropic refuses sequences of nothing but spaces.
        if kept := [text for text in stops if isinstance(text, str) and text.strip()]:
            sent["stop_sequences"] = kept
        if len(kept) < len(stops):
            self.dropped.append("stop")
        if user := said.get("safety_identifier") or said.get("user"):
            sent["metadata"] = {"user_id": str(user)[:256]}
        tier = said.get("service_tier")
        if isinstance(tier, str) and tier in SERVICE_TIERS:
            sent["service_tier"] = SERVICE_TIERS[tier]
        elif tier is not None:
            self.dropped.append("service_tier")

    def _tools(self) -> None:
        tools = self.said.get("tools")
        if not tools:
            return
        if not isinstance(tools, list):
            raise Untranslatable("'tools' must be a list.", "tools")
        choice, allowed = _tool_choice(self.said.get("tool_choice"))
        sent = [self._tool(tool) for tool in tools]
        if allowed is not None:
            sent = [tool for tool in sent if tool.get("name") in allowed]
        self.sent["tools"] = sent
        if self.said.get("parallel_tool_calls") is False:
            choice = choice or {"type": "auto"}
            if choice["type"] != "none":
                choice = {**choice, "disable_parallel_tool_use": True}
        if choice:
            self.sent["tool_choice"] = choice

    def _tool(self, tool: Any) -> Shape:
        """A function as Anthropic declares it; a tool that is Anthropic's own stays as it is."""
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                return tool
            raise Untranslatable("Anthropic knows no tools but functions.", "tools")
        sent: Shape = {"name": function.get("name")}
        if description := function.get("description"):
            sent["description"] = description
        sent["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
        if cache := tool.get("cache_control"):
            sent["cache_control"] = cache
        if function.get("strict") and "tools.function.strict" not in self.dropped:
            self.dropped.append("tools.function.strict")
        return sent

    def _format(self, system: str | list[Shape]) -> str | list[Shape]:
        """``response_format``, and the system prompt, where that has to say what is wanted."""
        wanted = self.said.get("response_format")
        if not isinstance(wanted, dict) or wanted.get("type") == "text":
            return system
        if wanted.get("type") == "json_object":
            return _with(system, "Answer with one valid JSON object and nothing else.")
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise Untranslatable("The response format is not known here.", "response_format")
        if self.version >= STRUCTURED:
            form = {"type": "json_schema", "schema": limited(schema)}
            self.sent.setdefault("output_config", {})["format"] = form
            return system
        if "tools" not in self.sent:
            about = "Give the answer through this tool."
            tool = {"name": JSON_TOOL, "description": about, "input_schema": schema}
            self.sent |= {"tools": [tool], "tool_choice": {"type": "tool", "name": JSON_TOOL}}
            return system
        asked = json.dumps(schema).decode()
        return _with(system, f"Answer with one JSON value and nothing else. Its schema: {asked}")

    def _reasoning(self, messages: Messages) -> None:
        asked = self.said.get("reasoning_effort")
        effort = asked if isinstance(asked, str) else ""
        known = effort in BUDGETS
        thinking = self.said.get("thinking")
        if isinstance(thinking, dict):
            self.sent["thinking"] = thinking
        elif known and self.version >= ADAPTIVE:
            self.sent["thinking"] = {"type": "adaptive"}
            if self.version >= NO_SAMPLING:
                self.sent["thinking"]["display"] = "summarized"  # its default there is nothing
            self.sent.setdefault("output_config", {})["effort"] = self._effort(effort)
        elif effort == "none":
            if self.version >= ADAPTIVE:
                self.sent["thinking"] = {"type": "disabled"}
        elif known and self.version >= THINKS and not messages.in_tool_use:
            self._budget(BUDGETS[effort])
        elif asked is not None:
            self.dropped.append("reasoning_effort")

    def _effort(self, asked: str) -> str:
        """The nearest effort that the model knows, not above the one asked for."""
        if asked in ("xhigh", "max"):
            top = self.version >= NO_SAMPLING or (asked == "max" and "opus" in self.model)
            return asked if top else "high"
        return asked if asked in EFFORTS else "low"

    def _budget(self, budget: int) -> None:
        """Thinking of the older kind: within the limit of tokens, and never with a forced tool."""
        stated = "max_tokens" in self.said or "max_completion_tokens" in self.said
        if not stated:
            self.sent["max_tokens"] += budget
        budget = min(budget, self.sent["max_tokens"] - 1)
        forced = self.sent.get("tool_choice", {}).get("type") in ("any", "tool")
        if forced or budget < SMALLEST_BUDGET:
            self.dropped.append("reasoning_effort")
            return
        self.sent["thinking"] = {"type": "enabled", "budget_tokens": budget}

    def _sampling(self) -> None:
        said, sent = self.said, self.sent
        asked = [name for name in SAMPLING if said.get(name) is not None]
        thinks = sent.get("thinking", {}).get("type") in ("enabled", "adaptive")
        if thinks or self.version >= NO_SAMPLING:
            self.dropped += asked
            return
        if self.version >= ONE_SAMPLING and "temperature" in asked and "top_p" in asked:
            asked.remove("top_p")
            self.dropped.append("top_p")
        for name in asked:
            sent[name] = said[name]
        if isinstance(warmth := sent.get("temperature"), int | float) and warmth > 1:
            sent["temperature"] = 1


def _tool_choice(choice: Any) -> tuple[Shape | None, set[str] | None]:
    """Anthropic's choice, and the names of the tools that may be used (``None``: all)."""
    if choice is None:
        return None, None
    if isinstance(choice, str):
        kinds = {"auto": "auto", "none": "none", "required": "any"}
        if choice in kinds:
            return {"type": kinds[choice]}, None
    elif isinstance(choice, dict):
        if isinstance(function := choice.get("function"), dict):
            return {"type": "tool", "name": function.get("name")}, None
        if isinstance(several := choice.get("allowed_tools"), dict):
            kind = "any" if several.get("mode") == "required" else "auto"
            return {"type": kind}, set(_names(several.get("tools")))
    raise Untranslatable("This tool choice has no counterpart at Anthropic.", "tool_choice")


def _names(tools: object) -> Iterator[str]:
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            yield name


def _with(system: str | list[Shape], more: str) -> str | list[Shape]:
    if isinstance(system, list):
        return [*system, {"type": "text", "text": more}]
    return f"{system}\n\n{more}" if system else more

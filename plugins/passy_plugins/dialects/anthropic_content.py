"""The conversation of a chat completion as Anthropic's turns: system apart, blocks for content."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as BadBase64
from typing import Any

from passy_proxy import json
from passy_proxy.dialect import Untranslatable

Shape = dict[str, Any]

DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)((?:;[\w=.+-]+)*);base64,(.*)", re.DOTALL)
NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")


CARRIED = frozenset({"role", "content", "tool_calls", "tool_call_id"})


class Messages:
    """``messages`` of a chat completion, taken apart. Raises Untranslatable."""

    def __init__(self, messages: Any) -> None:
        if not isinstance(messages, list):
            raise Untranslatable("'messages' must be a list.", "messages")
        self.turns: list[Shape] = []
        self._system: list[Shape] = []
        self.lost: dict[str, None] = {}
        """What messages say beside that, and Anthropic's cannot."""
        self.in_tool_use = False
        """The conversation is between a tool call and the answer that uses its result."""
        for at, message in enumerate(messages):
            if not isinstance(message, dict):
                raise Untranslatable("A message must be an object.", f"messages[{at}]")
            self._add(message, f"messages[{at}]")
            if len(message) > 2:
                lost = [name for name, said in message.items() if said and name not in CARRIED]
                self.lost |= dict.fromkeys(f"messages.{name}" for name in lost)
        if not self.turns:
            message = "Anthropic needs a message with content that is not a system message."
            raise Untranslatable(message, "messages")
        self._trim()

    @property
    def system(self) -> str | list[Shape]:
        """One text; or blocks, where some of it is marked for a cache."""
        if any("cache_control" in block for block in self._system):
            return self._system
        return "\n".join(block["text"] for block in self._system)

    def _add(self, message: Shape, place: str) -> None:
        match message.get("role"):
            case "system" | "developer":
                blocks = content(message.get("content"), place)
                self._system += [block for block in blocks if block["type"] == "text"]
            case "user":
                self._turn("user", content(message.get("content"), place))
                self.in_tool_use = False
            case "assistant":
                blocks = content(message.get("content"), place)
                made = message.get("tool_calls") or []
                if not isinstance(made, list):
                    raise Untranslatable("'tool_calls' must be a list.", f"{place}.tool_calls")
                calls = [tool_use(call, place) for call in made]
                self._turn("assistant", blocks + calls)
                self.in_tool_use = bool(calls)
            case "tool":
                self._turn("user", [tool_result(message, place)])
            case role:
                raise Untranslatable(f"Anthropic knows no role {role!r}.", f"{place}.role")

    def _turn(self, role: str, blocks: list[Shape]) -> None:
        """Consecutive messages of one role are one turn: so all results of parallel calls are."""
        if not blocks:
            return
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += blocks
        else:
            self.turns.append({"role": role, "content": blocks})

    def _trim(self) -> None:
        """An answer to be continued must not end in spaces; plain text is written plainly."""
        last = self.turns[-1]
        if last["role"] == "assistant" and last["content"][-1]["type"] == "text":
            last["content"][-1]["text"] = last["content"][-1]["text"].rstrip() or "."
        for turn in self.turns:
            blocks = turn["content"]
            if len(blocks) == 1 and set(blocks[0]) == {"type", "text"}:
                turn["content"] = blocks[0]["text"]


def content(said: Any, place: str) -> list[Shape]:
    """The blocks of a message's content. Empty texts, which Anthropic refuses, are left out."""
    if said is None or isinstance(said, str):
        return [{"type": "text", "text": said}] if said else []
    if not isinstance(said, list):
        raise Untranslatable("Content must be text or a list of parts.", f"{place}.content")
    blocks = [part_of(part, f"{place}.content[{at}]") for at, part in enumerate(said)]
    return [block for block in blocks if block.get("text") != ""]


def part_of(part: Any, place: str) -> Shape:
    """One content part as a block."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        block: Shape = {"type": "text", "text": str(part.get(kind) or "")}
    elif kind == "image_url":
        url = part.get("image_url")
        block = image(url.get("url") if isinstance(url, dict) else url, place)
    elif kind == "file":
        block = document(part.get("file"), place)
    else:
        raise Untranslatable(f"Anthropic takes no content of the type {kind!r}.", place)
    if cache := part.get("cache_control"):
        block["cache_control"] = cache
    return block


def image(url: Any, place: str) -> Shape:
    if not isinstance(url, str):
        raise Untranslatable("An image needs a URL.", place)
    if found := DATA_URL.fullmatch(url):
        source = {"type": "base64", "media_type": found[1], "data": found[3]}
    elif url.startswith(("https://", "http://")):
        source = {"type": "url", "url": url}
    else:
        raise Untranslatable("An image must be a data URL in base64, or an https URL.", place)
    return {"type": "image", "source": source}


def document(file: Any, place: str) -> Shape:
    """A file that is in the request itself: PDF or plain text."""
    given = file.get("file_data") if isinstance(file, dict) else None
    found = DATA_URL.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        message = "A file must be given as file_data, a data URL in base64; ids are the provider's."
        raise Untranslatable(message, place)
    source: Shape = {"type": "base64", "media_type": found[1], "data": found[3]}
    if found[1] == "text/plain":
        try:
            text = b64decode(found[3], validate=True).decode()
        except (BadBase64, UnicodeDecodeError):
            raise Untranslatable("The file is not UTF-8 in base64.", place) from None
        source = {"type": "text", "media_type": found[1], "data": text}
    elif found[1] != "application/pdf":
        raise Untranslatable(f"Anthropic takes no files of the type {found[1]}.", place)
    title = file.get("filename")
    return {"type": "document", "source": source} | ({"title": title} if title else {})


def tool_use(call: Any, place: str) -> Shape:
    """A call made earlier; its arguments become an object again."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable("Anthropic knows no calls but of functions.", f"{place}.tool_calls")
    arguments = function.get("arguments") or "{}"
    try:
        given = json.loads(arguments)
    except (ValueError, TypeError):
        given = None
    if not isinstance(given, dict):
        message = f"The arguments of {function.get('name')!r} are not a JSON object."
        raise Untranslatable(message, f"{place}.tool_calls")
    name = function.get("name")
    made = tool_id(call.get("id"), f"{place}.tool_calls")
    return {"type": "tool_use", "id": made, "name": name, "input": given}


def tool_result(message: Shape, place: str) -> Shape:
    blocks = content(message.get("content"), place)
    call = tool_id(message.get("tool_call_id"), f"{place}.tool_call_id")
    result: Shape = {"type": "tool_result", "tool_use_id": call}
    if len(blocks) == 1 and set(blocks[0]) == {"type", "text"}:
        result["content"] = blocks[0]["text"]
    elif blocks:
        result["content"] = blocks
    return result


def tool_id(said: object, place: str) -> str:
    """An id in Anthropic's alphabet; the same for a call and its result."""
    if not isinstance(said, str) or not said:
        raise Untranslatable("A tool call and its result need an id that they share.", place)
    return NOT_IN_IDS.sub("_", said)

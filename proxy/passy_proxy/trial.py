"""Trying a credential: is it taken, which models does it see, does one tiny call go through.

For commands, the admin API and the portal alike. All that is sent goes over the upstream's own
transport, so an organisation's upstream is reached under the rules for tenants and in no other
way. What the upstream says is shown beside our own words, shortened, and without the credential
should it have repeated it.

The first step asks for nothing: an empty request, which a provider refuses for its key or, if that
is good, for being empty. Providers differ in what they look at first, so a refusal of the key in
the last step, which is a real request, has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Literal, cast

from passy_proxy import json
from passy_proxy.body import read_head
from passy_proxy.dialect import Untranslatable
from passy_proxy.downstream import Downstream
from passy_proxy.exchange import Request
from passy_proxy.framing import told
from passy_proxy.models import Models
from passy_proxy.records import Credential
from passy_proxy.transport import Timeouts, TransportError, UpstreamRequest
from passy_proxy.upstream import Target, Upstream
from passy_proxy.veil import concealed

Verdict = Literal["ok", "refused", "limited", "failed", "unclear", "skipped"]
GOOD = frozenset({"ok", "limited"})

TIMEOUTS = Timeouts(connect=5, tls=5, write=10, first_byte=20, idle=10, total=30, pool=5)
LARGEST = 4 << 20
"""Bytes of an answer: lists of models are long."""
LONGEST = 500
"""Characters of what an upstream says that are shown."""
CHAT = "/v1/chat/completions"
OTHER_KINDS = (
    "audio",
    "dall-e",
    "embed",
    "image",
    "moderation",
    "realtime",
    "rerank",
    "search",
    "sora",
    "transcribe",
    "tts",
    "whisper",
)
"""In the names of models that do not chat."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried."""

    name: Literal["authentication", "models", "call"]
    verdict: Verdict
    ms: int = 0
    status: int = 0
    """Of the upstream's answer; 0 when there was none."""
    message: str = ""
    """In our words."""
    theirs: str = ""
    """In the upstream's."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    upstream: str
    steps: tuple[Step, ...]
    models: tuple[str, ...] = ()
    """Those that the upstream listed."""

    @property
    def ok(self) -> bool:
        """Whether the key can be used: it was taken, and the call went through. Many providers
        list no models, or not to every key."""
        return all(step.verdict in GOOD for step in self.steps if step.name != "models")


async def trial(
    upstream: Upstream, credential: Credential | None, models: Sequence[str] = ()
) -> Trial:
    """Try ``credential`` at ``upstream``; the call asks for the first of ``models`` that is a name
    and not a pattern, else for one that the upstream lists. It costs a few tokens, and waits for no
    longer than three times `TIMEOUTS`."""
    trying = _Trying(upstream, credential)
    authentication = await trying.authentication()
    if authentication.verdict in ("refused", "failed"):
        why = "not tried"
        skipped = Step("models", "skipped", message=why), Step("call", "skipped", message=why)
        return Trial(upstream.name, (authentication, *skipped))
    listing, listed = await trying.models()
    wanted = next((one for one in models if one and "*" not in one), "") or likely(listed)
    call = await trying.call(wanted)
    if call.verdict == "refused":
        authentication = replace(authentication, verdict="refused", message=call.message)
    return Trial(upstream.name, (authentication, listing, call), listed)


def candidates(upstream: Upstream, models: Models) -> list[str]:
    """Models that are known to be there, by what the configuration says."""
    table = (choice for model in models.aliases for tier in model.tiers for choice in tier)
    named = [choice.model for choice in table if choice.upstream is upstream]
    return [*named, *upstream.models]


def likely(models: Sequence[str]) -> str:
    """One of them that chats, as far as names tell."""
    chatting = (one for one in models if not any(word in one.lower() for word in OTHER_KINDS))
    return next(chatting, "")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back, and how long that took."""

    ms: int
    status: int = 0
    body: bytes = b""
    why: str = ""
    """Why nothing did."""


class _Trying:
    def __init__(self, upstream: Upstream, credential: Credential | None) -> None:
        self._upstream = upstream
        self._credential = credential

    async def authentication(self) -> Step:
        """An empty request."""
        answer = await self._sent(replace(self._request("x"), body=b"{}"))
        if answer.why:
            return self._step("authentication", "failed", answer, unreached(answer))
        verdict, message = taken(answer.status)
        if self._credential is None and verdict == "ok":
            message = "It answers, and was shown no key."
        return self._step("authentication", verdict, answer, message)

    async def models(self) -> tuple[Step, tuple[str, ...]]:
        """The list of models, and their names."""
        upstream, request = self._upstream, self._request("x")
        assert upstream.dialect is not None
        path = upstream.paths.get("models") or upstream.path + upstream.dialect.models_path
        headers = [pair for pair in request.headers if pair[0] != b"content-type"]
        answer = await self._sent(
            replace(request, method="GET", target=path, headers=headers, body=b"")
        )
        if answer.why:
            return self._step("models", "failed", answer, unreached(answer)), ()
        if not 200 <= answer.status < 300:
            message = f"It lists no models ({answer.status})."
            return self._step("models", "unclear", answer, message), ()
        names = listed(answer.body)
        if not names:
            message = "Its answer is no list of models."
            return self._step("models", "unclear", answer, message), ()
        message = f"{len(names)} {'model' if len(names) == 1 else 'models'}."
        return self._step("models", "ok", answer, message), names

    async def call(self, model: str) -> Step:
        """One token of an answer, or a few."""
        if not model:
            return Step("call", "skipped", message="No model is known; name one.")
        answer = await self._sent(self._request(model))
        if answer.status == 400 and b"max_completion_tokens" in answer.body:
            answer = await self._sent(self._request(model, "max_completion_tokens"))
        if answer.why:
            return self._step("call", "failed", answer, unreached(answer))
        if 200 <= answer.status < 300:
            if not readable(answer.body):
                return self._step("call", "failed", answer, "Its answer cannot be read.")
            tokens = self._tokens(answer.body)
            message = f"{model} answered" + (f": {tokens} tokens." if tokens else ".")
            return self._step("call", "ok", answer, message)
        verdict, message = taken(answer.status)
        if verdict == "ok":
            return self._step("call", "failed", answer, f"{model} gave no answer.")
        return self._step("call", verdict, answer, message)

    def _request(self, model: str, most: str = "max_tokens") -> UpstreamRequest:
        """The tiny call, as the upstream's dialect puts it. Raises Untranslatable."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], most: MOST}
        upstream = self._upstream
        assert upstream.dialect is not None
        client = Request(told("POST", CHAT, b"", []), cast(Downstream, None))
        client.body, client.operation, client.root = json.dumps(body), "chat", len("/v1")
        client.head = read_head(client.body)
        target = Target.at(upstream, model, TIMEOUTS)
        return upstream.dialect.request(client, target, self._credential, "openai")

    async def _sent(self, request: UpstreamRequest) -> _Answer:
        started = monotonic()
        try:
            leg = await self._upstream.transport.open(request)
            try:
                body = await leg.read_all(LARGEST)
            finally:
                leg.close()
        except (TransportError, Untranslatable) as error:
            return _Answer(spent(started), why=str(error))
        return _Answer(spent(started), leg.status, body)

    def _step(self, name: Any, verdict: Verdict, answer: _Answer, message: str) -> Step:
        theirs = ""
        if answer.status and not 200 <= answer.status < 300:
            theirs = self._theirs(answer)
        return Step(name, verdict, answer.ms, answer.status, self._concealed(message), theirs)

    def _theirs(self, answer: _Answer) -> str:
        """Their message, or the beginning of whatever they sent."""
        said = message_in(answer.body) or answer.body.decode("utf-8", "replace")
        # Twice: a piece of the secret may end where the text is cut, or begin in what is dropped.
        text = self._concealed(said[: 4 * LONGEST])
        text = self._concealed("".join(c if c.isprintable() else " " for c in text))
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

    def _concealed(self, text: str) -> str:
        """Without what was shown to the upstream and is nobody else's: the key that is tried, and
        what the operator sends with each request."""
        own = [self._credential.secret] if self._credential else []
        for secret in (*own, *(value.decode("latin-1") for value in self._upstream.secrets)):
            text = concealed(text, secret)
        return text

    def _tokens(self, body: bytes) -> int:
        assert self._upstream.dialect is not None
        client = Request(told("POST", CHAT, b"", []), cast(Downstream, None))
        client.operation = "chat"
        tap = self._upstream.dialect.tap(client, False, "openai")
        tap.whole(body)
        return 0 if tap.usage is None else tap.usage.input + tap.usage.output


MOST = 1
"""Tokens of the answer."""


def taken(status: int) -> tuple[Verdict, str]:
    """What a status says of the key that was shown."""
    match status:
        case 401:
            return "refused", "The key was refused: is it whole, not revoked, of this provider?"
        case 403:
            return "refused", "The key may not do this: is it limited to something else?"
        case 402:
            return "limited", "The key was taken, but its account has no credit."
        case 429:
            return "limited", "The key was taken, but its limit is used up for now."
        case 404:
            return "ok", "The key was not refused, but there is nothing at this address."
    if status >= 500 or 300 <= status < 400:
        return "unclear", f"It answers {status}, which says nothing of the key."
    return "ok", "The key was taken."


def readable(body: bytes) -> bool:
    """Whether it is a JSON object: not a page for people, and not half an answer."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def unreached(answer: _Answer) -> str:
    return f"No answer: {answer.why}."


def message_in(body: bytes) -> str:
    """What a JSON error says, in any of the usual shapes; empty where it is none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return said if isinstance(said, str) else ""


def listed(body: bytes) -> tuple[str, ...]:
    """The ids of a list of models, in any of the usual shapes."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    rows = (said.get("data") or said.get("models")) if isinstance(said, dict) else said
    if not isinstance(rows, list):
        return ()
    named = (row.get("id") or row.get("name") if isinstance(row, dict) else row for row in rows)
    return tuple(name for name in named if isinstance(name, str) and name)


def spent(started: float) -> int:
    """Milliseconds."""
    return round((monotonic() - started) * 1000)

"""Where answers come from: a provider account we can reach, and a model there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from passy_proxy.dialect import Dialect
from passy_proxy.records import Credential
from passy_proxy.transport import DEFAULT_TIMEOUTS, Timeouts, Transport
from passy_proxy.veil import SHORTEST

_NOT_IN_HEADER = re.compile(rb"[^ -~]")
_LONGEST = 1024  # bytes of a name, which may be a client's


@dataclass(slots=True, eq=False)
class Upstream:
    """A provider account: dialect, origin, pool, credential. One object per configured upstream."""

    name: str
    transport: Transport
    dialect: Dialect | None
    """``None``: an in-process upstream that answers in the client's own dialect."""
    credential: Credential | None = None
    url: str = ""
    """Its base URL, which tells whose prices hold; empty for an in-process upstream."""
    verified: bool = True
    """Its certificate is checked."""
    path: bytes = b""
    """Path of the base URL, without a slash at its end."""
    paths: Mapping[str, bytes] = field(default_factory=dict)
    """Operation → full path, where a provider's differ from the dialect's."""
    auth_header: bytes = b"authorization"
    auth_prefix: bytes = b"Bearer "
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Sent with every request; some are secrets."""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Those of their values that nobody else may see."""
    api_version: str = ""
    """The version of its API to ask for, where the dialect has one."""
    forward_headers: frozenset[bytes] = frozenset()
    """Client headers passed on beyond the dialect's own list; lower case."""
    models: tuple[str, ...] = ("*",)
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    owner: str = "operator"
    """``operator``, or the organisation whose own upstream this is."""
    key: str = ""
    """What a vault knows it by: the name of a shared upstream, the id of an organisation's own."""
    origin: str = ""
    """Where it was configured, for ``passy explain``."""
    shown: tuple[bytes, ...] = field(init=False, repr=False)
    """What it is shown with its own credential and is nobody else's, as far as it may repeat it."""

    def __post_init__(self) -> None:
        self.shown = self.shown_with(self.credential)

    def shown_with(self, credential: Credential | None) -> tuple[bytes, ...]:
        """The same with another credential."""
        if credential is None or len(credential.secret) < SHORTEST:
            return self.secrets
        return (credential.secret.encode(), *self.secrets)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """An upstream and the model's name there."""

    upstream: Upstream
    model: str
    """Empty: the body's model is left as it is."""
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    label: str = ""
    """``upstream/model``, as shown in records."""
    header: bytes = b""
    """The same, as the value of ``x-passy-upstream``."""

    fallback_on: frozenset[str] | None = None
    """What sends an exchange on from here; ``None`` leaves it to the terminal filter."""

    @classmethod
    def at(
        cls,
        upstream: Upstream,
        model: str,
        timeouts: Timeouts | None = None,
        fallback_on: frozenset[str] | None = None,
    ) -> Target:
        label = f"{upstream.name}/{model}" if model else upstream.name
        # A name may hold any text; a header may not, and strict clients refuse the whole answer.
        header = _NOT_IN_HEADER.sub(b"?", label.encode("ascii", "replace"))[:_LONGEST].strip()
        return cls(upstream, model, timeouts or upstream.timeouts, label, header, fallback_on)


class Upstreams(dict[str, Upstream]):
    """The configured upstreams by name."""

    left_out: frozenset[str] = frozenset()
    """Those that are configured but cannot be asked, for want of a credential."""

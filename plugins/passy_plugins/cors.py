"""Cross-origin requests from browsers. Closed unless origins are named.

There are no cookies on this side of the gateway, so allowing any origin gives a page nothing that
it does not bring itself: its own key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from passy_proxy import Exchange, Filter, Head, Reply, Settings, hookimpl, setting

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z*]+")
DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")


def origin_as_sent(text: str) -> str:
    """An origin in the very form in which browsers send it: any other would never be met."""
    written = ORIGIN.fullmatch(text) and not DEFAULT_PORT.fullmatch(text)
    if text in ("*", "null") or written:
        return text
    raise ValueError(
        f"{text[:100]!r} is no origin as browsers send it; write scheme://host, with the port where"
        " it is not the usual one, in small letters and without a path, or '*'"
    )


class Config(Settings):
    origins: tuple[Annotated[str, AfterValidator(origin_as_sent)], ...] = setting(
        (), "Origins allowed; '*' is any."
    )
    methods: tuple[str, ...] = setting(("GET", "POST", "OPTIONS"), "Methods allowed.")
    headers: tuple[str, ...] = setting(("Content-Type", "Authorization"), "Headers allowed.")
    max_age: int = setting(600, "Seconds a browser may remember the answer.", ge=0)


class Cors(Filter):
    name = "cors"
    vouches = True
    config: Config

    def __init__(self, config: Config, log: FilteringBoundLogger) -> None:
        super().__init__(config, log)
        for text in (*config.origins, *config.methods, *config.headers):
            if not (text.isascii() and text.isprintable()):
                raise ValueError(f"{text!r} cannot stand in a header")

    async def start(self) -> None:
        self._any = "*" in self.config.origins
        self._origins = {origin.encode() for origin in self.config.origins}
        self._methods = ", ".join(self.config.methods).encode()
        self._headers = ", ".join(self.config.headers).encode()
        self._varies = bool(self._origins) and not self._any

    def allowed(self, origin: bytes) -> bytes | None:
        """The value of access-control-allow-origin, or ``None`` where it is not to be sent."""
        if self._any:
            return b"*"
        return origin if origin in self._origins else None

    def on_request(self, ex: Exchange) -> Reply | None:
        if ex.request.method != "OPTIONS":
            return None
        origin = ex.request.fields.get(b"origin")
        if origin is None:
            message = "OPTIONS is how browsers ask before they call, and they say their Origin."
            return Reply(403, "origin_not_allowed", message)
        if self.allowed(origin) is None:
            return Reply(403, "origin_not_allowed", "This origin may not call the gateway.")
        return Reply(
            204,
            "preflight",
            body=b"",
            headers=[
                (b"access-control-allow-methods", self._methods),
                (b"access-control-allow-headers", self._headers),
                (b"access-control-max-age", b"%d" % self.config.max_age),
            ],
        )

    def on_response(self, ex: Exchange, head: Head) -> None:
        if self._varies:
            head.headers.append((b"vary", b"origin"))
        origin = ex.request.fields.get(b"origin")
        if origin is not None and (allowed := self.allowed(origin)) is not None:
            head.headers.append((b"access-control-allow-origin", allowed))
            head.headers.append((b"access-control-expose-headers", b"*"))


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Cors]

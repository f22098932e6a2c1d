"""App: the portal for people, with pages and the JSON API under them.

The first owner is made with a link that is shown where the gateway was started. The guide is
docs/guides/portal.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from passy_portal.settings import Mail, SignInWith
from passy_proxy import (
    Administered,
    Application,
    Duration,
    Settings,
    StoreUnavailable,
    StrongSecretOrOff,
    hookimpl,
    setting,
)
from passy_proxy.addresses import NetworkSetting
from passy_proxy.application import Asgi, Receive, Send

if TYPE_CHECKING:
    from passy_portal.console import Console
    from passy_portal.office import Office


NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII | re.IGNORECASE)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/")):
        raise ValueError("write a scheme and a host, such as https://llm.example.com")
    return url.rstrip("/").lower()


def _address(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.netloc or parts.query):
        raise ValueError("write an address such as http://127.0.0.1:9901/admin/api")
    return url.rstrip("/")


class Config(Settings):
    store: Administered = setting(..., "The store that is administered, of kind sql.")
    public_url: Annotated[str, AfterValidator(_origin)] = setting(
        "",
        "Where browsers and clients reach this gateway, such as https://llm.example.com. Needed "
        "behind a proxy that ends TLS; what the browser asks for when empty.",
    )
    gateway_url: Annotated[str, AfterValidator(_origin)] = setting(
        "",
        "Where clients reach the gateway, where that is not where the portal is: pages show it with"
        " /v1.",
    )
    admin_url: Annotated[str, AfterValidator(_address)] = setting(
        "",
        "Where the gateway's admin API is, such as http://127.0.0.1:9901/admin/api: what models "
        "there are, how providers are, and trials of keys are asked there. Empty: of the gateway "
        "that the portal lives in.",
    )
    admin_token: StrongSecretOrOff = setting("off", "The admin token, for admin_url.")
    operators: tuple[str, ...] = setting(
        (),
        "Ids of the organisations whose owners and admins see the gateway's configuration and may "
        "have it read again. The one that the console's link made, when none is named.",
    )
    trusted_proxies: tuple[NetworkSetting, ...] = setting(
        (),
        "Proxies between browsers and the portal, as addresses or ranges: behind one of them the"
        " address is taken from x-forwarded-for. What anybody else says there is not believed.",
    )
    organisation_limits: Literal["owners", "operator"] = setting(
        "owners",
        "Who says what holds for a whole organisation: its owners, on the page Limits, or the"
        " operator alone, with the admin API.",
    )
    oidc: dict[str, SignInWith] = setting(
        {}, "Name → OpenID provider that people sign in with; the name is part of its address here."
    )
    passwords: Literal["all", "owners"] = setting(
        "all",
        "Who may sign in with a password. With `owners` all others come by a provider, and an owner"
        " still gets in when that is away.",
    )
    mail: Mail | None = setting(
        None, "The server that letters go to, with the links of invitations. Links are shown, too."
    )
    idle: Duration = setting("12h", "A session ends when it was not used for so long.", gt=0)
    longest: Duration = setting("30d", "A session ends after so long, used or not.", gt=0)

    @model_validator(mode="after")
    def _somebody_gets_in(self) -> Config:
        if self.passwords == "owners" and not self.oidc:
            raise ValueError("with `passwords: owners` there has to be a provider under `oidc`")
        if wrong := next((name for name in self.oidc if not NAME.fullmatch(name)), None):
            raise ValueError(f"{wrong[:60]!r} cannot be part of an address; write letters and -")
        return self


class Portal(Application):
    """What it is made with weighs 60 MB and takes a second: it is made for the first who asks, and
    not in the workers that nobody asks."""

    name = "portal"
    config: Config

    def __init__(self, config: Config, log: Any) -> None:
        super().__init__(config, log)
        self._parts: tuple[Office, Asgi] | None = None
        self._making = asyncio.Lock()

    def asgi(self) -> Asgi:
        return self._answer

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _, made = await self._open()
            await made(scope, receive, send)

    async def _open(self) -> tuple[Office, Asgi]:
        async with self._making:
            if self._parts is None:
                parts = await asyncio.to_thread(self._make)
                self._parts = parts
            return self._parts

    def _make(self) -> tuple[Office, Asgi]:
        import passy_plugins.stores.sql.admin  # noqa: F401  # Here, and not on the loop.
        from passy_portal.app import made
        from passy_portal.office import Office

        config = self.config
        office = Office(
            config, lambda: self.gateway.snapshot.connections, lambda: self.gateway.draining
        )
        return office, made(office, self._console(office), config.public_url, self.log)

    def _console(self, office: Office) -> Console:
        from passy_portal.console import NOBODY, over_http, within

        if self.config.admin_url:
            return over_http(self.config.admin_url, self.config.admin_token.reveal())
        if not self.gateway.snapshot.routes.all:  # A process of the portal's own.
            return NOBODY
        return within(office.desk, self.log, lambda: self.gateway)

    async def stop(self) -> None:
        await super().stop()
        if self._parts is not None:
            await self._parts[0].close()

    async def greeting(self, url: str) -> Sequence[str]:
        """Where the portal is; as long as it has no owner, with a link that makes one."""
        if self.config.public_url:
            url = self.config.public_url + urlsplit(url).path
        try:
            office, _ = await self._open()
            token = await (await office.accounts()).first_token()
        except StoreUnavailable:
            token = None
        if token is None:
            return [url]
        return [url, f"has no owner yet; within an hour: {url}/first?link={token}"]


@hookimpl
def passy_apps() -> list[type[Application]]:
    return [Portal]

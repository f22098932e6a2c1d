"""App: everything an operator keeps in order over HTTP, for the holder of the admin token.

Organisations, teams, users, keys, limits, budgets, providers and their credentials, webhooks,
usage, single exchanges, the routing table and the state of the gateway. What is about the gateway
alone (`/config`, `/upstreams`, `/stats`, `/drain`) is at the root of its listener too. The OpenAPI
document is at `/openapi.json` below it; the guide is docs/guides/admin-api.md.
"""

from __future__ import annotations

from passy_plugins.api.desk import Desk, Desked
from passy_plugins.api.gate import Gate, bearer
from passy_proxy import (
    Administered,
    Application,
    Settings,
    StrongSecretOrOff,
    hookimpl,
    setting,
)
from passy_proxy.application import Asgi

REFUSED = "This needs the admin token: Authorization: Bearer …"


class Config(Settings):
    store: Administered = setting(..., "The store that is administered, of kind sql.")
    token: StrongSecretOrOff = setting(
        ..., "The admin token: 32 random bytes or more. off leaves the app out."
    )


class Admin(Desked):
    name = "admin"
    listener = "admin"
    short = ("/config", "/upstreams", "/stats", "/drain")
    config: Config

    def asgi(self) -> Asgi:
        from passy_plugins.api.admin_routes import made
        from passy_plugins.api.framework import ready

        self.desk = Desk(self.config.store)
        look = bearer(self.config.token.reveal().encode(), "admin")
        served = made(self.desk, self.log, lambda: self.gateway)
        return Gate(ready(served), look, REFUSED, b"Bearer")


@hookimpl
def passy_apps() -> list[type[Application]]:
    return [Admin]

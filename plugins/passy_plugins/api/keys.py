"""App: keys for the users of another service, which shows a secret and says for whom it asks.

`POST /keys/api` makes a key and shows it, this once; a user's keys can be listed, changed, rolled,
disabled and deleted there. The guide is docs/guides/keys-api.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from passy_plugins.api.desk import Desk, Desked
from passy_plugins.api.gate import Gate, bearer, header
from passy_proxy import (
    Administered,
    Application,
    Settings,
    StrongSecretOrOff,
    hookimpl,
    setting,
)
from passy_proxy.application import Asgi

SECRET = b"x-emby-secure-key"
REFUSED = "Show the service's secret in the header X-Emby-Secure-Key."


class Config(Settings):
    store: Administered = setting(..., "The store that holds the keys, of kind sql.")
    secret: StrongSecretOrOff = setting(
        ...,
        "What a service shows in `X-Emby-Secure-Key`: 32 random bytes or more. off leaves the app"
        " out.",
    )
    organisation: str = setting(
        "first",
        "Whose the keys are: the id of an organisation; first is the one that was entered first,"
        " and where there is none yet, one is entered; none is nobody's, whom no page shows.",
    )
    admin_token: StrongSecretOrOff = setting(
        "off", "The admin token, which lets its holder read all keys here; off: nobody."
    )


class Keys(Desked):
    name = "keys"
    config: Config

    def asgi(self) -> Asgi:
        from passy_plugins.api.framework import ready
        from passy_plugins.api.keys_routes import made

        self.desk = Desk(self.config.store)
        service = header(SECRET, self.config.secret.reveal().encode(), "service")
        admin = bearer(self.config.admin_token.reveal().encode(), "admin")

        def look(headers: Mapping[bytes, list[bytes]]) -> str | None:
            return service(headers) or admin(headers)

        app = made(self.desk, self.log, self.config.organisation)
        return Gate(ready(app), look, REFUSED, b"Service")


@hookimpl
def passy_apps() -> list[type[Application]]:
    return [Keys]

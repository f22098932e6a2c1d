"""A gateway with the keys API and the admin API, and who asks them."""

from __future__ import annotations

import json
from typing import Any

from harness.gateway import Asked, Gateway

SECRET = "Yw9vUpkVgv6q0Pmg1EKM4x6NYb5wHd7e"
TOKEN = "tP2hT0kenOfTheseTests-Qq83Lmx7ZbV"

APPS = """
apps:
  /keys:
    app: keys
    store: books
    secret: "${PASSY_SERVICE_SECRET-off}"
    admin_token: "${PASSY_ADMIN_TOKEN-off}"
  /admin/api: {app: admin, store: books, token: "${PASSY_ADMIN_TOKEN-off}"}
"""
VARIABLES = {"PASSY_SERVICE_SECRET": SECRET, "PASSY_ADMIN_TOKEN": TOKEN}

UNHURRIED = "overload: {loop_lag: 0s}"
"""On a machine that others use as well nobody is sent away for what it has to do."""
CONFIGURATION = f"""
stores:
  books: {{kind: sql, url: "${{DATABASE_URL:-sqlite:///.passy/passy.db}}"}}
upstreams:
  echo: {{kind: echo}}
models:
  one: [echo/echo]
  "pattern-*": [echo/echo]
chains:
  default: [usage: {{ledger: books}}, auth: {{directory: books, ttl: 1s, patience: 1m}},
            alias, fallback]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /v1/embeddings}}
prices:
  echo/*: {{input: 1, output: 2, per: 1M}}
{UNHURRIED}
{APPS}
"""


class Office:
    """Asks both of them, as those who may."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def keys(
        self, method: str, path: str, body: object = None, *, user: str = "user-1", **headers: str
    ) -> Asked:
        """The keys API, for a user; a header that is empty is left out."""
        told = {"x_emby_secure_key": SECRET, "x_authenticated_user": user} | headers
        return self.ask(method, f"/keys{path}", body, told)

    def admin(self, method: str, path: str, body: object = None, **headers: str) -> Asked:
        """The admin API."""
        told = {"authorization": f"Bearer {TOKEN}"} | headers
        return self.ask(method, f"/admin/api{path}", body, told, admin=True)

    def ask(
        self,
        method: str,
        path: str,
        body: object,
        headers: dict[str, str],
        *,
        admin: bool = False,
    ) -> Asked:
        sent = {name.replace("_", "-"): value for name, value in headers.items() if value}
        if body is not None:
            sent.setdefault("content-type", "application/json")
        return self.gateway.ask(path, body, method=method, admin=admin, **sent)

    def made(self, path: str, body: object) -> dict[str, Any]:
        """What a POST to the admin API makes."""
        asked = self.admin("POST", path, body)
        assert 201 == asked.status, asked.body
        made: dict[str, Any] = json.loads(asked.body)
        return made

    def chat(self, key: str, model: str = "one", path: str = "/v1/chat/completions") -> Asked:
        """A client's request with a key."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello there"}]}
        return self.ask("POST", path, body, {"authorization": f"Bearer {key}"})

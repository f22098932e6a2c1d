"""Who may do what: each route of the portal, and who may ask it. What is not here cannot be asked.

The tests of W3 are made from this table, and fail for a route that it does not name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passy_proxy.issue import ROLES, Role

Object = Literal[
    "key",
    "member",
    "invitation",
    "session",
    "provider",
    "credential",
    "prompt",
    "team",
    "request",
    "view",
    "webhook",
]
"""What the id in a path names."""


@dataclass(frozen=True, slots=True)
class Access:
    roles: frozenset[Role] | None
    """``None``: also who has not signed in."""
    object: Object | None = None


ANYONE = Access(None)
MEMBERS = Access(frozenset(ROLES))
KEEPERS: frozenset[Role] = frozenset({"owner", "admin", "developer"})
OWNERS: frozenset[Role] = frozenset({"owner"})
LEADERS: frozenset[Role] = frozenset({"owner", "admin"})

ACCESS: dict[tuple[str, str], Access] = {
    ("GET", "/static/{name}"): ANYONE,
    ("GET", "/openapi.json"): ANYONE,
    ("GET", "/login"): ANYONE,
    ("POST", "/login"): ANYONE,
    ("POST", "/login/second"): ANYONE,
    ("GET", "/first"): ANYONE,
    ("POST", "/first"): ANYONE,
    ("GET", "/join"): ANYONE,
    ("POST", "/join"): ANYONE,
    ("GET", "/reset"): ANYONE,
    ("POST", "/reset"): ANYONE,
    ("GET", "/sso/{name}"): ANYONE,
    ("GET", "/sso/{name}/return"): ANYONE,
    ("POST", "/theme"): ANYONE,
    ("POST", "/logout"): MEMBERS,
    ("GET", "/"): MEMBERS,
    ("GET", "/usage"): MEMBERS,
    ("GET", "/usage.csv"): MEMBERS,
    ("GET", "/usage.jsonl"): MEMBERS,
    ("GET", "/requests"): MEMBERS,
    ("GET", "/requests.csv"): MEMBERS,
    ("GET", "/requests.jsonl"): MEMBERS,
    ("GET", "/requests/tail"): MEMBERS,
    ("GET", "/requests/{id}"): Access(frozenset(ROLES), "request"),
    ("POST", "/requests/views"): MEMBERS,
    ("POST", "/requests/views/{id}/delete"): Access(frozenset(ROLES), "view"),
    ("GET", "/keys"): MEMBERS,
    ("POST", "/keys/several"): Access(KEEPERS),
    ("GET", "/keys/new"): Access(KEEPERS),
    ("POST", "/keys/new"): Access(KEEPERS),
    ("GET", "/keys/{id}"): Access(frozenset(ROLES), "key"),
    ("POST", "/keys/{id}"): Access(KEEPERS, "key"),
    ("POST", "/keys/{id}/roll"): Access(KEEPERS, "key"),
    ("POST", "/keys/{id}/disable"): Access(KEEPERS, "key"),
    ("POST", "/keys/{id}/enable"): Access(KEEPERS, "key"),
    ("POST", "/keys/{id}/delete"): Access(KEEPERS, "key"),
    ("GET", "/begin"): Access(LEADERS),
    ("POST", "/begin"): Access(LEADERS),
    ("GET", "/models"): MEMBERS,
    ("POST", "/models/target"): Access(LEADERS),
    ("GET", "/providers"): MEMBERS,
    ("GET", "/providers/new"): Access(LEADERS),
    ("POST", "/providers/new"): Access(LEADERS),
    ("POST", "/providers/policy"): Access(LEADERS),
    ("GET", "/providers/keys/{id}"): Access(frozenset(ROLES), "credential"),
    ("POST", "/providers/keys/{id}"): Access(LEADERS, "credential"),
    ("POST", "/providers/keys/{id}/test"): Access(LEADERS, "credential"),
    ("POST", "/providers/keys/{id}/disable"): Access(LEADERS, "credential"),
    ("POST", "/providers/keys/{id}/enable"): Access(LEADERS, "credential"),
    ("POST", "/providers/keys/{id}/delete"): Access(LEADERS, "credential"),
    ("GET", "/providers/{id}"): Access(frozenset(ROLES), "provider"),
    ("POST", "/providers/{id}"): Access(LEADERS, "provider"),
    ("POST", "/providers/{id}/test"): Access(LEADERS, "provider"),
    ("POST", "/providers/{id}/disable"): Access(LEADERS, "provider"),
    ("POST", "/providers/{id}/enable"): Access(LEADERS, "provider"),
    ("POST", "/providers/{id}/delete"): Access(LEADERS, "provider"),
    ("GET", "/limits"): MEMBERS,
    ("POST", "/limits/organisation"): Access(OWNERS),
    ("POST", "/limits/team/{id}"): Access(LEADERS, "team"),
    ("POST", "/limits/member/{user_id}"): Access(LEADERS, "member"),
    ("POST", "/limits/key/{id}"): Access(KEEPERS, "key"),
    ("GET", "/playground"): MEMBERS,
    ("POST", "/teams"): Access(LEADERS),
    ("GET", "/teams/{id}"): Access(frozenset(ROLES), "team"),
    ("POST", "/teams/{id}"): Access(LEADERS, "team"),
    ("POST", "/teams/{id}/members"): Access(LEADERS, "team"),
    ("POST", "/teams/{id}/keys"): Access(LEADERS, "team"),
    ("POST", "/teams/{id}/delete"): Access(LEADERS, "team"),
    ("GET", "/team"): MEMBERS,
    ("POST", "/team/invite"): Access(LEADERS),
    ("GET", "/team/{user_id}"): Access(LEADERS, "member"),
    ("POST", "/team/{user_id}/role"): Access(LEADERS, "member"),
    ("POST", "/team/{user_id}/reset"): Access(OWNERS, "member"),
    ("POST", "/team/{user_id}/transfer"): Access(OWNERS, "member"),
    ("POST", "/team/invitations/{id}/resend"): Access(LEADERS, "invitation"),
    ("POST", "/team/{user_id}/remove"): Access(LEADERS, "member"),
    ("POST", "/team/invitations/{id}/withdraw"): Access(LEADERS, "invitation"),
    ("POST", "/team/second"): Access(OWNERS),
    ("GET", "/settings"): MEMBERS,
    ("POST", "/settings/organisation"): Access(LEADERS),
    ("GET", "/settings/webhooks"): MEMBERS,
    ("POST", "/settings/webhooks"): Access(LEADERS),
    ("POST", "/settings/webhooks/{id}/test"): Access(LEADERS, "webhook"),
    ("POST", "/settings/webhooks/{id}/disable"): Access(LEADERS, "webhook"),
    ("POST", "/settings/webhooks/{id}/enable"): Access(LEADERS, "webhook"),
    ("POST", "/settings/webhooks/{id}/delete"): Access(LEADERS, "webhook"),
    ("GET", "/settings/prices"): MEMBERS,
    ("GET", "/settings/gateway"): Access(LEADERS),
    ("POST", "/settings/gateway/reload"): Access(LEADERS),
    ("GET", "/audit"): Access(LEADERS),
    ("GET", "/account"): MEMBERS,
    ("POST", "/account/password"): MEMBERS,
    ("GET", "/account/second"): MEMBERS,
    ("POST", "/account/second/begin"): MEMBERS,
    ("POST", "/account/second/confirm"): MEMBERS,
    ("POST", "/account/second/codes"): MEMBERS,
    ("POST", "/account/second/drop"): MEMBERS,
    ("POST", "/account/organisation"): MEMBERS,
    ("POST", "/account/sessions/end"): MEMBERS,
    ("POST", "/account/sessions/{id}/end"): Access(frozenset(ROLES), "session"),
    ("GET", "/api/me"): MEMBERS,
    ("GET", "/api/keys"): MEMBERS,
    ("POST", "/api/keys"): Access(KEEPERS),
    ("GET", "/api/keys/{id}"): Access(frozenset(ROLES), "key"),
    ("PATCH", "/api/keys/{id}"): Access(KEEPERS, "key"),
    ("POST", "/api/keys/{id}/roll"): Access(KEEPERS, "key"),
    ("DELETE", "/api/keys/{id}"): Access(KEEPERS, "key"),
    ("GET", "/api/keys/{id}/used"): Access(frozenset(ROLES), "key"),
    ("GET", "/api/usage"): MEMBERS,
    ("GET", "/api/usage/latency"): MEMBERS,
    ("GET", "/api/overview"): MEMBERS,
    ("GET", "/api/teams"): MEMBERS,
    ("POST", "/api/teams"): Access(LEADERS),
    ("GET", "/api/teams/{id}"): Access(frozenset(ROLES), "team"),
    ("PATCH", "/api/teams/{id}"): Access(LEADERS, "team"),
    ("DELETE", "/api/teams/{id}"): Access(LEADERS, "team"),
    ("PUT", "/api/teams/{id}/members/{user_id}"): Access(LEADERS, "team"),
    ("DELETE", "/api/teams/{id}/members/{user_id}"): Access(LEADERS, "team"),
    ("GET", "/api/requests"): MEMBERS,
    ("GET", "/api/requests/arrived"): MEMBERS,
    ("GET", "/api/requests/views"): MEMBERS,
    ("POST", "/api/requests/views"): MEMBERS,
    ("DELETE", "/api/requests/views/{id}"): Access(frozenset(ROLES), "view"),
    ("GET", "/api/requests/{id}"): Access(frozenset(ROLES), "request"),
    ("GET", "/api/models"): MEMBERS,
    ("PUT", "/api/models/target"): Access(LEADERS),
    ("GET", "/api/upstreams"): MEMBERS,
    ("PATCH", "/api/byok"): Access(LEADERS),
    ("GET", "/api/providers"): MEMBERS,
    ("POST", "/api/providers"): Access(LEADERS),
    ("GET", "/api/providers/{id}"): Access(frozenset(ROLES), "provider"),
    ("PATCH", "/api/providers/{id}"): Access(LEADERS, "provider"),
    ("DELETE", "/api/providers/{id}"): Access(LEADERS, "provider"),
    ("POST", "/api/providers/{id}/test"): Access(LEADERS, "provider"),
    ("GET", "/api/credentials"): MEMBERS,
    ("POST", "/api/credentials"): Access(LEADERS),
    ("POST", "/api/credentials/test"): Access(LEADERS),
    ("GET", "/api/credentials/{id}"): Access(frozenset(ROLES), "credential"),
    ("PATCH", "/api/credentials/{id}"): Access(LEADERS, "credential"),
    ("DELETE", "/api/credentials/{id}"): Access(LEADERS, "credential"),
    ("POST", "/api/credentials/{id}/test"): Access(LEADERS, "credential"),
    ("GET", "/api/limits"): MEMBERS,
    ("PATCH", "/api/limits/organisation"): Access(OWNERS),
    ("PATCH", "/api/limits/team/{id}"): Access(LEADERS, "team"),
    ("PATCH", "/api/limits/member/{user_id}"): Access(LEADERS, "member"),
    ("PATCH", "/api/limits/key/{id}"): Access(KEEPERS, "key"),
    ("POST", "/api/limits/organisation/preview"): Access(OWNERS),
    ("POST", "/api/limits/team/{id}/preview"): Access(LEADERS, "team"),
    ("POST", "/api/limits/member/{user_id}/preview"): Access(LEADERS, "member"),
    ("POST", "/api/limits/key/{id}/preview"): Access(KEEPERS, "key"),
    ("POST", "/api/playground/key"): Access(KEEPERS),
    ("GET", "/api/settings"): MEMBERS,
    ("PATCH", "/api/settings"): Access(LEADERS),
    ("GET", "/api/webhooks"): MEMBERS,
    ("POST", "/api/webhooks"): Access(LEADERS),
    ("PATCH", "/api/webhooks/{id}"): Access(LEADERS, "webhook"),
    ("POST", "/api/webhooks/{id}/test"): Access(LEADERS, "webhook"),
    ("DELETE", "/api/webhooks/{id}"): Access(LEADERS, "webhook"),
    ("GET", "/api/prices"): MEMBERS,
    ("GET", "/api/gateway/configuration"): Access(LEADERS),
    ("GET", "/api/gateway/plugins"): Access(LEADERS),
    ("POST", "/api/gateway/reload"): Access(LEADERS),
    ("GET", "/api/playground/prompts"): MEMBERS,
    ("POST", "/api/playground/prompts"): Access(KEEPERS),
    ("GET", "/api/playground/prompts/{id}"): Access(frozenset(ROLES), "prompt"),
    ("PATCH", "/api/playground/prompts/{id}"): Access(KEEPERS, "prompt"),
    ("DELETE", "/api/playground/prompts/{id}"): Access(KEEPERS, "prompt"),
}


UNTIL_SECOND = frozenset(
    {"/account", "/account/second", "/account/second/begin", "/account/second/confirm",
     "/account/organisation", "/logout", "/theme"}
)  # fmt: skip
"""All that there is for who has yet to get the second factor that their organisation asks for."""


def may(role: Role, method: str, path: str) -> bool:
    """Whether a role may ask a route; pages offer nothing else."""
    roles = ACCESS[method, path].roles
    return roles is None or role in roles

"""What can be set about people: who vouches for them, and how they are written to."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from passy_proxy import Settings, setting
from passy_proxy.config.settings import OptionalSecret, Secret
from passy_proxy.issue import Role

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _issuer(url: str) -> str:
    parts = urlsplit(url)
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if not secure or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("write its https address, such as https://id.example.com/realms/work")
    if find_spec("joserfc") is None:
        raise ValueError("joserfc is needed: pip install 'passy-gateway[oidc]'")
    return url


class SignInWith(Settings):
    """An OpenID provider that people sign in with."""

    issuer: Annotated[str, AfterValidator(_issuer)] = setting(
        ..., "The provider's address, letter by letter as its tokens name it."
    )
    client_id: str = setting(..., "What the portal is called there.", min_length=1)
    client_secret: OptionalSecret = setting(
        "", "Its secret there. Empty for a public client, which has PKCE alone."
    )
    title: str = setting("", "What people know it by; its name here when empty.")
    scopes: tuple[str, ...] = setting(
        ("openid", "email", "profile"), "What is asked for; some want one more for groups."
    )
    domains: tuple[str, ...] = setting(
        (), "Who has a verified e-mail of one of these becomes a member without an invitation."
    )
    organisation: str = setting(
        "", "The id of the organisation they become members of; the only one when empty."
    )
    role: Role = setting("viewer", "What they may do there.")
    roles_claim: str = setting("groups", "Where a token lists somebody's groups.")
    roles: dict[str, Role] = setting(
        {},
        "Group → role: the highest counts, and is taken over with each sign-in. Who is in none of "
        "them gets `role`.",
    )
    second_factor: bool = setting(
        False, "The provider asks for a second factor itself, so the portal does not."
    )


def _server(url: Secret) -> Secret:
    parts = urlsplit(url.reveal())
    try:
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one = False
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname or not port_is_one:
        raise ValueError("write smtps://user:password@mail.example.com, or smtp:// for STARTTLS")
    return url


class Mail(Settings):
    """A server that takes letters of the portal."""

    url: Annotated[Secret, AfterValidator(_server)] = setting(
        ...,
        "smtps://user:password@host:465, or smtp://…:587 with STARTTLS; without it only on this"
        " machine.",
    )
    sender: str = setting(
        ..., "The address they come from.", pattern=r"^[^@\s]+@[^@\s]+$", max_length=254
    )

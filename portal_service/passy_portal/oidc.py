"""OpenID Connect: a code for a token, and a token that is looked at closely.

Authorization code flow with PKCE (S256), state and nonce (OpenID Connect Core 1.0, RFC 7636, RFC
9207). What the provider says of itself is believed as far as it concerns its own host: an endpoint
elsewhere is reached under the rules for tenants, so that no document leads into the network that
the portal is in. Redirects are not followed, answers are bounded and timed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote, urlencode, urlsplit

from passy_proxy import TransportError, UpstreamRequest, json
from passy_proxy.transport import Timeouts

if TYPE_CHECKING:
    from passy_portal.settings import SignInWith
    from passy_proxy import Connections

TIMEOUTS = Timeouts(connect=5.0, tls=5.0, write=5.0, first_byte=10.0, idle=5.0, total=15.0)
LARGEST = 1 << 20
"""Bytes of an answer."""
KEPT = 3_600.0
"""Seconds that a provider's description and keys are kept."""
AGAIN = 2.0
"""Seconds between two looks at keys for the sake of one that is not known."""
FRESH = 300
"""Seconds that signing in there counts as having been just now."""
LEEWAY = 60
"""Seconds that clocks may differ."""
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "Ed25519",
)  # fmt: skip
"""Asymmetric ones alone: a client's secret must not make a token, and `none` is no signature."""


class Refused(Exception):
    """Why nobody is let in, for people; what a stranger sent is not repeated."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What a browser keeps between the two halves of signing in."""

    provider: str
    state: str
    nonce: str
    verifier: str
    """Of PKCE: 256 random bits."""
    then: str
    link: str
    """The invitation that began it, or nothing."""
    until: float
    """Unix seconds."""
    session: str = ""
    """The public id of the session that began it, of who has signed in already; or nothing."""
    proves: bool = False
    """What that session wants is not one more way in, but to show that its holder has this one."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Whom the provider vouches for."""

    issuer: str
    subject: str
    email: str
    """Lower case; empty where the provider has not verified it."""
    name: str
    groups: frozenset[str]


class Provider:
    """One of the configured ones."""

    def __init__(
        self, name: str, settings: SignInWith, connections: Callable[[], Connections]
    ) -> None:
        self.name = name
        self.settings = settings
        self.title = settings.title or name
        self._connections = connections
        self._described: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, Any] | None = None
        self._looking = asyncio.Lock()

    async def beginning(self, flow: Flow, back: str) -> str:
        """Where the browser goes; ``back`` is where it returns to."""
        described = await self._description()
        digest = hashlib.sha256(flow.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": back,
            "scope": " ".join(dict.fromkeys(("openid", *self.settings.scopes))),
            "state": flow.state,
            "nonce": flow.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        if flow.proves:
            asked |= {"prompt": "login", "max_age": str(FRESH)}
        url = self._endpoint(described, "authorization_endpoint")
        return f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}"

    async def claimed(self, flow: Flow, said: Mapping[str, str], back: str) -> Claimed:
        """Who came back with ``said``, the parameters of the address. Raises `Refused`."""
        if not hmac.compare_digest(said.get("state", "").encode(), flow.state.encode()):
            raise Refused("This answer belongs to another attempt. Begin again.")
        described = await self._description()
        told = said.get("iss")
        if told is None and described.get("authorization_response_iss_parameter_supported") is True:
            raise Refused(f"{self.title} did not say that the answer is its own.")
        if told is not None and told != self.settings.issuer:
            raise Refused(f"This answer is not of {self.title}.")
        if "error" in said:
            raise Refused(f"{self.title} refused: {plain(said['error'])}.")
        if not (code := said.get("code", "")):
            raise Refused(f"{self.title} sent no code.")
        granted = await self._exchange(described, code, flow.verifier, back)
        token = granted.get("id_token")
        if not isinstance(token, str):
            raise Refused(f"{self.title} sent no token of who you are.")
        claims = await self._verified(described, token, flow.nonce)
        if flow.proves:
            self._check_fresh(claims)
        if "email" not in claims:
            claims = claims | await self._more(described, granted, claims["sub"])
        return self._person(claims)

    # What the provider says of itself

    async def _description(self) -> dict[str, Any]:
        async with self._looking:
            known = self._described
            if known is not None and time.monotonic() < known[0] + KEPT:
                return known[1]
            base = self.settings.issuer.rstrip("/")
            found = await self._json("GET", f"{base}/.well-known/openid-configuration")
            if found.get("issuer") != self.settings.issuer:
                raise Refused(f"{self.title} calls itself otherwise than `issuer` says.")
            self._described = time.monotonic(), found
            return found

    def _endpoint(self, described: Mapping[str, Any], name: str) -> str:
        url = described.get(name)
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
            raise Refused(f"{self.title} does not say where its {name} is.")
        if urlsplit(url).scheme != "https" and urlsplit(url).netloc != self._home:
            raise Refused(f"The {name} of {self.title} is not reached by https.")
        return url

    @property
    def _home(self) -> str:
        return urlsplit(self.settings.issuer).netloc

    # Tokens

    async def _exchange(
        self, described: Mapping[str, Any], code: str, verifier: str, back: str
    ) -> dict[str, Any]:
        """The code for tokens, once."""
        id, secret = self.settings.client_id, self.settings.client_secret.reveal()
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": back,
            "code_verifier": verifier,
        }  # fmt: skip
        headers: list[tuple[bytes, bytes]] = []
        ways = described.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in ways:
            pair = f"{quote(id, safe='')}:{quote(secret, safe='')}".encode()
            headers.append((b"authorization", b"Basic " + base64.b64encode(pair)))
        else:
            form |= {"client_id": id} | ({"client_secret": secret} if secret else {})
        url = self._endpoint(described, "token_endpoint")
        return await self._json("POST", url, headers, urlencode(form).encode())

    async def _verified(
        self, described: Mapping[str, Any], token: str, nonce: str
    ) -> dict[str, Any]:
        """The claims of a token that is the provider's, ours, of now and of this attempt."""
        claims = await self._signed(described, token)
        now, mine = time.time(), self.settings.client_id
        audience = claims.get("aud")
        several = audience if isinstance(audience, list) else [audience]
        wrong = (
            ("issuer", claims.get("iss") != self.settings.issuer),
            ("audience", mine not in several),
            ("party", claims.get("azp", mine if len(several) == 1 else None) != mine),
            ("time", not _number(claims.get("exp")) or claims["exp"] <= now - LEEWAY),
            ("time", not _number(claims.get("iat")) or claims["iat"] > now + LEEWAY),
            ("time", _number(claims.get("nbf")) and claims["nbf"] > now + LEEWAY),
            ("nonce", not _same(claims.get("nonce"), nonce)),
            ("subject", not _text(claims.get("sub"))),
        )
        for name, is_wrong in wrong:
            if is_wrong:
                raise Refused(f"The token of {self.title} does not fit: its {name} is wrong.")
        return claims

    def _check_fresh(self, claims: Mapping[str, Any]) -> None:
        """By the provider's word of when they signed in there: that they were asked to do so anew
        is in an address that whoever sits at the browser can change."""
        if not _number(claims.get("auth_time")):
            raise Refused(
                f"{self.title} does not say when you signed in there, so it cannot show that it is "
                "you who asks. Ask an owner for a link to a password."
            )
        if claims["auth_time"] <= time.time() - FRESH - LEEWAY:
            raise Refused(f"You have signed in at {self.title} too long ago. Sign in there anew.")

    async def _signed(self, described: Mapping[str, Any], token: str) -> dict[str, Any]:
        from joserfc import errors, jwt

        for fresh in (False, True):
            keys = await self._key_set(described, fresh=fresh)
            try:
                return dict(jwt.decode(token, keys, algorithms=ALGORITHMS).claims)
            except (errors.InvalidKeyIdError, errors.MissingKeyError, errors.BadSignatureError):
                continue  # They may have other keys by now.
            except (errors.JoseError, ValueError) as error:
                raise Refused(f"The token of {self.title} cannot be read.") from error
        raise Refused(f"The token of {self.title} was not signed with one of its keys.")

    async def _key_set(self, described: Mapping[str, Any], *, fresh: bool) -> Any:
        """``fresh``: what is kept may be too old; but a stranger's tokens do not make us ask for
        ever."""
        from joserfc import errors
        from joserfc.jwk import KeySet

        async with self._looking:
            known, now = self._keys, time.monotonic()
            if known is not None and now < known[0] + (AGAIN if fresh else KEPT):
                return known[1]
            found = await self._json("GET", self._endpoint(described, "jwks_uri"))
            listed = found.get("keys")
            signing = [
                key for key in (listed if isinstance(listed, list) else ())
                if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP")
                and key.get("use", "sig") == "sig"
            ]  # fmt: skip
            try:
                keys = KeySet.import_key_set({"keys": signing})
            except (errors.JoseError, ValueError) as error:
                raise Refused(f"The keys of {self.title} cannot be read.") from error
            self._keys = now, keys
            return keys

    async def _more(
        self, described: Mapping[str, Any], granted: Mapping[str, Any], subject: str
    ) -> dict[str, Any]:
        """What the provider tells of somebody elsewhere, where it is of the same one."""
        token = granted.get("access_token")
        if "userinfo_endpoint" not in described or not isinstance(token, str):
            return {}
        headers = [(b"authorization", b"Bearer " + token.encode("ascii", "replace"))]
        found = await self._json("GET", self._endpoint(described, "userinfo_endpoint"), headers)
        if found.get("sub") != subject:
            raise Refused(f"{self.title} told of somebody else.")
        return found

    def _person(self, claims: Mapping[str, Any]) -> Claimed:
        email = claims.get("email")
        verified = claims.get("email_verified") in (True, "true")
        groups = claims.get(self.settings.roles_claim)
        named = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        name = claims.get("name")
        return Claimed(
            self.settings.issuer,
            claims["sub"],
            email.lower() if verified and _text(email) and email.count("@") == 1 else "",
            plain(name) if _text(name) else "",
            frozenset(one for one in named if isinstance(one, str)),
        )

    # Asking

    async def _json(
        self, method: str, url: str, headers: list[tuple[bytes, bytes]] | None = None,
        body: bytes = b"",
    ) -> dict[str, Any]:  # fmt: skip
        """An object of JSON, from the provider's host or a public one. Raises `Refused`."""
        parts = urlsplit(url)
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        sent = [(b"accept", b"application/json"), (b"user-agent", b"passy"), *(headers or ())]
        if body:
            sent.append((b"content-type", b"application/x-www-form-urlencoded"))
        request = UpstreamRequest(method, target.encode("ascii", "replace"), sent, body,
                                  timeouts=TIMEOUTS)  # fmt: skip
        try:
            restricted = parts.netloc != self._home
            transport = self._connections().transport(
                f"{parts.scheme}://{parts.netloc}", restricted=restricted
            )
            try:
                leg = await transport.open(request)
                try:
                    status, content = leg.status, await leg.read_all(LARGEST)
                finally:
                    leg.close()
            finally:
                await transport.aclose()
        except (TransportError, ValueError) as error:
            raise Refused(f"{self.title} cannot be reached: {error}.") from error
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if status != 200:
            why = found.get("error") if isinstance(found, dict) else None
            told = f": {plain(why)}" if _text(why) else ""
            raise Refused(f"{self.title} answered {status}{told}.")
        if not isinstance(found, dict):
            raise Refused(f"{self.title} answered something that is no JSON.")
        return found


def plain(text: Any) -> str:
    """What somebody else wrote, as a few words in a line."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:120]


def _text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= 255


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, wanted: str) -> bool:
    return isinstance(value, str) and hmac.compare_digest(value.encode(), wanted.encode())

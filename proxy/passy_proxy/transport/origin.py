"""Origins: where an upstream is, and which addresses a tenant's own upstream may have."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*)",
    re.ASCII | re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_METADATA = _networks(
    "169.254.169.254/32",
    "169.254.170.2/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "100.100.100.200/32",
    "fd00:ec2::254/128",
    "fd20:ce::254/128",
)
_TRANSLATED = _networks(  # addresses that carry an IPv4 address, by which a check could be dodged
    "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
    "2001::/32", "2002::/16", "192.88.99.0/24",
)  # fmt: skip
_LOOPBACK = ipaddress.IPv6Address("::1")
_SPECIAL = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
    "203.0.113.0/24", "224.0.0.0/3",
    "::/3", "2001::/23", "2001:db8::/32", "3fff::/20", "4000::/2", "8000::/1",
)  # fmt: skip


class BadOrigin(ValueError):
    """An upstream address that is malformed or not allowed. Never quotes the address itself."""


@dataclass(frozen=True, slots=True)
class AllowList:
    """What tenants' own upstreams may reach besides public https: networks and host names."""

    networks: tuple[_Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, entries: Iterable[str]) -> AllowList:
        """From CIDRs, single addresses and exact host names."""
        networks: list[_Network] = []
        hosts: list[str] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                hosts.append(entry.lower().rstrip("."))
        return cls(tuple(networks), frozenset(hosts))

    def names(self, host: str) -> bool:
        """``host`` itself is listed, or is an address inside a listed network."""
        address = numeric(host)
        return host in self.hosts if address is None else self._holds(address)

    def admits(self, host: str, address: str) -> bool:
        """A connection to ``host`` may go to ``address`` (numeric)."""
        found = numeric(address)
        if found is None or _within(found, _METADATA):
            return False
        if _within(found, _TRANSLATED) and found != _LOOPBACK:
            return False
        if host in self.hosts or self._holds(found):
            return True
        return found.is_global and not found.is_multicast and not _within(found, _SPECIAL)

    def _holds(self, address: _Address) -> bool:
        return _within(address, self.networks)


NOTHING = AllowList()


def numeric(text: str) -> _Address | None:
    """The address that ``text`` is; ``None`` for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _within(address: _Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upstream is: ``host`` is a lower-case name or a canonical address, unbracketed.

    ``base_path`` has no trailing slash. A ``restricted`` origin was named by a tenant, and each of
    its addresses is checked before it is dialled.
    """

    scheme: str
    host: str
    port: int
    base_path: bytes = b""
    host_header: bytes = b""
    restricted: bool = False

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def default_port(self) -> bool:
        return self.port == _PORTS[self.scheme]


def parse_origin(url: str, restricted: bool = False, allow: AllowList = NOTHING) -> Origin:
    """The origin that ``url`` (scheme, host, optional port and path) names. Raises BadOrigin.

    ``restricted`` also demands https on port 443 and no private address, unless ``allow`` says so.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise BadOrigin(_fault(url))
    scheme = parts["scheme"].lower()
    host = _host(parts["host"])
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise BadOrigin("the port is outside 1 to 65535")
    if any(segment in (".", "..") for segment in parts["path"].split("/")):
        raise BadOrigin("the path has dot segments")
    if "//" in parts["path"]:
        raise BadOrigin("the path has empty segments")
    if restricted:
        _restrict(scheme, host, port, allow)
    shown = f"[{host}]" if ":" in host else host
    if port != _PORTS[scheme]:
        shown = f"{shown}:{port}"
    path = parts["path"].rstrip("/").encode("ascii")
    return Origin(scheme, host, port, path, shown.encode("ascii"), restricted)


def _fault(url: str) -> str:
    rest = url.partition("://")[2]
    if "@" in rest.partition("/")[0]:
        return "credentials do not belong into an address"
    if "?" in rest or "#" in rest:
        return "an upstream address has neither query nor fragment"
    if not url.lower().startswith(("http://", "https://")):
        return "an upstream address begins with http:// or https://"
    return "the address holds characters that are not allowed"


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise BadOrigin("the host is not a valid IPv6 address") from None
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # an IPv4 address in whatever spelling, or nothing
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadOrigin("an IPv4 address is four decimal numbers") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadOrigin("the host is not a valid name")
    return host


def _restrict(scheme: str, host: str, port: int, allow: AllowList) -> None:
    if not allow.names(host):
        if scheme != "https":
            raise BadOrigin("only https is allowed here")
        if port != _PORTS["https"]:
            raise BadOrigin("only port 443 is allowed here")
    if numeric(host) is not None and not allow.admits(host, host):
        raise BadOrigin("this address is not allowed")
    if (host == "localhost" or host.endswith(".localhost")) and not allow.names(host):
        raise BadOrigin("this host is not allowed")

"""Where connections begin: origins, addresses that may be reached, names, sockets and TLS.

Both transports connect through one :class:`Connector`, so the address check for tenants' own
upstreams sits below everything that could name a destination. The address that was checked is the
address that is dialled; TLS is verified against the name. No proxy variable is honoured.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import certifi

from . import Timeouts, TransportError

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Found = tuple[tuple[socket.AddressFamily, str], ...]
Lookup = Callable[..., list[Any]]
"""What ``socket.getaddrinfo`` is: host, port, family, type -> rows."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*)",
    re.ASCII | re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_TRIED = 8
"""No more addresses of one name than this are dialled."""


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
    "::/8", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/9", "ff00::/8",
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
        address = _address(host)
        return host in self.hosts if address is None else self._holds(address)

    def admits(self, host: str, address: str) -> bool:
        """A connection to ``host`` may go to ``address`` (numeric)."""
        found = _address(address)
        if found is None or _within(found, _METADATA):
            return False
        if _within(found, _TRANSLATED) and found != _LOOPBACK:
            return False
        if host in self.hosts or self._holds(found):
            return True
        return found.is_global and not found.is_multicast and not _within(found, _SPECIAL)

    def _holds(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return _within(address, self.networks)


NOTHING = AllowList()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _within(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: tuple[_Network, ...]
) -> bool:
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
    if _address(host) is not None and not allow.admits(host, host):
        raise BadOrigin("this address is not allowed")
    if (host == "localhost" or host.endswith(".localhost")) and not allow.names(host):
        raise BadOrigin("this host is not allowed")


@dataclass(frozen=True, slots=True)
class Tls:
    """How an upstream proves itself. ``verify=False`` trusts anyone; it is never a default."""

    ca_file: str | None = None
    verify: bool = True


VERIFIED = Tls()


@dataclass(frozen=True, slots=True)
class ConnectSettings:
    """``dns_ttl``: seconds an answer is kept; ``dns_entries``: how many names are kept."""

    dns_ttl: float = 30.0
    dns_entries: int = 1024
    allow: AllowList = field(default=NOTHING)


class Connector:
    """Resolves, checks and dials; one per process, shared by all transports.

    ``lookup`` is run in the loop's executor, once per name at a time however many ask.
    """

    def __init__(
        self, settings: ConnectSettings | None = None, lookup: Lookup = socket.getaddrinfo
    ) -> None:
        self.settings = settings or ConnectSettings()
        self._lookup = lookup
        self._known: dict[tuple[str, int], tuple[float, _Found]] = {}
        self._pending: dict[tuple[str, int], asyncio.Future[list[Any]]] = {}
        self._contexts: dict[tuple[Tls, tuple[str, ...]], ssl.SSLContext] = {}

    def tls_context(self, tls: Tls = VERIFIED, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """The one context for these settings (making one takes some 20 ms). Raises OSError."""
        context = self._contexts.get((tls, alpn))
        if context is None:
            context = self._contexts[tls, alpn] = _tls_context(tls, alpn)
        return context

    async def connect(
        self, factory: Callable[[], _P], origin: Origin, tls: Tls, timeouts: Timeouts
    ) -> tuple[asyncio.Transport, _P]:
        """A connected transport (TLS done for https) and its protocol.

        Raises TransportError of kind ``connect``; ``phase`` is dns, address, tcp or tls.
        """
        loop = asyncio.get_running_loop()
        if not origin.tls:
            return await loop.create_connection(factory, sock=await self._dial(origin, timeouts))
        try:
            context = self.tls_context(tls)
        except OSError as error:
            message = "the CA file cannot be read"
            raise TransportError("connect", message, phase="tls") from error
        sock = await self._dial(origin, timeouts)
        try:
            async with asyncio.timeout(timeouts.tls):
                return await loop.create_connection(
                    factory, sock=sock, ssl=context, server_hostname=origin.host
                )
        except OSError as error:  # TimeoutError and ssl.SSLError are among them
            raise TransportError("connect", tls_fault(origin.host, error), phase="tls") from error

    async def addresses(self, origin: Origin) -> _Found:
        """Family and numeric address of each place ``origin`` may be dialled at, in order.

        Raises TransportError: phase ``dns`` for an unknown name, ``address`` for a forbidden one
        (a single forbidden address forbids them all).
        """
        literal = _address(origin.host)
        if literal is None:
            found = await self._resolve(origin.host, origin.port)
        else:
            family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
            found = ((family, origin.host),)
        allow = self.settings.allow
        if origin.restricted and not all(allow.admits(origin.host, at) for _, at in found):
            raise TransportError(
                "connect", f"{origin.host} leads to an address that is not allowed", phase="address"
            )
        return found[:_TRIED]

    async def _resolve(self, host: str, port: int) -> _Found:
        loop = asyncio.get_running_loop()
        key = (host, port)
        known = self._known.get(key)
        if known is not None and loop.time() < known[0]:
            return known[1]
        pending = self._pending.get(key)
        if pending is None:
            ask = partial(self._lookup, host, port, 0, socket.SOCK_STREAM)
            pending = self._pending[key] = loop.run_in_executor(None, ask)
            pending.add_done_callback(partial(self._learn, key))
        try:
            rows = await asyncio.shield(pending)
        except (OSError, UnicodeError) as error:
            message = f"{host} cannot be resolved"
            raise TransportError("connect", message, phase="dns") from error
        found = _addresses(rows)
        if not found:
            raise TransportError("connect", f"{host} has no address", phase="dns")
        return found

    def _learn(self, key: tuple[str, int], answer: asyncio.Future[list[Any]]) -> None:
        self._pending.pop(key, None)
        if answer.cancelled() or answer.exception() is not None:
            return
        self._known.pop(key, None)
        while len(self._known) >= self.settings.dns_entries:
            del self._known[next(iter(self._known))]
        until = answer.get_loop().time() + self.settings.dns_ttl
        self._known[key] = (until, _addresses(answer.result()))

    async def _dial(self, origin: Origin, timeouts: Timeouts) -> socket.socket:
        """A connected socket, owned from here on by the transport that is made of it."""
        loop = asyncio.get_running_loop()
        limit = timeouts.connect
        end = None if limit is None else loop.time() + limit
        try:
            async with asyncio.timeout_at(end):
                found = await self.addresses(origin)
        except TimeoutError as error:
            message = f"resolving {origin.host} took longer than {limit:g} s"
            raise TransportError("connect", message, phase="dns") from error
        fault: OSError | None = None
        for position, (family, address) in enumerate(found):
            share = None if end is None else (end - loop.time()) / (len(found) - position)
            try:
                async with asyncio.timeout(share):
                    return await _dialled(family, address, origin.port)
            except OSError as error:
                fault = error
        self._known.pop((origin.host, origin.port), None)  # it may have moved
        reason = "timed out" if isinstance(fault, TimeoutError) else _reason(fault)
        message = f"connecting to {origin.host}:{origin.port}: {reason}"
        raise TransportError("connect", message, phase="tcp") from fault


async def _dialled(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(rows: list[Any]) -> _Found:
    return tuple(dict.fromkeys((row[0], str(row[4][0])) for row in rows))


def _reason(error: BaseException | None) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def tls_fault(host: str | None, error: OSError) -> str:
    """A sentence on why no TLS connection to ``host`` came about."""
    if isinstance(error, TimeoutError):
        reason = "timed out"
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message
    elif isinstance(error, ssl.SSLError):
        reason = (error.reason or "failed").replace("_", " ").lower()
    else:
        reason = _reason(error)
    return f"TLS with {host}: {reason}"


def _tls_context(tls: Tls, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.ca_file is None:
        paths = ssl.get_default_verify_paths()
        if paths.cafile is None and paths.capath is None:  # a system without certificates
            context.load_verify_locations(certifi.where())
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context

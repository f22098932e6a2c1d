"""Where connections begin: names, the address check, sockets and TLS.

Both transports connect through one :class:`Connector`, so the address check for tenants' own
upstreams sits below everything that could name a destination. The address that was checked is the
address that is dialled; TLS is verified against the name. No proxy variable is honoured.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import certifi

from . import Timeouts, TransportError
from .origin import NOTHING, AllowList, BadOrigin, Origin, numeric, parse_origin

__all__ = [
    "NOTHING",
    "VERIFIED",
    "AllowList",
    "BadOrigin",
    "ConnectSettings",
    "Connector",
    "Origin",
    "Tls",
    "parse_origin",
    "tls_fault",
]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_Found = tuple[tuple[socket.AddressFamily, str], ...]
Lookup = Callable[..., list[Any]]
"""What ``socket.getaddrinfo`` is: host, port, family, type -> rows."""

_UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_UNSENT_BYTES = 131_072
"""The system takes no more than this beyond what the other side is ready for. So of an upload that
is refused nearly all is still ours, and the loop reads the refusal before it writes again."""
_TRIED = 8
"""No more addresses of one name than this are dialled."""


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
        literal = numeric(origin.host)
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
        # Clients see it: the address is the operator's business, and the upstream has a name.
        message = f"no connection: {reason}"
        raise TransportError("connect", message, phase="tcp") from fault


async def _dialled(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _UNSENT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _UNSENT, _UNSENT_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(rows: list[Any]) -> _Found:
    return tuple(dict.fromkeys((row[0], str(row[4][0])) for row in rows))


def _reason(error: BaseException | None) -> str:
    number = getattr(error, "errno", None)  # asyncio's own text repeats the address
    return (os.strerror(number) if number else type(error).__name__).lower()


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

"""Where connections begin: names, the address check, sockets and TLS.

Both transports connect through one :class:`Connector`, so the address check for tenants' own
upstreams sits below everything that could name a destination. The address that was checked is the
address that is dialled; TLS is verified against the name. No proxy variable is honoured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

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


class _Known(NamedTuple):
    """What a name led to: the first places, whether a tenant may go there, and until when."""

    found: _Found
    admitted: bool
    """Each address of the answer is allowed, also those beyond the first."""
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Tls:
    """How an upstream proves itself. ``verify=False`` trusts anyone; it is never a default."""

    ca_file: str | None = None
    verify: bool = True


VERIFIED = Tls()


@dataclass(frozen=True, slots=True)
class ConnectSettings:
    """``dns_ttl``: seconds an answer is kept; ``dns_entries``: how many names are kept.

    An older answer is used for ``dns_stale`` seconds more when the name cannot be resolved again,
    or not within ``dns_patience`` seconds. ``dns_lookups``: names that are asked for at once, those
    of the operator's upstreams and those of tenants' each.
    """

    dns_ttl: float = 30.0
    dns_entries: int = 1024
    dns_stale: float = 300.0
    dns_patience: float = 1.0
    dns_lookups: int = 32
    allow: AllowList = field(default=NOTHING)


class Connector:
    """Resolves, checks and dials; one per process, shared by all transports.

    ``lookup`` is run in a thread of its own, once per name at a time however many ask. Such a
    thread may hang as long as a resolver does: there is a bound on their number, tenants' names
    cannot use up the operator's share, and the process ends without waiting for them.
    """

    def __init__(
        self, settings: ConnectSettings | None = None, lookup: Lookup = socket.getaddrinfo
    ) -> None:
        self.settings = settings or ConnectSettings()
        self._lookup = lookup
        self._known: dict[tuple[str, int], _Known] = {}
        self._pending: dict[tuple[str, int], asyncio.Future[_Known]] = {}
        self._asking = {False: 0, True: 0}
        """How many look-ups run, for the operator's upstreams and for tenants'."""
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
            known = await self._resolve(origin)
        else:
            family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
            known = _Known(((family, origin.host),), True)
        if origin.restricted and not (known.admitted and self._admits(origin.host, known.found)):
            raise TransportError(
                "connect", f"{origin.host} leads to an address that is not allowed", phase="address"
            )
        return known.found

    def _admits(self, host: str, found: _Found) -> bool:
        allow = self.settings.allow
        return all(allow.admits(host, address) for _, address in found)

    async def _resolve(self, origin: Origin) -> _Known:
        host, now = origin.host, asyncio.get_running_loop().time()
        key = (host, origin.port)
        known = self._known.get(key)
        if known is not None and now < known.until:
            return known
        if known is not None and now >= known.until + self.settings.dns_stale:
            known = None
        try:
            pending = self._pending.get(key) or self._ask(key, origin.restricted)
            if known is None:
                return await asyncio.shield(pending)
            async with asyncio.timeout(self.settings.dns_patience):
                return await asyncio.shield(pending)
        except OSError as error:  # TimeoutError is among them
            if known is not None:
                return known
            message = f"{host} cannot be resolved"
            raise TransportError("connect", message, phase="dns") from error
        except TransportError:
            if known is not None:
                return known
            raise

    def _ask(self, key: tuple[str, int], restricted: bool) -> asyncio.Future[_Known]:
        """Begin a look-up. Raises TransportError when too many run."""
        if self._asking[restricted] >= self.settings.dns_lookups:
            raise TransportError("connect", "too many names are being resolved", phase="dns")
        loop = asyncio.get_running_loop()
        pending: asyncio.Future[_Known] = loop.create_future()
        pending.add_done_callback(partial(self._learn, key, restricted))
        self._asking[restricted] += 1
        self._pending[key] = pending
        work = partial(self._look_up, key, loop, pending)
        try:
            threading.Thread(target=work, name="passy-dns", daemon=True).start()
        except RuntimeError as error:  # there can be no more threads
            pending.set_exception(OSError(str(error)))
        return pending

    def _look_up(
        self, key: tuple[str, int], loop: asyncio.AbstractEventLoop, pending: asyncio.Future[_Known]
    ) -> None:
        """In a thread: ask, and check all addresses, of which there may be thousands."""
        host, port = key
        try:
            found = _addresses(self._lookup(host, port, 0, socket.SOCK_STREAM))
            if not found:
                raise TransportError("connect", f"{host} has no address", phase="dns")
            known = _Known(found[:_TRIED], self._admits(host, found))
            tell = partial(pending.set_result, known)
        except TransportError as error:
            tell = partial(pending.set_exception, error)
        except Exception as error:  # A resolver is other people's code, and so is what it is told.
            tell = partial(pending.set_exception, OSError(str(error)))
        with contextlib.suppress(RuntimeError):  # The loop may be closed by now.
            loop.call_soon_threadsafe(tell)

    def _learn(
        self, key: tuple[str, int], restricted: bool, answer: asyncio.Future[_Known]
    ) -> None:
        self._asking[restricted] -= 1
        self._pending.pop(key, None)
        if answer.cancelled() or answer.exception() is not None:
            return
        self._known.pop(key, None)
        while len(self._known) >= self.settings.dns_entries:
            del self._known[next(iter(self._known))]
        until = answer.get_loop().time() + self.settings.dns_ttl
        self._known[key] = answer.result()._replace(until=until)

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

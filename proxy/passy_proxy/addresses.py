"""Where a request comes from, and whether that lies in a range of addresses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Annotated

from pydantic import AfterValidator

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def parse_network(text: str) -> Network:
    """``203.0.113.7``, ``10.0.0.0/8`` or ``2001:db8::/32``, without the bits of a host."""
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        hint = "write 203.0.113.7, 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(f"{text[:60]!r} is no range of addresses; {hint}") from None


NetworkSetting = Annotated[str, AfterValidator(lambda text: str(parse_network(text)))]
"""A setting that holds a range."""


@lru_cache(1_000)
def _networks(ranges: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(map(parse_network, ranges))


def address_of(text: str) -> Address | None:
    """``None`` for what is none. An IPv4 address in the clothes of IPv6 is one of IPv4."""
    try:
        address = ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def within(ranges: tuple[str, ...], address: Address | None) -> bool:
    """Whether ``address`` lies in one of them; one that is not known lies in none."""
    return address is not None and any(
        network.version == address.version and address in network for network in _networks(ranges)
    )


def client_address(
    peer: str, headers: Iterable[tuple[bytes, bytes]], trusted: Sequence[str]
) -> Address | None:
    """Who asks: ``peer``, or behind ``trusted`` proxies whom the last of them saw.

    Each proxy adds to ``x-forwarded-for`` whom it was asked by, so the last address there that is
    none of the proxies is to be believed, and none before it.
    """
    address, proxies = address_of(peer), tuple(trusted)
    if not proxies or not within(proxies, address):
        return address
    said = [value for name, value in headers if name == b"x-forwarded-for"]
    for text in reversed(b",".join(said).decode("latin-1").split(",")):
        if not text.strip():
            continue
        address = address_of(text)
        if not within(proxies, address):
            return address
    return address

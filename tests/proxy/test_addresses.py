"""Who asks, and from where: ranges of addresses, and what proxies in front may say."""

from __future__ import annotations

import pytest

from passy_proxy.addresses import address_of, client_address, parse_network, within

OFFICE = ("10.0.0.0/8", "203.0.113.7", "2001:db8::/32")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("203.0.113.7", True),
        ("203.0.113.8", False),
        ("2001:db8:1::1", True),
        ("2001:db9::1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("10.1.2.3, 10.1.2.4", False),
        ("localhost", False),
    ],
)
def test_an_address_lies_in_a_range_or_not(text: str, inside: bool) -> None:
    assert inside == within(OFFICE, address_of(text))


def test_no_range_holds_nobody() -> None:
    assert not within((), address_of("10.1.2.3"))


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0", "everywhere", "10.0.0.0/8/8"])
def test_what_is_no_range_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no range of addresses"):
        parse_network(text)


PROXIES = ("192.0.2.0/24",)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["10.1.2.3"], "10.1.2.3"),
        ("192.0.2.1", ["6.6.6.6, 10.1.2.3"], "10.1.2.3"),
        ("192.0.2.1", ["10.1.2.3, 192.0.2.9"], "10.1.2.3"),
        ("192.0.2.1", ["6.6.6.6", "10.1.2.3"], "10.1.2.3"),
        ("192.0.2.1", ["6.6.6.6, rubbish"], None),
        ("192.0.2.1", ["192.0.2.7"], "192.0.2.7"),
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [" , "], "192.0.2.1"),
        ("198.51.100.1", ["10.1.2.3"], "198.51.100.1"),
        ("", ["10.1.2.3"], None),
    ],
)
def test_a_proxy_is_believed_and_nobody_before_it(
    peer: str, forwarded: list[str], client: str | None
) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    found = client_address(peer, headers, PROXIES)
    assert client == (None if found is None else str(found))


def test_without_a_proxy_that_is_trusted_nobody_may_say_who_he_is() -> None:
    found = client_address("192.0.2.1", [(b"x-forwarded-for", b"10.1.2.3")], ())
    assert "192.0.2.1" == str(found)

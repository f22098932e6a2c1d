"""Origins, the address check, name resolution and dialling."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import closing
from typing import Any

import pytest

from passy_proxy.transport import DEFAULT_TIMEOUTS, Timeouts, TransportError
from passy_proxy.transport.connect import (
    NOTHING,
    VERIFIED,
    AllowList,
    BadOrigin,
    Connector,
    ConnectSettings,
    Origin,
    Tls,
    parse_origin,
)

pytestmark = pytest.mark.anyio


class Names:
    """A stub resolver: what it says, and how often it was asked."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                kind,
                6,
                "",
                (address, port),
            )
            for address in answer
        ]


def connector(names: Names, *allow: str, ttl: float = 30.0) -> Connector:
    return Connector(ConnectSettings(dns_ttl=ttl, allow=AllowList.of(allow)), names)


# Origins.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.example.com", ("https", "api.example.com", 443, b"", b"api.example.com")),
        ("https://api.example.com/", ("https", "api.example.com", 443, b"", b"api.example.com")),
        ("HTTPS://A.Example.COM./v1/", ("https", "a.example.com", 443, b"/v1", b"a.example.com")),
        ("http://localhost:11434/v1", ("http", "localhost", 11434, b"/v1", b"localhost:11434")),
        ("https://h:443", ("https", "h", 443, b"", b"h")),
        ("http://[::1]:8080/a/b", ("http", "::1", 8080, b"/a/b", b"[::1]:8080")),
        ("https://[2606:4700:0:0::11]", ("https", "2606:4700::11", 443, b"", b"[2606:4700::11]")),
        ("http://127.0.0.1:80", ("http", "127.0.0.1", 80, b"", b"127.0.0.1")),
        ("https://a.b/openai/gpt-4o_x~y", ("https", "a.b", 443, b"/openai/gpt-4o_x~y", b"a.b")),
    ],
)  # fmt: skip
def test_an_origin_is_parsed_once_and_normalised(
    url: str, expected: tuple[str, str, int, bytes, bytes]
) -> None:
    assert Origin(*expected) == parse_origin(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com", "ftp://example.com", "file:///etc/passwd",
        "gopher://a", "https:example.com", "https:///v1", "https://", "https://:443",
        "https://user@example.com", "https://user:pw@example.com", "https://a.example@b.example",
        "https://example.com?x=1", "https://example.com/v1?x", "https://example.com#f",
        " https://example.com", "https://example.com ", "https://exa mple.com",
        "https://example.com/a b", "https://example.com\r\nhost: evil", "https://example.com/\n",
        "https://exam\tple.com", "https://example.com/\x00", "https://ex\u00e4mple.com",
        "https://\u2460\u2461\u2466.0.0.1", "https://example.com/\u00e4", "https://example.com:0",
        "https://example.com:65536", "https://example.com:99999999", "https://example.com:-1",
        "https://example.com:4 43", "https://example.com:+443", "https://example.com/../x",
        "https://example.com/a/./b", "https://example.com//x", "https://example.com/%2e%2e/x",
        "https://example.com\\@evil", "https://example..com", "https://-a.com", "https://a-.com",
        "https://" + "a" * 64 + ".com", "https://" + "a." * 130 + "com", "https://[::1", "https://::1",
        "https://[::1%25eth0]", "https://[1.2.3.4]", "https://[::g]", "https://[fe80::1%eth0]",
        "https://2130706433", "https://0x7f000001", "https://0x7f.1", "https://017700000001",
        "https://0177.0.0.1", "https://127.1", "https://127.0.1", "https://127.0.0.1.1",
        "https://256.0.0.1", "https://1.2.3.0x4", "https://0x", "https://127.0.0.01",
        "https://127.0.0.1%00.example.com", "https://$(id)", "https://{x}", "https://example.com:",
    ],
)  # fmt: skip
def test_a_malformed_origin_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(BadOrigin) as raised:
        parse_origin(url)
    assert "pw" not in str(raised.value)
    assert "example" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com", "https://api.example.com:8080", "https://api.example.com:22",
        "https://localhost", "https://x.localhost", "https://127.0.0.1", "https://[::1]",
        "https://10.0.0.1", "https://169.254.169.254", "https://[::ffff:8.8.8.8]", "https://0.0.0.0",
    ],
)  # fmt: skip
def test_a_tenants_origin_is_public_https_only(url: str) -> None:
    parse_origin(url)
    with pytest.raises(BadOrigin):
        parse_origin(url, restricted=True)


def test_the_allow_list_opens_named_places_only() -> None:
    allow = AllowList.of(["llm.internal", "10.1.0.0/16", "127.0.0.1", "::1", "gpu.Example."])
    for url in ("http://llm.internal:8000", "http://10.1.2.3:8000", "http://127.0.0.1:1",
                "http://[::1]:1", "http://gpu.example:9"):  # fmt: skip
        assert parse_origin(url, True, allow).restricted
    for url in ("http://x.llm.internal", "http://10.2.0.1", "http://127.0.0.2", "http://a.com"):
        with pytest.raises(BadOrigin):
            parse_origin(url, True, allow)


# Addresses.

FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
    "100.127.255.255", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.0.1",
    "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192",
    "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1",
    "2001::1", "2001:0:53aa:64c:0:0:7f00:1", "2001:10::1", "2001:20::1", "2001:db8::1",
    "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fd20:ce::254", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1", "ff0e::1",
    "nonsense",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1",
          "192.0.1.1", "198.17.0.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111",
          "2a00:1450:4001::1"]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_public_is_forbidden(address: str) -> None:
    assert not NOTHING.admits("any.example", address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_admitted(address: str) -> None:
    assert NOTHING.admits("any.example", address)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "::ffff:1.1.1.1"],
)
def test_metadata_and_wrapped_addresses_are_beyond_any_allow_list(address: str) -> None:
    allow = AllowList.of(["0.0.0.0/0", "::/0", "any.example"])
    assert not allow.admits("any.example", address)
    assert allow.admits("any.example", "10.0.0.1")


@pytest.mark.parametrize("address", FORBIDDEN[:-1])
async def test_a_tenants_name_must_not_lead_to_a_forbidden_address(address: str) -> None:
    origin = parse_origin("https://innocent.example", restricted=True)
    for answer in ([address], ["1.1.1.1", address]):
        with pytest.raises(TransportError) as raised:
            await connector(Names(answer)).addresses(origin)
        assert (raised.value.kind, raised.value.phase) == ("connect", "address")
        assert address not in str(raised.value)


async def test_the_operators_own_names_may_lead_anywhere() -> None:
    found = await connector(Names(["10.0.0.1"])).addresses(parse_origin("http://llm.corp:8000"))
    assert found == ((socket.AF_INET, "10.0.0.1"),)


async def test_an_allowed_network_admits_a_tenants_name() -> None:
    origin = parse_origin("https://llm.corp", restricted=True)
    names = Names(["10.0.0.1"])
    assert await connector(names, "10.0.0.0/8").addresses(origin)
    with pytest.raises(TransportError):
        await connector(names, "10.1.0.0/16").addresses(origin)


async def test_a_name_that_changes_its_address_is_checked_each_time() -> None:
    names = Names(["1.1.1.1"], ["127.0.0.1"])
    rebinding = connector(names, ttl=0.0)
    origin = parse_origin("https://innocent.example", restricted=True)
    assert await rebinding.addresses(origin) == ((socket.AF_INET, "1.1.1.1"),)
    with pytest.raises(TransportError) as raised:
        await rebinding.addresses(origin)
    assert raised.value.phase == "address"


async def test_no_socket_is_opened_to_a_forbidden_address() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        origin = Origin("https", "innocent.example", port, b"", b"innocent.example", True)
        with pytest.raises(TransportError):
            await connector(Names(["127.0.0.1"])).connect(
                asyncio.Protocol, origin, VERIFIED, DEFAULT_TIMEOUTS
            )
        with pytest.raises(BlockingIOError):
            listener.accept()


# Names.


async def test_an_answer_is_kept_for_its_time() -> None:
    names = Names(["1.1.1.1"])
    cached = connector(names)
    for _ in range(5):
        await cached.addresses(parse_origin("https://a.example"))
    assert names.asked == 1
    uncached = connector(names, ttl=0.0)
    for _ in range(2):
        await uncached.addresses(parse_origin("https://a.example"))
    assert names.asked == 3


async def test_the_number_of_kept_answers_is_bounded() -> None:
    names = Names(["1.1.1.1"])
    small = Connector(ConnectSettings(dns_entries=2), names)
    for host in ("a", "b", "c", "b", "c", "a"):
        await small.addresses(parse_origin(f"https://{host}.example"))
    assert names.asked == 4


async def test_one_name_is_asked_for_once_however_many_wait() -> None:
    release = threading.Event()
    names = Names(["1.1.1.1"])

    def slow(host: str, port: int, family: int, kind: int) -> list[Any]:
        release.wait(10)
        return names(host, port, family, kind)

    patient = Connector(lookup=slow)
    origin = parse_origin("https://a.example")
    waiting = [asyncio.ensure_future(patient.addresses(origin)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    release.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [((socket.AF_INET, "1.1.1.1"),)] * 19
    assert names.asked == 1


async def test_an_unknown_name_is_of_kind_connect_and_not_remembered() -> None:
    names = Names(socket.gaierror(-2, "Name or service not known"), ["1.1.1.1"])
    failing = connector(names)
    with pytest.raises(TransportError) as raised:
        await failing.addresses(parse_origin("https://a.example"))
    assert (raised.value.kind, raised.value.phase) == ("connect", "dns")
    assert await failing.addresses(parse_origin("https://a.example"))


async def test_a_slow_name_ends_with_the_connect_timeout() -> None:
    release = threading.Event()

    def never(host: str, port: int, family: int, kind: int) -> list[Any]:
        release.wait(10)
        return []

    stuck = Connector(lookup=never)
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(TransportError) as raised:
        await stuck.connect(
            asyncio.Protocol, parse_origin("http://a.example"), VERIFIED, Timeouts(connect=0.3)
        )
    assert 0.2 <= clock() - started <= 9
    assert (raised.value.kind, raised.value.phase) == ("connect", "dns")
    release.set()


# Dialling.


async def test_the_next_address_is_tried_when_one_is_dead() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        dialling = connector(Names(["127.0.0.2", "::1", "127.0.0.1"]))
        transport, _ = await dialling.connect(
            asyncio.Protocol, parse_origin(f"http://a.example:{port}"), VERIFIED, DEFAULT_TIMEOUTS
        )
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        transport.abort()
        await asyncio.sleep(0)


async def test_only_so_many_addresses_of_a_name_are_tried() -> None:
    many = [f"127.0.1.{number}" for number in range(1, 200)]
    found = await connector(Names(many)).addresses(parse_origin("https://a.example"))
    assert len(found) == 8
    tainted = connector(Names([f"1.1.1.{number}" for number in range(100)] + ["10.0.0.1"]))
    with pytest.raises(TransportError):
        await tainted.addresses(parse_origin("https://a.example", restricted=True))


async def test_proxy_variables_are_not_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        transport, _ = await Connector().connect(
            asyncio.Protocol, parse_origin(f"http://127.0.0.1:{port}"), VERIFIED, DEFAULT_TIMEOUTS
        )
        assert transport.get_extra_info("peername")[1] == port
        transport.abort()
        await asyncio.sleep(0)


def test_one_context_serves_all_with_the_same_settings() -> None:
    made = Connector()
    assert made.tls_context() is made.tls_context(Tls())
    assert made.tls_context() is not made.tls_context(VERIFIED, ("h2",))
    assert made.tls_context().verify_mode is ssl.CERT_REQUIRED
    assert made.tls_context().check_hostname
    assert made.tls_context(Tls(verify=False)).verify_mode is ssl.CERT_NONE
    assert made.tls_context().verify_mode is ssl.CERT_REQUIRED


async def test_an_unreadable_authority_is_of_kind_connect() -> None:
    with pytest.raises(TransportError) as raised:
        await Connector().connect(
            asyncio.Protocol,
            parse_origin("https://127.0.0.1:1"),
            Tls(ca_file="/nonexistent/ca.pem"),
            DEFAULT_TIMEOUTS,
        )
    assert (raised.value.kind, raised.value.phase) == ("connect", "tls")

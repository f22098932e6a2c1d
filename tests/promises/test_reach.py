"""S5: a tenant's word never leads to a forbidden address. U12: resolving names is bounded."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import crowd
from harness.catalogue import cases, entries
from harness.gateway import until
from harness.people import People
from harness.upstream import RawUpstream
from harness.wall import PUBLIC

from passy_proxy.transport import DEFAULT_TIMEOUTS, Timeouts, TransportError
from passy_proxy.transport.connect import (
    VERIFIED,
    AllowList,
    BadOrigin,
    Connector,
    ConnectSettings,
    Origin,
    parse_origin,
)

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

ROOT = Path(__file__).parents[2]


class Names:
    """Resolves from a table, in whatever time ``before`` takes; counts how often it was asked."""

    def __init__(self, *answers: list[str], before: Callable[[], object] = lambda: None) -> None:
        self.answers = answers
        self.before = before
        self.asked = 0

    def __call__(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        self.before()
        if not answer:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        families = (socket.AF_INET, socket.AF_INET6)
        return [(families[":" in one], kind, 6, "", (one, port)) for one in answer]


def verdict(url: str, connector: Connector) -> str | bool:
    """How a tenant's URL is refused; False when it would be dialled."""
    try:
        origin = parse_origin(url, restricted=True)
    except BadOrigin:
        return "url"
    try:
        asyncio.run(connector.addresses(origin))
    except TransportError as error:
        return error.phase
    return False


@pytest.mark.parametrize("case", cases("ssrf"))
def test_S5_where_a_tenants_upstream_may_be(case: dict[str, Any]) -> None:
    answers = case.get("dns", [["93.184.215.14"]])
    connector = Connector(ConnectSettings(dns_ttl=0.0, dns_stale=0.0), Names(*answers))
    first = case.get("first") == "allowed"
    for time_asked in range(4):
        expected = False if first and time_asked == 0 else case["refused"]
        assert expected == verdict(case["url"], connector)


def walled() -> str:
    """Why there can be no wall here; empty if there can."""
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return "needs root, unshare and ip"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return tried.stderr.strip() if tried.returncode else ""


def test_S5_no_packet_leaves_for_a_forbidden_address(tmp_path: Path) -> None:
    if why := walled():
        pytest.skip(f"NO NETWORK NAMESPACE, so packets are not counted: {why}")
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "harness.wall", tmp_path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert 0 == run.returncode, run.stderr
    seen = json.loads(run.stdout)
    assert (0, False) == (seen["code"], "Traceback" in seen["errors"]), seen["errors"]
    wrong = [
        (case["name"], told)
        for case in entries("ssrf")
        for number, told in enumerate(seen["told"][case["name"]])
        if not as_expected(case, number, *told)
    ]
    assert [] == wrong
    # The counter counts: each address that is allowed was tried. And nothing else was.
    begun = {(address, port): count for address, port, count in seen["begun"]}
    allowed = [seen["told"][case["name"]] for case in entries("ssrf") if not case["refused"]]
    assert {(address, 443) for address in PUBLIC} == begun.keys()
    assert sum(begun.values()) == sum(map(len, allowed)) + 1, "once each, and one before it rebinds"
    assert all(ipaddress.ip_address(address).is_global for address, _ in begun)


def as_expected(case: dict[str, Any], number: int, status: int, message: str) -> bool:
    if status != 502:
        return False
    if not case["refused"] or (case.get("first") == "allowed" and number == 0):
        return "no connection: connection refused" in message
    if case["refused"] == "url":
        return "cannot be used" in message
    return "leads to an address that is not allowed" in message


# What a name does not show: redirects, and gateways that lead to themselves.

OWN = """
connect: {tenants_may_reach: [127.0.0.1], hops: 4}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  shared: {dialect: openai, url: "%(url)s/v1", credential: sk-of-the-operator}
  slow: {dialect: openai, url: "http://never.example/v1", credential: sk-of-the-operator}
models: {redirecting: [shared/x]}
chains:
  default:
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books}
    - alias
    - fallback
  through: [{auth: {directory: books}}, {direct: {upstream: shared}}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: POST /v1/messages, dialect: anthropic}
  - {match: "* /v1/files*", chain: through, body: stream, root: /v1}
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RawUpstream]:
    with RawUpstream([{"send": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"}]) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def redirecting(elsewhere: RawUpstream) -> Iterator[RawUpstream]:
    def away(hit: Any) -> list[Any]:
        status = {"301": "301 Moved", "307": "307 Moved", "308": "308 Moved"}.get(
            hit.header("user-agent") or "", "302 Found"
        )
        to = f"location: {elsewhere.url}/v1/x\r\nrefresh: 0; url={elsewhere.url}"
        return [{"send": f"HTTP/1.1 {status}\r\n{to}\r\ncontent-length: 0\r\n\r\n"}]

    with RawUpstream(script=away) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def reaching(redirecting: RawUpstream, serve: Serve) -> Gateway:
    return serve(OWN % {"url": redirecting.url})


@pytest.fixture(scope="module")
def acme(reaching: Gateway, redirecting: RawUpstream) -> str:
    """A key of an organisation with two upstreams: one redirects, the other one is the gateway."""
    people = People(reaching)
    organisation = people.organisation("acme")
    key = people.key(organisation)
    for name, url in (("own", redirecting.url), ("loop", reaching.url)):
        people.provider(organisation, name, f"{url}/v1", key)
    return key


@pytest.fixture(scope="module")
def other(reaching: Gateway) -> str:
    """A key of nobody's organisation."""
    return People(reaching).key()


def test_S5_redirects_are_not_followed(
    reaching: Gateway, acme: str, other: str, redirecting: RawUpstream, elsewhere: RawUpstream
) -> None:
    for status in ("301", "302", "307", "308"):
        for model in ("own", "redirecting"):
            asked = reaching.ask(
                "/v1/chat/completions", {"model": model}, x_api_key=acme, user_agent=status
            )
            assert 502 == asked.status
        passed = reaching.ask("/v1/files/f", x_api_key=other, user_agent=status)
        assert (int(status), None) == (passed.status, passed.headers["location"])
    assert redirecting.hits
    assert [] == elsewhere.hits


def whole_loop(gateway: Gateway) -> list[dict[str, Any]] | None:
    """What the books have of a request that went round as often as it may, once all is there."""
    found = gateway.records("WHERE status = 508")
    return found if len(found) >= 5 else None


def test_S5_a_loop_of_gateways_ends(reaching: Gateway, acme: str) -> None:
    asked = reaching.ask("/v1/chat/completions", {"model": "loop"}, x_api_key=acme)
    assert 508 == asked.status
    assert "loop_detected" in asked.json["error"]["code"]
    records = until(lambda: whole_loop(reaching))
    assert ["loop_detected", *["upstream_status"] * 4] == sorted(
        record["outcome"] for record in records
    )


@pytest.mark.parametrize("hops", ["4", "99999999999999", "-1", "x", "", "1 2"])
def test_S5_what_a_client_says_of_hops_only_refuses_itself(
    reaching: Gateway, other: str, hops: str
) -> None:
    for key, status in ((other, 508), ("sk-nobody", 401)):
        asked = reaching.ask("/v1/messages", {"model": "x"}, x_api_key=key, x_passy_hops=hops)
        assert (status, "error") == (asked.status, asked.json["type"])


# Names.

PUBLIC_NAME = parse_origin("https://a.example")
TENANTS_NAME = parse_origin("https://b.example", restricted=True)
pytestmark = pytest.mark.anyio


async def longest_pause(
    until: asyncio.Future[Any], clock: Callable[[], float] = time.monotonic
) -> float:
    """The longest time in which the loop did nothing else."""
    worst, last = 0.0, clock()
    while not until.done():
        await asyncio.sleep(0.002)
        worst, last = max(worst, clock() - last), clock()
    return worst


async def test_U12_a_slow_resolver_blocks_nobody() -> None:
    release = threading.Event()
    names = Names(["93.184.215.14"], before=lambda: release.wait(90))
    connector = Connector(ConnectSettings(dns_lookups=8), names)
    waiting = [
        asyncio.ensure_future(connector.addresses(parse_origin(f"https://{n}.example", True)))
        for n in range(500)
    ]
    watch = asyncio.ensure_future(longest_pause(asyncio.gather(*waiting, return_exceptions=True)))
    await crowd.until(lambda: 8 <= names.asked and 492 <= sum(one.done() for one in waiting))
    await asyncio.sleep(0.1)
    assert 8 == names.asked, "a bound on threads, and no queue behind it"
    refused = [one.exception() for one in waiting if one.done()]
    assert 492 == len(refused)
    assert {"dns"} == {error.phase for error in refused if isinstance(error, TransportError)}
    # Tenants have used up their share. That of the operator's upstreams is another one.
    mine = asyncio.ensure_future(connector.addresses(PUBLIC_NAME))
    await crowd.until(lambda: 9 == names.asked)
    release.set()
    assert ((socket.AF_INET, "93.184.215.14"),) == await mine
    assert await watch < 30  # Who waited for one of them would wait for ninety.
    # And none of it is left behind.
    assert await connector.addresses(parse_origin("https://another.example", True))


async def test_U12_a_resolver_that_hangs_ends_with_the_connect_timeout() -> None:
    release = threading.Event()
    connector = Connector(lookup=Names([], before=lambda: release.wait(20)))
    began = time.monotonic()
    with pytest.raises(TransportError) as raised:
        await connector.connect(asyncio.Protocol, PUBLIC_NAME, VERIFIED, Timeouts(connect=0.2))
    assert 0.15 < time.monotonic() - began < 10
    assert ("connect", "dns", False) == (raised.value.kind, raised.value.phase, raised.value.sent)
    release.set()


def test_U12_a_look_up_that_hangs_does_not_keep_the_process() -> None:
    program = (
        "import asyncio, time\n"
        "from passy_proxy.transport import Timeouts\n"
        "from passy_proxy.transport.connect import *\n"
        "made = Connector(lookup=lambda *_: time.sleep(60))\n"
        "where = parse_origin('http://a.example')\n"
        "asyncio.run(made.connect(asyncio.Protocol, where, VERIFIED, Timeouts(connect=0.1)))\n"
    )
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert b"took longer than 0.1 s" in run.stderr
    assert time.monotonic() - began < 40


async def test_U12_answers_are_asked_for_again_and_old_ones_bridge_a_failure() -> None:
    names = Names(["93.184.215.14"], ["93.184.215.15"], [], ["93.184.215.16"])
    connector = Connector(ConnectSettings(dns_ttl=600, dns_stale=6_000, dns_patience=20), names)
    loop = asyncio.get_running_loop()
    now, later = loop.time, 0.0
    loop.time = lambda: now() + later  # type: ignore[method-assign]

    async def address() -> str:
        ((_, found),) = await connector.addresses(PUBLIC_NAME)
        return found

    assert ["93.184.215.14"] * 3 == [await address() for _ in range(3)]
    for expected in ("93.184.215.15", "93.184.215.15", "93.184.215.16"):
        later += 601
        assert expected == await address()
    assert 4 == names.asked


async def test_U12_an_old_answer_bridges_a_slow_one_but_not_for_ever() -> None:
    release = threading.Event()
    release.set()
    names = Names(["93.184.215.14"], ["93.184.215.15"], before=lambda: release.wait(20))
    settings = ConnectSettings(dns_ttl=0.0, dns_stale=60, dns_patience=0.05)
    connector = Connector(settings, names)
    await connector.addresses(PUBLIC_NAME)
    release.clear()
    assert ((socket.AF_INET, "93.184.215.14"),) == await connector.addresses(PUBLIC_NAME)
    release.set()
    connector.settings = ConnectSettings(dns_ttl=0.0, dns_stale=60, dns_patience=20)
    assert ((socket.AF_INET, "93.184.215.15"),) == await connector.addresses(PUBLIC_NAME)
    names.answers = ([],)
    connector.settings = ConnectSettings(dns_ttl=0.0, dns_stale=0.0)
    await asyncio.sleep(0.01)
    with pytest.raises(TransportError):
        await connector.addresses(PUBLIC_NAME)


async def test_U12_thousands_of_records_cost_the_loop_nothing() -> None:
    many = [f"93.{n >> 8}.{n & 255}.1" for n in range(20_000)]
    for answer, admitted in ((many, True), ([*many, "10.0.0.1"], False)):
        connector = Connector(lookup=Names(answer))
        asked = asyncio.ensure_future(connector.addresses(TENANTS_NAME))
        # Of its own processor's time: the clock would tell of others on this machine as well.
        assert await longest_pause(asked, time.thread_time) < 0.05
        if admitted:
            assert 8 == len(await asked)
        else:
            with pytest.raises(TransportError, match="not allowed"):
                await asked


async def test_U12_one_address_that_does_not_answer_leaves_time_for_the_others() -> None:
    loop = asyncio.get_running_loop()
    now, later = loop.time, 0.0
    loop.time = lambda: now() + later  # type: ignore[method-assign]
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            with closing(socket.create_server(("127.0.0.2", port))):
                connector = Connector(lookup=Names(["127.0.0.1", "127.0.0.2"]))
                origin = parse_origin(f"http://a.example:{port}")
                await connector.addresses(origin)
                limit = Timeouts(connect=600.0)
                connecting = asyncio.ensure_future(
                    connector.connect(asyncio.Protocol, origin, VERIFIED, limit)
                )
                while not connecting.done():
                    later += 10
                    await asyncio.sleep(0.01)
                transport, _ = await connecting
                assert "127.0.0.2" == transport.get_extra_info("peername")[0]
                transport.abort()
        finally:
            for filler in fillers:
                filler.close()


async def test_U12_what_a_resolver_raises_is_a_failure_to_connect() -> None:
    for error in (
        OSError(5, "x"),
        UnicodeError("label too long"),
        ValueError("odd"),
        MemoryError(),
    ):

        def raising(*_: object, error: BaseException = error) -> list[Any]:
            raise error

        with pytest.raises(TransportError) as raised:
            await Connector(lookup=raising).addresses(PUBLIC_NAME)
        assert ("connect", "dns") == (raised.value.kind, raised.value.phase)


async def test_S5_the_check_is_made_for_each_connection() -> None:
    """Also when an answer is remembered, and when the rule has become stricter meanwhile."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        origin = Origin("http", "a.example", port, b"", b"a.example", True)
        connector = Connector(
            ConnectSettings(allow=AllowList.of(["127.0.0.1"])), Names(["127.0.0.1"])
        )
        for _ in range(2):
            transport, _ = await connector.connect(
                asyncio.Protocol, origin, VERIFIED, DEFAULT_TIMEOUTS
            )
            transport.abort()
            listener.accept()[0].close()
        connector.settings = ConnectSettings()
        listener.settimeout(0)
        with pytest.raises(TransportError, match="not allowed"):
            await connector.connect(asyncio.Protocol, origin, VERIFIED, DEFAULT_TIMEOUTS)
        with pytest.raises(BlockingIOError):
            listener.accept()

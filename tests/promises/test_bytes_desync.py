"""Hostile requests, alone and behind other people's proxies: nobody sees another number of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from harness import fronts
from harness.again import spared
from harness.catalogue import cases, entries, raw
from harness.client import Answer, Told, send
from harness.upstream import Hit, RawUpstream, Step

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

CATALOGUE = "http-desync-requests"
OPERATORS = "sk-operator"
CONFIGURATION = """
overload: {loop_lag: 0s}
edge: {header_timeout: 500ms, body_grace: 500ms}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams: {openai: {dialect: openai, url: "URL/v1", credential: "${OPENAI_API_KEY}",
  forward_headers: [x-a, cookie, host, connection, keep-alive, te, x-forwarded-for, x-passy-key]}}
chains: {through: [auth: {directory: books}, direct: {upstream: openai}]}
routes: [{match: "* /v1/files*", chain: through, body: stream, root: /v1, body_limit: 512MiB}]
"""
OK = {"send": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"}
PROBE = "/v1/files/probe"


HOPS = "HTTP/1.1 200 OK\r\n" + "".join(
    f"{line}\r\n"
    for line in (
        "Connection: X-Named, keep-alive",
        "connection: x-request-id , x-ratelimit-a",
        "X-Named: evil",
        "X-Request-Id: evil",
        "X-RateLimit-A: evil",
        "Keep-Alive: timeout=9",
        "TE: evil",
        "Trailer: evil",
        "Proxy-Authenticate: evil",
        "Proxy-Connection: evil",
        "Upgrade: evil",
        "Set-Cookie: evil=1",
        "Server: evil",
        "X-Kept: kept",
    )
)
LENGTH = "content-length: 2\r\n\r\n{}"
CHUNKS = "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Named: evil\r\n\r\n"


def script(hit: Hit) -> list[Step]:
    if hit.target.endswith("/hops"):
        return [{"send": HOPS + LENGTH}]
    return [{"send": HOPS + CHUNKS}] if hit.target.endswith("/hops-chunked") else [OK]


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=script) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return serve(CONFIGURATION.replace("URL", upstream.url), OPENAI_API_KEY=OPERATORS)


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "bytes")


def request(case: dict[str, Any], key: str) -> bytes:
    """What a case of the catalogue sends, with its probe."""
    shown = b"Authorization: Bearer %b\r\n" % key.encode()
    get = b"GET %b HTTP/1.1\r\nHost: h\r\n" + shown
    smuggled = get % b"/v1/files/smuggled" + b"\r\n"
    if "raw" in case:
        whole = raw(case["raw"])
    else:
        body = raw(case.get("body", "")).replace(b"@SMUGGLED@", smuggled)
        lines = [raw(case.get("line", "POST /v1/files HTTP/1.1"))]
        if (host := case.get("host", "gateway.test")) is not None:
            lines.append(b"Host: " + raw(host))
        if case.get("auth", True):
            lines.append(shown[:-2])
        lines += [raw(line) for line in case.get("headers", ())]
        head = b"\r\n".join([*lines, b"", b""]).replace(b"@LENGTH@", b"%d" % len(body))
        whole = head + body
    whole = whole.replace(b"@SMUGGLED@", smuggled).replace(b"@KEY@", key.encode())
    if case.get("probe", True):
        whole += get % PROBE.encode() + b"Connection: close\r\n\r\n"
    return whole


def hear(url: str, case: dict[str, Any], key: str, quiet: float = 10.0) -> Told:
    return send(url, request(case, key), quiet=quiet, patience=20.0)


def check_refusal(answer: Answer, code: str) -> None:
    """It is an envelope, with an id."""
    assert "application/json" == answer.headers["content-type"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert "set-cookie" not in answer.headers
    error = json.loads(answer.body)["error"]
    assert (code, answer.headers["x-request-id"]) == (error["code"], error["request_id"])
    assert isinstance(error["message"], str)
    assert "Traceback" not in error["message"]


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway, a key of it, and the provider behind it."""

    gateway: Gateway
    key: str
    upstream: RawUpstream


@pytest.fixture(scope="module")
def site(gateway: Gateway, key: str, upstream: RawUpstream) -> Site:
    return Site(gateway, key, upstream)


def check(case: dict[str, Any], site: Site) -> None:
    """Send it, and hold what comes of it against what the catalogue says."""
    gateway, key, upstream = site.gateway, site.key, site.upstream
    before = len(upstream.hits)
    told = hear(gateway.url, case, key)
    answers = told.answers()
    kept = case.get("kept", False)
    assert [*case["status"], *([200] if kept else [])] == [one.status for one in answers]
    assert all(one.whole for one in answers)
    assert "open" != told.end
    assert told.seconds < 15
    hits = upstream.hits[before:]
    due = case.get("hits", ["/v1/files"] if kept else [])
    assert [*due, *([PROBE] if kept else [])] == [hit.target for hit in hits]
    assert (
        case.get("bodies", []) == [hit.body.decode() for hit in hits][: len(case.get("bodies", []))]
    )
    if "code" in case:
        check_refusal(next(one for one in answers if one.status != 200), case["code"])
    if answers and not kept and case.get("probe", True):
        assert "close" == answers[-1].headers["connection"]
    for hit in hits:
        assert f"Bearer {OPERATORS}" == hit.header("authorization")
        assert key not in str(hit.headers)
        assert key not in hit.target
    if due and hits:
        for name in case.get("absent", ()):
            assert hits[0].header(name) is None, name
        for name, value in case.get("present", {}).items():
            assert [value] == [one for known, one in hits[0].headers if known == name]


ENDING = ("connection-names-", "hop-by-hop-", "spoof-")
PLACES = ("path-", "host-", "absolute-", "authority-", "asterisk", "target-")
OTHERS = (*ENDING, *PLACES, "query-", "cookies", "encoding-", "early-")


def named(*beginnings: str) -> list[Any]:
    """The cases whose names begin so."""
    return [case for case in cases(CATALOGUE) if str(case.id).startswith(beginnings)]


@pytest.mark.parametrize(
    "case", [case for case in cases(CATALOGUE) if not str(case.id).startswith(OTHERS)]
)
def test_S6_a_hostile_request_is_one_request_or_none(case: dict[str, Any], site: Site) -> None:
    check(case, site)


@pytest.mark.parametrize("case", named("early-"))
def test_S6_an_early_answer_leaves_no_half_request_behind(case: dict[str, Any], site: Site) -> None:
    check(case, site)


@pytest.mark.parametrize("case", named(*PLACES))
def test_S4_one_reading_of_path_and_host_decides(case: dict[str, Any], site: Site) -> None:
    check(case, site)


@pytest.mark.parametrize("case", named(*ENDING))
def test_S8_what_is_meant_for_the_gateway_ends_there(case: dict[str, Any], site: Site) -> None:
    check(case, site)


@pytest.mark.parametrize("path", ["hops", "hops-chunked"])
def test_S8_what_a_provider_means_for_the_gateway_ends_there(path: str, site: Site) -> None:
    asked = site.gateway.ask(f"/v1/files/{path}", authorization=f"Bearer {site.key}")
    assert (200, b"{}", "kept") == (asked.status, asked.body, asked.headers["x-kept"])
    assert "evil" not in str(asked.headers)
    assert asked.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("case", named("query-", "cookies"))
def test_S13_a_key_in_a_url_is_refused_and_a_cookie_is_nothing(
    case: dict[str, Any], site: Site
) -> None:
    check(case, site)
    out = (site.gateway.folder / "out").read_text() + site.gateway.complaints()
    assert site.key not in out


@pytest.mark.parametrize("case", named("encoding-"))
def test_S12_an_encoded_body_is_refused(case: dict[str, Any], site: Site) -> None:
    check(case, site)


@pytest.mark.parametrize(
    "at_once", [24, pytest.param(1, marks=pytest.mark.large)], ids=["F", "large"]
)
@pytest.mark.parametrize("front", ["nginx", "haproxy"])
def test_S6_a_proxy_in_front_counts_as_many_requests_as_the_gateway(
    front: str, at_once: int, gateway: Gateway, key: str, upstream: RawUpstream, tmp_path: Path
) -> None:
    """Large: one case after the other, so that a difference has a name."""
    if why := fronts.missing(front):
        pytest.skip(why)
    known = entries(CATALOGUE)
    with fronts.Relay(gateway.url) as relay, getattr(fronts, front)(tmp_path, relay.port) as proxy:
        for number in range(0, len(known), at_once if at_once == 1 else len(known)):
            some = known[number : number + 1] if at_once == 1 else known

            def wrong() -> list[str]:
                """What somebody sees otherwise."""
                hits, passed = len(upstream.hits), len(proxy.forwarded())
                answered = relay.answered()
                with ThreadPoolExecutor(at_once) as pool:
                    list(pool.map(lambda case: hear(proxy.url, case, key, quiet=15.0), some))  # noqa: B023
                settle(proxy, key, upstream, f"/v1/files/settled-{number}-{hits}")  # noqa: B023
                seen, told = proxy.forwarded()[passed:], relay.answered() - answered
                found = [] if len(seen) == told else [f"{told} answers for {seen}"]
                # Nothing was asked of a provider that the proxy did not pass on.
                paths = [unquote(line.split()[1]) for line in seen if len(line.split()) > 1]
                ours = [unquote(hit.target) for hit in upstream.hits[hits:]]
                found += [one for one in ours if not any(path.endswith(one) for path in paths)]
                for word in ("probe", "smuggled", "second"):
                    if sum(word in one for one in ours) > sum(word in path for path in paths):
                        found.append(f"{word} in {ours}, but in {paths}")
                return found

            # A proxy that gets no turn until its own time is up does not tell what it passed on.
            names = ", ".join(case["name"] for case in some[:3])
            assert [] == spared(wrong, lambda found: not found, 3), names


def settle(proxy: fronts.Front, key: str, upstream: RawUpstream, path: str) -> None:
    """A clean request is through, and in the log: so is what came before it."""
    head = f"GET {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n"
    told = send(proxy.url, (head + "Connection: close\r\n\r\n").encode())
    assert 200 == told.answer().status
    upstream.until(lambda: any(path in line for line in proxy.forwarded()))

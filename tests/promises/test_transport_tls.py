"""TLS towards upstreams: always verified, against the right authority and the right name."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from harness.canary import Canaries
from harness.client import Answer, send
from harness.gateway import Gateway, Serve
from harness.tls import Authority
from harness.upstream import RawUpstream

KINDS = ("http1", "httpcore")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL"
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\nhalf of it"

CASES = {
    "trusted": 200,
    "trusted-by-name": 200,
    "unchecked": 200,
    "unknown-authority": 502,
    "no-authority-given": 502,
    "another-host": 502,
    "another-address": 502,
    "expired": 502,
    "not-yet-valid": 502,
    "no-tls": 502,
    "cut-in-the-handshake": 502,
    "old-version": 502,
    "plain-bytes-before": 502,
    "plain-bytes-before-unchecked": 502,
    "cut-without-goodbye": 502,
    "ended-with-goodbye": 200,
}
"""What the other side of a TLS connection is like, and the client's status."""


@contextmanager
def speaking(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of which ``serve`` plays every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listening.accept()
                    with sock, suppress(OSError):
                        sock.settimeout(60)
                        serve(sock)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def answering(
    context: ssl.SSLContext, answer: bytes, *, before: bytes = b"", goodbye: bool = True
) -> Callable[[socket.socket], None]:
    """TLS with blocking calls: ``before`` in plain bytes; without a ``goodbye`` it ends by FIN."""

    def serve(sock: socket.socket) -> None:
        if before:
            sock.sendall(before)
        with context.wrap_socket(sock, server_side=True) as wrapped:
            wrapped.recv(65536)
            wrapped.sendall(answer)
            if goodbye:
                wrapped.unwrap()
            else:
                wrapped.shutdown(socket.SHUT_WR)

    return serve


class Scene:
    """The gateway and the upstreams; what any of them saw of a key is in ``seen``."""

    def __init__(self, gateway: Gateway, upstreams: dict[str, RawUpstream], word: str) -> None:
        self.gateway = gateway
        self.upstreams = upstreams
        self.word = word

    def ask(self, name: str) -> Answer:
        message = (
            b"POST /%b/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"
        )
        told = send(self.gateway.url, message % name.encode(), quiet=90.0, patience=90.0)
        assert b"EVIL" not in told.data
        return told.answer()


@pytest.fixture(scope="module")
def scene(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("tls")
    ours, other = Authority(folder), Authority(folder, "another CA")
    old = ours.server()
    with warnings.catch_warnings(action="ignore"):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    shown = {
        "trusted": ours.server(),
        "trusted-by-name": ours.server("localhost"),
        "unchecked": other.server("example.org", shifted=-48),
        "unknown-authority": other.server(),
        "no-authority-given": ours.server(),
        "another-host": ours.server("example.org"),
        "another-address": ours.server("127.0.0.2"),
        "expired": ours.server(shifted=-48),
        "not-yet-valid": ours.server(shifted=48),
        "no-tls": None,
        "old-version": old,
    }
    word = Canaries().word("key", "sk-")
    with ExitStack() as stack:
        upstreams = {
            name: stack.enter_context(RawUpstream([{"send": OK.decode()}], ssl=context))
            for name, context in shown.items()
        }
        urls = {name: upstream.url for name, upstream in upstreams.items()}
        urls["trusted-by-name"] = urls["trusted-by-name"].replace("127.0.0.1", "localhost")
        urls["no-tls"] = urls["no-tls"].replace("http:", "https:")
        hand_made = {
            "cut-in-the-handshake": lambda sock: sock.recv(5),
            "plain-bytes-before": answering(ours.server(), OK, before=EVIL),
            "plain-bytes-before-unchecked": answering(ours.server(), OK, before=EVIL),
            "cut-without-goodbye": answering(ours.server(), UNTIL_THE_END, goodbye=False),
            "ended-with-goodbye": answering(ours.server(), UNTIL_THE_END),
        }
        for name, serving in hand_made.items():
            urls[name] = stack.enter_context(speaking(serving))
        lines, chains, routes = "", "", ""
        for name, url in urls.items():
            trust = f"ca_file: '{ours.file}'"
            if name.endswith("unchecked"):
                trust = "verify: off"
            elif name == "no-authority-given":
                trust = "verify: on"
            for kind in KINDS:
                lines += (
                    f"  {name}-{kind}: {{url: '{url}', credential: {word}, {trust},"
                    f" transport: {kind}, timeouts: {{tls: 60s, first_byte: 60s, idle: 60s}}}}\n"
                )
                chains += f"  {name}-{kind}: [direct: {{upstream: {name}-{kind}}}]\n"
                routes += f"  - {{match: 'POST /{name}-{kind}/*', chain: {name}-{kind}}}\n"
        gateway = serve(f"upstreams:\n{lines}chains:\n{chains}routes:\n{routes}")
        yield Scene(gateway, upstreams, word)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_U14_tls_is_verified(scene: Scene, name: str, kind: str) -> None:
    upstream = scene.upstreams.get(name)
    before = len(upstream.hits) if upstream else 0
    answer = scene.ask(f"{name}-{kind}")
    assert CASES[name] == answer.status, answer.body
    if answer.status == 502:
        error = json.loads(answer.body)["error"]
        assert "upstream_error" == error["code"]
        assert scene.word not in answer.body.decode()
    if upstream is not None:  # the key is shown to nobody who has not proved who he is
        assert (answer.status == 200) == (len(upstream.hits) > before)


def test_U14_what_is_not_checked_is_shown(scene: Scene) -> None:
    checked = scene.gateway.passy("check")
    assert 0 == checked.returncode
    said = checked.stdout + checked.stderr
    for kind in KINDS:
        assert f"the certificate of unchecked-{kind} is not checked" in " ".join(said.split())
    assert "trusted-http1" not in said

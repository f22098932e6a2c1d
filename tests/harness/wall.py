"""A gateway behind a wall: a network namespace of its own, in which every packet is seen.

Run as ``unshare --net --mount python -m harness.wall FOLDER``, as root. In there, every address of
the world is this machine, where nobody answers. It answers DNS from the catalogue ``ssrf``,
counts each packet that begins a TCP connection, asks the gateway for each entry (three times where
there is a name), and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.catalogue import entries
from harness.gateway import PATIENCE, Gateway
from harness.people import People

NOBODY = ("127.9.9.9", 1)
SO_RCVBUFFORCE = 33
"""Linux' number of the option: what the system allows others is too little for a busy machine."""
PUBLIC = ("93.184.215.14", "2606:2800:21f:cb07::1")
"""The public addresses that the catalogue allows."""

CONFIGURATION = """
connect: {dns_ttl: 0s, dns_stale: 0s}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams: {shared: {dialect: openai, url: "https://10.9.9.9/v1", credential: sk-of-the-operator}}
chains:
  default:
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books}
    - alias
    - fallback: {retries: 0}
models: {shared: [shared/x]}
routes: [{match: POST /v1/chat/completions}]
"""


def shell(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


def build(folder: Path) -> None:
    """The network, and ourselves as its only name server."""
    shell(
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
    )
    for name, text in (
        ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ):
        (folder / name).write_text(text)
        shell(f"mount --bind {folder / name} /etc/{name}")


class Names:
    """Answers DNS over UDP. What a name leads to may differ each time it is asked."""

    def __init__(self, known: dict[str, list[list[str]]]) -> None:
        self._known = known
        self._asked: Counter[tuple[str, int]] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind, _ = struct.unpack("!HH", query[at + 1 : at + 5])
        question, name = query[12 : at + 5], ".".join(labels)
        answers = self._known.get(name, [])
        time = self._asked[name, kind]
        self._asked[name, kind] += 1
        told = answers[min(time, len(answers) - 1)] if answers else []
        family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        packed = [
            socket.inet_pton(family, one) for one in told if family and (":" in one) == (kind == 28)
        ]
        code = 0x8180 if answers else 0x8183
        head = query[:2] + struct.pack("!HHHHH", code, 1, len(packed), 0, 0)
        rows = [struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(one)) + one for one in packed]
        return head + question + b"".join(rows)


class Packets:
    """Each SYN on any interface: to which address and port, and how often."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int]] = Counter()
        every = 0x0003
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        threading.Thread(target=self._watch, daemon=True).start()

    def counted(self) -> None:
        """Returns when all are counted that were sent before."""
        with socket.socket() as last:
            last.connect_ex(NOBODY)
        end = time.monotonic() + PATIENCE
        while not self.begun.pop(NOBODY, 0):
            assert time.monotonic() < end, "packets are not seen"
            time.sleep(0.01)

    def _watch(self) -> None:
        while True:
            packet, where = self._socket.recvfrom(1 << 16)
            if where[2] == socket.PACKET_OUTGOING and (found := self._syn(packet)) is not None:
                self.begun[found] += 1

    @staticmethod
    def _syn(packet: bytes) -> tuple[str, int] | None:
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
            begin, address = (packet[0] & 15) * 4, socket.inet_ntop(socket.AF_INET, packet[16:20])
        elif packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_TCP:
            begin, address = 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
        else:
            return None
        (port,), flags = struct.unpack("!H", packet[begin + 2 : begin + 4]), packet[begin + 13]
        return (address, port) if flags & 0x12 == 0x02 else None


def enter(gateway: Gateway, organisation: str, cases: list[dict[str, Any]]) -> None:
    """Each URL as an upstream of its own, as a portal with no rules at all would write it."""
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as books, books:
        for number, case in enumerate(cases):
            row = (
                f"prov_{number}", organisation, case["name"], "openai", case["url"],
                json.dumps([case["name"]]), "active", 0, 1, 0,
            )  # fmt: skip
            marks = ",".join("?" * len(row))
            books.execute(f"INSERT INTO custom_providers VALUES ({marks})", row)


def main(folder: Path) -> None:
    build(folder)
    cases = entries("ssrf")
    names = {}
    for case in cases:
        if "dns" in case:
            names[case["url"].split("/")[2].partition(":")[0].lower().rstrip(".")] = case["dns"]
    Names(names)
    packets = Packets()
    proxy = "http://127.0.0.1:3128"
    variables = {name: proxy for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy")}
    gateway = Gateway(folder, CONFIGURATION, variables)
    gateway.start()
    people = People(gateway)
    organisation = people.organisation("acme")
    key = people.key(organisation)
    enter(gateway, organisation, cases)
    told: dict[str, list[Any]] = {}
    for case in cases:
        for _ in range(3 if "dns" in case else 1):
            asked = gateway.ask("/v1/chat/completions", {"model": case["name"]}, x_api_key=key)
            told.setdefault(case["name"], []).append([asked.status, asked.json["error"]["message"]])
    packets.counted()
    port = int(gateway.url.rpartition(":")[2])
    code = gateway.stop()
    begun = [[*where, count] for where, count in packets.begun.items() if where[1] != port]
    json.dump(
        {"told": told, "begun": begun, "code": code, "errors": gateway.complaints()}, sys.stdout
    )


if __name__ == "__main__":
    assert os.getuid() == 0
    main(Path(sys.argv[1]))

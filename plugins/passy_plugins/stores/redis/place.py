"""Where a server is, and how it is greeted: from the URL that people write."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

HERE = "memory:"
"""The URL of no server: counters in this process."""
LIKE = "redis://[[user]:password@]host[:6379][/0], rediss:// over TLS, or unix:///path"


@dataclass(frozen=True, slots=True)
class Place:
    """One server. Its text form holds no secret."""

    host: str
    port: int
    path: str = ""
    """Of a Unix socket; then there is no host."""
    database: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def at(self, address: str) -> Place:
        """The node that a Cluster names ``host:port``; without a host it is on this one's."""
        host, _, port = address.rpartition(":")
        return replace(self, host=host.strip("[]") or self.host, port=int(port), path="")

    def greeting(self) -> list[tuple[bytes, ...]]:
        """The commands that open a connection."""
        commands: list[tuple[bytes, ...]] = []
        if self.password:
            words = [self.user, self.password] if self.user else [self.password]
            commands.append((b"AUTH", *(word.encode() for word in words)))
        if self.database:
            commands.append((b"SELECT", b"%d" % self.database))
        return commands


def places(url: str) -> list[Place]:
    """Those that ``url`` names, separated by commas; none for ``memory:``. ValueError tells what is
    wrong with one, and never its password."""
    if url.strip() in (HERE, HERE + "//"):
        return []
    found = [_place(each.strip()) for each in url.split(",") if each.strip()]
    if not found:
        raise ValueError(f"no server is named; write {LIKE}")
    return found


def _place(url: str) -> Place:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"a server's URL is not understood; write {LIKE}") from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("a unix:// URL needs the path of a socket")
        return Place("", 0, parts.path, 0, user, password)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"no server's URL begins like that; write {LIKE}")
    if not parts.hostname:
        raise ValueError(f"a server's URL names no host; write {LIKE}")
    database = parts.path.strip("/") or "0"
    if not database.isdecimal() or parts.query or parts.fragment:
        raise ValueError(f"behind a server's host comes its database's number; write {LIKE}")
    tls = parts.scheme == "rediss"
    return Place(parts.hostname, port or 6379, "", int(database), user, password, tls)


def trust(ca: str) -> ssl.SSLContext:
    """For servers over TLS: the system's authorities, or those in a file."""
    return ssl.create_default_context(cafile=ca or None)

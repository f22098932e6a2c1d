"""Start everything on one port, and show a first answer."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, dry_parts, fail, notice, place_options, placed
from passy_proxy.cli.serve import admin_option, bound, checked, reason, where, where_admin
from passy_proxy.config.model import Address
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import CHECKOUT

if TYPE_CHECKING:
    from passy_proxy.gateway import Gateway
    from passy_proxy.place import Place
    from passy_proxy.server import Server

Beside = Callable[[str], Coroutine[Any, Any, None]]

TRIES = 20
"""Ports looked at, from the configured one on."""
FIRST = "passy up (first request)"
"""The name of the key that a later run asks itself with."""
PASSING = 60.0
"""Seconds it is good for."""
LONGEST = 10.0
"""Seconds that the first request may take."""
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to reach what listens everywhere."""


@click.command()
@place_options
@click.option("--listen", help="host:port or :port. [HOST and PORT, else listen: in the file]")
@admin_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Say where everything is as one JSON line; logs go to standard error.",
)
def command(
    config: Path | None,
    data: Path | None,
    listen: str | None,
    admin_listen: str | None,
    as_json: bool,
) -> None:
    """Start everything on one port. The first run makes a key and shows it, once.

    What those who run the gateway ask is on a port of its own, once the admin token is set."""
    run(*placed(config, data), listen, admin_listen, as_json)


def run(
    place: Place,
    variables: Mapping[str, str],
    listen: str | None = None,
    admin_listen: str | None = None,
    as_json: bool = False,
    beside: Beside | None = None,
) -> None:
    """Serve until somebody ends it. ``beside`` is given the gateway's URL, and runs as long as it
    serves."""
    began = time.monotonic()
    output = apart() if as_json else None
    try:
        file, snapshot = checked(place, variables, dry_parts(place, variables))
    except ConfigInvalid as exc:
        complain(exc)
    notice(file)
    from passy_proxy.app import AdminApp
    from passy_proxy.keyring import KeyringError
    from passy_proxy.log import reopen_when_asked
    from passy_proxy.server import Served, Server, Serving, gateway_at
    from passy_proxy.stores import StoreUnavailable

    reopen_when_asked()
    try:
        gateway = gateway_at(place, file.settings.log, variables)
    except KeyringError as exc:
        fail(str(exc), Exit.invalid_config)
    wanted = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    sock = free(wanted)
    at = Address(wanted.host, sock.getsockname()[1])
    admin_at = admin = None
    if snapshot.administered:
        asked = where_admin(admin_listen, variables, file.settings.admin.listen)
        admin_sock = free(asked)
        admin_at = Address(asked.host, admin_sock.getsockname()[1])
        admin = (Serving(AdminApp(gateway), admin_at, file), admin_sock)

    async def ready(server: Server) -> None:
        try:
            key = await first_key(gateway)
            started = time.monotonic() - began
            first = await first_request(gateway, at, key)
            shown = Shown(at, key, started, first, await greetings(gateway, at), admin_at)
        except StoreUnavailable as exc:
            # Nobody can be given a key now; who has one is served as far as that is possible.
            click.echo(f"passy: serving at http://{at}/v1, but a store is away: {exc}", err=True)
            return
        if output is None:
            shown.draw(gateway, wanted)
        else:
            with output:
                output.write(shown.as_json(gateway) + "\n")
        if beside is not None:
            gateway.tasks.start(beside(shown.url))

    # However long the loop is held up, it goes on: that may be a debugger.
    main = Serving(Served(gateway), at, file)
    server = Server(main, gateway, ready, admin=admin)
    server.run([sock])
    if not server.started:
        raise SystemExit(Exit.failed)


def apart() -> TextIO:
    """Standard output, which a program reads, for one line alone: what is written there later, as
    the log of requests is, goes to standard error instead."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def free(wanted: Address) -> socket.socket:
    """Listens on the address, or on the next port that nobody has. Exits 1 without one."""
    last = min(wanted.port + TRIES, 65536) - 1
    for port in range(wanted.port, last + 1):
        try:
            return bound(Address(wanted.host, port))
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                fail(f"cannot listen on {wanted}: {reason(exc)}")
    fail(f"ports {wanted.port} to {last} are all taken; try: passy up --listen :0")


async def first_key(gateway: Gateway) -> str | None:
    """A key, made on the first run; ``None`` when there is one already or no store to keep it."""
    for store in gateway.snapshot.stores.values():
        make = getattr(store, "first_key", None)
        if make is not None:
            key: str | None = await make()
            return key
    return None


class Question(NamedTuple):
    """What the gateway asks itself."""

    subject: str
    method: str
    path: str
    body: bytes = b""


CHAT = Question(
    "echo",
    "POST",
    "/v1/chat/completions",
    b'{"model":"echo","messages":[{"role":"user","content":"hello"}]}',
)
MODELS = Question("models", "GET", "/v1/models")
ALIVE = Question("alive", "GET", "/livez")


def question(gateway: Gateway) -> Question:
    """A chat with the echo where there is one; what costs nothing where there is not."""
    snapshot = gateway.snapshot
    asked = (CHAT, MODELS) if "echo" in snapshot.models.names() else (MODELS,)
    found = (one for one in asked if snapshot.routes.find(one.method, one.path))
    return next(found, ALIVE)


async def passing_key(gateway: Gateway, asked: Question) -> str | None:
    """A key for one request, from where this route's auth looks keys up; ``None`` without auth."""
    route = gateway.snapshot.routes.find(asked.method, asked.path)
    for filter in route.chain.filters if route else ():
        make = getattr(getattr(filter.config, "directory", None), "passing_key", None)
        if make is not None:
            key: str = await make(FIRST, PASSING)
            return key
    return None


class First(NamedTuple):
    """How the gateway answered its own first request. ``status`` 0: not at all."""

    asked: Question
    status: int
    milliseconds: float
    body: dict[str, Any]


async def first_request(gateway: Gateway, at: Address, key: str | None) -> First:
    """One request through the whole chain, over the socket like anybody's."""
    asked = question(gateway)
    began = time.monotonic()
    try:
        key = key or await passing_key(gateway, asked)
        status, content = await asyncio.wait_for(answer(asked, at, key), LONGEST)
    except Exception as exc:  # Whatever went wrong, it is shown; the gateway goes on.
        return First(asked, 0, 0.0, {"error": {"message": str(exc) or type(exc).__name__}})
    took = (time.monotonic() - began) * 1000
    try:
        body = json.loads(content)
    except ValueError:
        body = {}
    return First(asked, status, took, body if isinstance(body, dict) else {})


async def answer(asked: Question, at: Address, key: str | None) -> tuple[int, bytes]:
    """Status and body."""
    reader, writer = await asyncio.open_connection(LOCAL.get(at.host, at.host), at.port)
    try:
        credential = f"authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"{asked.method} {asked.path} HTTP/1.1\r\nhost: {at}\r\n{credential}"
            f"content-type: application/json\r\ncontent-length: {len(asked.body)}\r\n"
            "connection: close\r\n\r\n"
        )
        writer.write(head.encode() + asked.body)
        head_bytes, _, content = (await reader.read()).partition(b"\r\n\r\n")
        return int(head_bytes.split(b" ", 2)[1]), content
    finally:
        writer.close()


def url_of(at: Address) -> str:
    """Where to reach what listens there, from this machine."""
    return f"http://{Address(LOCAL.get(at.host, at.host), at.port)}"


Greetings = Mapping[str, Sequence[str]]
"""Name of an application → what it tells whoever started the gateway."""


async def greetings(gateway: Gateway, at: Address) -> Greetings:
    """Of those applications that have something to say."""
    told = {}
    for mount in gateway.snapshot.routes.mounts:
        if lines := await mount.application.greeting(url_of(at) + mount.path):
            told[mount.application.name] = lines
    return told


class Shown(NamedTuple):
    """What the banner tells."""

    at: Address
    key: str | None
    started: float
    first: First
    greetings: Greetings = {}  # noqa: RUF012  # Of a NamedTuple, and never written to.
    admin_at: Address | None = None

    @property
    def url(self) -> str:
        return url_of(self.at)

    def as_json(self, gateway: Gateway) -> str:
        return json.dumps(
            {
                "url": self.url,
                "base_url": f"{self.url}/v1",
                "admin_url": url_of(self.admin_at) if self.admin_at else None,
                "key": self.key,
                "models": gateway.snapshot.models.names(),
                "config": gateway.snapshot.hash.decode(),
                "first_request": self.first.status,
                "apps": {name: list(lines) for name, lines in self.greetings.items()},
            }
        ).decode()

    def draw(self, gateway: Gateway, wanted: Address) -> None:
        """For people."""
        from passy_proxy import __version__

        snapshot = gateway.snapshot
        facts = f"config {gateway.path or 'built-in'} · {snapshot.hash.decode()}"
        passy = ourselves()
        key = dim(f"another one: {passy} keys create")
        if self.key is not None:
            key = bold(self.key) + dim("   shown this once")
        lines = [
            "",
            f"{bold('passy')} {__version__}  {dim(f'{facts} · started in {self.started:.1f} s')}",
            "",
            f"  gateway  {bold(self.url + '/v1')}",
            *self._apps(),
            *([f"  admin    {bold(url_of(self.admin_at))}"] if self.admin_at else []),
            f"  models   {models_line(snapshot.models.names(), snapshot.upstreams)}",
            f"  key      {key}",
        ]
        if wanted.port and self.at.port != wanted.port:
            note = f"  port {wanted.port} is taken, so it is {self.at.port}"
            lines.append(click.style(note, fg="yellow"))
        lines += [
            "",
            f"  first request   {told(self.first)}",
            "",
            f"  try it   curl {self.url}/v1/chat/completions \\",
            f"             -H 'Authorization: Bearer {self.key or 'sk-passy-…'}' \\",
            "             -H 'Content-Type: application/json' \\",
            """             -d '{"model":"echo","messages":[{"role":"user","content":"hello"}]}'""",
            f"  more     {dim(f'what happens: {passy} explain · what is wrong: {passy} check')}",
            f"  stop     {dim('Ctrl-C')}",
            "",
        ]
        click.echo("\n".join(lines))

    def _apps(self) -> list[str]:
        """Each in a line, and below it what there is to do."""
        return [
            f"  {name if n == 0 else '':8} {bold(line) if n == 0 else line}"
            for name, lines in self.greetings.items()
            for n, line in enumerate(lines)
        ]


def ourselves() -> str:
    """How to call commands from where we are: in a checkout that is its launcher."""
    here = (CHECKOUT / "pyproject.toml").is_file() and Path.cwd() == CHECKOUT
    return "./passy" if here else "passy"


def bold(text: str) -> str:
    return click.style(text, bold=True)


def dim(text: str) -> str:
    return click.style(text, dim=True)


def models_line(names: list[str], upstreams: dict[str, Any]) -> str:
    """What can be asked for, and how to have more."""
    shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
    if set(upstreams) <= {"echo"}:
        shown += click.style("  (set OPENAI_API_KEY, ANTHROPIC_API_KEY … to have more)", dim=True)
    return shown


def told(first: First) -> str:
    """The first answer in a line."""
    subject = first.asked.subject
    if first.status != 200:
        error = first.body.get("error")
        reason = error.get("message", "") if isinstance(error, dict) else ""
        status = first.status or "no answer:"
        return click.style(f"{subject} → {status} {reason} ✗", fg="red")
    usage = first.body.get("usage") or {}
    tokens = ""
    if usage:
        read = usage.get("prompt_tokens", 0)
        tokens = f" · {read} token{'s' * (read != 1)} in, {usage.get('completion_tokens', 0)} out"
    mark = click.style("✓", fg="green")
    return f"{subject} → 200 in {first.milliseconds:.0f} ms{tokens}   {mark}"

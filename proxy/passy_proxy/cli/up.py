"""Start everything on one port, and show a first answer."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, fail, notice, place_options, placed
from passy_proxy.cli.serve import bound, checked, reason, where
from passy_proxy.config.model import Address
from passy_proxy.config.problem import ConfigInvalid

if TYPE_CHECKING:
    from passy_proxy.gateway import Gateway
    from passy_proxy.server import Server

TRIES = 20
"""Ports looked at, from the configured one on."""


@click.command()
@place_options
@click.option("--listen", help="host:port or :port. [HOST and PORT, else listen: in the file]")
@click.option("--json", "as_json", is_flag=True, help="Say where everything is as one JSON line.")
def command(config: Path | None, data: Path | None, listen: str | None, as_json: bool) -> None:
    """Start everything on one port. The first run makes a key and shows it, once."""
    began = time.monotonic()
    place, variables = placed(config, data)
    try:
        file = checked(place, variables)
    except ConfigInvalid as exc:
        complain(exc)
    notice(file)
    from passy_proxy.app import App
    from passy_proxy.keyring import KeyringError
    from passy_proxy.server import Server, gateway_at, server_config

    try:
        gateway = gateway_at(place, file.settings.log, variables)
    except KeyringError as exc:
        fail(str(exc), Exit.invalid_config)
    wanted = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    sock = free(wanted)
    at = Address(wanted.host, sock.getsockname()[1])

    async def ready(server: Server) -> None:
        key = await first_key(gateway)
        shown = Shown(at, key, time.monotonic() - began, await first_request(at, key))
        click.echo(shown.as_json(gateway) if as_json else "", nl=as_json)
        if not as_json:
            shown.draw(gateway, wanted)

    server = Server(server_config(App(gateway), at, file), gateway, ready)
    server.run([sock])
    if not server.started:
        raise SystemExit(Exit.failed)


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


class First(NamedTuple):
    """How the gateway answered its own first request."""

    status: int
    milliseconds: float
    body: dict[str, Any]


async def first_request(at: Address, key: str | None) -> First | None:
    """One chat completion through the whole chain, over the socket like anybody's."""
    if key is None:
        return None
    from passy_proxy import json

    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}]})
    host = "127.0.0.1" if at.host == "0.0.0.0" else at.host
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, at.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: %b\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (str(at).encode(), key.encode(), len(body), body)
    )
    answer = await asyncio.wait_for(reader.read(), 10)
    took = (time.monotonic() - began) * 1000
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return First(int(head.split(b" ", 2)[1]), took, json.loads(content))


class Shown(NamedTuple):
    """What the banner tells."""

    at: Address
    key: str | None
    started: float
    first: First | None

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.at.host == "0.0.0.0" else self.at.host
        return f"http://{Address(host, self.at.port)}"

    def as_json(self, gateway: Gateway) -> str:
        from passy_proxy import json

        return json.dumps(
            {
                "url": self.url,
                "base_url": f"{self.url}/v1",
                "key": self.key,
                "models": gateway.snapshot.models.names(),
                "config": gateway.snapshot.hash.decode(),
                "first_request": self.first.status if self.first else None,
            }
        ).decode()

    def draw(self, gateway: Gateway, wanted: Address) -> None:
        """For people."""
        from passy_proxy import __version__

        snapshot = gateway.snapshot
        facts = f"config {gateway.path or 'built-in'} · {snapshot.hash.decode()}"
        key = bold("(made on the first run)") + dim("   another: passy keys create")
        if self.key is not None:
            key = bold(self.key) + dim("   shown this once")
        lines = [
            "",
            f"{bold('passy')} {__version__}  {dim(f'{facts} · started in {self.started:.1f} s')}",
            "",
            f"  gateway  {bold(self.url + '/v1')}",
            f"  models   {models_line(snapshot.models.names(), snapshot.upstreams)}",
            f"  key      {key}",
        ]
        if wanted.port and self.at.port != wanted.port:
            note = f"  port {wanted.port} is taken, so it is {self.at.port}"
            lines.append(click.style(note, fg="yellow"))
        if self.first is not None:
            lines += ["", f"  first request   {told(self.first)}"]
        lines += [
            "",
            f"  try it   curl {self.url}/v1/chat/completions \\",
            f"             -H 'Authorization: Bearer {self.key or 'sk-passy-…'}' \\",
            "             -H 'Content-Type: application/json' \\",
            """             -d '{"model":"echo","messages":[{"role":"user","content":"hello"}]}'""",
            f"  more     {dim('what happens: passy explain · what is wrong: passy check')}",
            f"  stop     {dim('Ctrl-C')}",
            "",
        ]
        click.echo("\n".join(lines))


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
    if first.status != 200:
        reason = first.body.get("error", {}).get("message", "")
        return click.style(f"echo → {first.status} {reason} ✗", fg="red")
    usage = first.body["usage"]
    mark = click.style("✓", fg="green")
    return (
        f"echo → 200 in {first.milliseconds:.0f} ms · {usage['prompt_tokens']} tokens in, "
        f"{usage['completion_tokens']} out   {mark}"
    )

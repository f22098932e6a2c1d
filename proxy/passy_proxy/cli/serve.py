"""Run the gateway."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, dry_parts, fail, notice, place_options, placed, show
from passy_proxy.config.model import Address, GatewayFile, address
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import LAST_GOOD, Place

BACKLOG = 2048


@click.command()
@place_options
@click.option("--listen", help="host:port or :port. [HOST and PORT, else listen: in the file]")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes. [1]")
@click.option("--check", is_flag=True, help="Only say what is wrong with the configuration.")
def command(
    config: Path | None, data: Path | None, listen: str | None, workers: int, check: bool
) -> None:
    """Run the gateway until it is told to stop."""
    place, variables = placed(config, data)
    if check:
        from passy_proxy.cli.check import verdict

        verdict(place, variables, as_json=False)
        return
    try:
        file = checked(place, variables)
    except ConfigInvalid as exc:
        file = last_good(place, variables, exc)
    notice(file)
    at = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    from passy_proxy.keyring import KeyringError
    from passy_proxy.resources import allow_descriptors
    from passy_proxy.server import Served, Server, Workers, gateway_at, server_config

    allow_descriptors()
    if workers == 1:
        try:
            gateway = gateway_at(place, file.settings.log, variables)
        except KeyringError as exc:
            fail(str(exc), Exit.invalid_config)
        server = Server(server_config(Served(gateway), at, file), gateway)
        server.run([listening(at, workers)])
        if not server.started:
            raise SystemExit(Exit.failed)
        return
    # Each worker finds its place in the environment it inherits.
    os.environ["PASSY_DATA"] = str(place.data)
    if place.path is not None:
        os.environ["PASSY_CONFIG"] = str(place.path)
    settings = server_config("passy_proxy.server:worker", at, file, factory=True, workers=workers)
    supervisor = Workers(settings, sockets=[listening(at, workers)])
    supervisor.run()
    if supervisor.code:
        raise SystemExit(supervisor.code)


def checked(place: Place, variables: Mapping[str, str]) -> GatewayFile:
    """The configuration, if it fits together as a whole. Raises ConfigInvalid."""
    from passy_proxy.config.build import build

    file = place.file(variables)
    build(file, dry_parts(place, variables), "check")
    return file


def listening(at: Address, workers: int) -> socket.socket:
    """A socket that listens there, and a line that says so. Exits 1 where that cannot be."""
    try:
        sock = bound(at)
    except OSError as exc:
        hint = "; try: passy serve --listen :0" if exc.errno == errno.EADDRINUSE else ""
        fail(f"cannot listen on {at}: {reason(exc)}{hint}")
    url = f"http://{Address(at.host, sock.getsockname()[1])}"
    click.echo(f"passy: listening on {url}" + f", {workers} workers" * (workers > 1), err=True)
    return sock


def bound(at: Address) -> socket.socket:
    """A socket that listens on an address. Raises OSError."""
    found = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, place = found[0]
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock


def reason(exc: OSError) -> str:
    """Why, in the system's words."""
    return (exc.strerror or str(exc)).lower()


def last_good(place: Place, variables: Mapping[str, str], exc: ConfigInvalid) -> GatewayFile:
    """The last configuration that worked, when the one on disk does not; exits 78 without one."""
    good = place.data / LAST_GOOD
    if not good.is_file():
        complain(exc)
    for problem in exc.problems:
        show(problem)
    click.secho(
        f"passy: serving with the last configuration that worked: {good}", fg="yellow", err=True
    )
    return Place(good, "", place.data).file(variables)


def where(listen: str | None, host: str | None, port: str | None, written: Address) -> Address:
    """The address to listen on: the option, else the environment, else the file."""
    try:
        if listen:
            return address(listen)
        return (
            address(f"{host or written.host}:{port or written.port}") if host or port else written
        )
    except ValueError as exc:
        fail(str(exc), Exit.wrong_usage)

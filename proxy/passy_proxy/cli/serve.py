"""Run the gateway."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, fail, notice, place_options, placed, show
from passy_proxy.config.model import Address, GatewayFile, address
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import LAST_GOOD, Place


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
        file = place.file(variables)
    except ConfigInvalid as exc:
        file = last_good(place, variables, exc)
    notice(file)
    at = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    from passy_proxy.keyring import KeyringError
    from passy_proxy.server import Server, Workers, gateway_at, server_config

    if workers == 1:
        from passy_proxy.app import App

        try:
            gateway = gateway_at(place, file.settings.log, variables)
        except KeyringError as exc:
            fail(str(exc), Exit.invalid_config)
        server = Server(server_config(App(gateway), at, file), gateway)
        server.run()
        if not server.started:
            raise SystemExit(Exit.failed)
        return
    # Each worker finds its place in the environment it inherits.
    os.environ["PASSY_DATA"] = str(place.data)
    if place.path is not None:
        os.environ["PASSY_CONFIG"] = str(place.path)
    settings = server_config("passy_proxy.server:worker", at, file, factory=True, workers=workers)
    Workers(settings, sockets=[settings.bind_socket()]).run()


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

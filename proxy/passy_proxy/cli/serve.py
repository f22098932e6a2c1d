"""Run the gateway."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, dry_parts, fail, notice, place_options, placed, show
from passy_proxy.config.model import Address, GatewayFile, address
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import LAST_GOOD, Place

if TYPE_CHECKING:
    from passy_proxy.board import Board
    from passy_proxy.config.build import Parts
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.registry import Registry
    from passy_proxy.vitals import Vitals

admin_option = click.option(
    "--admin-listen",
    help="The same for those who run it. [PASSY_ADMIN_LISTEN, else admin: in the file]",
)
BACKLOG = 2048
GRACE = 15.0
"""Seconds beyond all that the settings allow, before a worker that should have ended is killed."""


@click.command()
@place_options
@click.option("--listen", help="host:port or :port. [HOST and PORT, else listen: in the file]")
@admin_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes, and one more that looks after them. [one process, which nobody looks after]",
)
@click.option("--check", is_flag=True, help="Only say what is wrong with the configuration.")
def command(
    config: Path | None,
    data: Path | None,
    listen: str | None,
    admin_listen: str | None,
    workers: int | None,
    check: bool,
) -> None:
    """Run the gateway until it is told to stop."""
    place, variables = placed(config, data)
    if check:
        from passy_proxy.cli.check import verdict

        verdict(place, variables, as_json=False)
        return
    parts = dry_parts(place, variables)
    try:
        file, snapshot = checked(place, variables, parts)
        administered = snapshot.administered
        if workers is not None and workers > 1:
            warn_of_several(snapshot, workers)
    except ConfigInvalid as exc:
        file = last_good(place, variables, exc)
        administered = imported(file, parts)
    notice(file)
    at = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    admin_at = None
    if administered:
        admin_at = where_admin(admin_listen, variables, file.settings.admin.listen)
    from passy_proxy.log import reopen_when_asked
    from passy_proxy.resources import allow_descriptors

    reopen_when_asked()
    allow_descriptors()
    sides = [Side(at, listening(at, workers or 0))]
    if admin_at is not None:
        sides.append(Side(admin_at, listening_admin(admin_at)))
    if workers is None:
        faulthandler.enable()
        serve(place, variables, file, sides)
    elif code := supervised(place, variables, file, sides, workers, parts.registry):
        raise SystemExit(code)


class Side(NamedTuple):
    """A listener: where, and its socket."""

    at: Address
    sock: socket.socket


class Post(NamedTuple):
    """What a worker has from its supervisor."""

    vitals: Vitals
    line: socket.socket
    board: Board | None


def serve(
    place: Place,
    variables: Mapping[str, str],
    file: GatewayFile,
    sides: Sequence[Side],
    post: Post | None = None,
) -> None:
    """Be a gateway until the end; exits with one of `Exit` where it cannot start. ``sides``: where
    clients connect, and where those who run the gateway do, if they can."""
    from passy_proxy.app import AdminApp
    from passy_proxy.keyring import KeyringError
    from passy_proxy.log import let_go
    from passy_proxy.server import Served, Server, Serving, gateway_at

    vitals, line, board = post or (None, None, None)
    try:
        gateway = gateway_at(place, file.settings.log, variables, vitals, board)
    except KeyringError as exc:
        fail(str(exc), Exit.invalid_config)
    # A supervisor sees it for itself, and starts another.
    dead = file.settings.edge.loop_dead if post is None else 0.0
    main, *others = sides
    admin = [(Serving(AdminApp(gateway), side.at, file), side.sock) for side in others]
    server = Server(
        Serving(Served(gateway), main.at, file),
        gateway,
        dead=dead,
        line=line,
        admin=admin[0] if admin else None,
    )
    server.run([main.sock])
    let_go()
    if not server.started and not gateway.draining:
        raise SystemExit(Exit.failed)


def supervised(
    place: Place,
    variables: Mapping[str, str],
    file: GatewayFile,
    sides: Sequence[Side],
    count: int,
    registry: Registry,
) -> int:
    """Look after ``count`` workers until the end; the exit code. ``registry`` has the plugins."""
    import passy_proxy.server  # noqa: F401  # Workers begin with everything in memory.
    from passy_proxy.board import Board
    from passy_proxy.log import configured
    from passy_proxy.pulse import Slot, blamed
    from passy_proxy.supervisor import Supervisor, Times
    from passy_proxy.vitals import Vitals

    slots = [Slot() for _ in range(count)]
    board = Board(count) if count > 1 else None
    edge = file.settings.edge

    def work(number: int, line: socket.socket) -> None:
        slots[number].begin()
        serve(place, variables, file, sides, Post(Vitals(slots, number), line, board))

    end = edge.lame_duck + edge.shutdown_timeout + GRACE
    times = Times(edge.loop_dead, edge.start_timeout, end)
    log = configured(file.settings.log, variables)
    blame = partial(blamed, registry=registry)
    return Supervisor(work, slots, [side.sock for side in sides], blame, log, times).run()


def checked(
    place: Place, variables: Mapping[str, str], parts: Parts
) -> tuple[GatewayFile, Snapshot]:
    """The configuration, if it fits together as a whole. Raises ConfigInvalid."""
    from passy_proxy.config.build import also_wrong, build

    try:
        file = place.file(variables)
    except ConfigInvalid as exc:
        raise also_wrong(exc, parts) from None
    return file, build(file, parts, "check")


def warn_of_several(snapshot: Snapshot, workers: int) -> None:
    """Say what is other than written, as there are several of them."""
    said: dict[str, set[str]] = {}
    for filter in snapshot.filters:
        if filter.when_several:
            said.setdefault(filter.when_several, set()).add(filter.name)
    for what, names in said.items():
        message = f"passy: {workers} workers ({', '.join(sorted(names))}): {what}"
        click.secho(message, fg="yellow", err=True)


def imported(file: GatewayFile, parts: Parts) -> bool:
    """Import the plugins of a configuration, so that workers are born with them. Whether it has
    something for those who run the gateway."""
    from passy_proxy.config.build import build

    with contextlib.suppress(ConfigInvalid):
        return build(file, parts, "check").administered
    return False


def listening(at: Address, workers: int = 0) -> socket.socket:
    """A socket that listens there, and a line that says so. Exits 1 where that cannot be."""
    try:
        sock = bound(at)
    except OSError as exc:
        hint = "; try: passy serve --listen :0" if exc.errno == errno.EADDRINUSE else ""
        fail(f"cannot listen on {at}: {reason(exc)}{hint}")
    url = f"http://{Address(at.host, sock.getsockname()[1])}"
    with contextlib.suppress(OSError):  # A full disk is no reason not to serve.
        click.echo(f"passy: listening on {url}" + f", {workers} workers" * (workers > 0), err=True)
    return sock


def listening_admin(at: Address) -> socket.socket:
    """The same for those who run the gateway."""
    try:
        sock = bound(at)
    except OSError as exc:
        hint = "; try: --admin-listen 127.0.0.1:0" if exc.errno == errno.EADDRINUSE else ""
        fail(f"cannot listen on {at} for administration: {reason(exc)}{hint}")
    with contextlib.suppress(OSError):
        url = f"http://{Address(at.host, sock.getsockname()[1])}"
        click.echo(f"passy: administration at {url}", err=True)
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


def where_admin(listen: str | None, variables: Mapping[str, str], written: Address) -> Address:
    """The address of those who run the gateway, found alike."""
    return where(listen or variables.get("PASSY_ADMIN_LISTEN"), None, None, written)

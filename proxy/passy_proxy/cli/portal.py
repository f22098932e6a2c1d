"""Run the portal in a process of its own."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import (
    complain,
    dry_parts,
    fail,
    notice,
    place_options,
    placed,
    said_of_the_log,
)
from passy_proxy.cli.serve import checked, listening, where
from passy_proxy.config.document import environment
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import Place, usual

if TYPE_CHECKING:
    from passy_proxy.config.model import GatewayFile
    from passy_proxy.config.problem import Problem
    from passy_proxy.config.snapshot import Snapshot

BUILT_IN = """\
listen: 127.0.0.1:3005
stores:
  # Gateways that count in a Redis hear of changes through it at once, others within seconds.
  state: {kind: redis, url: "${REDIS_URL:-memory:}"}
  books: {kind: sql, url: "${DATABASE_URL:-sqlite:///.passy/passy.db}"}
apps:
  /:
    app: portal
    store: books
    public_url: "${PASSY_PORTAL_URL:-}"
    gateway_url: "${API_PASSY_AI_URL:-http://localhost:3000}"
    admin_url: "${PASSY_ADMIN_URL:-}"
    admin_token: "${PASSY_ADMIN_TOKEN-off}"
"""
"""What runs where there is no file. The guide shows the same."""
FOLDER = "portal"
"""In the data folder: what this process keeps for itself, so that a gateway beside it keeps its
own last configuration and its own journal."""


@click.command()
@place_options
@click.option("--listen", help="host:port or :port. [HOST and PORT, else listen: in the file]")
@click.option("--check", is_flag=True, help="Only say what is wrong with the configuration.")
def command(config: Path | None, data: Path | None, listen: str | None, check: bool) -> None:
    """Run the portal until it is told to stop.

    It needs the database and the secret keys of the gateways, and nothing else of them: they do not
    notice whether it runs. Without a file (--config, PASSY_PORTAL_CONFIG, config/portal.yaml and
    the like) it takes DATABASE_URL, PASSY_SECRET_KEYS, PASSY_PORTAL_URL and API_PASSY_AI_URL, and
    listens on port 3005.
    """
    variables = environment()
    said_of_the_log(variables)
    place = place_of(variables, config, data)
    try:
        file, built = checked(place, variables, dry_parts(place, variables))
    except ConfigInvalid as exc:
        complain(exc)
    if out_of_place := list(gateways_own(file, built)):
        complain(out_of_place)
    notice(file)
    if check:
        return
    at = where(listen, variables.get("HOST"), variables.get("PORT"), file.settings.listen)
    from passy_proxy.gateway import Gateway
    from passy_proxy.keyring import KeyringError
    from passy_proxy.log import configured, let_go, reopen_when_asked
    from passy_proxy.pulse import Slot
    from passy_proxy.server import Served, Server, Serving
    from passy_proxy.site import Site
    from passy_proxy.vitals import Vitals

    faulthandler.enable()
    reopen_when_asked()
    log = configured(file.settings.log, variables)
    try:
        keyring = place.keyring(variables)
    except KeyringError as exc:
        fail(str(exc), Exit.invalid_config)
    own = place.data / FOLDER
    own.mkdir(mode=0o700, exist_ok=True)
    site = Site(own, keyring, log, Vitals([Slot()]), carries_traffic=False)
    gateway = Gateway(site, variables, log, path=place.path, text=place.text)
    main = Serving(Served(gateway), at, file)
    server = Server(main, gateway, dead=file.settings.edge.loop_dead)
    server.run([listening(at)])
    let_go()
    if not server.started and not gateway.draining:
        raise SystemExit(Exit.failed)


def gateways_own(file: GatewayFile, built: Snapshot) -> Iterator[Problem]:
    """What has no place in the file of a portal: nobody could reach it."""
    for route in file.routes:
        yield route.node.problem("the portal carries no traffic", "take the routes out of its file")
    apart = {one.path for one in built.admin_routes.mounts}
    for app in file.apps:
        if app.path.rstrip("/") in apart:
            message = f"the portal has one listener, so nobody could reach the app at {app.path}"
            hint = "leave it to the gateway's file; admin_url of the portal says where it is there"
            yield app.at.problem(message, hint)


def place_of(variables: Mapping[str, str], config: Path | None, data: Path | None) -> Place:
    """The portal's own file, or the built-in one, and the data folder it shares with a gateway."""
    path = config or usual(variables, "PASSY_PORTAL_CONFIG", "portal.yaml")
    if path is not None:
        return placed(path, data)[0]
    return Place(None, BUILT_IN, Place.of(variables, None, data).data)

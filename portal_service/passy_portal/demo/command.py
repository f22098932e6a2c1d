"""Show the portal with a month of a small team in it, in books of its own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._books import configured
from passy_proxy.cli._terms import complain, fail, place_options, placed
from passy_proxy.config.legacy import layers
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.issue import ROLES
from passy_proxy.keyring import KeyringError
from passy_proxy.log import configured as logging
from passy_proxy.place import Place
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from passy_portal.demo.stage import Tell

CONFIGURATION = Path(__file__).with_name("gateway.yaml")
SIGN_IN = "sign-in.json"
"""In the demo's folder: who may sign in, and the keys of the demo. For its owner alone."""
TOLD = frozenset({"password", "people", "records", "days", "keys"})
"""What stands there."""
DAYS, DAY = 30, 86_400


@click.command()
@place_options
@click.option("--days", type=click.IntRange(1, 366), default=DAYS, help="How many days. [30]")
@click.option("--seed", type=int, default=1, help="Another one makes other days. [1]")
@click.option("--yes", is_flag=True, help="Ask nothing: begin anew where there is one already.")
@click.option("--anyway", is_flag=True, help="Also into books in which there is traffic.")
@click.option("--fill", is_flag=True, help="Fill the books and end, with how to serve them.")
@click.option("--still", is_flag=True, help="Nobody asks anything while it is served.")
@click.option("--listen", help="host:port or :port. [127.0.0.1:8090]")
@click.option("--json", "as_json", is_flag=True, help="Fill, and say who may sign in as JSON.")
def command(**given: Any) -> None:
    """Show the portal with a month of a small team in it.

    It has books and a configuration of its own, in which the echo plays every provider: no request
    leaves this machine. With --config it is written into the books of that configuration instead.
    """
    config = given["config"]
    place, variables = placed(config, given["data"])
    if config is None:
        place = own_place(place.data / "demo")
        sign_in = place.data / SIGN_IN
        if given["yes"] or not sign_in.exists() or begin_anew(sign_in):
            forget(place)
            told = fill(place, variables, given)
            sign_in.touch(0o600)
            sign_in.write_bytes(json.dumps(told))
        told = known(sign_in)
    else:
        if not given["yes"]:
            click.confirm(f"Write a demo into the books of {config}?", abort=True, err=True)
        told = fill(place, variables, given)
    if given["as_json"]:
        click.echo(json.dumps(told))
        return
    draw(told)
    if given["fill"]:
        click.echo(f"  serve    passy up --config {place.path} --data {place.data}\n")
        return
    from passy_portal.demo.living import living
    from passy_proxy.cli.up import run

    run(
        place, variables, given["listen"],
        beside=None if given["still"] else lambda url: living(url, told["keys"]),
    )  # fmt: skip


def own_place(folder: Path) -> Place:
    """The demo's own configuration and data, in a folder of their own."""
    return Place(folder.resolve() / "gateway.yaml", "", folder.resolve())


def begin_anew(sign_in: Path) -> bool:
    """Whether to forget the demo that there is, as whoever sits there says."""
    made = time.localtime(sign_in.stat().st_mtime)
    if not sys.stdin.isatty():
        return False
    return click.confirm(f"There is a demo of {time.strftime('%d %B, %H:%M', made)}. Begin anew?")


def known(sign_in: Path) -> dict[str, Any]:
    """Who may sign in to the demo that there is. Ends where an earlier version has made it."""
    try:
        told: dict[str, Any] = json.loads(sign_in.read_bytes())
    except ValueError:
        told = {}
    if not isinstance(told, dict) or not told.keys() >= TOLD:
        fail(
            f"the demo in {sign_in.parent} is of another version of passy; begin anew with"
            " passy demo --yes, which forgets that folder",
            Exit.failed,
        )
    return told


def forget(place: Place) -> None:
    """The demo's folder is as at the first time. Only what is known to be one is deleted."""
    if (place.data / SIGN_IN).exists():
        shutil.rmtree(place.data)
    folder = place.folder()
    url = f"sqlite:///{quote(str(folder / 'passy.db'))}"
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert place.path is not None
    place.path.write_text(text.replace("sqlite:///demo.db", url), encoding="utf-8")


def fill(place: Place, variables: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Write a demo, with a bar for people; who may sign in. Every failure in words and code."""
    password = secrets.token_urlsafe(12)
    bar = click.progressbar(
        length=1000, label=f"Writing {given['days']} days into the books", file=sys.stderr
    )

    def tell(share: float) -> None:
        bar.update(int(share * 1000) - bar.pos)

    try:
        with bar:
            return asyncio.run(filled(place, variables, given, password, tell))
    except (KeyringError, ValueError) as error:
        fail(str(error), Exit.invalid_config if isinstance(error, KeyringError) else Exit.failed)
    except ConfigInvalid as error:
        complain(error)
    except StoreUnavailable as error:
        fail(str(error), Exit.unavailable)


async def filled(
    place: Place, variables: Mapping[str, str], given: Mapping[str, Any], password: str, tell: Tell
) -> dict[str, Any]:
    """Write a demo; who may sign in. ValueError where there is traffic in the books already."""
    from passy_plugins.stores.sql import Sql
    from passy_plugins.stores.sql.reports import Asked
    from passy_portal.accounts import Accounts
    from passy_portal.demo.cast import PEOPLE
    from passy_portal.demo.stage import Span, Stage
    from passy_portal.migrate import migrate
    from passy_proxy.config.document import load

    file = layers(load(CONFIGURATION, variables), variables)
    keyring = place.keyring(variables)
    log = logging(place.file(variables).settings.log, variables)
    kind, settings = configured(place, variables)
    if kind is not Sql:
        raise ValueError("a demo can be written into a store of kind sql alone")
    store = Sql(settings, Site(place.data, keyring, log))
    await store.start()
    try:
        async with store.admin() as admin:
            everything = Asked(0, 1 << 62)
            if not given["anyway"] and (await admin.reports.totals(everything)).requests:
                raise ValueError(
                    "there is traffic in these books; to mix a demo with it all the same: --anyway"
                )
            await migrate(admin)
            end = time.time()
            span = Span(end - given["days"] * DAY, end)
            stage = Stage(store, Accounts(admin, DAY, DAY), file, span)
            await stage.people(password)
            await stage.providers()
            await stage.keys()
            await stage.traffic(given["seed"], tell)
            await stage.money()
    finally:
        await store.stop()
    shown = {person.role: person.email for person in reversed(PEOPLE)}
    return {
        "password": password,
        "people": {role: shown[role] for role in ROLES},
        "records": stage.made.records,
        "days": given["days"],
        "keys": stage.made.secrets,
    }


def draw(told: Mapping[str, Any]) -> None:
    """Who may sign in, for people."""
    click.echo(f"\n  {told['days']} days, {told['records']:,} requests of a small team")
    click.echo(
        f"  sign in as any of them; the password is {click.style(told['password'], bold=True)}\n"
    )
    for role, email in told["people"].items():
        click.echo(f"    {role:10} {email}")
    click.echo()

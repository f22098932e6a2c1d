"""``passy providers test``: is a key taken, which models does it see, does a call go through."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from passy_proxy import json
from passy_proxy.advice import advice
from passy_proxy.cli import Exit
from passy_proxy.cli._books import Setting, on_books, run
from passy_proxy.cli._terms import complain, dry_parts, fail, placed
from passy_proxy.config.model import BaseURL
from passy_proxy.config.problem import ConfigInvalid, nearest, printable
from passy_proxy.issue import Organiser
from passy_proxy.records import Credential, CustomProvider

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.place import Place
    from passy_proxy.trial import Trial
    from passy_proxy.upstream import Upstream


class Tried(NamedTuple):
    """What is to be tried."""

    credential: Credential | None
    upstream: str
    """A shared one's name, where it is no custom provider."""
    provider: CustomProvider | None


@click.command("test")
@on_books
@click.argument("stored", metavar="[ID]", required=False)
@click.option("--for", "upstream", metavar="UPSTREAM", help="A key for this shared upstream.")
@click.option("--base-url", type=Setting(BaseURL, "URL"), help="A key for an upstream there.")
@click.option("--dialect", default="openai", help="What that speaks. [openai]")
@click.option("--model", help="The model that the call asks for. [one that is listed]")
@click.option("--key-env", metavar="VARIABLE", help="Holds the key. [asked for, or standard input]")
@click.option("--no-key", is_flag=True, help="The upstream needs no key.")
def try_one(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    stored: str | None,
    **given: Any,
) -> None:
    """Try a stored key, an upstream, or a key that is not entered yet.

    Three steps, each with its time: whether the key is taken, the list of models, and one call that
    costs a few tokens. Exits 1 when the key cannot be used.
    """
    upstream, base_url = given["upstream"], given["base_url"]
    if sum(map(bool, (stored, upstream, base_url))) != 1:
        raise click.UsageError("give an ID, or --for, or --base-url")
    place, variables = placed(config, data)
    if stored:
        tried = run(lambda store: found(store, stored), config, data, url)
    else:
        from passy_proxy.cli.providers import known_dialect, secret

        key = None if given["no_key"] else secret(given["key_env"])
        credential = Credential(key, "new") if key else None
        own = None
        if base_url:
            dialect = known_dialect(given["dialect"])
            own = CustomProvider("new", "new", "new", dialect, base_url, ("*",))
        tried = Tried(credential, upstream or "", own)
    result = asyncio.run(carried_out(tried, given["model"], place, variables))
    if as_json:
        click.echo(json.dumps({"ok": result.ok, **asdict(result), "advice": advice(result)}))
    else:
        show(result)
    if not result.ok:
        sys.exit(Exit.failed)


async def found(store: Organiser, stored: str) -> Tried:
    """A stored key, or an upstream with its first key."""
    providers = {one.id: one for one in await store.list_providers()}
    if (provider := providers.get(stored)) is not None:
        keys = await store.list_credentials(provider.organisation)
        mine = [one.id for one in keys if one.upstream == stored and one.active]
        key = await store.open_credential(mine[0]) if mine else None
        return Tried(key, "", provider)
    credential = await store.open_credential(stored)
    if credential is None:
        fail(f"there is no provider and no key {stored}; try: passy providers list")
    return Tried(credential, credential.upstream, providers.get(credential.upstream))


async def carried_out(
    tried: Tried, model: str | None, place: Place, variables: Mapping[str, str]
) -> Trial:
    """Through the transports of the configuration, under its rules for tenants."""
    from passy_proxy.config.build import build
    from passy_proxy.gateway import connecting
    from passy_proxy.trial import candidates, trial

    try:
        file = place.file(variables)
        parts = dry_parts(place, variables)
        parts.connector.settings = connecting(file.settings.connect)
        snapshot = build(file, parts, "trial")
    except ConfigInvalid as error:
        complain(error)
    upstream = upstream_of(tried, snapshot)
    try:
        names = [model] if model else candidates(upstream, snapshot.models)
        return await trial(upstream, tried.credential, names)
    finally:
        await upstream.transport.aclose()


def upstream_of(tried: Tried, snapshot: Snapshot) -> Upstream:
    """Exits 1 where there is none."""
    if tried.provider is not None:
        try:
            return snapshot.connections.custom(tried.provider)
        except ValueError as error:
            fail(f"{tried.provider.url} cannot be used: {error}")
    name = tried.upstream
    if (upstream := snapshot.upstreams.get(name)) is not None and upstream.dialect is not None:
        return upstream
    if name in snapshot.upstreams.left_out:
        fail(f"{name} is left out of the configuration, since the operator has no key for it")
    meant = nearest(name, snapshot.upstreams)
    hint = f"; did you mean {meant}?" if meant else ""
    fail(f"no upstream is named {name}, or it takes no key{hint}")


MARKS = {
    "ok": ("✓", "green"),
    "limited": ("!", "yellow"),
    "unclear": ("!", "yellow"),
    "refused": ("✗", "red"),
    "failed": ("✗", "red"),
    "skipped": ("·", "dim"),
}


def show(result: Trial, *, err: bool = False) -> None:
    """For people: each step, what to check where it did not go well, and what that comes to."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        Column("", no_wrap=True), Column("Step", no_wrap=True), Column("Verdict", no_wrap=True),
        Column("Status", justify="right"), Column("Time", justify="right", no_wrap=True), "",
        box=box.SIMPLE,
    )  # fmt: skip
    for step in result.steps:
        mark, style = MARKS[step.verdict]
        words = Text(step.message)
        if step.theirs and step.verdict != "ok":
            words.append(f"\nits own words: {printable(step.theirs)}", "dim")
        took = f"{step.ms} ms" if step.ms or step.status else ""
        table.add_row(
            Text(mark, style), step.name, Text(step.verdict, style),
            str(step.status or ""), took, words,
        )  # fmt: skip
    console = Console(stderr=err)
    console.print(table)
    for one in advice(result):
        console.print(Text(f"  • {one}"))
    said = "the key can be used" if result.ok else "the key cannot be used like this"
    click.secho(said, fg="green" if result.ok else "red", bold=True, err=True)

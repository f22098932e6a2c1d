"""Show what would happen to a request: its route, its chain, its targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, dry_parts, fail, place_options, placed
from passy_proxy.config.problem import ConfigInvalid

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.mount import Mount
    from passy_proxy.route import Route, RouteTable

LISTENERS = {"main": "", "admin": ", at the listener of those who run the gateway"}
PHASES = ("on_request", "on_attempt", "on_response", "on_event", "on_end", "on_complete")


@click.command()
@click.argument("method", default="POST")
@click.argument("path", default="/v1/chat/completions")
@click.option("--model", help="Also show who would answer for this model.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@place_options
def command(
    method: str,
    path: str,
    model: str | None,
    as_json: bool,
    config: Path | None,
    data: Path | None,
) -> None:
    """Show what would happen to a request METHOD PATH, phase by phase.

    passy explain /v1/embeddings --model text-embedding-3-small
    """
    if method.startswith("/"):
        method, path = "POST", method
    from passy_proxy.config.build import build

    place, variables = placed(config, data)
    try:
        file = place.file(variables)
        snapshot = build(file, dry_parts(place, variables), "explain")
    except ConfigInvalid as exc:
        complain(exc)
    route, mount = asked(snapshot.routes, method.upper(), path)
    listener = "main"
    if route is None and mount is None:
        route, mount = asked(snapshot.admin_routes, method.upper(), path)
        listener = "admin"
    if mount is not None:
        told = {"app": mount.application.name, "path": mount.path or "/", "place": mount.origin,
                "listener": listener}  # fmt: skip
        if as_json:
            from passy_proxy import json

            click.echo(json.dumps(told).decode())
        else:
            where = LISTENERS[listener]
            click.echo(f"the app {told['app']} at {told['path']}{where}  {told['place']}")
        return
    if route is None:
        fail(f"no route matches {method.upper()} {path}", Exit.failed)
    told = facts(snapshot, route, model) | {"listener": listener}
    if as_json:
        from passy_proxy import json

        click.echo(json.dumps(told).decode())
    else:
        draw(told, f"{method.upper()} {path}")


def asked(table: RouteTable, method: str, path: str) -> tuple[Route | None, Mount | None]:
    """Who answers at a listener."""
    route = table.find(method, path)
    return route, table.mount(path) if route is None else None


def facts(snapshot: Snapshot, route: Route, model: str | None) -> dict[str, Any]:
    """The compiled route, as data."""
    from passy_proxy.request_body import read_body

    chain = route.chain
    phases = {
        phase: [
            "(the body is read)" if hook is read_body else chain.filters[depth - 1].name
            for depth, hook in steps(chain, phase)
        ]
        for phase in PHASES
    }
    told: dict[str, Any] = {
        "route": route.match,
        "place": route.origin,
        "dialect": route.dialect.name,
        "operation": route.operation or None,
        "body_limit": route.body_limit,
        "filters": [
            {"name": filter.name, "place": place}
            for filter, place in zip(chain.filters, route.places, strict=True)
        ],
        "phases": phases,
        "terminal": chain.terminal.name,
    }
    if model is not None:
        told["model"] = model
        told["targets"] = targets(snapshot, model)
        told["missing"] = list(snapshot.models.missing(model))
    return told


def steps(chain: Any, phase: str) -> Any:
    return chain.dispatch.before if phase == "on_attempt" else getattr(chain, phase)


def targets(snapshot: Snapshot, model: str) -> list[dict[str, Any]]:
    """Who could answer for a model, in order."""
    return [
        {
            "target": target.label,
            "upstream": target.upstream.origin,
            "first_byte": target.timeouts.head,
            "fallback_on": sorted(target.fallback_on) if target.fallback_on is not None else None,
        }
        for target in snapshot.models.targets(model)
    ]


def draw(told: dict[str, Any], asked: str) -> None:
    """The same, as a tree."""
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(f"[bold]{asked}[/]")
    where = LISTENERS[told["listener"]]
    tree.add(f"route [bold]{told['route']}[/]{where}  [dim]{told['place']}[/]")
    tree.add(f"dialect {told['dialect']}, operation {told['operation'] or 'passed through'}")
    chain = tree.add("chain, in order")
    for one in told["filters"]:
        chain.add(f"[bold]{one['name']}[/]  [dim]{one['place']}[/]")
    phases = tree.add("phases")
    for phase, names in told["phases"].items():
        if phase == "on_request":
            names = [*names, f"[bold]{told['terminal']}[/] makes the attempts"]
        phases.add(f"{phase}: {' → '.join(names) or '[dim]nobody[/]'}")
    if "targets" in told:
        branch = tree.add(f"model [bold]{told['model']}[/]")
        for position, one in enumerate(told["targets"], 1):
            when = one["fallback_on"]
            then = "" if when is None else f", moves on after {', '.join(when) or 'nothing'}"
            branch.add(
                f"{position}. [bold]{one['target']}[/]  head within {one['first_byte']:g} s{then}"
                f"  [dim]{one['upstream']}[/]"
            )
        if missing := ", ".join(told["missing"]):
            branch.add(f"[yellow]left out, for want of a credential: {missing}[/]")
        if not told["targets"]:
            reply = "503 no_healthy_target" if missing else "404 model_not_found"
            branch.add(f"[red]nobody: the client gets {reply}[/]")
    Console().print(tree)

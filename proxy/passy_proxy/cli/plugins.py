"""Show what is installed, where it comes from, and what can be set."""

from __future__ import annotations

import sys
from typing import Any

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the installed plugins, or show the settings of the one called NAME."""
    from passy_proxy.registry import BadPlugin, Registry

    registry = Registry()
    names = [name] if name else registry.installed()
    rows = []
    for one in names:
        try:
            plugin = registry.load(one)
        except BadPlugin as exc:
            rows.append({"name": one, "error": str(exc)})
            continue
        if plugin is None:
            raise click.ClickException(
                f"no plugin is named {one!r}; there are {', '.join(registry.installed())}"
            )
        rows.append(described(plugin))
    if as_json:
        from passy_proxy import json

        click.echo(json.dumps(rows).decode())
    else:
        (print_settings if name else print_table)(rows)


def described(plugin: Any) -> dict[str, Any]:
    """What a plugin brings, and the settings of each part."""
    from passy_proxy.config.build import settings_of

    parts: list[dict[str, Any]] = []
    for kind in plugin.filters:
        what = "terminal" if issubclass(kind, _terminal()) else "filter"
        parts.append(part(what, kind.name, kind, settings_of(kind), kind.status))
    parts += [part("dialect", dialect.name, type(dialect), None) for dialect in plugin.dialects]
    parts += [part("store", word, kind, settings_of(kind)) for word, kind in plugin.stores.items()]
    parts += [
        part("upstream", word, kind, settings_of(kind)) for word, kind in plugin.upstreams.items()
    ]
    parts += [part("app", kind.name, kind, settings_of(kind)) for kind in plugin.apps]
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "parts": parts,
    }


def part(what: str, name: str, kind: type, settings: Any, status: str = "stable") -> dict[str, Any]:
    module = sys.modules[kind.__module__].__doc__ or ""
    return {
        "kind": what,
        "name": name,
        "status": status,
        "summary": " ".join(module.partition("\n\n")[0].replace("``", "`").split()),
        "settings": written(settings) if settings is not None else {},
    }


def written(settings: Any) -> dict[str, dict[str, Any]]:
    """What can be written in gateway.yaml: each setting's description, and its default if any."""
    from passy_proxy.config.build import GIVEN

    told: dict[str, dict[str, Any]] = {}
    for name, declared in settings.model_fields.items():
        if declared.annotation in GIVEN:
            continue  # A part of the gateway, handed over when the filter is made.
        told[name] = {"description": declared.description}
        if not declared.is_required():
            told[name]["default"] = declared.default
    return told


def _terminal() -> type:
    from passy_proxy.filter import Terminal

    return Terminal


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each plugin, as long as the terminal is wide."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plugin", no_wrap=True)
    table.add_column("brings", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "[red]cannot be loaded[/]", "", escaped(row["error"]))
            continue
        brings = ", ".join(dict.fromkeys(one["kind"] for one in row["parts"]))
        summary = row["parts"][0]["summary"] if row["parts"] else ""
        source = f"{row['distribution']} {row['version']}"
        table.add_row(row["name"], brings, source, escaped(summary))
    Console().print(table)
    click.echo("\nWhat one of them can be told: passy plugins NAME")


def print_settings(rows: list[dict[str, Any]]) -> None:
    """Everything about one plugin."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for row in rows:
        if "error" in row:
            console.print(
                f"[bold]{row['name']}[/]  [red]cannot be loaded[/]: {escaped(row['error'])}"
            )
            continue
        console.print(f"[bold]{row['name']}[/]  [dim]{row['distribution']} {row['version']}[/]")
        for one in row["parts"]:
            status = "" if one["status"] == "stable" else f" ({one['status']})"
            console.print(f"\n{one['kind']} [bold]{one['name']}[/]{status}")
            console.print(escaped(one["summary"]), style="dim")
            if not one["settings"]:
                console.print("It has no settings.")
                continue
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column("setting", no_wrap=True)
            table.add_column("default", overflow="fold", max_width=24)
            table.add_column("what it is for")
            for name, setting in one["settings"].items():
                table.add_row(name, escaped(shown(setting)), escaped(setting["description"]))
            console.print(table)


def shown(setting: dict[str, Any]) -> str:
    """A default as it would be written."""
    if "default" not in setting:
        return "needed"
    default = setting["default"]
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(str, default))}]"
    return str(default) or '""'


def escaped(text: str) -> str:
    """Free text, in which brackets are no markup."""
    from rich.markup import escape

    return escape(text)

"""Show what is installed, where it comes from, and what can be set."""

from __future__ import annotations

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

        click.echo(json.dumps(rows))
    else:
        (print_settings if name else print_table)(rows)


def described(plugin: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a plugin brings, and the settings of each part."""
    from passy_proxy.config.build import settings_of

    parts: list[dict[str, Any]] = []
    for kind in plugin.filters:
        what = "terminal" if issubclass(kind, _terminal()) else "filter"
        parts.append(part(what, kind.name, kind, settings_of(kind), kind.status))
    parts += [part("dialect", dialect.name, type(dialect), None) for dialect in plugin.dialects]
    parts += [
        part("store", word, kind, settings_of(kind)) for word, kind in plugin.stores.items()
    ]
    parts += [
        part("upstream", word, kind, settings_of(kind)) for word, kind in plugin.upstreams.items()
    ]
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "parts": parts,
    }


def part(what: str, name: str, kind: type, settings: Any, status: str = "stable") -> dict[str, Any]:  # noqa: ANN401
    module = __import__(kind.__module__, fromlist=["__doc__"]).__doc__ or ""
    fields = settings.model_json_schema()["properties"] if settings and settings.model_fields else {}
    return {
        "kind": what,
        "name": name,
        "status": status,
        "summary": " ".join(module.strip().partition("\n\n")[0].split()),
        "settings": {
            field: {
                "description": one.get("description", ""),
                **({"default": one["default"]} if "default" in one else {}),
            }
            for field, one in fields.items()
        },
    }


def _terminal() -> type:
    from passy_proxy.filter import Terminal

    return Terminal


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("plugin", "brings", "from", ""):
        table.add_column(title, no_wrap=title != "")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "[red]cannot be loaded[/]", "", row["error"])
            continue
        brings = ", ".join(dict.fromkeys(one["kind"] for one in row["parts"]))
        summary = row["parts"][0]["summary"] if row["parts"] else ""
        table.add_row(row["name"], brings, f"{row['distribution']} {row['version']}", summary)
    Console().print(table)


def print_settings(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for row in rows:
        console.print(f"[bold]{row['name']}[/]  {row.get('distribution', '')} {row.get('version', '')}")
        for one in row.get("parts", ()):
            console.print(f"{one['kind']} [bold]{one['name']}[/] ({one['status']}): {one['summary']}")
            table = Table(box=None, pad_edge=False, show_header=bool(one["settings"]))
            table.add_column("setting", no_wrap=True)
            table.add_column("default", overflow="fold")
            table.add_column("what it is for")
            for name, setting in one["settings"].items():
                default = "needed" if "default" not in setting else str(setting["default"])
                table.add_row(name, default, setting["description"])
            console.print(table)

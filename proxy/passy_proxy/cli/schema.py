"""Print the JSON Schema of gateway.yaml, for editors."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Print the JSON Schema of gateway.yaml, with the settings of every installed plugin.

    For VS Code: put "# yaml-language-server: $schema=gateway.schema.json" at the top of the file.
    """
    import json

    from passy_proxy.config.build import settings_of
    from passy_proxy.config.schema import json_schema
    from passy_proxy.registry import Registry

    registry = Registry()
    for name in registry.installed():
        registry.load(name)
    filters, stores, upstreams, apps = (
        {name: settings_of(kind) for name, kind in kinds.items()}
        for kinds in (registry.filters, registry.stores, registry.upstreams, registry.apps)
    )
    schema = json_schema(filters, stores, upstreams, apps)
    click.echo(json.dumps(schema, indent=2, ensure_ascii=False))

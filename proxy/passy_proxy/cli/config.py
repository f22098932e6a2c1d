"""Turn earlier set-ups into gateway.yaml."""

from __future__ import annotations

import click

from passy_proxy.cli._terms import complain
from passy_proxy.config.document import environment
from passy_proxy.config.problem import ConfigInvalid


@click.group()
def command() -> None:
    """Turn earlier set-ups into gateway.yaml."""


@command.command("import-env")
def import_env() -> None:
    """Print MINI_LLM_PROVIDERS, MINI_LLM_ROUTING and the providers whose key is set as YAML."""
    from passy_proxy.config.legacy import layers, to_yaml

    try:
        file = layers(None, environment())
    except ConfigInvalid as exc:
        complain(exc)
    if not (file.upstreams or file.models):
        names = "MINI_LLM_PROVIDERS, MINI_LLM_ROUTING and the keys of providers"
        click.echo(f"passy: nothing to import, since {names} are not set", err=True)
    click.echo(to_yaml(file.upstreams.values(), file.models.values()), nl=False)

"""`passy schema`: a JSON Schema that knows the settings of every installed plugin."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from passy_proxy.cli.schema import command
from passy_proxy.config.build import settings_of
from passy_proxy.registry import Registry


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    result = CliRunner().invoke(command)
    assert 0 == result.exit_code, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def reached(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference leads to."""
    found: dict[str, Any] = node
    for step in node.get("$ref", "#").split("/")[1:]:
        found = schema if found is node else found
        found = found[step]
    return found


def test_it_is_a_draft_2020_12_schema_of_the_top(schema: dict[str, Any]) -> None:
    assert "https://json-schema.org/draft/2020-12/schema" == schema["$schema"]
    sections = {"listen", "stores", "upstreams", "models", "chains", "routes"}
    assert sections <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "$ref" in node:
                assert reached(schema, node)
            pending += node.values()
        elif isinstance(node, list):
            pending += node


def test_it_knows_the_settings_of_each_filter(schema: dict[str, Any]) -> None:
    registry = Registry()
    for name in registry.installed():
        registry.load(name)
    [settings] = [one for one in schema["$defs"]["chain"]["items"]["anyOf"] if "properties" in one]
    assert registry.filters.keys() == settings["properties"].keys()
    for name, kind in registry.filters.items():
        shown = reached(schema, settings["properties"][name])
        assert settings_of(kind).model_fields.keys() == shown.get("properties", {}).keys()
        for setting in shown.get("properties", {}).values():
            assert setting["description"]


def test_it_knows_the_kinds_of_stores_and_of_upstreams(schema: dict[str, Any]) -> None:
    text = json.dumps(schema["properties"])
    for kind in ("memory", "sql", "echo"):
        assert json.dumps({"const": kind}) in text


def test_defaults_are_shown_as_they_are_written(schema: dict[str, Any]) -> None:
    [settings] = [one for one in schema["$defs"]["chain"]["items"]["anyOf"] if "properties" in one]
    auth = reached(schema, settings["properties"]["auth"])
    assert "30s" == auth["properties"]["ttl"]["default"]

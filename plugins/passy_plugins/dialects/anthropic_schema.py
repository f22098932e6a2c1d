"""JSON schemas as Anthropic's structured output takes them: a subset of the standard."""

from __future__ import annotations

from typing import Any

from passy_proxy import json

Shape = dict[str, Any]

KEPT = frozenset(("$ref", "const", "default", "description", "enum", "required", "title", "type"))
FORMATS = frozenset(
    (
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "uri",
        "uuid",
    )
)


def limited(schema: Any) -> Any:
    """``schema`` within the subset. What it cannot say is told in the description instead."""
    if not isinstance(schema, dict):
        return schema
    kept: Shape = {}
    told: Shape = {}
    for name, value in schema.items():
        if name in KEPT:
            kept[name] = value
        elif name in ("$defs", "definitions", "properties") and isinstance(value, dict):
            kept[name] = {key: limited(inner) for key, inner in value.items()}
        elif name in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            kept["anyOf" if name == "oneOf" else name] = [limited(inner) for inner in value]
        elif name == "items":
            kept[name] = limited(value)
        elif (name == "format" and value in FORMATS) or (name == "minItems" and value in (0, 1)):
            kept[name] = value
        elif name not in ("additionalProperties", "$schema"):
            told[name] = value
    if "properties" in kept or kept.get("type") == "object":
        kept["additionalProperties"] = False
    if told:
        said = kept.get("description")
        more = json.dumps(told).decode()
        kept["description"] = f"{said} {more}" if said else more
    return kept

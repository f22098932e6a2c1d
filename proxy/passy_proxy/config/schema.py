"""The JSON Schema of gateway.yaml (draft 2020-12), for editors: `passy schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from passy_proxy.config.model import (
    AppSettings,
    GatewaySettings,
    HttpUpstream,
    ModelSettings,
    RouteSettings,
    TargetSettings,
    UpstreamSettings,
)
from passy_proxy.config.settings import Settings

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: JsonSchemaValue = {"type": "string"}
_VARIABLE: JsonSchemaValue = {"type": "string", "pattern": r"\$\{"}


class _AsWritten(GenerateJsonSchema):
    """Types as they are written in the file, where any value can be a `${VARIABLE}`."""

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        words = {"enum": ["on", "off", "yes", "no"]}
        return {"anyOf": [{"type": "boolean"}, words, _VARIABLE]}

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _VARIABLE]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _VARIABLE]}

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        # What reads a number with its unit takes text.
        return {"type": ["number", "string"]} if _is_number(schema["schema"]) else inner

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {**_TEXT, "description": "The name of something configured in this file."}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        # A setting is left out; it is never written as null.
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if isinstance(default, tuple):
            default = list(default)
        return {**inner, "default": default} if _is_plain(default) else inner


def json_schema(
    filters: Mapping[str, type[Settings]],
    stores: Mapping[str, type[Settings]] | None = None,
    upstreams: Mapping[str, type[Settings]] | None = None,
    apps: Mapping[str, type[Settings]] | None = None,
) -> dict[str, Any]:
    """The schema of a whole file. Filters and applications by name; stores and in-process upstreams
    by kind."""
    stores, upstreams, apps = stores or {}, upstreams or {}, apps or {}
    own = (
        GatewaySettings,
        UpstreamSettings,
        HttpUpstream,
        ModelSettings,
        TargetSettings,
        RouteSettings,
        AppSettings,
    )
    classes: set[type[Settings]] = {
        *own,
        *filters.values(),
        *stores.values(),
        *upstreams.values(),
        *apps.values(),
    }
    refs, schema = models_json_schema(
        [(settings, "validation") for settings in sorted(classes, key=_name)],
        schema_generator=_AsWritten,
    )
    definitions: dict[str, JsonSchemaValue] = schema["$defs"]
    ref = {settings: refs[settings, "validation"] for settings in classes}

    def definition(settings: type[Settings]) -> JsonSchemaValue:
        return definitions[ref[settings]["$ref"].rpartition("/")[2]]

    shared = definition(UpstreamSettings)["properties"]
    mounted = definition(AppSettings)["properties"]
    known_stores = [_of_kind(k, definition(s), {}) for k, s in stores.items()]
    in_process = [_of_kind(k, definition(s), shared) for k, s in upstreams.items()]
    known_apps = [_of_kind(k, definition(s), mounted, "app") for k, s in apps.items()]
    targets = definition(ModelSettings)["properties"]["targets"]
    targets["items"] = {"anyOf": [_TEXT, ref[TargetSettings]]}
    definitions["chain"] = _chain({name: ref[settings] for name, settings in filters.items()})
    chain = {"$ref": "#/$defs/chain"}
    definition(RouteSettings)["properties"] |= {
        "chain": {"anyOf": [_TEXT, chain]},
        "override": {"type": "object"},
    }
    top = definitions.pop(ref[GatewaySettings]["$ref"].rpartition("/")[2])
    sections: dict[str, JsonSchemaValue] = {
        "stores": _named(known_stores or [_of_kind(None, {}, {})]),
        "upstreams": _named([ref[HttpUpstream], *(in_process or [_of_kind(None, {}, {})])]),
        "models": _named([{"type": "array", "items": targets["items"]}, ref[ModelSettings]]),
        "chains": _named([chain]),
        "routes": {"type": "array", "items": ref[RouteSettings]},
        "apps": _named([_TEXT, *(known_apps or [_of_kind(None, {}, mounted, "app")])]),
    }
    for name, section in sections.items():
        top["properties"][name] = {**top["properties"][name], **section}
    return {"$schema": DRAFT, **top, "title": "gateway.yaml", "$defs": definitions}


def _is_number(schema: core_schema.CoreSchema) -> bool:
    return schema["type"] in ("int", "float")


def _name(settings: type[Settings]) -> str:
    return f"{settings.__module__}.{settings.__qualname__}"


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | float)


def _named(values: list[JsonSchemaValue]) -> JsonSchemaValue:
    inner = values[0] if len(values) == 1 else {"anyOf": values}
    return {"type": "object", "additionalProperties": inner}


def _of_kind(
    kind: str | None,
    settings: JsonSchemaValue,
    shared: Mapping[str, JsonSchemaValue],
    name: str = "kind",
) -> JsonSchemaValue:
    """A plugin's settings with its kind beside them, as `name`; any settings where the kind is
    unknown."""
    word = _TEXT if kind is None else {"const": kind}
    properties = {**shared, **settings.get("properties", {}), name: word}
    required = [name, *settings.get("required", ())]
    return {**settings, "type": "object", "properties": properties, "required": required}


def _chain(filters: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    """A list of filters: each its name, or its name with settings."""
    name = {**_TEXT, "examples": sorted(filters)} if filters else _TEXT
    settings = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": dict(filters),
    }
    return {"type": "array", "minItems": 1, "items": {"anyOf": [name, settings]}}

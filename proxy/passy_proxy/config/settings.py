"""Settings: frozen pydantic models whose every complaint is located and in plain words.

A plugin declares what can be set and says so to the reader in the same line:

    class Config(Settings):
        max_chars: int = setting(20_000, "Longest prompt accepted, counted over all messages.")

`read()` turns nodes of a configuration into such a model, or into all that is wrong with them.
"""

from __future__ import annotations

import hmac
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from passy_proxy.config.document import Mapping, Node, Part, Sequence, Text, hide, plain
from passy_proxy.config.problem import MASK, Problem, listed, nearest, quoted
from passy_proxy.strength import weakness

S = TypeVar("S", bound="Settings")
Location = tuple[Part, ...]


def setting(default: Any, description: str, /, **constraints: Any) -> Any:
    """A field of a Settings class: its default (`...` if it must be given) and what it is for.

    Constraints are those of pydantic (`ge`, `le`, `min_length`, `pattern`, …). A default may be
    written as in the file (`"30s"`): it is validated like everything else.
    """
    return Field(default, description=description, **constraints)


class Settings(BaseModel):
    """What can be set somewhere. Subclasses are frozen, refuse unknown names, describe each field.

    A field of type Node is handed the part of the file as it is, for someone else to read.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # No start reads all of them.
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        for name, declared in cls.model_fields.items():
            if not (declared.description or "").strip():
                raise TypeError(f"{cls.__qualname__}.{name} has no description; use setting()")


class Secret:
    """A text that shows itself to `reveal()` only. Empty ones are refused, see OptionalSecret."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> typing.NoReturn:
        raise TypeError("a Secret does not leave its process")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, schema_of: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _secret_schema(_nonempty_secret)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, json_of: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"type": "string", "format": "password"}


class _EmptyAllowed:
    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, schema_of: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _secret_schema(_any_secret)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, json_of: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"type": "string", "format": "password"}


OptionalSecret = Annotated[Secret, _EmptyAllowed]
"""A Secret that may be empty. Whoever declares one says what an empty one means."""


class _Strong:
    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, schema_of: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _secret_schema(_strong_secret)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, json_of: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"type": "string", "format": "password"}


class _StrongOrOff(_Strong):
    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, schema_of: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _secret_schema(_strong_or_off)


StrongSecret = Annotated[Secret, _Strong]
"""A Secret that everything behind it hangs on: see `weakness`."""
StrongSecretOrOff = Annotated[Secret, _StrongOrOff]
"""The same, or the word ``off``, of which an empty Secret is made: nobody has one. An empty text is
refused, since whoever wrote a variable there meant it to hold something."""


def _any_secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("secret_type", "expected a secret: one text")
    return Secret(value)


def _nonempty_secret(value: object) -> Secret:
    if not (secret := _any_secret(value)):
        raise PydanticCustomError("secret_empty", "the secret is empty")
    return secret


def _strong_secret(value: object) -> Secret:
    secret = _nonempty_secret(value)
    if why := weakness(secret.reveal()):
        raise PydanticCustomError("secret_weak", "this secret {why}", {"why": why})
    return secret


def _strong_or_off(value: object) -> Secret:
    if value == "off" or (isinstance(value, Secret) and not value):
        return Secret("")
    return _strong_secret(value)


def _secret_schema(check: Callable[[object], Secret]) -> CoreSchema:
    shown = core_schema.plain_serializer_function_ser_schema(str)
    return core_schema.no_info_plain_validator_function(check, serialization=shown)


def read(
    settings: type[S], node: Node, given: abc.Mapping[str, object] | None = None
) -> S | list[Problem]:
    """`node` as an instance of `settings`, or everything that is wrong with it.

    `given` holds values, such as live stores, that take the place of what the file says for a
    field. A name with nothing written after it counts as not set.
    """
    hide_secrets(settings, node)
    try:
        return settings.model_validate(_values(settings, node, given or {}))
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    problems = list(_Complaints(settings, node, details))
    return problems or [node.problem("the settings do not fit together")]


def _values(
    settings: type[Settings], node: Node, given: abc.Mapping[str, object]
) -> dict[str, object] | object:
    if not isinstance(node, Mapping):
        return plain(node)
    values: dict[str, object] = {}
    for name, child in node.entries.items():
        if isinstance(child, Text) and child.blank and name in settings.model_fields:
            continue
        declared = settings.model_fields.get(name)
        kept = declared is not None and Node in _parts(declared.annotation)
        values[name] = child if kept else _filled(child)
    return {**values, **given}


def _filled(node: Node) -> object:
    """`plain()`, without names that nothing was written after."""
    match node:
        case Mapping():
            return {
                name: _filled(child)
                for name, child in node.entries.items()
                if not (isinstance(child, Text) and child.blank)
            }
        case Sequence():
            return [_filled(item) for item in node.items]
    return plain(node)


def _parts(annotation: object) -> Iterator[object]:
    """The members of a union or Annotated type; anything else is its own only part."""
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        yield from _parts(annotation.__value__)
    elif typing.get_origin(annotation) is Annotated:
        yield from _parts(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _parts(member)
    else:
        yield annotation


def _is_settings(kind: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _field_name(name: str, declared: FieldInfo) -> str:
    return declared.alias or name


class _Complaints:
    """Makes pydantic's error details into located Problems."""

    def __init__(self, settings: type[Settings], node: Node, details: list[ErrorDetails]) -> None:
        self.settings = settings
        self.node = node
        self.details = details

    def __iter__(self) -> Iterator[Problem]:
        renamed = {
            (*detail["loc"][:-1], meant)
            for detail in self.details
            if detail["type"] == "extra_forbidden" and (meant := self.meant(detail["loc"]))
        }
        seen: set[Node] = set()
        for detail in self.details:
            location = detail["loc"]
            if detail["type"] == "missing" and location in renamed:
                continue  # it is there, misspelt, and that is being said
            if detail["type"] == "too_short" and self.any_below(location):
                continue  # pydantic counts only the entries that are right
            place = self.place(detail)
            if self.lost(location, detail["type"]):
                if place in seen:
                    continue  # one complaint is enough about a value that fits no branch of a union
                seen.add(place)
            message, hint = self.words(detail, self.node.find(location))
            yield place.problem(message, hint)

    def any_below(self, location: Location) -> bool:
        depth = len(location)
        return any(d["loc"][:depth] == location and len(d["loc"]) > depth for d in self.details)

    def lost(self, location: Location, kind: str) -> bool:
        """Whether `location` has parts that are not in the file, but pydantic's own."""
        depth = len(self.node.find(location).path) - len(self.node.path)
        return depth < len(location) - (kind == "missing")

    def place(self, detail: ErrorDetails) -> Node:
        location = detail["loc"]
        if detail["type"] == "missing":
            return self.node.find(location, key=True)
        named = detail["type"] in ("extra_forbidden", "invalid_key") or location[-1:] == ("[key]",)
        return self.node.find(location, key=named)

    def fields_at(self, location: Location) -> dict[str, FieldInfo]:
        """The fields that can be set in the settings at `location`."""
        annotations: list[object] = [self.settings]
        for part in location:
            inner = [below for each in annotations for below in _below(each, part)]
            annotations = inner or annotations
        return {
            _field_name(name, declared): declared
            for each in annotations
            for kind in _parts(each)
            if _is_settings(kind)
            for name, declared in kind.model_fields.items()
        }

    def meant(self, location: Location) -> str | None:
        return nearest(str(location[-1]), self.fields_at(location[:-1]))

    def words(self, detail: ErrorDetails, node: Node) -> tuple[str, str | None]:
        """The message and the hint."""
        kind, location = detail["type"], detail["loc"]
        if kind == "extra_forbidden":
            return self.unknown(location)
        if kind == "missing":
            name = str(location[-1])
            declared = self.fields_at(location[:-1]).get(name)
            return f"{quoted(name)} is missing", declared.description if declared else None
        if kind in ("literal_error", "enum"):
            return _choice(detail, node)
        if sentence := _sentence(detail, node):
            return sentence, None
        return self.refused(detail, node)

    def unknown(self, location: Location) -> tuple[str, str | None]:
        name = quoted(str(location[-1]))
        known = sorted(self.fields_at(location[:-1]))
        if meant := self.meant(location):
            return f"unknown setting {name}; did you mean '{meant}'?", f"write {meant}"
        hint = f"what can be set here: {listed(known, 30)}" if known else None
        return f"unknown setting {name}", hint

    def refused(self, detail: ErrorDetails, node: Node) -> tuple[str, str | None]:
        """A validator's own words, unless they could repeat what a variable holds."""
        said = str(detail.get("ctx", {}).get("error", "")) or detail["msg"]
        said = said.replace("Input should be", f"{_found(node)} should be")
        if isinstance(node, Text) and node.tainted:
            location = detail["loc"]
            declared = self.fields_at(location[:-1]).get(str(location[-1])) if location else None
            purpose = f" ({declared.description})" if declared else ""
            return f"what {quoted(node.raw)} stands for does not fit here{purpose}", None
        for text in _tainted(node):
            said = said.replace(text.text, text.raw)
        return said, None


def hide_secrets(settings: type[BaseModel], node: Node) -> None:
    """Keep the values of settings of type Secret out of complaints, misspelt ones among them."""
    if not isinstance(node, Mapping):
        return
    fields = {_field_name(name, declared): declared for name, declared in _fields(settings)}
    for name, child in node.entries.items():
        meant = name if name in fields else nearest(name, fields)
        for kind in _parts(fields[meant].annotation) if meant else ():
            if _holds_secrets(kind):
                hide(child)
            elif _is_settings(kind):
                hide_secrets(kind, child)
            else:
                for inner in filter(_is_settings, _all_parts(kind)):
                    for each in _children(child):
                        hide_secrets(inner, each)


def _fields(settings: type[BaseModel]) -> abc.ItemsView[str, FieldInfo]:
    return settings.model_fields.items()


def _children(node: Node) -> abc.Iterable[Node]:
    match node:
        case Mapping():
            return node.entries.values()
        case Sequence():
            return node.items
    return ()


def _all_parts(annotation: object) -> Iterator[object]:
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _all_parts(argument)


def _holds_secrets(kind: object) -> bool:
    """Whether it is a Secret, or a collection of them."""
    return any(part is Secret for part in _all_parts(kind))


def _below(annotation: object, part: Part) -> Iterator[object]:
    """The annotations of what is found under `part` of something annotated so."""
    for kind in _parts(annotation):
        arguments = typing.get_args(kind)
        if _is_settings(kind):
            for name, declared in kind.model_fields.items():
                if part in (name, declared.alias):
                    yield declared.annotation
        elif len(arguments) == 2 and isinstance(part, str) and _is_mapping(kind):
            yield arguments[1]
        elif arguments and isinstance(part, int):
            yield arguments[0]


def _is_mapping(kind: object) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, abc.Mapping)


def _tainted(node: Node) -> Iterator[Text]:
    match node:
        case Text(tainted=True, text=text) if text:
            yield node
        case Mapping():
            for child in node.entries.values():
                yield from _tainted(child)
        case Sequence():
            for child in node.items:
                yield from _tainted(child)


def _found(node: Node) -> str:
    """How a message names what stands in the file."""
    if node.hidden:
        return "what is written here"
    return quoted(node.raw) if isinstance(node, Text) else node.kind


def _choice(detail: ErrorDetails, node: Node) -> tuple[str, str | None]:
    choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
    message = f"{_found(node)} is none of {listed(choices, 30)}"
    tainted = isinstance(node, Text) and node.tainted
    meant = nearest(node.text, choices) if isinstance(node, Text) and not tainted else None
    if meant:
        return f"{message}; did you mean '{meant}'?", f"write {meant}"
    return message, None


_EXPECTED = (
    ("bool", "on or off (yes, no, true and false will do)"),
    ("int", "a whole number"),
    ("float", "a number"),
    ("finite_number", "a number that is not infinite"),
    ("decimal", "a number"),
    ("string_type", "one text"),
    ("string_sub_type", "one text"),
    ("list", "a list"),
    ("tuple_type", "a list"),
    ("set", "a list"),
    ("frozen_set", "a list"),
    ("iterable", "a list"),
    ("dict", "settings (name: value)"),
    ("mapping", "settings (name: value)"),
    ("model", "settings (name: value)"),
    ("dataclass", "settings (name: value)"),
    ("is_instance_of", "the name of something configured elsewhere in this file"),
    ("path_type", "a path"),
    ("bytes", "one text"),
    ("secret_type", "one text"),
)
_BOUNDS = {
    "greater_than": ("must be more than {}", "gt"),
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than": ("must be less than {}", "lt"),
    "less_than_equal": ("must be at most {}", "le"),
    "multiple_of": ("must be a multiple of {}", "multiple_of"),
    "string_too_short": ("must have at least {} characters", "min_length"),
    "string_too_long": ("must have at most {} characters", "max_length"),
    "too_short": ("must have at least {} entries", "min_length"),
    "too_long": ("must have at most {} entries", "max_length"),
    "string_pattern_mismatch": ("must have the form {}", "pattern"),
}


def _sentence(detail: ErrorDetails, node: Node) -> str | None:
    kind, found = detail["type"], _found(node)
    if kind == "secret_empty":
        return "this secret is empty, which would let anybody in"
    if kind == "secret_weak":
        return detail["msg"]
    bounds = detail.get("ctx", {})
    if kind in ("too_short", "string_too_short") and bounds.get("min_length") == 1:
        return f"{found} must not be empty" if kind == "too_short" else "this must not be empty"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = bounds.get(bound)
        # 0 and not 0.0: the field may be a float, people's numbers are as they write them.
        limit = int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        return f"{found} {words.format(limit)}"
    for start, expected in _EXPECTED:
        if kind == start or kind.startswith(f"{start}_"):
            return f"expected {expected}, found {found}"
    return None

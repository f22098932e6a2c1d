"""Write the reference pages, `docs/reference/*.md`, from the code. `--check` only compares.

What a page says comes from where it is true: settings from their classes, hooks from their
specifications, commands from click, replies and headers from the source. What code cannot say (when
a client gets a reply, what a header tells) stands in `passy_proxy.meanings` and in the table below,
and a reply or header that is missing there, or there in vain, is an error.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, NamedTuple

import click

from passy_plugins.dialects.anthropic import Anthropic
from passy_plugins.dialects.openai import OpenAI
from passy_proxy import cli, units
from passy_proxy.application import Application
from passy_proxy.chain import HOOKS
from passy_proxy.config import model, settings
from passy_proxy.config.build import own_settings
from passy_proxy.event import Reply
from passy_proxy.faults import LinkSettings
from passy_proxy.filter import ExchangeHooks, Filter, Terminal
from passy_proxy.framing import Refused
from passy_proxy.hookspecs import ProcessHooks
from passy_proxy.meanings import OUTCOMES, REPLIES
from passy_proxy.refusal import plainly
from passy_proxy.registry import Plugin, Registry
from passy_proxy.stores import Room

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs/reference"
SOURCES = ("proxy/passy_proxy", "plugins/passy_plugins")
DISTRIBUTION = "passy-gateway"
COMMAND = "python tools/reference.py"
NOTE = f"<!-- Written by tools/reference.py from the code. Do not edit: {COMMAND} -->"

NO_ERROR = "Not an error: "

HEADERS = {
    "access-control-allow-headers": "Headers a browser may send (`cors`, pre-flight only).",
    "access-control-allow-methods": "Methods a browser may use (`cors`, pre-flight only).",
    "access-control-allow-origin": "The origin that may read the answer (`cors`).",
    "access-control-expose-headers": "All headers may be read by the page (`cors`).",
    "access-control-max-age": "Seconds a browser may remember it (`cors`, pre-flight only).",
    "allow": "The methods a path has, beside 405.",
    "anthropic-ratelimit-*-limit": "The limit, for `requests` or `tokens`, on Anthropic's routes.",
    "anthropic-ratelimit-*-remaining": "What is left of it.",
    "anthropic-ratelimit-*-reset": "When it is whole again, as an RFC 3339 time.",
    "cache-control": "`no-cache`, on streams.",
    "connection": "`close`, where the connection ends with this answer.",
    "content-length": "Length of an answer that is sent whole.",
    "content-type": "Of replies, and of a provider's refusals, which are always JSON.",
    "date": "Of the answer (uvicorn's).",
    "openai-processing-ms": "Milliseconds from the request to this head.",
    "openai-version": "`2020-10-01`, as OpenAI says.",
    "request-id": "The same as `x-request-id`, on Anthropic's routes.",
    "retry-after": "Seconds after which a retry may succeed.",
    "retry-after-ms": "The same in milliseconds, which OpenAI's SDKs prefer.",
    "vary": "`origin`, where the answer depends on it (`cors`).",
    "www-authenticate": "`Bearer`, beside 401.",
    "x-accel-buffering": "`no`, on streams: nginx then passes them on at once.",
    "x-passy-attempts": "How many tries were made; a target that `breaker` passed over is none.",
    "x-passy-config": "Hash of the configuration that answered; it changes with each reload.",
    "x-passy-cost-usd": "What the answer cost (`usage`; plain answers of known price only).",
    "x-passy-dropped": "Parameters that the translation could not carry.",
    "x-passy-overhead-ms": (
        "Milliseconds of the whole that were not spent waiting for heads of providers."
    ),
    "x-passy-upstream": "The `upstream/model` that answered.",
    "x-passy-upstream-ms": "Milliseconds until the answering provider's head.",
    "x-ratelimit-limit-*": "The limit, for `requests` or `tokens`, on OpenAI's routes.",
    "x-ratelimit-remaining-*": "What is left of it.",
    "x-ratelimit-reset-*": "How long until it is whole again, such as `6m0s`.",
    "x-request-id": "The exchange's id, `req_…`; the SDKs show it as `_request_id`.",
    "x-should-retry": "`false`, where a retry by the client cannot help or may be billed twice.",
}
"""Header the gateway adds → what it tells."""

HEADER_SOURCES = (
    "proxy/passy_proxy/answer.py",
    "proxy/passy_proxy/app.py",
    "proxy/passy_proxy/chain.py",
    "proxy/passy_proxy/request_body.py",
    "plugins/passy_plugins/auth.py",
    "plugins/passy_plugins/byok.py",
    "plugins/passy_plugins/cors.py",
    "plugins/passy_plugins/rate_limit.py",
    "plugins/passy_plugins/usage.py",
)


class Stale(Exception):
    """A table above and the code do not agree; the message says where."""


# Markdown


def page(title: str, intro: str, *parts: str) -> str:
    return "\n\n".join([NOTE, f"# {title}", intro, *parts]) + "\n"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [" ".join(cell.replace("|", "\\|").split()) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: roles become code, a drawn table stays as it was drawn."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(docstring or ""))
    paragraphs = [
        f"```text\n{one}\n```" if one.startswith("===") else one.replace("``", "`")
        for one in text.split("\n\n")
    ]
    return "\n\n".join(paragraphs)


# Settings


UNITS = {
    id(units.Duration): "duration",
    id(units.Days): "days",
    id(units.Size): "size",
    id(units.Count): "count",
    id(units.RateSetting): "rate",
    id(model.ListenAddress): "address",
    id(model.Subtree): "see below",
    id(settings.OptionalSecret): "secret",
}
PLAIN: dict[object, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "on or off",
    settings.Secret: "secret",
}


def kind(annotation: Any) -> str:
    """A type as a reader of YAML calls it."""
    if id(annotation) in UNITS:
        return UNITS[id(annotation)]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        notes = repr(annotation.__metadata__)
        special = {"_EmptyAllowed": "secret", "'date-time'": "date or time"}
        named = (word for mark, word in special.items() if mark in notes)
        return next(named, "") or kind(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return kind(next(one for one in arguments if one is not types.NoneType))
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin is tuple:
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return f"name → {kind(arguments[1])}"
    if annotation in PLAIN:
        return PLAIN[annotation]
    if is_settings(annotation):
        return f"[settings](#{slug(annotation.__name__)})"
    return f"store ({annotation.__name__})"


def is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, settings.Settings)


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def default(value: object) -> str:
    """A default as it would be written in the file."""
    if value is None or value == "" or value == {}:
        return ""
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    if isinstance(value, tuple):
        inner = ", ".join(f'"{one}"' if one == "*" else str(one) for one in value)
        return f"`[{inner}]`"
    text = str(value)
    return f'`"{text}"`' if text != text.strip() else f"`{text}`"


BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def bounds(metadata: Iterable[object]) -> str:
    """The limits of a number, but for the obvious one."""
    said = []
    for note in metadata:
        for name, words in BOUNDS.items():
            limit = getattr(note, name, None)
            if limit is not None and not (name == "ge" and limit == 0):
                said.append(f"{words} {limit:,}".replace(",", " "))
    return f" ({', '.join(dict.fromkeys(said))})" if said else ""


def settings_table(kind_of_settings: type[settings.Settings], given: Iterable[str] = ()) -> str:
    """The settings of a class, without those that the gateway fills in itself."""
    hints = typing.get_type_hints(kind_of_settings, include_extras=True)
    rows = [
        (
            code(name),
            kind(hints[name]) + bounds(field.metadata),
            "needed" if field.is_required() else default(field.default),
            (field.description or "").replace("<", "&lt;"),
        )
        for name, field in kind_of_settings.model_fields.items()
        if name not in given
    ]
    return table(("setting", "type", "default", "what it is for"), rows)


def nested(kind_of_settings: type[settings.Settings]) -> list[type[settings.Settings]]:
    """Settings classes below this one, in the order they are met."""
    found: dict[type[settings.Settings], None] = {}

    def walk(annotation: Any) -> None:
        if is_settings(annotation) and annotation not in found:
            found[annotation] = None
            for hint in typing.get_type_hints(annotation, include_extras=True).values():
                walk(hint)
        for argument in typing.get_args(annotation):
            walk(argument)

    walk(kind_of_settings)
    return [one for one in found if one is not kind_of_settings]


SECTIONS = (
    ("The top", model.GatewaySettings, ""),
    (
        "upstreams",
        model.HttpUpstream,
        "`upstreams:` holds names, each with these settings. With a `kind` other than "
        "`http` the first four apply, and the rest are [the kind's "
        "own](filters.md#upstreams). A credential that is given but empty leaves the "
        "upstream out; one that is not given means that none is sent.",
    ),
    ("TimeoutSettings", model.TimeoutSettings, "`timeouts:` of an upstream."),
    (
        "models",
        model.ModelSettings,
        "`models:` holds names, each with a list of targets or with these settings. A name "
        "may contain `*`; the exact name is looked for first, then the longest pattern that "
        "matches.",
    ),
    (
        "TargetSettings",
        model.TargetSettings,
        "A target is `upstream/model`, or these settings. `*` as model stands for the name "
        "that was asked for. As soon as one target of an alias has a `weight` other than 1, "
        "those without `priority` share the first one.",
    ),
    (
        "routes",
        model.RouteSettings,
        "`routes:` is a list. The exact path wins over one that ends in `*`, a longer one "
        "over a shorter one. Without `chain` a route uses the chain called `default`.",
    ),
    (
        "apps",
        model.AppSettings,
        "`apps:` holds paths, each with the name of an application, or its settings: `app`, those "
        "of [the application](filters.md#apps), and these. An exact route comes before an "
        "application; else whichever has the longer path answers, and a route between equals.",
    ),
    ("AdminSettings", model.AdminSettings, "`admin:`. Read at start, too."),
    ("EdgeSettings", model.EdgeSettings, "`edge:`. Read at start; a reload does not change them."),
    (
        "ConnectionSettings",
        model.ConnectionSettings,
        "`connect:`. Read at start; a reload does not change them.",
    ),
    ("OverloadSettings", model.OverloadSettings, "`overload:`."),
    ("LogSettings", model.LogSettings, "`log:`. Read at start; a reload does not change them."),
    ("PriceSettings", model.PriceSettings, "One entry of `prices:`."),
)


def configuration() -> str:
    parts = []
    for title, kind_of_settings, about in SECTIONS:
        parts += [f"## {title}", *([about] if about else []), settings_table(kind_of_settings)]
    written = textwrap.dedent(
        """\
        | type | how it is written |
        |---|---|
        | duration | a number and `ms`, `s`, `m`, `h` or `d`: `30s`, `250ms`, `1h30m` |
        | days | whole days: `90d` |
        | size | bytes, or a number and `KB`, `MB`, `GB`, `KiB`, `MiB`, `GiB`: `10MiB` |
        | count | a whole number, `k` and `M` allowed: `100k`, `1.5M` |
        | rate | a count per `s`, `min`, `h`, `day` or duration: `60/min`, `10/30s` |
        | address | `host:port`, `[::1]:port`, or `:port` for all interfaces |
        | on or off | `on`, `off`, `yes`, `no`, `true`, `false` |
        | secret | text that no message, log or `repr` shows; take it from a variable |
        | store | the name of an entry of `stores:` |

        `${NAME}` is taken from the environment, `${NAME:-default}` has a default
        (`${NAME-default}` too, but an empty variable is empty there),
        `${file:/run/secrets/x}` is read from a file, and `$${` is a plain `${`. Where `NAME` is not
        set and `NAME_FILE` is, the value is read from the file that it names."""
    )
    return page(
        "Configuration",
        "Every setting of `gateway.yaml`. Unknown names are errors. `passy schema` prints "
        "the same for editors, `passy check` says what is wrong. What a filter, store or "
        "in-process upstream can be told is in [filters.md](filters.md); how a "
        "configuration comes to life is in [the "
        "explanation](../explanation/configuration.md).",
        "## How values are written",
        written,
        *parts,
        "## stores",
        "`stores:` holds names, each with a `kind` and [the kind's own "
        "settings](filters.md#stores). A file without `stores:` gets one store in memory "
        "for everything.",
        "## chains",
        "`chains:` holds names, each with a list of filters in the order of execution: a "
        "filter's name, or its name with [its settings](filters.md). The last one, and only "
        "the last one, is terminal. In `override:` of a route a filter gets other settings, "
        "merged over the chain's, or `off`.",
    )


# Plugins


def installed() -> list[Plugin]:
    """Our own plugins, loaded through their entry points like anybody's."""
    registry = Registry()
    plugins = [plugin for name in registry.installed() if (plugin := registry.load(name))]
    return [plugin for plugin in plugins if plugin.distribution == DISTRIBUTION]


def hooks_of(filter: type[Filter]) -> list[str]:
    found = []
    for name in HOOKS:
        if hook := getattr(filter, name, None):
            found.append(f"`{name}`" + (" (async)" if iscoroutinefunction(hook) else ""))
    if issubclass(filter, Terminal):
        found.append("`route`")
    return found


GIVEN = ("Keyring", "Models", "Prices", "Connections", "Upstreams", "Vitals")
"""Types of settings that the gateway fills in, whatever the file says."""


def given_to(kind_of_settings: type[settings.Settings]) -> list[str]:
    hints = typing.get_type_hints(kind_of_settings)
    return [name for name, hint in hints.items() if getattr(hint, "__name__", "") in GIVEN]


def with_settings(part: type[Any]) -> list[str]:
    kind_of_settings = own_settings(part)
    given = given_to(kind_of_settings)
    if not set(kind_of_settings.model_fields) - set(given):
        return ["It has no settings."]
    parts = [settings_table(kind_of_settings, given)]
    for below in nested(kind_of_settings):
        if below.__name__ not in GIVEN:
            parts += [f"#### {below.__name__}", settings_table(below)]
    return parts


def described_filter(filter: type[Filter]) -> list[str]:
    facts = [("hooks", ", ".join(hooks_of(filter)))]
    for title, names in (("needs", filter.needs), ("provides", filter.provides)):
        if names:
            facts.append((title, ", ".join(code(name) for name in sorted(names))))
    facts.append(("on_error", filter.on_error))
    facts.append(("status", filter.status))
    about = prose(sys.modules[filter.__module__].__doc__)
    facts_line = " · ".join(f"{name}: {value}" for name, value in facts)
    return [f"### {filter.name}", about, facts_line, *with_settings(filter)]


EVERY_FILTER = (
    "A failure is an exception, a result of the wrong kind, a wait beyond `hook_timeout`, or a "
    "header that cannot be sent. It is logged as `filter_failed`, at most every ten seconds for "
    "each hook of a filter. A filter that others rest on, and a terminal, cannot be `open`; the "
    "default is the filter's own and stands below as *on_error*."
)


def filters() -> str:
    plugins = installed()
    parts: list[str] = []
    every = [one for plugin in plugins for one in plugin.filters]
    every_filter = settings_table(LinkSettings)
    parts += ["## Every filter", prose(LinkSettings.__doc__), EVERY_FILTER, every_filter]
    for title, terminal in (("Filters", False), ("Terminal filters", True)):
        parts.append(f"## {title}")
        for one in every:
            if issubclass(one, Terminal) is terminal:
                parts += described_filter(one)
    for title, attribute in (("Stores", "stores"), ("Upstreams", "upstreams")):
        parts.append(f"## {title}")
        for plugin in plugins:
            for word, made in getattr(plugin, attribute).items():
                about = prose(sys.modules[made.__module__].__doc__)
                protocols = stores_of(made) if attribute == "stores" else []
                parts += [f"### {word}", about, *protocols, *with_settings(made)]
    parts += ["## Apps", prose(sys.modules[Application.__module__].__doc__)]
    for app in (one for plugin in plugins for one in plugin.apps):
        parts += [f"### {app.name}", prose(sys.modules[app.__module__].__doc__)]
        parts += with_settings(app)
    parts.append("## Dialects")
    for plugin in plugins:
        for dialect in plugin.dialects:
            about = prose(sys.modules[type(dialect).__module__].__doc__)
            shown = f"{dialect.auth_header.decode()}: {dialect.auth_prefix.decode()}…"
            parts += [f"### {dialect.name}", about, f"Shows a credential as `{shown}`"]
    return page(
        "Filters, stores, upstreams, apps, dialects",
        "What the distribution brings. Each is a plugin found through its entry point, as "
        "yours would be; `passy plugins` lists all that are installed. *needs* and "
        "*provides* are checked when a chain is loaded; `body` and `credentials` (the headers that "
        "show who a client is, which other filters are not shown) are provided by the core.",
        *parts,
    )


def stores_of(store: type[Any]) -> list[str]:
    from passy_proxy.stores import Books, Changes, Counters, Directory, Ledger, Vault

    verbs = {
        Counters: "take",
        Directory: "principal",
        Vault: "credential",
        Ledger: "record",
        Books: "spent",
        Changes: "publish",
    }
    kept = [protocol.__name__ for protocol, verb in verbs.items() if hasattr(store, verb)]
    return [f"Can serve as: {', '.join(kept)}."]


# Hooks


def hooks() -> str:
    parts = ["## Exchange hooks"]
    every = [one for plugin in installed() for one in plugin.filters]
    for name in HOOKS:
        spec = getattr(ExchangeHooks, name)
        users = [code(one.name) for one in every if hasattr(one, name)]
        used = f"Used by {', '.join(users)}." if users else "No built-in filter uses it."
        parts += [f"### {name}", signature(name, spec), prose(spec.__doc__), used]
    parts += [
        "### route",
        signature("route", Terminal.route),
        f"Of terminal filters only. {prose(Terminal.route.__doc__)}",
        "## Process hooks",
        "Functions of a plugin's module, marked with `@hookimpl`.",
    ]
    for name, spec in vars(ProcessHooks).items():
        if name.startswith("passy_"):
            parts += [f"### {name}", signature(name, spec), prose(spec.__doc__)]
    return page(
        "Hooks",
        prose(sys.modules[ExchangeHooks.__module__].__doc__),
        "All but `on_event` may be `async def`. A hook of another name, or with other "
        "arguments, is an error when the configuration is loaded.",
        *parts,
    )


def signature(name: str, function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    words = [f"{p.name}: {p.annotation}" for p in parameters]
    answer = inspect.signature(function).return_annotation
    return f"```python\n{name}({', '.join(words)}) -> {answer}\n```"


# Commands


def commands() -> str:
    parts: list[str] = []
    context = click.Context(cli.cli, info_name="passy")
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        parts += described_command(command, click.Context(command, context, info_name=name), 2)
    exits = table(("code", "name"), [(code(int(one)), one.name) for one in cli.Exit])
    return page(
        "Commands",
        "In a checkout, `./passy` is the same command with its environment made ready. "
        "`--help` says this too.",
        *parts,
        "## Exit codes",
        exits,
    )


def described_command(command: click.Command, ctx: click.Context, level: int) -> Iterator[str]:
    path = ctx.command_path
    yield f"{'#' * level} {path}"
    if not isinstance(command, click.Group):
        pieces = [one for one in command.collect_usage_pieces(ctx) if one != "[OPTIONS]"]
        yield f"```text\n{' '.join([path, *pieces])}\n```"
    yield prose(command.help)
    rows = []
    for option in command.params:
        record = option.get_help_record(ctx)
        if record is not None and isinstance(option, click.Option):
            rows.append((code(record[0]), record[1]))
    if rows:
        yield table(("option", ""), rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            inner = click.Context(below, ctx, info_name=name)
            yield from described_command(below, inner, level + 1)


# Replies


PLACES = {"Reply": "chain", "BadUpload": "chain", "Refused": "edge"}


class Said(NamedTuple):
    """One reply found in the source. ``status`` 0: in a stream that has begun."""

    code: str
    status: int
    type: str
    place: str
    """``chain``, or ``edge`` (before any)."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def said_in(where: str, tree: ast.Module) -> Iterator[Said]:
    """Every reply a module can make."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                yield from said_by(where, node, function)
    for statement in tree.body:  # a reply that is always the same
        if isinstance(statement, ast.Assign):
            yield from said_by(where, statement.value, tree)


def said_by(where: str, node: ast.AST, scope: ast.AST) -> Iterator[Said]:
    name = called(node)
    if not isinstance(node, ast.Call):
        return
    if name in PLACES and len(node.args) >= 2:
        if isinstance(node.args[1], ast.Attribute) and node.args[1].attr == "code":
            return  # in other words what was said elsewhere
        given = {word.arg: word.value for word in node.keywords}
        typed = node.args[4] if len(node.args) > 4 else given.get("type")
        kinds = constants(where, typed, scope) if typed is not None else [""]
        for one in constants(where, node.args[1], scope):
            yield Said(one, status_of(where, node.args[0]), kinds[0], PLACES[name])
    elif name == "broken" and len(node.args) == 3:
        for one in constants(where, node.args[1], scope):
            yield Said(one, 0, "", "chain")


def called(node: ast.AST) -> str:
    """The last word of what is called."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def status_of(where: str, node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    return 200  # A setting's: `static` answers as it is told.


def constants(where: str, node: ast.expr, scope: ast.AST) -> list[str]:
    """The texts an expression can be: a constant, either side of an `if`, a local variable."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return constants(where, node.body, scope) + constants(where, node.orelse, scope)
    if isinstance(node, ast.Name):
        values = [
            assigned.value
            for assigned in ast.walk(scope)
            if isinstance(assigned, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == node.id for t in assigned.targets)
        ]
        if values:
            return [text for value in values for text in constants(where, value, scope)]
    if isinstance(node, ast.Attribute) and ast.unparse(node) == "reply.code":
        return []  # Documented where that reply is made.
    raise Stale(f"{where}:{node.lineno}: the code of a reply must be a constant, to be documented")


def all_said() -> list[Said]:
    """Every reply of ours, each once."""
    found: dict[Said, None] = {}
    for where, tree in sources():
        found |= dict.fromkeys(said_in(where, tree))
    return sorted(found)


def agree(what: str, code_has: Collection[str], table_has: Collection[str]) -> None:
    """Raises Stale naming what is in one of the two only."""
    here = f"tools/reference.py: {what}"
    if missing := sorted(set(code_has) - set(table_has)):
        raise Stale(f"{here} has no line for {', '.join(missing)}")
    if vain := sorted(set(table_has) - set(code_has)):
        raise Stale(f"{here} tells of {', '.join(vain)}, gone from the code")


def types_of(said: Said) -> tuple[str, str, str]:
    """Status, OpenAI's type and Anthropic's, as the dialects themselves make them."""
    if said.status == 0:
        return "in a stream", "server_error", "api_error"
    reply = Reply(said.status, said.code, type=said.type)
    openai, anthropic = OpenAI().reply(reply, ""), Anthropic().reply(reply, "")
    if said.place == "edge":
        openai = plainly(Refused(said.status, said.code, ""))[:2]
    status = str(openai[0]) + (f" ({anthropic[0]})" if anthropic[0] != openai[0] else "")
    return status, error_in(openai[1], "type"), error_in(anthropic[1], "type")


def error_in(body: bytes, name: str) -> str:
    from passy_proxy import json

    return str(json.loads(body)["error"][name])


def replies() -> str:
    said = all_said()
    agree("REPLIES", {one.code for one in said}, REPLIES)
    answers = {
        (code(one.code), REPLIES[one.code].removeprefix(NO_ERROR).capitalize())
        for one in said
        if REPLIES[one.code].startswith(NO_ERROR)
    }
    errors = [one for one in said if not REPLIES[one.code].startswith(NO_ERROR)]

    def rows(place: str) -> list[tuple[str, ...]]:
        lines: dict[tuple[str, ...], None] = {}
        for one in errors:
            if one.place == place:
                status, openai, anthropic = types_of(one)
                line = (code(one.code), status, code(openai), code(anthropic), REPLIES[one.code])
                lines[line] = None
        return sorted(lines)

    shapes = ("code", "status", "OpenAI's type", "Anthropic's type", "when")
    return page(
        "Replies",
        "What the gateway answers itself. `code` is stable: branch on it, not on the "
        "message. Each reply holds the request's id. "
        "Everything else that a client sees in an error is the provider's own; see "
        "[failures](../explanation/failures.md).",
        "## From the chain",
        "In the error shape of the route's dialect. Anthropic's has the code in "
        "`error.details.error_code`; a status in brackets is the one sent there.",
        table(shapes, rows("chain")),
        "## From the edge, and without a route",
        "Refused before a chain sees them: in the error shape of the route at that path or above "
        "it, else in OpenAI's. When the edge refuses, the connection ends.",
        table(shapes, rows("edge")),
        "## Not errors",
        "Codes that appear in the access log and the books only.",
        table(("code", "what it is"), sorted(answers)),
        "## Outcomes",
        "What the access log and the books say of an exchange: the code of the reply, or "
        "one of these.",
        table(("outcome", "meaning"), [(code(name), words) for name, words in checked_outcomes()]),
    )


def checked_outcomes() -> Iterable[tuple[str, str]]:
    made = set()
    for where, tree in sources():
        for node in ast.walk(tree):
            if called(node) == "Outcome" and isinstance(node, ast.Call):
                last = node.args[-1]
                made |= set(constants(where, last, tree))
    agree("OUTCOMES", made - {"pending"}, OUTCOMES)
    return OUTCOMES.items()


# Headers


def header_names() -> set[str]:
    """The names of response headers in the source, and those the dialects make."""
    names = {"date", "connection"}  # the edge's
    for path in HEADER_SOURCES:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        compared = {
            id(one)
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare)
            for one in node.comparators
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Tuple) and len(node.elts) == 2 and id(node) not in compared:
                names |= header_in(node.elts[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                names |= names_in(node.value)
    room = Room(1, 1, 0.0, 0.0)
    for dialect in (OpenAI(), Anthropic()):
        names |= names_in(dialect.head("req_", 0))
        limits = names_in(dialect.limit_lines([("requests", room)], 0.0))
        names |= {name.replace("requests", "*") for name in limits}
    names |= names_in(plainly(Refused(503, "", ""))[2]) | {"content-length"}
    return names


def names_in(lines: bytes) -> set[str]:
    """The names in rendered lines."""
    found = re.findall(rb"(?m)^([a-z][a-z-]+): [^\r\n]*\r\n", lines)
    return {name.decode() for name in found}


def header_in(name: ast.expr) -> set[str]:
    """The name in ``(b"name", value)``; nothing for any other pair."""
    if not isinstance(name, ast.Constant) or not isinstance(name.value, bytes):
        return set()
    return {name.value.decode()} if re.fullmatch(rb"[a-z][a-z-]+", name.value) else set()


def headers() -> str:
    from passy_proxy.answer import ENDING, RENAMED

    agree("HEADERS", header_names(), HEADERS)
    ended = sorted(name.decode() for name in ENDING)
    renamed = sorted((name.decode(), other.decode()) for name, other in RENAMED.items())
    return page(
        "Response headers",
        "What the gateway adds to answers. The provider's headers pass as they are, but for "
        "those below.",
        table(("header", "what it tells"), [(code(a), b) for a, b in sorted(HEADERS.items())]),
        "## Renamed",
        table(("the provider's", "becomes"), [(code(a), code(b)) for a, b in renamed]),
        "## Not passed on",
        "They describe a connection, an account that others share, or an origin that is not ours: "
        + ", ".join(code(name) for name in ended)
        + ". Also what `connection` names. <!-- codespell:ignore te -->",
        "With `rate_limit` in the chain and a limit that applies, the provider's own rate "
        "limit headers give way to those of the key.",
    )


# The APIs


def described(module: str) -> str:
    """The OpenAPI document of an application, as it gives it at ``/openapi.json``."""
    from importlib import import_module

    document = import_module(module).made(None, None).openapi()
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


WRITERS = {
    "configuration.md": configuration,
    "filters.md": filters,
    "hooks.md": hooks,
    "commands.md": commands,
    "replies.md": replies,
    "headers.md": headers,
    "keys-api.json": lambda: described("passy_plugins.api.keys_routes"),
    "admin-api.json": lambda: described("passy_plugins.api.admin_routes"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Write nothing; exit 1 if stale.")
    only_check = parser.parse_args().check
    PAGES.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, write in WRITERS.items():
        path = PAGES / name
        text = write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not only_check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(("stale: " if only_check else "written: ") + ", ".join(stale))
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Stale as problem:
        sys.exit(str(problem))

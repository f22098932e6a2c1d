"""Configuration text → a tree of nodes that know their place in the file.

Every scalar is read as text: YAML never guesses types, so `off`, `no`, `012` and `1e3` mean what
the setting says they mean. A configuration is untrusted input: size, depth and the number of
complaints are bounded, and aliases, merge keys and tags are refused as soon as the parser meets
them, before anything is built from them.

Variables (`${NAME}`, `${NAME:-default}`, `${file:/run/secrets/key}`) are expanded here and nowhere
else, and this is the only module that reads the process environment. As in a shell,
`${NAME-default}` is the default only where the variable is not set, so that an empty one is seen.
"""

from __future__ import annotations

import os
import re
import stat
from collections import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from passy_proxy.config.problem import ConfigInvalid, Problem, nearest, quoted

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_PROBLEMS = 100
MAX_SECRET_BYTES = 64 << 10

Part = str | int
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WRITTEN = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"?|'(?:[^']|'')*'?|[^\s,}\]][^,}\]]*|)""")
"""One scalar as it stands in a line, or more than that rather than less."""
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::?-(?:off)?)?\}|\$\{file:[^{}]*\}")
_EXPANSION = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


class Environment(abc.Mapping[str, str]):
    """Variables by name; `NAME` not being there, `NAME_FILE` names the file that holds the value.

    Looking up such a value reads the file, and raises OSError when it cannot be read.
    """

    def __init__(self, variables: abc.Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> str:
        if name not in self._variables and (path := self._variables.get(f"{name}_FILE")):
            return read_secret(Path(path))
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __contains__(self, name: object) -> bool:
        return name in self._variables or bool(self._variables.get(f"{name}_FILE"))

    def __repr__(self) -> str:
        return f"<Environment of {len(self)} variables>"


def environment() -> Environment:
    """The environment of this process as it is now."""
    return Environment(os.environ)


def read_secret(path: Path) -> str:
    """The text of a small regular file without the newline at its end; OSError if there is none."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise OSError(f"larger than {MAX_SECRET_BYTES >> 10} KiB")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise OSError("not UTF-8 text") from None


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """The file or variable that nodes come from. `pointers`: name places by JSON pointer, too."""

    path: str
    lines: tuple[str, ...] = ()
    pointers: bool = False
    hidden: dict[tuple[int, int], int] = field(default_factory=dict, compare=False)
    """Line and column of the values of secret settings, which no complaint shows → their length."""

    def __repr__(self) -> str:
        return f"Source({self.path!r})"

    def line(self, number: int) -> str:
        """As the file has it, but for what is hidden."""
        line = self.lines[number - 1] if 0 < number <= len(self.lines) else ""
        for (at, column), length in self.hidden.items():
            if at == number and (written := _WRITTEN.match(line, column - 1)):
                end = max(written.end(), min(len(line), column - 1 + length))
                line = f"{line[: column - 1]}{'•' * (end - column + 1)}{line[end:]}"
        return line


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Node:
    """A place in a configuration. `path` leads to it from the top; line and column count from 1."""

    source: Source
    line: int
    column: int
    path: tuple[Part, ...]

    kind = "nothing"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.place}>"

    def __deepcopy__(self, memo: object) -> Node:
        return self

    @property
    def hidden(self) -> bool:
        """Whether it is, or stands where, the value of a secret setting is."""
        return (self.line, self.column) in self.source.hidden

    @property
    def place(self) -> str:
        """`file:line:column`, or just the file or variable."""
        path = self.source.path
        return f"{path}:{self.line}:{self.column}" if self.line else path

    def find(self, location: abc.Iterable[Part], *, key: bool = False) -> Node:
        """The node at `location` (a pydantic error's `loc`), or the last one on the way to it.

        Parts that lead nowhere (pydantic names the branches of unions, too) are skipped. With
        `key`, the answer is the name of the setting instead of its value.
        """
        node, name = self, self
        for part in location:
            match node, part:
                case Mapping(), str() if part in node.entries:
                    name, node = node.keys.get(part, node), node.entries[part]
                case Sequence(), int() if 0 <= part < len(node.items):
                    name = node = node.items[part]
        return name if key else node

    def problem(self, message: str, hint: str | None = None, *, warning: bool = False) -> Problem:
        """A complaint about this place."""
        if self.source.pointers and self.path:
            message = f"{pointer(self.path)}: {message}"
        return Problem(
            self.source.path,
            self.line,
            self.column,
            message,
            hint,
            "warning" if warning else "error",
            self.source.line(self.line),
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Text(Node):
    """A scalar. `raw` is what the file says, `text` what it means after expansion.

    `tainted`: a variable or file contributed, so only `raw` may ever be shown.
    `blank`: nothing was written after the name.
    """

    text: str = ""
    raw: str = ""
    tainted: bool = False
    blank: bool = False

    kind = "text"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sequence(Node):
    items: tuple[Node, ...] = ()

    kind = "a list"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Mapping(Node):
    """Settings by name, in the order of the file; `keys` has the nodes of the names themselves."""

    entries: abc.Mapping[str, Node] = field(default_factory=dict)
    keys: abc.Mapping[str, Text] = field(default_factory=dict)

    kind = "settings"

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def without(self, *names: str) -> Mapping:
        """The same settings except some."""
        kept = {name: node for name, node in self.entries.items() if name not in names}
        return Mapping(self.source, self.line, self.column, self.path, kept, self.keys)

    def merged(self, over: Mapping) -> Mapping:
        """These settings with those of `over` on top; settings within settings merge likewise."""
        entries = dict(self.entries)
        for name, node in over.entries.items():
            below = entries.get(name)
            if isinstance(below, Mapping) and isinstance(node, Mapping):
                node = below.merged(node)
            entries[name] = node
        keys = {**self.keys, **over.keys}
        return Mapping(self.source, self.line, self.column, self.path, entries, keys)


def hide(node: Node) -> None:
    """Keep what is written here, and below, out of every complaint. Names of variables may show."""
    match node:
        case Mapping():
            for child in node.entries.values():
                hide(child)
        case Sequence():
            for child in node.items:
                hide(child)
        case Text() if not node.blank and not _VARIABLE.fullmatch(node.raw):
            node.source.hidden[node.line, node.column] = len(node.raw)


def empty(at: Node) -> Mapping:
    """No settings at all, located where they would have been."""
    return Mapping(at.source, at.line, at.column, at.path)


def plain(node: Node, *, shown: bool = False) -> object:
    """The tree as dict, list and str. `shown`: as the file says it, without what variables hold."""
    match node:
        case Mapping():
            return {name: plain(value, shown=shown) for name, value in node.entries.items()}
        case Sequence():
            return [plain(item, shown=shown) for item in node.items]
        case Text():
            return node.raw if shown else node.text
    raise TypeError(type(node))


def pointer(path: abc.Iterable[Part]) -> str:
    """RFC 6901: `/models/llama-70b/0`."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration file that could be read."""

    source: Source
    root: Node


_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""What ends a line in YAML. Python's own idea of it takes some control characters for ends."""


def load(path: Path, variables: abc.Mapping[str, str]) -> Document:
    """Read a file; ConfigInvalid if it cannot be opened or read as YAML."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigInvalid([Problem(str(path), 0, 0, message)]) from None
    return parse(content, str(path), variables)


def parse(content: bytes | str, path: str, variables: abc.Mapping[str, str]) -> Document:
    """One YAML document → its nodes; ConfigInvalid with every problem found.

    `path` is the name shown in complaints; `${file:…}` with a relative path starts from its folder.
    """
    text = _decoded(content, path)
    source = Source(path, tuple(_LINE_END.split(text)))
    composer = _Composer(source, variables)
    _check_characters(source)
    try:
        root = composer.document(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        raise ConfigInvalid([*composer.problems, _syntax(error, source)]) from None
    except yaml.YAMLError as error:
        message = f"not YAML: {str(error).splitlines()[0]}"
        raise ConfigInvalid([*composer.problems, Problem(path, 1, 1, message)]) from None
    except _Enough:
        root = Node(source, 1, 1, ())
    if composer.problems:
        raise ConfigInvalid(composer.problems)
    return Document(source, root)


def _decoded(content: bytes | str, path: str) -> str:
    size = len(content if isinstance(content, bytes) else content.encode(errors="replace"))
    if size > MAX_BYTES:
        message = f"larger than {MAX_BYTES >> 20} MiB, which no configuration should be"
        raise ConfigInvalid([Problem(path, 0, 0, message)])
    if isinstance(content, str):
        return content.removeprefix("\N{BYTE ORDER MARK}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = "not UTF-8 text"
        hint = "save the file in the encoding UTF-8"
        raise ConfigInvalid([Problem(path, line, column, message, hint)]) from None


def _check_characters(source: Source) -> None:
    for number, line in enumerate(source.lines, 1):
        if found := yaml.reader.Reader.NON_PRINTABLE.search(line):
            message = f"the control character U+{ord(found[0]):04X} is not allowed"
            place = Node(source, number, found.start() + 1, ())
            raise ConfigInvalid([place.problem(message, 'inside double quotes write "\\xNN"')])


class _Enough(Exception):
    """There is no point in reading on."""


class _Composer:
    """Builds nodes from the parser's events, so that nothing is built from what is refused."""

    def __init__(self, source: Source, variables: abc.Mapping[str, str]) -> None:
        self.source = source
        self.variables = variables
        self.problems: list[Problem] = []
        self.expanded = 0
        self.events: Iterator[yaml.Event] = iter(())

    def complain(self, node: Node, message: str, hint: str | None = None) -> None:
        self.problems.append(node.problem(message, hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Enough

    def document(self, events: Iterator[yaml.Event]) -> Node:
        self.events = events
        next(events)  # the start of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            return Mapping(self.source, 1, 1, ())
        root = self.node(next(events), ())
        next(events)  # the end of the document
        after = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            self.complain(self.at(after, ()), "a second document begins; a configuration is one")
        return empty(root) if isinstance(root, Text) and root.blank else root

    def at(self, event: yaml.Event, path: tuple[Part, ...]) -> Node:
        mark = event.start_mark
        assert mark is not None  # only events made by hand have none
        return Node(self.source, mark.line + 1, mark.column + 1, path)

    def node(self, event: yaml.Event, path: tuple[Part, ...]) -> Node:
        at = self.at(event, path)
        if isinstance(event, yaml.AliasEvent):
            self.complain(at, "aliases (*name) are not read", "write the settings out")
            return Text(*_place(at))
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self.complain(at, "anchors (&name) are not read", "write the settings out")
        if (tag := getattr(event, "tag", None)) is not None:
            hint = "every value is text until its setting reads it; leave the tag out"
            self.complain(at, f"tags ({quoted(tag)}) are not read", hint)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, at)
        if len(path) >= MAX_DEPTH:
            self.complain(at, f"nested deeper than {MAX_DEPTH} levels")
            raise _Enough
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(at)
        return self.mapping(at)

    def sequence(self, at: Node) -> Sequence:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*at.path, len(items))))
        return Sequence(*_place(at), tuple(items))

    def mapping(self, at: Node) -> Mapping:
        entries: dict[str, Node] = {}
        keys: dict[str, Text] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, at.path)
            value = self.node(next(self.events), (*at.path, key.text))
            if key.text in keys:
                first = keys[key.text]
                message = f"{quoted(key.text)} is already set in line {first.line}"
                self.complain(key, message, f"keep one of the two (lines {first.line}, {key.line})")
                continue
            keys[key.text], entries[key.text] = key, value
        return Mapping(*_place(at), entries, keys)

    def key(self, event: yaml.Event, path: tuple[Part, ...]) -> Text:
        at = self.at(event, path)
        if not isinstance(event, yaml.ScalarEvent):
            if isinstance(event, yaml.AliasEvent):
                self.complain(at, "aliases (*name) are not read", "write the name out")
                return Text(*_place(at))
            self.complain(at, "the name of a setting is text, not a list or settings")
            raise _Enough
        if event.value == "<<" and not event.style:
            self.complain(at, "merge keys (<<) are not read", "write the settings out")
        if event.tag is not None or event.anchor is not None:
            self.complain(at, "tags and anchors are not read")
        if "${" in event.value:
            hint = "variables are for values; write the name itself"
            self.complain(at, f"no variable can stand in the name {quoted(event.value)}", hint)
        place = self.source, at.line, at.column, (*path, event.value)
        return Text(*place, text=event.value, raw=event.value)

    def scalar(self, event: yaml.ScalarEvent, at: Node) -> Text:
        raw: str = event.value
        blank = not raw and not event.style
        if "${" not in raw:
            return Text(*_place(at), text=raw, raw=raw, blank=blank)
        written = Text(*_place(at), text=raw, raw=raw, tainted=True)
        parts: list[str] = []
        position = 0
        tainted = False
        for match in _EXPANSION.finditer(raw):
            parts.append(raw[position : match.start()])
            parts.append("${" if match[0] == "$${" else self.expansion(match[1], written))
            tainted = tainted or match[0] != "$${"
            position = match.end()
        text = "".join([*parts, raw[position:]])
        return Text(*_place(at), text=text, raw=raw, tainted=tainted)

    def expansion(self, inside: str | None, at: Text) -> str:
        """What `${inside}` stands for; complains and gives nothing if that cannot be said."""
        hint = "write ${NAME}, ${NAME:-default} or ${file:/path}; $${ for a plain ${"
        if inside is None:
            self.complain(at, "'${' without a plain '}' after it", hint)
            return ""
        if inside.startswith("file:"):
            return self.bounded(self.from_file(inside.removeprefix("file:"), at), at)
        name, separator, default = _parted(inside)
        if not _NAME.fullmatch(name):
            self.complain(at, f"{quoted(f'${{{inside}}}')} names no variable", hint)
            return ""
        try:
            value = self.variables.get(name)
        except OSError as error:
            reason = error.strerror or error
            self.complain(at, f"the file that {name}_FILE names cannot be read: {reason}")
            return ""
        if separator:
            given = value is not None if separator == "-" else value
            return self.bounded(value or "" if given else default, at)
        if value is None:
            meant = nearest(name, self.variables)
            hint = f"set {name}, or give a default: ${{{name}:-…}}"
            message = f"the variable {name} is not set" + (f"; {meant} is" if meant else "")
            self.complain(at, message, hint)
        return self.bounded(value or "", at)

    def from_file(self, name: str, at: Text) -> str:
        try:
            return read_secret(Path(self.source.path).parent / name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            self.complain(at, f"the file {quoted(name)} cannot be read: {reason}")
            return ""

    def bounded(self, value: str, at: Text) -> str:
        self.expanded += len(value)
        if self.expanded > MAX_BYTES:
            self.complain(at, f"variables add up to more than {MAX_BYTES >> 20} MiB")
            raise _Enough
        return value


def _parted(inside: str) -> tuple[str, str, str]:
    """The name in `${…}`, what separates it from a default, and that."""
    name = _NAME.match(inside)
    rest = inside[name.end() :] if name else ""
    separator = ":-" if rest.startswith(":-") else "-" if rest.startswith("-") else ""
    if name is None or (rest and not separator):
        return inside, "", ""
    return name[0], separator, rest.removeprefix(separator)


def _place(node: Node) -> tuple[Source, int, int, tuple[Part, ...]]:
    return node.source, node.line, node.column, node.path


# What libyaml says → what to say to a person. The first text found in its message decides.
_ADVICE = (
    ("tab character", "a tab where only spaces may indent", "indent with two spaces"),
    ("unexpected end of stream", "a quote is opened here and never closed", "close the quote"),
    ("unknown escape", "an unknown escape after a backslash", "use single quotes, or \\\\"),
    ("escape", "an escape that stands for no character", "use single quotes"),
    ("',' or '}'", "',' or '}' is missing in { … }", 'inside { } quote variables: "${NAME}"'),
    ("',' or ']'", "',' or ']' is missing in [ … ]", "close the list, or put a comma"),
    ("mapping values are not", "a second ': ' in one line, or a line before it without one",
     "put a space after each ':' of a name, and quotes around a value that contains ': '"),
    ("expected key", "the indentation, a list item, or text after a quote does not fit here",
     "names that belong together start in the same column"),
    ("expected <block end>", "the indentation, or a list item, does not fit the lines before",
     "names that belong together start in the same column"),
    ("expected '-'", "the indentation does not fit the list before",
     "the '-' of one list stand in the same column"),
    ("cannot start any token", "a value cannot start with this character",
     "put the value in quotes"),
    ("expected node content", "a value is missing, or a list or { … } before it is not closed",
     "write the value, or ] or } where what was opened ends"),
    ("could not find expected ':'", "a line without ':'", "write name: value"),
    ("alias", "aliases (*name) are not read", "quote a value that starts with '*' or '&'"),
    ("anchor", "anchors (&name) are not read", "quote a value that starts with '*' or '&'"),
)  # fmt: skip

_OPENED = ("a quote is opened", "',' or")


def _syntax(error: yaml.MarkedYAMLError, source: Source) -> Problem:
    said = error.problem or error.context or "not YAML"
    mark = error.problem_mark or error.context_mark
    message, hint = said, None
    for words, plain_words, advice in _ADVICE:
        if words in said:
            message, hint = plain_words, advice
            break
    if "\t" in said or "'\\t'" in said or (mark and source.line(mark.line + 1)[:1] == "\t"):
        message, hint = _ADVICE[0][1:]
    # What was opened and never closed is found at the end of the file; its beginning says more.
    opened = error.context_mark
    if opened and mark and mark.line > opened.line and message.startswith(_OPENED):
        mark = opened
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    return Node(source, line, column, ()).problem(message, hint)

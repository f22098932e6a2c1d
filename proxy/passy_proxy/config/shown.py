"""A configuration as people may see it: what it says, without a secret.

It is written anew from what was read, so that nothing is shown but what is known to be no secret:
no comment, no value of a setting that holds a secret, nothing that a variable stands for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from passy_proxy.config.document import Mapping, Node, Sequence, Text
from passy_proxy.config.problem import MASK, Problem, redacted

WORDS = ("credential", "key", "api_key", "secret", "password", "token", "authorization", "pepper")
"""Names under which a secret stands, where nothing is known of a setting."""
WIDE = 100
"""Characters of a line."""
_VARIABLE = re.compile(r"(\$\{(?:file:[^{}]*|[A-Za-z_][A-Za-z0-9_]*(?::?-)?))([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Looked:
    """What a text would be as a configuration. Nothing of it was started."""

    hash: str
    """Short: as ``x-passy-config`` has it."""
    text: str
    """YAML without a secret; empty where it cannot be read."""
    problems: tuple[Problem, ...]
    """What is wrong with it, warnings among it."""

    @property
    def runs(self) -> bool:
        """Whether it could."""
        return not any(each.severity == "error" for each in self.problems)


def shown(root: Node) -> str:
    """A tree that was built from, so that its secrets are known, as YAML."""
    text: str = yaml.dump(
        _tree(root, ""), Dumper=_Plain, default_flow_style=None, sort_keys=False,
        allow_unicode=True, width=WIDE,
    )  # fmt: skip
    return text


def changes(before: str, after: str) -> Iterator[tuple[str, str]]:
    """From one text to the other, line by line: ``" "``, ``"-"``, ``"+"`` or ``"@"`` (where lines
    were passed over), and the line."""
    differing = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3)
    for number, line in enumerate(differing):
        if number < 2:  # The names of files, of which there are none.
            continue
        yield ("@", line) if line.startswith("@@") else (line[0], line[1:])


def _tree(node: Node, name: str) -> object:
    match node:
        case Mapping():
            return {redacted(key): _tree(value, key) for key, value in node.entries.items()}
        case Sequence():
            return [_tree(item, name) for item in node.items]
        case Text():
            secret = node.hidden or (not node.blank and _named(name))
            return _veiled(node.raw) if secret else redacted(node.raw)
    return None


def _veiled(raw: str) -> str:
    """The name of the variable that a secret comes from, where it comes from one."""
    if (written := _VARIABLE.fullmatch(raw)) is None:
        return MASK
    opening, default = written.groups()
    return f"{opening}{default if default in ('', 'off') else MASK}}}"


def _named(name: str) -> bool:
    """Whether a name says so: for what was never read by the settings that it belongs to."""
    plain = name.casefold().replace("-", "_")
    return any(plain == word or plain.endswith(f"_{word}") for word in WORDS)


class _Plain(yaml.SafeDumper):
    """Every value is text, as it was read: nothing is quoted lest it be taken for a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, object]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: object) -> bool:
        return True

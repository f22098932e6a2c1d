"""What is wrong with a configuration, where, and how to put it right."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]

MASK = "•••"

# A text that is a credential wherever it stands: the prefixes providers give their keys, and the
# user part of a URL. Only the second line of defence: values that came from a variable and fields
# of type Secret are never quoted in the first place.
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|gsk|hf|ghp|gho|ghs|xai|pplx|nvapi)[-_][\w-]{8,}"
    r"|\b(?:AKIA|AIza|eyJ|xox[abprs]-|github_pat_)[\w.-]{8,}"
    r"|(?<=://)[^/\s@'\"]+(?=@)"
)
_PAIR = re.compile(
    r"""(?<![/\w.-])(?P<key>["']?(?P<name>[\w.-]+)["']?\s*:\s+)(?P<value>"[^"]*"?|'[^']*'?|[^\s,}\]#][^,}\]]*)"""
)
_SECRET_WORDS = (
    "credential",
    "api_key",
    "key",
    "secret",
    "password",
    "passwd",
    "token",
    "authorization",
    "pepper",
)
# Long runs of letters and digits, and UUIDs. Names of models have dashes, dots or slashes.
_LONG = re.compile(
    r"(?<![\w/.$:{-])(?=[\w+=]*\d)(?=[\w+=]*[A-Za-z])[\w+=]{20,}(?![\w/.-])"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint. Lines and columns count from 1; line 0 means the whole file.

    `source` is the line itself, for the excerpt people see; what may be a secret in it, and in the
    message, is masked.
    """

    path: str
    line: int
    column: int
    message: str
    hint: str | None = None
    severity: Severity = "error"
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redacted(self.message))
        object.__setattr__(self, "source", _safe_line(self.source))

    @property
    def place(self) -> str:
        """`file:line:column`, as editors and terminals understand it."""
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path

    def __str__(self) -> str:
        return f"{self.place}: {self.severity}: {self.message}"

    def pretty(self) -> str:
        """For people: the complaint, the line with a caret below it, and what to try."""
        lines = [str(self)]
        if self.source.strip():
            column = min(self.column, len(self.source) + 1)
            start = max(0, column - 60)
            excerpt = self.source[start : start + 100].replace("\t", " ")
            lines += [f"    {excerpt}", f"    {' ' * (column - start - 1)}^"]
        if self.hint:
            lines.append(f"    try: {self.hint}")
        return "\n".join(lines)

    def record(self) -> dict[str, str | int | None]:
        """For programs: the fields of this problem except the excerpt."""
        fields = asdict(self)
        del fields["source"]
        return fields


class ConfigInvalid(Exception):
    """A configuration cannot be used; `problems` says all that is wrong with it.

    `read` is what could be read of it all the same, where it is known: a `GatewayFile`.
    """

    def __init__(self, problems: Iterable[Problem], read: object = None) -> None:
        self.problems = in_order(problems)
        self.read = read
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def pretty(self) -> str:
        """All problems for people, and how many there are."""
        errors = sum(problem.severity == "error" for problem in self.problems)
        count = f"{errors} error{'s' * (errors != 1)}"
        return "\n\n".join([*(problem.pretty() for problem in self.problems), count])

    def to_json(self) -> str:
        """All problems for programs: a JSON array of objects, in the order of the files."""
        return to_json(self.problems)


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems without repetitions, sorted by file (as first met), line and column."""
    unique = list(dict.fromkeys(problems))
    rank = {path: index for index, path in enumerate(dict.fromkeys(p.path for p in unique))}
    return tuple(sorted(unique, key=lambda p: (rank[p.path], p.line, p.column)))


def to_json(problems: Iterable[Problem]) -> str:
    """A JSON array of the problems, as `passy check --json` prints it."""
    return json.dumps([problem.record() for problem in problems], indent=2, ensure_ascii=False)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be, or None."""
    options = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word[:200].casefold(), options, n=1, cutoff=0.6)
    return options[found[0]] if found else None


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The end of a message: which choice `word` was probably meant to be; or nothing."""
    meant = nearest(word, choices)
    return f"; did you mean {meant!r}?" if meant else ""


def listed(words: Sequence[str], limit: int = 12) -> str:
    """`a, b and c`, cut off after `limit` words."""
    if len(words) > limit:
        return f"{', '.join(words[:limit])} and {len(words) - limit} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def printable(text: str) -> str:
    """`text` without control characters: neither a client's model nor the name of somebody's key
    may move the cursor of whoever looks."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def quoted(text: str, limit: int = 60) -> str:
    """`text` as a message may repeat it: short, printable, in quotes, keys masked."""
    shown = printable(text[: limit + 1])
    if len(shown) > limit:
        shown = f"{shown[:limit]}…"
    return redacted(f"'{_LONG.sub(MASK, shown)}'")


def redacted(text: str) -> str:
    """`text` with everything masked that has the looks of a provider key or a URL password."""
    return _KEY_LIKE.sub(MASK, text)


def _safe_line(line: str) -> str:
    """A line of a file as an excerpt may show it: no secret, and every character in its place."""

    def hide(match: re.Match[str]) -> str:
        return "•" * len(match[0])

    def hide_value(match: re.Match[str]) -> str:
        value = match["value"]
        name = match["name"].casefold()
        secret = difflib.get_close_matches(name, _SECRET_WORDS, n=1, cutoff=0.7)
        if "${" in value or not secret or name.endswith("tokens"):
            return match[0]
        return match["key"] + "•" * len(value)

    line = _PAIR.sub(hide_value, line[:2_000])
    return _LONG.sub(hide, _KEY_LIKE.sub(hide, line))

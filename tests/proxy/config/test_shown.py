"""A configuration as people may see it."""

from __future__ import annotations

import pytest

from passy_proxy.config.document import parse
from passy_proxy.config.model import gateway_file
from passy_proxy.config.shown import changes, shown

SECRET = "sk-shown-never-9d3f81a7b2"
TEXT = f"""
listen: 127.0.0.1:8080   # the old key was {SECRET}
stores:
  books: {{kind: sql, url: "postgresql://ada:{SECRET}@db.example.com/books"}}
upstreams:
  literal: {{url: "https://a.example.com/v1", credential: {SECRET}}}
  folded:
    url: "https://b.example.com/v1"
    credential: >-
      {SECRET}
      {SECRET}
  headed: {{url: "https://c.example.com/v1", headers: {{x-extra: {SECRET}}}}}
  misspelt: {{url: "https://d.example.com/v1", credentials: {SECRET}}}
  variable: {{url: "https://e.example.com/v1", credential: "${{SOME_KEY:-{SECRET}}}"}}
  plain: {{url: "https://f.example.com/v1", credential: "${{SOME_KEY}}"}}
chains:
  default: [unknown_filter: {{token: {SECRET}, api-key: "{SECRET}", limit: 012}}]
"""


def test_W10_no_secret_is_shown_also_of_what_cannot_run() -> None:
    document = parse(TEXT, "gateway.yaml", {"SOME_KEY": SECRET})
    with pytest.raises(Exception, match="credentials"):
        gateway_file(document)
    text = shown(document.root)
    assert SECRET not in text
    assert "9d3f81a7b2" not in text
    for part in ("•••@db.example.com", "${SOME_KEY:-•••}", "'${SOME_KEY}'", "limit: 012"):
        assert part in text, text


def test_what_is_shown_says_the_same_when_it_is_read() -> None:
    plain = "a: [1, 'no', {b: 'x: y', c: ''}]\nd:\n  e: '012'\n  f: ${X:-y}\n"
    text = shown(parse(plain, "a", {}).root)
    again = shown(parse(text, "a", {}).root)
    assert again == text
    assert "d: {e: 012, " in text


def test_lines_that_differ_are_told_and_so_is_where_others_were_passed_over() -> None:
    before = "".join(f"line {n}\n" for n in range(20))
    after = before.replace("line 10\n", "line ten\n")
    told = list(changes(before, after))
    assert ("-", "line 10") in told
    assert ("+", "line ten") in told
    assert "@" == told[0][0]
    assert 9 == len(told)
    assert [] == list(changes(before, before))

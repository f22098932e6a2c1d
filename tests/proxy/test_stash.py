"""The stash of an exchange."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from passy_proxy.stash import Stash, StashKey

COUNT = StashKey[int]("count")
NAME = StashKey[str]("name")


def test_a_value_is_reached_by_its_key() -> None:
    stash = Stash()
    stash[COUNT] = 3
    stash[NAME] = "x"
    assert 3 == stash[COUNT]
    assert "x" == stash.get(NAME)
    assert COUNT in stash


def test_a_missing_value_is_a_key_error_or_the_default() -> None:
    stash = Stash()
    assert COUNT not in stash
    assert stash.get(COUNT) is None
    assert 7 == stash.get(COUNT, 7)
    assert 7 == stash.pop(COUNT, 7)
    with pytest.raises(KeyError, match="count"):
        stash[COUNT]


def test_a_value_is_popped_once() -> None:
    stash = Stash()
    stash[COUNT] = 3
    assert 3 == stash.pop(COUNT)
    assert COUNT not in stash
    with pytest.raises(KeyError):
        stash.pop(COUNT)


def test_setdefault_keeps_what_is_there() -> None:
    stash = Stash()
    assert 1 == stash.setdefault(COUNT, 1)
    assert 1 == stash.setdefault(COUNT, 2)


def test_two_keys_of_one_name_are_two_places() -> None:
    stash = Stash()
    other = StashKey[int]("count")
    stash[COUNT] = 1
    stash[other] = 2
    assert (1, 2) == (stash[COUNT], stash[other])


def test_the_repr_tells_keys_and_no_values() -> None:
    stash = Stash()
    stash[NAME] = "sk-secret"
    assert "Stash(name)" == repr(stash)
    assert "StashKey('name')" == repr(NAME)


TYPED = """
from typing import assert_type
from passy_proxy.stash import Stash, StashKey
COUNT = StashKey[int]("count")
stash = Stash()
stash[COUNT] = 1
assert_type(stash[COUNT], int)
assert_type(stash.get(COUNT), int | None)
assert_type(stash.get(COUNT, "none"), int | str)
assert_type(stash.pop(COUNT), int)
assert_type(stash.pop(COUNT, None), int | None)
"""


def test_a_type_checker_knows_each_value(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "typed.py"
    script.write_text(TYPED + 'stash[COUNT] = "x"\nstash["count"]\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(script)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wrong = [line for line in checked.stdout.splitlines() if " error: " in line]
    last = len(script.read_text().splitlines())
    assert [last - 1, last] == [int(line.split(":")[1]) for line in wrong]

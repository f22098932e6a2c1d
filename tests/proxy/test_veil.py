"""Secrets in an answer are hidden wherever it is cut, and nothing else is changed."""

from __future__ import annotations

import pytest

from passy_proxy.veil import REDACTED, Veil, veiled

KEY = b"sk-sk-proj-s0me-l0ng-key"
OTHER = b"another-secret"


def passed(veil: Veil, pieces: list[bytes]) -> bytes:
    return b"".join(map(veil, pieces)) + veil(b"", end=True)


@pytest.mark.parametrize(
    "text", [b"a " + KEY + b" b", KEY * 2, b"sk-" + KEY, KEY + b"sk-", b"sk-s\n"]
)
def test_a_secret_is_hidden_wherever_it_is_cut(text: bytes) -> None:
    expected = text.replace(KEY, REDACTED)
    assert expected == passed(Veil((KEY,)), [text])
    for at in range(len(text)):
        for to in range(at, len(text) + 1):
            assert expected == passed(Veil((KEY,)), [text[:at], text[at:to], text[to:]])


def test_of_several_secrets_each_is_hidden() -> None:
    text = b"x" + KEY + OTHER + b"y" + OTHER
    for size in range(1, 9):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert b"x[redacted][redacted]y[redacted]" == passed(Veil((KEY, OTHER)), pieces)


def test_whole_messages_are_never_held_back() -> None:
    veil = Veil((KEY,))
    data = b"data: sk-\n\n"
    assert data is veil(data)
    assert b"" == veil.held


def test_without_secrets_nothing_is_looked_for() -> None:
    data = b"sk-"
    assert data is Veil(())(data)
    assert data is veiled(data, ())
    assert data is veiled(data, (KEY,))

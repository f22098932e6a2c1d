"""Which secrets are refused, and that no good one is."""

from __future__ import annotations

import secrets

import pytest

from passy_proxy.strength import weakness


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("x", "has 1 bytes"),
        ("UqJKgaNzyX7-LQu5IvlWtnghxi05rSA", "has 31 bytes"),
        ("x" * 64, "is not random"),
        ("\0" * 64, "is not random"),
        ("secretkey123" * 4, "is not random"),
        ("0123456789abcdef" * 2, "is not random"),
        ("0123456789abcdefghijklmnopqrstuvwxyz", "is not random"),
        ("zyxwvutsrqponmlkjihgfedcba9876543210", "is not random"),
        ("abcabcdabcdeabcdefabcdefgabcdefgh", "is not random"),
        ("CHANGE_ME_CHANGE_ME_TO_A_LONG_ONE", "looks like the default"),
        ("please-change-this-to-something-good", "looks like the default"),
        ("my super secret value for production!", "looks like the default"),
        ("Password1234!Password5678!Password9", "looks like the default"),
        ("your-secret-key-goes-here-1234567890", "looks like the default"),
        ("example-admin-token-for-the-gateway!", "looks like the default"),
        ("insecure-dev-key-1f8b2c9a7d6e5f4a3b2", "looks like the default"),
    ],
)
def test_K7_a_weak_secret_is_named_as_one(text: str, why: str) -> None:
    said = weakness(text)
    assert said is not None
    assert said.startswith(why)
    assert "openssl rand" in said
    assert not text or text not in said


def test_K7_random_texts_of_every_make_are_taken() -> None:
    for _ in range(2_000):
        for good in (secrets.token_urlsafe(24), secrets.token_hex(16), secrets.token_urlsafe(48)):
            assert weakness(good) is None

"""Codes of RFC 6238, and the QR code that gives an app their secret."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from passy_portal import totp

DIGITS = b"1234567890"
SEEDS = {"sha1": DIGITS * 2, "sha256": DIGITS * 3 + b"12", "sha512": DIGITS * 6 + b"1234"}
VECTORS = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
"""Of RFC 6238, appendix B."""
SECRET = base64.b32encode(SEEDS["sha1"]).decode()


@pytest.mark.parametrize("vector", VECTORS)
def test_W2_codes_are_those_of_the_rfc(vector: tuple[int, str, str, str]) -> None:
    at, *wanted = vector
    for (algorithm, seed), code in zip(SEEDS.items(), wanted, strict=True):
        secret = base64.b32encode(seed).decode()
        assert code == totp.code(secret, totp.step_at(at), 8, algorithm)


def test_W2_a_clock_may_be_half_a_minute_off_and_no_code_is_good_twice() -> None:
    now = 1_800_000_015
    step = totp.step_at(now)
    for off in range(-3, 4):
        found = totp.step_of(SECRET, totp.code(SECRET, step + off), now, 0)
        assert (step + off if abs(off) <= 1 else None) == found
    assert totp.step_of(SECRET, totp.code(SECRET, step), now, step) is None
    assert totp.step_of(SECRET, totp.code(SECRET, step - 1), now, step) is None
    assert step + 1 == totp.step_of(SECRET, totp.code(SECRET, step + 1), now, step)
    for typed in ("", "12345", "1234567", "abcdef", "\uff11" * 6, "\ud800"):
        assert totp.step_of(SECRET, typed, now, 0) is None


def test_W2_an_app_is_told_all_it_needs() -> None:
    secret = totp.new_secret()
    assert 20 == len(base64.b32decode(secret))
    parts = urlsplit(totp.uri(secret, "a+b&c@example.com", "passy"))
    assert ("otpauth", "totp") == (parts.scheme, parts.netloc)
    assert "/passy:a+b&c@example.com" == unquote(parts.path)
    assert {"secret": [secret], "issuer": ["passy"]} == parse_qs(parts.query)
    picture = totp.picture(totp.uri(secret, "a@example.com", "passy"))
    assert picture.startswith("<svg")
    assert "style" not in picture

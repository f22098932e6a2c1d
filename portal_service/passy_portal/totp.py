"""Codes that change every half minute, as RFC 6238 has them."""

from __future__ import annotations

import base64
import hmac
import secrets
from urllib.parse import quote, urlencode

PERIOD = 30
"""Seconds."""
DIGITS = 6
BYTES = 20
"""Of a secret, as long as what its HMAC gives."""
DRIFT = 1
"""Periods that a clock may be early or late."""


def new_secret() -> str:
    """In base 32, as apps take it by hand."""
    return base64.b32encode(secrets.token_bytes(BYTES)).decode()


def step_at(seconds: float) -> int:
    """The number of the period that is running at a moment of Unix time."""
    return int(seconds // PERIOD)


def code(secret: str, step: int, digits: int = DIGITS, algorithm: str = "sha1") -> str:
    """The code of one period (RFC 4226, 5.3)."""
    made = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), algorithm)
    at = made[-1] & 15
    number = int.from_bytes(made[at : at + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def step_of(secret: str, typed: str, now: float, after: int) -> int | None:
    """The period whose code was typed; ``None`` for a wrong one, and for all up to ``after``, which
    were used already."""
    found = None
    for step in range(step_at(now) - DRIFT, step_at(now) + DRIFT + 1):
        # All of them are compared, whichever it is.
        same = hmac.compare_digest(code(secret, step).encode(), typed.encode(errors="replace"))
        if same and step > after:
            found = step
    return found


def uri(secret: str, account: str, issuer: str) -> str:
    """What a QR code says to an app."""
    label = quote(f"{issuer}:{account}", safe="@:")
    return (
        f"otpauth://totp/{label}?{urlencode({'secret': secret, 'issuer': issuer}, quote_via=quote)}"
    )


def picture(text: str) -> str:
    """A QR code as SVG, dark on light whatever the colours of the page."""
    import segno  # Whoever has signed in for the day needs none.

    made = segno.make(text, error="m", micro=False)
    return made.svg_inline(omitsize=True, dark="#000", light="#fff", svgclass="qr", lineclass=None)

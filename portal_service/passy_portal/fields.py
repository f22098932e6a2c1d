"""What people type into the fields of forms. `Denied` names the field that is wrong."""

from __future__ import annotations

from datetime import UTC, datetime

from passy_plugins.api.denied import Denied
from passy_portal.door import Form
from passy_proxy.units import Rate, parse_count, parse_rate

MOST_DOLLARS, MOST_TOKENS = 9_000_000, 9_000_000_000_000_000


def wrong(message: str, field: str) -> Denied:
    return Denied(422, "invalid_value", message, field)


def email(form: Form) -> str | None:
    text = form.text("email", 254)
    if text and (text.count("@") != 1 or " " in text or text[0] == "@" or text[-1] == "@"):
        raise wrong("This is no e-mail address.", "email")
    return text or None


def dollars(form: Form, field: str) -> float | None:
    text = form.text(field, 30).replace(",", "").removeprefix("$")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST_DOLLARS:
        raise wrong(f"Write a number between 0 and {MOST_DOLLARS:,}.", field)
    return number


def tokens(form: Form, field: str) -> int | None:
    """``10M`` is as good as the number."""
    text = form.text(field, 30).replace(",", "")
    if not text:
        return None
    try:
        number: int = parse_count(text)
    except ValueError:
        number = -1
    if not 0 <= number <= MOST_TOKENS:
        raise wrong("Write a whole number of tokens, such as 500k or 10M.", field)
    return number


def whole(form: Form, field: str) -> int | None:
    """One or more."""
    text = form.text(field, 30).replace(",", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) < 1 << 31:
        raise wrong("Write a whole number, 1 or more.", field)
    return int(text)


def rate(form: Form, field: str) -> Rate | None:
    text = form.text(field, 30)
    if not text:
        return None
    try:
        found: Rate = parse_rate(text)
    except ValueError as error:
        raise wrong(str(error), field) from None
    return found


def day(form: Form, field: str) -> float | None:
    """To the end of that day, UTC; Unix seconds."""
    text = form.text(field, 30)
    if not text:
        return None
    try:
        found = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise wrong("Write a date such as 2027-01-31.", field) from None
    return found.timestamp() + 86_399


def percents(form: Form, field: str) -> tuple[int, ...]:
    """``50, 80, 100``."""
    found = form.lines(field)
    if not all(one.isascii() and one.isdigit() and 1 <= int(one[:5]) <= 1_000 for one in found):
        raise wrong("Write percentages, such as 50, 80, 100.", field)
    return tuple(sorted({int(one) for one in found}))


def one_of(form: Form, field: str, known: tuple[str, ...]) -> str:
    text = form.text(field)
    if text not in known:
        raise wrong(f"One of {', '.join(known)}.", field)
    return text


def rate_told(found: Rate) -> str:
    """For reading: ``2,000,000/min``."""
    return f"{found.amount:,}/{str(found).partition('/')[2]}"


def rate_typed(found: Rate | None) -> str:
    """As people write it: ``2M/min``."""
    if found is None:
        return ""
    text = str(found)
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if found.amount and found.amount % size == 0:
            return f"{found.amount // size}{letter}/{text.partition('/')[2]}"
    return text

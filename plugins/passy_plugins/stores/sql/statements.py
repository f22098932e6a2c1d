"""The SQL of the data plane: what a running gateway asks, and the one thing it writes.

Plain text and not built by SQLAlchemy, whose import alone would cost each start half a second and
twenty megabytes. It is what SQLite and PostgreSQL both understand; only the placeholders differ
(``?``, in the order of the values). Tables and migrations are SQLAlchemy's and alembic's
(``schema.py``), and the tests run these statements on what the migrations made.
"""

from __future__ import annotations

from functools import cache

from passy_proxy.records import UsageRecord
from passy_proxy.units import Rate

REVISIONS = ("0001",)
"""Every revision there has been, oldest first. The database is brought to the last one on start."""

REVISION = "SELECT version_num FROM alembic_version"

TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
"""SQLite's way to say whether the file is new; the only question that knows its dialect."""

PRINCIPAL = """
SELECT id, name, organisation, requests, tokens, concurrency, models, expires,
       disabled, is_test, is_trial
FROM keys WHERE digest = ?
"""

FIRST_KEY = """
INSERT INTO keys (id, digest, shown, name, description, is_test, is_trial, disabled, created)
SELECT ?, ?, ?, 'first', 'Made on the first start', false, false, false, ?
WHERE NOT EXISTS (SELECT 1 FROM keys)
RETURNING id
"""

PASSED = "DELETE FROM keys WHERE name = ? AND is_test AND expires <= ?"

PASSING_KEY = """
INSERT INTO keys (id, digest, shown, name, description, is_test, is_trial, disabled, created,
                  expires)
VALUES (?, ?, ?, ?, 'Test Key', true, false, false, ?, ?)
"""

PROVIDERS = """
SELECT id, organisation, name, dialect, url, models, status, priority, version
FROM custom_providers WHERE organisation = ? ORDER BY priority, id
"""

CREDENTIAL = """
SELECT sealed FROM (
  SELECT organisation, upstream, sealed FROM credentials
  UNION ALL
  SELECT organisation, id, sealed FROM custom_providers WHERE sealed IS NOT NULL
) AS kept
WHERE organisation = ? AND upstream = ?
"""

MARK = "SELECT value FROM marks WHERE name = ?"
SET_MARK = "INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"

PRICE = "UPDATE usage SET cost_nanos = ?, price = ? WHERE id = ? AND cost_nanos IS NULL"

_COLUMNS = ", ".join(UsageRecord._fields)
_ROW = "(" + ", ".join("?" * len(UsageRecord._fields)) + ")"


@cache
def record_usage(rows: int) -> str:
    """Insert ``rows`` usage rows at once; one whose id is there already is left as it was."""
    values = ", ".join([_ROW] * rows)
    return f"INSERT INTO usage ({_COLUMNS}) VALUES {values} ON CONFLICT (id) DO NOTHING"


def rate_text(rate: Rate | None) -> str | None:
    """A rate as its column holds it: amount/seconds."""
    return None if rate is None else f"{rate.amount}/{rate.seconds}"


def rate_of(text: str | None) -> Rate | None:
    """The rate that `rate_text` wrote."""
    if text is None:
        return None
    amount, _, seconds = text.partition("/")
    return Rate(int(amount), float(seconds))

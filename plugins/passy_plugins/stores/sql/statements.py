"""The SQL of the data plane: what a running gateway asks, and the one thing it writes.

Plain text and not built by SQLAlchemy, whose import would double a gateway's start and memory for
the sake of these few lines. They are standard enough for SQLite and PostgreSQL alike; parameters
are numbered ``?1``, which asyncpg spells ``$1``. Tables and migrations are SQLAlchemy's and
alembic's (``schema.py``), and the tests run these statements on what the migrations made.
"""

from __future__ import annotations

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
FROM keys WHERE digest = ?1
"""

FIRST_KEY = """
INSERT INTO keys (id, digest, shown, name, description, is_test, is_trial, disabled, created)
SELECT ?1, ?2, ?3, 'first', 'Made on the first start', false, false, false, ?4
WHERE NOT EXISTS (SELECT 1 FROM keys)
RETURNING id
"""

PROVIDERS = """
SELECT id, organisation, name, dialect, url, models, status, priority, version
FROM custom_providers WHERE organisation = ?1 ORDER BY priority, id
"""

CREDENTIAL = """
SELECT sealed FROM credentials WHERE organisation = ?1 AND upstream = ?2
UNION ALL
SELECT sealed FROM custom_providers WHERE organisation = ?1 AND id = ?2 AND sealed IS NOT NULL
"""

MARK = "SELECT value FROM marks WHERE name = ?1"
SET_MARK = "INSERT INTO marks (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING"

_COLUMNS = ", ".join(UsageRecord._fields)
_ROW = "(" + ", ".join("?" * len(UsageRecord._fields)) + ")"


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

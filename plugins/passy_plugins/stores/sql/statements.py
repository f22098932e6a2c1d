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

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every revision there has been, oldest first. The database is brought to the last one on start."""

REVISION = "SELECT version_num FROM alembic_version"

_LEVEL = "{0}.id, {0}.status, {0}.requests, {0}.tokens, {0}.concurrency, {0}.models"
PRINCIPAL = f"""
SELECT k.id, k.name, k.digest, k.organisation, k.team, k.user_id,
       k.expires, k.old_until, k.disabled, k.is_test, k.is_trial,
       k.tags, k.networks, k.upstreams, o.byok,
       k.requests, k.tokens, k.concurrency, k.models,
       {_LEVEL.format("o")}, {_LEVEL.format("t")}, {_LEVEL.format("u")},
       b.kind, b.id, b.unit, b.amount, b.period, b.hard, b.alerts
FROM keys AS k
LEFT JOIN organisations AS o ON o.id = k.organisation
LEFT JOIN teams AS t ON t.id = k.team
LEFT JOIN users AS u ON u.id = k.user_id
LEFT JOIN budgets AS b ON (b.kind = 'key' AND b.subject = k.id)
                       OR (b.kind = 'organisation' AND b.subject = k.organisation)
                       OR (b.kind = 'team' AND b.subject = k.team)
                       OR (b.kind = 'user' AND b.subject = k.user_id)
WHERE (k.digest = ? OR (k.old_digest = ? AND k.old_until > ?)) AND k.deleted IS NULL
"""
"""The key of a digest with all that stands above it, once for each budget there. A digest is given
twice, with the time in milliseconds: that of a rolled key is good for a while."""

FIRST_ORGANISATION = """
INSERT INTO organisations (id, name, created) SELECT 'org_default', 'Default', ?
WHERE NOT EXISTS (SELECT 1 FROM organisations) AND NOT EXISTS (SELECT 1 FROM keys)
ON CONFLICT (id) DO NOTHING
"""
"""Under one id, so that there is one, however many start at once."""
FIRST_KEY = """
INSERT INTO keys (id, digest, shown, name, description, is_test, is_trial, disabled, created,
                  organisation)
SELECT ?, ?, ?, 'passy up', 'Made on the first start', false, false, false, ?,
       (SELECT id FROM organisations WHERE status = 'active' ORDER BY created, id LIMIT 1)
WHERE NOT EXISTS (SELECT 1 FROM keys)
RETURNING id
"""
"""It belongs to an organisation, so that whoever becomes its owner sees what it does."""

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

CREDENTIALS = """
SELECT id, upstream, version, sealed FROM credentials
WHERE organisation = ? AND status = 'active' ORDER BY upstream, priority, created, id
"""

SET_PRICES = "SELECT target, rates, set_by, at FROM set_prices ORDER BY target"
SWITCHES = "SELECT model, target, state, switched_by, at FROM switches ORDER BY model, target"

SEALED_WITH = """
SELECT substr(sealed, 4, 8), count(*) FROM credentials WHERE status = 'active' GROUP BY 1
"""
"""The ids of the keys that active credentials are sealed with: after two characters of the format
and a colon."""

BEGIN_ALERT = """
INSERT INTO alerts_sent (budget, "window", percent, at) VALUES (?, ?, ?, ?)
ON CONFLICT (budget, "window", percent) DO UPDATE SET at = excluded.at
WHERE alerts_sent.sent IS NULL AND alerts_sent.at <= ?
RETURNING budget
"""
ALERTED = """
UPDATE alerts_sent SET sent = ? WHERE budget = ? AND "window" = ? AND percent = ?
"""
HOOKS = "SELECT id, organisation, url, sealed, events FROM webhooks WHERE organisation = ?"
OPERATORS_HOOKS = "SELECT id, NULL, url, sealed, events FROM webhooks WHERE organisation IS NULL"

MARK = "SELECT value FROM marks WHERE name = ?"
SET_MARK = "INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING"

PRICE = """
UPDATE usage SET cost_nanos = ?, price = ? WHERE id = ? AND cost_nanos IS NULL RETURNING id
"""

_COLUMNS = ", ".join(UsageRecord._fields)
_ROW = "(" + ", ".join("?" * len(UsageRecord._fields)) + ", 1)"


ROW = f"SELECT {_COLUMNS} FROM usage WHERE id = ?"

HEADS = "SELECT name, value FROM marks WHERE name >= 'evidence:' AND name < 'evidence;'"
MOVE_MARK = (
    "INSERT INTO marks (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
FORGET_CHANGES = "DELETE FROM changes WHERE at < ?"
"""Nobody looks for changes of yesterday: whoever was away so long forgets all it knew."""
CHANGES_MS = 86_400_000
KEPT_FROM = "kept_from"
"""The mark of the moment from which on all records are there; those before were dropped."""
MOVE_ON = """
INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE
SET value = excluded.value WHERE CAST(marks.value AS BIGINT) < CAST(excluded.value AS BIGINT)
"""
"""A mark of a moment, which never goes back."""
DROP_SUMS = ("DELETE FROM usage_hours WHERE start < ?", "DELETE FROM usage_days WHERE start < ?")
DROP_MARK = "DELETE FROM marks WHERE name = ?"
GAPS = "SELECT name, value FROM marks WHERE name >= 'dropped:' AND name < 'dropped;'"
LAST_CHAIN = "SELECT max(chain) FROM evidence"
WITHOUT_EVIDENCE = """
SELECT count(*), max(at) FROM usage
WHERE NOT EXISTS (SELECT 1 FROM evidence WHERE evidence.id = usage.id)
"""
LAST_ENTRY = "SELECT record FROM evidence WHERE id = ? ORDER BY chain DESC, seq DESC LIMIT 1"
_ENTRY = "chain, seq, id, kind, record, upstream, client, modified_by, link"
ENTRIES = f"SELECT {_ENTRY} FROM evidence ORDER BY chain, seq"
ROWS = f"""
SELECT {", ".join(f"usage.{name}" for name in UsageRecord._fields)},
       evidence.chain, evidence.seq, evidence.kind, evidence.record
FROM usage LEFT JOIN evidence ON evidence.id = usage.id
ORDER BY usage.at, usage.id
"""
ROWLESS = """
SELECT chain, seq, id FROM evidence
WHERE kind <> 'priced' AND NOT EXISTS (SELECT 1 FROM usage WHERE usage.id = evidence.id)
"""
SIZE = "SELECT (SELECT count(*) FROM evidence) + (SELECT count(*) FROM usage)"
NOTED = "SELECT 1 FROM evidence WHERE chain = ? AND seq = ? AND link = ?"


def without_entries(source: str) -> str:
    """How many records of ``source`` (a table, and its WHERE) have no entry of evidence."""
    return (
        f"SELECT count(*) FROM (SELECT id FROM {source}) AS old"
        " WHERE NOT EXISTS (SELECT 1 FROM evidence WHERE evidence.id = old.id)"
    )


def runs_of(source: str) -> str:
    """Entries of the records of ``source`` that follow on each other: chain, the first and the last
    of each run, and the link of the last one."""
    return f"""
SELECT runs.chain, runs.first, runs.last, evidence.link FROM (
  SELECT chain, min(seq) AS first, max(seq) AS last FROM (
    SELECT chain, seq, seq - row_number() OVER (PARTITION BY chain ORDER BY seq) AS run
    FROM evidence WHERE id IN (SELECT id FROM {source})
  ) AS numbered GROUP BY chain, run
) AS runs JOIN evidence ON evidence.chain = runs.chain AND evidence.seq = runs.last
ORDER BY runs.chain, runs.first
"""


def drop_entries(source: str) -> str:
    return f"DELETE FROM evidence WHERE id IN (SELECT id FROM {source})"


ROWS_AT_ONCE = (125, 25, 5, 1)
"""Rows in one INSERT: each statement gives up the interpreter lock and has to win it back.

A few fixed sizes, so that each is compiled once.
"""


@cache
def record_usage(rows: int, told: bool = False) -> str:
    """Insert ``rows`` usage rows at once; one whose id is there already is left as it was. Gives
    those that were not, as they are stored, if they are to be ``told``."""
    values = ", ".join([_ROW] * rows)
    returning = f" RETURNING {_COLUMNS}" if told else ""
    return (
        f"INSERT INTO usage ({_COLUMNS}, summed) VALUES {values}"
        f" ON CONFLICT (id) DO NOTHING{returning}"
    )


@cache
def enter(rows: int) -> str:
    """Insert ``rows`` entries of evidence at once. What stands in the place of one has no right to;
    but usage is not given up for that."""
    values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO evidence ({_ENTRY}) VALUES {values} ON CONFLICT (chain, seq) DO NOTHING"


def rate_text(rate: Rate | None) -> str | None:
    """A rate as its column holds it: amount/seconds."""
    return None if rate is None else f"{rate.amount}/{rate.seconds}"


def rate_of(text: str | None) -> Rate | None:
    """The rate that `rate_text` wrote."""
    if text is None:
        return None
    amount, _, seconds = text.partition("/")
    return Rate(int(amount), float(seconds))

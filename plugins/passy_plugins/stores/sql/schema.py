"""The tables, as SQLAlchemy knows them. A change here comes with a migration.

Times are whole milliseconds of Unix time, UTC. Rates are texts, amount/seconds (``60/60``).
Truth values in ``usage`` are 0 and 1, so that the flush can write them without conversion on any
driver.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

from passy_plugins.stores.sql.sums import AMOUNTS, COUNTS, DIMENSIONS, SPANS, SUBJECTS

metadata = MetaData()


def _limits() -> tuple[Column[str] | Column[int], ...]:
    """What is held on each level of tenancy; ``models`` is a JSON list."""
    return (
        Column("requests", Text),
        Column("tokens", Text),
        Column("concurrency", Integer),
        Column("models", Text),
    )


organisations = Table(
    "organisations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("status", Text, nullable=False, server_default="active"),
    *_limits(),
    Column("byok", Text, nullable=False, server_default="own_first"),
)

teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    *_limits(),
    Column("created", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, unique=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    *_limits(),
    Column("created", BigInteger, nullable=False),
)
"""Keys name their user by ``user_id``, which may be one that only another service knows."""

members = Table(
    "members",
    metadata,
    Column("organisation", Text, ForeignKey("organisations.id"), primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True, index=True),
    Column("role", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("shown", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("email", Text),
    Column("description", Text, nullable=False),
    Column("organisation", Text, ForeignKey("organisations.id"), index=True),
    Column("user_id", Text, index=True),
    *_limits(),
    Column("is_test", Boolean, nullable=False),
    Column("is_trial", Boolean, nullable=False),
    Column("expires", BigInteger),
    Column("disabled", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("team", Text, ForeignKey("teams.id"), index=True),
    Column("tags", Text, nullable=False, server_default=""),
    Column("networks", Text),
    Column("upstreams", Text),
    Column("old_digest", LargeBinary),
    Column("old_until", BigInteger),
    Column("deleted", BigInteger),
    Column("created_by", Text),
    Index("ix_keys_old_digest", "old_digest", unique=True),
)
"""``old_digest`` is good until ``old_until``: of the key before it was rolled. A deleted key stays
for the names in the books."""

budgets = Table(
    "budgets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("unit", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("period", Text, nullable=False),
    Column("hard", Boolean, nullable=False),
    Column("alerts", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("ix_budgets_subject", "subject", "kind"),
)
"""``subject`` is the id of the key, user, team or organisation that ``kind`` says."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), index=True),
    Column("url", Text, nullable=False),
    Column("sealed", Text, nullable=False),
    Column("events", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""Without an organisation it is the operator's, and is told of everything."""

alerts_sent = Table(
    "alerts_sent",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("window", Text, primary_key=True),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("sent", BigInteger),
)
"""``at`` somebody began to tell it, and ``sent`` it was told."""

changes = Table(
    "changes",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("at", BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)
"""What was edited, for workers that nobody tells."""

custom_providers = Table(
    "custom_providers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("models", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, ForeignKey("organisations.id"), nullable=False, index=True),
    Column("upstream", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("shown", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("sealed", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""``upstream`` is the name of a shared one or the id of a custom provider. ``version`` grows with
each new secret, and so does what ``sealed`` is bound to; see ``sealed.py``."""

switches = Table(
    "switches",
    metadata,
    Column("model", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("switched_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Targets of aliases that are ``pinned`` or ``disabled``, whatever the configuration says."""

set_prices = Table(
    "set_prices",
    metadata,
    Column("target", Text, primary_key=True),
    Column("rates", Text, nullable=False),
    Column("set_by", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""What people have set prices to; ``rates`` is JSON, see `SetPrice`."""

usage = Table(
    "usage",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("key_id", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("upstream_model", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("streamed", SmallInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("cache_write", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("audio_input", BigInteger, nullable=False),
    Column("audio_output", BigInteger, nullable=False),
    Column("estimated", SmallInteger, nullable=False),
    Column("cost_nanos", BigInteger),
    Column("price", Text, nullable=False),
    Column("first_ms", Integer, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("attempts", Text, nullable=False),
    Column("team", Text, nullable=False, server_default=""),
    Column("user_id", Text, nullable=False, server_default=""),
    Column("tags", Text, nullable=False, server_default=""),
    Column("summed", SmallInteger, nullable=False, server_default="0"),
)
Index(
    "ix_usage_summed_at",
    usage.c.summed,
    usage.c.at,
    sqlite_where=text("summed = 0"),
    postgresql_where=text("summed = 0"),
)

# Partial: an exchange without a key or a team is never looked for by one, and each index
# entry at a random place costs as much as half the row.
for column in ("key_id", "organisation", "team", "user_id"):
    named = text(f"{column} <> ''")
    Index(
        f"ix_usage_{column}_at",
        usage.c[column],
        usage.c.at,
        sqlite_where=named,
        postgresql_where=named,
    )


def _sums(name: str) -> Table:
    """See ``sums.py``; on PostgreSQL the primary key is an index on a digest."""
    table = Table(
        name,
        metadata,
        Column("start", BigInteger, primary_key=True, autoincrement=False),
        *(
            Column(dimension, Integer if dimension == "status" else Text, primary_key=True)
            for dimension in DIMENSIONS
        ),
        *(Column(count, BigInteger, nullable=False) for count in (*COUNTS, *AMOUNTS)),
        sqlite_with_rowid=False,
    )
    for column in SUBJECTS.values():
        named = text(f"{column} <> ''")
        Index(
            f"ix_{name}_{column}_start",
            table.c[column],
            table.c.start,
            sqlite_where=named,
            postgresql_where=named,
        )
    return table


usage_hours, usage_days = (_sums(name) for name in SPANS)

evidence = Table(
    "evidence",
    metadata,
    Column("chain", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("upstream", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("modified_by", Text, nullable=False),
    Column("link", Text, nullable=False),
)
"""See ``evidence.py``."""

marks = Table(
    "marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""Facts about the database itself, such as which pepper its digests were made with."""

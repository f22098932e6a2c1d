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
    Float,
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

metadata = MetaData()

organisations = Table(
    "organisations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
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
    Column("requests", Text),
    Column("tokens", Text),
    Column("concurrency", Integer),
    Column("models", Text),
    Column("usage_limit", Float),
    Column("is_test", Boolean, nullable=False),
    Column("is_trial", Boolean, nullable=False),
    Column("expires", BigInteger),
    Column("disabled", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
)

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
)

# Partial: an exchange without a key or an organisation is never looked for by one, and each index
# entry at a random place costs as much as half the row.
for column in ("key_id", "organisation"):
    named = text(f"{column} <> ''")
    Index(
        f"ix_usage_{column}_at",
        usage.c[column],
        usage.c.at,
        sqlite_where=named,
        postgresql_where=named,
    )

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

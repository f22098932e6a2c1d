"""The portal's own tables, beside those of the store. A change here comes with a migration.

Times are whole milliseconds of Unix time, UTC. What lets somebody in is kept as a SHA-256 digest.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

passwords = Table(
    "portal_passwords",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("hash", Text, nullable=False),
    Column("changed", BigInteger, nullable=False),
)

sessions = Table(
    "portal_sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("user_id", Text, nullable=False, index=True),
    Column("organisation", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("seen", BigInteger, nullable=False),
    Column("agent", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("second", Integer, nullable=False, server_default="0"),
    Column("proven", BigInteger),
)
"""``id`` names a session to its owner and lets nobody in; ``second`` is 1 where a second factor was
shown; ``proven`` is until when they have just signed in once more with their provider."""

tokens = Table(
    "portal_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("organisation", Text, nullable=False, index=True),
    Column("email", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
)
"""``kind`` is ``first``, for the first owner, ``invitation``, ``reset`` of a password, ``mailed``
for one that only its user has seen (with ``-all`` the second factor goes, too), or ``second``: of
who has shown their password, but not yet a second factor. Whom the last three are of stands in
``made_by``."""

totp = Table(
    "portal_totp",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("confirmed", BigInteger),
    Column("step", BigInteger, nullable=False),
)
"""A user's second factor. ``step`` is the last period whose code was used; ``owner`` is for who
wraps all secrets under another key, see ``rotation.py`` of the store."""

recovery = Table(
    "portal_recovery",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
)

rules = Table(
    "portal_rules",
    metadata,
    Column("organisation", Text, primary_key=True),
    Column("second_factor", Integer, nullable=False),
)
"""What an organisation asks of its members: 1 where they have to have a second factor."""

identities = Table(
    "portal_identities",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("user_id", Text, nullable=False, index=True),
    Column("created", BigInteger, nullable=False),
)
"""Who somebody is at an OpenID provider."""

attempts = Table(
    "portal_attempts",
    metadata,
    Column("subject", LargeBinary, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
)
"""Who failed to sign in, and when last: digests of accounts and of addresses."""

audit = Table(
    "portal_audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("link", Text, nullable=False),
    Index("ix_portal_audit_organisation_seq", "organisation", "seq"),
)
"""See ``audit.py``."""

team_members = Table(
    "portal_team_members",
    metadata,
    Column("organisation", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("team", Text, nullable=False, index=True),
)
"""See ``placing.py``."""

saved_views = Table(
    "portal_saved_views",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("organisation", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("ix_portal_saved_views_user_id_organisation", "user_id", "organisation"),
)
"""Questions that somebody asks of the requests of an organisation again and again: ``query`` is as
it stands in the address of the page."""

playground_keys = Table(
    "portal_playground_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("session", Text, nullable=False, index=True),
    Column("expires", BigInteger, nullable=False),
)
"""See ``playing.py``; ``session`` is the public id of one."""

prompts = Table(
    "portal_prompts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organisation", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Index("ix_portal_prompts_organisation_changed", "organisation", "changed"),
)
"""See ``prompts.py``."""

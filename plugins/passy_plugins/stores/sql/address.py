"""URLs of PostgreSQL databases, of which no message may repeat the password."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit

SCHEMES = ("postgresql", "postgres")
WRITTEN = "postgresql://user:password@host:5432/name"

PASSED_ON = (
    *("host", "port", "user", "password", "dbname", "database", "passfile"),
    *("service", "servicefile", "application_name", "options", "target_session_attrs"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname"),
)
LEFT_OUT = (
    *("channel_binding", "connect_timeout", "gssencmode", "keepalives", "keepalives_count"),
    *("keepalives_idle", "keepalives_interval", "sslcompression", "sslnegotiation", "sslsni"),
    *("tcp_user_timeout", "pgbouncer"),
)
"""Other drivers' own parameters: here they would be taken for settings of the server."""


def address(url: str) -> str:
    """``url`` as asyncpg takes it. ValueError, which repeats nothing of it, when it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(
            f"write {WRITTEN}; in a password @ : / ? # are written %40 %3A %2F %3F %23"
        ) from None
    if parts.fragment or parts.scheme not in SCHEMES:
        raise ValueError(f"write {WRITTEN}")
    unknown = sorted({name for name, _ in given} - {*PASSED_ON, *LEFT_OUT})
    if unknown:
        raise ValueError(f"unknown parameter '{unknown[0][:40]}' behind {WRITTEN}")
    kept = [(name, value) for name, value in given if name in PASSED_ON]
    return parts._replace(query=urlencode(kept, quote_via=quote)).geturl()


def shown(url: str) -> str:
    """Host, port and name of the database."""
    parts = urlsplit(address(url))
    said = dict(parse_qsl(parts.query))
    host = parts.netloc.rpartition("@")[2] or said.get("host", "")
    name = parts.path or "/" + said.get("dbname", said.get("database", ""))
    return f"postgresql://{host}{name}"

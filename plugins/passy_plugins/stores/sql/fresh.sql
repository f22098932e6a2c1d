CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE organisations (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE keys (
    id TEXT NOT NULL,
    digest BLOB NOT NULL,
    shown TEXT NOT NULL,
    name TEXT NOT NULL,
    email TEXT,
    description TEXT NOT NULL,
    organisation TEXT,
    user_id TEXT,
    requests TEXT,
    tokens TEXT,
    concurrency INTEGER,
    models TEXT,
    usage_limit FLOAT,
    is_test BOOLEAN NOT NULL,
    is_trial BOOLEAN NOT NULL,
    expires BIGINT,
    disabled BOOLEAN NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (digest),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

CREATE INDEX ix_keys_organisation ON keys (organisation);

CREATE INDEX ix_keys_user_id ON keys (user_id);

CREATE TABLE custom_providers (
    id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    name TEXT NOT NULL,
    dialect TEXT NOT NULL,
    url TEXT NOT NULL,
    models TEXT NOT NULL,
    status TEXT NOT NULL,
    priority INTEGER NOT NULL,
    version INTEGER NOT NULL,
    sealed TEXT,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

CREATE INDEX ix_custom_providers_organisation ON custom_providers (organisation);

CREATE TABLE credentials (
    organisation TEXT NOT NULL,
    upstream TEXT NOT NULL,
    sealed TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (organisation, upstream),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

CREATE TABLE usage (
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER NOT NULL,
    streamed SMALLINT NOT NULL,
    input BIGINT NOT NULL,
    output BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    cache_write BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    audio_input BIGINT NOT NULL,
    audio_output BIGINT NOT NULL,
    estimated SMALLINT NOT NULL,
    cost_nanos BIGINT,
    price TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    attempts TEXT NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_usage_at ON usage (at);

CREATE INDEX ix_usage_key_id_at ON usage (key_id, at) WHERE key_id <> '';

CREATE INDEX ix_usage_organisation_at ON usage (organisation, at) WHERE organisation <> '';

CREATE TABLE marks (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
);

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING version_num;

CREATE TABLE evidence (
    chain BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    record TEXT NOT NULL,
    upstream TEXT NOT NULL,
    client TEXT NOT NULL,
    modified_by TEXT NOT NULL,
    link TEXT NOT NULL,
    PRIMARY KEY (chain, seq)
);

CREATE INDEX ix_evidence_id ON evidence (id);

UPDATE alembic_version SET version_num='0002' WHERE alembic_version.version_num = '0001';

ALTER TABLE credentials RENAME TO earlier_credentials;

CREATE TABLE credentials (
    id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    upstream TEXT NOT NULL,
    name TEXT NOT NULL,
    priority INTEGER NOT NULL,
    status TEXT NOT NULL,
    shown TEXT NOT NULL,
    version INTEGER NOT NULL,
    sealed TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

DROP TABLE earlier_credentials;

ALTER TABLE custom_providers DROP COLUMN sealed;

CREATE INDEX ix_credentials_organisation ON credentials (organisation);

UPDATE custom_providers SET status = 'disabled' WHERE status <> 'active';

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0002'

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
    digest BYTEA NOT NULL,
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

INSERT INTO alembic_version (version_num) VALUES ('0001') RETURNING alembic_version.version_num;

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

ALTER TABLE organisations ADD COLUMN status TEXT DEFAULT 'active' NOT NULL;

ALTER TABLE organisations ADD COLUMN requests TEXT;

ALTER TABLE organisations ADD COLUMN tokens TEXT;

ALTER TABLE organisations ADD COLUMN concurrency INTEGER;

ALTER TABLE organisations ADD COLUMN models TEXT;

ALTER TABLE organisations ADD COLUMN byok TEXT DEFAULT 'own_first' NOT NULL;

CREATE TABLE teams (
    id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    requests TEXT,
    tokens TEXT,
    concurrency INTEGER,
    models TEXT,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

CREATE INDEX ix_teams_organisation ON teams (organisation);

CREATE TABLE users (
    id TEXT NOT NULL,
    email TEXT,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    requests TEXT,
    tokens TEXT,
    concurrency INTEGER,
    models TEXT,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (email)
);

CREATE TABLE members (
    organisation TEXT NOT NULL,
    user_id TEXT NOT NULL,
    role TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (organisation, user_id),
    FOREIGN KEY(organisation) REFERENCES organisations (id),
    FOREIGN KEY(user_id) REFERENCES users (id)
);

CREATE INDEX ix_members_user_id ON members (user_id);

ALTER TABLE keys ADD COLUMN team TEXT REFERENCES teams (id);

ALTER TABLE keys ADD COLUMN tags TEXT DEFAULT '' NOT NULL;

ALTER TABLE keys ADD COLUMN networks TEXT;

ALTER TABLE keys ADD COLUMN upstreams TEXT;

ALTER TABLE keys ADD COLUMN old_digest BYTEA;

ALTER TABLE keys ADD COLUMN old_until BIGINT;

ALTER TABLE keys ADD COLUMN deleted BIGINT;

ALTER TABLE keys ADD COLUMN created_by TEXT;

CREATE INDEX ix_keys_team ON keys (team);

CREATE UNIQUE INDEX ix_keys_old_digest ON keys (old_digest);

CREATE TABLE budgets (
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    unit TEXT NOT NULL,
    amount BIGINT NOT NULL,
    period TEXT NOT NULL,
    hard BOOLEAN NOT NULL,
    alerts TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_budgets_subject ON budgets (subject, kind);

INSERT INTO budgets (id, kind, subject, unit, amount, period, hard, alerts, created) SELECT 'bud_' || id, 'key', id, 'usd', CAST(round(usage_limit * 1000000000) AS BIGINT), 'total', true, '[]', created FROM keys WHERE usage_limit IS NOT NULL;

ALTER TABLE keys DROP COLUMN usage_limit;

CREATE TABLE webhooks (
    id TEXT NOT NULL,
    organisation TEXT,
    url TEXT NOT NULL,
    sealed TEXT NOT NULL,
    events TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(organisation) REFERENCES organisations (id)
);

CREATE INDEX ix_webhooks_organisation ON webhooks (organisation);

CREATE TABLE alerts_sent (
    budget TEXT NOT NULL,
    "window" TEXT NOT NULL,
    percent INTEGER NOT NULL,
    at BIGINT NOT NULL,
    sent BIGINT,
    PRIMARY KEY (budget, "window", percent)
);

ALTER TABLE usage ADD COLUMN team TEXT DEFAULT '' NOT NULL;

ALTER TABLE usage ADD COLUMN user_id TEXT DEFAULT '' NOT NULL;

ALTER TABLE usage ADD COLUMN tags TEXT DEFAULT '' NOT NULL;

CREATE INDEX ix_usage_team_at ON usage (team, at) WHERE team <> '';

CREATE INDEX ix_usage_user_id_at ON usage (user_id, at) WHERE user_id <> '';

CREATE TABLE changes (
    seq BIGSERIAL NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (seq)
);

CREATE INDEX ix_changes_at ON changes (at);

UPDATE alembic_version SET version_num='0003' WHERE alembic_version.version_num = '0002';

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

UPDATE alembic_version SET version_num='0004' WHERE alembic_version.version_num = '0003';

CREATE TABLE usage_hours (
    start BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    team TEXT NOT NULL,
    user_id TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    tags TEXT NOT NULL,
    route TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    price TEXT NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER NOT NULL,
    requests BIGINT NOT NULL,
    streamed BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    saved BIGINT NOT NULL,
    within_10 BIGINT NOT NULL,
    within_25 BIGINT NOT NULL,
    within_50 BIGINT NOT NULL,
    within_100 BIGINT NOT NULL,
    within_150 BIGINT NOT NULL,
    within_250 BIGINT NOT NULL,
    within_400 BIGINT NOT NULL,
    within_600 BIGINT NOT NULL,
    within_1000 BIGINT NOT NULL,
    within_1500 BIGINT NOT NULL,
    within_2500 BIGINT NOT NULL,
    within_4000 BIGINT NOT NULL,
    within_6000 BIGINT NOT NULL,
    within_10000 BIGINT NOT NULL,
    within_30000 BIGINT NOT NULL,
    input BIGINT NOT NULL,
    output BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    cache_write BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    audio_input BIGINT NOT NULL,
    audio_output BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    first_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    PRIMARY KEY (start, key_id, organisation, team, user_id, model, upstream, tags, route, upstream_model, price, outcome, status)
);

CREATE INDEX ix_usage_hours_key_id_start ON usage_hours (key_id, start) WHERE key_id <> '';

CREATE INDEX ix_usage_hours_organisation_start ON usage_hours (organisation, start) WHERE organisation <> '';

CREATE INDEX ix_usage_hours_team_start ON usage_hours (team, start) WHERE team <> '';

CREATE INDEX ix_usage_hours_user_id_start ON usage_hours (user_id, start) WHERE user_id <> '';

CREATE TABLE usage_days (
    start BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    organisation TEXT NOT NULL,
    team TEXT NOT NULL,
    user_id TEXT NOT NULL,
    model TEXT NOT NULL,
    upstream TEXT NOT NULL,
    tags TEXT NOT NULL,
    route TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    price TEXT NOT NULL,
    outcome TEXT NOT NULL,
    status INTEGER NOT NULL,
    requests BIGINT NOT NULL,
    streamed BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    saved BIGINT NOT NULL,
    within_10 BIGINT NOT NULL,
    within_25 BIGINT NOT NULL,
    within_50 BIGINT NOT NULL,
    within_100 BIGINT NOT NULL,
    within_150 BIGINT NOT NULL,
    within_250 BIGINT NOT NULL,
    within_400 BIGINT NOT NULL,
    within_600 BIGINT NOT NULL,
    within_1000 BIGINT NOT NULL,
    within_1500 BIGINT NOT NULL,
    within_2500 BIGINT NOT NULL,
    within_4000 BIGINT NOT NULL,
    within_6000 BIGINT NOT NULL,
    within_10000 BIGINT NOT NULL,
    within_30000 BIGINT NOT NULL,
    input BIGINT NOT NULL,
    output BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    cache_write BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    audio_input BIGINT NOT NULL,
    audio_output BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    first_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    PRIMARY KEY (start, key_id, organisation, team, user_id, model, upstream, tags, route, upstream_model, price, outcome, status)
);

CREATE INDEX ix_usage_days_key_id_start ON usage_days (key_id, start) WHERE key_id <> '';

CREATE INDEX ix_usage_days_organisation_start ON usage_days (organisation, start) WHERE organisation <> '';

CREATE INDEX ix_usage_days_team_start ON usage_days (team, start) WHERE team <> '';

CREATE INDEX ix_usage_days_user_id_start ON usage_days (user_id, start) WHERE user_id <> '';

CREATE TABLE parts (LIKE usage INCLUDING DEFAULTS, summed SMALLINT DEFAULT 0 NOT NULL) PARTITION BY RANGE (at);

DO $$
DECLARE day BIGINT;
BEGIN
  FOR day IN
    SELECT at / 86400000 FROM usage
    UNION SELECT generate_series(-1, 6) + extract(epoch FROM now())::bigint / 86400
  LOOP
    EXECUTE format(
      'CREATE TABLE IF NOT EXISTS %I PARTITION OF parts FOR VALUES FROM (%s) TO (%s)',
      'usage_' || to_char(DATE '1970-01-01' + day::int, 'YYYYMMDD'),
      day * 86400000, (day + 1) * 86400000
    );
  END LOOP;
END $$;

SELECT set_config('passy.before', pg_snapshot_xmin(pg_current_snapshot())::xid::text, true);

INSERT INTO parts SELECT *, 0 FROM usage;

ALTER TABLE parts ADD CONSTRAINT parts_pkey PRIMARY KEY (id, at);

CREATE INDEX parts_at ON parts (at);

CREATE INDEX parts_key_id_at ON parts (key_id, at) WHERE key_id <> '';

CREATE INDEX parts_organisation_at ON parts (organisation, at) WHERE organisation <> '';

CREATE INDEX parts_team_at ON parts (team, at) WHERE team <> '';

CREATE INDEX parts_user_id_at ON parts (user_id, at) WHERE user_id <> '';

CREATE INDEX parts_summed_at ON parts (summed, at) WHERE summed = 0;

LOCK TABLE usage IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE day BIGINT;
BEGIN
  FOR day IN
    SELECT at / 86400000 FROM usage
    UNION SELECT generate_series(-1, 6) + extract(epoch FROM now())::bigint / 86400
  LOOP
    EXECUTE format(
      'CREATE TABLE IF NOT EXISTS %I PARTITION OF parts FOR VALUES FROM (%s) TO (%s)',
      'usage_' || to_char(DATE '1970-01-01' + day::int, 'YYYYMMDD'),
      day * 86400000, (day + 1) * 86400000
    );
  END LOOP;
END $$;

INSERT INTO parts
SELECT *, 0 FROM usage WHERE age(xmin) <= age(current_setting('passy.before')::xid)
ON CONFLICT (id, at) DO UPDATE SET cost_nanos = excluded.cost_nanos, price = excluded.price;

DROP TABLE usage;

ALTER TABLE parts RENAME TO usage;

ALTER INDEX parts_pkey RENAME TO usage_pkey;

ALTER INDEX parts_at RENAME TO ix_usage_at;

ALTER INDEX parts_key_id_at RENAME TO ix_usage_key_id_at;

ALTER INDEX parts_organisation_at RENAME TO ix_usage_organisation_at;

ALTER INDEX parts_team_at RENAME TO ix_usage_team_at;

ALTER INDEX parts_user_id_at RENAME TO ix_usage_user_id_at;

ALTER INDEX parts_summed_at RENAME TO ix_usage_summed_at;

UPDATE alembic_version SET version_num='0005' WHERE alembic_version.version_num = '0004';

CREATE TABLE arrivals (
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    at BIGINT NOT NULL,
    ids TEXT[] NOT NULL,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL
);

CREATE INDEX ix_arrivals_xid ON arrivals (xid);

UPDATE alembic_version SET version_num='0006' WHERE alembic_version.version_num = '0005';

CREATE TABLE switches (
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    state TEXT NOT NULL,
    switched_by TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (model, target)
);

UPDATE alembic_version SET version_num='0007' WHERE alembic_version.version_num = '0006';

CREATE TABLE set_prices (
    target TEXT NOT NULL,
    rates TEXT NOT NULL,
    set_by TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (target)
);

UPDATE alembic_version SET version_num='0008' WHERE alembic_version.version_num = '0007';

CREATE UNIQUE INDEX uq_usage_hours ON usage_hours (start, md5(quote_literal(key_id) || ',' || quote_literal(organisation) || ',' || quote_literal(team) || ',' || quote_literal(user_id) || ',' || quote_literal(model) || ',' || quote_literal(upstream) || ',' || quote_literal(tags) || ',' || quote_literal(route) || ',' || quote_literal(upstream_model) || ',' || quote_literal(price) || ',' || quote_literal(outcome) || ',' || quote_literal(status::text)));

ALTER TABLE usage_hours DROP CONSTRAINT usage_hours_pkey;

CREATE UNIQUE INDEX uq_usage_days ON usage_days (start, md5(quote_literal(key_id) || ',' || quote_literal(organisation) || ',' || quote_literal(team) || ',' || quote_literal(user_id) || ',' || quote_literal(model) || ',' || quote_literal(upstream) || ',' || quote_literal(tags) || ',' || quote_literal(route) || ',' || quote_literal(upstream_model) || ',' || quote_literal(price) || ',' || quote_literal(outcome) || ',' || quote_literal(status::text)));

ALTER TABLE usage_days DROP CONSTRAINT usage_days_pkey;

UPDATE alembic_version SET version_num='0009' WHERE alembic_version.version_num = '0008';

-- walhook's tables, functions and views, and the publication that it follows.
--
-- Apply:     psql -v ON_ERROR_STOP=1 -f schema.sql     (walhook init, or a first walhook run, does the same)
-- Where:     the first schema of the search_path; the tables belong to the role that applies the file.
-- Servers:   PostgreSQL 14 to 18. No extension, no superuser. The role needs CREATE on the schema, and CREATE on the
--            database for the publication.
-- Again:     the file can be applied any number of times, by several at once, while applications insert. It keeps all
--            data, and on a prepared database it takes no lock that an INSERT, an UPDATE or a SELECT on a table waits for.
-- Layout:    1 types and ids · 2 event types · 3 endpoints and secrets · 4 outbox · 5 deliveries · 6 walhook's own state
--            7 partitions · 8 functions for operators · 9 views · 10 publication · 11 version
--
-- What an application's role needs:    GRANT INSERT, SELECT (id) ON webhook_outbox TO app;
-- What a reader's role needs:          GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_endpoints, … TO reader;
-- Never grant webhook_secrets to either.

BEGIN;

-- One at a time: who comes second waits for the first to be done. For everything else half a second is the limit.
SET LOCAL lock_timeout = 0;
DO $do$ BEGIN PERFORM pg_advisory_xact_lock(hashtextextended('walhook schema', 0)); END $do$;
SET LOCAL lock_timeout = '500ms';
SET LOCAL client_min_messages = warning;

-- Every function of this file says SET search_path FROM CURRENT: it sees this schema and pg_catalog, and looks into
-- pg_temp last, so that no caller's search_path or temporary table can stand in for one of our names.
DO $do$
DECLARE
    have int;
BEGIN
    IF current_schema() IS NULL THEN
        RAISE EXCEPTION 'no schema to install into: search_path "%" names no schema that exists', current_setting('search_path')
            USING ERRCODE = 'invalid_schema_name', HINT = 'CREATE SCHEMA, or set search_path to one that exists.';
    END IF;
    PERFORM set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

    IF EXISTS (SELECT FROM pg_class c
               WHERE c.relnamespace = quote_ident(current_schema())::regnamespace AND c.relkind <> 'p'
                 AND c.relname IN ('webhook_outbox', 'webhook_deliveries')) THEN
        RAISE EXCEPTION 'schema % has a webhook_outbox or webhook_deliveries that is not walhook''s', current_schema()
            USING ERRCODE = 'duplicate_table', HINT = 'Rename that table, or give walhook a schema of its own by search_path.';
    END IF;

    IF to_regprocedure('webhook_schema_version()') IS NOT NULL THEN
        EXECUTE 'SELECT webhook_schema_version()' INTO have;
        IF have > 4 THEN
            RAISE EXCEPTION 'this schema is version %, made by a newer walhook; this file is version 4', have
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use the newer walhook: its schema.sql is the one to apply.';
        END IF;
    END IF;
END $do$;


-- ─── 1. Ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────
-- Bodies of the form RETURN … are bound when they are created: no search_path can change what they mean.

CREATE OR REPLACE FUNCTION webhook_uuidv7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    -- A random UUIDv4 whose first 48 bits become the milliseconds and whose version 4 (0100) becomes 7 (0111).
    RETURN encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid;
COMMENT ON FUNCTION webhook_uuidv7() IS
    'A new UUIDv7 (RFC 9562): the clock in milliseconds, then 74 random bits. Default of webhook_outbox.id.';

CREATE OR REPLACE FUNCTION webhook_uuid_at(at timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN encode(substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3)
        || '\x00000000000000000000'::bytea, 'hex')::uuid;
COMMENT ON FUNCTION webhook_uuid_at(timestamptz) IS
    'The smallest id of an instant: ids made since a time are id >= webhook_uuid_at(time). Such a range prunes partitions.';

CREATE OR REPLACE FUNCTION webhook_uuid_time(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp(('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0);
COMMENT ON FUNCTION webhook_uuid_time(uuid) IS 'The time in a UUIDv7, in milliseconds.';

CREATE OR REPLACE FUNCTION webhook_delivery_id(event_id uuid, endpoint_id uuid) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    -- The event's 48 bits of time, then SHA-256(event ‖ endpoint); bits 55..52 say version 7, bits 71..70 variant 10.
    RETURN encode(set_bit(set_bit(set_bit(set_bit(set_bit(set_bit(
        substring(uuid_send(event_id) FROM 1 FOR 6)
            || substring(sha256(uuid_send(event_id) || uuid_send(endpoint_id)) FROM 1 FOR 10),
        55, 0), 54, 1), 53, 1), 52, 1), 71, 1), 70, 0), 'hex')::uuid;
COMMENT ON FUNCTION webhook_delivery_id(uuid, uuid) IS
    'The id of the delivery of an event to an endpoint: a pure function, the same in every attempt, after every crash. '
    'Sent as X-Webhook-Delivery-ID; walhook computes the same in Go.';


-- ─── 2. Event types ─────────────────────────────────────────────────────────────────────────────────────────────────

CREATE OR REPLACE FUNCTION webhook_event_patterns(name text, category text) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY[name]
        || CASE WHEN category = 'webhook' THEN '{}'::text[] ELSE '{*}'::text[] END
        || ARRAY(SELECT array_to_string((string_to_array(name, '.'))[1:n], '.') || '.*'
                 FROM generate_series(1, cardinality(string_to_array(name, '.')) - 1) AS n);
COMMENT ON FUNCTION webhook_event_patterns(text, text) IS
    'What an endpoint may list in event_types to get this type: its name, name.* of every part before a dot, and * unless it is walhook''s own.';

CREATE TABLE IF NOT EXISTS webhook_event_types (
    name        text PRIMARY KEY,
    category    text NOT NULL,
    description text NOT NULL DEFAULT '',
    patterns    text[] NOT NULL GENERATED ALWAYS AS (webhook_event_patterns(name, category)) STORED,
    CONSTRAINT webhook_event_types_name_is_dotted_words
        CHECK (name ~ '^[A-Za-z0-9_:/-]+(\.[A-Za-z0-9_:/-]+)*$' AND length(name) <= 128),
    CONSTRAINT webhook_event_types_category_not_empty CHECK (category <> ''),
    CONSTRAINT webhook_event_types_names_of_walhook CHECK (NOT starts_with(name, 'webhook.') OR category = 'webhook')
);
COMMENT ON TABLE webhook_event_types IS
    'The event types that webhook_outbox accepts. Add your own: INSERT INTO webhook_event_types (name, category) VALUES (''invoice.paid'', ''invoice'').';
COMMENT ON COLUMN webhook_event_types.name IS 'What the application writes into webhook_outbox.event_type: words joined by dots.';
COMMENT ON COLUMN webhook_event_types.category IS 'For grouping. The category webhook is special: * does not match its types, an endpoint has to name them.';
COMMENT ON COLUMN webhook_event_types.description IS 'For people.';
COMMENT ON COLUMN webhook_event_types.patterns IS 'Every entry of webhook_endpoints.event_types that matches this type. Computed.';

INSERT INTO webhook_event_types (name, category, description) VALUES
    ('org.created',                'organization', 'An organization was created'),
    ('org.updated',                'organization', 'An organization was changed'),
    ('org.deleted',                'organization', 'An organization was deleted'),
    ('org.member.invited',         'organization', 'Somebody was invited to an organization'),
    ('org.member.added',           'organization', 'Somebody joined an organization'),
    ('org.member.removed',         'organization', 'Somebody left or was removed from an organization'),
    ('org.member.role_changed',    'organization', 'A member of an organization got another role'),
    ('payment.succeeded',          'payment',      'A payment went through'),
    ('payment.failed',             'payment',      'A payment was declined or failed'),
    ('payment.refunded',           'payment',      'A payment was paid back'),
    ('subscription.created',       'subscription', 'A subscription began'),
    ('subscription.updated',       'subscription', 'A subscription was changed'),
    ('subscription.cancelled',     'subscription', 'A subscription was cancelled'),
    ('subscription.expired',       'subscription', 'A subscription ran out'),
    ('subscription.renewed',       'subscription', 'A subscription was renewed'),
    ('api_key.created',            'api_key',      'An API key was created'),
    ('api_key.revoked',            'api_key',      'An API key was revoked'),
    ('api_key.rotated',            'api_key',      'An API key was replaced'),
    ('security.2fa_enabled',       'security',     'Two-factor authentication was switched on'),
    ('security.2fa_disabled',      'security',     'Two-factor authentication was switched off'),
    ('security.password_changed',  'security',     'A password was changed'),
    ('security.login_failed',      'security',     'A login failed'),
    ('webhook.test',               'webhook',      'A test event, see webhook_send_test'),
    ('webhook.endpoint.disabled',  'webhook',      'walhook disabled an endpoint'),
    ('webhook.delivery.exhausted', 'webhook',      'The last attempt of a delivery failed')
ON CONFLICT (name) DO NOTHING;


-- ─── 3. Endpoints and secrets ───────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE IF NOT EXISTS webhook_endpoints (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text NOT NULL,
    url             text NOT NULL,
    event_types     text[] NOT NULL DEFAULT '{*}',
    description     text,
    headers         jsonb NOT NULL DEFAULT '{}',
    enabled         boolean NOT NULL DEFAULT true,
    disabled_at     timestamptz,
    disabled_reason text,
    max_in_flight   int,
    rate_per_second double precision,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_endpoints_max_in_flight_1_to_1000 CHECK (max_in_flight BETWEEN 1 AND 1000),
    CONSTRAINT webhook_endpoints_rate_per_second_positive CHECK (rate_per_second > 0 AND rate_per_second < 'infinity')
);
COMMENT ON TABLE webhook_endpoints IS
    'URLs that get an organization''s events. INSERT, UPDATE and DELETE are the API; a change is in force within a second of its commit.';
COMMENT ON COLUMN webhook_endpoints.id IS 'Made by the database. Part of every delivery id, so it cannot change.';
COMMENT ON COLUMN webhook_endpoints.organization_id IS 'Whose events it gets. It cannot change: make a new endpoint.';
COMMENT ON COLUMN webhook_endpoints.url IS 'http:// or https:// with a host; no user, no fragment, no blanks.';
COMMENT ON COLUMN webhook_endpoints.event_types IS 'Exact names, payment.* for every type that starts with payment., or * for all but walhook''s own (webhook.…).';
COMMENT ON COLUMN webhook_endpoints.description IS 'For people.';
COMMENT ON COLUMN webhook_endpoints.headers IS 'Extra request headers: a JSON object of name to text. At most 32, 4 KiB in all.';
COMMENT ON COLUMN webhook_endpoints.enabled IS 'false: no new event is owed to it, nothing is sent, and what was still owed is cancelled.';
COMMENT ON COLUMN webhook_endpoints.disabled_at IS 'Since when it is disabled. Kept by a trigger; null while enabled.';
COMMENT ON COLUMN webhook_endpoints.disabled_reason IS 'Why, where somebody or walhook said so; null while enabled.';
COMMENT ON COLUMN webhook_endpoints.max_in_flight IS 'Requests at one time, 1 to 1000. Null: WALHOOK_ENDPOINT_IN_FLIGHT.';
COMMENT ON COLUMN webhook_endpoints.rate_per_second IS
    'Requests per second; after a lull, what a tenth of a second allows may come at once. Null: no limit.';
COMMENT ON COLUMN webhook_endpoints.created_at IS 'When it was created.';
COMMENT ON COLUMN webhook_endpoints.updated_at IS 'When the row last changed. Kept by a trigger.';

CREATE TABLE IF NOT EXISTS webhook_secrets (
    id          bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
    secret      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    CONSTRAINT webhook_secrets_secret_16_to_256_printable_characters CHECK (
        CASE WHEN starts_with(secret, 'sealed:')
             THEN secret ~ '^sealed:v1:[A-Za-z0-9+/]+={0,2}$' AND length(secret) <= 1024
             ELSE secret ~ '^[\x20-\x7e]+$' AND length(secret) BETWEEN 16 AND 256 END)
);
COMMENT ON TABLE webhook_secrets IS
    'Signing secrets. Kept from the roles that read the rest. An endpoint with two live secrets is being rotated, see webhook_rotate_secret.';
COMMENT ON COLUMN webhook_secrets.id IS 'Of two live secrets with the same created_at, the smaller id is the older.';
COMMENT ON COLUMN webhook_secrets.endpoint_id IS 'The endpoint whose requests it signs. Secrets go with their endpoint.';
COMMENT ON COLUMN webhook_secrets.secret IS
    '16 to 256 printable ASCII characters: your own, or whsec_ and base64. sealed:v1:… where WALHOOK_SECRET_KEY seals secrets at rest.';
COMMENT ON COLUMN webhook_secrets.created_at IS 'The clock at INSERT: of two live secrets, the older one makes X-Webhook-Signature.';
COMMENT ON COLUMN webhook_secrets.expires_at IS 'Not used from then on. Null: for ever.';

CREATE OR REPLACE FUNCTION webhook_url_problem(url text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    parts text[];
BEGIN
    IF url IS NULL OR url = '' THEN RETURN 'it is empty'; END IF;
    IF length(url) > 2048 THEN RETURN 'it is longer than 2048 characters'; END IF;
    IF url !~ '^[\x21-\x7e]*$' THEN
        RETURN 'it holds a blank, a control character or a character beyond ASCII (percent-encode paths, write host names in punycode)';
    END IF;
    IF url !~* '^https?://' THEN RETURN 'it does not start with http:// or https://'; END IF;
    IF strpos(url, '#') > 0 THEN RETURN 'it has a fragment (#…), which is never sent'; END IF;
    IF url ~ '[\\"<>^`{|}]' OR url ~ '%(?![0-9A-Fa-f]{2})' THEN
        RETURN 'it holds a character that has to be percent-encoded, or a % that encodes nothing';
    END IF;
    -- scheme://authority, then host and port of the authority.
    parts := regexp_match(url, '^[^:]+://([^/?]*)');
    IF strpos(parts[1], '@') > 0 THEN RETURN 'it has a user or password before @ (use headers for credentials)'; END IF;
    parts := regexp_match(parts[1], '^(\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(:(.*))?$');
    IF parts IS NULL THEN RETURN 'its host cannot be read'; END IF;
    IF parts[1] IN ('', '[]') THEN RETURN 'it has no host'; END IF;
    IF starts_with(parts[1], '[') THEN
        BEGIN
            PERFORM btrim(parts[1], '[]')::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            RETURN 'its host is not an IPv6 address';
        END;
    ELSIF parts[1] !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$' OR length(parts[1]) > 253 THEN
        RETURN 'its host is not a host name or an IP address';
    END IF;
    IF parts[2] IS NOT NULL AND (parts[3] !~ '^[0-9]{1,5}$' OR parts[3]::int NOT BETWEEN 1 AND 65535) THEN
        RETURN 'its port is not a number from 1 to 65535';
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_url_problem(text) IS
    'What is wrong with an endpoint''s URL, or null. Which addresses may be dialled is decided when sending, by WALHOOK_ALLOW_….';

CREATE OR REPLACE FUNCTION webhook_headers_problem(headers jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    name text;
    value jsonb;
    count int := 0;
    bytes int := 0;
    seen text[] := '{}';
BEGIN
    IF headers IS NULL OR jsonb_typeof(headers) <> 'object' THEN RETURN 'they are not a JSON object of name to text'; END IF;
    FOR name, value IN SELECT h.key, h.value FROM jsonb_each(headers) AS h LOOP
        IF name !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]+$' THEN RETURN format('%s is not a header name', to_jsonb(name)); END IF;
        IF lower(name) = ANY (seen) THEN RETURN format('%s is there twice', name); END IF;
        IF lower(name) IN ('content-type', 'content-length', 'user-agent') OR name ~* '^(x-webhook|webhook)-' THEN
            RETURN format('%s is set by walhook', name);
        END IF;
        IF lower(name) IN ('host', 'connection', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade') OR name ~* '^proxy-' THEN
            RETURN format('%s belongs to the connection, not to the message', name);
        END IF;
        IF jsonb_typeof(value) <> 'string' THEN RETURN format('the value of %s is not text', name); END IF;
        IF value #>> '{}' ~ '[\x01-\x1f\x7f]' THEN RETURN format('the value of %s holds a control character or a line break', name); END IF;
        seen := seen || lower(name);
        count := count + 1;
        bytes := bytes + octet_length(name) + octet_length(value #>> '{}');
    END LOOP;
    IF count > 32 THEN RETURN 'there are more than 32'; END IF;
    IF bytes > 4096 THEN RETURN 'they are longer than 4 KiB in all'; END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_headers_problem(jsonb) IS 'What is wrong with an endpoint''s headers, or null.';

CREATE OR REPLACE FUNCTION webhook_endpoints_before_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $fn$
DECLARE
    is_new boolean := tg_op = 'INSERT';
    problem text;
BEGIN
    -- An UPDATE is held to the rules for what it changes, so that an old row can always be disabled.
    IF is_new AND (new.organization_id IS NULL OR btrim(new.organization_id) = '' OR octet_length(new.organization_id) > 512) THEN
        RAISE EXCEPTION 'webhook_endpoints.organization_id is null, empty or longer than 512 bytes'
            USING ERRCODE = 'check_violation', HINT = 'Give the id of the organization whose events this endpoint gets.';
    END IF;
    IF NOT is_new AND (new.id <> old.id OR new.organization_id IS DISTINCT FROM old.organization_id) THEN
        RAISE EXCEPTION 'webhook_endpoints.id and organization_id cannot be changed'
            USING ERRCODE = 'check_violation', HINT = 'Delete the endpoint and insert a new one: what is owed to the old one is cancelled.';
    END IF;

    IF is_new OR new.url IS DISTINCT FROM old.url THEN
        problem := webhook_url_problem(new.url);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.url is not usable: %', problem
                USING ERRCODE = 'check_violation', HINT = 'Give an absolute URL such as https://example.com/webhooks.';
        END IF;
    END IF;

    IF is_new OR new.headers IS DISTINCT FROM old.headers THEN
        problem := webhook_headers_problem(new.headers);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.headers are not usable: %', problem
                USING ERRCODE = 'check_violation', HINT = 'Give a JSON object of name to text, such as {"Authorization": "Bearer …"}, without headers of walhook or of the connection.';
        END IF;
    END IF;

    IF is_new OR new.event_types IS DISTINCT FROM old.event_types THEN
        IF new.event_types IS NULL OR cardinality(new.event_types) = 0 THEN
            RAISE EXCEPTION 'webhook_endpoints.event_types is empty'
                USING ERRCODE = 'check_violation', HINT = 'Use ''{*}'' for every type, or set enabled = false to get none.';
        END IF;
        SELECT coalesce(quote_literal(w.entry), 'a null entry') INTO problem
        FROM unnest(new.event_types) AS w(entry)
        WHERE w.entry IS DISTINCT FROM '*'
          AND NOT EXISTS (SELECT FROM webhook_event_types AS t WHERE w.entry = ANY (t.patterns))
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'webhook_endpoints.event_types: % matches nothing; known types: %', problem,
                (SELECT string_agg(t.name, ', ' ORDER BY t.name) FROM webhook_event_types AS t)
                USING ERRCODE = 'check_violation',
                      HINT = 'Use an exact name, a pattern such as payment.*, or *. A new type has to be in webhook_event_types first.';
        END IF;
    END IF;

    IF new.enabled THEN
        new.disabled_at := NULL;
        new.disabled_reason := NULL;
    ELSIF new.disabled_at IS NULL THEN
        new.disabled_at := now();
    END IF;
    IF NOT is_new THEN
        new.updated_at := clock_timestamp();
    END IF;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_before_write() IS
    'Trigger: refuses endpoints that could never be sent to, and keeps disabled_at, disabled_reason and updated_at.';

CREATE OR REPLACE FUNCTION webhook_new_secret() RETURNS text
    LANGUAGE sql VOLATILE PARALLEL SAFE
    -- 4 × 122 bits of the server's strong random source, folded into 32 bytes: no pgcrypto needed.
    RETURN 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
        || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64');
COMMENT ON FUNCTION webhook_new_secret() IS 'A random signing secret in the form of Standard Webhooks: whsec_ and base64 of 32 bytes.';

CREATE OR REPLACE FUNCTION webhook_endpoints_after_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $fn$
BEGIN
    INSERT INTO webhook_secrets (endpoint_id, secret) VALUES (new.id, webhook_new_secret());
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_after_insert() IS 'Trigger: a new endpoint gets a secret.';

CREATE OR REPLACE FUNCTION webhook_endpoints_notify() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    PERFORM pg_notify('walhook', 'endpoints');
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_notify() IS 'Trigger: tells walhook at once that an endpoint was disabled or deleted.';

DO $do$
BEGIN
    -- Objects of a table are made once: asking for one that exists (CREATE INDEX IF NOT EXISTS, CREATE OR REPLACE
    -- TRIGGER) would lock the table against writers first.
    IF to_regclass('webhook_endpoints_organization_idx') IS NULL THEN
        CREATE INDEX webhook_endpoints_organization_idx ON webhook_endpoints (organization_id);
        COMMENT ON INDEX webhook_endpoints_organization_idx IS 'Every INSERT into webhook_outbox looks up its organization''s endpoints here.';
    END IF;
    IF to_regclass('webhook_secrets_endpoint_idx') IS NULL THEN
        CREATE INDEX webhook_secrets_endpoint_idx ON webhook_secrets (endpoint_id);
        CREATE INDEX webhook_secrets_unsealed_idx ON webhook_secrets (id) WHERE NOT starts_with(secret, 'sealed:');
        COMMENT ON INDEX webhook_secrets_unsealed_idx IS 'With WALHOOK_SECRET_KEY, what is to be sealed is found here.';
        -- Default privileges may have handed the new table to readers: it begins with its owner alone.
        DECLARE
            grantee text;
        BEGIN
            FOR grantee IN
                SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
                FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
                WHERE c.oid = 'webhook_secrets'::regclass AND a.grantee <> c.relowner
            LOOP
                EXECUTE 'REVOKE ALL ON webhook_secrets FROM ' || grantee;
            END LOOP;
        END;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass AND tgname = 'webhook_endpoints_before_write') THEN
        CREATE TRIGGER webhook_endpoints_before_write BEFORE INSERT OR UPDATE ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_before_write();
        CREATE TRIGGER webhook_endpoints_after_insert AFTER INSERT ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_after_insert();
        CREATE TRIGGER webhook_endpoints_notify_update AFTER UPDATE ON webhook_endpoints
            FOR EACH ROW WHEN (old.enabled AND NOT new.enabled) EXECUTE FUNCTION webhook_endpoints_notify();
        CREATE TRIGGER webhook_endpoints_notify_delete AFTER DELETE ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_notify();
    END IF;
END $do$;
REVOKE ALL ON webhook_secrets FROM PUBLIC;


-- ─── 4. Outbox ──────────────────────────────────────────────────────────────────────────────────────────────────────
-- REPLICA IDENTITY stays what it is: the publication carries inserts only, and those never need it.

CREATE TABLE IF NOT EXISTS webhook_outbox (
    id              uuid PRIMARY KEY DEFAULT webhook_uuidv7(),
    organization_id text NOT NULL,
    event_type      text NOT NULL,
    payload         jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    endpoint_ids    uuid[] NOT NULL,
    shard           smallint NOT NULL
) PARTITION BY RANGE (id);
COMMENT ON TABLE webhook_outbox IS
    'Events. INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES (…) in the transaction that makes it true is all '
    'an application does. A row cannot be changed, only deleted. Partitioned by day (UTC) of the id.';
COMMENT ON COLUMN webhook_outbox.id IS 'A UUIDv7, made at INSERT unless given. Its time chooses the partition; more than an hour ahead is refused.';
COMMENT ON COLUMN webhook_outbox.organization_id IS 'Whose event it is. Its endpoints get it.';
COMMENT ON COLUMN webhook_outbox.event_type IS 'A name in webhook_event_types.';
COMMENT ON COLUMN webhook_outbox.payload IS 'What is sent as "data". At most 256 KiB as text.';
COMMENT ON COLUMN webhook_outbox.created_at IS 'Sent as "timestamp". Default: the start of the transaction.';
COMMENT ON COLUMN webhook_outbox.endpoint_ids IS
    'Who is owed the event: decided by the trigger, in the inserting transaction, as the enabled endpoints that subscribe to the type. Given, it is '
    'checked to belong to the organization. {} is nobody.';
COMMENT ON COLUMN webhook_outbox.shard IS '0 to 1023, from the organization. Set by the trigger.';

-- SECURITY DEFINER: the application needs no right on endpoints or event types.
CREATE OR REPLACE FUNCTION webhook_outbox_before_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $fn$
DECLARE
    id_text  text := new.id::text;
    size     bigint;
    wanted   text[];
    mine     uuid[];
    stranger text;
BEGIN
    IF id_text IS NULL OR substr(id_text, 15, 1) <> '7' OR substr(id_text, 20, 1) NOT IN ('8', '9', 'a', 'b') THEN
        RAISE EXCEPTION 'webhook_outbox.id % is not a UUIDv7', coalesce(id_text, 'null')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Leave the column out: the database makes the id. An id of your own has to be a UUIDv7 (RFC 9562).';
    END IF;
    -- The id's first six bytes are its milliseconds, and bytes compare like numbers.
    IF uuid_send(new.id) >= substring(int8send(((extract(epoch FROM clock_timestamp()) + 3600) * 1000)::bigint) FROM 3) THEN
        RAISE EXCEPTION 'webhook_outbox.id % is from %, more than an hour ahead of the database''s clock', id_text, webhook_uuid_time(new.id)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Mend the clock of the machine that makes the ids, or leave the column out.';
    END IF;

    IF new.organization_id IS NULL OR btrim(new.organization_id) = '' OR octet_length(new.organization_id) > 512 THEN
        RAISE EXCEPTION 'webhook_outbox.organization_id is null, empty or longer than 512 bytes'
            USING ERRCODE = 'check_violation', HINT = 'Give the id of the organization whose endpoints get the event.';
    END IF;

    SELECT t.patterns INTO wanted FROM webhook_event_types AS t WHERE t.name = new.event_type;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_outbox.event_type % is not a known event type', coalesce(quote_literal(new.event_type), 'null')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('Known types: %s. Add a new one with INSERT INTO webhook_event_types (name, category) VALUES (…).',
                      (SELECT string_agg(t.name, ', ' ORDER BY t.name) FROM webhook_event_types AS t));
    END IF;

    IF new.payload IS NULL THEN
        RAISE EXCEPTION 'webhook_outbox.payload is null'
            USING ERRCODE = 'check_violation', HINT = 'Give the event''s data as JSON; ''{}'' where there is none.';
    END IF;
    size := octet_length(new.payload::text);
    IF size > 262144 THEN
        RAISE EXCEPTION 'webhook_outbox.payload is % bytes as text, more than 256 KiB', size
            USING ERRCODE = 'check_violation', HINT = 'Send a reference (an id or a URL) instead of the data.';
    END IF;

    new.created_at := coalesce(new.created_at, now());
    IF new.created_at NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-12-31 00:00:00+00' THEN
        RAISE EXCEPTION 'webhook_outbox.created_at % is not a time that can be sent', new.created_at
            USING ERRCODE = 'check_violation', HINT = 'Leave the column out: it becomes the time of the transaction.';
    END IF;

    new.shard := hashtextextended(new.organization_id, 0) & 1023;

    IF new.endpoint_ids IS NULL THEN
        new.endpoint_ids := ARRAY(SELECT e.id FROM webhook_endpoints AS e
                                  WHERE e.organization_id = new.organization_id AND e.enabled AND e.event_types && wanted);
    ELSIF cardinality(new.endpoint_ids) > 0 AND current_setting('session_replication_role') <> 'replica' THEN
        -- (A logical subscriber takes what the publisher has decided.)
        mine := ARRAY(SELECT e.id FROM webhook_endpoints AS e
                      WHERE e.organization_id = new.organization_id AND e.id = ANY (new.endpoint_ids));
        SELECT coalesce(g.id::text, 'null') INTO stranger FROM unnest(new.endpoint_ids) AS g(id)
        WHERE g.id IS NULL OR g.id <> ALL (mine) LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'webhook_outbox.endpoint_ids: % is not an endpoint of organization %', stranger, quote_literal(new.organization_id)
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'Leave the column out to reach every endpoint that subscribes, or name endpoints of this organization.';
        END IF;
        new.endpoint_ids := mine;
    END IF;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_outbox_before_insert() IS
    'Trigger: refuses events that could not be delivered, and decides who is owed (endpoint_ids).';

CREATE OR REPLACE FUNCTION webhook_outbox_before_update() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    RAISE EXCEPTION 'webhook_outbox: an event cannot be changed'
        USING ERRCODE = 'check_violation', HINT = 'It may have been sent already: delete it and insert a new event.';
END $fn$;
COMMENT ON FUNCTION webhook_outbox_before_update() IS 'Trigger: an event''s row cannot be changed.';

DO $do$
BEGIN
    -- ENABLE ALWAYS, so that session_replication_role cannot put events without endpoint_ids here. Before the first
    -- partition: a partition gets its triggers from the root as they are when it is attached.
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_outbox'::regclass AND tgname = 'webhook_outbox_before_insert') THEN
        CREATE TRIGGER webhook_outbox_before_insert BEFORE INSERT ON webhook_outbox
            FOR EACH ROW EXECUTE FUNCTION webhook_outbox_before_insert();
        ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_insert;
        CREATE TRIGGER webhook_outbox_before_update BEFORE UPDATE ON webhook_outbox
            FOR EACH ROW EXECUTE FUNCTION webhook_outbox_before_update();
        ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_update;
    END IF;
END $do$;
CREATE TABLE IF NOT EXISTS webhook_outbox_default PARTITION OF webhook_outbox DEFAULT;
COMMENT ON TABLE webhook_outbox_default IS 'Events of days without a partition. Empty in normal life.';


-- ─── 5. Deliveries ──────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE IF NOT EXISTS webhook_deliveries (
    id              uuid PRIMARY KEY,
    event_id        uuid NOT NULL,
    endpoint_id     uuid NOT NULL,
    organization_id text NOT NULL,
    event_type      text NOT NULL,
    status          text NOT NULL,
    attempts        int NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    status_code     int,
    error_class     text,
    error           text,
    response        text,
    duration_ms     int,
    attempt_log     jsonb,
    series_start    int NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    completed_at    timestamptz,
    CONSTRAINT webhook_deliveries_status CHECK (status IN ('pending', 'retrying', 'success', 'failed', 'cancelled')),
    CONSTRAINT webhook_deliveries_waiting_needs_next_attempt_at CHECK (status NOT IN ('pending', 'retrying') OR next_attempt_at IS NOT NULL),
    CONSTRAINT webhook_deliveries_attempts CHECK (attempts >= 0)
) PARTITION BY RANGE (id);
COMMENT ON TABLE webhook_deliveries IS
    'What became of every event at every endpoint that it was owed to: one row each, written by walhook. Replay any of them with '
    'UPDATE webhook_deliveries SET status = ''pending'', next_attempt_at = now() WHERE …. Partitioned by day (UTC) of the id.';
COMMENT ON COLUMN webhook_deliveries.id IS 'webhook_delivery_id(event_id, endpoint_id); receivers see it as X-Webhook-Delivery-ID.';
COMMENT ON COLUMN webhook_deliveries.event_id IS 'The row of webhook_outbox.';
COMMENT ON COLUMN webhook_deliveries.endpoint_id IS 'The row of webhook_endpoints (which may be deleted by now).';
COMMENT ON COLUMN webhook_deliveries.organization_id IS 'The event''s.';
COMMENT ON COLUMN webhook_deliveries.event_type IS 'The event''s.';
COMMENT ON COLUMN webhook_deliveries.status IS
    'pending: no attempt has ended yet, or a replay waits; retrying: the last attempt failed and another follows; success; failed: no attempt '
    'follows; cancelled: the endpoint was disabled or deleted meanwhile.';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Attempts that have ended, over all replays.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS
    'When a pending or retrying delivery is due. walhook writes a first attempt that has to wait as due ten minutes ago, so that it comes before retries. Without meaning in the other states.';
COMMENT ON COLUMN webhook_deliveries.status_code IS 'HTTP status of the last attempt; null where no answer came.';
COMMENT ON COLUMN webhook_deliveries.error_class IS
    'Why the last attempt failed, in one word: dns, connect, tls, timeout, reset, protocol, redirect, http_4xx, http_5xx, blocked_address, bad_request. Null: it did not.';
COMMENT ON COLUMN webhook_deliveries.error IS 'The same for people. Holds no secret and no URL query.';
COMMENT ON COLUMN webhook_deliveries.response IS 'The first 4 KiB of the last answer''s body.';
COMMENT ON COLUMN webhook_deliveries.duration_ms IS 'How long the last attempt took.';
COMMENT ON COLUMN webhook_deliveries.attempt_log IS
    'All attempts: a list of {attempt, at, status_code, error_class, error, duration_ms}; null while the row itself tells the only one. See webhook_attempts.';
COMMENT ON COLUMN webhook_deliveries.series_start IS 'How many attempts had ended when the retry schedule last started over.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'When there was something to record first: its first attempt had ended, or it had to wait.';
COMMENT ON COLUMN webhook_deliveries.updated_at IS 'When walhook last wrote it.';
COMMENT ON COLUMN webhook_deliveries.completed_at IS 'When it became success, failed or cancelled.';

CREATE OR REPLACE FUNCTION webhook_deliveries_notify() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    PERFORM pg_notify('walhook', 'deliveries');
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_deliveries_notify() IS 'Trigger: tells walhook that somebody else updated deliveries (a replay).';

DO $do$
BEGIN
    IF to_regclass('webhook_deliveries_due_idx') IS NULL THEN
        CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (next_attempt_at) WHERE status IN ('pending', 'retrying');
        CREATE INDEX webhook_deliveries_lane_idx ON webhook_deliveries (endpoint_id, next_attempt_at, id) WHERE status IN ('pending', 'retrying');
        CREATE INDEX webhook_deliveries_dead_idx ON webhook_deliveries (endpoint_id, id) WHERE status IN ('failed', 'cancelled');
        CREATE INDEX webhook_deliveries_event_idx ON webhook_deliveries (event_id);
        COMMENT ON INDEX webhook_deliveries_due_idx IS 'What is due, over all endpoints.';
        COMMENT ON INDEX webhook_deliveries_lane_idx IS 'What is due for one endpoint.';
        COMMENT ON INDEX webhook_deliveries_dead_idx IS 'Dead letters of one endpoint by time, see webhook_replay_failed.';
        COMMENT ON INDEX webhook_deliveries_event_idx IS 'For people: the deliveries of one event.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_deliveries'::regclass AND tgname = 'webhook_deliveries_notify') THEN
        -- walhook's own writes set walhook.recording: its batches pay nothing and wake nobody.
        CREATE TRIGGER webhook_deliveries_notify AFTER UPDATE ON webhook_deliveries
            FOR EACH STATEMENT WHEN (current_setting('walhook.recording', true) IS DISTINCT FROM 'on')
            EXECUTE FUNCTION webhook_deliveries_notify();
    END IF;
END $do$;
CREATE TABLE IF NOT EXISTS webhook_deliveries_default PARTITION OF webhook_deliveries DEFAULT;
COMMENT ON TABLE webhook_deliveries_default IS 'Deliveries of days without a partition. Empty in normal life.';


-- ─── 6. walhook's own state ─────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE IF NOT EXISTS webhook_state (
    slot              text PRIMARY KEY,
    epoch             bigint NOT NULL DEFAULT 0,
    holder            uuid,
    durable_lsn       pg_lsn,
    durable_at        timestamptz,
    system_identifier text,
    timeline          int,
    environment       text,
    reconcile_from    timestamptz,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    published         text,
    open_since        timestamptz
);
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass AND attname = 'published') THEN
        ALTER TABLE webhook_state ADD COLUMN published text; -- versions 1 and 2 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass AND attname = 'open_since') THEN
        ALTER TABLE webhook_state ADD COLUMN open_since timestamptz; -- versions 1 to 3 had none
    END IF;
END $do$;
COMMENT ON TABLE webhook_state IS 'How far walhook is: one row per replication slot, updated in the transaction that records outcomes.';
COMMENT ON COLUMN webhook_state.slot IS 'WALHOOK_SLOT.';
COMMENT ON COLUMN webhook_state.epoch IS 'Grows when another process takes the slot: writes with an older epoch do nothing.';
COMMENT ON COLUMN webhook_state.holder IS 'The process that holds the epoch.';
COMMENT ON COLUMN webhook_state.durable_lsn IS 'End of the last transaction up to which every delivery is in webhook_deliveries.';
COMMENT ON COLUMN webhook_state.durable_at IS 'Commit time of the transaction that ends at durable_lsn.';
COMMENT ON COLUMN webhook_state.system_identifier IS 'Of the cluster that durable_lsn is a position of.';
COMMENT ON COLUMN webhook_state.timeline IS 'Of the WAL that durable_lsn is a position of.';
COMMENT ON COLUMN webhook_state.environment IS 'WALHOOK_ENVIRONMENT of the first run or init that had one: a restored copy elsewhere must not call customers.';
COMMENT ON COLUMN webhook_state.reconcile_from IS
    'Events from here on may be owed without a row, because the slot was made after them or the outbox was not published: walhook compares, and sets it to null when it is done.';
COMMENT ON COLUMN webhook_state.published IS 'Identity of the publication and of the outbox''s part in it, when the slot was last taken: where it has changed, the outbox was not published for a while.';
COMMENT ON COLUMN webhook_state.open_since IS
    'No transaction that commits after durable_lsn has inserted anything before this: where the stream is lost, walhook compares from here. Null: not known yet.';
COMMENT ON COLUMN webhook_state.updated_at IS 'When the row was last written.';

CREATE TABLE IF NOT EXISTS webhook_endpoint_failures (
    endpoint_id       uuid PRIMARY KEY,
    failing_since     timestamptz NOT NULL,
    breaker_opened_at timestamptz
);
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_endpoint_failures'::regclass AND attname = 'breaker_opened_at') THEN
        ALTER TABLE webhook_endpoint_failures ADD COLUMN breaker_opened_at timestamptz; -- version 1 had none
    END IF;
END $do$;
COMMENT ON TABLE webhook_endpoint_failures IS
    'Endpoints with nothing but failures. Written at transitions only; no foreign key, so that recording never waits for an endpoint''s row.';
COMMENT ON COLUMN webhook_endpoint_failures.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_endpoint_failures.failing_since IS 'End of the first of its failures in a row. See WALHOOK_DISABLE_AFTER.';
COMMENT ON COLUMN webhook_endpoint_failures.breaker_opened_at IS
    'Since when it has failed so often in a row that it gets one probe at a time, and everything else waits in webhook_deliveries. Null: it has not.';


-- ─── 7. Partitions ──────────────────────────────────────────────────────────────────────────────────────────────────
-- Days are UTC. walhook calls these functions; lock_timeout keeps them from standing in anybody's way.

CREATE OR REPLACE FUNCTION webhook_add_partition(parent text, day date, OUT made boolean, OUT moved bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '200ms' AS $fn$
DECLARE
    -- Bounds how long the DEFAULT partition is locked while rows are moved out of it: below half a second.
    most     CONSTANT bigint := 20000;
    part     text := format('%s_p%s', parent, to_char(day, 'YYYYMMDD'));
    fallback text := parent || '_default';
    low      uuid := webhook_uuid_at(day::timestamp AT TIME ZONE 'UTC');
    high     uuid := webhook_uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    made := false;
    moved := 0;
    IF parent NOT IN ('webhook_outbox', 'webhook_deliveries') THEN
        RAISE EXCEPTION 'webhook_add_partition: % is not a table of walhook', parent USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass(part) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM %I WHERE id >= $1 AND id < $2 LIMIT $3) AS s', fallback)
        INTO moved USING low, high, most + 1;
    IF moved > most THEN
        RETURN; -- the day stays in the DEFAULT partition
    END IF;

    -- Created apart and attached: PARTITION OF would lock the root against INSERT, ATTACH does not. It does lock the
    -- DEFAULT partition; locking that first makes the move complete and leaves no lock to be upgraded.
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING COMMENTS, CONSTRAINT attach CHECK (id >= %L AND id < %L))',
        part, parent, low, high);
    EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', fallback);
    EXECUTE format('WITH rows AS (DELETE FROM %I WHERE id >= $1 AND id < $2 RETURNING *) INSERT INTO %I SELECT * FROM rows', fallback, part)
        USING low, high;
    GET DIAGNOSTICS moved = ROW_COUNT;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, part, low, high);
    EXECUTE format('ALTER TABLE %I DROP CONSTRAINT attach', part);
    made := true;
END $fn$;
COMMENT ON FUNCTION webhook_add_partition(text, date) IS
    'Makes the partition of a day (UTC) of webhook_outbox or webhook_deliveries, and moves the day''s rows out of the DEFAULT partition. made = false '
    'and moved > 0: there are too many rows to move at once, the day stays in the DEFAULT partition.';

CREATE OR REPLACE FUNCTION webhook_drop_day(day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '50ms' AS $fn$
DECLARE
    events     text := 'webhook_outbox_p' || to_char(day, 'YYYYMMDD');
    deliveries text := 'webhook_deliveries_p' || to_char(day, 'YYYYMMDD');
    low        uuid := webhook_uuid_at(day::timestamp AT TIME ZONE 'UTC');
    high       uuid := webhook_uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    IF to_regclass(events) IS NULL AND to_regclass(deliveries) IS NULL THEN
        RETURN false;
    END IF;
    -- Without locks first: a day with work left costs nobody anything.
    IF EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id >= low AND d.id < high AND d.status IN ('pending', 'retrying'))
       OR EXISTS (SELECT FROM webhook_outbox_default AS o WHERE o.id >= low AND o.id < high) THEN
        RETURN false;
    END IF;
    -- Dropping a partition locks its root and the DEFAULT partition too. The outbox's root comes last: applications wait
    -- for it no longer than one lock_timeout and the drop itself.
    LOCK TABLE ONLY webhook_deliveries IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE webhook_deliveries_default IN ACCESS EXCLUSIVE MODE;
    IF to_regclass(deliveries) IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', deliveries);
    END IF;
    IF EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id >= low AND d.id < high AND d.status IN ('pending', 'retrying')) THEN
        RETURN false;
    END IF;
    LOCK TABLE webhook_outbox_default IN ACCESS EXCLUSIVE MODE;
    IF to_regclass(events) IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', events);
    END IF;
    LOCK TABLE ONLY webhook_outbox IN ACCESS EXCLUSIVE MODE;
    IF to_regclass(events) IS NOT NULL THEN
        EXECUTE format('DROP TABLE %I', events);
    END IF;
    IF to_regclass(deliveries) IS NOT NULL THEN
        EXECUTE format('DROP TABLE %I', deliveries);
    END IF;
    RETURN true;
END $fn$;
COMMENT ON FUNCTION webhook_drop_day(date) IS
    'Drops a day (UTC) of events and deliveries, unless a delivery of that day still waits. It does not ask whether walhook has read the day''s '
    'events: walhook calls it only for days that it has.';
CREATE OR REPLACE FUNCTION webhook_delete_old(before timestamptz, most int, OUT events bigint, OUT deliveries bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '200ms'
    -- Plans made while the DEFAULT partitions were empty must still use the indexes when they are not.
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $fn$
DECLARE
    old uuid := webhook_uuid_at(before);
BEGIN
    -- Events first: a delivery's row goes when its event is gone, or the event would look as if it were still owed.
    DELETE FROM webhook_outbox_default AS o
    WHERE o.id IN (SELECT o.id FROM webhook_outbox_default AS o
                   WHERE o.id < old
                     AND NOT EXISTS (SELECT FROM webhook_deliveries AS d
                                     WHERE d.event_id = o.id AND d.status IN ('pending', 'retrying')
                                       -- All deliveries of an event have its time: one partition holds them.
                                       AND d.id >= webhook_uuid_at(webhook_uuid_time(o.id))
                                       AND d.id < webhook_uuid_at(webhook_uuid_time(o.id) + interval '1 millisecond'))
                   ORDER BY o.id LIMIT most);
    GET DIAGNOSTICS events = ROW_COUNT;

    DELETE FROM webhook_deliveries_default AS d
    WHERE d.id IN (SELECT d.id FROM webhook_deliveries_default AS d
                   WHERE d.id < old AND d.status NOT IN ('pending', 'retrying')
                     AND NOT EXISTS (SELECT FROM webhook_outbox AS o WHERE o.id = d.event_id)
                   ORDER BY d.id LIMIT most
                   FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS deliveries = ROW_COUNT;

    -- Of endpoints that are deleted: there is no foreign key.
    DELETE FROM webhook_endpoint_failures AS f WHERE NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = f.endpoint_id);
END $fn$;
COMMENT ON FUNCTION webhook_delete_old(timestamptz, int) IS
    'Deletes some of the finished events and deliveries of before a time that are in the DEFAULT partitions, at most so many of each, '
    'and what webhook_endpoint_failures holds of deleted endpoints.';

-- From yesterday to two weeks ahead. On a busy database a day may have to wait for walhook run, which does the same.
DO $do$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    FOR ahead IN -1..14 LOOP
        BEGIN
            PERFORM webhook_add_partition('webhook_outbox', today + ahead);
            PERFORM webhook_add_partition('webhook_deliveries', today + ahead);
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'the partitions of % could not be made now; walhook run makes them', today + ahead;
        END;
    END LOOP;
END $do$;


-- ─── 8. Functions for operators ─────────────────────────────────────────────────────────────────────────────────────
-- Those that hand out a secret run with their owner's rights and begin without EXECUTE for PUBLIC:
--     GRANT EXECUTE ON FUNCTION webhook_create_endpoint, webhook_rotate_secret TO backend;
-- The others run with the caller's rights on the tables.

CREATE OR REPLACE FUNCTION webhook_create_endpoint(organization_id text, url text, event_types text[] DEFAULT '{*}',
    OUT endpoint_id uuid, OUT secret text)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
BEGIN
    INSERT INTO webhook_endpoints (organization_id, url, event_types)
    VALUES (webhook_create_endpoint.organization_id, webhook_create_endpoint.url, webhook_create_endpoint.event_types)
    RETURNING id INTO webhook_create_endpoint.endpoint_id;

    SELECT s.secret INTO STRICT webhook_create_endpoint.secret
    FROM webhook_secrets AS s WHERE s.endpoint_id = webhook_create_endpoint.endpoint_id;
END $fn$;
COMMENT ON FUNCTION webhook_create_endpoint(text, text, text[]) IS
    'SELECT * FROM webhook_create_endpoint(''org_1'', ''https://example.com/webhooks'', ''{payment.*}''): a new endpoint and its signing secret.';

CREATE OR REPLACE FUNCTION webhook_rotate_secret(endpoint_id uuid, overlap interval DEFAULT '24 hours') RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
DECLARE
    made text;
BEGIN
    IF overlap IS NULL OR overlap < interval '0' THEN
        RAISE EXCEPTION 'webhook_rotate_secret: the overlap is null or negative'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give how long the old secret stays valid; ''0'' ends it at once.';
    END IF;
    -- One rotation of an endpoint at a time. Nobody else waits for this lock.
    PERFORM FROM webhook_endpoints AS e WHERE e.id = webhook_rotate_secret.endpoint_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_rotate_secret: there is no endpoint %', coalesce(webhook_rotate_secret.endpoint_id::text, 'null')
            USING ERRCODE = 'no_data_found';
    END IF;
    -- At most two stay live: the new one, and for the overlap the newest of those before.
    UPDATE webhook_secrets AS s
    SET expires_at = CASE WHEN live.age = 1 THEN least(s.expires_at, now() + overlap) ELSE now() END
    FROM (SELECT id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS age
          FROM webhook_secrets AS s
          WHERE s.endpoint_id = webhook_rotate_secret.endpoint_id AND (s.expires_at IS NULL OR s.expires_at > now())) AS live
    WHERE s.id = live.id;

    INSERT INTO webhook_secrets AS s (endpoint_id, secret) VALUES (webhook_rotate_secret.endpoint_id, webhook_new_secret())
    RETURNING s.secret INTO made;
    RETURN made;
END $fn$;
COMMENT ON FUNCTION webhook_rotate_secret(uuid, interval) IS
    'Makes a new signing secret and returns it. For the overlap both it and the one before are live: X-Webhook-Signature stays with the old one, '
    'webhook-signature carries both.';

CREATE OR REPLACE FUNCTION webhook_send_test(endpoint_id uuid, event_type text DEFAULT 'webhook.test') RETURNS uuid
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
DECLARE
    organization text;
    event uuid;
BEGIN
    SELECT e.organization_id INTO organization FROM webhook_endpoints AS e WHERE e.id = webhook_send_test.endpoint_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_send_test: there is no endpoint %', coalesce(webhook_send_test.endpoint_id::text, 'null')
            USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids)
    VALUES (organization, webhook_send_test.event_type, '{"test": true, "message": "A test webhook"}', ARRAY[webhook_send_test.endpoint_id])
    RETURNING id INTO event;
    RETURN event;
END $fn$;
COMMENT ON FUNCTION webhook_send_test(uuid, text) IS
    'Sends a test event of any known type to one endpoint, subscribed or not, through the outbox like any event. Returns the event''s id.';

CREATE OR REPLACE FUNCTION webhook_replay(delivery_id uuid) RETURNS boolean
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    UPDATE webhook_deliveries AS d SET status = 'pending', next_attempt_at = now() WHERE d.id = delivery_id;
    RETURN FOUND;
END $fn$;
COMMENT ON FUNCTION webhook_replay(uuid) IS 'Sends a delivery again, whatever became of it, on a new schedule and with the same id. False: there is no such delivery.';

CREATE OR REPLACE FUNCTION webhook_replay_failed(endpoint_id uuid, since timestamptz, until timestamptz DEFAULT now()) RETURNS bigint
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
DECLARE
    replayed bigint;
BEGIN
    -- The id holds the event's time in milliseconds: the interval includes both ends.
    UPDATE webhook_deliveries AS d SET status = 'pending', next_attempt_at = now()
    WHERE d.endpoint_id = webhook_replay_failed.endpoint_id AND d.status IN ('failed', 'cancelled')
      AND d.id >= webhook_uuid_at(since) AND d.id < webhook_uuid_at(until + interval '1 millisecond');
    GET DIAGNOSTICS replayed = ROW_COUNT;
    RETURN replayed;
END $fn$;
COMMENT ON FUNCTION webhook_replay_failed(uuid, timestamptz, timestamptz) IS
    'Replays an endpoint''s failed and cancelled deliveries of the events of an interval. Returns how many.';

CREATE OR REPLACE FUNCTION webhook_explain(event_id uuid)
    RETURNS TABLE (endpoint_id uuid, url text, reason text, delivery_id uuid, status text)
    LANGUAGE sql STABLE SET search_path FROM CURRENT AS $fn$
    WITH event AS MATERIALIZED (
        SELECT o.id, o.organization_id, o.event_type, o.endpoint_ids, t.patterns,
               greatest(o.created_at, webhook_uuid_time(o.id)) AS at
        FROM webhook_outbox AS o LEFT JOIN webhook_event_types AS t ON t.name = o.event_type
        WHERE o.id = webhook_explain.event_id
    ), endpoints AS (
        SELECT e.id FROM event JOIN webhook_endpoints AS e ON e.organization_id = event.organization_id
        UNION
        SELECT unnest(event.endpoint_ids) FROM event
    )
    SELECT x.id, e.url,
        CASE
            WHEN NOT owed.yes AND e.created_at > event.at THEN 'not owed: the endpoint was created after the event'
            WHEN NOT owed.yes AND NOT e.event_types && event.patterns THEN 'not owed: not subscribed to ' || event.event_type
            WHEN NOT owed.yes AND NOT e.enabled AND e.disabled_at <= event.at THEN 'not owed: disabled when the event was inserted'
            WHEN NOT owed.yes THEN 'not owed: disabled when the event was inserted, or not subscribed to ' || event.event_type
                || ' then, or the event named other endpoints'
            WHEN d.id IS NULL THEN 'owed: no outcome yet: its first attempt is under way or waits to be read from the WAL'
            WHEN d.status = 'success' THEN 'owed: success'
            WHEN d.status = 'pending' AND d.attempts = 0 THEN 'owed: waiting for its first attempt'
            WHEN d.status = 'pending' THEN 'owed: waiting to be replayed'
            WHEN d.status = 'retrying' THEN format('owed: attempt %s failed (%s), the next is due at %s', d.attempts, why.failed, d.next_attempt_at)
            WHEN d.status = 'failed' THEN format('owed: failed for good after attempt %s (%s)', d.attempts, why.failed)
            ELSE 'owed: cancelled, the endpoint was disabled or deleted'
        END || CASE WHEN e.id IS NULL THEN ' (the endpoint is deleted)' WHEN owed.yes AND NOT e.enabled THEN ' (the endpoint is disabled)' ELSE '' END,
        CASE WHEN owed.yes THEN webhook_delivery_id(event.id, x.id) END,
        d.status
    FROM event
    CROSS JOIN endpoints AS x
    CROSS JOIN LATERAL (SELECT x.id = ANY (event.endpoint_ids) AS yes) AS owed
    LEFT JOIN webhook_endpoints AS e ON e.id = x.id
    -- LIMIT keeps it a look-up by id: one index scan in one partition for each endpoint.
    LEFT JOIN LATERAL (SELECT * FROM webhook_deliveries AS d WHERE owed.yes AND d.id = webhook_delivery_id(event.id, x.id) LIMIT 1) AS d ON true
    CROSS JOIN LATERAL (SELECT coalesce(concat_ws(' ', d.error_class, d.status_code), '') AS failed) AS why
    ORDER BY owed.yes DESC, e.created_at, x.id
$fn$;
COMMENT ON FUNCTION webhook_explain(uuid) IS
    'For every endpoint of an event''s organization: is it owed the event, what became of it, or why not (as far as today''s rows can tell).';

CREATE OR REPLACE FUNCTION webhook_stats(organization_id text)
    RETURNS TABLE (events_24h bigint, deliveries_24h bigint, success_24h bigint, failed_24h bigint, cancelled_24h bigint,
                   pending_24h bigint, retrying_24h bigint, success_rate_24h numeric, waiting bigint, oldest_waiting_at timestamptz)
    LANGUAGE sql STABLE SET search_path FROM CURRENT AS $fn$
    -- Ranges of ids, so that only the last days' partitions are read. An application's clock may be ahead of ours.
    SELECT events.n, d.n, d.success, d.failed, d.cancelled, d.pending, d.retrying,
           round(d.success::numeric / nullif(d.success + d.failed, 0), 4),
           waiting.n, waiting.oldest
    FROM (SELECT count(*) AS n FROM webhook_outbox AS o
          WHERE o.organization_id = webhook_stats.organization_id
            AND o.id >= webhook_uuid_at(now() - interval '24 hours') AND o.id < webhook_uuid_at(now() + interval '2 hours')) AS events
    CROSS JOIN (SELECT count(*) AS n,
                       count(*) FILTER (WHERE d.status = 'success') AS success,
                       count(*) FILTER (WHERE d.status = 'failed') AS failed,
                       count(*) FILTER (WHERE d.status = 'cancelled') AS cancelled,
                       count(*) FILTER (WHERE d.status = 'pending') AS pending,
                       count(*) FILTER (WHERE d.status = 'retrying') AS retrying
                FROM webhook_deliveries AS d
                WHERE d.organization_id = webhook_stats.organization_id
                  AND d.id >= webhook_uuid_at(now() - interval '24 hours') AND d.id < webhook_uuid_at(now() + interval '2 hours')) AS d
    CROSS JOIN (SELECT coalesce(sum(w.n), 0)::bigint AS n, min(w.oldest) AS oldest
                FROM webhook_endpoints AS e
                CROSS JOIN LATERAL (SELECT count(*) AS n, min(d.created_at) AS oldest FROM webhook_deliveries AS d
                                    WHERE d.endpoint_id = e.id AND d.status IN ('pending', 'retrying')) AS w
                WHERE e.organization_id = webhook_stats.organization_id) AS waiting
$fn$;
COMMENT ON FUNCTION webhook_stats(text) IS
    'One row about an organization: events and deliveries of the last 24 hours by status, the share of success among those that ended in success or '
    'failure, and what waits now, of any age.';


-- ─── 9. Views ───────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE OR REPLACE VIEW webhook_attempts AS
    SELECT d.id AS delivery_id, d.event_id, d.endpoint_id, a.attempt, a.at, a.status_code, a.error_class, a.error, a.duration_ms
    FROM webhook_deliveries AS d
    CROSS JOIN LATERAL (
        SELECT l.attempt, l.at, l.status_code, l.error_class, l.error, l.duration_ms
        FROM jsonb_to_recordset(CASE WHEN jsonb_typeof(d.attempt_log) = 'array' THEN d.attempt_log ELSE '[]' END)
            AS l (attempt int, at timestamptz, status_code int, error_class text, error text, duration_ms int)
        UNION ALL
        SELECT 1, d.updated_at - d.duration_ms * interval '1 millisecond', d.status_code, d.error_class, d.error, d.duration_ms
        WHERE d.attempt_log IS NULL AND d.attempts = 1
    ) AS a;
COMMENT ON VIEW webhook_attempts IS 'Every HTTP request that was made for a delivery.';
COMMENT ON COLUMN webhook_attempts.delivery_id IS 'The row of webhook_deliveries.';
COMMENT ON COLUMN webhook_attempts.event_id IS 'The row of webhook_outbox.';
COMMENT ON COLUMN webhook_attempts.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_attempts.attempt IS 'Counts from 1, over all replays. X-Webhook-Retry was one less.';
COMMENT ON COLUMN webhook_attempts.at IS 'When it began.';
COMMENT ON COLUMN webhook_attempts.status_code IS 'HTTP status; null where no answer came.';
COMMENT ON COLUMN webhook_attempts.error_class IS 'Why it failed, in one word, see webhook_deliveries.error_class. Null: it did not.';
COMMENT ON COLUMN webhook_attempts.error IS 'The same for people.';
COMMENT ON COLUMN webhook_attempts.duration_ms IS 'How long it took.';

CREATE OR REPLACE VIEW webhook_endpoint_health AS
    SELECT e.id AS endpoint_id, e.organization_id, e.url, e.enabled, e.disabled_at, e.disabled_reason, f.failing_since,
           coalesce(w.waiting, 0) AS waiting, w.oldest_due_at,
           CASE WHEN f.breaker_opened_at IS NULL THEN 'closed' ELSE 'open' END AS breaker, f.breaker_opened_at
    FROM webhook_endpoints AS e
    LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id
    LEFT JOIN (SELECT d.endpoint_id, count(*) AS waiting, min(CASE WHEN d.attempts = 0 THEN greatest(d.next_attempt_at, d.created_at) ELSE d.next_attempt_at END) AS oldest_due_at
               FROM webhook_deliveries AS d WHERE d.status IN ('pending', 'retrying') GROUP BY d.endpoint_id) AS w ON w.endpoint_id = e.id;
COMMENT ON VIEW webhook_endpoint_health IS 'How every endpoint is doing.';
COMMENT ON COLUMN webhook_endpoint_health.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_endpoint_health.organization_id IS 'Whose endpoint it is.';
COMMENT ON COLUMN webhook_endpoint_health.url IS 'Where it is.';
COMMENT ON COLUMN webhook_endpoint_health.enabled IS 'Whether anything is sent to it.';
COMMENT ON COLUMN webhook_endpoint_health.disabled_at IS 'Since when it is disabled.';
COMMENT ON COLUMN webhook_endpoint_health.disabled_reason IS 'Why it is disabled.';
COMMENT ON COLUMN webhook_endpoint_health.failing_since IS 'It has had nothing but failures since then. Null: its last delivery succeeded, or it had none.';
COMMENT ON COLUMN webhook_endpoint_health.waiting IS 'Deliveries that are pending or retrying.';
COMMENT ON COLUMN webhook_endpoint_health.oldest_due_at IS 'When the first of them is or was due.';
COMMENT ON COLUMN webhook_endpoint_health.breaker IS
    'open: it failed many times in a row, so it gets one probe at a time and everything else waits, without an attempt being counted; closed: it gets all.';
COMMENT ON COLUMN webhook_endpoint_health.breaker_opened_at IS 'Since when the breaker is open.';

CREATE OR REPLACE VIEW webhook_status AS
    SELECT s.slot, s.epoch, s.holder, s.durable_lsn, s.durable_at, s.environment, s.updated_at,
           r.slot_name IS NOT NULL AS slot_exists, coalesce(r.active, false) AS slot_active, r.confirmed_flush_lsn,
           pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                           r.confirmed_flush_lsn)::bigint AS lag_bytes,
           r.wal_status,
           w.pending, w.retrying, w.oldest_due_at,
           (SELECT count(*) FROM webhook_outbox_default) AS outbox_default_rows,
           (SELECT count(*) FROM webhook_deliveries_default) AS deliveries_default_rows
    FROM (SELECT count(*) FILTER (WHERE d.status = 'pending') AS pending, count(*) FILTER (WHERE d.status = 'retrying') AS retrying,
                 min(CASE WHEN d.attempts = 0 THEN greatest(d.next_attempt_at, d.created_at) ELSE d.next_attempt_at END) AS oldest_due_at
          FROM webhook_deliveries AS d WHERE d.status IN ('pending', 'retrying')) AS w
    LEFT JOIN (SELECT * FROM webhook_state ORDER BY webhook_state.updated_at DESC LIMIT 1) AS s ON true
    LEFT JOIN pg_replication_slots AS r ON r.slot_name = coalesce(s.slot, 'walhook') AND r.database = current_database();
COMMENT ON VIEW webhook_status IS 'One row: where walhook is, and what waits. Without a walhook so far, the slot''s columns are null.';
COMMENT ON COLUMN webhook_status.slot IS 'WALHOOK_SLOT of the walhook that wrote last.';
COMMENT ON COLUMN webhook_status.epoch IS 'How often another process took the slot.';
COMMENT ON COLUMN webhook_status.holder IS 'The process that holds it.';
COMMENT ON COLUMN webhook_status.durable_lsn IS 'Up to there every delivery is in webhook_deliveries.';
COMMENT ON COLUMN webhook_status.durable_at IS 'Commit time of the transaction that ends there.';
COMMENT ON COLUMN webhook_status.environment IS 'The environment that this database belongs to.';
COMMENT ON COLUMN webhook_status.updated_at IS 'When walhook last wrote its state.';
COMMENT ON COLUMN webhook_status.slot_exists IS 'Whether the replication slot exists.';
COMMENT ON COLUMN webhook_status.slot_active IS 'Whether a walhook is connected to it.';
COMMENT ON COLUMN webhook_status.confirmed_flush_lsn IS 'Up to there PostgreSQL may forget the WAL.';
COMMENT ON COLUMN webhook_status.lag_bytes IS 'WAL that is kept for walhook.';
COMMENT ON COLUMN webhook_status.wal_status IS 'Of pg_replication_slots: lost means that max_slot_wal_keep_size was exceeded.';
COMMENT ON COLUMN webhook_status.pending IS 'Deliveries waiting for their first attempt or a replay.';
COMMENT ON COLUMN webhook_status.retrying IS 'Deliveries waiting for their next attempt.';
COMMENT ON COLUMN webhook_status.oldest_due_at IS 'When the first of these is or was due.';
COMMENT ON COLUMN webhook_status.outbox_default_rows IS 'Events outside of the daily partitions: 0 in normal life.';
COMMENT ON COLUMN webhook_status.deliveries_default_rows IS 'Deliveries outside of the daily partitions: 0 in normal life.';


-- ─── 10. Publication and rights ─────────────────────────────────────────────────────────────────────────────────────
-- publish_via_partition_root: rows come out under the name webhook_outbox, whatever partition they went into.

DO $do$
DECLARE
    pub pg_publication;
BEGIN
    SELECT * INTO pub FROM pg_publication WHERE pubname = 'walhook';
    IF NOT FOUND THEN
        CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert', publish_via_partition_root = true);
        COMMENT ON PUBLICATION walhook IS 'Events on their way to walhook. Without it nothing is delivered.';
        RETURN;
    END IF;
    IF NOT pub.pubinsert OR NOT pub.pubviaroot OR (NOT pub.puballtables AND (pub.pubupdate OR pub.pubdelete OR pub.pubtruncate)) THEN
        ALTER PUBLICATION walhook SET (publish = 'insert', publish_via_partition_root = true);
    END IF;
    IF NOT pub.puballtables THEN
        -- A row filter or a column list (PostgreSQL 15) would hold events back: such an entry is made anew. The row as
        -- JSON, because PostgreSQL 14 has no such columns.
        IF EXISTS (SELECT FROM pg_publication_rel AS r
                   WHERE r.prpubid = pub.oid AND r.prrelid = 'webhook_outbox'::regclass
                     AND num_nonnulls(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') > 0) THEN
            ALTER PUBLICATION walhook DROP TABLE webhook_outbox;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_publication_rel AS r WHERE r.prpubid = pub.oid AND r.prrelid = 'webhook_outbox'::regclass) THEN
            ALTER PUBLICATION walhook ADD TABLE webhook_outbox;
        END IF;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the publication walhook cannot be made or changed by role %: %', current_user, sqlerrm
        USING ERRCODE = 'insufficient_privilege',
              HINT = format('GRANT CREATE ON DATABASE %I TO %I; an existing publication has to belong to that role (ALTER PUBLICATION walhook OWNER TO %2$I).',
                            current_database(), current_user);
END $do$;

REVOKE ALL ON FUNCTION webhook_add_partition(text, date), webhook_drop_day(date), webhook_delete_old(timestamptz, int),
    webhook_create_endpoint(text, text, text[]), webhook_rotate_secret(uuid, interval) FROM PUBLIC;
-- An application's role needs no grant but those on webhook_outbox, also where functions are not PUBLIC by default.
GRANT EXECUTE ON FUNCTION webhook_uuidv7() TO PUBLIC;


-- ─── 11. Version ────────────────────────────────────────────────────────────────────────────────────────────────────
-- Last: where this function says 4, all of the above is there.

CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 4;
COMMENT ON FUNCTION webhook_schema_version() IS 'The version of schema.sql that was applied. walhook applies its own where this is older or missing.';

COMMIT;

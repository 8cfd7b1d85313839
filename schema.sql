-- walhook's tables, functions and views, and the publication that it follows.
--
-- Apply:     psql -v ON_ERROR_STOP=1 -f schema.sql     (walhook init, or a first walhook run, does the same)
-- Where:     the first schema of the search_path; the tables belong to the role that applies the file.
-- Servers:   PostgreSQL 14 to 18. No extension, no superuser. The role needs CREATE on the database for the publication, and
--            CREATE on the schema. It needs the latter every day, for that day's partitions.
-- Again:     the file can be applied any number of times, by several sessions at once, while applications insert. It keeps
--            all data. On a prepared database it takes no lock that an INSERT, an UPDATE or a SELECT on a table waits for.
-- Layout:    1 types and ids, 2 event types, 3 endpoints and secrets, 4 outbox, 5 deliveries, 6 walhook's own state
--            7 partitions, 8 functions for operators, 9 views, 10 publication, 11 version, 12 default privileges
--
-- Roles:     roles.sql makes them, with exact grants. An application that has a role needs no more than
--            GRANT INSERT, SELECT (id) ON webhook_outbox TO app;

-- Version 8 has more columns in two tables that every INSERT of an application reads. Only a lock that excludes all INSERTs adds
-- them, and an open transaction that has inserted an event excludes that lock. So they are added first, by a transaction of a few
-- milliseconds. It queues for the lock only if no transaction holds one for long: INSERTs wait for at most 50 ms more for each of the two.
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL client_min_messages = warning;
DO $do$
DECLARE
    here  CONSTANT text := quote_ident(current_schema()::text);
    bare  oid[];
    users text[];
    other text;
BEGIN
    IF here IS NULL THEN
        RETURN; -- see below
    END IF;
    PERFORM set_config('search_path', here || ', pg_temp', true);
    PERFORM set_config('lock_timeout', '50ms', true);
    FOR look IN 1..2 LOOP -- again, because another session may add them meanwhile
        bare := ARRAY(
            SELECT c.oid FROM (VALUES ('webhook_event_types'::text, 'example'::text), ('webhook_endpoints', 'all_organizations')) AS w(name, added)
            JOIN pg_class AS c ON c.oid = to_regclass(w.name)::oid AND c.relkind = 'r'
            JOIN pg_class AS o ON o.oid = to_regclass('webhook_outbox')::oid AND o.relkind = 'p' AND o.relowner = c.relowner
            WHERE pg_has_role(c.relowner, 'USAGE'::text)
              AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname::text = w.added AND NOT a.attisdropped));
        IF bare OPERATOR(pg_catalog.=) '{}'::oid[] THEN
            RETURN;
        END IF;
        EXIT WHEN look = 2;
        users := ARRAY(SELECT l.virtualtransaction FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
                       WHERE d.datname = current_database() AND l.relation = ANY (bare) AND l.granted);
        PERFORM pg_sleep(0.05::float8);
    END LOOP;
    SELECT coalesce('of pid ' || l.pid::text, 'that is prepared (see pg_prepared_xacts)') INTO other
    FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.relation = ANY (bare) AND l.granted AND l.virtualtransaction = ANY (users) LIMIT 1;
    IF FOUND THEN -- without a hint: walhook tries again
        RAISE EXCEPTION 'webhook_endpoints and webhook_event_types cannot get their new columns while a transaction % is open, which has used them; nothing was changed: wait for it, or end it (pg_terminate_backend)', other
            USING ERRCODE = 'lock_not_available';
    END IF;
    -- In the order in which an INSERT reads them, or both would wait for each other.
    IF 'webhook_event_types'::regclass::oid = ANY (bare) THEN
        ALTER TABLE webhook_event_types ADD COLUMN IF NOT EXISTS example jsonb;
    END IF;
    IF 'webhook_endpoints'::regclass::oid = ANY (bare) THEN
        ALTER TABLE webhook_endpoints ADD COLUMN IF NOT EXISTS filter jsonpath, ADD COLUMN IF NOT EXISTS paused_at timestamptz,
            ADD COLUMN IF NOT EXISTS timeout interval, ADD COLUMN IF NOT EXISTS retry_schedule interval[],
            ADD COLUMN IF NOT EXISTS all_organizations boolean NOT NULL DEFAULT false;
    END IF;
END $do$;
COMMIT;

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- These override the defaults of the role and the database. (Literals with a backslash are written E'', because a client that
-- sends the whole file as one statement has it parsed before these settings apply.)
SET LOCAL standard_conforming_strings = on;
SET LOCAL statement_timeout = '5min';
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL check_function_bodies = on;
SET LOCAL row_security = off;
SET LOCAL quote_all_identifiers = off;
SET LOCAL array_nulls = on;
SET LOCAL transform_null_equals = off;
SET LOCAL default_table_access_method = heap; -- walhook updates rows, and skips locked ones: not every table access method can
SET LOCAL DateStyle = 'ISO, YMD';
SET LOCAL IntervalStyle = 'postgres';
SET LOCAL TimeZone = 'UTC';

SET LOCAL client_min_messages = warning;

-- Every function of this file has SET search_path FROM CURRENT: it searches pg_catalog and this schema, and pg_temp last. So no
-- caller's search_path or temporary table can replace one of our names.
-- Every SECURITY DEFINER function also has SET row_security = off, so that FORCE ROW LEVEL SECURITY on one of our tables is an
-- error. Hidden rows would be events lost in silence.
-- Every trigger function refuses tables that are not ours, by oid, before it reads a row: a column's type may bring somebody
-- else's casts and operators, which would run with the rights of the function's owner.
DO $do$
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION 'the encoding of this database is %, and walhook needs UTF8', getdatabaseencoding()
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'The encoding cannot be changed: dump the database, create another one (CREATE DATABASE ... ENCODING ''UTF8'' TEMPLATE template0), and restore the dump there.';
    END IF;
    IF current_schema() IS NULL THEN
        RAISE EXCEPTION 'no schema to install into: search_path "%" names no existing schema', current_setting('search_path')
            USING ERRCODE = 'invalid_schema_name', HINT = 'Create the schema, or set search_path to an existing one.';
    END IF;
    PERFORM set_config('search_path', quote_ident(current_schema()::text) || ', pg_temp', true);
    IF current_setting('transaction_timeout', true) IS NOT NULL THEN -- from PostgreSQL 17 on
        PERFORM set_config('transaction_timeout', '0', true);
    END IF;
END $do$;

-- One session at a time applies this file; a second one waits. The lock is on a table of walhook's, so only a role that may
-- write that table can take it; an advisory lock could be held for ever by any role of the database. The first installation
-- creates the table; of two, the second waits for the name. No INSERT, UPDATE or SELECT waits for this lock, so waiting five
-- seconds for it delays nobody. For all other locks the limit is half a second.
SET LOCAL lock_timeout = '5s';
DO $do$
BEGIN
    IF to_regclass('webhook_state') IS NULL THEN
        BEGIN
            CREATE TABLE webhook_state (
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
                open_since        timestamptz,
                progress          jsonb,
                max_endpoints     int NOT NULL DEFAULT 1000
            );
            PERFORM set_config('walhook.made_state', 'webhook_state'::regclass::oid::text, true);
        EXCEPTION WHEN unique_violation OR duplicate_table THEN
            NULL; -- another session has created it
        END;
    END IF;
    LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE;
EXCEPTION
    WHEN insufficient_privilege THEN
        IF to_regclass('webhook_state') IS NULL THEN
            RAISE; -- it cannot be created
        END IF;
        RAISE EXCEPTION 'table webhook_state belongs to role %, and % would own what is created now',
            (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = to_regclass('webhook_state')::oid), current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'If it is walhook''s, apply the schema as that role, or make one role the owner of everything (ALTER ... OWNER TO). Otherwise rename or drop it.';
    WHEN lock_not_available THEN
        RAISE EXCEPTION 'another session is applying walhook''s schema, or has webhook_state locked: nothing was changed'
            USING ERRCODE = 'lock_not_available', HINT = 'Try again later, or end that session: pg_locks and pg_stat_activity show which one it is.';
END $do$;
SET LOCAL lock_timeout = '500ms';

-- Whoever may CREATE in this schema may have created tables and functions of our names first, and would own what a superuser
-- fills in. So everything must belong to the role that applies this file. The present objects are remembered, so that section
-- 12 knows which were created below.
DO $do$
DECLARE
    here   CONSTANT oid := quote_ident(current_schema()::text)::regnamespace::oid;
    tables CONSTANT text[] := '{webhook_event_types,webhook_endpoints,webhook_secrets,webhook_outbox,webhook_outbox_default,webhook_deliveries,'
        'webhook_deliveries_default,webhook_state,webhook_endpoint_failures,webhook_retries,webhook_forgetting,webhook_audit,webhook_attempts,webhook_endpoint_health,webhook_overdue,webhook_status,'
        'webhook_ops_endpoints,webhook_tenant_endpoints,webhook_tenant_deliveries,webhook_tenant_attempts}';
    other  record;
    have   int := 0;
BEGIN
    SELECT o.what, o.owner INTO other
    FROM (SELECT 'table or view ' || c.relname::text AS what, c.relowner AS owner FROM pg_class AS c WHERE c.relnamespace = here AND c.relname::text = ANY (tables)
          UNION ALL
          SELECT 'function ' || p.proname::text, p.proowner FROM pg_proc AS p WHERE p.pronamespace = here AND p.proname = 'webhook_schema_version') AS o
    JOIN pg_roles AS me ON me.rolname = current_user
    WHERE o.owner <> me.oid AND (me.rolsuper OR NOT pg_has_role(o.owner, 'USAGE'::text)) ORDER BY o.what LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% belongs to role %, and % would own what is created now', other.what, pg_get_userbyid(other.owner), current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'If it is walhook''s, apply the schema as that role, or make one role the owner of everything (ALTER ... OWNER TO). Otherwise rename or drop it.';
    END IF;
    IF to_regprocedure('webhook_schema_version()') IS NOT NULL THEN
        EXECUTE 'SELECT webhook_schema_version()' INTO have;
    END IF;
    PERFORM set_config('walhook.had_version', have::text, true);
    PERFORM set_config('walhook.had_objects', (SELECT coalesce(string_agg(o.oid::text, ','::text), '') FROM (
        SELECT c.oid FROM pg_class AS c WHERE c.relnamespace = here AND c.relkind IN ('r', 'p', 'v', 'S') AND starts_with(c.relname::text, 'webhook_'::text)
          AND c.oid::text IS DISTINCT FROM current_setting('walhook.made_state', true) -- which was created above
        UNION ALL
        SELECT p.oid FROM pg_proc AS p WHERE p.pronamespace = here AND starts_with(p.proname::text, 'webhook_'::text)) AS o), true);

    IF EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = here AND c.relkind <> 'p' AND c.relname IN ('webhook_outbox', 'webhook_deliveries')) THEN
        RAISE EXCEPTION 'schema % has a webhook_outbox or webhook_deliveries that is not walhook''s', current_schema()
            USING ERRCODE = 'duplicate_table', HINT = 'Rename that table, or set search_path to a schema for walhook alone.';
    END IF;
    IF have > 9 THEN
        RAISE EXCEPTION 'this schema is version %, made by a newer walhook; this file is version 9', have
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use the newer walhook, and its schema.sql.';
    END IF;
END $do$;


-- A recording transaction of a running walhook locks webhook_state first, and then the other tables. So does this file: locked
-- the other way round, both would wait for each other, and this file would give up.
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass::oid AND attname = 'published') THEN
        ALTER TABLE webhook_state ADD COLUMN published text; -- versions 1 and 2 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass::oid AND attname = 'open_since') THEN
        ALTER TABLE webhook_state ADD COLUMN open_since timestamptz; -- versions 1 to 3 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass::oid AND attname = 'progress') THEN
        ALTER TABLE webhook_state ADD COLUMN progress jsonb; -- versions 1 to 7 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_state'::regclass::oid AND attname = 'max_endpoints') THEN
        ALTER TABLE webhook_state ADD COLUMN max_endpoints int NOT NULL DEFAULT 1000; -- versions 1 to 7 had none
    END IF;
END $do$;


-- --- 1. Ids ---------------------------------------------------------------------------------------------------------
-- A body of the form RETURN ... is bound when the function is created, so no search_path can change its meaning.

CREATE OR REPLACE FUNCTION webhook_uuidv7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    -- A random UUIDv4 whose first 48 bits become the milliseconds and whose version 4 (0100) becomes 7 (0111).
    RETURN encode(set_bit(set_bit(overlay(
        uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000::numeric)::bigint) FROM 3) FROM 1 FOR 6),
        52::bigint, 1), 53::bigint, 1), 'hex')::uuid;
COMMENT ON FUNCTION webhook_uuidv7() IS
    'Returns a new UUIDv7 (RFC 9562): the clock in milliseconds, then 74 random bits. Default of webhook_outbox.id.';

CREATE OR REPLACE FUNCTION webhook_uuid_at(at timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    -- Times that no id can have, infinity among them, are before or after all ids.
    RETURN encode(substring(int8send(least(greatest(floor(extract(epoch FROM at) * 1000::numeric), 0::numeric), 281474976710655::numeric)::bigint) FROM 3)
        || E'\\x00000000000000000000'::bytea, 'hex')::uuid;
COMMENT ON FUNCTION webhook_uuid_at(timestamptz) IS
    'Returns the smallest id of a time: ids made since then are id >= webhook_uuid_at(time). Such a range prunes partitions.';

CREATE OR REPLACE FUNCTION webhook_uuid_time(id uuid) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN to_timestamp((('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint::numeric / 1000.0)::float8);
COMMENT ON FUNCTION webhook_uuid_time(uuid) IS 'Returns the time in a UUIDv7, in milliseconds.';

CREATE OR REPLACE FUNCTION webhook_delivery_id(event_id uuid, endpoint_id uuid) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    -- The event's 48 bits of time, then SHA-256(event || endpoint); bits 55..52 say version 7, bits 71..70 variant 10.
    RETURN encode(set_bit(set_bit(set_bit(set_bit(set_bit(set_bit(
        substring(uuid_send(event_id) FROM 1 FOR 6)
            || substring(sha256(uuid_send(event_id) || uuid_send(endpoint_id)) FROM 1 FOR 10),
        55::bigint, 0), 54::bigint, 1), 53::bigint, 1), 52::bigint, 1), 71::bigint, 1), 70::bigint, 0), 'hex')::uuid;
COMMENT ON FUNCTION webhook_delivery_id(uuid, uuid) IS
    'Returns the id of the delivery of an event to an endpoint. A pure function: the id is the same in every attempt and after every crash. '
    'Sent as X-Webhook-Delivery-ID; walhook computes the same in Go.';


-- --- 2. Event types -------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION webhook_event_patterns(name text, category text) RETURNS text[]
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN ARRAY[name]
        OPERATOR(pg_catalog.||) CASE WHEN category = 'webhook' THEN '{}'::text[] ELSE '{*}'::text[] END
        OPERATOR(pg_catalog.||) ARRAY(SELECT pg_catalog.array_to_string((string_to_array(name, '.'))[1:n], '.') || '.*'
                 FROM generate_series(1, pg_catalog.cardinality(string_to_array(name, '.')) - 1) AS n);
COMMENT ON FUNCTION webhook_event_patterns(text, text) IS
    'Returns the entries of event_types that match this type: its name, prefix.* for every prefix before a dot, and * unless the type is walhook''s own.';

CREATE TABLE IF NOT EXISTS webhook_event_types (
    name        text PRIMARY KEY,
    category    text NOT NULL,
    description text NOT NULL DEFAULT '',
    patterns    text[] NOT NULL GENERATED ALWAYS AS (webhook_event_patterns(name, category)) STORED,
    example     jsonb,
    CONSTRAINT webhook_event_types_name_is_dotted_words
        CHECK (name ~ E'^[A-Za-z0-9_:/-]+(\\.[A-Za-z0-9_:/-]+)*$' AND length(name) <= 128),
    CONSTRAINT webhook_event_types_category_not_empty CHECK (category <> ''),
    CONSTRAINT webhook_event_types_names_of_walhook CHECK (NOT starts_with(name, 'webhook.') OR category = 'webhook')
);
COMMENT ON TABLE webhook_event_types IS
    'The event types that webhook_outbox accepts. Add your own: INSERT INTO webhook_event_types (name, category) VALUES (''invoice.paid'', ''invoice'').';
COMMENT ON COLUMN webhook_event_types.name IS 'The value for webhook_outbox.event_type: words joined by dots.';
COMMENT ON COLUMN webhook_event_types.category IS 'For grouping. The category webhook is special: * does not match its types, so an endpoint has to name them.';
COMMENT ON COLUMN webhook_event_types.description IS 'For people.';
COMMENT ON COLUMN webhook_event_types.example IS 'A payload of this type, as receivers get it: the data of test webhooks. Null: there is none.';
COMMENT ON COLUMN webhook_event_types.patterns IS 'Every entry of webhook_endpoints.event_types that matches this type. Computed.';

-- With SECURITY DEFINER current_user is the function's owner. (What not every role may execute, such as a trigger's condition, has
-- the expression itself.)
CREATE OR REPLACE FUNCTION webhook_session_role() RETURNS name
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE current_setting('role'::text) WHEN 'none' THEN session_user ELSE current_setting('role'::text)::name END;
COMMENT ON FUNCTION webhook_session_role() IS 'The role whose rights count: that of SET ROLE, or else the one that logged in.';

-- A restore brings rows that were checked elsewhere, in an order of its own: types may come after the endpoints that list them,
-- secrets after their endpoints, and events may name deleted endpoints. pg_restore and psql restore by COPY; a logical
-- subscriber writes as a replica. Only the tables' owner restores. (Triggers call it for each row, and PL/pgSQL keeps the plan.)
CREATE OR REPLACE FUNCTION webhook_restoring() RETURNS boolean
    LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $fn$
BEGIN
    RETURN current_setting('session_replication_role') = 'replica'
        OR current_query() ~* E'^\\s*copy\\s'
           AND pg_has_role(webhook_session_role(), (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'webhook_event_types'::regclass::oid), 'USAGE'::text);
END $fn$;
COMMENT ON FUNCTION webhook_restoring() IS 'Whether the rows come from a dump or a publisher, where they were already checked.';

CREATE OR REPLACE FUNCTION webhook_event_types_restored() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
BEGIN
    IF tg_relid <> 'webhook_event_types'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_event_types_restored', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT webhook_restoring() THEN
        RETURN new;
    END IF;
    UPDATE webhook_event_types AS t SET category = new.category, description = new.description, example = coalesce(new.example, t.example)
    WHERE t.name = new.name; -- a dump of before has no examples
    RETURN CASE WHEN FOUND THEN NULL ELSE new END;
END $fn$;
COMMENT ON FUNCTION webhook_event_types_restored() IS
    'Trigger: a restored type updates the type of the same name, so that a dump can be restored into a prepared database.';

CREATE OR REPLACE FUNCTION webhook_event_types_keep() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    IF tg_relid <> 'webhook_event_types'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_event_types_keep', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF tg_op = 'TRUNCATE' THEN
        RAISE EXCEPTION 'webhook_event_types cannot be truncated: walhook needs its own types; use DELETE FROM webhook_event_types WHERE category <> ''webhook'''
            USING ERRCODE = 'check_violation';
    END IF;
    RAISE EXCEPTION 'webhook_event_types: % is walhook''s own and cannot be deleted, renamed or put into another category; an endpoint that does not list it does not get it', old.name
        USING ERRCODE = 'check_violation';
END $fn$;
COMMENT ON FUNCTION webhook_event_types_keep() IS
    'Trigger: keeps the types of category webhook, without which walhook could not insert its own events.';
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_event_types'::regclass::oid AND tgname = 'webhook_event_types_keep_from_delete') THEN
        CREATE TRIGGER webhook_event_types_keep_from_delete BEFORE DELETE ON webhook_event_types
            FOR EACH ROW WHEN (starts_with(old.name, 'webhook.')) EXECUTE FUNCTION webhook_event_types_keep();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_event_types'::regclass::oid AND tgname = 'webhook_event_types_keep_from_update') THEN
        CREATE TRIGGER webhook_event_types_keep_from_update BEFORE UPDATE ON webhook_event_types
            FOR EACH ROW WHEN (starts_with(old.name, 'webhook.') AND (new.name <> old.name OR new.category <> old.category))
            EXECUTE FUNCTION webhook_event_types_keep();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_event_types'::regclass::oid AND tgname = 'webhook_event_types_keep_from_truncate') THEN
        CREATE TRIGGER webhook_event_types_keep_from_truncate BEFORE TRUNCATE ON webhook_event_types
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_event_types_keep();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_event_types'::regclass::oid AND tgname = 'webhook_event_types_restored') THEN
        CREATE TRIGGER webhook_event_types_restored BEFORE INSERT ON webhook_event_types
            FOR EACH ROW EXECUTE FUNCTION webhook_event_types_restored();
        ALTER TABLE webhook_event_types ENABLE ALWAYS TRIGGER webhook_event_types_restored; -- a subscriber writes as a replica
    END IF;
END $do$;

-- After the triggers: if the schema was renamed, their functions search the former name until they are replaced.
WITH seeds (name, category, description, example) AS (
    VALUES
        ('org.created',                'organization', 'An organization was created',
         '{"organizationId": "org_1", "name": "Acme", "slug": "acme", "ownerId": "user_5Qm2", "createdAt": "2026-11-23T12:00:00Z"}'::jsonb),
        ('org.updated',                'organization', 'An organization was changed',
         '{"organizationId": "org_1", "name": "Acme Corp", "slug": "acme", "changes": {"name": {"from": "Acme", "to": "Acme Corp"}}, "updatedAt": "2026-11-23T12:00:00Z"}'),
        ('org.deleted',                'organization', 'An organization was deleted',
         '{"organizationId": "org_1", "name": "Acme", "deletedBy": "user_5Qm2", "deletedAt": "2026-11-23T12:00:00Z"}'),
        ('org.member.invited',         'organization', 'Somebody was invited to an organization',
         '{"organizationId": "org_1", "invitationId": "inv_3Rt8", "email": "grace@example.com", "role": "member", "invitedBy": "user_5Qm2", "expiresAt": "2026-11-30T12:00:00Z"}'),
        ('org.member.added',           'organization', 'Somebody joined an organization',
         '{"organizationId": "org_1", "userId": "user_8Zc1", "email": "grace@example.com", "role": "member", "joinedAt": "2026-11-23T12:00:00Z"}'),
        ('org.member.removed',         'organization', 'Somebody left or was removed from an organization',
         '{"organizationId": "org_1", "userId": "user_8Zc1", "email": "grace@example.com", "removedBy": "user_5Qm2", "removedAt": "2026-11-23T12:00:00Z"}'),
        ('org.member.role_changed',    'organization', 'A member of an organization got another role',
         '{"organizationId": "org_1", "userId": "user_8Zc1", "email": "grace@example.com", "previousRole": "member", "role": "admin", "changedBy": "user_5Qm2"}'),
        ('payment.succeeded',          'payment',      'A payment went through',
         '{"paymentId": "pay_2Lp6", "invoiceId": "inv_2026_0042", "customerId": "cus_1Hn4", "amount": 4900, "currency": "EUR", "method": "card", "paidAt": "2026-11-23T12:00:00Z"}'),
        ('payment.failed',             'payment',      'A payment was declined or failed',
         '{"paymentId": "pay_2Lp7", "invoiceId": "inv_2026_0043", "customerId": "cus_1Hn4", "amount": 4900, "currency": "EUR", "method": "card", "failureCode": "card_declined", "failureMessage": "The card was declined", "failedAt": "2026-11-23T12:00:00Z"}'),
        ('payment.refunded',           'payment',      'A payment was paid back',
         '{"paymentId": "pay_2Lp6", "refundId": "ref_6Yv3", "customerId": "cus_1Hn4", "amount": 4900, "amountRefunded": 1900, "currency": "EUR", "reason": "requested_by_customer", "refundedAt": "2026-11-23T12:00:00Z"}'),
        ('subscription.created',       'subscription', 'A subscription began',
         '{"subscriptionId": "sub_9KxT", "plan": "pro", "status": "active", "currentPeriodStart": "2026-11-01T00:00:00Z", "currentPeriodEnd": "2026-12-01T00:00:00Z", "customerId": "cus_1Hn4", "seats": 5, "amount": 4900, "currency": "EUR"}'),
        ('subscription.updated',       'subscription', 'A subscription was changed',
         '{"subscriptionId": "sub_9KxT", "plan": "pro", "status": "active", "currentPeriodStart": "2026-11-01T00:00:00Z", "currentPeriodEnd": "2026-12-01T00:00:00Z", "seats": 10, "previous": {"plan": "starter", "seats": 5}}'),
        ('subscription.cancelled',     'subscription', 'A subscription was cancelled',
         '{"subscriptionId": "sub_9KxT", "plan": "pro", "status": "cancelled", "currentPeriodStart": "2026-11-01T00:00:00Z", "currentPeriodEnd": "2026-12-01T00:00:00Z", "cancelledAt": "2026-11-23T12:00:00Z", "reason": "too_expensive", "endsAt": "2026-12-01T00:00:00Z"}'),
        ('subscription.expired',       'subscription', 'A subscription ran out',
         '{"subscriptionId": "sub_9KxT", "plan": "pro", "status": "expired", "currentPeriodStart": "2026-11-01T00:00:00Z", "currentPeriodEnd": "2026-12-01T00:00:00Z", "expiredAt": "2026-12-01T00:00:00Z"}'),
        ('subscription.renewed',       'subscription', 'A subscription was renewed',
         '{"subscriptionId": "sub_9KxT", "plan": "pro", "status": "active", "currentPeriodStart": "2026-11-01T00:00:00Z", "currentPeriodEnd": "2026-12-01T00:00:00Z", "amount": 4900, "currency": "EUR", "invoiceId": "inv_2026_0042", "renewedAt": "2026-11-01T00:00:00Z"}'),
        ('api_key.created',            'api_key',      'An API key was created',
         '{"apiKeyId": "key_7dWq", "name": "CI", "prefix": "ak_live_4f", "scopes": ["read", "write"], "createdBy": "user_5Qm2", "createdAt": "2026-11-23T12:00:00Z", "expiresAt": null}'),
        ('api_key.revoked',            'api_key',      'An API key was revoked',
         '{"apiKeyId": "key_7dWq", "name": "CI", "prefix": "ak_live_4f", "scopes": ["read", "write"], "revokedBy": "user_5Qm2", "revokedAt": "2026-11-23T12:00:00Z"}'),
        ('api_key.rotated',            'api_key',      'An API key was replaced',
         '{"apiKeyId": "key_7dWq", "name": "CI", "prefix": "ak_live_4f", "scopes": ["read", "write"], "previousPrefix": "ak_live_1c", "rotatedBy": "user_5Qm2", "rotatedAt": "2026-11-23T12:00:00Z"}'),
        ('security.2fa_enabled',       'security',     'Two-factor authentication was switched on',
         '{"userId": "user_5Qm2", "email": "ada@example.com", "method": "totp", "ipAddress": "192.0.2.10", "at": "2026-11-23T12:00:00Z"}'),
        ('security.2fa_disabled',      'security',     'Two-factor authentication was switched off',
         '{"userId": "user_5Qm2", "email": "ada@example.com", "method": "totp", "disabledBy": "user_5Qm2", "ipAddress": "192.0.2.10", "at": "2026-11-23T12:00:00Z"}'),
        ('security.password_changed',  'security',     'A password was changed',
         '{"userId": "user_5Qm2", "email": "ada@example.com", "ipAddress": "192.0.2.10", "sessionsEnded": 3, "at": "2026-11-23T12:00:00Z"}'),
        ('security.login_failed',      'security',     'A login failed',
         '{"userId": "user_5Qm2", "email": "ada@example.com", "reason": "wrong_password", "failedAttempts": 3, "ipAddress": "192.0.2.10", "userAgent": "Mozilla/5.0", "at": "2026-11-23T12:00:00Z"}'),
        ('webhook.test',               'webhook',      'A test event, see webhook_send_test',
         '{"test": true, "message": "A test webhook"}'),
        ('webhook.endpoint.disabled',  'webhook',      'walhook disabled an endpoint',
         '{"endpointId": "44444444-4444-4444-8444-444444444444", "url": "https://receiver.example.com", "reason": "answered 410 Gone"}'),
        ('webhook.endpoint.failing',   'webhook',      'The breaker of an endpoint opened, because it only fails',
         '{"endpointId": "44444444-4444-4444-8444-444444444444", "url": "https://receiver.example.com", "since": "2026-11-23T12:00:00.000Z", "errorClass": "timeout"}'),
        ('webhook.endpoint.recovered', 'webhook',      'The breaker of an endpoint closed',
         '{"endpointId": "44444444-4444-4444-8444-444444444444", "url": "https://receiver.example.com", "since": "2026-11-23T12:00:00.000Z"}'),
        ('webhook.delivery.exhausted', 'webhook',      'The last attempt of a delivery failed',
         '{"deliveryId": "019a9e2b-7c00-7a11-8b22-9c33d44e55f6", "eventId": "019a9e2b-7c00-7d4e-9f60-718293a4b5c6", "event": "payment.succeeded", "endpointId": "44444444-4444-4444-8444-444444444444", "attempts": 10, "statusCode": 500, "errorClass": "http_5xx", "error": "500 Internal Server Error"}')
), filled AS ( -- versions 1 to 7 had no examples
    UPDATE webhook_event_types AS t SET example = s.example FROM seeds AS s
    WHERE t.name = s.name AND t.example IS NULL AND current_setting('walhook.had_version')::int BETWEEN 1 AND 7
)
INSERT INTO webhook_event_types (name, category, description, example)
SELECT s.name, s.category, s.description, s.example FROM seeds AS s
WHERE s.category = 'webhook' OR current_setting('walhook.had_version')::int = 0 -- a deployment may have deleted the others
ON CONFLICT (name) DO NOTHING;


-- --- 3. Endpoints and secrets ---------------------------------------------------------------------------------------

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
    filter          jsonpath,
    paused_at       timestamptz,
    timeout         interval,
    retry_schedule  interval[],
    all_organizations boolean NOT NULL DEFAULT false,
    CONSTRAINT webhook_endpoints_max_in_flight_1_to_1000 CHECK (max_in_flight BETWEEN 1 AND 1000),
    CONSTRAINT webhook_endpoints_rate_per_second_positive CHECK (rate_per_second > 0::float8 AND rate_per_second < 'infinity')
);
COMMENT ON TABLE webhook_endpoints IS
    'URLs that get an organization''s events. INSERT, UPDATE and DELETE are the API; a change takes effect within a second of its commit.';
COMMENT ON COLUMN webhook_endpoints.id IS
    'Made by the database even if one is given, so that what is still owed to a deleted endpoint cannot reach another. Only a restore, or whoever may act '
    'as the table''s owner, keeps a given id. Part of every delivery id, so it cannot change.';
COMMENT ON COLUMN webhook_endpoints.organization_id IS 'The organization whose events it gets. It cannot change: create a new endpoint.';
COMMENT ON COLUMN webhook_endpoints.url IS 'http:// or https:// with a host; no user, no fragment, no blanks.';
COMMENT ON COLUMN webhook_endpoints.event_types IS 'Exact names, payment.* for every type that begins with payment., or * for all types except walhook''s own (webhook.*). At most 100.';
COMMENT ON COLUMN webhook_endpoints.description IS 'For people. At most 1 KiB.';
COMMENT ON COLUMN webhook_endpoints.headers IS 'Extra request headers: a JSON object of name to text. At most 32, 4 KiB in all. The texts are sealed:v2:<id of the key>:... where WALHOOK_SECRET_KEY seals them at rest.';
COMMENT ON COLUMN webhook_endpoints.enabled IS 'false: no new event is owed to it, nothing is sent, and waiting deliveries are cancelled.';
COMMENT ON COLUMN webhook_endpoints.disabled_at IS 'Since when it is disabled. Set by a trigger; null while enabled.';
COMMENT ON COLUMN webhook_endpoints.disabled_reason IS 'Why it is disabled, if walhook or somebody gave a reason; null while enabled.';
COMMENT ON COLUMN webhook_endpoints.max_in_flight IS 'Concurrent requests, 1 to 1000. Null: WALHOOK_ENDPOINT_IN_FLIGHT.';
COMMENT ON COLUMN webhook_endpoints.rate_per_second IS
    'Requests per second; bursts are limited to a tenth of a second''s worth. Null: no limit.';
COMMENT ON COLUMN webhook_endpoints.created_at IS 'When it was created.';
COMMENT ON COLUMN webhook_endpoints.updated_at IS 'When the row last changed. Set by a trigger.';
COMMENT ON COLUMN webhook_endpoints.filter IS
    'A JSON path, as $.amount > 1000: an event is owed to the endpoint only if payload @@ filter is true. An error is false. Null: there is no filter.';
COMMENT ON COLUMN webhook_endpoints.paused_at IS 'Since when it is paused: what is owed to it waits, nothing is sent, and nothing is counted. Null: it is not.';
COMMENT ON COLUMN webhook_endpoints.timeout IS 'How long one request may take, all of it: 100 milliseconds to 60 seconds. Null: WALHOOK_TIMEOUT.';
COMMENT ON COLUMN webhook_endpoints.retry_schedule IS
    'The waits from the end of an attempt to the next: at most 30, each more than 0 and at most 7 days; {}: there is one attempt. Null: WALHOOK_RETRY_SCHEDULE.';
COMMENT ON COLUMN webhook_endpoints.all_organizations IS
    'For operators: it gets the types webhook.* of every organization, and nothing else; {*} means all of them. At most 20 endpoints. Only whoever may act as the table''s owner sets it.';

CREATE TABLE IF NOT EXISTS webhook_secrets (
    id          bigint PRIMARY KEY DEFAULT (('x' || right(translate(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint & 9223372036854775807),
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
    secret      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    CONSTRAINT webhook_secrets_secret_16_to_256_printable_characters CHECK (
        CASE WHEN starts_with(secret, 'sealed:')
             THEN secret ~ '^sealed:v(1|2:[0-9a-f]{8}):[A-Za-z0-9+/]+={0,2}$' AND length(secret) <= 1024
             ELSE secret ~ E'^[\\x20-\\x7e]+$' AND length(secret) BETWEEN 16 AND 256 END)
);
COMMENT ON TABLE webhook_secrets IS
    'Signing secrets. Do not grant it to roles that read the other tables. Two live secrets mean a rotation: see webhook_rotate_secret.';
COMMENT ON COLUMN webhook_secrets.id IS
    'Random, so that rows moved to another database do not collide. Negative: made for a restored endpoint, and replaced by the secret that is restored after it.';
COMMENT ON COLUMN webhook_secrets.endpoint_id IS 'The endpoint whose requests it signs. Deleting the endpoint deletes its secrets.';
COMMENT ON COLUMN webhook_secrets.secret IS
    '16 to 256 printable ASCII characters: your own (see webhook_set_secret), or whsec_ and base64; or an Ed25519 key, whsk_ and base64. sealed:v2:<id of the key>:... where WALHOOK_SECRET_KEY seals secrets at rest.';
COMMENT ON COLUMN webhook_secrets.created_at IS 'The time of the INSERT. Of two live secrets, the older one makes X-Webhook-Signature.';
COMMENT ON COLUMN webhook_secrets.expires_at IS 'When it stops being used. Null: never.';

CREATE OR REPLACE FUNCTION webhook_url_problem(url text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    parts text[];
BEGIN
    IF url IS NULL OR url = '' THEN RETURN 'it is empty'; END IF;
    IF length(url) > 2048 THEN RETURN 'it is longer than 2048 characters'; END IF;
    IF url !~ E'^[\\x21-\\x7e]*$' THEN
        RETURN 'it holds a blank, a control character or a character beyond ASCII (percent-encode paths, write host names in punycode)';
    END IF;
    IF url !~* '^https?://' THEN RETURN 'it does not start with http:// or https://'; END IF;
    IF strpos(url, '#') > 0 THEN RETURN 'it has a fragment (#...), which is never sent'; END IF;
    IF url ~ E'[\\\\"<>^`{|}]' OR url ~ '%(?![0-9A-Fa-f]{2})' THEN
        RETURN 'it holds a character that has to be percent-encoded, or a % that encodes nothing';
    END IF;
    -- scheme://authority, then the authority's host and port.
    parts := regexp_match(url, '^[^:]+://([^/?]*)');
    IF strpos(parts[1], '@') > 0 THEN RETURN 'it has a user or password before @ (use headers for credentials)'; END IF;
    parts := regexp_match(parts[1], E'^(\\[[0-9A-Fa-f:.]*\\]|[^:\\[\\]]*)(:(.*))?$');
    IF parts IS NULL THEN RETURN 'its host cannot be read'; END IF;
    IF parts[1] IN ('', '[]') THEN RETURN 'it has no host'; END IF;
    IF starts_with(parts[1], '[') THEN
        -- inet also takes IPv4 addresses, and at an IPv6 address's end a shorter one than [::192.0.2.1].
        IF strpos(parts[1], '.') > 0 AND parts[1] !~ E':((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\\.|\\]$)){4}$' THEN
            RETURN 'its host is not an IPv6 address';
        END IF;
        BEGIN
            PERFORM btrim(parts[1], '[]')::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            RETURN 'its host is not an IPv6 address';
        END;
    ELSIF parts[1] !~ E'^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*\\.?$' OR length(parts[1]) > 253 THEN
        RETURN 'its host is not a host name or an IP address';
    END IF;
    IF parts[2] IS NOT NULL AND (parts[3] !~ '^[0-9]{1,5}$' OR parts[3]::int NOT BETWEEN 1 AND 65535) THEN
        RETURN 'its port is not a number from 1 to 65535';
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_url_problem(text) IS
    'Returns what is wrong with an endpoint''s URL, or null. WALHOOK_ALLOW_* and WALHOOK_DENY_NETS decide at sending which addresses are dialled.';

CREATE OR REPLACE FUNCTION webhook_headers_problem(headers jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    name text;
    lowered text;
    value jsonb;
    content text;
    count int := 0;
    bytes int := 0;
    seen text[] := '{}';
BEGIN
    IF headers IS NULL OR jsonb_typeof(headers) <> 'object' THEN RETURN 'they are not a JSON object of name to text'; END IF;
    FOR name, value IN SELECT h.key, h.value FROM jsonb_each(headers) AS h LOOP
        IF name !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]+$' THEN RETURN pg_catalog.to_jsonb(left(name, 100))::text || ' is not a header name'; END IF;
        IF octet_length(name) > 128 THEN RETURN left(name, 100) || '... is longer than 128 characters'; END IF;
        -- Not lower(): a Turkish locale turns I into another letter.
        lowered := translate(name, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'::text, 'abcdefghijklmnopqrstuvwxyz'::text);
        IF lowered = ANY (seen) THEN RETURN name || ' is there twice'; END IF;
        IF lowered IN ('content-type', 'content-length', 'content-encoding', 'user-agent')
           OR starts_with(lowered, 'x-webhook-'::text) OR starts_with(lowered, 'webhook-'::text) THEN
            RETURN name || ' is set by walhook';
        END IF;
        IF lowered IN ('host', 'connection', 'expect', 'http2-settings', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade')
           OR starts_with(lowered, 'proxy-'::text) THEN
            RETURN name || ' belongs to the connection, not to the message';
        END IF;
        IF jsonb_typeof(value) <> 'string' THEN RETURN 'the value of ' || name || ' is not text'; END IF;
        content := value #>> '{}'::text[];
        IF content ~ E'[\\x01-\\x1f\\x7f]' THEN RETURN 'the value of ' || name || ' holds a control character or a line break'; END IF;
        seen := pg_catalog.array_append(seen, lowered);
        count := count + 1;
        bytes := bytes + octet_length(name) + octet_length(content);
        IF starts_with(content, 'sealed:'::text) THEN
            IF content !~ '^sealed:v2:[0-9a-f]{8}:[A-Za-z0-9+/]+={0,2}$' THEN
                RETURN 'the value of ' || name || ' begins with sealed:, which is how walhook marks what it has sealed';
            END IF;
            -- What is sealed counts as the text in it: 19 characters come before the base64 of it and 28 bytes more.
            bytes := bytes - octet_length(content) + greatest(0, (octet_length(rtrim(content, '='::text)) - 19) * 3 / 4 - 28);
        END IF;
        IF count > 32 THEN RETURN 'there are more than 32'; END IF;
        IF bytes > 4096 THEN RETURN 'they are longer than 4 KiB in all'; END IF;
    END LOOP;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_headers_problem(jsonb) IS
    'Returns what is wrong with an endpoint''s headers, or null. walhook never sends a header that this refuses.';

CREATE OR REPLACE FUNCTION webhook_retry_schedule_problem(schedule interval[]) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN pg_catalog.array_ndims(schedule) > 1 THEN 'it is a list of lists'
        WHEN pg_catalog.cardinality(schedule) > 30 THEN 'it has ' || pg_catalog.cardinality(schedule)::text || ' waits'
        ELSE (SELECT CASE WHEN w.wait IS NULL THEN 'a wait is null' ELSE 'a wait is ' || w.wait::text END
              FROM pg_catalog.unnest(schedule) AS w(wait) -- in seconds, as walhook waits: to compare intervals, PostgreSQL takes a year for 360 days
              WHERE (extract(epoch FROM w.wait) > 0::numeric AND extract(epoch FROM w.wait) <= 604800::numeric) IS NOT TRUE LIMIT 1)
    END;
COMMENT ON FUNCTION webhook_retry_schedule_problem(interval[]) IS 'Returns what is wrong with an endpoint''s retry schedule, or null.';

-- A filter runs in the application's INSERT, whoever chose it, and PostgreSQL bounds no expression's time. So each part of a filter
-- may go through the payload once. Refused are two values compared (each item with each), $ within ?(...), ** twice, lists of
-- subscripts (which double the items), keyvalue() (which triples them), and regular expressions that look back or ahead or count.
-- Then the filter's length bounds the time: with the largest payload 1 ms for each character, or 4 ms where it goes through lists or
-- has a regular expression. So one filter, which may count 512, takes half a second at worst, and all of an organization, which may
-- count 4096, take four. With a usual payload a filter takes a microsecond or two.
CREATE OR REPLACE FUNCTION webhook_filter_cost(filter jsonpath) RETURNS int
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    written text := filter::text;
    bare    text := replace(regexp_replace(written, E'"([^"\\\\]|\\\\.)*"', '""'::text, 'g'::text), '.""', '.k');
BEGIN
    RETURN CASE WHEN strpos(bare, 'like_regex') > 0 THEN length(written) ELSE length(bare) END
         * CASE WHEN bare ~ E'like_regex|[*?@+/%[]|-([^0-9]|$)|\\.[a-z_]+\\(' THEN 4 ELSE 1 END;
END $fn$;
COMMENT ON FUNCTION webhook_filter_cost(jsonpath) IS
    'What a filter counts for the limits of one (512) and of all of an organization (4096): its length without texts and names of fields; four times that '
    'if it has *, [, ?(, a method or arithmetic; four times its whole length if it has like_regex.';

CREATE OR REPLACE FUNCTION webhook_filter_problem(filter jsonpath) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $fn$
DECLARE
    -- PostgreSQL's own notation, with "" for each text and .k for each key.
    written text := filter::text;
    bare    text;
    compare CONSTANT text := ' (==|!=|<|>|<=|>=) ';
    divide  CONSTANT text := ' [*/%] ';
    literal CONSTANT text := '(""|-?[0-9]|true|false|null)';
BEGIN
    IF octet_length(written) > 1024 THEN RETURN 'it is longer than 1 KiB'; END IF;
    bare := replace(regexp_replace(written, E'"([^"\\\\]|\\\\.)*"', '""'::text, 'g'::text), '.""', '.k');
    IF strpos(bare, '$""') > 0 THEN RETURN 'it has a variable, and none is set'; END IF;
    IF bare ~ E'^(strict )?\\$[^=<>]*\\?\\(' THEN RETURN 'it selects values and is no condition, so it needs exists(...) around it'; END IF;
    IF length(bare) - length(translate(bare, '$@'::text, '')) > 16 THEN RETURN 'it has more than 16 paths'; END IF;
    IF strpos(bare, ',') > 0 THEN RETURN 'it has a list of subscripts'; END IF;
    IF strpos(bare, '.keyvalue(') > 0 THEN RETURN 'it has keyvalue()'; END IF;
    IF bare ~ E'\\*\\*.*\\*\\*' THEN RETURN 'it has ** twice'; END IF;
    IF bare ~ E'\\?\\(.*\\$|\\$.*\\$.*\\?\\(' THEN RETURN 'it has ?(...) and more than one $'; END IF;
    -- Numbers may have a hundred thousand digits, and take time by their square.
    IF regexp_replace(regexp_replace(bare, divide || literal, ' '::text, 'g'::text), literal || divide, ' '::text, 'g'::text) ~ divide THEN
        RETURN 'it multiplies or divides two values of the payload, and needs a constant on one side';
    END IF;
    bare := regexp_replace(bare, compare || literal, ' '::text, 'g'::text);
    bare := regexp_replace(bare, literal || compare, ' '::text, 'g'::text);
    -- A strict path without *, [ and ?( selects one value, which is not compared item by item even where it is a list.
    IF bare ~ compare AND bare !~ '^strict [^*?[]*$' THEN
        RETURN 'it compares two values of the payload: it needs a constant on one side, or strict in front and no *, [ or ?(';
    END IF;
    IF strpos(bare, 'like_regex') > 0 AND written ~ E'\\\\\\\\[0-9]|\\(\\?|[{]' THEN
        RETURN 'its regular expression looks back, ahead or counts, with (?, { or a number after a backslash';
    END IF;
    IF webhook_filter_cost(filter) > 512 THEN
        RETURN 'it costs ' || webhook_filter_cost(filter)::text || ', more than 512: its length counts, four times if it has *, [, ?(, like_regex, a method or arithmetic';
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_filter_problem(jsonpath) IS 'Returns what is wrong with an endpoint''s filter, or null. A filter that passes takes a bounded time.';

-- Some errors of a JSON path are errors in spite of @@, such as comparing times with and without a zone. SET search_path would make
-- each call twice as slow; everything is qualified instead.
CREATE OR REPLACE FUNCTION webhook_filter_matches(payload jsonb, filter jsonpath) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE AS $fn$
BEGIN
    RETURN coalesce(payload OPERATOR(pg_catalog.@@) filter, false);
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $fn$;
COMMENT ON FUNCTION webhook_filter_matches(jsonb, jsonpath) IS
    'Whether an endpoint''s filter matches a payload. A filter that cannot be evaluated does not match. To try one: SELECT webhook_filter_matches(''{"amount": 5}'', ''$.amount > 1'').';

-- Whoever may pause endpoints is an operator, and walhook's own role may write webhook_state.
CREATE OR REPLACE FUNCTION webhook_is_operator() RETURNS boolean
    LANGUAGE sql STABLE SET search_path FROM CURRENT AS $fn$
    SELECT pg_has_role(me.role, c.relowner, 'USAGE'::text) OR has_table_privilege(me.role, c.oid, 'UPDATE'::text)
        OR coalesce(has_function_privilege(me.role, to_regprocedure('webhook_pause(uuid)')::oid, 'EXECUTE'::text), false)
    FROM pg_class AS c, (SELECT webhook_session_role() AS role) AS me
    WHERE c.oid = 'webhook_state'::regclass::oid
$fn$;
COMMENT ON FUNCTION webhook_is_operator() IS 'Whether the session''s role may change endpoints that have all_organizations set.';

CREATE OR REPLACE FUNCTION webhook_endpoints_before_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
DECLARE
    is_new boolean := tg_op = 'INSERT';
    as_owner boolean;
    sealing boolean := false;
    problem text;
BEGIN
    IF tg_relid <> 'webhook_endpoints'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_endpoints_before_write', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Whoever disables, filters or deletes an operators' endpoint silences alarms.
    IF NOT is_new AND old.all_organizations AND NOT webhook_is_operator() THEN
        RAISE EXCEPTION 'webhook_endpoints: only the owner of the tables (%) and operators, who may execute webhook_pause, change or delete endpoint %, because it has all_organizations set: leave it out, with WHERE NOT all_organizations',
            (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = tg_relid), old.id USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF tg_op = 'DELETE' THEN
        RETURN old;
    END IF;
    -- An UPDATE is checked only for the columns that it changes, so that an old row can always be disabled.
    IF is_new AND (new.organization_id IS NULL OR btrim(new.organization_id) = '' OR octet_length(new.organization_id) > 512) THEN
        RAISE EXCEPTION 'webhook_endpoints.organization_id is null, empty or longer than 512 bytes: give the id of the organization whose events this endpoint gets'
            USING ERRCODE = 'check_violation';
    END IF;
    -- Nobody chooses an id: with the id of a deleted endpoint an endpoint would get what is still owed to that one, perhaps from
    -- another organization. Whoever may act as the tables' owner keeps the given id, because a restore needs that. Otherwise a
    -- given id cannot be told from the column's default, and is replaced.
    as_owner := pg_has_role(webhook_session_role(), (SELECT c.relowner FROM pg_class AS c WHERE c.oid = tg_relid), 'USAGE'::text);
    IF is_new AND (new.id IS NULL OR NOT as_owner) THEN
        new.id := gen_random_uuid();
    END IF;
    IF NOT is_new AND (new.id IS DISTINCT FROM old.id OR new.organization_id IS DISTINCT FROM old.organization_id) THEN
        RAISE EXCEPTION 'webhook_endpoints.id and organization_id cannot be changed: delete the endpoint and insert a new one; what is owed to the old one is cancelled'
            USING ERRCODE = 'check_violation';
    END IF;

    IF is_new OR new.url IS DISTINCT FROM old.url THEN
        problem := webhook_url_problem(new.url);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.url is not usable: %; give an absolute URL such as https://example.com/webhooks', problem
                USING ERRCODE = 'check_violation';
        END IF;
    END IF;

    -- Sealing changes no header. So an old row that the rules of today would refuse is sealed like any other. What is sealed is
    -- less than twice as long as the text, and as long as before when it is sealed anew: nothing grows by it.
    IF NOT is_new AND jsonb_typeof(new.headers) = 'object' AND jsonb_typeof(old.headers) = 'object' THEN
        sealing := NOT EXISTS (
            SELECT FROM jsonb_each_text(old.headers) AS o FULL JOIN jsonb_each_text(new.headers) AS n ON n.key = o.key
            WHERE (n.value = o.value OR n.value ~ '^sealed:v2:[0-9a-f]{8}:[A-Za-z0-9+/]+={0,2}$'
                   AND CASE WHEN starts_with(o.value, 'sealed:'::text) THEN octet_length(n.value) = octet_length(o.value)
                            ELSE octet_length(n.value) <= 2 * octet_length(o.value) + 64 END) IS NOT TRUE);
    END IF;
    IF is_new OR new.headers IS DISTINCT FROM old.headers AND NOT sealing THEN
        problem := webhook_headers_problem(new.headers);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.headers are not usable: %; give a JSON object of name to text, without headers of walhook or of the connection', problem
                USING ERRCODE = 'check_violation';
        END IF;
    END IF;

    IF is_new OR new.event_types IS NULL OR new.event_types OPERATOR(pg_catalog.<>) old.event_types THEN
        IF new.event_types IS NULL OR pg_catalog.cardinality(new.event_types) = 0 THEN
            RAISE EXCEPTION 'webhook_endpoints.event_types is null or empty: use ''{*}'' for every type, or set enabled = false to get none'
                USING ERRCODE = 'check_violation';
        END IF;
        -- Every INSERT into the outbox compares all of them: a hundred take some microseconds.
        IF pg_catalog.cardinality(new.event_types) > 100 THEN
            RAISE EXCEPTION 'webhook_endpoints.event_types has % entries, more than 100: use patterns such as payment.*, or *', pg_catalog.cardinality(new.event_types)
                USING ERRCODE = 'check_violation';
        END IF;
        SELECT coalesce(quote_literal(w.entry), 'a null entry') INTO problem
        FROM pg_catalog.unnest(new.event_types) AS w(entry)
        WHERE w.entry IS DISTINCT FROM '*'
          AND NOT EXISTS (SELECT FROM webhook_event_types AS t WHERE w.entry = ANY (t.patterns))
        LIMIT 1;
        IF FOUND AND NOT webhook_restoring() THEN
            RAISE EXCEPTION 'webhook_endpoints.event_types: % matches nothing: use an exact name, a pattern such as payment.*, or *; INSERT INTO webhook_event_types (name, category) adds a type; known types: %',
                problem, (SELECT string_agg(t.name, ', ' ORDER BY t.name) FROM webhook_event_types AS t) USING ERRCODE = 'check_violation';
        END IF;
    END IF;

    IF (is_new OR new.description IS DISTINCT FROM old.description) AND octet_length(new.description) > 1024 THEN
        RAISE EXCEPTION 'webhook_endpoints.description is longer than 1 KiB: give a shorter text' USING ERRCODE = 'check_violation';
    END IF;
    IF (is_new OR new.disabled_reason IS DISTINCT FROM old.disabled_reason) AND octet_length(new.disabled_reason) > 1024 THEN
        RAISE EXCEPTION 'webhook_endpoints.disabled_reason is longer than 1 KiB: give a shorter text' USING ERRCODE = 'check_violation';
    END IF;
    -- Checked here, because a constraint of the table would show the whole row, headers included.
    IF new.enabled IS NULL OR new.max_in_flight NOT BETWEEN 1 AND 1000
       OR NOT (new.rate_per_second > 0::float8 AND new.rate_per_second < 'infinity'::float8) THEN
        RAISE EXCEPTION 'webhook_endpoints.enabled, max_in_flight or rate_per_second is out of bounds: give true or false, null or 1 to 1000, and null or more than 0'
            USING ERRCODE = 'check_violation';
    END IF;
    IF new.filter::text IS DISTINCT FROM old.filter::text AND NOT webhook_restoring() THEN
        problem := webhook_filter_problem(new.filter);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.filter is not usable: %; give a condition such as $.amount > 1000, or null', problem USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF (is_new OR new.timeout IS DISTINCT FROM old.timeout) AND extract(epoch FROM new.timeout) NOT BETWEEN 0.1 AND 60::numeric THEN
        RAISE EXCEPTION 'webhook_endpoints.timeout is %: give null, or 100 milliseconds to 60 seconds', new.timeout USING ERRCODE = 'check_violation';
    END IF;
    IF is_new OR old.retry_schedule IS NULL OR new.retry_schedule OPERATOR(pg_catalog.<>) old.retry_schedule THEN
        problem := webhook_retry_schedule_problem(new.retry_schedule);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_endpoints.retry_schedule is not usable: %; give at most 30 waits, each more than 0 and at most 7 days, such as ''{5s,5m,2h}''', problem
                USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF new.all_organizations IS NULL THEN
        RAISE EXCEPTION 'webhook_endpoints.all_organizations is null: give true or false' USING ERRCODE = 'check_violation';
    END IF;
    -- A role that writes endpoints for tenants may have been granted INSERT and UPDATE on the table, and so on this column.
    IF (new.all_organizations OR old.all_organizations) AND NOT as_owner
       AND (is_new OR new.all_organizations <> old.all_organizations OR new.url IS DISTINCT FROM old.url OR new.event_types OPERATOR(pg_catalog.<>) old.event_types) THEN
        RAISE EXCEPTION 'webhook_endpoints.all_organizations: only the owner of the tables makes such an endpoint, or changes where it sends what: leave the column out, or use the role %',
            (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = tg_relid) USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Every event of walhook's own looks at all of them, and is sent to each.
    IF new.all_organizations AND (is_new OR NOT old.all_organizations) AND NOT webhook_restoring()
       AND (SELECT count(*) FROM webhook_endpoints AS e WHERE e.all_organizations) >= 20::bigint THEN
        RAISE EXCEPTION 'webhook_endpoints.all_organizations: there are 20 such endpoints, and no more are allowed: SELECT id, url FROM webhook_endpoints WHERE all_organizations shows them; delete one that is no longer needed'
            USING ERRCODE = 'check_violation';
    END IF;
    IF new.created_at IS NULL THEN
        new.created_at := now();
    END IF;

    -- The time of a pause does not count for WALHOOK_DISABLE_AFTER.
    IF NOT is_new AND old.paused_at IS NOT NULL AND new.paused_at IS NULL THEN
        INSERT INTO webhook_retries AS r (endpoint_id, resumed_at) VALUES (new.id, clock_timestamp())
        ON CONFLICT (endpoint_id) DO UPDATE SET resumed_at = excluded.resumed_at;
    END IF;

    IF new.enabled THEN
        new.disabled_at := NULL;
        new.disabled_reason := NULL;
    ELSIF new.disabled_at IS NULL THEN
        new.disabled_at := now();
    END IF;
    IF NOT is_new OR new.updated_at IS NULL THEN
        new.updated_at := clock_timestamp();
    END IF;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_before_write() IS
    'Trigger: refuses endpoints that could never be sent to, keeps those of operators from others, and sets disabled_at, disabled_reason and updated_at.';

CREATE OR REPLACE FUNCTION webhook_new_secret() RETURNS text
    LANGUAGE sql VOLATILE PARALLEL SAFE
    -- 4 x 122 bits of the server's strong random source, hashed to 32 bytes: pgcrypto is not needed.
    RETURN 'whsec_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
        || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64');
COMMENT ON FUNCTION webhook_new_secret() IS 'Returns a random signing secret in the form of Standard Webhooks: whsec_ and the base64 of 32 bytes.';

CREATE OR REPLACE FUNCTION webhook_secret_problem(secret text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    -- The text shows nothing of the secret: errors go into logs.
    RETURN CASE
        WHEN secret IS NULL THEN 'it is null'
        WHEN starts_with(secret, 'sealed:') THEN 'it begins with sealed:, which is how walhook marks what it has sealed'
        WHEN secret !~ E'^[\\x20-\\x7e]+$' OR length(secret) NOT BETWEEN 16 AND 256 THEN 'it is not 16 to 256 printable ASCII characters'
        WHEN starts_with(secret, 'whpk_') THEN 'it is a public key: give the secret key, which begins with whsk_'
        WHEN starts_with(secret, 'whsk_') AND secret !~ '^whsk_([A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{86}==)$' THEN 'it begins with whsk_, and is not the base64 of an Ed25519 key of 32 or 64 bytes'
    END;
COMMENT ON FUNCTION webhook_secret_problem(text) IS 'Returns what is wrong with a given signing secret, or null.';

CREATE OR REPLACE FUNCTION webhook_secrets_before_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
DECLARE
    is_new  boolean := tg_op = 'INSERT';
    problem text;
BEGIN
    IF tg_relid <> 'webhook_secrets'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_secrets_before_write', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Everything that a constraint of the table would refuse is refused here: the constraint would show the whole row, secret
    -- included.
    IF new.id IS NULL OR new.endpoint_id IS NULL THEN
        RAISE EXCEPTION 'webhook_secrets.id or endpoint_id is null: leave id out and give the id of an endpoint, or call webhook_set_secret' USING ERRCODE = 'check_violation';
    END IF;
    IF is_new OR new.secret IS DISTINCT FROM old.secret THEN
        IF new.secret !~ '^sealed:v(1|2:[0-9a-f]{8}):[A-Za-z0-9+/]+={0,2}$' OR length(new.secret) > 1024 OR new.secret IS NULL THEN
            problem := webhook_secret_problem(new.secret);
        END IF;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_secrets.secret is not usable: %; give what openssl rand -hex 32 prints', problem USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF new.created_at IS NULL THEN
        new.created_at := clock_timestamp();
    END IF;
    -- A rotation keeps two. A restore brings what was there.
    IF NOT webhook_restoring() AND (new.expires_at IS NULL OR new.expires_at > now())
       AND (is_new OR old.expires_at <= now() OR new.endpoint_id <> old.endpoint_id)
       AND (SELECT count(*) FROM webhook_secrets AS s
            WHERE s.endpoint_id = new.endpoint_id AND s.id <> new.id AND (s.expires_at IS NULL OR s.expires_at > now())) >= 2::bigint THEN
        RAISE EXCEPTION 'endpoint % has two live secrets, and more are not allowed: set expires_at of one of them, or call webhook_set_secret', new.endpoint_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_secrets_before_write() IS 'Trigger: refuses unusable secrets, and too many of them, without showing any.';

CREATE OR REPLACE FUNCTION webhook_endpoints_after_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
BEGIN
    IF tg_relid <> 'webhook_endpoints'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_endpoints_after_insert', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO webhook_secrets AS s (endpoint_id, secret) VALUES (new.id, webhook_new_secret());
    IF webhook_restoring() THEN
        UPDATE webhook_secrets AS s SET id = -s.id WHERE s.endpoint_id = new.id;
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_after_insert() IS 'Trigger: a new endpoint gets a secret.';

-- A statement's endpoints are counted together, or many at once would be counted again for each. Transactions that insert at the
-- same time do not see each other's endpoints, and together may exceed the limit: a lock would make an application wait.
-- A session keeps the plan, which may be that of a statement about one row: a nested loop over the rows of thousands.
CREATE OR REPLACE FUNCTION webhook_endpoints_bounds() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off
    SET enable_nestloop = off SET enable_hashjoin = on SET enable_mergejoin = on AS $fn$
DECLARE
    most bigint;
    crowded text;
    filtered text[]; -- organizations with more to evaluate than before
    cost bigint;
BEGIN
    IF tg_relid <> 'webhook_endpoints'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_endpoints_bounds', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF webhook_restoring() THEN
        RETURN NULL;
    END IF;
    IF tg_op = 'INSERT' THEN
        most := coalesce((SELECT max(s.max_endpoints) FROM webhook_state AS s), 1000);
        SELECT o.organization_id INTO crowded FROM (SELECT DISTINCT c.organization_id FROM came AS c) AS o
        WHERE (SELECT count(*) FROM (SELECT FROM webhook_endpoints AS e WHERE e.organization_id = o.organization_id LIMIT most + 1::bigint) AS n) > most
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'webhook_endpoints: organization % cannot have more than % endpoints: delete those that it no longer needs (DELETE FROM webhook_endpoints WHERE id = ...), or restart walhook with a larger WALHOOK_MAX_ENDPOINTS',
                quote_literal(crowded), most USING ERRCODE = 'check_violation';
        END IF;
        filtered := ARRAY(SELECT DISTINCT c.organization_id FROM came AS c WHERE c.filter IS NOT NULL);
    ELSE
        filtered := ARRAY(SELECT n.organization_id FROM gone AS o JOIN came AS n ON n.id = o.id WHERE n.filter::text IS DISTINCT FROM o.filter::text
                          GROUP BY n.organization_id HAVING coalesce(sum(webhook_filter_cost(n.filter)), 0::bigint) > coalesce(sum(webhook_filter_cost(o.filter)), 0::bigint));
    END IF;
    IF pg_catalog.cardinality(filtered) > 0 THEN
        SELECT e.organization_id, sum(webhook_filter_cost(e.filter)) INTO crowded, cost FROM webhook_endpoints AS e
        WHERE e.organization_id = ANY (filtered) AND e.filter IS NOT NULL
        GROUP BY e.organization_id HAVING sum(webhook_filter_cost(e.filter)) > 4096::bigint LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'webhook_endpoints.filter: the filters of organization % cost % with this one, more than 4096, and each of its events is compared with all: give a shorter one, or remove others (SELECT id, filter, webhook_filter_cost(filter) FROM webhook_endpoints WHERE organization_id = % ORDER BY 3 DESC)',
                quote_literal(crowded), cost, quote_literal(crowded) USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_bounds() IS 'Trigger: refuses more endpoints of one organization than WALHOOK_MAX_ENDPOINTS, and more filters than its events can be compared with.';

CREATE OR REPLACE FUNCTION webhook_secrets_restored() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
BEGIN
    IF tg_relid <> 'webhook_secrets'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_secrets_restored', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM webhook_secrets AS s WHERE s.endpoint_id = new.endpoint_id AND s.id < 0 AND s.created_at > new.created_at;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_secrets_restored() IS 'Trigger: a restored secret replaces the one that was made when its endpoint was restored.';

CREATE OR REPLACE FUNCTION webhook_endpoints_notify() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    IF tg_relid <> 'webhook_endpoints'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_endpoints_notify', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- The stream brings it at COMMIT, like NOTIFY; but after a NOTIFY, PREPARE TRANSACTION would fail.
    PERFORM pg_catalog.pg_logical_emit_message(true, 'walhook'::text, 'look'::text);
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_notify() IS 'Trigger: tells walhook at once that an endpoint was disabled, deleted, paused or resumed.';

-- Building an index of a large table has no time limit. A starting walhook lists the tables whose indexes to skip
-- (walhook.large_tables).
SET LOCAL statement_timeout = 0;
DO $do$
DECLARE
    large CONSTANT text := coalesce(current_setting('walhook.large_tables', true), '');
BEGIN
    -- Each object of a table is created only if it is missing: CREATE INDEX IF NOT EXISTS and CREATE OR REPLACE TRIGGER would
    -- lock the table against writers even if the object exists.
    IF to_regclass('webhook_endpoints_organization_idx') IS NULL AND strpos(large, 'webhook_endpoints') = 0 THEN
        CREATE INDEX webhook_endpoints_organization_idx ON webhook_endpoints (organization_id);
        COMMENT ON INDEX webhook_endpoints_organization_idx IS 'Every INSERT into webhook_outbox looks up its organization''s endpoints here.';
    END IF;
    IF to_regclass('webhook_endpoints_operators_idx') IS NULL AND strpos(large, 'webhook_endpoints') = 0 THEN
        CREATE INDEX webhook_endpoints_operators_idx ON webhook_endpoints (id) WHERE all_organizations;
        COMMENT ON INDEX webhook_endpoints_operators_idx IS 'walhook''s own events find the endpoints of operators here.';
    END IF;
    IF to_regclass('webhook_secrets_endpoint_idx') IS NULL AND strpos(large, 'webhook_secrets') = 0 THEN
        CREATE INDEX webhook_secrets_endpoint_idx ON webhook_secrets (endpoint_id);
    END IF;
    IF to_regclass('webhook_secrets_unsealed_idx') IS NULL AND strpos(large, 'webhook_secrets') = 0 THEN
        CREATE INDEX webhook_secrets_unsealed_idx ON webhook_secrets (id) WHERE NOT starts_with(secret, 'sealed:');
        COMMENT ON INDEX webhook_secrets_unsealed_idx IS 'With WALHOOK_SECRET_KEY, what is to be sealed is found here.';
    END IF;
    IF to_regclass('webhook_endpoints_unsealed_idx') IS NULL AND strpos(large, 'webhook_endpoints') = 0 THEN
        CREATE INDEX webhook_endpoints_unsealed_idx ON webhook_endpoints (id)
            WHERE pg_catalog.jsonb_path_exists(headers, '$.* ? (!(@ starts with "sealed:"))'::jsonpath);
        COMMENT ON INDEX webhook_endpoints_unsealed_idx IS 'With WALHOOK_SECRET_KEY, headers that are to be sealed are found here.';
    END IF;
    IF EXISTS (SELECT FROM pg_constraint AS c WHERE c.conrelid = 'webhook_secrets'::regclass::oid AND c.conname = 'webhook_secrets_secret_16_to_256_printable_characters'
               AND strpos(pg_get_constraintdef(c.oid), '(1|2:'::text) = 0) THEN -- versions 1 to 6 knew sealed:v1: alone
        ALTER TABLE webhook_secrets DROP CONSTRAINT webhook_secrets_secret_16_to_256_printable_characters,
            ADD CONSTRAINT webhook_secrets_secret_16_to_256_printable_characters CHECK (
                CASE WHEN starts_with(secret, 'sealed:')
                     THEN secret ~ '^sealed:v(1|2:[0-9a-f]{8}):[A-Za-z0-9+/]+={0,2}$' AND length(secret) <= 1024
                     ELSE secret ~ E'^[\\x20-\\x7e]+$' AND length(secret) BETWEEN 16 AND 256 END);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_before_write') THEN
        CREATE TRIGGER webhook_secrets_before_write BEFORE INSERT OR UPDATE ON webhook_secrets
            FOR EACH ROW EXECUTE FUNCTION webhook_secrets_before_write();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_before_write') THEN
        CREATE TRIGGER webhook_endpoints_before_write BEFORE INSERT OR UPDATE ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_before_write();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_before_delete') THEN
        CREATE TRIGGER webhook_endpoints_before_delete BEFORE DELETE ON webhook_endpoints
            FOR EACH ROW WHEN (old.all_organizations) EXECUTE FUNCTION webhook_endpoints_before_write();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_after_insert') THEN
        CREATE TRIGGER webhook_endpoints_after_insert AFTER INSERT ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_after_insert();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_bounds_insert') THEN
        CREATE TRIGGER webhook_endpoints_bounds_insert AFTER INSERT ON webhook_endpoints REFERENCING NEW TABLE AS came
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_bounds();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_bounds_update') THEN
        CREATE TRIGGER webhook_endpoints_bounds_update AFTER UPDATE ON webhook_endpoints REFERENCING OLD TABLE AS gone NEW TABLE AS came
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_bounds();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_restored') THEN
        CREATE TRIGGER webhook_secrets_restored BEFORE INSERT ON webhook_secrets
            FOR EACH ROW EXECUTE FUNCTION webhook_secrets_restored();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_notify_update') THEN
        CREATE TRIGGER webhook_endpoints_notify_update AFTER UPDATE ON webhook_endpoints
            FOR EACH ROW WHEN (old.enabled AND NOT new.enabled) EXECUTE FUNCTION webhook_endpoints_notify();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_notify_pause') THEN
        CREATE TRIGGER webhook_endpoints_notify_pause AFTER UPDATE ON webhook_endpoints
            FOR EACH ROW WHEN ((old.paused_at IS NULL) <> (new.paused_at IS NULL)) EXECUTE FUNCTION webhook_endpoints_notify();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_notify_delete') THEN
        CREATE TRIGGER webhook_endpoints_notify_delete AFTER DELETE ON webhook_endpoints
            FOR EACH ROW EXECUTE FUNCTION webhook_endpoints_notify();
    END IF;
END $do$;
SET LOCAL statement_timeout = '5min';
REVOKE ALL ON webhook_secrets FROM PUBLIC;


-- --- 4. Outbox ------------------------------------------------------------------------------------------------------
-- REPLICA IDENTITY does not matter: the publication has inserts only, which do not need it.

CREATE TABLE IF NOT EXISTS webhook_outbox (
    id              uuid PRIMARY KEY DEFAULT webhook_uuidv7(),
    organization_id text NOT NULL,
    event_type      text NOT NULL,
    payload         jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    endpoint_ids    uuid[] NOT NULL,
    shard           smallint NOT NULL DEFAULT 0
) PARTITION BY RANGE (id);
COMMENT ON TABLE webhook_outbox IS
    'Events. All that an application does is INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES (...), in the transaction of the '
    'change that it reports. A row cannot be changed, only deleted. Partitioned by day (UTC) of the id.';
COMMENT ON COLUMN webhook_outbox.id IS 'A UUIDv7, made at INSERT unless given. Its time decides the partition; more than an hour ahead is refused.';
COMMENT ON COLUMN webhook_outbox.organization_id IS 'The organization whose endpoints get the event.';
COMMENT ON COLUMN webhook_outbox.event_type IS 'A name in webhook_event_types.';
COMMENT ON COLUMN webhook_outbox.payload IS 'Sent as "data". At most 256 KiB as text.';
COMMENT ON COLUMN webhook_outbox.created_at IS 'Sent as "timestamp". Default: the start of the transaction.';
COMMENT ON COLUMN webhook_outbox.endpoint_ids IS
    'The endpoints that the event is owed to. The trigger sets it, in the inserting transaction, to the enabled endpoints that subscribe to the type: the '
    'organization''s, and for a type webhook.* those with all_organizations. A given value is checked to belong to the organization. {}: to nobody.';
COMMENT ON COLUMN webhook_outbox.shard IS '0 to 1023, a hash of the organization. Always set by the trigger; the default is for mappers that need one.';

-- SECURITY DEFINER, so that the application needs no privilege on endpoints or event types.
CREATE OR REPLACE FUNCTION webhook_outbox_before_insert() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
DECLARE
    bytes    bytea;
    size     bigint;
    wanted   text[];
    testing  boolean;
    mine     uuid[];
    stranger text;
BEGIN
    -- Looking up the root of each row's partition would make an INSERT a fifth slower. If the table's name is one of ours, the
    -- columns' types are enough to know that nobody else's code runs below.
    IF (tg_table_schema <> current_schema() OR NOT starts_with(tg_table_name::text, 'webhook_outbox_'))
       AND pg_partition_root(tg_relid::regclass)::oid IS DISTINCT FROM 'webhook_outbox'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_outbox_before_insert', tg_relid::regclass
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF (pg_catalog.pg_typeof(new.id)::oid, pg_catalog.pg_typeof(new.organization_id)::oid, pg_catalog.pg_typeof(new.event_type)::oid,
        pg_catalog.pg_typeof(new.payload)::oid, pg_catalog.pg_typeof(new.created_at)::oid, pg_catalog.pg_typeof(new.endpoint_ids)::oid,
        pg_catalog.pg_typeof(new.shard)::oid)
       <> ('uuid'::regtype::oid, 'text'::regtype::oid, 'text'::regtype::oid, 'jsonb'::regtype::oid, 'timestamptz'::regtype::oid,
           'uuid[]'::regtype::oid, 'smallint'::regtype::oid) THEN
        RAISE EXCEPTION 'table % has columns of other types than webhook_outbox: drop its trigger that calls webhook_outbox_before_insert', tg_relid::regclass
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    bytes := uuid_send(new.id);
    IF new.id IS NULL OR get_byte(bytes, 6) >> 4 <> 7 OR get_byte(bytes, 8) >> 6 <> 2 THEN
        RAISE EXCEPTION 'webhook_outbox.id % is not a UUIDv7 (RFC 9562): leave the column out, and the database makes the id', coalesce(new.id::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- The id's first six bytes are its milliseconds, and bytes sort like numbers.
    IF bytes >= substring(int8send(((date_part('epoch'::text, clock_timestamp()) + 3600::float8) * 1000::float8)::bigint) FROM 3) THEN
        RAISE EXCEPTION 'webhook_outbox.id % is from %, more than an hour ahead of the database''s clock: leave the column out, or set the clock of the machine that makes the ids',
            new.id, webhook_uuid_time(new.id) USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF new.organization_id IS NULL OR btrim(new.organization_id) = '' OR octet_length(new.organization_id) > 512 THEN
        RAISE EXCEPTION 'webhook_outbox.organization_id is null, empty or longer than 512 bytes: give the id of the organization whose endpoints get the event'
            USING ERRCODE = 'check_violation';
    END IF;

    SELECT t.patterns INTO wanted FROM webhook_event_types AS t WHERE t.name = new.event_type;
    IF NOT FOUND AND NOT (new.event_type IS NOT NULL AND new.endpoint_ids IS NOT NULL AND webhook_restoring()) THEN
        RAISE EXCEPTION 'webhook_outbox.event_type % is not a known event type: INSERT INTO webhook_event_types (name, category) adds one; known types: %',
            coalesce(quote_literal(new.event_type), 'null'), (SELECT string_agg(t.name, ', ' ORDER BY t.name) FROM webhook_event_types AS t)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    IF new.payload IS NULL AND current_setting('walhook.testing'::text, true) = 'on' THEN
        SELECT coalesce(t.example, '{"test": true, "message": "A test webhook"}') INTO new.payload FROM webhook_event_types AS t WHERE t.name = new.event_type;
    END IF;
    IF new.payload IS NULL THEN
        RAISE EXCEPTION 'webhook_outbox.payload is null: give the event''s data as JSON, ''{}'' where there is none'
            USING ERRCODE = 'check_violation';
    END IF;
    size := octet_length(new.payload::text);
    IF size > 262144 THEN
        RAISE EXCEPTION 'webhook_outbox.payload is % bytes as text, more than 256 KiB: send a reference (an id or a URL) instead of the data', size
            USING ERRCODE = 'check_violation';
    END IF;

    IF new.created_at IS NULL THEN
        new.created_at := now();
    ELSIF new.created_at NOT BETWEEN '1970-01-01 00:00:00+00' AND '9999-12-31 00:00:00+00' THEN
        RAISE EXCEPTION 'webhook_outbox.created_at % is not a time that can be sent: leave the column out, and it becomes the time of the transaction', new.created_at
            USING ERRCODE = 'check_violation';
    END IF;

    new.shard := hashtextextended(new.organization_id, 0::bigint) & 1023::bigint;

    -- A test webhook gives endpoint_ids, {} for all that subscribe. So no other event has to look whether it is one.
    IF new.endpoint_ids IS NOT NULL THEN
        testing := current_setting('walhook.testing'::text, true) = 'on';
    END IF;
    IF new.endpoint_ids IS NULL OR testing AND pg_catalog.cardinality(new.endpoint_ids) = 0 THEN
        new.endpoint_ids := ARRAY(SELECT e.id FROM webhook_endpoints AS e
                                  WHERE e.organization_id = new.organization_id AND e.enabled AND NOT e.all_organizations
                                    AND e.event_types OPERATOR(pg_catalog.&&) wanted
                                    AND (e.filter IS NULL OR webhook_filter_matches(new.payload, e.filter)));
        IF starts_with(new.event_type, 'webhook.'::text) THEN
            new.endpoint_ids := new.endpoint_ids OPERATOR(pg_catalog.||) ARRAY(SELECT e.id FROM webhook_endpoints AS e
                                  WHERE e.all_organizations AND e.enabled
                                    AND e.event_types OPERATOR(pg_catalog.&&) pg_catalog.array_append(wanted, '*')
                                    AND (e.filter IS NULL OR webhook_filter_matches(new.payload, e.filter)));
        END IF;
    ELSIF pg_catalog.cardinality(new.endpoint_ids) > 0 AND NOT webhook_restoring() THEN
        -- No endpoint of another organization, for operators or not: applications may pass on what a tenant has named.
        mine := ARRAY(SELECT e.id FROM webhook_endpoints AS e
                      WHERE e.organization_id = new.organization_id AND e.id = ANY (new.endpoint_ids)
                        AND (NOT e.all_organizations OR starts_with(new.event_type, 'webhook.'::text)));
        SELECT coalesce(g.id::text, 'null') INTO stranger FROM pg_catalog.unnest(new.endpoint_ids) AS g(id)
        WHERE g.id IS NULL OR g.id <> ALL (mine) LIMIT 1;
        IF FOUND AND EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.organization_id = new.organization_id AND e.id::text = stranger) THEN
            RAISE EXCEPTION 'webhook_outbox.endpoint_ids: % has all_organizations set, so it gets the types webhook.* and nothing else: send webhook.test, or name other endpoints', stranger
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF stranger IS NOT NULL THEN
            RAISE EXCEPTION 'webhook_outbox.endpoint_ids: % is not an endpoint of organization %: leave the column out to reach every endpoint that subscribes, or name endpoints of this organization',
                stranger, quote_literal(new.organization_id) USING ERRCODE = 'invalid_parameter_value';
        END IF;
        new.endpoint_ids := mine;
    END IF;
    IF testing THEN
        INSERT INTO webhook_audit (who, action, organization_id, endpoint_id, count, detail)
        VALUES (session_user::text, 'test.sent', new.organization_id, CASE WHEN pg_catalog.cardinality(new.endpoint_ids) = 1 THEN new.endpoint_ids[1] END, 1, new.event_type);
    END IF;
    RETURN new;
END $fn$;
COMMENT ON FUNCTION webhook_outbox_before_insert() IS
    'Trigger: refuses events that could not be delivered, and sets endpoint_ids.';

CREATE OR REPLACE FUNCTION webhook_outbox_before_update() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    RAISE EXCEPTION 'webhook_outbox: an event cannot be changed, because it may have been sent already: delete it and insert a new one'
        USING ERRCODE = 'check_violation';
END $fn$;
COMMENT ON FUNCTION webhook_outbox_before_update() IS 'Trigger: an event''s row cannot be changed.';

DO $do$
BEGIN
    -- ENABLE ALWAYS, so that session_replication_role cannot bring events without endpoint_ids. Before the first partition,
    -- because a partition gets the root's triggers as they are when it is attached.
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_outbox'::regclass::oid AND tgname = 'webhook_outbox_before_insert') THEN
        CREATE TRIGGER webhook_outbox_before_insert BEFORE INSERT ON webhook_outbox
            FOR EACH ROW EXECUTE FUNCTION webhook_outbox_before_insert();
        ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_insert;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_outbox'::regclass::oid AND tgname = 'webhook_outbox_before_update') THEN
        CREATE TRIGGER webhook_outbox_before_update BEFORE UPDATE ON webhook_outbox
            FOR EACH ROW EXECUTE FUNCTION webhook_outbox_before_update();
        ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_update;
    END IF;
END $do$;
CREATE TABLE IF NOT EXISTS webhook_outbox_default PARTITION OF webhook_outbox DEFAULT;
COMMENT ON TABLE webhook_outbox_default IS 'Events of days without a partition. Normally empty.';


-- --- 5. Deliveries --------------------------------------------------------------------------------------------------

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
    'One row for each event and endpoint that it is owed to, with the outcome, written by walhook. Replay any of them with '
    'UPDATE webhook_deliveries SET status = ''pending'', next_attempt_at = now() WHERE id = .... Partitioned by day (UTC) of the id.';
COMMENT ON COLUMN webhook_deliveries.id IS 'webhook_delivery_id(event_id, endpoint_id); receivers see it as X-Webhook-Delivery-ID.';
COMMENT ON COLUMN webhook_deliveries.event_id IS 'The row of webhook_outbox.';
COMMENT ON COLUMN webhook_deliveries.endpoint_id IS 'The row of webhook_endpoints, which may have been deleted.';
COMMENT ON COLUMN webhook_deliveries.organization_id IS 'The event''s.';
COMMENT ON COLUMN webhook_deliveries.event_type IS 'The event''s.';
COMMENT ON COLUMN webhook_deliveries.status IS
    'pending: no attempt has ended yet, or a replay waits; retrying: the last attempt failed and another follows; success; failed: no attempt '
    'follows; cancelled: the endpoint was disabled or deleted meanwhile.';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Attempts that have ended, over all replays.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS
    'When a pending or retrying delivery is due. walhook writes a first attempt that has to wait as due ten minutes ago, so that it comes before retries. Meaningless in the other states.';
COMMENT ON COLUMN webhook_deliveries.status_code IS 'HTTP status of the last attempt; null: no response came.';
COMMENT ON COLUMN webhook_deliveries.error_class IS
    'The class of the last attempt''s failure: dns, connect, tls, timeout, reset, protocol, redirect, http_4xx, http_5xx, blocked_address, bad_request. Null: it succeeded.';
COMMENT ON COLUMN webhook_deliveries.error IS 'The failure in words. Never has a secret, a URL''s query, or an address that a name resolved to.';
COMMENT ON COLUMN webhook_deliveries.response IS 'The first 4 KiB of the last response''s body.';
COMMENT ON COLUMN webhook_deliveries.duration_ms IS 'How long the last attempt took.';
COMMENT ON COLUMN webhook_deliveries.attempt_log IS
    'All attempts: a list of {attempt, at, status_code, error_class, error, duration_ms}; null while the row''s own columns describe the only one. See webhook_attempts.';
COMMENT ON COLUMN webhook_deliveries.series_start IS 'How many attempts had ended when the retry schedule last started over.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'When it was first recorded: after its first attempt, or when it had to wait.';
COMMENT ON COLUMN webhook_deliveries.updated_at IS 'When walhook last wrote it.';
COMMENT ON COLUMN webhook_deliveries.completed_at IS 'When it became success, failed or cancelled.';

CREATE OR REPLACE FUNCTION webhook_deliveries_notify() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    IF tg_relid <> 'webhook_deliveries'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_deliveries_notify', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'walhook'::text, 'look'::text); -- as for endpoints
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_deliveries_notify() IS 'Trigger: tells walhook that somebody else updated deliveries (a replay).';

SET LOCAL statement_timeout = 0; -- as above
DO $do$
DECLARE
    large CONSTANT text := coalesce(current_setting('walhook.large_tables', true), '');
BEGIN
    IF to_regclass('webhook_deliveries_due_idx') IS NULL AND strpos(large, 'webhook_deliveries') = 0 THEN
        CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (next_attempt_at) WHERE status IN ('pending', 'retrying');
        COMMENT ON INDEX webhook_deliveries_due_idx IS 'What is due, over all endpoints.';
    END IF;
    IF to_regclass('webhook_deliveries_lane_idx') IS NULL AND strpos(large, 'webhook_deliveries') = 0 THEN
        CREATE INDEX webhook_deliveries_lane_idx ON webhook_deliveries (endpoint_id, next_attempt_at, id) WHERE status IN ('pending', 'retrying');
        COMMENT ON INDEX webhook_deliveries_lane_idx IS 'What is due for one endpoint.';
    END IF;
    IF to_regclass('webhook_deliveries_dead_idx') IS NULL AND strpos(large, 'webhook_deliveries') = 0 THEN
        CREATE INDEX webhook_deliveries_dead_idx ON webhook_deliveries (endpoint_id, id) WHERE status IN ('failed', 'cancelled');
        COMMENT ON INDEX webhook_deliveries_dead_idx IS 'Dead letters of one endpoint by time, see webhook_replay_failed.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_deliveries'::regclass::oid AND tgname = 'webhook_deliveries_notify') THEN
        -- walhook's own transactions set walhook.recording, so that its batches emit no hint.
        CREATE TRIGGER webhook_deliveries_notify AFTER UPDATE ON webhook_deliveries
            FOR EACH STATEMENT WHEN (current_setting('walhook.recording', true) IS DISTINCT FROM 'on')
            EXECUTE FUNCTION webhook_deliveries_notify();
    END IF;

    -- For people's queries by event_id: walhook's own use the time that an event and its deliveries share. The B-tree of versions 1
    -- to 5 cost each row 76 bytes of WAL, BRIN costs next to none. Retries put rows of old events among new ones: 128 values keep
    -- such groups apart, where one minimum and maximum would cover half of the day. Ranges smaller than the usual 128 pages would
    -- fill autovacuum's queue of 256 requests sooner, and the server logs each request that finds it full.
    IF strpos(large, 'webhook_deliveries') = 0 OR to_regclass('webhook_deliveries_event_brin_idx') IS NOT NULL THEN
        PERFORM set_config('lock_timeout', '50ms', true);
        FOR try IN 1..3 LOOP
            BEGIN
                DROP INDEX IF EXISTS webhook_deliveries_event_idx;
                IF to_regclass('webhook_deliveries_event_brin_idx') IS NULL THEN
                    CREATE INDEX webhook_deliveries_event_brin_idx ON webhook_deliveries
                        USING brin (event_id uuid_minmax_multi_ops (values_per_range = 128)) WITH (autosummarize = on);
                    COMMENT ON INDEX webhook_deliveries_event_brin_idx IS 'For people: the deliveries of one event.';
                END IF;
                EXIT;
            EXCEPTION WHEN lock_not_available THEN
                IF try = 3 THEN
                    RAISE WARNING 'the index on webhook_deliveries (event_id) was not replaced, because the table was in use; deliveries go on, and walhook init tries again';
                END IF;
            END;
        END LOOP;
    END IF;
END $do$;
SET LOCAL lock_timeout = '500ms';
SET LOCAL statement_timeout = '5min';
CREATE TABLE IF NOT EXISTS webhook_deliveries_default PARTITION OF webhook_deliveries DEFAULT;
COMMENT ON TABLE webhook_deliveries_default IS 'Deliveries of days without a partition. Normally empty.';


-- --- 6. walhook's own state -----------------------------------------------------------------------------------------

-- The table was created at the beginning of this file, with all present columns, for its lock.
COMMENT ON TABLE webhook_state IS 'walhook''s position: one row per replication slot, updated in the transactions that record outcomes.';
COMMENT ON COLUMN webhook_state.slot IS 'WALHOOK_SLOT.';
COMMENT ON COLUMN webhook_state.epoch IS 'Incremented when another process takes over the slot: writes with an older epoch do nothing.';
COMMENT ON COLUMN webhook_state.holder IS 'The process that holds the epoch.';
COMMENT ON COLUMN webhook_state.durable_lsn IS 'End LSN of the last transaction up to which every delivery is in webhook_deliveries.';
COMMENT ON COLUMN webhook_state.durable_at IS 'Commit time of the transaction that ends at durable_lsn.';
COMMENT ON COLUMN webhook_state.system_identifier IS 'Identifies the cluster of durable_lsn.';
COMMENT ON COLUMN webhook_state.timeline IS 'The timeline of durable_lsn.';
COMMENT ON COLUMN webhook_state.environment IS 'WALHOOK_ENVIRONMENT of the first run or init that had one: a restored copy elsewhere must not call customers.';
COMMENT ON COLUMN webhook_state.reconcile_from IS
    'Events inserted since then may be owed without a row, because the slot was created after them or the outbox was not published. walhook compares, and then sets it to null.';
COMMENT ON COLUMN webhook_state.published IS 'Identity of the publication, and of the outbox in it, when the slot was last acquired. If it has changed, the outbox was not published for a while.';
COMMENT ON COLUMN webhook_state.open_since IS
    'No transaction that commits after durable_lsn has inserted anything before this time. If the stream is lost, walhook compares from here. Null: unknown.';
COMMENT ON COLUMN webhook_state.progress IS 'How far walhook is with what takes long. See webhook_status.progress.';
COMMENT ON COLUMN webhook_state.max_endpoints IS 'WALHOOK_MAX_ENDPOINTS of the last run or init: how many endpoints an organization can have.';
COMMENT ON COLUMN webhook_state.updated_at IS 'When the row was last written.';

CREATE TABLE IF NOT EXISTS webhook_endpoint_failures (
    endpoint_id       uuid PRIMARY KEY,
    failing_since     timestamptz NOT NULL,
    breaker_opened_at timestamptz,
    told              boolean NOT NULL DEFAULT false
);
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_endpoint_failures'::regclass::oid AND attname = 'breaker_opened_at') THEN
        ALTER TABLE webhook_endpoint_failures ADD COLUMN breaker_opened_at timestamptz; -- version 1 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_endpoint_failures'::regclass::oid AND attname = 'told') THEN
        ALTER TABLE webhook_endpoint_failures ADD COLUMN told boolean NOT NULL DEFAULT false; -- versions 1 to 7 had none
    END IF;
END $do$;
COMMENT ON TABLE webhook_endpoint_failures IS
    'Endpoints with nothing but failures. Written when that changes; without a foreign key, so that recording never waits for an endpoint''s row.';
COMMENT ON COLUMN webhook_endpoint_failures.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_endpoint_failures.failing_since IS 'End of the first of its consecutive failures. See WALHOOK_DISABLE_AFTER.';
COMMENT ON COLUMN webhook_endpoint_failures.breaker_opened_at IS
    'When its breaker opened: since then it gets one probe at a time, and everything else waits in webhook_deliveries. Null: the breaker is closed.';
COMMENT ON COLUMN webhook_endpoint_failures.told IS 'Whether webhook.endpoint.failing was sent, so that webhook.endpoint.recovered follows when the breaker closes.';

CREATE TABLE IF NOT EXISTS webhook_retries (
    endpoint_id  uuid PRIMARY KEY,
    asked_at     timestamptz,
    resumed_at   timestamptz,
    forgotten_at timestamptz
);
DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_retries'::regclass::oid AND attname = 'resumed_at') THEN
        ALTER TABLE webhook_retries ALTER COLUMN asked_at DROP NOT NULL, ADD COLUMN resumed_at timestamptz; -- versions 5 to 7 had none
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'webhook_retries'::regclass::oid AND attname = 'forgotten_at') THEN
        ALTER TABLE webhook_retries ADD COLUMN forgotten_at timestamptz; -- likewise
    END IF;
    IF to_regclass('webhook_retries_forgotten_idx') IS NULL THEN
        CREATE INDEX webhook_retries_forgotten_idx ON webhook_retries (endpoint_id) WHERE forgotten_at IS NOT NULL;
        COMMENT ON INDEX webhook_retries_forgotten_idx IS 'Normally empty: recording looks here whether any endpoint was erased.';
    END IF;
END $do$;
COMMENT ON TABLE webhook_retries IS
    'When operators last had an endpoint go on, or erased it. A table of its own, so that recording never waits for an operator''s transaction.';
COMMENT ON COLUMN webhook_retries.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_retries.asked_at IS 'When webhook_retry_now was last called: a breaker that opened before this time is closed.';
COMMENT ON COLUMN webhook_retries.resumed_at IS 'When its last pause ended: earlier failures do not count for WALHOOK_DISABLE_AFTER.';
COMMENT ON COLUMN webhook_retries.forgotten_at IS 'When webhook_forget erased it: what walhook still holds for it gets no row any more. Kept as long as deliveries.';

CREATE TABLE IF NOT EXISTS webhook_forgetting (
    organization_id text PRIMARY KEY,
    endpoint_ids    uuid[] NOT NULL DEFAULT '{}',
    noted_by        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    settled         boolean NOT NULL DEFAULT false,
    reached         uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    share           double precision NOT NULL DEFAULT 0,
    erased          bigint NOT NULL DEFAULT 0,
    audit_id        uuid,
    began_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE webhook_forgetting IS 'Organizations that webhook_forget is erasing, one call after another. Normally empty.';
COMMENT ON COLUMN webhook_forgetting.organization_id IS 'The organization.';
COMMENT ON COLUMN webhook_forgetting.endpoint_ids IS 'Its endpoints, which are noted in webhook_retries.';
COMMENT ON COLUMN webhook_forgetting.noted_by IS 'The transaction that noted the last of them.';
COMMENT ON COLUMN webhook_forgetting.settled IS 'Whether all transactions of walhook have ended that may not see those notes.';
COMMENT ON COLUMN webhook_forgetting.reached IS 'Rows with smaller ids are erased.';
COMMENT ON COLUMN webhook_forgetting.share IS 'How much of the time from the oldest row until now that is.';
COMMENT ON COLUMN webhook_forgetting.erased IS 'How many rows are erased.';
COMMENT ON COLUMN webhook_forgetting.audit_id IS 'The row of webhook_audit.';
COMMENT ON COLUMN webhook_forgetting.began_at IS 'The time of the first call.';
COMMENT ON COLUMN webhook_forgetting.updated_at IS 'The time of the last call.';


CREATE TABLE IF NOT EXISTS webhook_audit (
    id              uuid PRIMARY KEY DEFAULT webhook_uuidv7(),
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    who             text NOT NULL,
    action          text NOT NULL,
    organization_id text,
    endpoint_id     uuid,
    count           bigint,
    detail          text
);
COMMENT ON TABLE webhook_audit IS
    'What people and applications changed, written by triggers, and what walhook disabled. Kept as long as deliveries. Never has a secret, a header''s value, or a URL''s path or query.';
COMMENT ON COLUMN webhook_audit.id IS 'A UUIDv7: since a time means id >= webhook_uuid_at(time).';
COMMENT ON COLUMN webhook_audit.at IS 'When. It counts from its transaction''s commit on.';
COMMENT ON COLUMN webhook_audit.who IS 'The role that logged in (session_user). walhook: walhook itself, because of failures.';
COMMENT ON COLUMN webhook_audit.action IS
    'endpoint.created, endpoint.changed, endpoint.enabled, endpoint.disabled, endpoint.paused, endpoint.resumed, endpoint.deleted; secret.changed: rotated, set, '
    'ended or deleted; type.created, type.changed, type.deleted: webhook_event_types; deliveries.replayed: webhook_deliveries was updated, by a replay, webhook_retry_now or a cancelling; test.sent: a test webhook; organization.forgotten: webhook_forget was called.';
COMMENT ON COLUMN webhook_audit.organization_id IS 'Whose endpoint it is. Null for many.';
COMMENT ON COLUMN webhook_audit.endpoint_id IS 'The endpoint. Null for many, and for deliveries.';
COMMENT ON COLUMN webhook_audit.count IS 'How many endpoints, secrets, types, deliveries or events. organization.forgotten: all of these together. Null: unknown, because of a TRUNCATE, or because track_counts is off.';
COMMENT ON COLUMN webhook_audit.detail IS 'The names of the changed columns; the scheme and host of a URL; walhook''s reason; the type, or that of a test event; unfinished: webhook_forget has not returned 0 yet.';

-- Only a role that may write webhook_state can be walhook; a setting alone, which anybody can set, would hide who it was.
CREATE OR REPLACE FUNCTION webhook_audit_who() RETURNS text
    LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $fn$
BEGIN
    RETURN CASE WHEN current_setting('walhook.recording'::text, true) = 'on'
                 AND has_table_privilege(webhook_session_role(), 'webhook_state'::regclass::oid, 'UPDATE'::text)
                THEN 'walhook' ELSE session_user::text END;
END $fn$;
COMMENT ON FUNCTION webhook_audit_who() IS 'Who makes the present change, for webhook_audit.';

-- A session keeps the plan, which may be that of a statement about one row: a nested loop over the rows of thousands.
CREATE OR REPLACE FUNCTION webhook_endpoints_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off
    SET enable_nestloop = off SET enable_hashjoin = on SET enable_mergejoin = on AS $fn$
DECLARE
    -- More endpoints than this in one statement are one row for each action.
    most    CONSTANT bigint := 100;
    changes record;
    many    bigint;
BEGIN
    IF tg_relid <> 'webhook_endpoints'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_endpoints_audit', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF webhook_restoring() THEN
        RETURN NULL;
    END IF;
    IF tg_op = 'TRUNCATE' THEN
        INSERT INTO webhook_audit (who, action) VALUES (session_user::text, 'endpoint.deleted');
    ELSIF tg_op = 'INSERT' THEN
        SELECT count(*) INTO many FROM came;
        INSERT INTO webhook_audit (who, action, organization_id, endpoint_id, count, detail)
        SELECT webhook_audit_who(), 'endpoint.created', c.organization_id, c.id, 1, webhook_url_host(c.url) FROM came AS c WHERE many <= most
        UNION ALL SELECT webhook_audit_who(), 'endpoint.created', NULL, NULL, many, NULL WHERE many > most;
    ELSIF tg_op = 'DELETE' THEN
        SELECT count(*) INTO many FROM gone;
        INSERT INTO webhook_audit (who, action, organization_id, endpoint_id, count, detail)
        SELECT webhook_audit_who(), 'endpoint.deleted', g.organization_id, g.id, 1, webhook_url_host(g.url) FROM gone AS g WHERE many <= most
        UNION ALL SELECT webhook_audit_who(), 'endpoint.deleted', NULL, NULL, many, NULL WHERE many > most;
    ELSE
        INSERT INTO webhook_audit (who, action, organization_id, endpoint_id, count, detail)
        WITH changed AS MATERIALIZED (
            SELECT n.id, n.organization_id,
                   CASE WHEN n.enabled AND NOT o.enabled THEN 'endpoint.enabled' WHEN o.enabled AND NOT n.enabled THEN 'endpoint.disabled'
                        WHEN o.paused_at IS NULL AND n.paused_at IS NOT NULL THEN 'endpoint.paused' WHEN n.paused_at IS NULL AND o.paused_at IS NOT NULL THEN 'endpoint.resumed'
                        ELSE 'endpoint.changed' END AS action,
                   pg_catalog.concat_ws(', ', CASE WHEN n.url <> o.url THEN 'url (' || webhook_url_host(n.url) || ')' END,
                       (SELECT string_agg(k.key, ', '::text ORDER BY k.key) FROM jsonb_object_keys(pg_catalog.to_jsonb(n)) AS k(key)
                        WHERE k.key NOT IN ('url', 'updated_at', 'enabled', 'disabled_at', 'disabled_reason', 'paused_at')
                          AND (pg_catalog.to_jsonb(n) -> k.key) IS DISTINCT FROM (pg_catalog.to_jsonb(o) -> k.key)),
                       CASE WHEN n.enabled <> o.enabled AND (n.paused_at IS NULL) <> (o.paused_at IS NULL) THEN 'paused_at' END,
                       CASE WHEN NOT n.enabled AND webhook_audit_who() = 'walhook' THEN n.disabled_reason
                            WHEN n.disabled_reason IS DISTINCT FROM o.disabled_reason THEN 'disabled_reason' END) AS detail
            FROM gone AS o JOIN came AS n ON n.id = o.id
        ), noted AS ( -- walhook seals headers, which changes none
            SELECT c.* FROM changed AS c WHERE c.action <> 'endpoint.changed' OR c.detail <> '' AND webhook_audit_who() <> 'walhook')
        SELECT webhook_audit_who(), c.action, c.organization_id, c.id, 1, nullif(c.detail, ''::text) FROM noted AS c WHERE (SELECT count(*) FROM noted) <= most
        UNION ALL
        SELECT webhook_audit_who(), c.action, NULL, NULL, count(*), NULL FROM noted AS c WHERE (SELECT count(*) FROM noted) > most GROUP BY c.action;
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_endpoints_audit() IS 'Trigger: writes changes of endpoints into webhook_audit.';

-- A rotation changes several rows, and is one row here: walhook.noted is the last that this transaction has written. Whoever sets it
-- to hide a change needs a row of this transaction's time, about the same endpoint and role. A plan of when webhook_audit was small
-- must not read it all when it has grown.
CREATE OR REPLACE FUNCTION webhook_secrets_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off SET enable_seqscan = off AS $fn$
DECLARE
    changed record;
    noted   uuid;
BEGIN
    IF tg_relid <> 'webhook_secrets'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_secrets_audit', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF tg_op = 'TRUNCATE' THEN
        INSERT INTO webhook_audit (who, action) VALUES (session_user::text, 'secret.changed');
        RETURN NULL;
    END IF;
    FOR changed IN SELECT e.id, e.organization_id FROM webhook_endpoints AS e WHERE e.id IN (old.endpoint_id, new.endpoint_id) LOOP -- none: it is deleted
        -- An endpoint's trigger makes its first secret.
        CONTINUE WHEN webhook_restoring()
            OR tg_op = 'INSERT' AND pg_trigger_depth() > 1 AND NOT EXISTS (SELECT FROM webhook_secrets AS s WHERE s.endpoint_id = new.endpoint_id AND s.id <> new.id);
        CONTINUE WHEN EXISTS (SELECT FROM webhook_audit AS a WHERE a.id = nullif(current_setting('walhook.noted'::text, true), ''::text)::uuid
                              AND a.at >= now() AND a.who = session_user::text AND a.action = 'secret.changed' AND a.endpoint_id = changed.id);
        INSERT INTO webhook_audit AS a (who, action, organization_id, endpoint_id, count)
        VALUES (session_user::text, 'secret.changed', changed.organization_id, changed.id, 1) RETURNING a.id INTO noted;
        PERFORM set_config('walhook.noted', noted::text, true);
    END LOOP;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_secrets_audit() IS 'Trigger: writes into webhook_audit that an endpoint''s secrets have changed.';

CREATE OR REPLACE FUNCTION webhook_event_types_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
BEGIN
    IF tg_relid <> 'webhook_event_types'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_event_types_audit', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT webhook_restoring() THEN
        INSERT INTO webhook_audit (who, action, count, detail)
        VALUES (session_user::text, CASE tg_op WHEN 'INSERT' THEN 'type.created' WHEN 'UPDATE' THEN 'type.changed' ELSE 'type.deleted' END, 1,
                pg_catalog.concat_ws(', ', coalesce(old.name, new.name), CASE WHEN new.name <> old.name THEN 'name (' || new.name || ')' END,
                    CASE WHEN new.category <> old.category THEN 'category' END, CASE WHEN new.description <> old.description THEN 'description' END,
                    CASE WHEN tg_op = 'UPDATE' AND new.example IS DISTINCT FROM old.example THEN 'example' END));
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_event_types_audit() IS 'Trigger: writes changes of event types into webhook_audit.';

-- How many rows a statement updates is the difference of PostgreSQL's own counters of this transaction. A transition table would
-- cost walhook a copy of every row that it records.
CREATE OR REPLACE FUNCTION webhook_deliveries_audit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
DECLARE
    updated bigint;
BEGIN
    IF tg_relid <> 'webhook_deliveries'::regclass::oid THEN
        RAISE EXCEPTION 'table % is not walhook''s: drop its trigger that calls webhook_deliveries_audit', tg_relid::regclass USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT pg_catalog.sum(pg_stat_get_xact_tuples_updated(i.inhrelid))::bigint INTO updated FROM pg_inherits AS i WHERE i.inhparent = tg_relid;
    IF tg_when = 'BEFORE' THEN
        PERFORM set_config('walhook.updated', updated::text, true);
        RETURN NULL;
    END IF;
    updated := CASE WHEN current_setting('track_counts'::text) = 'on' THEN updated - current_setting('walhook.updated'::text)::bigint END;
    IF updated IS DISTINCT FROM 0::bigint THEN
        INSERT INTO webhook_audit (who, action, count) VALUES (session_user::text, 'deliveries.replayed', updated);
    END IF;
    RETURN NULL;
END $fn$;
COMMENT ON FUNCTION webhook_deliveries_audit() IS 'Trigger: writes into webhook_audit how many deliveries somebody else than walhook updated.';

DO $do$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_audit_insert') THEN
        CREATE TRIGGER webhook_endpoints_audit_insert AFTER INSERT ON webhook_endpoints REFERENCING NEW TABLE AS came
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_audit_update') THEN
        CREATE TRIGGER webhook_endpoints_audit_update AFTER UPDATE ON webhook_endpoints REFERENCING OLD TABLE AS gone NEW TABLE AS came
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_audit_delete') THEN
        CREATE TRIGGER webhook_endpoints_audit_delete AFTER DELETE ON webhook_endpoints REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_endpoints'::regclass::oid AND tgname = 'webhook_endpoints_audit_truncate') THEN
        CREATE TRIGGER webhook_endpoints_audit_truncate AFTER TRUNCATE ON webhook_endpoints FOR EACH STATEMENT EXECUTE FUNCTION webhook_endpoints_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_audit_insert') THEN
        CREATE TRIGGER webhook_secrets_audit_insert AFTER INSERT ON webhook_secrets FOR EACH ROW EXECUTE FUNCTION webhook_secrets_audit();
    END IF;
    -- The conditions are webhook_audit_who() <> 'walhook', which not every role may execute.
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_audit_update'
                   AND tgattr::text = '') THEN -- versions 7 and 8 had it for the column secret alone
        CREATE OR REPLACE TRIGGER webhook_secrets_audit_update AFTER UPDATE ON webhook_secrets
            FOR EACH ROW WHEN (old.* IS DISTINCT FROM new.* AND (current_setting('walhook.recording', true) IS DISTINCT FROM 'on' -- walhook only seals
                OR NOT has_table_privilege(CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END, 'webhook_state'::regclass::oid, 'UPDATE')))
            EXECUTE FUNCTION webhook_secrets_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_audit_delete') THEN
        CREATE TRIGGER webhook_secrets_audit_delete AFTER DELETE ON webhook_secrets FOR EACH ROW EXECUTE FUNCTION webhook_secrets_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_secrets'::regclass::oid AND tgname = 'webhook_secrets_audit_truncate') THEN
        CREATE TRIGGER webhook_secrets_audit_truncate AFTER TRUNCATE ON webhook_secrets FOR EACH STATEMENT EXECUTE FUNCTION webhook_secrets_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_event_types'::regclass::oid AND tgname = 'webhook_event_types_audit') THEN
        CREATE TRIGGER webhook_event_types_audit AFTER INSERT OR UPDATE OR DELETE ON webhook_event_types
            FOR EACH ROW EXECUTE FUNCTION webhook_event_types_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_deliveries'::regclass::oid AND tgname = 'webhook_deliveries_audit_before') THEN
        CREATE TRIGGER webhook_deliveries_audit_before BEFORE UPDATE ON webhook_deliveries
            FOR EACH STATEMENT WHEN (current_setting('walhook.recording', true) IS DISTINCT FROM 'on'
                OR NOT has_table_privilege(CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END, 'webhook_state'::regclass::oid, 'UPDATE'))
            EXECUTE FUNCTION webhook_deliveries_audit();
    END IF;
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'webhook_deliveries'::regclass::oid AND tgname = 'webhook_deliveries_audit_after') THEN
        CREATE TRIGGER webhook_deliveries_audit_after AFTER UPDATE ON webhook_deliveries
            FOR EACH STATEMENT WHEN (current_setting('walhook.recording', true) IS DISTINCT FROM 'on'
                OR NOT has_table_privilege(CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END, 'webhook_state'::regclass::oid, 'UPDATE'))
            EXECUTE FUNCTION webhook_deliveries_audit();
    END IF;
END $do$;


-- --- 7. Partitions --------------------------------------------------------------------------------------------------
-- Days are in UTC. walhook calls these functions; lock_timeout keeps them from blocking others.

CREATE OR REPLACE FUNCTION webhook_revoke_default_privileges(catalogue oid, object oid) RETURNS text[]
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
DECLARE
    -- REVOKE on a table also revokes the grants on its columns. Those never come from default privileges, so they are kept.
    columns CONSTANT text[] := ARRAY(
        SELECT pg_catalog.format('GRANT %s (%I) ON TABLE %s TO %s', a.privilege_type, t.attname, c.oid::regclass,
                   CASE WHEN a.grantee = 0::oid THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)::text) END
                   || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM pg_class AS c JOIN pg_attribute AS t ON t.attrelid = c.oid AND NOT t.attisdropped CROSS JOIN LATERAL aclexplode(t.attacl) AS a
        WHERE catalogue = 'pg_class'::regclass::oid AND c.oid = object AND a.grantee <> c.relowner);
    anew  text;
    roles text[] := '{}';
    given record;
BEGIN
    FOR given IN
        SELECT o.what, CASE a.grantee WHEN 0::oid THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)::text) END AS role,
               string_agg(DISTINCT a.privilege_type, ', '::text) AS privileges
        FROM (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass::text AS what, c.relowner AS owner,
                     c.relnamespace AS namespace, c.relacl AS acl, CASE c.relkind WHEN 'S' THEN 'S' ELSE 'r' END AS kind
              FROM pg_class AS c WHERE catalogue = 'pg_class'::regclass::oid AND c.oid = object
              UNION ALL
              SELECT 'FUNCTION ' || p.oid::regprocedure::text, p.proowner, p.pronamespace, p.proacl, 'f'
              FROM pg_proc AS p WHERE catalogue = 'pg_proc'::regclass::oid AND p.oid = object) AS o
        CROSS JOIN LATERAL aclexplode(o.acl) AS a
        JOIN pg_default_acl AS d ON d.defaclrole = o.owner AND d.defaclobjtype::text = o.kind AND d.defaclnamespace IN (0::oid, o.namespace)
        CROSS JOIN LATERAL aclexplode(d.defaclacl) AS b
        WHERE a.grantor = o.owner AND a.grantee <> o.owner AND b.grantee = a.grantee AND b.privilege_type = a.privilege_type
          AND NOT (o.kind = 'f' AND a.grantee = 0::oid) -- section 10 decides what PUBLIC may execute
        GROUP BY o.what, a.grantee
    LOOP
        EXECUTE 'REVOKE ' || given.privileges || ' ON ' || given.what || ' FROM ' || given.role || ' CASCADE';
        roles := pg_catalog.array_append(roles, given.role);
    END LOOP;
    IF roles OPERATOR(pg_catalog.<>) '{}'::text[] THEN
        FOREACH anew IN ARRAY columns LOOP
            EXECUTE anew;
        END LOOP;
    END IF;
    RETURN roles;
END $fn$;
COMMENT ON FUNCTION webhook_revoke_default_privileges(oid, oid) IS
    'Revokes what ALTER DEFAULT PRIVILEGES gave to others on a new table, sequence or function; catalogue is pg_class or pg_proc. '
    'Grants on columns stay. Returns the roles that had something.';

CREATE OR REPLACE FUNCTION webhook_add_partition(parent text, day date, OUT made boolean, OUT moved bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '200ms'
    SET default_table_access_method = heap AS $fn$
DECLARE
    -- These bound how long INSERTs wait while rows are moved: less than half a second. ATTACH scans all of the DEFAULT partition
    -- for rows of the day.
    most     CONSTANT bigint := 20000;
    seen     CONSTANT bigint := 200000;
    part     text := pg_catalog.format('%s_p%s', parent, to_char(day::timestamp, 'YYYYMMDD'::text));
    fallback text := parent || '_default';
    low      uuid := webhook_uuid_at(day::timestamp AT TIME ZONE 'UTC');
    high     uuid := webhook_uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC');
    strays   boolean;
    crowded  boolean;
    -- Before version 15, a walsender that sees the moved rows caches that their table is not published, and passes over
    -- whatever comes into it later. A change of what is published clears that cache.
    stale    CONSTANT boolean := parent = 'webhook_outbox' AND current_setting('server_version_num')::int < 150000;
    reader   text;
BEGIN
    made := false;
    moved := 0;
    IF parent NOT IN ('webhook_outbox', 'webhook_deliveries') THEN
        RAISE EXCEPTION 'webhook_add_partition: % is not a table of walhook', parent USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass(part) IS NOT NULL THEN
        RETURN;
    END IF;
    IF NOT has_schema_privilege(current_user, current_schema()::text, 'CREATE'::text) THEN
        RAISE EXCEPTION '% cannot be created, because role %, the owner of walhook''s functions, may not create tables: GRANT CREATE ON SCHEMA % TO %',
            part, current_user, quote_ident(current_schema()::text), quote_ident(current_user::text)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Partitions are created every day, two weeks ahead.';
    END IF;
    -- One session at a time: this lock conflicts with itself, and not with INSERT.
    EXECUTE pg_catalog.format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', fallback);
    IF to_regclass(part) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.format('SELECT count(*) FROM (SELECT FROM %I WHERE id >= $1 AND id < $2 LIMIT $3) AS s', fallback)
        INTO moved USING low, high, most + 1;
    IF moved > most THEN
        RETURN; -- the day stays in the DEFAULT partition
    END IF;
    strays := moved > 0;
    IF strays AND stale AND NOT EXISTS (SELECT FROM pg_publication AS p WHERE p.pubname = 'walhook' AND NOT p.puballtables
                                        AND pg_has_role(current_user, p.pubowner, 'USAGE'::text)) THEN
        RETURN; -- likewise: the cache could not be cleared
    END IF;
    IF strays THEN
        EXECUTE pg_catalog.format('SELECT count(*) > $1 FROM (SELECT FROM %I LIMIT $1 + 1) AS s', fallback) INTO crowded USING seen;
        IF crowded THEN
            RETURN; -- likewise
        END IF;
    END IF;

    -- Created as a table and then attached: PARTITION OF would lock the root against INSERT, ATTACH does not. ATTACH locks the
    -- DEFAULT partition; locking it first makes the move complete, and avoids a lock upgrade.
    EXECUTE pg_catalog.format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING COMMENTS, CONSTRAINT attach CHECK (id >= %L AND id < %L))',
        part, parent, low, high);
    -- A BRIN index of an empty table has a summary of its first range, and the first 128 pages of rows would each rewrite it.
    PERFORM brin_desummarize_range(i.indexrelid::regclass, 0::bigint) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_am AS a ON a.oid = c.relam WHERE i.indrelid = to_regclass(part)::oid AND a.amname = 'brin';
    PERFORM webhook_revoke_default_privileges('pg_class'::regclass::oid, to_regclass(part)::oid);
    -- pg_dump reads each partition by itself. So whoever may read both the table and its DEFAULT partition may read this one too.
    -- Whoever may read the table alone may not. Under row security, which a partition does not inherit, nobody may.
    FOR reader IN
        SELECT DISTINCT quote_ident(pg_get_userbyid(a.grantee)::text)
        FROM pg_class AS t CROSS JOIN LATERAL aclexplode(t.relacl) AS a
        JOIN pg_class AS f ON f.oid = to_regclass(fallback)::oid CROSS JOIN LATERAL aclexplode(f.relacl) AS b
        WHERE t.oid = to_regclass(parent)::oid AND NOT t.relrowsecurity AND NOT f.relrowsecurity AND a.grantee NOT IN (0::oid, t.relowner)
          AND a.privilege_type = 'SELECT' AND b.privilege_type = 'SELECT' AND b.grantee = a.grantee
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON %I TO %s', part, reader);
    END LOOP;
    -- If rows have to be moved, which is rare, the root has to be locked first. Otherwise a statement that is already planned
    -- would see them in neither partition, and an INSERT on its way into the DEFAULT partition would fail.
    IF strays THEN
        EXECUTE pg_catalog.format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', parent);
    END IF;
    EXECUTE pg_catalog.format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', fallback);
    EXECUTE pg_catalog.format('WITH rows AS (DELETE FROM %I WHERE id >= $1 AND id < $2 RETURNING *) INSERT INTO %I SELECT * FROM rows', fallback, part)
        USING low, high;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved > 0 AND NOT strays OR moved > most THEN
        RAISE EXCEPTION 'rows of % came meanwhile: try again', part USING ERRCODE = 'lock_not_available';
    END IF;
    EXECUTE pg_catalog.format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, part, low, high);
    EXECUTE pg_catalog.format('ALTER TABLE %I DROP CONSTRAINT attach', part);
    IF moved > 0 AND stale THEN
        EXECUTE pg_catalog.format('ALTER PUBLICATION walhook ADD TABLE %I', part);
        EXECUTE pg_catalog.format('ALTER PUBLICATION walhook DROP TABLE %I', part);
    END IF;
    made := true;
END $fn$;
COMMENT ON FUNCTION webhook_add_partition(text, date) IS
    'Creates the partition of a day (UTC) of webhook_outbox or webhook_deliveries, and moves the day''s rows there from the DEFAULT partition. made = false '
    'and moved > 0: there are too many rows to move or scan at once, and the day stays in the DEFAULT partition.';

CREATE OR REPLACE FUNCTION webhook_drop_day(day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '50ms'
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $fn$
DECLARE
    -- How many events of the day walhook has compared with their rows. Null: they are compared here.
    compared   bigint := nullif(current_setting('walhook.compared', true), ''::text)::bigint;
    present    bigint;
    part       text;
    events     text; -- null: there is none. A table that was detached is its owner's to keep.
    deliveries text;
    low        uuid := webhook_uuid_at(day::timestamp AT TIME ZONE 'UTC');
    high       uuid := webhook_uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    LOCK TABLE webhook_deliveries_default, webhook_outbox_default IN SHARE UPDATE EXCLUSIVE MODE; -- one session at a time, as in webhook_add_partition
    SELECT c.relname INTO events FROM pg_class AS c WHERE c.relispartition AND c.oid = to_regclass('webhook_outbox_p' || to_char(day::timestamp, 'YYYYMMDD'::text))::oid;
    SELECT c.relname INTO deliveries FROM pg_class AS c WHERE c.relispartition AND c.oid = to_regclass('webhook_deliveries_p' || to_char(day::timestamp, 'YYYYMMDD'::text))::oid;
    IF events IS NULL AND deliveries IS NULL THEN
        RETURN false;
    END IF;
    -- First without other locks, so that a day with unfinished deliveries delays nobody.
    IF EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id >= low AND d.id < high AND d.status IN ('pending', 'retrying'))
       OR EXISTS (SELECT FROM webhook_outbox_default AS o WHERE o.id >= low AND o.id < high) THEN
        RETURN false;
    END IF;
    IF events IS NOT NULL THEN
        IF compared IS NULL THEN
            SELECT count(*) INTO compared FROM webhook_outbox AS o WHERE o.id >= low AND o.id < high;
            IF EXISTS (SELECT FROM webhook_outbox AS o CROSS JOIN LATERAL pg_catalog.unnest(o.endpoint_ids) AS e(id)
                       WHERE o.id >= low AND o.id < high
                         AND NOT EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id = webhook_delivery_id(o.id, e.id) OFFSET 0)) THEN
                RETURN false;
            END IF;
        END IF;
        -- The lock keeps new events out of the day; only an INSERT of an event of that day waits. Events inserted since the day
        -- was compared may have no row yet.
        EXECUTE pg_catalog.format('LOCK TABLE %I IN SHARE MODE', events);
        EXECUTE pg_catalog.format('SELECT count(*) FROM %I', events) INTO present;
        IF present <> compared THEN
            RETURN false;
        END IF;
    END IF;
    -- Dropping a partition also locks its root and the DEFAULT partition. The outbox's root comes last, so that applications
    -- wait no longer than one lock_timeout and the drop itself.
    LOCK TABLE ONLY webhook_deliveries IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE webhook_deliveries_default IN ACCESS EXCLUSIVE MODE;
    IF deliveries IS NOT NULL THEN
        EXECUTE pg_catalog.format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', deliveries);
    END IF;
    IF EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id >= low AND d.id < high AND d.status IN ('pending', 'retrying')) THEN
        RETURN false;
    END IF;
    LOCK TABLE webhook_outbox_default IN ACCESS EXCLUSIVE MODE;
    IF events IS NOT NULL THEN
        EXECUTE pg_catalog.format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', events);
    END IF;
    LOCK TABLE ONLY webhook_outbox IN ACCESS EXCLUSIVE MODE;
    FOR part IN SELECT i.inhrelid::regclass::text FROM pg_inherits AS i -- which are partitions still
                WHERE i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid) AND i.inhrelid IN (to_regclass(events)::oid, to_regclass(deliveries)::oid) LOOP
        EXECUTE 'DROP TABLE ' || part;
    END LOOP;
    RETURN FOUND;
END $fn$;
COMMENT ON FUNCTION webhook_drop_day(date) IS
    'Drops a day (UTC) of events and deliveries, unless a delivery of that day still waits, or an event of it is owed without a row.';

CREATE OR REPLACE FUNCTION webhook_delete_old(before timestamptz, most int, OUT events bigint, OUT deliveries bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '200ms'
    -- A plan that was cached while the DEFAULT partitions were empty must use the indexes when they are not. JIT compiling
    -- takes ten times as long as running it.
    SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $fn$
DECLARE
    old uuid := webhook_uuid_at(before);
BEGIN
    -- Events first. A delivery's row is deleted only after its event, which would otherwise look owed and without a row.
    DELETE FROM webhook_outbox_default AS o
    WHERE o.id IN (SELECT o.id FROM webhook_outbox_default AS o
                   WHERE o.id < old
                     -- All deliveries of an event have its time. OFFSET 0 makes the plan look that up in the primary keys.
                     AND NOT EXISTS (SELECT FROM (SELECT d.event_id, d.status FROM webhook_deliveries AS d
                                                  WHERE d.id >= webhook_uuid_at(webhook_uuid_time(o.id))
                                                    AND d.id < webhook_uuid_at(webhook_uuid_time(o.id) + interval '1 millisecond') OFFSET 0) AS d
                                     WHERE d.event_id = o.id AND d.status IN ('pending', 'retrying'))
                     -- Nor an event that walhook has not recorded yet: an id may be late.
                     -- What is owed to a deleted endpoint would only be cancelled, and gets no row if webhook_forget has deleted it.
                     AND NOT EXISTS (SELECT FROM pg_catalog.unnest(o.endpoint_ids) AS e(id)
                                     WHERE NOT EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id = webhook_delivery_id(o.id, e.id) OFFSET 0)
                                       AND EXISTS (SELECT FROM webhook_endpoints AS w WHERE w.id = e.id OFFSET 0))
                   ORDER BY o.id LIMIT most);
    GET DIAGNOSTICS events = ROW_COUNT;

    DELETE FROM webhook_deliveries_default AS d
    WHERE d.id IN (SELECT d.id FROM webhook_deliveries_default AS d
                   WHERE d.id < old AND d.status NOT IN ('pending', 'retrying')
                     AND NOT EXISTS (SELECT FROM webhook_outbox AS o WHERE o.id = d.event_id)
                   ORDER BY d.id LIMIT most
                   FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS deliveries = ROW_COUNT;

    -- A request of a day ago has been served. The end of a pause counts as long as failures from before it do. Of what was owed to
    -- an erased endpoint, walhook has recorded everything that is older than before.
    DELETE FROM webhook_retries AS r
    WHERE r.endpoint_id IN (SELECT r.endpoint_id FROM webhook_retries AS r
                            WHERE coalesce(r.forgotten_at < before, greatest(r.asked_at, r.resumed_at) < now() - interval '1 day')
                            AND NOT EXISTS (SELECT FROM webhook_endpoint_failures AS f WHERE f.endpoint_id = r.endpoint_id AND f.failing_since < r.resumed_at)
                            LIMIT most FOR UPDATE SKIP LOCKED);

    DELETE FROM webhook_audit AS a WHERE a.id IN (SELECT a.id FROM webhook_audit AS a WHERE a.id < old ORDER BY a.id LIMIT most FOR UPDATE SKIP LOCKED);

    -- Rows of deleted endpoints: there is no foreign key.
    DELETE FROM webhook_endpoint_failures AS f WHERE NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = f.endpoint_id);
END $fn$;
COMMENT ON FUNCTION webhook_delete_old(timestamptz, int) IS
    'Deletes finished events and deliveries from before a time from the DEFAULT partitions, at most so many of each, '
    'as many rows of webhook_audit, and the rows of deleted endpoints from webhook_endpoint_failures.';

-- From yesterday to two weeks ahead. On a busy database a lock may not be available; walhook run then creates the day.
DO $do$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    FOR ahead IN -1..14 LOOP
        BEGIN
            PERFORM webhook_add_partition('webhook_outbox', today + ahead);
            PERFORM webhook_add_partition('webhook_deliveries', today + ahead);
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'the partitions of % could not be created now; walhook run will create them', today + ahead;
        END;
    END LOOP;
END $do$;


-- --- 8. Functions for operators -------------------------------------------------------------------------------------
-- Those that return or take a secret run with their owner's rights, and PUBLIC may not execute them:
--     GRANT EXECUTE ON FUNCTION webhook_create_endpoint, webhook_rotate_secret, webhook_set_secret TO backend;
-- The others run with the caller's rights on the tables.

-- A given secret replaces the one that the trigger made.
CREATE OR REPLACE FUNCTION webhook_create_endpoint(organization_id text, url text, event_types text[] DEFAULT '{*}',
    OUT endpoint_id uuid, INOUT secret text DEFAULT NULL)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
#variable_conflict use_column
DECLARE
    given text := webhook_create_endpoint.secret;
BEGIN
    IF given IS NOT NULL AND webhook_secret_problem(given) IS NOT NULL THEN
        RAISE EXCEPTION 'webhook_create_endpoint: the secret is not usable: %; leave it out, or give what openssl rand -hex 32 prints', webhook_secret_problem(given)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO webhook_endpoints (organization_id, url, event_types)
    VALUES (webhook_create_endpoint.organization_id, webhook_create_endpoint.url, webhook_create_endpoint.event_types)
    RETURNING id INTO webhook_create_endpoint.endpoint_id;

    UPDATE webhook_secrets AS s SET secret = coalesce(given, s.secret) WHERE s.endpoint_id = webhook_create_endpoint.endpoint_id
    RETURNING s.secret INTO STRICT webhook_create_endpoint.secret;
END $fn$;
COMMENT ON FUNCTION webhook_create_endpoint(text, text, text[], text) IS
    'SELECT * FROM webhook_create_endpoint(''org_1'', ''https://example.com/webhooks'', ''{payment.*}''): creates an endpoint, and returns its id and signing secret. A secret is made unless one is given.';

DO $do$
DECLARE
    -- The function of versions 1 to 4: with both, a call with three arguments would be ambiguous. Its grants move to the new one.
    former regprocedure := to_regprocedure('webhook_create_endpoint(text, text, text[])');
    allowed record;
BEGIN
    IF former IS NULL THEN
        RETURN;
    END IF;
    FOR allowed IN
        SELECT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)::text) END AS grantee, a.is_grantable
        FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS a WHERE p.oid = former::oid AND a.grantee <> p.proowner
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION webhook_create_endpoint(text, text, text[], text) TO %s%s', allowed.grantee,
            CASE WHEN allowed.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    DROP FUNCTION webhook_create_endpoint(text, text, text[]);
EXCEPTION WHEN dependent_objects_still_exist THEN
    RAISE EXCEPTION 'webhook_create_endpoint has a new argument, and an object of yours depends on its former signature: %', sqlerrm
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Drop that view or function, apply the schema, and create it again.';
END $do$;

-- At most two stay live: the new one and, for the overlap, the newest of the others. A secret that is set again counts as the
-- new one. If it is sealed that cannot be seen, but it signs as before all the same.
CREATE OR REPLACE FUNCTION webhook_replace_secret(endpoint_id uuid, secret text, overlap interval) RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
DECLARE
    newest timestamptz;
BEGIN
    IF overlap IS NULL OR overlap < interval '0' THEN
        RAISE EXCEPTION 'the overlap is null or negative: give how long the previous secret stays valid; ''0'' ends it at once'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- One change of an endpoint's secrets at a time. Nothing else waits for this lock.
    PERFORM FROM webhook_endpoints AS e WHERE e.id = webhook_replace_secret.endpoint_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no endpoint %', coalesce(webhook_replace_secret.endpoint_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    IF EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = webhook_replace_secret.endpoint_id AND e.all_organizations) AND NOT webhook_is_operator() THEN
        RAISE EXCEPTION 'endpoint % has all_organizations set: only the owner of the tables and operators, who may execute webhook_pause, change its secret', webhook_replace_secret.endpoint_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM webhook_secrets AS s WHERE s.endpoint_id = webhook_replace_secret.endpoint_id AND s.secret = webhook_replace_secret.secret;
    UPDATE webhook_secrets AS s
    SET expires_at = CASE WHEN live.age = 1 THEN least(s.expires_at, now() + overlap) ELSE now() END
    FROM (SELECT id, row_number() OVER (ORDER BY created_at DESC, id DESC) AS age
          FROM webhook_secrets AS s
          WHERE s.endpoint_id = webhook_replace_secret.endpoint_id AND (s.expires_at IS NULL OR s.expires_at > now())) AS live
    WHERE s.id = live.id;

    -- The older of two makes X-Webhook-Signature, even if the clock was set back since.
    SELECT max(s.created_at) INTO newest FROM webhook_secrets AS s WHERE s.endpoint_id = webhook_replace_secret.endpoint_id;
    INSERT INTO webhook_secrets (endpoint_id, secret, created_at)
    VALUES (webhook_replace_secret.endpoint_id, webhook_replace_secret.secret, greatest(clock_timestamp(), newest + interval '1 microsecond'));
END $fn$;
COMMENT ON FUNCTION webhook_replace_secret(uuid, text, interval) IS 'Used by webhook_rotate_secret and webhook_set_secret.';

CREATE OR REPLACE FUNCTION webhook_rotate_secret(endpoint_id uuid, overlap interval DEFAULT '24 hours') RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
DECLARE
    made text := webhook_new_secret();
BEGIN
    PERFORM webhook_replace_secret(endpoint_id, made, overlap);
    RETURN made;
END $fn$;
COMMENT ON FUNCTION webhook_rotate_secret(uuid, interval) IS
    'Makes a new signing secret and returns it. For the overlap it and the previous one are both live: X-Webhook-Signature is made with the older one, '
    'webhook-signature carries both.';

CREATE OR REPLACE FUNCTION webhook_set_secret(endpoint_id uuid, secret text, overlap interval DEFAULT '0') RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
BEGIN
    IF webhook_secret_problem(secret) IS NOT NULL THEN
        RAISE EXCEPTION 'webhook_set_secret: the secret is not usable: %; give what openssl rand -hex 32 prints', webhook_secret_problem(secret)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM webhook_replace_secret(endpoint_id, secret, overlap);
END $fn$;
COMMENT ON FUNCTION webhook_set_secret(uuid, text, interval) IS
    'Sets a signing secret of your own. After the overlap it is the only live one; until then X-Webhook-Signature is made with the '
    'previous one, and webhook-signature carries both.';

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
    PERFORM set_config('walhook.testing', 'on', true);
    INSERT INTO webhook_outbox (organization_id, event_type, endpoint_ids) -- the trigger fills in the type's example
    VALUES (organization, webhook_send_test.event_type, ARRAY[webhook_send_test.endpoint_id])
    RETURNING id INTO event;
    PERFORM set_config('walhook.testing', '', true);
    RETURN event;
END $fn$;
COMMENT ON FUNCTION webhook_send_test(uuid, text) IS
    'Sends the example of a known type to one endpoint, subscribed or not, whatever its filter, through the outbox like any event. Returns the event''s id.';

CREATE OR REPLACE FUNCTION webhook_replay(delivery_id uuid) RETURNS boolean
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
BEGIN
    UPDATE webhook_deliveries AS d SET status = 'pending', next_attempt_at = now() WHERE d.id = delivery_id;
    RETURN FOUND;
END $fn$;
COMMENT ON FUNCTION webhook_replay(uuid) IS 'Sends a delivery again, whatever its status, on a new schedule and with the same id. Returns false if there is no such delivery.';

CREATE OR REPLACE FUNCTION webhook_replay_failed(endpoint_id uuid, since timestamptz, until timestamptz DEFAULT now()) RETURNS bigint
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $fn$
#variable_conflict use_column
DECLARE
    replayed bigint;
BEGIN
    -- The id has the event's time in milliseconds, so the interval includes both ends.
    UPDATE webhook_deliveries AS d SET status = 'pending', next_attempt_at = now()
    WHERE d.endpoint_id = webhook_replay_failed.endpoint_id AND d.status IN ('failed', 'cancelled')
      AND d.id >= webhook_uuid_at(since) AND d.id < webhook_uuid_at(until + interval '1 millisecond');
    GET DIAGNOSTICS replayed = ROW_COUNT;
    RETURN replayed;
END $fn$;
COMMENT ON FUNCTION webhook_replay_failed(uuid, timestamptz, timestamptz) IS
    'Replays an endpoint''s failed and cancelled deliveries of events in an interval. Returns how many.';

-- It runs with its owner's rights, and PUBLIC may not execute it: otherwise only walhook writes webhook_retries.
CREATE OR REPLACE FUNCTION webhook_retry_now(endpoint_id uuid) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off
    -- A plan that was cached while there were few rows must use the indexes when there are many, and JIT compiling takes longer
    -- than running it.
    SET enable_seqscan = off SET jit = off AS $fn$
#variable_conflict use_column
DECLARE
    waiting bigint;
BEGIN
    -- The end of a pause, too, locks first the endpoint and then its row of webhook_retries. Two transactions that do both, in
    -- whatever order, must not wait for each other.
    PERFORM FROM webhook_endpoints AS e WHERE e.id = webhook_retry_now.endpoint_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_retry_now: there is no endpoint %', coalesce(webhook_retry_now.endpoint_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO webhook_retries AS r (endpoint_id, asked_at) VALUES (webhook_retry_now.endpoint_id, clock_timestamp())
    ON CONFLICT (endpoint_id) DO UPDATE SET asked_at = greatest(excluded.asked_at, r.asked_at + interval '1 microsecond');
    -- Deliveries that are already due need no change, except those that may be in flight: the first max_in_flight of them, and
    -- leased rows of first attempts, which are due when the attempt must have ended. A failure would delay those again, unless it
    -- finds the row changed. A success must still end them, so the new time must not be after the attempt began. These come
    -- first, or an outcome recorded in between would be missed.
    UPDATE webhook_deliveries AS d SET next_attempt_at = d.next_attempt_at - interval '1 second'
    WHERE d.id = ANY (ARRAY(SELECT d.id FROM webhook_deliveries AS d
                            WHERE d.endpoint_id = webhook_retry_now.endpoint_id AND d.status IN ('pending', 'retrying') AND d.next_attempt_at <= now()
                            ORDER BY d.next_attempt_at, d.id LIMIT 1000))
      AND d.status IN ('pending', 'retrying');
    -- The others get the latest possible time: walhook looks for what has become due since a second ago.
    UPDATE webhook_deliveries AS d
    SET next_attempt_at = CASE WHEN d.status = 'pending' AND d.attempts = 0 THEN d.created_at - interval '11 minutes' ELSE clock_timestamp() END
    WHERE d.endpoint_id = webhook_retry_now.endpoint_id AND d.status IN ('pending', 'retrying') AND d.next_attempt_at > now();
    SELECT count(*) INTO waiting FROM webhook_deliveries AS d
    WHERE d.endpoint_id = webhook_retry_now.endpoint_id AND d.status IN ('pending', 'retrying');
    RETURN waiting;
END $fn$;
COMMENT ON FUNCTION webhook_retry_now(uuid) IS
    'For an endpoint that works again: its waiting deliveries are due at once, in their series, and its breaker closes, slowly at first. Returns how many.';

-- Like webhook_retry_now: who may pause need not be allowed to change endpoints.
CREATE OR REPLACE FUNCTION webhook_pause(endpoint_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
#variable_conflict use_column
BEGIN
    PERFORM FROM webhook_endpoints AS e WHERE e.id = webhook_pause.endpoint_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_pause: there is no endpoint %', coalesce(webhook_pause.endpoint_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE webhook_endpoints AS e SET paused_at = now() WHERE e.id = webhook_pause.endpoint_id AND e.paused_at IS NULL;
END $fn$;
COMMENT ON FUNCTION webhook_pause(uuid) IS
    'Pauses an endpoint: a second later nothing is sent to it, and what is owed waits, uncounted, until webhook_resume. Does nothing if it is paused.';

CREATE OR REPLACE FUNCTION webhook_resume(endpoint_id uuid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
#variable_conflict use_column
BEGIN
    PERFORM FROM webhook_endpoints AS e WHERE e.id = webhook_resume.endpoint_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'webhook_resume: there is no endpoint %', coalesce(webhook_resume.endpoint_id::text, 'null') USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE webhook_endpoints AS e SET paused_at = NULL WHERE e.id = webhook_resume.endpoint_id AND e.paused_at IS NOT NULL;
END $fn$;
COMMENT ON FUNCTION webhook_resume(uuid) IS 'Ends a pause: what waits for the endpoint is sent, the longest due first. Does nothing if it is not paused.';

CREATE OR REPLACE FUNCTION webhook_note_forgotten(ids uuid[]) RETURNS void
    LANGUAGE sql SET search_path FROM CURRENT AS $fn$
    INSERT INTO webhook_retries (endpoint_id, forgotten_at) SELECT g.id, clock_timestamp() FROM pg_catalog.unnest(ids) AS g(id)
    ON CONFLICT (endpoint_id) DO UPDATE SET asked_at = NULL, resumed_at = NULL, forgotten_at = excluded.forgotten_at
$fn$;
COMMENT ON FUNCTION webhook_note_forgotten(uuid[]) IS 'Used by webhook_forget.';

-- Whatever walhook records begins by updating webhook_state, and events come by an INSERT into webhook_outbox or a partition. So
-- transactions that have locked neither yet see what is committed now.
CREATE OR REPLACE FUNCTION webhook_writers() RETURNS text[]
    LANGUAGE sql SET search_path FROM CURRENT AS $fn$
    SELECT ARRAY(SELECT DISTINCT l.virtualtransaction FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
                 WHERE d.datname = current_database() AND l.mode = 'RowExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
                   AND l.relation IN (SELECT 'webhook_state'::regclass::oid UNION ALL SELECT 'webhook_outbox'::regclass::oid
                                      UNION ALL SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'webhook_outbox'::regclass::oid))
$fn$;
COMMENT ON FUNCTION webhook_writers() IS 'The other transactions that record now, or have inserted events.';

-- Erasing goes through all rows in the order of their ids, because no index has the organization: one would cost every delivery. An
-- event and its deliveries have the same milliseconds, so a range of whole milliseconds has all of them.
-- walhook may be recording outcomes of the organization meanwhile, and the application may have inserted events that it commits
-- later. The notes in webhook_retries keep outcomes out, except for statements that began before the notes were committed. So as
-- long as one of these may be under way, a range is left to the next call if walhook may hold a delivery of it: one that has no row
-- yet, or that waits. Once all transactions of before have ended, it goes through all rows once more. Only where there was no other
-- transaction is the first call enough.
CREATE OR REPLACE FUNCTION webhook_forget(organization_id text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '200ms'
    SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $fn$
#variable_conflict use_column
DECLARE
    -- A call ends after this time, and after so many ranges with so many rows of each table: the rest is the next call's.
    enough CONSTANT interval := '200 milliseconds';
    ranges CONSTANT int := 20;
    size   int;
    last   CONSTANT uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    org    CONSTANT text := webhook_forget.organization_id;
    began  CONSTANT timestamptz := clock_timestamp();
    f      webhook_forgetting;
    first  int;
    others text[];
    quiet  boolean;
    ids    uuid[];
    upto   uuid;
    before bigint;
    many   bigint;
    seen   bigint;
    done   boolean := false;
    total  bigint;
    oldest timestamptz;
BEGIN
    IF org IS NULL OR btrim(org) = '' OR octet_length(org) > 512 THEN
        RAISE EXCEPTION 'webhook_forget: the organization is null, empty or longer than 512 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('transaction_isolation'::text) NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'webhook_forget: a transaction that is % does not see what was recorded since it began: use READ COMMITTED', upper(current_setting('transaction_isolation'::text))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    -- Endpoints first, so that nothing more is sent. In the order in which others take these locks.
    BEGIN
        INSERT INTO webhook_forgetting AS w (organization_id) VALUES (org) ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS first = ROW_COUNT;
        SELECT * INTO STRICT f FROM webhook_forgetting AS w WHERE w.organization_id = org FOR UPDATE;
        IF first = 0 AND f.noted_by = pg_current_xact_id() THEN
            RAISE EXCEPTION 'webhook_forget: a second call in one transaction cannot end it, because walhook does not see the first: commit after each call'
                USING ERRCODE = 'invalid_transaction_state';
        END IF;
        -- Locks the DEFAULT partitions, so that no rows are moved out of them meanwhile and missed.
        PERFORM FROM webhook_deliveries AS d WHERE d.id = '00000000-0000-0000-0000-000000000000'::uuid;
        PERFORM FROM webhook_outbox AS o WHERE o.id = '00000000-0000-0000-0000-000000000000'::uuid;
        WITH picked AS MATERIALIZED (
            SELECT e.id FROM webhook_endpoints AS e WHERE e.organization_id = org LIMIT 1000 FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM webhook_endpoints AS e USING picked WHERE e.id = picked.id RETURNING e.id
        )
        SELECT coalesce(array_agg(gone.id), '{}') INTO ids FROM gone;
        PERFORM webhook_note_forgotten(ids);
    EXCEPTION WHEN lock_not_available OR no_data_found THEN
        RETURN 1; -- another session erases it, or uses one of its endpoints
    END;
    IF ids OPERATOR(pg_catalog.<>) '{}'::uuid[] THEN
        f.endpoint_ids := f.endpoint_ids OPERATOR(pg_catalog.||) ids;
        f.noted_by := pg_current_xact_id();
        f.settled := false;
        f.erased := f.erased + pg_catalog.cardinality(ids);
    END IF;
    DELETE FROM webhook_endpoint_failures AS x
    WHERE x.endpoint_id IN (SELECT x.endpoint_id FROM webhook_endpoint_failures AS x WHERE x.endpoint_id = ANY (f.endpoint_ids) FOR UPDATE SKIP LOCKED);

    others := webhook_writers();
    quiet := others OPERATOR(pg_catalog.=) '{}'::text[];
    IF NOT f.settled AND f.noted_by <> pg_current_xact_id() THEN
        FOR try IN 1..40 LOOP -- for 200 ms
            EXIT WHEN others OPERATOR(pg_catalog.=) '{}'::text[];
            PERFORM pg_sleep(0.005::float8);
            others := ARRAY(SELECT o.id FROM pg_catalog.unnest(webhook_writers()) AS o(id) WHERE o.id = ANY (others));
        END LOOP;
        IF others OPERATOR(pg_catalog.=) '{}'::text[] THEN
            f.settled := true;
            f.reached := '00000000-0000-0000-0000-000000000000';
        END IF;
    END IF;

    FOR range IN 1..ranges LOOP
        EXIT WHEN EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.organization_id = org); -- locked, or more than a call deletes
        before := f.erased;
        BEGIN
            size := CASE WHEN f.settled THEN 10000 ELSE 1000 END;
            upto := least((SELECT o.id FROM webhook_outbox AS o WHERE o.id >= f.reached ORDER BY o.id OFFSET size LIMIT 1),
                          (SELECT d.id FROM webhook_deliveries AS d WHERE d.id >= f.reached ORDER BY d.id OFFSET size LIMIT 1));
            IF upto IS NULL THEN
                upto := last;
            ELSIF webhook_uuid_at(webhook_uuid_time(upto)) > f.reached THEN
                upto := webhook_uuid_at(webhook_uuid_time(upto));
            ELSE
                upto := webhook_uuid_at(webhook_uuid_time(upto) + interval '1 millisecond');
            END IF;

            -- Without a row: walhook may be sending it. What is owed to an endpoint that is noted gets no row any more. What is owed to
            -- another organization's, an operator's, has one soon.
            ids := ARRAY(SELECT DISTINCT w.id FROM (
                SELECT e.id FROM webhook_outbox AS o CROSS JOIN LATERAL pg_catalog.unnest(o.endpoint_ids) AS e(id)
                WHERE o.id >= f.reached AND o.id < upto AND o.organization_id = org AND NOT (f.settled AND e.id = ANY (f.endpoint_ids))
                  AND NOT EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id = webhook_delivery_id(o.id, e.id) OFFSET 0)
                LIMIT 1000) AS w);
            IF ids OPERATOR(pg_catalog.<>) '{}'::uuid[] THEN
                -- Of endpoints that were deleted before.
                ids := ARRAY(SELECT g.id FROM pg_catalog.unnest(ids) AS g(id)
                             WHERE g.id <> ALL (f.endpoint_ids) AND NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = g.id));
                IF ids OPERATOR(pg_catalog.<>) '{}'::uuid[] THEN
                    PERFORM webhook_note_forgotten(ids);
                    f.endpoint_ids := f.endpoint_ids OPERATOR(pg_catalog.||) ids;
                    f.noted_by := pg_current_xact_id();
                    f.settled := false;
                END IF;
                EXIT;
            END IF;
            -- The condition on status matches no partial index, or all waiting deliveries might be read.
            EXIT WHEN NOT f.settled AND EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id >= f.reached AND d.id < upto AND d.organization_id = org
                                                  AND d.status NOT IN ('success', 'failed', 'cancelled'));

            WITH mine AS MATERIALIZED (
                SELECT d.id FROM webhook_deliveries AS d WHERE d.id >= f.reached AND d.id < upto AND d.organization_id = org
            ), picked AS MATERIALIZED (
                SELECT d.id FROM mine JOIN webhook_deliveries AS d ON d.id = mine.id FOR UPDATE OF d SKIP LOCKED
            ), gone AS (
                DELETE FROM webhook_deliveries AS d USING picked WHERE d.id = picked.id RETURNING d.endpoint_id
            )
            SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM mine),
                   ARRAY(SELECT DISTINCT g.endpoint_id FROM gone AS g WHERE g.endpoint_id <> ALL (f.endpoint_ids)
                         AND NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = g.endpoint_id))
            INTO many, seen, ids;
            f.erased := f.erased + many;
            PERFORM webhook_note_forgotten(ids); -- of endpoints that were deleted before: after a crash their events may be read again
            EXIT WHEN many < seen;
            WITH mine AS MATERIALIZED (
                SELECT o.id FROM webhook_outbox AS o WHERE o.id >= f.reached AND o.id < upto AND o.organization_id = org
            ), picked AS MATERIALIZED (
                SELECT o.id FROM mine JOIN webhook_outbox AS o ON o.id = mine.id FOR UPDATE OF o SKIP LOCKED
            ), gone AS (
                DELETE FROM webhook_outbox AS o USING picked WHERE o.id = picked.id RETURNING o.id
            )
            SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM mine) INTO many, seen;
            f.erased := f.erased + many;
            EXIT WHEN many < seen;
            IF upto = last THEN
                done := (f.settled OR quiet AND webhook_writers() OPERATOR(pg_catalog.=) '{}'::text[])
                AND NOT EXISTS (SELECT FROM webhook_endpoint_failures AS x WHERE x.endpoint_id = ANY (f.endpoint_ids));
                EXIT;
            END IF;
            f.reached := upto;
        EXCEPTION WHEN lock_not_available THEN
            f.erased := before; -- a day is being made or dropped
            EXIT;
        END;
        EXIT WHEN clock_timestamp() - began > enough;
    END LOOP;

    IF f.audit_id IS NOT NULL THEN
        UPDATE webhook_audit AS a SET count = f.erased, detail = CASE WHEN NOT done THEN 'unfinished' END WHERE a.id = f.audit_id;
    ELSIF f.erased > 0 OR NOT done THEN
        INSERT INTO webhook_audit AS a (who, action, organization_id, count, detail)
        VALUES (session_user::text, 'organization.forgotten', org, f.erased, CASE WHEN NOT done THEN 'unfinished' END) RETURNING a.id INTO f.audit_id;
    END IF;
    IF done THEN
        DELETE FROM webhook_forgetting AS w WHERE w.organization_id = org;
        RETURN 0;
    END IF;

    SELECT min(webhook_uuid_time(r.id)) INTO oldest
    FROM ((SELECT o.id FROM webhook_outbox AS o ORDER BY o.id LIMIT 1) UNION ALL (SELECT d.id FROM webhook_deliveries AS d ORDER BY d.id LIMIT 1)) AS r;
    f.share := greatest(f.share, least(1, extract(epoch FROM webhook_uuid_time(f.reached) - oldest)::float8 / nullif(extract(epoch FROM began - oldest)::float8, 0)));
    UPDATE webhook_forgetting AS w
    SET endpoint_ids = f.endpoint_ids, noted_by = f.noted_by, settled = f.settled, reached = f.reached, share = f.share, erased = f.erased,
        audit_id = f.audit_id, updated_at = clock_timestamp()
    WHERE w.organization_id = org;
    SELECT pg_catalog.sum(greatest(c.reltuples::bigint, pg_relation_size(c.oid::regclass) / 500)) INTO total
    FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid);
    RETURN greatest(1, ceil(total::float8 * (1 - f.share))::bigint);
END $fn$;
COMMENT ON FUNCTION webhook_forget(text) IS
    'Erases an organization''s events, deliveries, endpoints and secrets, some thousand rows in each call. Call it in transactions of their own until it returns 0. It returns how '
    'many rows, of everybody''s, it has still to look through, estimated: so many of the organization''s can be left at most. 0: none is left.';

CREATE OR REPLACE FUNCTION webhook_explain(event_id uuid)
    RETURNS TABLE (endpoint_id uuid, url text, reason text, delivery_id uuid, status text)
    -- JIT compiling takes a hundred times as long as running it.
    LANGUAGE sql STABLE SET search_path FROM CURRENT SET jit = off AS $fn$
    WITH event AS MATERIALIZED (
        SELECT o.id, o.organization_id, o.event_type, o.payload, o.endpoint_ids, t.patterns,
               greatest(o.created_at, webhook_uuid_time(o.id)) AS at, starts_with(o.event_type, 'webhook.'::text) AS own
        FROM webhook_outbox AS o LEFT JOIN webhook_event_types AS t ON t.name = o.event_type
        WHERE o.id = webhook_explain.event_id
    ), endpoints AS (
        SELECT e.id FROM event JOIN webhook_endpoints AS e ON e.organization_id = event.organization_id
        UNION
        SELECT pg_catalog.unnest(event.endpoint_ids) FROM event
    )
    SELECT x.id, CASE WHEN e.organization_id = event.organization_id THEN e.url END,
        CASE
            WHEN NOT owed.yes AND e.created_at > event.at THEN 'not owed: the endpoint was created after the event'
            WHEN NOT owed.yes AND e.all_organizations AND NOT event.own THEN 'not owed: all_organizations is set, so it gets the types webhook.* and nothing else'
            WHEN NOT owed.yes AND NOT e.event_types OPERATOR(pg_catalog.&&) CASE WHEN e.all_organizations THEN pg_catalog.array_append(event.patterns, '*') ELSE event.patterns END THEN 'not owed: not subscribed to ' || event.event_type
            WHEN NOT owed.yes AND NOT e.enabled AND e.disabled_at <= event.at THEN 'not owed: disabled when the event was inserted'
            WHEN NOT owed.yes AND e.filter IS NOT NULL AND NOT webhook_filter_matches(event.payload, e.filter) THEN 'not owed: the filter does not match'
            WHEN NOT owed.yes THEN 'not owed: disabled when the event was inserted, or not subscribed to ' || event.event_type
                || ' then, or the event named other endpoints'
            WHEN d.id IS NULL THEN 'owed: no outcome yet: its first attempt is under way or waits to be read from the WAL'
            WHEN d.status = 'success' THEN 'owed: success'
            WHEN d.status = 'pending' AND d.attempts = 0 THEN 'owed: waiting for its first attempt'
            WHEN d.status = 'pending' THEN 'owed: waiting to be replayed'
            WHEN d.status = 'retrying' THEN pg_catalog.format('owed: attempt %s failed (%s), the next is due at %s', d.attempts, why.failed, d.next_attempt_at)
            WHEN d.status = 'failed' THEN pg_catalog.format('owed: failed for good after attempt %s (%s)', d.attempts, why.failed)
            ELSE 'owed: cancelled, the endpoint was disabled or deleted'
        END || CASE
            WHEN e.id IS NULL THEN ' (the endpoint is deleted)'
            WHEN NOT owed.yes THEN ''
            WHEN e.organization_id <> event.organization_id AND NOT e.all_organizations THEN ' (the endpoint is another organization''s)'
            WHEN NOT e.enabled THEN ' (the endpoint is disabled)'
            WHEN d.status IN ('success', 'failed', 'cancelled') THEN ''
            ELSE CASE WHEN e.paused_at IS NOT NULL THEN pg_catalog.format(' (the endpoint is paused since %s)', e.paused_at) ELSE '' END
              || CASE WHEN f.breaker_opened_at IS NOT NULL
                      THEN pg_catalog.format(' (its breaker is open since %s: one probe at a time)', f.breaker_opened_at) ELSE '' END
              || CASE WHEN e.rate_per_second IS NOT NULL
                      THEN pg_catalog.format(' (it gets at most %s requests per second)', e.rate_per_second) ELSE '' END
              || CASE WHEN connected.yes THEN '' ELSE ' (no walhook is connected to the slot)' END
        END || CASE WHEN e.organization_id <> event.organization_id AND e.all_organizations THEN ' (an endpoint of operators)' ELSE '' END,
        CASE WHEN owed.yes THEN webhook_delivery_id(event.id, x.id) END,
        d.status
    FROM event
    CROSS JOIN endpoints AS x
    CROSS JOIN LATERAL (SELECT x.id = ANY (event.endpoint_ids) AS yes) AS owed
    CROSS JOIN (SELECT EXISTS (SELECT FROM pg_replication_slots AS r JOIN webhook_state AS s ON s.slot = r.slot_name::text
                               WHERE r.active AND r.database = current_database()) AS yes) AS connected
    LEFT JOIN webhook_endpoints AS e ON e.id = x.id
    LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = x.id
    -- LIMIT makes the plan a look-up by id: one index scan in one partition for each endpoint.
    LEFT JOIN LATERAL (SELECT * FROM webhook_deliveries AS d WHERE owed.yes AND d.id = webhook_delivery_id(event.id, x.id) LIMIT 1) AS d ON true
    CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.concat_ws(' ', d.error_class, d.status_code), '') AS failed) AS why
    ORDER BY owed.yes DESC, e.created_at, x.id
$fn$;
COMMENT ON FUNCTION webhook_explain(uuid) IS
    'For every endpoint of an event''s organization, and every other that is owed it: whether the event is owed to it, the outcome or what delays it, or why it is not owed (as far as the present rows tell). '
    'url is null if the endpoint is deleted, or another organization''s.';

CREATE OR REPLACE FUNCTION webhook_stats(organization_id text)
    RETURNS TABLE (events_24h bigint, deliveries_24h bigint, success_24h bigint, failed_24h bigint, cancelled_24h bigint,
                   pending_24h bigint, retrying_24h bigint, success_rate_24h numeric, waiting bigint, oldest_waiting_at timestamptz)
    LANGUAGE sql STABLE SET search_path FROM CURRENT SET jit = off SET enable_sort = off SET enable_incremental_sort = off AS $fn$
    -- Ranges of ids, so that only the partitions of the last days are read. An application's clock may be ahead of the server's.
    SELECT events.n, d.n, d.success, d.failed, d.cancelled, d.pending, d.retrying,
           round(d.success::numeric / nullif(d.success + d.failed, 0)::numeric, 4),
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
                  AND d.id >= webhook_uuid_at(now() - interval '24 hours') AND d.id < webhook_uuid_at(now() + interval '2 hours')
                  -- not what operators get about the organization
                  AND (NOT starts_with(d.event_type, 'webhook.'::text) OR EXISTS (
                      SELECT FROM webhook_endpoints AS e WHERE e.id = d.endpoint_id AND e.organization_id = d.organization_id OFFSET 0))) AS d
    CROSS JOIN (SELECT coalesce(sum(w.n), 0)::bigint AS n, min(w.oldest) AS oldest
                FROM webhook_endpoints AS e
                CROSS JOIN LATERAL (SELECT count(*) AS n, min(d.created_at) AS oldest
                                    FROM (SELECT d.created_at FROM webhook_deliveries AS d
                                          WHERE d.endpoint_id = e.id AND d.status IN ('pending', 'retrying')
                                          ORDER BY d.next_attempt_at, d.id) AS d) AS w -- as in webhook_waiting
                WHERE e.organization_id = webhook_stats.organization_id) AS waiting
$fn$;
COMMENT ON FUNCTION webhook_stats(text) IS
    'One row about an organization: events and deliveries to its endpoints of the last 24 hours by status, the share of successes among those that ended in '
    'success or failure, and what waits now, of any age.';


-- --- 9. Views -------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION webhook_waiting(endpoint_id uuid, OUT waiting bigint, OUT oldest_due_at timestamptz)
    -- Each endpoint by itself, so that a query about one organization reads only its rows, whatever the statistics say. The order
    -- is that of the index (endpoint_id, next_attempt_at, id). Without it, if nearly all rows are one endpoint's, another index
    -- looks as good, and all those rows would be read for each of the other endpoints.
    LANGUAGE sql STABLE SET search_path FROM CURRENT SET jit = off
    SET enable_seqscan = off SET enable_sort = off SET enable_incremental_sort = off AS $fn$
    -- infinity means never.
    SELECT count(*), nullif(min(greatest(d.next_attempt_at, d.created_at)), 'infinity')
    FROM (SELECT d.next_attempt_at, d.created_at FROM webhook_deliveries AS d
          WHERE d.endpoint_id = webhook_waiting.endpoint_id AND d.status IN ('pending', 'retrying')
          ORDER BY d.next_attempt_at, d.id) AS d
$fn$;
COMMENT ON FUNCTION webhook_waiting(uuid) IS 'How many deliveries wait for an endpoint, and when the first of them is or was due.';

CREATE OR REPLACE VIEW webhook_attempts AS
    SELECT d.id AS delivery_id, d.event_id, d.endpoint_id, a.attempt, a.at, a.status_code, a.error_class, a.error, a.duration_ms
    FROM webhook_deliveries AS d
    CROSS JOIN LATERAL (
        SELECT l.attempt, l.at, l.status_code, l.error_class, l.error, l.duration_ms
        FROM jsonb_to_recordset(CASE WHEN jsonb_typeof(d.attempt_log) = 'array' THEN d.attempt_log ELSE '[]' END)
            AS l (attempt int, at timestamptz, status_code int, error_class text, error text, duration_ms int)
        UNION ALL
        SELECT 1, d.updated_at - d.duration_ms::float8 * interval '1 millisecond', d.status_code, d.error_class, d.error, d.duration_ms
        WHERE d.attempt_log IS NULL AND d.attempts = 1
    ) AS a;
COMMENT ON VIEW webhook_attempts IS 'Every attempt, which is an HTTP request for a delivery.';
COMMENT ON COLUMN webhook_attempts.delivery_id IS 'The row of webhook_deliveries.';
COMMENT ON COLUMN webhook_attempts.event_id IS 'The row of webhook_outbox.';
COMMENT ON COLUMN webhook_attempts.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_attempts.attempt IS 'Counts from 1, over all replays. X-Webhook-Retry is one less.';
COMMENT ON COLUMN webhook_attempts.at IS 'When it began.';
COMMENT ON COLUMN webhook_attempts.status_code IS 'HTTP status; null: no response came.';
COMMENT ON COLUMN webhook_attempts.error_class IS 'The class of its failure, see webhook_deliveries.error_class. Null: it succeeded.';
COMMENT ON COLUMN webhook_attempts.error IS 'The failure in words.';
COMMENT ON COLUMN webhook_attempts.duration_ms IS 'How long it took.';

CREATE OR REPLACE VIEW webhook_endpoint_health AS
    SELECT e.id AS endpoint_id, e.organization_id, e.url, e.enabled, e.disabled_at, e.disabled_reason, f.failing_since,
           w.waiting, w.oldest_due_at,
           CASE WHEN f.breaker_opened_at IS NULL THEN 'closed' ELSE 'open' END AS breaker, f.breaker_opened_at, e.paused_at
    FROM webhook_endpoints AS e
    LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id
    CROSS JOIN LATERAL webhook_waiting(e.id) AS w;
COMMENT ON VIEW webhook_endpoint_health IS 'The health of every endpoint.';
COMMENT ON COLUMN webhook_endpoint_health.endpoint_id IS 'The row of webhook_endpoints.';
COMMENT ON COLUMN webhook_endpoint_health.organization_id IS 'The endpoint''s organization.';
COMMENT ON COLUMN webhook_endpoint_health.url IS 'The endpoint''s URL.';
COMMENT ON COLUMN webhook_endpoint_health.enabled IS 'Whether anything is sent to it.';
COMMENT ON COLUMN webhook_endpoint_health.disabled_at IS 'Since when it is disabled.';
COMMENT ON COLUMN webhook_endpoint_health.disabled_reason IS 'Why it is disabled.';
COMMENT ON COLUMN webhook_endpoint_health.failing_since IS 'Since when it has had nothing but failures. Null: its last attempt succeeded, or it had none.';
COMMENT ON COLUMN webhook_endpoint_health.waiting IS 'Deliveries that are pending or retrying.';
COMMENT ON COLUMN webhook_endpoint_health.oldest_due_at IS 'When the first of them is or was due.';
COMMENT ON COLUMN webhook_endpoint_health.breaker IS
    'open: it failed many times in a row, so it gets one probe at a time and everything else waits, and no attempt is counted; closed: everything is sent.';
COMMENT ON COLUMN webhook_endpoint_health.breaker_opened_at IS 'Since when the breaker is open.';
COMMENT ON COLUMN webhook_endpoint_health.paused_at IS 'Since when it is paused: everything waits, and nothing is sent. Null: it is not.';

-- A loose scan of the index (endpoint_id, next_attempt_at, id): it reads the first waiting row of each endpoint, however many
-- wait. For webhook_status, which reads it with its owner's rights.
CREATE OR REPLACE VIEW webhook_overdue AS
    WITH RECURSIVE walk AS (
        (SELECT d.endpoint_id FROM webhook_deliveries AS d WHERE d.status IN ('pending', 'retrying') ORDER BY d.endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.endpoint_id FROM webhook_deliveries AS d
                WHERE d.status IN ('pending', 'retrying') AND d.endpoint_id > walk.endpoint_id ORDER BY d.endpoint_id LIMIT 1)
        FROM walk WHERE walk.endpoint_id IS NOT NULL
    )
    SELECT min(due.at) AS since
    FROM walk
    -- LIMIT, so that each endpoint is looked up by itself: where the planner expects that none can be sent to, it would compare
    -- each of these with every endpoint.
    CROSS JOIN LATERAL (SELECT e.id FROM webhook_endpoints AS e
                        WHERE e.id = walk.endpoint_id AND e.enabled AND e.paused_at IS NULL AND e.rate_per_second IS NULL
                          AND NOT EXISTS (SELECT FROM webhook_endpoint_failures AS f WHERE f.endpoint_id = e.id AND f.breaker_opened_at IS NOT NULL)
                        LIMIT 1) AS sendable
    CROSS JOIN LATERAL (SELECT greatest(d.next_attempt_at, d.created_at) AS at FROM webhook_deliveries AS d
                        WHERE d.endpoint_id = sendable.id AND d.status IN ('pending', 'retrying') AND d.next_attempt_at <= now()
                        ORDER BY d.next_attempt_at, d.id LIMIT 1) AS due;
COMMENT ON VIEW webhook_overdue IS
    'Since when the oldest delivery that could be sent now has been due, without those that a pause, an open breaker or a rate delays. One row. Null: there is none.';
COMMENT ON COLUMN webhook_overdue.since IS 'When it was due. See webhook_status.oldest_due_at.';

CREATE OR REPLACE VIEW webhook_status AS
    SELECT s.slot, s.epoch, s.holder, s.durable_lsn, s.durable_at, s.environment, s.updated_at,
           r.slot_name IS NOT NULL AS slot_exists, coalesce(r.active, false) AS slot_active, r.confirmed_flush_lsn,
           pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                           r.restart_lsn)::bigint AS lag_bytes,
           r.wal_status,
           w.pending, w.retrying,
           (SELECT o.since FROM webhook_overdue AS o) AS oldest_due_at,
           (SELECT count(*) FROM webhook_outbox_default) AS outbox_default_rows,
           (SELECT count(*) FROM webhook_deliveries_default) AS deliveries_default_rows,
           r.safe_wal_size AS safe_wal_bytes,
           (SELECT pg_catalog.jsonb_object_agg(p.key, p.value)
            FROM (SELECT e.key, e.value FROM jsonb_each(s.progress) AS e(key, value)
                  UNION ALL
                  SELECT 'forgetting', pg_catalog.jsonb_build_object('at', max(w.updated_at), 'began', min(w.began_at), 'percent', floor(100::float8 * min(w.share)),
                      'seconds_left', floor(pg_catalog.sum(extract(epoch FROM w.updated_at - w.began_at)::float8 * (1::float8 - w.share) / nullif(w.share, 0::float8))),
                      'waiting', count(*), 'done', pg_catalog.sum(w.erased))
                  FROM webhook_forgetting AS w HAVING count(*) > 0) AS p
            WHERE (p.value ->> 'at'::text)::timestamptz > now() - interval '5 minutes') AS progress,
           (SELECT count(*) FROM webhook_endpoints AS e WHERE e.paused_at IS NOT NULL) AS paused_endpoints
    FROM (SELECT count(*) FILTER (WHERE d.status = 'pending') AS pending, count(*) FILTER (WHERE d.status = 'retrying') AS retrying
          FROM webhook_deliveries AS d WHERE d.status IN ('pending', 'retrying')) AS w
    LEFT JOIN (SELECT * FROM webhook_state ORDER BY webhook_state.updated_at DESC LIMIT 1) AS s ON true
    LEFT JOIN pg_replication_slots AS r ON r.slot_name = coalesce(s.slot, 'walhook') AND r.database = current_database();
COMMENT ON VIEW webhook_status IS 'One row: walhook''s position, and what waits. The slot''s columns are null if no walhook has run yet.';
COMMENT ON COLUMN webhook_status.slot IS 'WALHOOK_SLOT of the walhook that wrote last.';
COMMENT ON COLUMN webhook_status.epoch IS 'How often another process has taken over the slot.';
COMMENT ON COLUMN webhook_status.holder IS 'The process that holds the slot.';
COMMENT ON COLUMN webhook_status.durable_lsn IS 'Every delivery up to this position is in webhook_deliveries.';
COMMENT ON COLUMN webhook_status.durable_at IS 'Commit time of the transaction that ends at durable_lsn.';
COMMENT ON COLUMN webhook_status.environment IS 'The environment that this database belongs to.';
COMMENT ON COLUMN webhook_status.updated_at IS 'When walhook last wrote its state.';
COMMENT ON COLUMN webhook_status.slot_exists IS 'Whether the replication slot exists.';
COMMENT ON COLUMN webhook_status.slot_active IS 'Whether a walhook is connected to it.';
COMMENT ON COLUMN webhook_status.confirmed_flush_lsn IS 'PostgreSQL may remove the WAL before this position.';
COMMENT ON COLUMN webhook_status.lag_bytes IS 'How much WAL PostgreSQL keeps for the slot.';
COMMENT ON COLUMN webhook_status.safe_wal_bytes IS
    'How much more WAL may be written before max_slot_wal_keep_size may invalidate the slot. Null: no limit is set, or the slot is lost.';
COMMENT ON COLUMN webhook_status.progress IS
    'What takes long now, and how far it is: reconciling (events are compared with deliveries), resealing (secrets and headers), replaying (due deliveries are '
    'sent), forgetting (webhook_forget is called for organizations); with percent, seconds_left, and figures of its own. Null: nothing does.';
COMMENT ON COLUMN webhook_status.paused_endpoints IS 'Endpoints that are paused: what waits for them is pending or retrying, and never overdue.';
COMMENT ON COLUMN webhook_status.wal_status IS 'From pg_replication_slots. lost: max_slot_wal_keep_size was exceeded.';
COMMENT ON COLUMN webhook_status.pending IS 'Deliveries waiting for their first attempt or a replay.';
COMMENT ON COLUMN webhook_status.retrying IS 'Deliveries waiting for their next attempt.';
COMMENT ON COLUMN webhook_status.oldest_due_at IS
    'Since when the oldest of these that could be sent now has been due, without those that a pause, an open breaker or a rate delays. Null: there is none.';
COMMENT ON COLUMN webhook_status.outbox_default_rows IS 'Events outside the daily partitions. Normally 0.';
COMMENT ON COLUMN webhook_status.deliveries_default_rows IS 'Deliveries outside the daily partitions. Normally 0.';

-- With its owner's rights a view would show rows that row security hides from the reader. (PostgreSQL 14 has no other views.)
-- webhook_status has numbers of the whole installation and keeps its owner's rights, so that its readers need no privilege on a
-- table.
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW webhook_attempts SET (security_invoker = true);
        ALTER VIEW webhook_endpoint_health SET (security_invoker = true);
    END IF;
END $do$;

-- For roles that must not see all of a table: see roles.sql. These views have their owner's rights, and a barrier that shows no
-- function of the reader's a row that they hide.
CREATE OR REPLACE FUNCTION webhook_url_host(url text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN substring(url, '^[A-Za-z]+://'::text) || substring(url, '^[A-Za-z]+://(?:[^/?#]*@)?([^/?#@]*)'::text);
COMMENT ON FUNCTION webhook_url_host(text) IS 'Returns a URL''s scheme, host and port: paths and queries often hold credentials.';

CREATE OR REPLACE VIEW webhook_ops_endpoints WITH (security_barrier = true) AS
    SELECT e.id, e.organization_id, webhook_url_host(e.url) AS url, e.event_types, e.description, e.enabled, e.disabled_at, e.disabled_reason,
           e.max_in_flight, e.rate_per_second, e.created_at, e.updated_at, f.failing_since, f.breaker_opened_at, w.waiting, w.oldest_due_at,
           e.filter, e.paused_at, e.timeout, e.retry_schedule, e.all_organizations
    FROM webhook_endpoints AS e
    LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id
    CROSS JOIN LATERAL webhook_waiting(e.id) AS w;
COMMENT ON VIEW webhook_ops_endpoints IS
    'For operators: endpoints and their health, without headers. url is scheme, host and port; the other columns are those of webhook_endpoints and webhook_endpoint_health.';

CREATE OR REPLACE FUNCTION webhook_ops_explain(event_id uuid)
    RETURNS TABLE (endpoint_id uuid, url text, reason text, delivery_id uuid, status text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT SET row_security = off AS $fn$
    SELECT x.endpoint_id, webhook_url_host(x.url), x.reason, x.delivery_id, x.status FROM webhook_explain(webhook_ops_explain.event_id) AS x
$fn$;
COMMENT ON FUNCTION webhook_ops_explain(uuid) IS 'webhook_explain for operators: url is scheme, host and port.';

-- A session without the setting, or with an empty one, sees no row: no organization is ''. Deliveries of walhook's own events
-- go to endpoints of operators too, which are another organization's: what those answered is not the tenant's.
CREATE OR REPLACE VIEW webhook_tenant_endpoints WITH (security_barrier = true) AS
    SELECT e.id, e.organization_id, e.url, e.event_types, e.description, e.enabled, e.disabled_at, e.disabled_reason,
           e.max_in_flight, e.rate_per_second, e.created_at, e.updated_at, e.filter, e.paused_at, e.timeout, e.retry_schedule
    FROM webhook_endpoints AS e WHERE e.organization_id = current_setting('walhook.organization', true);
COMMENT ON VIEW webhook_tenant_endpoints IS
    'The endpoints of the organization that the setting walhook.organization names, without headers. Columns as in webhook_endpoints.';

CREATE OR REPLACE VIEW webhook_tenant_deliveries WITH (security_barrier = true) AS
    SELECT d.id, d.event_id, d.endpoint_id, d.organization_id, d.event_type, d.status, d.attempts, d.next_attempt_at, d.status_code, d.error_class,
           d.error, d.response, d.duration_ms, d.created_at, d.updated_at, d.completed_at
    FROM webhook_deliveries AS d
    WHERE d.organization_id = current_setting('walhook.organization', true)
      AND (NOT starts_with(d.event_type, 'webhook.'::text) OR EXISTS (
          SELECT FROM webhook_endpoints AS e WHERE e.id = d.endpoint_id AND e.organization_id = d.organization_id OFFSET 0));
COMMENT ON VIEW webhook_tenant_deliveries IS
    'The deliveries of the organization that the setting walhook.organization names, without those to endpoints of operators. Give a range of id, as webhook_uuid_at returns it: else every day is read. '
    'Columns as in webhook_deliveries.';

CREATE OR REPLACE VIEW webhook_tenant_attempts WITH (security_barrier = true) AS
    SELECT d.id AS delivery_id, d.event_id, d.endpoint_id, a.attempt, a.at, a.status_code, a.error_class, a.error, a.duration_ms
    FROM webhook_deliveries AS d
    CROSS JOIN LATERAL ( -- as in webhook_attempts, which would ask for the reader's rights on the table
        SELECT l.attempt, l.at, l.status_code, l.error_class, l.error, l.duration_ms
        FROM jsonb_to_recordset(CASE WHEN jsonb_typeof(d.attempt_log) = 'array' THEN d.attempt_log ELSE '[]' END)
            AS l (attempt int, at timestamptz, status_code int, error_class text, error text, duration_ms int)
        UNION ALL
        SELECT 1, d.updated_at - d.duration_ms::float8 * interval '1 millisecond', d.status_code, d.error_class, d.error, d.duration_ms
        WHERE d.attempt_log IS NULL AND d.attempts = 1
    ) AS a
    WHERE d.organization_id = current_setting('walhook.organization', true)
      AND (NOT starts_with(d.event_type, 'webhook.'::text) OR EXISTS (
          SELECT FROM webhook_endpoints AS e WHERE e.id = d.endpoint_id AND e.organization_id = d.organization_id OFFSET 0));
COMMENT ON VIEW webhook_tenant_attempts IS
    'The attempts of the organization that the setting walhook.organization names, without those to endpoints of operators. Give the delivery_id. Columns as in webhook_attempts.';

DO $do$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT v.view, a.attname, (SELECT col_description(b.attrelid, b.attnum::int) FROM pg_attribute AS b
                                   WHERE b.attrelid = to_regclass(s.source)::oid AND b.attname = a.attname) AS text
        FROM (VALUES ('webhook_ops_endpoints'::text, 'webhook_endpoints'::text, 'webhook_endpoint_health'::text),
                     ('webhook_tenant_endpoints', 'webhook_endpoints', 'webhook_endpoints'),
                     ('webhook_tenant_deliveries', 'webhook_deliveries', 'webhook_deliveries'),
                     ('webhook_tenant_attempts', 'webhook_attempts', 'webhook_attempts')) AS v(view, source, other)
        JOIN pg_attribute AS a ON a.attrelid = to_regclass(v.view)::oid AND a.attnum > 0::int2
        CROSS JOIN LATERAL (SELECT CASE WHEN EXISTS (SELECT FROM pg_attribute AS b WHERE b.attrelid = to_regclass(v.source)::oid AND b.attname = a.attname)
                                        THEN v.source ELSE v.other END AS source) AS s
    LOOP
        EXECUTE pg_catalog.format('COMMENT ON COLUMN %I.%I IS %L', c.view, c.attname, c.text);
    END LOOP;
END $do$;


-- --- 10. Publication and rights -------------------------------------------------------------------------------------
-- publish_via_partition_root: rows are published as webhook_outbox's, whatever their partition.

-- A publication's name is unique in the database, not in the schema. If it includes other tables and not ours, it is somebody
-- else's, or another installation's, and stays as it is. If it includes others beside ours, what it publishes of them is kept.

DO $do$
DECLARE
    pub    pg_publication;
    member boolean;
    others text;
    areas  text;
    keeps  boolean;
BEGIN
    SELECT * INTO pub FROM pg_publication WHERE pubname = 'walhook';
    IF NOT FOUND THEN
        CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert', publish_via_partition_root = true);
        COMMENT ON PUBLICATION walhook IS 'Events on their way to walhook. Without it nothing is delivered.';
        RETURN;
    END IF;
    SELECT coalesce(bool_or(r.prrelid = 'webhook_outbox'::regclass::oid), false),
           string_agg(r.prrelid::regclass::text, ', ' ORDER BY r.prrelid) FILTER (WHERE r.prrelid <> 'webhook_outbox'::regclass::oid)
        INTO member, others FROM pg_publication_rel AS r WHERE r.prpubid = pub.oid;
    IF to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL THEN -- from PostgreSQL 15 on
        EXECUTE 'SELECT string_agg(''schema '' || n.pnnspid::regnamespace::text, '', '') FROM pg_publication_namespace AS n WHERE n.pnpubid = $1'
            INTO areas USING pub.oid;
        others := pg_catalog.concat_ws(', ', others, areas);
    END IF;
    keeps := pub.puballtables OR others <> '';

    IF NOT pub.puballtables AND NOT member AND others <> '' THEN
        RAISE EXCEPTION 'the publication walhook includes %, and not %: it is not walhook''s', others, 'webhook_outbox'::regclass
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'A database can have only one publication of that name, so only one walhook. If that is the walhook you mean, set WALHOOK_SCHEMA '
                      'to its schema. Otherwise: ALTER PUBLICATION walhook RENAME TO something_else, or DROP PUBLICATION walhook if nobody needs it.';
    END IF;
    IF NOT pub.pubinsert OR NOT pub.pubviaroot OR (NOT keeps AND (pub.pubupdate OR pub.pubdelete OR pub.pubtruncate)) THEN
        EXECUTE pg_catalog.format('ALTER PUBLICATION walhook SET (publish = %L, publish_via_partition_root = true)', pg_catalog.concat_ws(', ', 'insert',
            CASE WHEN keeps AND pub.pubupdate THEN 'update' END, CASE WHEN keeps AND pub.pubdelete THEN 'delete' END,
            CASE WHEN keeps AND pub.pubtruncate THEN 'truncate' END));
    END IF;
    IF NOT pub.puballtables THEN
        -- A row filter or a column list (PostgreSQL 15) would hide events, so such an entry is replaced. It is read as JSON,
        -- because PostgreSQL 14 has no such columns.
        IF EXISTS (SELECT FROM pg_publication_rel AS r
                   WHERE r.prpubid = pub.oid AND r.prrelid = 'webhook_outbox'::regclass::oid
                     AND pg_catalog.num_nonnulls(pg_catalog.to_jsonb(r) ->> 'prqual'::text, pg_catalog.to_jsonb(r) ->> 'prattrs'::text) > 0) THEN
            ALTER PUBLICATION walhook DROP TABLE webhook_outbox;
            member := false;
        END IF;
        IF NOT member THEN
            ALTER PUBLICATION walhook ADD TABLE webhook_outbox;
        END IF;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'role % cannot create or change the publication walhook: %', current_user, sqlerrm
        USING ERRCODE = 'insufficient_privilege',
              HINT = pg_catalog.format('GRANT CREATE ON DATABASE %I TO %I; an existing publication must belong to that role (ALTER PUBLICATION walhook OWNER TO %2$I).',
                            current_database(), current_user);
END $do$;

-- PUBLIC may execute functions that run with the caller's rights and are useful to callers: those for ids (webhook_uuidv7,
-- webhook_uuid_at, webhook_uuid_time, webhook_delivery_id), the one of a generated column (webhook_event_patterns),
-- webhook_schema_version, and those that need privileges on the tables: webhook_send_test, webhook_replay,
-- webhook_replay_failed, webhook_explain, webhook_stats and webhook_waiting. webhook_explain needs webhook_filter_matches, and whoever
-- chooses filters webhook_filter_cost.
-- EXECUTE on all others is revoked from PUBLIC each time, trigger functions first: whoever may execute a trigger function can put
-- it on a table of their own. Grants to named roles are kept.
REVOKE ALL ON FUNCTION webhook_revoke_default_privileges(oid, oid), webhook_session_role(), webhook_restoring(), webhook_is_operator(), webhook_event_types_restored(), webhook_secrets_restored(),
    webhook_event_types_keep(), webhook_endpoints_before_write(), webhook_endpoints_after_insert(), webhook_endpoints_bounds(), webhook_endpoints_notify(),
    webhook_secrets_before_write(), webhook_outbox_before_insert(), webhook_outbox_before_update(), webhook_deliveries_notify(),
    webhook_url_problem(text), webhook_headers_problem(jsonb), webhook_filter_problem(jsonpath), webhook_retry_schedule_problem(interval[]), webhook_new_secret(),
    webhook_add_partition(text, date), webhook_drop_day(date), webhook_delete_old(timestamptz, int),
    webhook_create_endpoint(text, text, text[], text), webhook_rotate_secret(uuid, interval),
    webhook_set_secret(uuid, text, interval), webhook_replace_secret(uuid, text, interval), webhook_secret_problem(text),
    webhook_retry_now(uuid), webhook_pause(uuid), webhook_resume(uuid), webhook_forget(text), webhook_note_forgotten(uuid[]), webhook_writers(),
    webhook_ops_explain(uuid), webhook_url_host(text), webhook_audit_who(), webhook_endpoints_audit(), webhook_secrets_audit(), webhook_event_types_audit(), webhook_deliveries_audit() FROM PUBLIC;
-- An application's role needs only its grants on webhook_outbox, even if functions are not PUBLIC by default.
GRANT EXECUTE ON FUNCTION webhook_uuidv7() TO PUBLIC;


-- Versions 1 to 4 used a sequence, which logical replication does not copy.
DO $do$ BEGIN
    IF EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = 'webhook_secrets'::regclass::oid AND a.attname = 'id' AND a.attidentity <> '') THEN
        ALTER TABLE webhook_secrets ALTER COLUMN id DROP IDENTITY,
            ALTER COLUMN id SET DEFAULT (('x' || right(translate(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint & 9223372036854775807);
    END IF;
END $do$;

-- Repairs triggers that somebody, or a restore (pg_restore --disable-triggers ends with ENABLE TRIGGER ALL), has left disabled
-- or not ENABLE ALWAYS, on each partition, because a row's triggers are its partition's. Only if there is something to repair,
-- and last: INSERTs wait from here until COMMIT, and for nothing else in this file.
SET LOCAL lock_timeout = '200ms';
DO $do$
DECLARE
    off record;
BEGIN
    FOR off IN
        SELECT g.tgrelid::regclass AS in_table, g.tgname AS name, CASE WHEN want.always THEN 'ALWAYS' ELSE '' END AS always
        FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
        CROSS JOIN LATERAL (SELECT starts_with(g.tgname::text, 'webhook_outbox_before_') OR g.tgname = 'webhook_event_types_restored' AS always) AS want
        WHERE starts_with(g.tgname::text, 'webhook_') AND g.tgconstraint = 0::oid AND g.tgenabled::text NOT IN ('A', CASE WHEN want.always THEN 'A' ELSE 'O' END)
          AND (c.oid IN (SELECT to_regclass(t)::oid FROM pg_catalog.unnest('{webhook_event_types,webhook_endpoints,webhook_secrets,webhook_outbox,webhook_deliveries,webhook_state,webhook_endpoint_failures,webhook_retries,webhook_audit}'::text[]) AS t)
               OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid)))
        ORDER BY c.relispartition, c.oid
    LOOP
        EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE %s TRIGGER %I', off.in_table, off.always, off.name);
    END LOOP;
END $do$;


-- --- 11. Version ----------------------------------------------------------------------------------------------------
-- If this function returns 9, all of this file was applied, because all but new columns is one transaction. (Except indexes of
-- large tables: see section 3.)

CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 9;
COMMENT ON FUNCTION webhook_schema_version() IS 'The version of the schema.sql that was applied. walhook applies its own if this is older or missing.';


-- --- 12. Default privileges ------------------------------------------------------------------------------------------
-- Some platforms grant everything new to roles that face the internet (ALTER DEFAULT PRIVILEGES ... GRANT ALL ... TO anon):
-- signing secrets, the payloads of all organizations, webhook_rotate_secret. Such grants are revoked from the objects created
-- above and once, by version 5, from those of earlier versions. Later grants are kept.
-- A granted INSERT on webhook_outbox cannot be told from a default one, and applications' transactions must not fail. So named
-- roles keep INSERT, with RETURNING id.
DO $do$
DECLARE
    here CONSTANT oid := quote_ident(current_schema()::text)::regnamespace::oid;
    had  CONSTANT oid[] := string_to_array(current_setting('walhook.had_objects'), ','::text)::oid[];
    have CONSTANT int := current_setting('walhook.had_version')::int;
    old  CONSTANT boolean := have BETWEEN 1 AND 4;
    before CONSTANT text[] := '{webhook_event_types,webhook_endpoints,webhook_secrets,webhook_secrets_id_seq,webhook_outbox,webhook_deliveries,webhook_state,'
        'webhook_endpoint_failures,webhook_attempts,webhook_endpoint_health,webhook_status,webhook_uuidv7,webhook_uuid_at,webhook_uuid_time,'
        'webhook_delivery_id,webhook_event_patterns,webhook_url_problem,webhook_headers_problem,webhook_endpoints_before_write,webhook_new_secret,'
        'webhook_endpoints_after_insert,webhook_endpoints_notify,webhook_outbox_before_insert,webhook_outbox_before_update,webhook_deliveries_notify,'
        'webhook_add_partition,webhook_drop_day,webhook_delete_old,webhook_create_endpoint,webhook_rotate_secret,webhook_send_test,webhook_replay,'
        'webhook_replay_failed,webhook_explain,webhook_stats,webhook_schema_version}';
    holders CONSTANT text := 'SELECT ARRAY(SELECT DISTINCT CASE a.grantee WHEN 0::oid THEN ''PUBLIC'' ELSE quote_ident(pg_get_userbyid(a.grantee)::text) END '
        'FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a '
        'WHERE c.oid = ''webhook_outbox''::regclass::oid AND a.grantee <> c.relowner AND a.privilege_type = $1)';
    object  record;
    roles   text[] := '{}';
    grantee text;
    inserted text[]; -- roles that could INSERT before
    selected text[];
    inserts  text[]; -- roles that still can
    selects  text[];
BEGIN
    EXECUTE holders INTO inserted USING 'INSERT'::text;
    EXECUTE holders INTO selected USING 'SELECT'::text;
    FOR object IN
        SELECT o.* FROM (
            SELECT 'pg_class'::regclass::oid AS catalogue, c.oid, c.relname::text AS name, c.relowner AS owner,
                   EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid
                           AND i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid)) AS is_partition,
                   have > 4 AND c.relispartition AND c.relname NOT IN ('webhook_outbox_default', 'webhook_deliveries_default') AS is_done -- by webhook_add_partition
            FROM pg_class AS c WHERE c.relnamespace = here AND c.relkind IN ('r', 'p', 'v', 'S')
            UNION ALL
            SELECT 'pg_proc'::regclass::oid, p.oid, p.proname::text, p.proowner, false, false FROM pg_proc AS p WHERE p.pronamespace = here) AS o
        WHERE starts_with(o.name, 'webhook_'::text) AND pg_has_role(o.owner, 'USAGE'::text)
          AND (o.oid <> ALL (had) AND NOT o.is_done OR old AND (o.is_partition OR o.name = ANY (before)))
    LOOP
        roles := roles OPERATOR(pg_catalog.||) webhook_revoke_default_privileges(object.catalogue, object.oid);
    END LOOP;
    FOR grantee IN SELECT DISTINCT r.role FROM pg_catalog.unnest(roles) AS r(role) ORDER BY r.role LOOP
        RAISE WARNING 'default privileges had given % rights on walhook''s tables, views or functions: they were revoked; GRANT that role what it needs', grantee;
    END LOOP;
    IF old THEN
        EXECUTE holders INTO inserts USING 'INSERT'::text;
        EXECUTE holders INTO selects USING 'SELECT'::text;
        FOREACH grantee IN ARRAY inserted LOOP
            CONTINUE WHEN grantee = 'PUBLIC';
            IF grantee = ANY (selected) AND grantee <> ALL (selects) OR 'PUBLIC'::text = ANY (selected) AND 'PUBLIC'::text <> ALL (selects) THEN
                EXECUTE 'GRANT SELECT (id) ON webhook_outbox TO ' || grantee;
            END IF;
            IF grantee <> ALL (inserts) THEN
                EXECUTE 'GRANT INSERT ON webhook_outbox TO ' || grantee;
                RAISE WARNING 'role % keeps INSERT on webhook_outbox, so that no application fails; if it is not an application''s: REVOKE INSERT, SELECT (id) ON webhook_outbox FROM %',
                    grantee, grantee;
            END IF;
        END LOOP;
    END IF;
    -- Somebody who created a function of one of our names first would still own it.
    SELECT p.oid::regprocedure::text INTO grantee FROM pg_proc AS p JOIN pg_roles AS me ON me.rolname = current_user
    WHERE p.pronamespace = here AND p.xmin::text = (pg_current_xact_id()::xid)::text AND p.proowner <> me.oid
      AND (me.rolsuper OR NOT pg_has_role(p.proowner, 'USAGE'::text)) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'function % belongs to another role', grantee
            USING ERRCODE = 'insufficient_privilege', HINT = 'Drop it, or ALTER FUNCTION ' || grantee || ' OWNER TO ' || quote_ident(current_user::text) || '.';
    END IF;
END $do$;

-- Versions 1 to 4 had no default for shard, so mappers took the column for a required one. This comes last, and is given up if its
-- lock is not available at once, so that no INSERT waits for 50 ms. walhook init tries again.
DO $do$
BEGIN
    FOR try IN 1..3 LOOP
        BEGIN
            IF EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = 'webhook_outbox'::regclass::oid AND a.attname = 'shard' AND NOT a.atthasdef) THEN
                PERFORM set_config('lock_timeout', '50ms', true);
                ALTER TABLE webhook_outbox ALTER COLUMN shard SET DEFAULT 0;
            END IF;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            NULL; -- a transaction that has inserted an event is still open
        END;
    END LOOP;
    RAISE WARNING 'webhook_outbox.shard has no default yet, because the table was in use; only mappers need it, and walhook init tries again';
END $do$;

COMMIT;

-- walhook's roles: whose the tables are, and what each role may do with them.
--
-- Apply:     psql -v ON_ERROR_STOP=1 -f roles.sql     (walhook init --roles does the same), after schema.sql and after each upgrade
-- Where:     the first schema of the search_path, which has walhook's tables.
-- Who:       a superuser, or a role with CREATEROLE that owns the tables and the schema, or is a member of the roles that do.
-- Servers:   PostgreSQL 14 to 18.
-- Again:     the file can be applied any number of times. It changes no attribute of a role that exists, and revokes nothing.
--            Once the tables are walhook_owner's it takes no lock that an INSERT, an UPDATE or a SELECT waits for.
--
--   walhook_owner     owns tables, functions and publication. Nobody logs in as this role; who upgrades is a member of it
--   walhook_run       walhook run
--   walhook_app       the application: it inserts events
--   walhook_backend   the application's page for webhooks: it manages endpoints, and cannot read their headers
--                     back; it reads and replays the deliveries of the organization that the setting walhook.organization names
--   walhook_ops       operators: they read everything but secrets, headers and full URLs, and replay
--   walhook_tenant    reads what belongs to the organization that the setting walhook.organization names
--
-- No role has a password. Give it one (ALTER ROLE walhook_run PASSWORD '...'), or make a role of yours a member
-- (GRANT walhook_app TO app).

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

SET LOCAL standard_conforming_strings = on;
SET LOCAL statement_timeout = '1min';
SET LOCAL idle_in_transaction_session_timeout = '1min';
SET LOCAL row_security = off;
SET LOCAL quote_all_identifiers = off;
SET LOCAL client_min_messages = warning;
SET LOCAL lock_timeout = '5s'; -- until section 2, no INSERT, UPDATE or SELECT waits for what is locked here

DO $do$
BEGIN
    IF current_schema() IS NULL OR to_regclass('webhook_outbox') IS NULL OR to_regprocedure('webhook_schema_version()') IS NULL
       OR to_regclass('webhook_tenant_attempts') IS NULL THEN
        RAISE EXCEPTION 'schema % has no walhook, or an older one', coalesce(quote_ident(current_schema()::text), '(none)')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Apply schema.sql first, and set search_path to the schema of walhook''s tables.';
    END IF;
    PERFORM set_config('search_path', quote_ident(current_schema()::text) || ', pg_temp', true);
    IF current_setting('transaction_timeout', true) IS NOT NULL THEN -- from PostgreSQL 17 on
        PERFORM set_config('transaction_timeout', '0', true);
    END IF;

    -- One session at a time, as in schema.sql.
    BEGIN
        LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE;
    EXCEPTION
        WHEN insufficient_privilege THEN
            NULL; -- a member of walhook_owner that does not inherit its rights: section 3 locks it
        WHEN lock_not_available THEN
            RAISE EXCEPTION 'another session is applying walhook''s schema or roles, or has webhook_state locked: nothing was changed'
                USING ERRCODE = 'lock_not_available', HINT = 'Try again later, or end that session: pg_locks and pg_stat_activity show which one it is.';
    END;
END $do$;


-- --- 1. Roles -------------------------------------------------------------------------------------------------------

DO $do$
DECLARE
    me        CONSTANT text := quote_ident(current_user::text);
    superuser CONSTANT boolean := (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user);
    wanted    record;
BEGIN
    FOR wanted IN
        SELECT w.name, w.login FROM (VALUES ('walhook_owner'::text, 'NOLOGIN'::text), ('walhook_run', 'LOGIN'), ('walhook_app', 'LOGIN'),
            ('walhook_backend', 'LOGIN'), ('walhook_ops', 'LOGIN'), ('walhook_tenant', 'LOGIN')) AS w(name, login)
        WHERE to_regrole(w.name) IS NULL
    LOOP
        BEGIN
            EXECUTE 'CREATE ROLE ' || wanted.name || ' ' || wanted.login;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database of this server is being prepared
        END;
    END LOOP;

    -- The tables are given to walhook_owner, and upgraded, by a member of it. From PostgreSQL 16 on, whoever created a role may
    -- make itself a member, and is none yet.
    IF NOT (CASE WHEN current_setting('server_version_num')::int >= 160000 THEN pg_has_role('walhook_owner'::regrole::oid, 'SET'::text)
                 ELSE pg_has_role('walhook_owner'::regrole::oid, 'MEMBER'::text) END) THEN
        BEGIN
            EXECUTE 'GRANT walhook_owner TO ' || me;
        EXCEPTION WHEN unique_violation THEN
            NULL; -- likewise
        END;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'role % cannot make walhook''s roles, or cannot become a member of walhook_owner: %', me, sqlerrm
        USING ERRCODE = 'insufficient_privilege',
              HINT = pg_catalog.format('As a superuser: ALTER ROLE %s CREATEROLE; and where walhook_owner exists already: GRANT walhook_owner TO %1$s WITH ADMIN OPTION.', me);
END $do$;

-- REPLICATION is a superuser's to give, or, from PostgreSQL 16 on, that of a role that has it. Amazon has a role for it instead.
DO $do$
BEGIN
    FOR try IN 1..3 LOOP
        BEGIN
            IF NOT (SELECT r.rolreplication FROM pg_roles AS r WHERE r.rolname = 'walhook_run') THEN
                IF to_regrole('rds_replication') IS NOT NULL THEN
                    GRANT rds_replication TO walhook_run;
                ELSE
                    ALTER ROLE walhook_run REPLICATION;
                END IF;
            END IF;
            RETURN;
        EXCEPTION WHEN internal_error OR unique_violation THEN -- the role was changed meanwhile, as for another database of this server
            IF try = 3 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'walhook_run cannot replicate yet: as a superuser, ALTER ROLE walhook_run REPLICATION';
END $do$;

-- The owner creates partitions every day, and may own the publication only with CREATE on the database.
DO $do$
DECLARE
    here    CONSTANT text := quote_ident(current_schema()::text);
    base    CONSTANT text := quote_ident(current_database()::text);
    missing text;
BEGIN
    BEGIN
        EXECUTE pg_catalog.format('GRANT USAGE, CREATE ON SCHEMA %s TO walhook_owner', here);
        EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO walhook_run, walhook_app, walhook_backend, walhook_ops, walhook_tenant', here);
        EXECUTE pg_catalog.format('GRANT CREATE ON DATABASE %s TO walhook_owner', base);
    EXCEPTION WHEN insufficient_privilege THEN
        NULL; -- somebody else may have granted them
    END;
    SELECT string_agg(g.sql, '; '::text) INTO missing FROM (
        SELECT pg_catalog.format('GRANT USAGE%s ON SCHEMA %s TO %s', CASE w.role WHEN 'walhook_owner' THEN ', CREATE' END, here, w.role) AS sql
        FROM pg_catalog.unnest('{walhook_owner,walhook_run,walhook_app,walhook_backend,walhook_ops,walhook_tenant}'::text[]) AS w(role)
        WHERE NOT has_schema_privilege(w.role::name, here::regnamespace::oid, 'USAGE'::text)
           OR w.role = 'walhook_owner' AND NOT has_schema_privilege(w.role::name, here::regnamespace::oid, 'CREATE'::text)
        UNION ALL
        SELECT pg_catalog.format('GRANT CREATE ON DATABASE %s TO walhook_owner', base)
        WHERE NOT has_database_privilege('walhook_owner'::name, current_database()::text, 'CREATE'::text)) AS g;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'role % cannot grant what walhook''s roles need on the schema and the database', quote_ident(current_user::text)
            USING ERRCODE = 'insufficient_privilege', HINT = 'As their owner, or as a superuser: ' || missing || '.';
    END IF;
END $do$;


-- --- 2. Owner -------------------------------------------------------------------------------------------------------
-- Only what belongs to the owner of webhook_outbox is given away: a function that a stranger made under one of our names would
-- otherwise run with the rights of walhook_owner.
-- An ALTER ... OWNER locks its table against everybody until COMMIT. The tables come last, the outbox at the very end, and the
-- first lock that is not available in 200 ms ends it all with nothing changed: an INSERT waits no longer than this, and for the
-- change itself.

SET LOCAL lock_timeout = '200ms';
DO $do$
DECLARE
    owner     CONSTANT oid := 'walhook_owner'::regrole::oid;
    former    CONSTANT oid := (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'webhook_outbox'::regclass::oid);
    here      CONSTANT oid := quote_ident(current_schema()::text)::regnamespace::oid;
    tables    CONSTANT text[] := '{webhook_event_types,webhook_endpoints,webhook_secrets,webhook_outbox,webhook_outbox_default,webhook_deliveries,'
        'webhook_deliveries_default,webhook_state,webhook_endpoint_failures,webhook_retries,webhook_forgetting,webhook_audit,webhook_attempts,webhook_endpoint_health,webhook_overdue,webhook_status,'
        'webhook_ops_endpoints,webhook_tenant_endpoints,webhook_tenant_deliveries,webhook_tenant_attempts}';
    functions CONSTANT text[] := '{webhook_uuidv7,webhook_uuid_at,webhook_uuid_time,webhook_delivery_id,webhook_event_patterns,webhook_session_role,webhook_restoring,webhook_is_operator,'
        'webhook_event_types_restored,webhook_event_types_keep,webhook_url_problem,webhook_headers_problem,webhook_filter_cost,webhook_filter_problem,webhook_filter_matches,webhook_retry_schedule_problem,webhook_endpoints_before_write,webhook_new_secret,'
        'webhook_secret_problem,webhook_secrets_before_write,webhook_endpoints_after_insert,webhook_endpoints_bounds,webhook_secrets_restored,webhook_endpoints_notify,'
        'webhook_outbox_before_insert,webhook_outbox_before_update,webhook_deliveries_notify,webhook_revoke_default_privileges,webhook_add_partition,'
        'webhook_drop_day,webhook_delete_old,webhook_create_endpoint,webhook_replace_secret,webhook_rotate_secret,webhook_set_secret,webhook_send_test,'
        'webhook_replay,webhook_replay_failed,webhook_retry_now,webhook_pause,webhook_resume,webhook_forget,webhook_note_forgotten,webhook_writers,webhook_explain,webhook_stats,webhook_waiting,webhook_url_host,webhook_ops_explain,webhook_audit_who,'
        'webhook_endpoints_audit,webhook_secrets_audit,webhook_event_types_audit,webhook_deliveries_audit,'
        'webhook_schema_version}';
    object    record;
BEGIN
    IF former = owner THEN
        RETURN;
    END IF;
    -- Whatever works as the former owner, perhaps the application itself, goes on: as a member it may do what it could do.
    IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = former) AND NOT pg_has_role(former, owner, 'USAGE'::text) THEN
        EXECUTE pg_catalog.format('GRANT walhook_owner TO %s', quote_ident(pg_get_userbyid(former)::text));
        RAISE WARNING 'role % owned walhook''s tables and is now a member of walhook_owner: once nothing uses it for them, REVOKE walhook_owner FROM %',
            quote_ident(pg_get_userbyid(former)::text), quote_ident(pg_get_userbyid(former)::text);
    END IF;
    FOR object IN
        SELECT 1 AS part, 'FUNCTION ' || p.oid::regprocedure::text AS name, p.oid
        FROM pg_proc AS p WHERE p.pronamespace = here AND p.proname::text = ANY (functions) AND p.proowner = former
        UNION ALL
        SELECT 2, 'PUBLICATION walhook', b.oid
        FROM pg_publication AS b JOIN pg_publication_rel AS r ON r.prpubid = b.oid AND r.prrelid = 'webhook_outbox'::regclass::oid
        WHERE b.pubname = 'walhook' AND b.pubowner = former AND NOT b.puballtables
        UNION ALL
        SELECT CASE WHEN c.relkind = 'v' THEN 3 WHEN c.oid = 'webhook_outbox'::regclass::oid THEN 6 WHEN starts_with(c.relname::text, 'webhook_outbox'::text) THEN 5 ELSE 4 END,
               CASE c.relkind WHEN 'v' THEN 'VIEW ' ELSE 'TABLE ' END || c.oid::regclass::text, c.oid
        FROM pg_class AS c
        WHERE c.relowner = former AND c.relkind IN ('r', 'p', 'v')
          AND (c.relnamespace = here AND c.relname::text = ANY (tables)
               OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent IN ('webhook_outbox'::regclass::oid, 'webhook_deliveries'::regclass::oid)))
        ORDER BY 1, 3
    LOOP
        EXECUTE 'ALTER ' || object.name || ' OWNER TO walhook_owner';
    END LOOP;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'role % cannot give walhook''s tables to walhook_owner: %', quote_ident(current_user::text), sqlerrm
            USING ERRCODE = 'insufficient_privilege',
                  HINT = pg_catalog.format('Apply this file as a superuser, or GRANT %s TO %s.', quote_ident(pg_get_userbyid(former)::text), quote_ident(current_user::text));
    WHEN lock_not_available THEN
        RAISE EXCEPTION 'walhook''s tables have not got their new owner, because a transaction is using them: nothing was changed'
            USING ERRCODE = 'lock_not_available', HINT = 'Apply this file again when no transaction that has inserted events is open.';
END $do$;


-- --- 3. Rights ------------------------------------------------------------------------------------------------------

SET LOCAL ROLE walhook_owner;
LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE; -- no INSERT, UPDATE or SELECT waits for it; see schema.sql

-- walhook run. Partitions are made and dropped by functions that run with their owner's rights.
GRANT SELECT, INSERT ON webhook_outbox TO walhook_run;
GRANT SELECT, INSERT, UPDATE ON webhook_deliveries, webhook_state TO walhook_run;
GRANT SELECT ON webhook_outbox_default, webhook_deliveries_default, webhook_event_types, webhook_endpoints, webhook_secrets, webhook_retries TO walhook_run;
GRANT SELECT ON webhook_overdue, webhook_status TO walhook_run;
GRANT UPDATE (enabled, disabled_at, disabled_reason) ON webhook_endpoints TO walhook_run; -- an endpoint that answers 410
GRANT UPDATE (headers) ON webhook_endpoints TO walhook_run; -- sealing
GRANT UPDATE (secret) ON webhook_secrets TO walhook_run;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoint_failures TO walhook_run;
GRANT EXECUTE ON FUNCTION webhook_add_partition(text, date), webhook_drop_day(date), webhook_delete_old(timestamptz, int) TO walhook_run;
GRANT EXECUTE ON FUNCTION webhook_retry_now(uuid), webhook_pause(uuid), webhook_resume(uuid) TO walhook_run; -- the page of the admin server

-- The application. The outbox's trigger runs with its owner's rights, so it needs nothing else.
GRANT INSERT, SELECT (id) ON webhook_outbox TO walhook_app;

-- The page for webhooks: endpoints, a new secret once, test webhooks.
GRANT SELECT (id, organization_id, url, event_types, description, enabled, disabled_at, disabled_reason, max_in_flight, rate_per_second, created_at, updated_at,
        filter, paused_at, timeout, retry_schedule, all_organizations)
    ON webhook_endpoints TO walhook_backend;
-- Not all_organizations: whoever acts for a tenant must not make an endpoint that gets what is every organization's.
GRANT INSERT (organization_id, url, event_types, description, headers, enabled, disabled_reason, max_in_flight, rate_per_second, filter, paused_at, timeout, retry_schedule),
    UPDATE (url, event_types, description, headers, enabled, disabled_reason, max_in_flight, rate_per_second, filter, paused_at, timeout, retry_schedule),
    DELETE ON webhook_endpoints TO walhook_backend;
GRANT SELECT ON webhook_event_types TO walhook_backend;
-- Within one organization: these views hide all others, and what is updated stays there, for organization_id cannot change.
GRANT SELECT, UPDATE (url, event_types, description, enabled, disabled_reason, max_in_flight, rate_per_second, filter, paused_at, timeout, retry_schedule),
    DELETE ON webhook_tenant_endpoints TO walhook_backend;
GRANT SELECT, UPDATE (status, next_attempt_at) ON webhook_tenant_deliveries TO walhook_backend; -- a replay
GRANT SELECT ON webhook_tenant_attempts TO walhook_backend;
GRANT INSERT, SELECT (id) ON webhook_outbox TO walhook_backend;
GRANT EXECUTE ON FUNCTION webhook_create_endpoint(text, text, text[], text), webhook_rotate_secret(uuid, interval), webhook_set_secret(uuid, text, interval)
    TO walhook_backend;
-- It may delete all endpoints anyway. What it erases stays in webhook_audit, which it can neither read nor change.
GRANT EXECUTE ON FUNCTION webhook_forget(text) TO walhook_backend;

-- Operators.
GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_event_types, webhook_state, webhook_endpoint_failures, webhook_retries,
    webhook_audit, webhook_attempts, webhook_status, webhook_ops_endpoints TO walhook_ops;
GRANT SELECT (id, organization_id, event_types, description, enabled, disabled_at, disabled_reason, max_in_flight, rate_per_second, created_at, updated_at,
        filter, paused_at, timeout, retry_schedule, all_organizations)
    ON webhook_endpoints TO walhook_ops;
GRANT UPDATE (status, next_attempt_at) ON webhook_deliveries TO walhook_ops;
GRANT EXECUTE ON FUNCTION webhook_retry_now(uuid), webhook_pause(uuid), webhook_resume(uuid), webhook_ops_explain(uuid), webhook_url_host(text) TO walhook_ops;

-- Tenants. Row security on the tables themselves would be an error in walhook's own sessions, and cost every INSERT; so the
-- views hide the rows. Whoever can type SQL can change the setting: it has to be the application that sets it.
GRANT SELECT ON webhook_tenant_endpoints, webhook_tenant_deliveries, webhook_tenant_attempts TO walhook_tenant;

COMMIT;

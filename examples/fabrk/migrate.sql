-- Moves the webhooks of an application made from Fabrk to walhook, in one transaction: docs/from-fabrk.md says when to run it.
--
--   psql -v ON_ERROR_STOP=1 -f examples/fabrk/migrate.sql "$DATABASE_URL"
--
-- Each "Webhook" becomes an endpoint with the same URL, event types and secret, and a disabled one stays disabled. Each
-- "WebhookDelivery" that Fabrk would still try becomes an event for that endpoint alone. fabrk_moved, beside walhook's
-- tables, remembers both, so nothing is moved twice. It needs the owner of walhook's tables, who can also read "Webhook" and
-- update "WebhookDelivery".
BEGIN;
SET LOCAL TimeZone = 'UTC'; -- Prisma's timestamps are in UTC, and have no zone

DO $$
DECLARE
    -- Fabrk gives a request ten seconds. A younger pending delivery may be in flight.
    in_flight CONSTANT timestamptz := now() - interval '1 minute';
    problems text;
    schema text;
    moved record;
    new_id uuid;
    endpoints int := 0;
    events int := 0;
    waiting int;
BEGIN
    IF to_regclass('webhook_outbox') IS NULL THEN
        RAISE EXCEPTION 'there is no table webhook_outbox on the search_path (%): run walhook init, or add its schema with ALTER DATABASE ... SET search_path',
            current_setting('search_path');
    END IF;
    SELECT string_agg(format('%I.%I', c.name, c.col) || coalesce(' of type ' || c.type, ''), ', ' ORDER BY c.name, c.col) INTO problems
    FROM (VALUES ('Webhook', 'id', NULL), ('Webhook', 'organizationId', NULL), ('Webhook', 'url', NULL), ('Webhook', 'secret', NULL),
                 ('Webhook', 'events', 'text[]'), ('Webhook', 'enabled', 'boolean'),
                 ('WebhookDelivery', 'id', NULL), ('WebhookDelivery', 'webhookId', NULL), ('WebhookDelivery', 'event', NULL),
                 ('WebhookDelivery', 'payload', NULL), ('WebhookDelivery', 'status', NULL), ('WebhookDelivery', 'response', NULL),
                 ('WebhookDelivery', 'nextRetryAt', NULL), ('WebhookDelivery', 'createdAt', NULL)) AS c(name, col, type)
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a
                      WHERE a.attrelid = to_regclass(quote_ident(c.name)) AND a.attname = c.col AND NOT a.attisdropped
                        AND (c.type IS NULL OR format_type(a.atttypid, a.atttypmod) = c.type));
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'Fabrk''s tables lack %: nothing was moved; change the script to what your schema.prisma says', problems;
    END IF;

    SELECT n.nspname INTO schema FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = 'webhook_outbox'::regclass;
    IF to_regclass(format('%I.fabrk_moved', schema)) IS NULL THEN
        EXECUTE format('CREATE TABLE %I.fabrk_moved (fabrk_table text, fabrk_id text, id uuid NOT NULL, PRIMARY KEY (fabrk_table, fabrk_id))', schema);
        EXECUTE format('COMMENT ON TABLE %I.fabrk_moved IS ''What was moved from Fabrk: the ids of its rows, and of their endpoints and events.''', schema);
    END IF;
    LOCK TABLE fabrk_moved IN EXCLUSIVE MODE; -- one run at a time

    CREATE TEMPORARY TABLE to_send ON COMMIT DROP AS
    SELECT d.id::text AS id, d."webhookId"::text AS webhook_id, d.event::text AS event, d.payload::jsonb AS payload, d."createdAt"::timestamptz AS created_at
    FROM "WebhookDelivery" AS d JOIN "Webhook" AS w ON w.id = d."webhookId"
    WHERE w.enabled
      AND (d.status = 'failed' AND d."nextRetryAt" IS NOT NULL
           OR d.status IN ('pending', 'retrying') AND d."createdAt"::timestamptz < in_flight)
      AND NOT EXISTS (SELECT FROM fabrk_moved AS m WHERE m.fabrk_table = 'WebhookDelivery' AND m.fabrk_id = d.id::text);

    SELECT string_agg(DISTINCT coalesce(quote_literal(used.event), 'null'), ', ') INTO problems
    FROM (SELECT unnest(w.events) FROM "Webhook" AS w UNION SELECT s.event FROM to_send AS s) AS used(event)
    WHERE NOT EXISTS (SELECT FROM webhook_event_types AS t WHERE t.name = used.event);
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'walhook does not know these event types of Fabrk: %: nothing was moved', problems
            USING HINT = 'INSERT INTO webhook_event_types (name, category) adds one. Or change the rows of "Webhook" and "WebhookDelivery".';
    END IF;

    SELECT string_agg(p.text, '; ' ORDER BY p.text) INTO problems
    FROM (SELECT format('"Webhook" %s, secret: %s', w.id, webhook_secret_problem(w.secret)) FROM "Webhook" AS w WHERE webhook_secret_problem(w.secret) IS NOT NULL
          UNION ALL
          SELECT format('"Webhook" %s, url: %s', w.id, webhook_url_problem(w.url)) FROM "Webhook" AS w WHERE webhook_url_problem(w.url) IS NOT NULL
          UNION ALL
          SELECT format('"WebhookDelivery" %s: its payload has no "data"', s.id) FROM to_send AS s WHERE s.payload -> 'data' IS NULL
          UNION ALL
          SELECT format('"WebhookDelivery" %s: its "data" is longer than 256 KiB', s.id) FROM to_send AS s
          WHERE octet_length((s.payload -> 'data')::text) > 262144) AS p(text);
    IF problems IS NOT NULL THEN
        RAISE EXCEPTION 'these rows of Fabrk cannot be moved: %: nothing was moved', problems
            USING HINT = 'UPDATE or DELETE them, and run the script again.';
    END IF;

    FOR moved IN SELECT w.* FROM "Webhook" AS w
                 WHERE NOT EXISTS (SELECT FROM fabrk_moved AS m WHERE m.fabrk_table = 'Webhook' AND m.fabrk_id = w.id::text)
                 ORDER BY w.id LOOP
        IF coalesce(cardinality(moved.events), 0) = 0 THEN -- Prisma's lists can be null
            RAISE WARNING '"Webhook" % subscribes to nothing, and is not moved', moved.id;
            CONTINUE;
        END IF;
        IF moved.enabled AND moved.url ~* '^http:' THEN
            RAISE WARNING '"Webhook" % has an http:// URL: walhook sends there only with WALHOOK_ALLOW_HTTP=true', moved.id;
        END IF;
        SELECT c.endpoint_id INTO new_id FROM webhook_create_endpoint(moved."organizationId"::text, moved.url, moved.events, moved.secret) AS c;
        IF NOT moved.enabled THEN
            UPDATE webhook_endpoints AS e SET enabled = false, disabled_reason = 'it was disabled in Fabrk' WHERE e.id = new_id;
        END IF;
        INSERT INTO fabrk_moved VALUES ('Webhook', moved.id, new_id);
        endpoints := endpoints + 1;
    END LOOP;

    FOR moved IN SELECT s.*, e.id AS endpoint_id, e.organization_id
                 FROM to_send AS s
                 JOIN fabrk_moved AS m ON m.fabrk_table = 'Webhook' AND m.fabrk_id = s.webhook_id
                 JOIN webhook_endpoints AS e ON e.id = m.id AND e.enabled
                 ORDER BY s.created_at, s.id LOOP
        -- The body keeps its timestamp: it is the event's, not the attempt's.
        INSERT INTO webhook_outbox AS o (organization_id, event_type, payload, created_at, endpoint_ids)
        VALUES (moved.organization_id, moved.event, moved.payload -> 'data',
                CASE WHEN moved.payload ->> 'timestamp' ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$'
                     THEN (moved.payload ->> 'timestamp')::timestamptz ELSE moved.created_at END,
                ARRAY[moved.endpoint_id])
        RETURNING o.id INTO new_id;
        INSERT INTO fabrk_moved VALUES ('WebhookDelivery', moved.id, new_id);
        -- Fabrk tries it no more.
        UPDATE "WebhookDelivery" AS d SET status = 'failed', "nextRetryAt" = NULL, response = 'moved to walhook as event ' || new_id WHERE d.id::text = moved.id;
        events := events + 1;
    END LOOP;

    SELECT count(*) INTO waiting FROM "WebhookDelivery" AS d
    WHERE d.status IN ('pending', 'retrying') AND d."createdAt"::timestamptz >= in_flight;
    RAISE NOTICE 'moved % endpoints and % deliveries; % deliveries may be in flight: run the script again in a minute if that is not 0', endpoints, events, waiting;
END $$;
COMMIT;

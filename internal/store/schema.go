package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/webhook"
)

// SchemaVersion is the version of the schema.sql that belongs to this code, as
// webhook_schema_version() returns it.
const SchemaVersion = 9

// The tables, and the outbox's columns, that the code uses. A newer schema may have more.
var (
	requiredTables = []string{
		"webhook_event_types", "webhook_endpoints", "webhook_secrets", "webhook_outbox", "webhook_outbox_default",
		"webhook_deliveries", "webhook_deliveries_default", "webhook_state", "webhook_endpoint_failures", "webhook_retries", "webhook_audit",
	}
	requiredColumns = []string{"id", "organization_id", "event_type", "payload", "created_at", "endpoint_ids"}
)

// The version is read from the function's body. Calling the function would run the code of
// whoever may CREATE in the schema and made it first. -1: there is none, or none of ours.
const installedVersion = `coalesce((SELECT substring(pg_get_function_sqlbody(v.oid), '^RETURN ([0-9]+)'::text)::int
    FROM pg_proc v WHERE v.oid = to_regprocedure('webhook_schema_version()')::oid), -1)`

// Installed returns the version that the database has; -1: there is none, or none of ours.
func (s *Store) Installed(ctx context.Context) (version int, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT `+installedVersion).Scan(&version); err != nil {
		return 0, fmt.Errorf("read the schema's version: %w", err)
	}
	return version, nil
}

// checkSchema reads catalogues only and takes no lock, so it works while somebody has locked
// the tables. It reads the publication's row filter and column list as JSON, because
// PostgreSQL 14 has no such columns. It checks every partition, because a row's triggers are
// its partition's.
const checkSchema = `
WITH o AS MATERIALIZED (
    SELECT c.oid, c.relowner, c.relnamespace, n.nspname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('webhook_outbox')::oid
), tables AS MATERIALIZED (
    SELECT to_regclass(t)::oid AS oid FROM pg_catalog.unnest(@tables::text[]) AS t
    UNION SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent IN (to_regclass('webhook_outbox')::oid, to_regclass('webhook_deliveries')::oid)
), triggers AS MATERIALIZED (
    SELECT g.tgrelid, g.tgname::text AS name, g.tgenabled::text AS enabled, starts_with(g.tgname::text, 'webhook_outbox_before_') OR g.tgname::text = 'webhook_event_types_restored' AS always
    FROM tables JOIN pg_trigger g ON g.tgrelid = tables.oid WHERE g.tgname::text = ANY (@triggers::text[])
)
SELECT ` + installedVersion + `,
       array(SELECT t FROM pg_catalog.unnest(@tables::text[]) AS t WHERE to_regclass(t) IS NULL),
       array(SELECT c FROM pg_catalog.unnest(@columns::text[]) AS c
             WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = o.oid AND a.attname::text = c AND a.attnum > 0 AND NOT a.attisdropped)),
       array(SELECT f FROM pg_catalog.unnest(@functions::text[]) AS f
             WHERE NOT EXISTS (SELECT FROM pg_proc p WHERE p.proname::text = f AND p.pronamespace = o.relnamespace)
             UNION ALL SELECT t FROM pg_catalog.unnest(@triggers::text[]) AS t WHERE NOT EXISTS (SELECT FROM triggers WHERE triggers.name = t)),
       coalesce((SELECT pg_catalog.format('the trigger %1$s of %2$s is disabled or not ENABLE ALWAYS (ALTER TABLE %2$s ENABLE %3$sTRIGGER %1$s)',
                               t.name, t.tgrelid::regclass, CASE WHEN t.always THEN 'ALWAYS ' ELSE '' END)
                 FROM triggers t WHERE t.enabled NOT IN ('A', CASE WHEN t.always THEN 'A' ELSE 'O' END) ORDER BY t.tgrelid LIMIT 1), ''),
       coalesce((SELECT pg_catalog.format('%s searches another schema than its own (%s): the schema was renamed', p.oid::regprocedure, setting)
                 FROM pg_proc p CROSS JOIN LATERAL pg_catalog.unnest(p.proconfig) AS setting
                 WHERE p.pronamespace = o.relnamespace AND p.proowner = o.relowner AND p.proname::text = ANY (@functions::text[])
                   AND starts_with(setting, 'search_path=') AND strpos(' ' || substr(setting, 13) || ',', ' ' || quote_ident(o.nspname::text) || ',') = 0
                 LIMIT 1), ''),
       coalesce((SELECT pg_catalog.format('%1$s is UNLOGGED, so its events are not in the WAL (ALTER TABLE %1$s SET LOGGED)', c.oid::regclass)
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = o.oid AND c.relpersistence::text = 'u' ORDER BY c.oid LIMIT 1), ''),
       p.oid IS NOT NULL,
       coalesce(p.pubinsert AND p.pubviaroot, false),
       coalesce(p.puballtables OR EXISTS (
           SELECT FROM pg_publication_rel r
           WHERE r.prpubid = p.oid AND r.prrelid = o.oid
             AND pg_catalog.num_nonnulls(pg_catalog.to_jsonb(r) ->> 'prqual'::text, pg_catalog.to_jsonb(r) ->> 'prattrs'::text) = 0), false),
       coalesce(has_table_privilege(to_regclass('webhook_endpoint_failures')::oid, 'UPDATE'), true),
       coalesce(has_table_privilege(to_regclass('webhook_retries')::oid, 'SELECT'), true)
FROM (SELECT) AS one LEFT JOIN o ON true LEFT JOIN pg_publication p ON p.pubname = 'walhook'`

// Expects sets the text of the schema.sql that belongs to this code, so that CheckSchema knows
// what it makes. Call it before the Store is used.
func (s *Store) Expects(schema string) { s.made = readManifest(schema) }

// CheckSchema checks that everything that delivering needs is there: tables, columns,
// functions, the triggers that must always fire, and a publication that includes the outbox's
// inserts. Otherwise its error wraps ErrNotPrepared, and says what to do.
//
// It is one cheap query, and runs every few seconds, because PostgreSQL says nothing about a
// publication that is gone. Missing extras are no reason to stop confirming: see extras.
func (s *Store) CheckSchema(ctx context.Context) error { return s.compare(ctx, s.made) }

func (s *Store) compare(ctx context.Context, made manifest) error {
	made = made.needed()
	var version int
	var tables, columns, others []string
	var trigger, renamed, unlogged string
	var publication, inserts, member, updates, retries bool
	err := s.pool.QueryRow(ctx, checkSchema, pgx.NamedArgs{"tables": made.tables, "columns": requiredColumns, "triggers": made.triggers,
		"functions": made.functions}).
		Scan(&version, &tables, &columns, &others, &trigger, &renamed, &unlogged, &publication, &inserts, &member, &updates, &retries)
	var missing string
	switch {
	case err == nil && version < 0:
		missing = "walhook's tables are not in its schema (WALHOOK_SCHEMA, or the first schema of the search_path)"
	case err != nil:
		return fmt.Errorf("check the schema: %w", err)
	case version < SchemaVersion:
		missing = fmt.Sprintf("the schema has version %d, but this walhook needs %d", version, SchemaVersion)
	case len(tables) > 0:
		missing = "missing tables: " + strings.Join(tables, ", ")
	case len(columns) > 0:
		missing = "missing columns of webhook_outbox: " + strings.Join(columns, ", ")
	case len(others) > 0 && version == SchemaVersion: // a newer schema may not need them
		missing = "missing: " + strings.Join(others, ", ")
	case trigger != "":
		missing = trigger
	case renamed != "":
		missing = renamed
	case unlogged != "":
		missing = unlogged
	case !publication:
		missing = "the publication walhook is missing"
	case !inserts:
		missing = "the publication walhook needs publish = 'insert' and publish_via_partition_root = true"
	case !member:
		missing = "the publication walhook does not include webhook_outbox, or only some of its rows or columns"
	case !updates: // the role has the grants of schema version 1
		return s.lacks(ctx, "UPDATE", "webhook_endpoint_failures")
	case !retries: // the role has the grants of schema version 4
		return s.lacks(ctx, "SELECT", "webhook_retries")
	default:
		return nil
	}
	return fmt.Errorf("%w: %s; run `walhook init` with a role that owns the tables", ErrNotPrepared, missing)
}

const selectGrant = `
SELECT pg_catalog.format('GRANT %s ON %I.%I TO %I', @privilege::text, current_schema(), @table::text, current_user)`

// lacks returns an error with the GRANT that this role needs.
func (s *Store) lacks(ctx context.Context, privilege, table string) error {
	var grant string
	if err := s.pool.QueryRow(ctx, selectGrant, pgx.NamedArgs{"privilege": privilege, "table": table}).Scan(&grant); err != nil {
		return fmt.Errorf("check the schema: %w", err)
	}
	return fmt.Errorf("%w: this role lacks a privilege that walhook needs; take the role of `walhook run`, or, as the owner of the table, run: %s", ErrNotPrepared, grant)
}

// The identity of the publication: the oid and xmin of its row, and the oid of the outbox's
// row in it. It changes if the publication, or the outbox in it, was dropped and added again,
// and if its settings were changed for a while. published adds the outbox's own oid, which
// matters if the publication is FOR ALL TABLES. A partition that is unlogged is not published either.
//
// Before version 15, a walsender caches for its lifetime that a table is not published.
// It keeps passing over a table that had rows before it was attached to the outbox.
// webhook_add_partition clears that cache. Whoever else attaches a partition does not:
// there, those partitions are a part of the identity.
const selectPublished = `
SELECT coalesce((
    SELECT p.oid::text || '.' || p.xmin::text || coalesce((SELECT ' ' || r.oid::text FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = to_regclass('webhook_outbox')::oid), '')
    FROM pg_publication p WHERE p.pubname = 'walhook'), 'nothing') ||
    CASE WHEN current_setting('server_version_num')::int < 150000 THEN ' ' || coalesce((
        SELECT string_agg(i.inhrelid::text, ',' ORDER BY i.inhrelid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass('webhook_outbox')::oid AND c.relname::text !~ '^webhook_outbox_(p[0-9]{8}|default)$'), '') ELSE '' END || coalesce((
        SELECT ' unlogged ' || string_agg(i.inhrelid::text, ',' ORDER BY i.inhrelid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass('webhook_outbox')::oid AND c.relpersistence::text = 'u'), ''),
    coalesce(to_regclass('webhook_outbox')::oid, 0::oid)`

// published returns the identity of what is published, and the outbox's OID (0: there is no outbox).
func (s *Store) published(ctx context.Context) (identity string, outbox uint32, err error) {
	if err := s.pool.QueryRow(ctx, selectPublished).Scan(&identity, &outbox); err != nil {
		return "", 0, fmt.Errorf("read the publication: %w", err)
	}
	return fmt.Sprintf("%s of %d", identity, outbox), outbox, nil
}

// ErrRepublished means that the publication has changed since the session began. The stream
// may never bring what was committed meanwhile, so the next session has to reconcile.
var ErrRepublished = errors.New("the publication has changed, or before PostgreSQL 15 the outbox's partitions have")

// CheckSession returns ErrRepublished if the publication has changed since the session began,
// and otherwise the result of CheckSchema. Each time both are good it keeps a bound for the
// inserts of open transactions (see openSince). If none could be observed, an earlier one
// stays valid, and only more is compared.
func (s *Store) CheckSession(ctx context.Context, session *webhook.Session) error {
	bound := s.open.observe(ctx, s.pool, s.slot) // before the check, so that the check covers it
	if err := s.checkSession(ctx, session); err != nil {
		return err
	}
	s.open.accept(session, bound)
	return nil
}

func (s *Store) checkSession(ctx context.Context, session *webhook.Session) error {
	identity, outbox, err := s.published(ctx)
	if err != nil {
		return err
	}
	if outbox != 0 && identity != session.Published { // 0: the table was renamed, and is the same once it is renamed back
		return ErrRepublished
	}
	return s.CheckSchema(ctx)
}

// Applying the schema waits half a second for a lock, so that no application queues behind it
// for longer. It is retried for applyFor, with a pause of applyPause.
const (
	applyFor   = 15 * time.Second
	applyPause = time.Second
)

// Migrate applies schema.sql if something that it makes is missing, disabled or older. A newer
// schema stays as it is. It builds no index of a large table, which takes long: Apply does.
// After an error CheckSchema tells whether walhook can deliver.
func (s *Store) Migrate(ctx context.Context, schema string) error {
	made := readManifest(schema)
	err := s.compare(ctx, made)
	if err == nil {
		err = s.compareEventTypes(ctx, made.eventTypes)
	}
	if err == nil {
		err = s.compareExtras(ctx, made)
	}
	if !errors.Is(err, ErrNotPrepared) {
		return err
	}
	return s.applyWithin(ctx, schema, true)
}

const selectMissingEventTypes = `
SELECT array(SELECT name FROM pg_catalog.unnest(@types::text[]) AS name WHERE NOT EXISTS (SELECT FROM webhook_event_types t WHERE t.name = name.name))`

// compareEventTypes checks the rows of walhook's own event types, without which it cannot
// insert its own events.
func (s *Store) compareEventTypes(ctx context.Context, types []string) error {
	var missing []string
	if err := s.pool.QueryRow(ctx, selectMissingEventTypes, pgx.NamedArgs{"types": types}).Scan(&missing); err != nil {
		return fmt.Errorf("look for walhook's own event types: %w", err)
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: missing in webhook_event_types: %s; run `walhook init` with a role that owns the tables", ErrNotPrepared, strings.Join(missing, ", "))
}

// Apply applies schema.sql in any case, which also repairs what no check covers. If another
// session blocks it for too long, the error says which.
func (s *Store) Apply(ctx context.Context, schema string) error {
	return s.applyWithin(ctx, schema, false)
}

func (s *Store) applyWithin(ctx context.Context, schema string, quick bool) error {
	schema, err := s.withPreface(ctx, schema, quick)
	if err != nil {
		return err
	}
	if err := s.applyFile(ctx, schema); err != nil {
		return fmt.Errorf("apply the schema: %w", err)
	}
	return s.compare(ctx, readManifest(schema))
}

// ApplyRoles applies roles.sql. Like Apply it tries again if somebody holds a lock.
func (s *Store) ApplyRoles(ctx context.Context, roles string) error {
	if err := s.applyFile(ctx, roles); err != nil {
		return fmt.Errorf("apply the roles: %w", err)
	}
	return nil
}

// applyFile applies a file, again and again while somebody holds a lock, for s.applyFor.
func (s *Store) applyFile(ctx context.Context, file string) error {
	for began := time.Now(); ; {
		err := s.applyOnce(ctx, file)
		if err == nil || !lockUnavailable(err) || time.Since(began) > s.applyFor {
			return err
		}
		select {
		case <-time.After(applyPause):
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
	}
}

// applyOnce sends the file as it is, with its own BEGIN and COMMIT. After an error the pool
// discards the connection.
func (s *Store) applyOnce(ctx context.Context, file string) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	who := s.watchBlockers(ctx, conn.Conn().PgConn().PID())
	_, err = conn.Conn().PgConn().Exec(ctx, file).ReadAll()
	blocker := who()
	switch {
	case err == nil:
		return nil
	case lockUnavailable(err) && blocker != "":
		return fmt.Errorf("%w (%s)", err, blocker)
	}
	if fix, never := neverApplies(err); never {
		return fmt.Errorf("%w: %w%s", ErrNotPrepared, err, fix)
	}
	return err
}

// neverApplies reports whether only an operator can fix why the schema was not applied, and
// how: a missing privilege, a missing schema, or an object of somebody else's with one of our
// names. For the last PostgreSQL has many SQLSTATEs, all of class 42.
func neverApplies(err error) (fix string, never bool) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return "", false
	case pg.Routine == "exec_stmt_raise" && pg.Hint != "": // raised by the file itself
		return " (" + pg.Hint + ")", true
	case hasCode(err, "42501", "3F000", "55000"): // insufficient_privilege, invalid_schema_name, object_not_in_prerequisite_state
		return "", true
	case strings.HasPrefix(pg.Code, "42"): // syntax_error_or_access_rule_violation
		return " (an object that is not walhook's has one of walhook's names: rename it, or give walhook a schema of its own with WALHOOK_SCHEMA)", true
	}
	return "", false
}

// Which session blocks a backend, and with which lock. Every role may ask that. The details of
// another role's session are visible to members of pg_monitor only.
const selectBlocker = `
SELECT CASE WHEN b.pid = 0 THEN 'blocked by a prepared transaction: see pg_prepared_xacts'
       ELSE pg_catalog.format('blocked by pid %s%s, which has %s%s: wait for it, or end it with SELECT pg_terminate_backend(%1$s)', b.pid, ' of ' || nullif(a.application_name, ''),
                   coalesce('a lock on ' || w.relation::regclass::text, 'an open transaction'),
                   ' (' || a.state || ' for ' || date_trunc('second'::text, clock_timestamp() - a.xact_start)::text || ')') END
FROM unnest(pg_blocking_pids(@pid::int)) AS b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid
LEFT JOIN pg_locks w ON w.pid = @pid::int AND NOT w.granted
ORDER BY a.xact_start NULLS LAST LIMIT 1`

// blockersEvery is how often selectBlocker runs: several times within each wait for a lock.
const blockersEvery = 100 * time.Millisecond

// watchBlockers watches, until who is called, which session blocks a backend. who returns the
// last one it saw, or "".
func (s *Store) watchBlockers(ctx context.Context, pid uint32) (who func() string) {
	ctx, cancel := context.WithCancel(ctx)
	last := make(chan string, 1)
	go func() {
		seen, tick := "", time.NewTicker(blockersEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				last <- seen
				return
			case <-tick.C:
			}
			var now string
			if s.pool.QueryRow(ctx, selectBlocker, pgx.NamedArgs{"pid": int32(pid)}).Scan(&now) == nil {
				seen = now
			}
		}
	}()
	return func() string {
		cancel()
		return <-last
	}
}

// lockUnavailable reports whether a statement ended because somebody else held a lock that it
// needed. Then nothing is wrong, and nothing was changed.
func lockUnavailable(err error) bool {
	return hasCode(err,
		"55P03", // lock_not_available
		"40P01", // deadlock_detected
		"57014") // query_canceled, by statement_timeout
}

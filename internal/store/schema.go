package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SchemaVersion is what webhook_schema_version() of the schema.sql that belongs
// to this code returns.
const SchemaVersion = 5

// What the code reads and writes by name. A newer schema may have more.
var (
	requiredTables = []string{
		"webhook_event_types", "webhook_endpoints", "webhook_secrets", "webhook_outbox", "webhook_outbox_default",
		"webhook_deliveries", "webhook_deliveries_default", "webhook_state", "webhook_endpoint_failures", "webhook_retries",
	}
	requiredColumns = []string{"id", "organization_id", "event_type", "payload", "created_at", "endpoint_ids"}
)

// The version is read and not called for: who may CREATE in the schema could have made
// the function first. -1: there is none, or none of ours.
const installedVersion = `coalesce((SELECT substring(pg_get_function_sqlbody(v.oid), '^RETURN ([0-9]+)'::text)::int
    FROM pg_proc v WHERE v.oid = to_regprocedure('webhook_schema_version()')::oid), -1)`

// It reads catalogues only, and takes no lock: it answers also while somebody
// holds the tables locked. A row filter or column list of the publication is
// read as JSON, because PostgreSQL 14 has no such columns. A row's triggers are
// those of its partition, so that all partitions are looked at.
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
       p.oid IS NOT NULL,
       coalesce(p.pubinsert AND p.pubviaroot, false),
       coalesce(p.puballtables OR EXISTS (
           SELECT FROM pg_publication_rel r
           WHERE r.prpubid = p.oid AND r.prrelid = o.oid
             AND pg_catalog.num_nonnulls(pg_catalog.to_jsonb(r) ->> 'prqual'::text, pg_catalog.to_jsonb(r) ->> 'prattrs'::text) = 0), false),
       coalesce(has_table_privilege(to_regclass('webhook_endpoint_failures')::oid, 'UPDATE'), true),
       coalesce(has_table_privilege(to_regclass('webhook_retries')::oid, 'SELECT'), true)
FROM (SELECT) AS one LEFT JOIN o ON true LEFT JOIN pg_publication p ON p.pubname = 'walhook'`

// Expects says which schema.sql belongs to this code: CheckSchema then looks for
// all that it makes. It is called before the Store is used.
func (s *Store) Expects(schema string) { s.made = readManifest(schema) }

// CheckSchema returns an error that wraps ErrNotPrepared, and says what to do,
// unless everything that delivering needs is there: tables, columns, functions
// and the triggers that fire always as schema.sql makes them, and a publication
// that carries the outbox's inserts. It is one cheap query, made every few
// seconds: PostgreSQL itself keeps silent about a publication that is gone. What
// is for people or for speed is no reason to confirm nothing: see beside.
func (s *Store) CheckSchema(ctx context.Context) error { return s.compare(ctx, s.made) }

func (s *Store) compare(ctx context.Context, made manifest) error {
	made = made.needed()
	var version int
	var tables, columns, others []string
	var trigger, renamed string
	var publication, inserts, member, updates, retries bool
	err := s.pool.QueryRow(ctx, checkSchema, pgx.NamedArgs{"tables": made.tables, "columns": requiredColumns, "triggers": made.triggers,
		"functions": made.functions}).
		Scan(&version, &tables, &columns, &others, &trigger, &renamed, &publication, &inserts, &member, &updates, &retries)
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
	case len(others) > 0 && version == SchemaVersion: // a newer one may do without
		missing = "missing: " + strings.Join(others, ", ")
	case trigger != "":
		missing = trigger
	case renamed != "":
		missing = renamed
	case !publication:
		missing = "the publication walhook is missing"
	case !inserts:
		missing = "the publication walhook needs publish = 'insert' and publish_via_partition_root = true"
	case !member:
		missing = "the publication walhook does not include webhook_outbox, or only some of its rows or columns"
	case !updates: // a role with the grants of schema version 1
		return s.lacks(ctx, "UPDATE", "webhook_endpoint_failures")
	case !retries: // of schema version 4
		return s.lacks(ctx, "SELECT", "webhook_retries")
	default:
		return nil
	}
	return fmt.Errorf("%w: %s; run `walhook init` with a role that owns the tables", ErrNotPrepared, missing)
}

const selectGrant = `
SELECT pg_catalog.format('GRANT %s ON %I.%I TO %I', @privilege::text, current_schema(), @table::text, current_user)`

// lacks says which statement gives this role a right that it lacks.
func (s *Store) lacks(ctx context.Context, privilege, table string) error {
	var grant string
	if err := s.pool.QueryRow(ctx, selectGrant, pgx.NamedArgs{"privilege": privilege, "table": table}).Scan(&grant); err != nil {
		return fmt.Errorf("check the schema: %w", err)
	}
	return fmt.Errorf("%w: this role lacks a privilege; as the owner of the table, run: %s", ErrNotPrepared, grant)
}

// Rows of a catalogue are told apart by their oid, and versions of one by the
// transaction that made them: a publication, or the outbox's part in it, that was
// taken away and given back has another identity, as has one whose settings were
// changed for a while. The outbox's own is for a publication of ALL TABLES.
//
// Before version 15, a walsender caches for its lifetime that a table is not published.
// It keeps passing over a table that had rows before it was attached to the outbox,
// like the partition of a day whose rows were moved. There, the outbox's partitions are
// a part of the identity.
const selectPublished = `
SELECT coalesce((
    SELECT p.oid::text || '.' || p.xmin::text || coalesce((SELECT ' ' || r.oid::text FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = to_regclass('webhook_outbox')::oid), '')
    FROM pg_publication p WHERE p.pubname = 'walhook'), 'nothing') ||
    CASE WHEN current_setting('server_version_num')::int < 150000 THEN ' ' || coalesce((
        SELECT md5(string_agg(i.inhrelid::text, ',' ORDER BY i.inhrelid)) FROM pg_inherits i WHERE i.inhparent = to_regclass('webhook_outbox')::oid), '') ELSE '' END,
    coalesce(to_regclass('webhook_outbox')::oid, 0::oid)`

// published returns the identity of what is published, and the outbox's OID; 0: there is none.
func (s *Store) published(ctx context.Context) (identity string, outbox uint32, err error) {
	if err := s.pool.QueryRow(ctx, selectPublished).Scan(&identity, &outbox); err != nil {
		return "", 0, fmt.Errorf("read the publication: %w", err)
	}
	return fmt.Sprintf("%s of %d", identity, outbox), outbox, nil
}

// ErrRepublished means that the publication is not what it was when the session
// began: what was committed in between may never come by the stream, and the
// next session has to look for it.
var ErrRepublished = errors.New("the publication has changed, or before PostgreSQL 15 the outbox's partitions have")

// CheckSession is CheckSchema, and returns ErrRepublished first where what is
// published has changed since the session began. Each time that all is well it is
// noted since when what is open now may have been inserted; where that cannot be
// found out an earlier time stands, so that more is compared.
func (s *Store) CheckSession(ctx context.Context, session *Session) error {
	bound := s.open.observe(ctx, s.pool, s.slot) // before: what commits while it is checked counts for the next
	if err := s.checkSession(ctx, session); err != nil {
		return err
	}
	s.open.accept(session, bound)
	return nil
}

func (s *Store) checkSession(ctx context.Context, session *Session) error {
	identity, outbox, err := s.published(ctx)
	if err != nil {
		return err
	}
	if outbox != 0 && identity != session.Published { // a table that was renamed is as it was once it has its name again
		return ErrRepublished
	}
	return s.CheckSchema(ctx)
}

// Applying the schema gives up a lock that it does not get within half a
// second, so that no application queues behind it, and tries again for so long.
const (
	applyFor   = 15 * time.Second
	applyPause = time.Second
)

// Migrate applies schema.sql where something that it makes is missing, switched
// off or older. A newer schema stays as it is. An index of a large table is not
// made: that takes long, and is Apply's. CheckSchema tells whether an error is a
// reason not to deliver.
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

// compareEventTypes looks for walhook's own event types: without their rows it
// could not tell anybody what it has to tell.
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

// Apply applies schema.sql, whatever is there: that mends also what no check
// looks at. Where somebody is in the way for too long its error says who.
func (s *Store) Apply(ctx context.Context, schema string) error {
	return s.applyWithin(ctx, schema, false)
}

func (s *Store) applyWithin(ctx context.Context, schema string, quick bool) error {
	schema, err := s.withPreface(ctx, schema, quick)
	if err != nil {
		return err
	}
	for began := time.Now(); ; {
		err := s.apply(ctx, schema)
		if err == nil {
			return s.compare(ctx, readManifest(schema))
		}
		if !lockUnavailable(err) || time.Since(began) > s.applyFor {
			return err
		}
		select {
		case <-time.After(applyPause):
		case <-ctx.Done():
			return fmt.Errorf("apply the schema: %w (last: %w)", context.Cause(ctx), err)
		}
	}
}

// apply sends the file as it is, with its own BEGIN and COMMIT. A connection
// that an error leaves in the middle is thrown away by the pool.
func (s *Store) apply(ctx context.Context, schema string) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("apply the schema: %w", err)
	}
	defer conn.Release()
	who := s.watchBlockers(ctx, conn.Conn().PgConn().PID())
	_, err = conn.Conn().PgConn().Exec(ctx, schema).ReadAll()
	blocker := who()
	switch {
	case err == nil:
		return nil
	case lockUnavailable(err) && blocker != "":
		return fmt.Errorf("apply the schema: %w (%s)", err, blocker)
	}
	if mend, never := neverApplies(err); never {
		return fmt.Errorf("%w: apply the schema: %w%s", ErrNotPrepared, err, mend)
	}
	return fmt.Errorf("apply the schema: %w", err)
}

// neverApplies says whether only an operator can mend why the schema was not applied,
// and how: a right, a schema that is not there, or something with one of our names that
// is somebody else's. PostgreSQL refuses that in many ways, all of one class.
func neverApplies(err error) (mend string, never bool) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok:
		return "", false
	case pg.Routine == "exec_stmt_raise" && pg.Hint != "": // the file's own words
		return " (" + pg.Hint + ")", true
	case hasCode(err, "42501", "3F000", "55000"): // insufficient_privilege, invalid_schema_name, object_not_in_prerequisite_state
		return "", true
	case strings.HasPrefix(pg.Code, "42"): // syntax_error_or_access_rule_violation
		return " (an object that is not walhook's has one of walhook's names: rename it, or give walhook a schema of its own with WALHOOK_SCHEMA)", true
	}
	return "", false
}

// For whom a backend waits, and for what. Every role may ask that; of what else
// there is to know about a session it sees only its own, or all as a monitor.
const selectBlocker = `
SELECT CASE WHEN b.pid = 0 THEN 'blocked by a prepared transaction: see pg_prepared_xacts'
       ELSE pg_catalog.format('blocked by pid %s%s, which has %s%s: wait for it, or end it with SELECT pg_terminate_backend(%1$s)', b.pid, ' of ' || nullif(a.application_name, ''),
                   coalesce('a lock on ' || w.relation::regclass::text, 'an open transaction'),
                   ' (' || a.state || ' for ' || date_trunc('second'::text, clock_timestamp() - a.xact_start)::text || ')') END
FROM unnest(pg_blocking_pids(@pid::int)) AS b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid
LEFT JOIN pg_locks w ON w.pid = @pid::int AND NOT w.granted
ORDER BY a.xact_start NULLS LAST LIMIT 1`

// blockersEvery is how often it is asked: some times within every wait.
const blockersEvery = 100 * time.Millisecond

// watchBlockers looks, until it is asked, for whom a backend waits. It answers
// with the last whom it has seen, or nothing.
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

// gaveWay reports whether a statement ended because somebody else held a lock
// that it wanted: nothing is wrong, and nothing was changed.
func lockUnavailable(err error) bool {
	return hasCode(err,
		"55P03", // lock_not_available
		"40P01", // deadlock_detected
		"57014") // query_canceled, by statement_timeout
}

package outbox

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

// It reads catalogues only, and takes no lock: it answers also while somebody
// holds the tables locked. A row filter or column list of the publication is
// read as JSON, because PostgreSQL 14 has no such columns.
const checkSchema = `
SELECT webhook_schema_version(),
       array(SELECT t FROM unnest(@tables::text[]) AS t WHERE to_regclass(t) IS NULL),
       array(SELECT c FROM unnest(@columns::text[]) AS c
             WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = o.oid AND a.attname = c AND a.attnum > 0 AND NOT a.attisdropped)),
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = o.oid AND t.tgname = 'webhook_outbox_before_insert' AND t.tgenabled = 'A'),
       p.oid IS NOT NULL,
       coalesce(p.pubinsert AND p.pubviaroot, false),
       coalesce(p.puballtables OR EXISTS (
           SELECT FROM pg_publication_rel r
           WHERE r.prpubid = p.oid AND r.prrelid = o.oid
             AND num_nonnulls(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') = 0), false),
       coalesce(has_table_privilege(to_regclass('webhook_endpoint_failures'), 'UPDATE'), true),
       coalesce(has_table_privilege(to_regclass('webhook_retries'), 'SELECT'), true)
FROM (SELECT to_regclass('webhook_outbox')::oid AS oid) o LEFT JOIN pg_publication p ON p.pubname = 'walhook'`

// CheckSchema returns an error that wraps ErrNotPrepared, and says what to do,
// unless everything that walhook needs is there: the tables, the columns and
// the trigger of the outbox, and a publication that carries its inserts. It is
// one cheap query, made every few seconds: PostgreSQL itself keeps silent about
// a publication that is gone.
func (s *Store) CheckSchema(ctx context.Context) error {
	var version int
	var tables, columns []string
	var trigger, publication, inserts, member, updates, retries bool
	err := s.pool.QueryRow(ctx, checkSchema, pgx.NamedArgs{"tables": requiredTables, "columns": requiredColumns}).
		Scan(&version, &tables, &columns, &trigger, &publication, &inserts, &member, &updates, &retries)
	var missing string
	switch {
	case hasCode(err, "42883"): // undefined_function
		missing = "walhook's tables are not in the search_path"
	case err != nil:
		return fmt.Errorf("check the schema: %w", err)
	case version < SchemaVersion:
		missing = fmt.Sprintf("the schema is version %d, and this walhook needs %d", version, SchemaVersion)
	case len(tables) > 0:
		missing = "missing tables: " + strings.Join(tables, ", ")
	case len(columns) > 0:
		missing = "missing columns of webhook_outbox: " + strings.Join(columns, ", ")
	case !trigger:
		missing = "the trigger webhook_outbox_before_insert is missing or not ENABLE ALWAYS (ALTER TABLE webhook_outbox ENABLE ALWAYS TRIGGER webhook_outbox_before_insert)"
	case !publication:
		missing = "the publication walhook is missing"
	case !inserts:
		missing = "the publication walhook has to have publish = 'insert' and publish_via_partition_root = true"
	case !member:
		missing = "the publication walhook does not carry webhook_outbox, or only some of its rows or columns"
	case !updates: // a role with the grants of schema version 1
		missing = "this role may not update webhook_endpoint_failures (GRANT UPDATE ON webhook_endpoint_failures TO it)"
	case !retries: // of schema version 4
		missing = "this role may not read webhook_retries (GRANT SELECT ON webhook_retries TO it)"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s; run `walhook init` with a role that owns the tables", ErrNotPrepared, missing)
}

// Rows of a catalogue are told apart by their oid, and versions of one by the
// transaction that made them: a publication, or the outbox's part in it, that was
// taken away and given back has another identity, as has one whose settings were
// changed for a while.
const selectPublished = `
SELECT coalesce((
    SELECT p.oid || '.' || p.xmin || coalesce((SELECT string_agg(' ' || r.oid, '' ORDER BY r.oid) FROM pg_publication_rel r WHERE r.prpubid = p.oid), '')
    FROM pg_publication p WHERE p.pubname = 'walhook'), 'nothing')`

// published returns the identity of what is published.
func (s *Store) published(ctx context.Context) (identity string, err error) {
	if err := s.pool.QueryRow(ctx, selectPublished).Scan(&identity); err != nil {
		return "", fmt.Errorf("look at the publication: %w", err)
	}
	return identity, nil
}

// ErrRepublished means that the publication is not what it was when the session
// began: what was committed in between may never come by the stream, and the
// next session has to look for it.
var ErrRepublished = errors.New("the publication was changed")

// CheckSession is CheckSchema, and returns ErrRepublished first where what is
// published has changed since the session began. Each time that all is well it is
// noted since when what is open now may have been inserted; where that cannot be
// found out an earlier time stands, so that more is compared.
func (s *Store) CheckSession(ctx context.Context, session *Session) error {
	bound := s.open.look(ctx, s.pool, s.slot) // before: what commits while it is checked counts for the next
	if err := s.checkSession(ctx, session); err != nil {
		return err
	}
	s.open.accept(session, bound)
	return nil
}

func (s *Store) checkSession(ctx context.Context, session *Session) error {
	identity, err := s.published(ctx)
	if err != nil {
		return err
	}
	if identity != session.Published {
		return ErrRepublished
	}
	return s.CheckSchema(ctx)
}

// Applying the schema gives up a lock that it does not get within half a
// second, so that no application queues behind it, and tries again this often.
const (
	migrateTries = 10
	migratePause = time.Second
)

// Migrate applies schema.sql where CheckSchema finds something missing or
// older. A newer schema stays as it is.
func (s *Store) Migrate(ctx context.Context, schema string) error {
	if err := s.CheckSchema(ctx); !errors.Is(err, ErrNotPrepared) {
		return err
	}
	for try := 1; ; try++ {
		err := s.apply(ctx, schema)
		if err == nil {
			return s.CheckSchema(ctx)
		}
		if !gaveWay(err) {
			return err
		}
		if err = s.inTheWay(ctx, err); try == migrateTries {
			return err
		}
		select {
		case <-time.After(migratePause):
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
	if _, err = conn.Conn().PgConn().Exec(ctx, schema).ReadAll(); err == nil {
		return nil
	}
	// A privilege, a schema or a name that only an operator can mend. The hint says how.
	if hasCode(err, "42501", "3F000", "42P07", "55000") {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Hint != "" {
			return fmt.Errorf("%w: apply the schema: %w (%s)", ErrNotPrepared, err, pg.Hint)
		}
		return fmt.Errorf("%w: apply the schema: %w", ErrNotPrepared, err)
	}
	return fmt.Errorf("apply the schema: %w", err)
}

// The oldest transaction that has a lock on a table or view of walhook's. pg_locks
// tells every role; what else there is to know only the same role or a monitor sees.
const selectInTheWay = `
SELECT format('pid %s%s has a lock on %s%s: wait for it, or end it with SELECT pg_terminate_backend(%1$s)', l.pid,
              ' of ' || nullif(a.application_name, ''), c.relname, ' (' || a.state || ' for ' || date_trunc('second', clock_timestamp() - a.xact_start) || ')')
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid() AND c.relname LIKE 'webhook\_%' AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY a.xact_start NULLS LAST LIMIT 1`

// inTheWay adds to an error who held the lock, where that can be seen.
func (s *Store) inTheWay(ctx context.Context, err error) error {
	var who string
	if s.pool.QueryRow(ctx, selectInTheWay).Scan(&who) != nil {
		return err
	}
	return fmt.Errorf("%w (%s)", err, who)
}

// gaveWay reports whether a statement ended because somebody else held a lock
// that it wanted: nothing is wrong, and nothing was changed.
func gaveWay(err error) bool {
	return hasCode(err,
		"55P03", // lock_not_available
		"40P01", // deadlock_detected
		"57014") // query_canceled, by statement_timeout
}

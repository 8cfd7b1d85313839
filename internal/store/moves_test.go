package store_test

import (
	"bytes"
	"context"
	"fmt"
	osexec "os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// moved is what is to be moved: all tables, in the order in which pg_dump writes them.
var moved = []string{
	"webhook_deliveries", "webhook_endpoint_failures", "webhook_endpoints", "webhook_event_types", "webhook_outbox", "webhook_secrets", "webhook_state",
}

// inUse is a database with a bit of everything that a move could change.
func inUse(t testing.TB) *pgtest.DB {
	t.Helper()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
	exec(t, db.Pool, `UPDATE webhook_event_types SET description = 'ours' WHERE name = 'payment.failed'`)
	for i, status := range []string{"success", "failed", "pending", "retrying"} {
		endpoint := newEndpoint(t, db.Pool, "org_1", "invoice.*", "payment.failed")
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, status)
		newEvent(t, db.Pool, "org_1", "invoice.paid")
		switch i {
		case 0:
			exec(t, db.Pool, `SELECT webhook_rotate_secret($1)`, endpoint)
		case 1:
			exec(t, db.Pool, `SELECT webhook_set_secret($1, 'a secret of my own', '1 hour')`, endpoint)
			exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now(), now())`, endpoint)
		case 2:
			exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'by hand' WHERE id = $1`, endpoint)
		case 3:
			exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint) // its events and its delivery stay
		}
	}
	exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ('01800000-0000-7000-8000-000000000000', 'org_1', 'payment.failed', '{}')`) // of a day without partition
	exec(t, db.Pool, `INSERT INTO webhook_state (slot, epoch, environment, durable_lsn, system_identifier) VALUES ('walhook', 3, 'production', '1/2', 'another')`)
	return db
}

// checkMoved compares a database with what was moved into it, and uses it.
func checkMoved(t testing.TB, before []string, to querier) {
	t.Helper()
	if lost, came := differences(before, contents(t, to)); len(lost)+len(came) > 0 {
		t.Errorf("lost\n%s\ncame\n%s", strings.Join(lost, "\n"), strings.Join(came, "\n"))
	}
	checkUse(t, to)
}

// checkUse uses a database in which inUse or use left rows.
func checkUse(t testing.TB, to querier) {
	t.Helper()
	endpoint := query[string](t, to, `SELECT endpoint_id::text FROM webhook_create_endpoint('org_2', 'https://example.com', '{invoice.*}')`)
	exec(t, to, `SELECT webhook_rotate_secret($1)`, endpoint)
	event := newEvent(t, to, "org_2", "invoice.paid")
	if got := query[[]string](t, to, `SELECT endpoint_ids::text[] FROM webhook_outbox WHERE id = $1`, event); !slices.Equal(got, []string{endpoint}) {
		t.Errorf("a new event is owed to %q, want %s", got, endpoint)
	}
	refused(t, to, "matches nothing", `INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('o', 'https://example.com', '{nonsense}')`)
	refused(t, to, "duplicate key", `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.paid', 'invoice')`)
}

func TestMoves(t *testing.T) {
	t.Parallel()

	t.Run("the rows alone, table by table, into a prepared database", func(t *testing.T) {
		t.Parallel()
		from, to := inUse(t), pgtest.New(t)
		before := contents(t, from.Pool)
		for _, table := range moved {
			columns := query[string](t, from.Pool, `SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
				WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`, table)
			copied(t, from.Pool, to.Pool, fmt.Sprintf(`COPY (SELECT %s FROM %s) TO STDOUT`, columns, table), fmt.Sprintf(`COPY public.%s (%s) FROM stdin;`, table, columns))
		}
		checkMoved(t, before, to.Pool)
	})

	for what, c := range map[string]struct {
		into func(testing.TB) *pgtest.DB
		dump []string
	}{
		"whole":    {pgtest.Empty, nil},
		"its data": {pgtest.New, []string{"--data-only", "--load-via-partition-root"}},
	} {
		t.Run("by pg_dump and pg_restore, "+what, func(t *testing.T) {
			t.Parallel()
			from, to := inUse(t), c.into(t)
			before := contents(t, from.Pool)
			file := t.TempDir() + "/dump"
			tool(t, "pg_dump", append(c.dump, "--format=custom", "--file="+file, "--dbname="+from.URL)...)
			tool(t, "pg_restore", "--exit-on-error", "--dbname="+to.URL, file)
			checkMoved(t, before, to.Pool)
			if err := store.New(to.Pool, to.Slot, 0).Migrate(t.Context(), readSchema(t)); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("by logical replication", func(t *testing.T) {
		t.Parallel()
		from, to := inUse(t), pgtest.New(t)
		name := "move_" + from.Slot
		exec(t, from.Pool, `CREATE PUBLICATION move FOR TABLE `+strings.Join(moved, ", ")+` WITH (publish_via_partition_root = true)`)
		exec(t, from.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name) // by hand: both are on one server
		exec(t, to.Pool, fmt.Sprintf(`CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION move WITH (create_slot = false)`, name, from.URL))
		unsubscribe := func() {
			for _, sql := range []string{`ALTER SUBSCRIPTION ` + name + ` DISABLE`, `ALTER SUBSCRIPTION ` + name + ` SET (slot_name = NONE)`, `DROP SUBSCRIPTION ` + name} {
				_, _ = to.Pool.Exec(context.Background(), sql)
			}
		}
		t.Cleanup(unsubscribe)
		pgtest.Eventually(t, time.Minute, "all tables are copied", func() bool {
			return query[bool](t, to.Pool, `SELECT count(*) = $1 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel`, len(moved))
		})
		endpoint := newEndpoint(t, from.Pool, "org_1", "payment.failed") // and what comes afterwards
		newEvent(t, from.Pool, "org_1", "payment.failed")
		exec(t, from.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = $1`, endpoint)
		exec(t, from.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('invoice.sent', 'invoice')`)
		before := contents(t, from.Pool)
		pgtest.Eventually(t, time.Minute, "what comes afterwards is there too", func() bool {
			lost, came := differences(before, contents(t, to.Pool))
			return len(lost)+len(came) == 0
		})
		unsubscribe()
		checkMoved(t, before, to.Pool)
	})
}

func copied(t testing.TB, from, to *pgxpool.Pool, out, in string) {
	t.Helper()
	var rows bytes.Buffer
	with := func(pool *pgxpool.Pool, f func(*pgx.Conn) error) {
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if err := f(conn.Conn()); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	with(from, func(c *pgx.Conn) error { _, err := c.PgConn().CopyTo(t.Context(), &rows, out); return err })
	with(to, func(c *pgx.Conn) error { _, err := c.PgConn().CopyFrom(t.Context(), &rows, in); return err })
}

// tool runs one of PostgreSQL's programs, where there is one that fits the server.
func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	path, err := osexec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	out, err := osexec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if strings.Contains(string(out), "server version mismatch") {
		t.Skipf("%s is older than the server: %s", name, out)
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// Hidden rows would be lost events in silence: an event that nobody is owed, a delivery
// that is sent again, one that is cancelled because its event or endpoint is gone.
func TestRowSecurityIsAnError(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	role := newRole(t, db)
	pool := newPool(t, db, asRole(role))
	exec(t, db.Pool, `GRANT CREATE ON DATABASE `+db.Slot+` TO `+role)
	exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+role)
	if err := apply(t.Context(), pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	st := store.New(pool, db.Slot, disableAfter)
	fence := acquire(t, st)
	endpoint := newEndpoint(t, pool, "org_1")
	rs := owed(t, db, endpoint, 3)
	rs[0], rs[1] = outcome(rs[0], webhook.Retrying, 1, 500), outcome(rs[1], webhook.Retrying, 1, 500)
	insert(t, st, fence, rs[0])
	id := uuid.MustParse(endpoint)

	for table, statements := range map[string]map[string]func() error{
		"webhook_endpoints": {
			"an event": func() error {
				_, err := pool.Exec(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`)
				return err
			},
			"an event for an endpoint": func() error {
				_, err := pool.Exec(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ('org_1', 'payment.failed', '{}', ARRAY[$1::uuid])`, endpoint)
				return err
			},
			"a rotation": func() error {
				_, err := pool.Exec(t.Context(), `SELECT webhook_rotate_secret($1)`, endpoint)
				return err
			},
			"Endpoints":  func() error { _, err := st.Endpoints(t.Context(), []uuid.UUID{id}); return err },
			"Waiting":    func() error { _, err := st.Waiting(t.Context(), uuid.Nil, 10); return err },
			"CancelRows": func() error { _, _, err := st.CancelRows(t.Context(), fence, id, "disabled"); return err },
		},
		"webhook_event_types": {
			"an event": func() error {
				_, err := pool.Exec(t.Context(), `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`)
				return err
			},
			"an endpoint": func() error {
				_, err := pool.Exec(t.Context(), `INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com')`)
				return err
			},
		},
		"webhook_secrets": {
			"Endpoints": func() error { _, err := st.Endpoints(t.Context(), []uuid.UUID{id}); return err },
			"an endpoint": func() error {
				_, err := pool.Exec(t.Context(), `SELECT webhook_create_endpoint('org_1', 'https://example.com')`)
				return err
			},
		},
		"webhook_outbox": {
			"Due": func() error {
				return st.Due(t.Context(), []webhook.Page{{EndpointID: id, Limit: 10}}, func(*webhook.Due) {})
			},
			"AnyMissing": func() error {
				_, err := st.AnyMissing(t.Context(), time.Now().Add(-time.Hour), time.Now())
				return err
			},
		},
		"webhook_deliveries": {
			"Existing": func() error { return st.Existing(t.Context(), []uuid.UUID{rs[0].ID}, map[uuid.UUID]bool{}) },
			"Due": func() error {
				return st.Due(t.Context(), []webhook.Page{{EndpointID: id, Limit: 10}}, func(*webhook.Due) {})
			},
			"NewlyDue": func() error { _, _, _, err := st.NewlyDue(t.Context(), time.Now().Add(-time.Hour)); return err },
			"Insert": func() error {
				_, err := st.Insert(t.Context(), fence, webhook.Mark{}, []webhook.Record{rs[1]})
				return err
			},
			"Update": func() error {
				_, _, err := st.Update(t.Context(), fence, webhook.Mark{}, []webhook.Record{outcome(rs[0], webhook.Success, 2, 200)})
				return err
			},
			"a day that is dropped": func() error {
				_, err := pool.Exec(t.Context(), `SELECT webhook_drop_day(current_date)`)
				return err
			},
		},
		"webhook_state": {
			"Mark": func() error { return st.Mark(t.Context(), fence, webhook.Mark{}) },
		},
	} {
		exec(t, db.Pool, `ALTER TABLE `+table+` ENABLE ROW LEVEL SECURITY`)
		exec(t, db.Pool, `ALTER TABLE `+table+` FORCE ROW LEVEL SECURITY`)
		for what, statement := range statements {
			if err := statement(); !strings.Contains(errorText(err), `row-level security policy for table "`+table) {
				t.Errorf("%s, with %s FORCE ROW LEVEL SECURITY: %v", what, table, err)
			}
		}
		exec(t, db.Pool, `ALTER TABLE `+table+` NO FORCE ROW LEVEL SECURITY`)
		for what, statement := range statements {
			if err := statement(); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				t.Errorf("%s, with row security that is not for the owner: %v", what, err)
			}
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Every function with its owner's rights is bound to its schema and to an error where rows are hidden.
func TestDefinersAreBound(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const definers = `SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef`
	if got := column[string](t, db.Pool, definers); len(got) < 10 {
		t.Fatalf("only %q", got)
	}
	if got := column[string](t, db.Pool, definers+` AND NOT coalesce(p.proconfig @> '{row_security=off,"search_path=public, pg_temp"}', false)`); len(got) > 0 {
		t.Errorf("without row_security = off or a search_path: %q", got)
	}
}

// webhook_status shows numbers of the whole installation, to whoever may read it alone.
func TestStatusNeedsNoOtherRight(t *testing.T) {
	t.Parallel()
	for what, prepare := range map[string]func(t *testing.T) *pgtest.DB{
		"new":      func(t *testing.T) *pgtest.DB { return pgtest.New(t) },
		"upgraded": func(t *testing.T) *pgtest.DB { db, _ := version4(t); return db },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := prepare(t)
			role := newRole(t, db)
			exec(t, db.Pool, `GRANT SELECT ON webhook_status TO `+role+`, PUBLIC`)
			reader := newPool(t, db, asRole(role))
			exec(t, reader, `SELECT * FROM webhook_status`)
			if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
				t.Fatal(err)
			}
			endpoint := newEndpoint(t, db.Pool, "org_1")
			exec(t, db.Pool, `UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 hour' WHERE id = $1`,
				newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "pending"))
			if got := query[bool](t, reader, `SELECT pending > 0 AND oldest_due_at < now() AND outbox_default_rows + deliveries_default_rows = 0 FROM webhook_status`); !got {
				t.Error("webhook_status does not show what waits")
			}
			for _, table := range []string{"webhook_outbox", "webhook_outbox_default", "webhook_deliveries", "webhook_deliveries_default"} {
				refused(t, reader, "permission denied for table "+table, `SELECT FROM `+table)
			}
			if got := column[string](t, db.Pool, granted, role); !slices.Equal(got, []string{"webhook_status SELECT"}) {
				t.Errorf("it has %q", got)
			}
		})
	}
}

// From PostgreSQL 15 on a view shows what its reader may see.
func TestViewsAreTheirReaders(t *testing.T) {
	t.Parallel()
	for what, db := range map[string]*pgtest.DB{"new": pgtest.New(t), "upgraded": upgraded(t)} {
		role := newRole(t, db)
		exec(t, db.Pool, `GRANT SELECT ON webhook_outbox, webhook_deliveries, webhook_endpoints, webhook_event_types, webhook_state,
			webhook_endpoint_failures, webhook_attempts, webhook_endpoint_health, webhook_status TO `+role) // as docs/operations.md says
		reader := newPool(t, db, asRole(role))
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), newEndpoint(t, db.Pool, "org_1"), "failed")
		for _, view := range []string{"webhook_attempts", "webhook_endpoint_health", "webhook_status"} {
			if n := query[int](t, reader, `SELECT count(*) FROM `+view); n == 0 {
				t.Errorf("%s: %s is empty", what, view)
			}
		}
		if query[int](t, db.Pool, `SELECT current_setting('server_version_num')::int`) < 150000 {
			continue
		}
		exec(t, db.Pool, `ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY`)
		if n := query[int](t, reader, `SELECT count(*) FROM webhook_attempts`); n != 0 {
			t.Errorf("%s: webhook_attempts shows %d rows of deliveries that the reader does not see", what, n)
		}
		exec(t, db.Pool, `REVOKE SELECT ON webhook_endpoints FROM `+role)
		refused(t, reader, "permission denied for table webhook_endpoints", `SELECT FROM webhook_endpoint_health`)
	}
}

// upgraded is a database of version 4 that was taken along; a reader of before still reads all views.
func upgraded(t *testing.T) *pgtest.DB {
	t.Helper()
	db, roles := version4(t)
	if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL ROLE "`+roles["ops"]+`"`)
	exec(t, tx, `SELECT FROM webhook_attempts, webhook_endpoint_health, webhook_status`)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

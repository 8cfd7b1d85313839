package store_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// find returns the check of a name, and fails where any check is a failure.
func find(t testing.TB, checks []store.Check, name string) store.Check {
	t.Helper()
	if err := store.FirstFailure(checks); err != nil {
		t.Errorf("a failure: %v", err)
	}
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no check %q", name)
	return store.Check{}
}

// What is for people, or makes it faster, is no reason to confirm nothing or not to start.
func TestWhatIsForPeopleStopsNothing(t *testing.T) {
	t.Parallel()
	for damage, want := range map[string]string{
		`DROP INDEX webhook_deliveries_event_brin_idx`:              "webhook_deliveries_event_brin_idx is missing",
		`DROP INDEX webhook_deliveries_lane_idx`:                    "webhook_deliveries_lane_idx is missing",
		`DROP VIEW webhook_attempts`:                                "webhook_attempts is missing",
		`DROP FUNCTION webhook_explain(uuid)`:                       "webhook_explain is missing",
		`ALTER FUNCTION webhook_replay(uuid) SET search_path = els`: "webhook_replay(uuid) searches another schema",
		`ALTER TABLE webhook_endpoints DISABLE TRIGGER USER`:        "is disabled",
	} {
		t.Run(damage, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			st := store.New(db.Pool, db.Slot, 0)
			st.Expects(readSchema(t))
			exec(t, db.Pool, damage)
			if err := st.CheckSchema(t.Context()); err != nil {
				t.Errorf("nothing is confirmed: %v", err)
			}
			exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
			checks, err := st.Preflight(t.Context(), store.Intent{})
			if err != nil {
				t.Fatal(err)
			}
			if c := find(t, checks, "other objects"); c.State != store.CheckWarn || !strings.Contains(c.Found, want) || !strings.Contains(c.Fix, "walhook init") {
				t.Errorf("got %+v, want a warning of %s", c, want)
			}
		})
	}
}

// An index of a large table keeps its writers waiting: it is init's, and no start's.
func TestMigrateMakesNoIndexOfALargeTable(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	st.Expects(schema)
	exec(t, db.Pool, `UPDATE pg_class SET reltuples = 100001 WHERE oid = 'webhook_deliveries_default'::regclass`)
	exec(t, db.Pool, `DROP INDEX webhook_deliveries_event_brin_idx`)
	exec(t, db.Pool, `DROP INDEX webhook_secrets_endpoint_idx`)
	exec(t, db.Pool, `DROP VIEW webhook_attempts`)
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	if found, err := st.Beside(t.Context()); err != nil || strings.Join(found, ", ") != "webhook_deliveries_event_brin_idx is missing" {
		t.Errorf("after a start %q, %v; want the index of the large table alone", found, err)
	}
	checks, err := st.Preflight(t.Context(), store.Intent{Apply: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := find(t, checks, "indexes"); c.State != store.CheckWarn || !strings.Contains(c.Found, "webhook_deliveries_event_brin_idx") || !strings.Contains(c.Fix, "CONCURRENTLY") {
		t.Errorf("got %+v, want a warning of the index", c)
	}
	// Nothing is applied in vain at each start.
	tx := begin(t, db.Pool)
	exec(t, tx, `LOCK TABLE webhook_state IN SHARE UPDATE EXCLUSIVE MODE`)
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Errorf("the next start: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := st.Apply(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	if found, err := st.Beside(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("after init %q are missing, %v", found, err)
	}
}

// A superuser over another role's installation makes what is missing as that role: all
// of it stays one role's.
func TestASuperuserAppliesAsTheOwner(t *testing.T) {
	t.Parallel()
	schema := readSchema(t)
	db := pgtest.Empty(t)
	role := newRole(t, db)
	exec(t, db.Pool, `GRANT CREATE ON SCHEMA public TO `+role)
	exec(t, db.Pool, `GRANT CREATE ON DATABASE "`+query[string](t, db.Pool, `SELECT current_database()`)+`" TO `+role)
	if err := store.New(newPool(t, db, asRole(role)), db.Slot, 0).Migrate(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	exec(t, db.Pool, `DROP VIEW webhook_attempts; DROP INDEX webhook_deliveries_event_brin_idx; DROP TABLE webhook_retries CASCADE`)
	exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE RETURN 4`)
	st := store.New(db.Pool, db.Slot, 0)
	st.Expects(schema)
	checks, err := st.Preflight(t.Context(), store.Intent{Apply: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := find(t, checks, "owner"); !strings.Contains(c.Found, "as that role") {
		t.Errorf("got %+v", c)
	}
	if err := st.Migrate(t.Context(), schema); err != nil {
		t.Fatalf("a superuser: %v", err)
	}
	if others := column[string](t, db.Pool, `
		SELECT relname::text FROM pg_class WHERE relname LIKE 'webhook%' AND relowner = current_user::regrole
		UNION ALL SELECT proname::text FROM pg_proc WHERE proname LIKE 'webhook%' AND proowner = current_user::regrole`); len(others) > 0 {
		t.Errorf("the superuser's own: %q", others)
	}
	if me := query[string](t, db.Pool, `SELECT current_user::text`); me == role {
		t.Error("the session stays that role's")
	}

	// Tables that nothing is published of may be anybody's, and a GRANT changes nothing for a superuser.
	exec(t, db.Pool, `DROP PUBLICATION walhook`)
	checks, err = st.Preflight(t.Context(), store.Intent{Apply: true})
	if err != nil {
		t.Fatal(err)
	}
	err = store.FirstFailure(checks)
	if !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "ALTER TABLE webhook_outbox OWNER TO") || strings.Contains(err.Error(), "GRANT") {
		t.Errorf("over tables that are only there: %v", err)
	}
	if err := st.Migrate(t.Context(), schema); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "belongs to role") {
		t.Errorf("over tables that are only there: %v", err)
	}
}

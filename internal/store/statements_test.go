package store_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// Whatever way of sending a query the database's URL asks for: with a pooler it
// cannot be prepared statements.
func TestQueryModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := newPool(t, db, func(c *pgxpool.Config) {
				c.MaxConns = 1
				c.ConnConfig.DefaultQueryExecMode = mode
			})
			st := store.New(pool, db.Slot, disableAfter)
			everyStatement(t, db, st)
			if n := query[int](t, pool, `SELECT count(*) FROM pg_prepared_statements`); n > 0 && mode != pgx.QueryExecModeCacheStatement {
				t.Errorf("%d prepared statements", n)
			}
			// What a transaction set for itself has ended with it: the next user of a shared connection has its own.
			for _, setting := range []string{"enable_seqscan", "enable_sort", "jit", "enable_hashjoin"} {
				if got := query[bool](t, pool, `SELECT setting = reset_val FROM pg_settings WHERE name = $1`, setting); !got {
					t.Errorf("%s is changed for the session", setting)
				}
			}
			if got := query[string](t, pool, `SELECT coalesce(current_setting('walhook.recording', true), '')`); got != "" {
				t.Errorf("walhook.recording is %q in the session", got)
			}
		})
	}
}

// everyStatement runs each of the store's statements, and checks that it did something.
func everyStatement(t *testing.T, db *pgtest.DB, st *store.Store) {
	t.Helper()
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ok("check the schema", st.CheckSchema(t.Context()))
	ok("claim the environment", st.ClaimEnvironment(t.Context(), "production", false))
	ok("set the endpoints of one organization", st.SetMaxEndpoints(t.Context(), 2000))
	fence := acquire(t, st)
	endpoint := newEndpoint(t, db.Pool, "org_1", "*", "webhook.*")
	records := owed(t, db, endpoint, 6)
	parked, failed, gone, orphan := &records[0], &records[1], &records[2], &records[3]

	c, err := st.Missing(t.Context(), store.Position{Event: outbox.TimeID(time.Now().Add(-time.Hour))}, outbox.TimeID(time.Now().Add(time.Hour)), 10)
	if ok("missing", err); len(c.Missing) != len(records) || c.Upto.Event == uuid.Nil {
		t.Errorf("%d are missing, the last event is %s", len(c.Missing), c.Upto.Event)
	}
	missing, err := st.InsertMissing(t.Context(), fence, nil)
	if ok("insert missing", err); missing != 0 {
		t.Errorf("inserted %d of nothing", missing)
	}
	parked.Status, parked.Wait = webhook.Pending, -time.Minute
	failed.Status, failed.Wait, failed.Attempts = webhook.Retrying, -10*time.Second, 1
	failed.Attempt = newAttempt(503, `a "b" {c} \d 'é`)
	gone.Status, gone.Attempts, gone.Attempt = webhook.Failed, 1, newAttempt(500, "no")
	gone.Exhausted = true
	orphan.Status = webhook.Pending
	records[4].Status, records[4].Attempts, records[4].Attempt = webhook.Success, 1, newAttempt(200, "yes")
	records[5].Status = webhook.Cancelled
	fresh, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 2, Durable: 3, CommitAt: time.Now()}, records)
	if ok("insert", err); !fresh {
		t.Error("they were not new")
	}
	if got := query[string](t, db.Pool, `SELECT response FROM webhook_deliveries WHERE id = $1`, failed.ID); got != failed.Attempt.Response {
		t.Errorf("response %q, want %q", got, failed.Attempt.Response)
	}
	failed.Attempts, failed.Wait = 2, -10*time.Second
	health := webhook.EndpointHealth{EndpointID: uuid.MustParse(endpoint), Recovered: true, Failing: true, Open: true, CheckDisable: true, At: time.Now()}
	locked, _, err := st.Update(t.Context(), fence, webhook.Mark{Health: []webhook.EndpointHealth{health}}, []webhook.Record{*failed})
	if ok("update", err); len(locked) != 0 {
		t.Errorf("%d are locked", len(locked))
	}
	known := map[uuid.UUID]bool{}
	ok("existing", st.Existing(t.Context(), []uuid.UUID{failed.ID, uuid.New()}, known))
	if len(known) != 1 || !known[failed.ID] {
		t.Errorf("existing: %v", known)
	}
	progress, err := st.Progress(t.Context(), []uuid.UUID{failed.ID, uuid.New()})
	if ok("progress", err); len(progress) != 1 || progress[0].Status != webhook.Retrying || len(progress[0].Attempts) != 2 {
		t.Errorf("progress: %+v", progress)
	}
	explained, err := st.Explain(t.Context(), failed.EventID)
	if ok("explain", err); len(explained) != 1 || explained[0].DeliveryID != failed.ID {
		t.Errorf("explained: %+v", explained)
	}
	now, err := st.Now(t.Context())
	ok("now", err)
	due, _, _, err := st.NewlyDue(t.Context(), now.Add(-time.Hour))
	if ok("newly due", err); len(due) != 1 || due[0].String() != endpoint {
		t.Errorf("newly due: %v", due)
	}
	walked, err := st.Waiting(t.Context(), uuid.Nil, 10)
	if ok("waiting", err); len(walked) != 1 || walked[0].EndpointID.String() != endpoint || !walked[0].Enabled {
		t.Errorf("waiting: %v", walked)
	}
	browsed(t, st, uuid.MustParse(endpoint), failed.ID)
	exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, orphan.EventID)
	settled(t, db)
	var pages []webhook.Due
	id := uuid.MustParse(endpoint)
	take := func(d *webhook.Due) { pages = append(pages, *d) }
	ok("due", st.Due(t.Context(), []webhook.Page{{EndpointID: id, Limit: 1}}, take))
	ok("due", st.Due(t.Context(), []webhook.Page{{EndpointID: id, After: pages[0].End(), Limit: 10}}, take))
	if len(pages) != 3 || pages[0].ID != parked.ID || pages[1].ID != failed.ID || !pages[2].Orphaned || string(pages[1].Event.Payload) != `{"n": 2}` {
		t.Errorf("due: %+v", pages)
	}
	ok("cancel orphans", st.CancelOrphans(t.Context(), fence, []uuid.UUID{orphan.ID}))
	found, err := st.Endpoints(t.Context(), []uuid.UUID{id})
	if ok("endpoints", err); len(found) != 1 || len(found[0].Secrets) != 1 || found[0].Headers == nil || !found[0].BreakerOpen {
		t.Errorf("endpoints: %+v", found)
	}
	parked.Status, parked.Attempts, parked.Attempt, parked.Gone = webhook.Failed, 1, newAttempt(410, ""), true
	_, _, err = st.Update(t.Context(), fence, webhook.Mark{Seq: 3}, []webhook.Record{*parked})
	ok("update", err)
	pgtest.Eventually(t, 30*time.Second, "its row is cancelled", func() bool {
		n, _, err := st.CancelRows(t.Context(), fence, id, "disabled")
		ok("cancel rows", err)
		return n == 1
	})
	got := column[string](t, db.Pool, `SELECT status || ' ' || attempts FROM webhook_deliveries WHERE event_type NOT LIKE 'webhook.%' ORDER BY event_id`)
	if want := []string{"failed 1", "cancelled 2", "failed 1", "cancelled 0", "success 1", "cancelled 0"}; !slices.Equal(got, want) {
		t.Errorf("in the end: %q, want %q", got, want)
	}
	if got := column[string](t, db.Pool, `SELECT event_type FROM webhook_outbox WHERE event_type LIKE 'webhook.%' ORDER BY 1`); !slices.Equal(got, []string{outbox.TypeDeliveryExhausted, outbox.TypeEndpointDisabled}) {
		t.Errorf("own events: %q", got)
	}
	for range 7 { // generic plans of the prepared ones
		ok("existing", st.Existing(t.Context(), []uuid.UUID{failed.ID}, known))
		_, _, err := st.Update(t.Context(), fence, webhook.Mark{}, []webhook.Record{*failed})
		ok("update", err)
	}
	session := &webhook.Session{SystemID: "system 1", Timeline: 1}
	ok("start", st.StartSession(t.Context(), session, 1<<40))
	ok("check the session", st.CheckSession(t.Context(), session))
	_, err = st.InsertLSN(t.Context())
	ok("insert LSN", err)
}

// newRole makes a role that is no superuser, and drops it with all that it owns.
func newRole(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	role := strings.Replace(db.Slot, "test", "role", 1)
	exec(t, db.Pool, `CREATE ROLE `+role+` LOGIN REPLICATION PASSWORD '`+role+`'`)
	t.Cleanup(func() {
		for _, sql := range []string{`REASSIGN OWNED BY ` + role + ` TO CURRENT_USER`, `DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return role
}

// runGrants are what a role needs for `walhook run` that does not own the tables, and the
// event types for `walhook trigger`.
var runGrants = []string{
	`SELECT, INSERT, UPDATE ON webhook_deliveries, webhook_state`,
	`SELECT, INSERT ON webhook_outbox`,
	`SELECT, UPDATE ON webhook_endpoints, webhook_secrets`,
	`SELECT, INSERT, UPDATE, DELETE ON webhook_endpoint_failures`,
	`SELECT ON webhook_retries, webhook_event_types`,
	`SELECT ON webhook_outbox_default, webhook_deliveries_default`,
	`EXECUTE ON FUNCTION webhook_add_partition, webhook_drop_day, webhook_delete_old`,
}

func roleWithGrants(t testing.TB, db *pgtest.DB) string {
	t.Helper()
	role := newRole(t, db)
	for _, grant := range runGrants {
		exec(t, db.Pool, `GRANT `+grant+` TO `+role)
	}
	return role
}

// The grants of version 1 are not enough for version 2, and that is said at the
// start, not when the first failure cannot be recorded.
func TestGrantsOfVersion1AreRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := roleWithGrants(t, db)
	st := store.New(newPool(t, db, asRole(role)), db.Slot, disableAfter)
	if err := st.CheckSchema(t.Context()); err != nil {
		t.Fatalf("with all grants: %v", err)
	}
	exec(t, db.Pool, `REVOKE UPDATE ON webhook_endpoint_failures FROM `+role)
	if err := st.CheckSchema(t.Context()); !errors.Is(err, store.ErrNotPrepared) || !strings.Contains(err.Error(), "GRANT UPDATE") {
		t.Errorf("without UPDATE: %v, want %v that names the grant", err, store.ErrNotPrepared)
	}
}

// asRole makes a pool's connections those of a role.
func asRole(role string) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) {
		c.MaxConns = 3
		c.ConnConfig.User, c.ConnConfig.Password = role, role
	}
}

// asRun does as a role all that walhook does.
func asRun(t *testing.T, db *pgtest.DB, pool *pgxpool.Pool) {
	t.Helper()
	if query[bool](t, pool, `SELECT rolsuper FROM pg_roles WHERE rolname = session_user`) {
		t.Fatal("it is a superuser")
	}
	st := store.New(pool, db.Slot, disableAfter)
	everyStatement(t, db, st)
	upkeep(t, store.NewPartitions(st, 24*time.Hour))
	sealer, err := store.NewSealer(make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	st.Sealing(sealer)
	if n, err := st.SealAll(t.Context()); err != nil || n == 0 {
		t.Errorf("sealed %d, %v", n, err)
	}
	exec(t, pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	if n := query[int](t, pool, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, db.Slot); n != 1 {
		t.Error("it does not see its slot")
	}
	frozen := begin(t, pool)
	exec(t, frozen, `SELECT FROM webhook_state FOR UPDATE`)
	acquire(t, st)
	if _, err := frozen.Exec(t.Context(), `SELECT`); err == nil {
		t.Error("its own frozen writer was not terminated")
	}
	_ = frozen.Rollback(t.Context())
	if dropped, err := st.DropSlot(t.Context()); err != nil || !dropped {
		t.Errorf("drop the slot: %t, %v", dropped, err)
	}
}

// The role of `walhook run` is no superuser: it may replicate, and it owns the
// tables or has been granted what it needs.
func TestRoleOfRun(t *testing.T) {
	t.Parallel()
	t.Run("as the owner", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		role := newRole(t, db)
		pool := newPool(t, db, asRole(role))
		exec(t, db.Pool, `GRANT CREATE ON DATABASE `+db.Slot+` TO `+role)
		exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+role)
		if err := apply(t.Context(), pool, readSchema(t)); err != nil {
			t.Fatal(err)
		}
		asRun(t, db, pool)
		if _, err := store.New(pool, db.Slot, 0).DropTables(t.Context(), readSchema(t), func(int, int) {}); err != nil {
			t.Error(err)
		}
	})
	t.Run("with grants", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		asRun(t, db, newPool(t, db, asRole(roleWithGrants(t, db))))
	})
}

// What a role's, a database's or a URL's settings may be.
func TestSessionDefaults(t *testing.T) {
	t.Parallel()
	for _, settings := range []map[string]string{
		{"timezone": "Asia/Kolkata", "datestyle": "SQL, DMY", "intervalstyle": "sql_standard", "bytea_output": "escape", "extra_float_digits": "-15"},
		{"default_transaction_isolation": "serializable", "plan_cache_mode": "force_generic_plan"},
		{"standard_conforming_strings": "on", "jit": "on", "jit_above_cost": "0", "lock_timeout": "1ms", "transform_null_equals": "on"},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			pool := newPool(t, db, func(c *pgxpool.Config) {
				maps.Copy(c.ConnConfig.RuntimeParams, settings)
			})
			everyStatement(t, db, store.New(pool, db.Slot, disableAfter))
			if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_attempts WHERE at NOT BETWEEN now() - interval '1 minute' AND now()`); n != 0 {
				t.Errorf("%d attempts were at another time", n)
			}
		})
	}

	t.Run("never leave a commit less than locally durable", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `CREATE TABLE seen (setting text)`)
		exec(t, db.Pool, `CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$`)
		exec(t, db.Pool, `CREATE TRIGGER see AFTER INSERT ON webhook_deliveries EXECUTE FUNCTION see()`)
		_, fence := acquired(t, db)
		endpoint := newEndpoint(t, db.Pool, "org_1")
		for _, setting := range []string{"off", "local", "remote_write", "on", "remote_apply"} {
			pool := newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = setting })
			st := store.New(pool, db.Slot, 0)
			insert(t, st, fence, outcome(owed(t, db, endpoint, 1)[0], webhook.Success, 1, 200))
		}
		if got, want := column[string](t, db.Pool, `SELECT setting FROM seen`), []string{"local", "local", "remote_write", "on", "remote_apply"}; !slices.Equal(got, want) {
			t.Errorf("recorded with %q, want %q", got, want)
		}
	})
}

// browsed runs what the page of the admin server reads.
func browsed(t *testing.T, st *store.Store, endpoint, failed uuid.UUID) {
	t.Helper()
	views, more, err := st.EndpointViews(t.Context(), "org_1", 25)
	if err != nil || more || len(views) != 1 || views[0].ID != endpoint || views[0].Waiting == 0 || views[0].Last == nil {
		t.Errorf("endpoints: %+v, %t, %v", views, more, err)
	}
	for _, f := range []store.DeliveryFilter{
		{OrganizationID: "org_1", EventType: "payment.failed", Statuses: []string{"retrying"}},
		{EndpointID: endpoint, Statuses: []string{"retrying"}},
		{EndpointID: endpoint},
	} {
		page, err := st.Deliveries(t.Context(), f)
		if err != nil || !slices.ContainsFunc(page.Deliveries, func(d store.DeliveryView) bool { return d.ID == failed && d.Payload != nil }) {
			t.Errorf("%+v: %+v, %v", f, page, err)
		}
	}
	if page, err := st.Deliveries(t.Context(), store.DeliveryFilter{EndpointID: endpoint, Statuses: []string{"failed"}, EventType: "none"}); err != nil || len(page.Deliveries) != 0 {
		t.Errorf("%+v, %v", page, err)
	}
	if d, err := st.Delivery(t.Context(), failed); err != nil || d == nil || len(d.Log) != 2 || d.Log[0].Number != 2 {
		t.Errorf("delivery: %+v, %v", d, err)
	}
}

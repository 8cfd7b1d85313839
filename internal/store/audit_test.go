package store_test

import (
	"fmt"
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

// audited returns, sorted, what was written into webhook_audit since the last call.
func audited(t testing.TB, db *pgtest.DB) []string {
	t.Helper()
	got := column[string](t, db.Pool, `
		WITH taken AS (DELETE FROM webhook_audit RETURNING *)
		SELECT concat_ws(' ', who, action, coalesce(organization_id, '-'), CASE WHEN endpoint_id IS NULL THEN '-' ELSE 'endpoint' END, count, detail) FROM taken`)
	slices.Sort(got)
	return got
}

func TestAudit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	me := query[string](t, db.Pool, `SELECT session_user::text`)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	event := newEvent(t, db.Pool, "org_1", "payment.failed")
	delivery := newDelivery(t, db.Pool, event, endpoint, "failed")
	for range 149 {
		newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "failed")
	}
	if got, want := audited(t, db), []string{me + " endpoint.created org_1 endpoint 1 https://example.com"}; !slices.Equal(got, want) {
		t.Fatalf("before: %q, want %q", got, want)
	}
	in := strings.NewReplacer("ENDPOINT", "'"+endpoint+"'", "DELIVERY", "'"+delivery+"'")
	for _, c := range []struct {
		sql  string
		want []string
	}{
		{`INSERT INTO webhook_endpoints (organization_id, url, headers) VALUES ('org_2', 'https://u.example/hunter2?token=hunter2', '{"Authorization": "hunter2"}')`,
			[]string{"endpoint.created org_2 endpoint 1 https://u.example"}},
		{`SELECT webhook_create_endpoint('org_2', 'https://u.example/hunter2')`, []string{"endpoint.created org_2 endpoint 1 https://u.example"}},
		{`SELECT webhook_create_endpoint('org_2', 'https://u.example/', secret => 'hunter2 and more of it')`,
			[]string{"endpoint.created org_2 endpoint 1 https://u.example", "secret.changed org_2 endpoint 1"}},
		{`UPDATE webhook_endpoints SET url = 'https://v.example/hunter2', headers = '{"A": "hunter2"}', rate_per_second = 3 WHERE id = ENDPOINT`,
			[]string{"endpoint.changed org_1 endpoint 1 url (https://v.example), headers, rate_per_second"}},
		{`UPDATE webhook_endpoints SET rate_per_second = 3 WHERE id = ENDPOINT`, nil},
		{`UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'hunter2' WHERE id = ENDPOINT`, []string{"endpoint.disabled org_1 endpoint 1 disabled_reason"}},
		{`UPDATE webhook_endpoints SET enabled = true WHERE id = ENDPOINT`, []string{"endpoint.enabled org_1 endpoint 1 disabled_reason"}},
		{`UPDATE webhook_endpoints SET enabled = false, paused_at = now() WHERE id = ENDPOINT`, []string{"endpoint.disabled org_1 endpoint 1 paused_at"}},
		{`UPDATE webhook_endpoints SET enabled = true, paused_at = NULL WHERE id = ENDPOINT`, []string{"endpoint.enabled org_1 endpoint 1 paused_at"}},
		{`SELECT webhook_pause(ENDPOINT)`, []string{"endpoint.paused org_1 endpoint 1"}},
		{`SELECT webhook_pause(ENDPOINT)`, nil},
		{`SELECT webhook_resume(ENDPOINT)`, []string{"endpoint.resumed org_1 endpoint 1"}},
		{`SELECT webhook_resume(ENDPOINT)`, nil},
		{`UPDATE webhook_endpoints SET paused_at = now(), timeout = '3 s', retry_schedule = '{1 s}' WHERE id = ENDPOINT`, []string{"endpoint.paused org_1 endpoint 1 retry_schedule, timeout"}},
		{`UPDATE webhook_endpoints SET paused_at = NULL WHERE id = ENDPOINT`, []string{"endpoint.resumed org_1 endpoint 1"}},
		{`SELECT webhook_rotate_secret(ENDPOINT)`, []string{"secret.changed org_1 endpoint 1"}},
		{`SELECT webhook_set_secret(ENDPOINT, 'hunter2 and more of it')`, []string{"secret.changed org_1 endpoint 1"}},
		{`SELECT webhook_set_secret(ENDPOINT, 'hunter2 and more of it', '1 hour')`, []string{"secret.changed org_1 endpoint 1"}}, // deletes that secret first
		{`UPDATE webhook_secrets SET secret = 'sealed:v1:aGFsbG8=' WHERE endpoint_id = ENDPOINT`, []string{"secret.changed org_1 endpoint 1"}},
		{`UPDATE webhook_secrets SET secret = secret`, nil},
		{`UPDATE webhook_secrets SET secret = 'hunter2 in plain text' WHERE endpoint_id = ENDPOINT AND expires_at IS NULL`, []string{"secret.changed org_1 endpoint 1"}},
		{`UPDATE webhook_secrets SET expires_at = now() WHERE endpoint_id = ENDPOINT`, []string{"secret.changed org_1 endpoint 1"}},
		{`UPDATE webhook_secrets SET endpoint_id = (SELECT id FROM webhook_endpoints WHERE organization_id = 'org_2' LIMIT 1)
			WHERE id = (SELECT id FROM webhook_secrets WHERE endpoint_id = ENDPOINT LIMIT 1)`,
			[]string{"secret.changed org_1 endpoint 1", "secret.changed org_2 endpoint 1"}},
		{`INSERT INTO webhook_secrets (endpoint_id, secret) VALUES (ENDPOINT, 'hunter2 and no other')`, []string{"secret.changed org_1 endpoint 1"}},
		{`DELETE FROM webhook_secrets WHERE endpoint_id = ENDPOINT`, []string{"secret.changed org_1 endpoint 1"}},
		{`SELECT webhook_rotate_secret(id) FROM webhook_endpoints`, []string{"secret.changed org_1 endpoint 1", "secret.changed org_2 endpoint 1",
			"secret.changed org_2 endpoint 1", "secret.changed org_2 endpoint 1"}},
		{`INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a') ON CONFLICT DO NOTHING`, []string{"type.created - - 1 a.b"}},
		{`INSERT INTO webhook_event_types (name, category) VALUES ('a.b', 'a') ON CONFLICT (name) DO UPDATE SET category = 'b'`, []string{"type.changed - - 1 a.b, category"}},
		{`UPDATE webhook_event_types SET name = 'a.c', example = '{"hunter2": 1}' WHERE name = 'a.b'`, []string{"type.changed - - 1 a.b, name (a.c), example"}},
		{`DELETE FROM webhook_event_types WHERE name = 'a.c'`, []string{"type.deleted - - 1 a.c"}},
		{`UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE endpoint_id = ENDPOINT`, []string{"deliveries.replayed - - 150"}},
		{`SELECT webhook_replay(DELIVERY)`, []string{"deliveries.replayed - - 1"}},
		{`SELECT webhook_replay(gen_random_uuid())`, nil},
		{`UPDATE webhook_deliveries SET status = 'failed', next_attempt_at = NULL WHERE id <> DELIVERY`, []string{"deliveries.replayed - - 149"}},
		{`SELECT webhook_replay_failed(ENDPOINT, now() - interval '1 day')`, []string{"deliveries.replayed - - 149"}},
		{`UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour'`, []string{"deliveries.replayed - - 150"}},
		{`SELECT webhook_retry_now(ENDPOINT)`, []string{"deliveries.replayed - - 150"}},
		{`SELECT webhook_send_test(ENDPOINT)`, []string{"test.sent org_1 endpoint 1 webhook.test"}},
		{`SELECT webhook_send_test(ENDPOINT, 'payment.failed')`, []string{"test.sent org_1 endpoint 1 payment.failed"}},
		{`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.failed', '{}')`, nil},
		{`INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_3', 'https://u.example/' || n FROM generate_series(1, 101) AS n`, []string{"endpoint.created - - 101"}},
		{`UPDATE webhook_endpoints SET enabled = false WHERE organization_id = 'org_3'`, []string{"endpoint.disabled - - 101"}},
		{`UPDATE webhook_endpoints SET description = 'hunter2' WHERE organization_id = 'org_3'`, []string{"endpoint.changed - - 101"}},
		{`DELETE FROM webhook_endpoints WHERE organization_id = 'org_3'`, []string{"endpoint.deleted - - 101"}},
		{`DELETE FROM webhook_endpoints WHERE id = ENDPOINT`, []string{"endpoint.deleted org_1 endpoint 1 https://v.example"}},
		{`TRUNCATE webhook_secrets`, []string{"secret.changed - -"}},
		{`TRUNCATE webhook_endpoints CASCADE`, []string{"endpoint.deleted - -", "secret.changed - -"}},
	} {
		exec(t, db.Pool, in.Replace(c.sql))
		want := make([]string, len(c.want))
		for i, w := range c.want {
			want[i] = me + " " + w
		}
		if got := audited(t, db); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", c.sql, got, want)
		}
	}

	t.Run("in one transaction each statement is counted by itself", func(t *testing.T) {
		tx := begin(t, db.Pool)
		for _, sql := range []string{`UPDATE webhook_deliveries SET status = 'failed', next_attempt_at = NULL`, `SAVEPOINT a`,
			`UPDATE webhook_deliveries SET status = 'failed'`, `ROLLBACK TO a`, `SELECT webhook_replay('` + delivery + `')`} {
			exec(t, tx, sql)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := audited(t, db), []string{me + " deliveries.replayed - - 1", me + " deliveries.replayed - - 150"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})

	t.Run("a restore is no change", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), db.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		if _, err := conn.PgConn().CopyFrom(t.Context(), strings.NewReader("org_4\thttps://example.com/\n"), `COPY webhook_endpoints (organization_id, url) FROM STDIN`); err != nil {
			t.Fatal(err)
		}
		if got := audited(t, db); len(got) > 0 {
			t.Errorf("%q", got)
		}
	})
}

// walhook's own recording writes nothing there, and what it disables is its own.
func TestWalhooksOwnChanges(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	records := owed(t, db, endpoint, 5)
	for i := range records {
		records[i] = outcome(records[i], webhook.Retrying, 1, 500)
	}
	insert(t, st, fence, records...)
	for i := range records {
		records[i] = outcome(records[i], webhook.Success, 2, 200)
	}
	update(t, st, fence, records[1:]...)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = '{"Authorization": "Bearer hunter2"}'`)
	audited(t, db)
	sealer, err := store.NewSealer(make([]byte, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	st.Sealing(sealer)
	if _, err := st.SealAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := audited(t, db); len(got) > 0 {
		t.Errorf("what walhook records and seals: %q", got)
	}
	if !query[bool](t, db.Pool, `SELECT headers->>'Authorization' LIKE 'sealed:%' FROM webhook_endpoints`) {
		t.Error("the headers are not sealed")
	}
	gone := outcome(records[0], webhook.Failed, 2, 410)
	gone.Gone = true
	update(t, st, fence, gone)
	if got, want := audited(t, db), []string{"walhook endpoint.disabled org_1 endpoint 1 answered 410 Gone"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, _, err := st.CancelRows(t.Context(), fence, uuid.MustParse(endpoint), "disabled"); err != nil {
		t.Fatal(err)
	}
	if got := audited(t, db); len(got) > 0 {
		t.Errorf("what walhook records: %q", got)
	}
	if _, _, err := st.SendTest(t.Context(), store.TestWebhook{OrganizationID: "org_1", EventType: "payment.failed"}); err != nil {
		t.Fatal(err)
	}
	if got := audited(t, db); len(got) != 1 || !strings.Contains(got[0], "test.sent org_1 - 1 payment.failed") {
		t.Errorf("a test webhook: %q", got)
	}
}

// Whoever says that they are walhook are written all the same.
func TestNobodyHidesFromTheAudit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	newDelivery(t, db.Pool, newEvent(t, db.Pool, "org_1", "payment.failed"), endpoint, "failed")
	audited(t, db)
	role := newRole(t, db)
	exec(t, db.Pool, `GRANT SELECT, UPDATE ON webhook_endpoints, webhook_secrets, webhook_deliveries TO `+role)
	exec(t, db.Pool, `GRANT EXECUTE ON FUNCTION webhook_retry_now TO `+role)
	pool := newPool(t, db, asRole(role))
	tx := begin(t, pool)
	for _, sql := range []string{
		`SET LOCAL walhook.recording = 'on'`, `SET LOCAL walhook.noted = '` + uuid.NewString() + `'`,
		`UPDATE webhook_secrets SET expires_at = now()`, `UPDATE webhook_endpoints SET enabled = false`, `SELECT webhook_replay(id) FROM webhook_deliveries`,
		`UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour'`, fmt.Sprintf(`SELECT webhook_retry_now('%s')`, endpoint),
	} {
		exec(t, tx, sql)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{role + " deliveries.replayed - - 1", role + " deliveries.replayed - - 1", role + " deliveries.replayed - - 1", role + " endpoint.disabled org_1 endpoint 1",
		role + " secret.changed org_1 endpoint 1"}
	if got := audited(t, db); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	refused(t, pool, "permission denied for table webhook_audit", `DELETE FROM webhook_audit`)
}

// It is kept as long as deliveries.
func TestTheAuditIsDeleted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_audit (id, who, action) SELECT webhook_uuid_at(now() - n * interval '1 hour'), 'me', 'x' FROM generate_series(1, 50) AS n`)
	for _, want := range []int{43, 36, 29, 26, 26} {
		exec(t, db.Pool, `SELECT webhook_delete_old($1, 7)`, time.Now().Add(-26*time.Hour-30*time.Minute))
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_audit`); n != want {
			t.Errorf("%d rows are left, want %d", n, want)
		}
	}
}

// Version 6 had neither the audit nor the views for roles.
func TestUpgradeFromVersion6(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `DROP TABLE webhook_audit`)
	exec(t, db.Pool, `DROP VIEW webhook_ops_endpoints, webhook_tenant_endpoints, webhook_tenant_deliveries, webhook_tenant_attempts`)
	exec(t, db.Pool, `DROP FUNCTION webhook_endpoints_audit, webhook_secrets_audit, webhook_deliveries_audit, webhook_audit_who, webhook_ops_explain, webhook_url_host CASCADE`)
	exec(t, db.Pool, `CREATE OR REPLACE FUNCTION webhook_schema_version() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 6`)
	newEvent(t, begin(t, db.Pool), "org_1", "payment.failed") // which it does not wait for
	if err := store.New(db.Pool, db.Slot, 0).Migrate(t.Context(), readSchema(t)); err != nil {
		t.Fatal(err)
	}
	missing, extra := differences(column[string](t, pgtest.New(t).Pool, catalogue), column[string](t, db.Pool, catalogue))
	if len(missing)+len(extra) > 0 {
		t.Errorf("a fresh installation has\n%s\nthe upgraded one\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
	}
}

// A session keeps the plans of a trigger's statements. Those of an UPDATE of one endpoint do not
// suit one of thousands: they compared each row with each, which took minutes.
func TestManyEndpointsAreChangedAfterOne(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || g % 20, 'https://example.com/' || g FROM generate_series(1, 12000) AS g`)
	exec(t, db.Pool, `ANALYZE webhook_endpoints`)
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL statement_timeout = '1min'`) // it takes some seconds
	exec(t, tx, `UPDATE webhook_endpoints SET description = 'one' WHERE id = (SELECT id FROM webhook_endpoints LIMIT 1)`)
	exec(t, tx, `UPDATE webhook_endpoints SET description = 'all'`)
}

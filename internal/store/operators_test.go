package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// newOperators makes an endpoint of the organization ops with all_organizations. set is more of
// its row.
func newOperators(t testing.TB, db *pgtest.DB, set string) string {
	t.Helper()
	id := query[string](t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url, all_organizations) VALUES ('ops', 'https://ops.example.com/hook?token=hunter2', true) RETURNING id::text`)
	if set != "" {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET `+set+` WHERE id = $1`, id)
	}
	return id
}

// owedTo inserts an event, and says to which of the endpoints it is owed.
func owedTo(t testing.TB, db querier, organization, eventType, payload string, names map[string]string) string {
	t.Helper()
	var owed []string
	for _, id := range query[[]string](t, db, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, $3::text::jsonb) RETURNING endpoint_ids::text[]`,
		organization, eventType, payload) {
		owed = append(owed, names[id])
	}
	slices.Sort(owed)
	return strings.Join(owed, " ")
}

// Operators hear of every organization what walhook itself has to tell, and nothing else.
func TestOperatorsHearOfAllOrganizations(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `INSERT INTO webhook_event_types (name, category) VALUES ('internal.note', 'webhook')`)
	names := map[string]string{
		newEndpoint(t, db.Pool, "org_1"): "customer", newEndpoint(t, db.Pool, "org_1", "webhook.*", "payment.*"): "listener",
		newEndpoint(t, db.Pool, "ops"):                                 "colleague",
		newOperators(t, db, ""):                                        "all",
		newOperators(t, db, `event_types = '{*, payment.failed}'`):     "star",
		newOperators(t, db, `event_types = '{webhook.endpoint.*}'`):    "endpoints",
		newOperators(t, db, `event_types = '{webhook.test}'`):          "tests",
		newOperators(t, db, `event_types = '{payment.*, internal.*}'`): "nothing",
		newOperators(t, db, `filter = '$.url like_regex "b[.]com"'`):   "filtered",
		newOperators(t, db, `enabled = false`):                         "off",
		newOperators(t, db, `paused_at = now()`):                       "paused",
	}
	for _, c := range []struct{ organization, event, payload, want string }{
		{"org_1", "payment.failed", `{"url": "b.com"}`, "customer listener"},
		{"ops", "payment.failed", `{"url": "b.com"}`, "colleague"},
		{"org_1", "internal.note", `{}`, ""},
		{"org_1", outbox.TypeEndpointFailing, `{"url": "https://a.com"}`, "all endpoints listener paused star"},
		{"org_2", outbox.TypeEndpointRecovered, `{"url": "https://b.com"}`, "all endpoints filtered paused star"},
		{"ops", outbox.TypeEndpointDisabled, `{}`, "all endpoints paused star"},
		{"org_1", outbox.TypeDeliveryExhausted, `{}`, "all listener paused star"},
		{"org_2", outbox.TypeTest, `{}`, "all paused star tests"},
	} {
		if got := owedTo(t, db.Pool, c.organization, c.event, c.payload, names); got != c.want {
			t.Errorf("%s of %s is owed to %q, want %q", c.event, c.organization, got, c.want)
		}
	}
}

// The next event finds another flag, in both directions.
func TestAllOrganizationsIsInForceAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	id := newEndpoint(t, db.Pool, "ops")
	names := map[string]string{id: "ops"}
	look := func() string {
		return owedTo(t, db.Pool, "ops", "payment.failed", `{}`, names) + "/" + owedTo(t, db.Pool, "org_1", outbox.TypeTest, `{}`, names)
	}
	for _, c := range []struct{ flag, want string }{{"false", "ops/"}, {"true", "/ops"}, {"false", "ops/"}} {
		exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = `+c.flag+` WHERE id = $1`, id)
		if got := look(); got != c.want {
			t.Errorf("all_organizations = %s: its payment/another's test is owed to %q, want %q", c.flag, got, c.want)
		}
	}
}

// Who names an endpoint reaches that alone; nobody names another organization's.
func TestNamedEndpointsOfOperators(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	customer, operators := newEndpoint(t, db.Pool, "org_1"), newOperators(t, db, "")
	insert := `INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ('%s', '%s', '{}', ARRAY['%s']::uuid[])`
	for _, c := range []struct{ want, organization, event, endpoint string }{
		{"is not an endpoint of organization 'org_1'", "org_1", outbox.TypeTest, operators},
		{"is not an endpoint of organization 'org_1'", "org_1", "payment.failed", operators},
		{"all_organizations set, so it gets the types webhook.* and nothing else", "ops", "payment.failed", operators},
	} {
		refused(t, db.Pool, c.want, fmt.Sprintf(insert, c.organization, c.event, c.endpoint))
	}
	exec(t, db.Pool, fmt.Sprintf(insert, "ops", outbox.TypeTest, operators))

	sent := func(what store.TestWebhook) []string {
		t.Helper()
		event, _, err := st.SendTest(t.Context(), what)
		if err != nil {
			t.Fatal(err)
		}
		return column[string](t, db.Pool, `SELECT unnest(endpoint_ids)::text FROM webhook_outbox WHERE id = $1`, event)
	}
	if got := sent(store.TestWebhook{EventType: outbox.TypeTest, EndpointID: uuid.MustParse(customer)}); !slices.Equal(got, []string{customer}) {
		t.Errorf("a test of one endpoint went to %q, want %s alone", got, customer)
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET event_types = '{*, webhook.test}' WHERE id = $1`, customer)
	if got := sent(store.TestWebhook{EventType: outbox.TypeTest, OrganizationID: "org_1"}); !slices.Equal(got, []string{customer, operators}) {
		t.Errorf("a test of all went to %q, want %s and %s", got, customer, operators)
	}
	if got := sent(store.TestWebhook{EventType: "payment.failed"}); !slices.Equal(got, []string{customer}) { // of the only organization
		t.Errorf("a test payment went to %q, want %s", got, customer)
	}
	for endpoint, organization := range map[string]string{customer: "org_1", operators: "ops"} {
		event := query[string](t, db.Pool, `SELECT webhook_send_test($1)::text`, endpoint)
		if got := query[string](t, db.Pool, `SELECT organization_id || ' ' || endpoint_ids::text FROM webhook_outbox WHERE id = $1`, event); got != organization+" {"+endpoint+"}" {
			t.Errorf("webhook_send_test: %s", got)
		}
	}
}

// Each of walhook's own events looks at all endpoints of operators.
func TestEndpointsOfOperatorsAreBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	const most = "there are 20 such endpoints"
	const insert = `INSERT INTO webhook_endpoints (organization_id, url, all_organizations) SELECT 'ops', 'https://example.com', true FROM generate_series(1, %d)`
	refused(t, db.Pool, most, fmt.Sprintf(insert, 21))
	exec(t, db.Pool, fmt.Sprintf(insert, 20))
	refused(t, db.Pool, most, fmt.Sprintf(insert, 1))
	other := newEndpoint(t, db.Pool, "ops")
	refused(t, db.Pool, most, `UPDATE webhook_endpoints SET all_organizations = true WHERE id = $1`, other)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET description = 'changed', all_organizations = all_organizations`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = false WHERE id = (SELECT id FROM webhook_endpoints WHERE all_organizations LIMIT 1)`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = true WHERE id = $1`, other)
}

// The next look finds what an endpoint must not get any more, and cancels that alone.
func TestOperatorsNoMore(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newOperators(t, db, "")
	var ids []uuid.UUID
	for _, organization := range []string{"ops", "org_1"} {
		event := query[string](t, db.Pool, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, 'webhook.test', '{}') RETURNING id::text`, organization)
		ids = append(ids, uuid.MustParse(newDelivery(t, db.Pool, event, endpoint, "pending")))
	}
	check := func(reassigned int, want ...string) {
		t.Helper()
		n := 0
		if err := st.Due(t.Context(), []webhook.Page{{EndpointID: uuid.MustParse(endpoint), Limit: 10}}, func(d *webhook.Due) {
			if d.Reassigned {
				n++
			}
		}); err != nil || n != reassigned {
			t.Errorf("%d are another organization's, want %d; %v", n, reassigned, err)
		}
		if err := st.CancelReassigned(t.Context(), fence, ids); err != nil {
			t.Fatal(err)
		}
		for i, id := range ids {
			if got := statusOf(t, db, id); got != want[i] {
				t.Errorf("%d: %s, want %s", i, got, want[i])
			}
		}
	}
	check(0, "pending 0", "pending 0")
	exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = false WHERE id = $1`, endpoint)
	check(1, "pending 0", "cancelled 0")
}

// A tenant sees neither the endpoint of operators nor what that answered about it. Operators see both.
func TestTenantsDoNotSeeOperators(t *testing.T) {
	t.Parallel()
	db := rolesServer(t, readSchema(t))
	if err := store.New(db.Pool, db.Slot, disableAfter).ApplyRoles(t.Context(), readRoles(t)); err != nil {
		t.Fatal(err)
	}
	listener, operators := newEndpoint(t, db.Pool, "org_1", "webhook.*"), newOperators(t, db, "")
	event := query[string](t, db.Pool, `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'webhook.test', '{}') RETURNING id::text`)
	heard, other := newDelivery(t, db.Pool, event, listener, "success"), newDelivery(t, db.Pool, event, operators, "failed")
	customer, paid := newEndpoint(t, db.Pool, "org_1"), newEvent(t, db.Pool, "org_1", "payment.failed")
	payment := newDelivery(t, db.Pool, paid, customer, "success")

	see := func() {
		t.Helper()
		for _, role := range []string{"walhook_tenant", "walhook_backend"} {
			tenant := begin(t, asLogin(t, db, role))
			for setting, want := range map[string][]string{"org_1": {heard, payment}, "ops": {}} {
				exec(t, tenant, `SELECT set_config('walhook.organization', $1, true)`, setting)
				for _, sql := range []string{`SELECT id::text FROM webhook_tenant_deliveries ORDER BY id`, `SELECT delivery_id::text FROM webhook_tenant_attempts ORDER BY delivery_id`} {
					if got := column[string](t, tenant, sql); !slices.Equal(got, want) {
						t.Errorf("%s of %q sees %q by %s, want %q", role, setting, got, sql, want)
					}
				}
			}
			if role == "walhook_backend" {
				exec(t, tenant, `SET LOCAL walhook.organization = 'org_1'`)
				tag, err := tenant.Exec(t.Context(), `UPDATE webhook_tenant_deliveries SET status = 'pending', next_attempt_at = now()`)
				if err != nil || tag.RowsAffected() != 2 {
					t.Errorf("the page replays %d, want 2: %v", tag.RowsAffected(), err)
				}
			}
			if err := tenant.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := query[string](t, db.Pool, `SELECT concat_ws(' ', events_24h, deliveries_24h, success_24h, failed_24h) FROM webhook_stats('org_1')`); got != "2 2 2 0" {
			t.Errorf("webhook_stats: %s, want 2 events and 2 deliveries with success", got)
		}
	}
	see()
	explained := func(event, endpoint string) string {
		return query[string](t, db.Pool, `SELECT coalesce(url, '-') || ' ' || reason FROM webhook_explain($1) WHERE endpoint_id = $2`, event, endpoint)
	}
	if got := explained(event, operators); !strings.HasPrefix(got, "- owed: failed") || !strings.HasSuffix(got, "(an endpoint of operators)") {
		t.Error(got)
	}
	if got := explained(event, listener); got != "https://example.com/hook owed: success" {
		t.Error(got)
	}
	if n := len(column[string](t, db.Pool, `SELECT endpoint_id::text FROM webhook_explain($1)`, paid)); n != 2 {
		t.Errorf("a payment is explained by %d endpoints, want the organization's 2", n)
	}
	if got := explained(newEvent(t, db.Pool, "ops", "payment.failed"), operators); got != "https://ops.example.com/hook?token=hunter2 not owed: all_organizations is set, so it gets the types webhook.* and nothing else" {
		t.Error(got)
	}
	ops := asLogin(t, db, "walhook_ops")
	if got := query[int](t, ops, `SELECT count(*) FROM webhook_deliveries WHERE id = '`+other+`'`); got != 1 {
		t.Error("operators do not see it")
	}
	if !query[bool](t, ops, `SELECT webhook_replay('`+other+`')`) {
		t.Error("operators cannot replay it")
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = false WHERE id = $1`, operators)
	if got := explained(event, operators); !strings.HasPrefix(got, "- ") || !strings.HasSuffix(got, "(the endpoint is another organization's)") {
		t.Error(got)
	}
	see()
	exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, operators)
	see()
}

// An event of walhook's own finds the endpoints of operators among any number of others, by a plan
// of any time. Other events do not look.
func TestOperatorsPlans(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `ALTER TABLE webhook_endpoints SET (autovacuum_enabled = off)`)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	const insert = `INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', '%s', '{}')`
	touched := func(eventType string) int {
		t.Helper()
		var explained []explained
		if err := json.Unmarshal([]byte(query[string](t, conn, `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) `+fmt.Sprintf(insert, eventType))), &explained); err != nil {
			t.Fatal(err)
		}
		return explained[0].Plan.Hit + explained[0].Plan.Read
	}
	for range 10 { // the plans are those of an empty table from now on
		exec(t, conn, fmt.Sprintf(insert, outbox.TypeTest))
	}
	exec(t, db.Pool, `ALTER TABLE webhook_endpoints DISABLE TRIGGER USER;
		INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_' || n, 'https://example.com' FROM generate_series(1, 20000) n;
		ALTER TABLE webhook_endpoints ENABLE TRIGGER USER`)
	for range 20 {
		newOperators(t, db, "")
	}
	for _, state := range []string{"with the plans of an empty table", "never analyzed", "analyzed"} {
		switch state {
		case "never analyzed":
			exec(t, conn, `DISCARD PLANS`)
		case "analyzed":
			exec(t, db.Pool, `ANALYZE webhook_endpoints`)
		}
		own, payment := touched(outbox.TypeTest), touched("payment.failed")
		for range 10 { // until the plan is generic, and its caches are full
			own, payment = min(own, touched(outbox.TypeTest)), min(payment, touched("payment.failed"))
		}
		t.Logf("%s: an event of walhook's own touches %d blocks, a payment %d", state, own, payment)
		if own > 100 || payment > 40 {
			t.Errorf("%s: %d and %d blocks, want 100 and 40 at most", state, own, payment)
		}
	}
}

package store_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A backlog is rows that wait, as they may stand after days with endpoints that do
// not answer: spread over three weeks of partitions, the DEFAULT one included.
type backlog struct {
	endpoints []uuid.UUID
	waiting   []uuid.UUID // some of the rows, of all days
	events    []uuid.UUID // theirs
	disabled  []uuid.UUID // endpoints whose rows are still to be cancelled
}

const (
	backlogEndpoints = 200
	backlogDays      = 20
	eventsOwedTo     = 4
)

func newBacklog(t testing.TB, db *pgtest.DB, rows int) *backlog {
	t.Helper()
	b := emptyBacklog(t, db)
	b.fill(t, db, rows)
	return b
}

// emptyBacklog has the endpoints and the partitions, and ids that no row has.
func emptyBacklog(t testing.TB, db *pgtest.DB) *backlog {
	t.Helper()
	exec(t, db.Pool, `INSERT INTO webhook_endpoints (organization_id, url) SELECT 'org_1', 'https://example.com' FROM generate_series(1, $1::int) n`, backlogEndpoints)
	exec(t, db.Pool, `SELECT webhook_add_partition(p, (now() AT TIME ZONE 'UTC')::date - n) FROM generate_series(2, $1::int - 1) n, unnest('{webhook_outbox,webhook_deliveries}'::text[]) p`, backlogDays)
	b := &backlog{endpoints: column[uuid.UUID](t, db.Pool, `SELECT id FROM webhook_endpoints ORDER BY id`)}
	for range 1000 {
		event := uuid.Must(uuid.NewV7())
		b.events = append(b.events, event)
		b.waiting = append(b.waiting, outbox.DeliveryID(event, b.endpoints[0]))
	}
	return b
}

// fill inserts rows. It changes no table, for that would have plans made anew.
func (b *backlog) fill(t testing.TB, db *pgtest.DB, rows int) {
	t.Helper()
	exec(t, db.Pool, `WITH e AS (SELECT array_agg(id ORDER BY id) AS ids FROM webhook_endpoints)
		INSERT INTO webhook_outbox (id, organization_id, event_type, payload, endpoint_ids)
		SELECT webhook_delivery_id(webhook_uuid_at(now() - n::float8 / $1 * ($2 + 0.5) * interval '1 day'), gen_random_uuid()), 'org_1', 'payment.failed', '{}',
		       ARRAY(SELECT e.ids[1 + (n * 7 + m * 50) % $3] FROM generate_series(0, $4 - 1) m)
		FROM e, generate_series(1, $1::int) n`, rows/eventsOwedTo, backlogDays, backlogEndpoints, eventsOwedTo)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, next_attempt_at)
		SELECT webhook_delivery_id(o.id, e.id), o.id, e.id, 'org_1', 'payment.failed', CASE WHEN random() < 0.5 THEN 'pending' ELSE 'retrying' END, 1, now() + (random() - 0.5) * interval '4 hours'
		FROM webhook_outbox o, unnest(o.endpoint_ids) e(id)`)
	b.waiting = column[uuid.UUID](t, db.Pool, `SELECT d.id FROM webhook_deliveries AS d JOIN webhook_outbox AS o ON o.id = d.event_id ORDER BY md5(d.id::text) LIMIT 1000`)
	b.events = column[uuid.UUID](t, db.Pool, `SELECT event_id FROM unnest($1::uuid[]) AS r(id) JOIN webhook_deliveries d ON d.id = r.id`, b.waiting)
	if len(b.waiting) != 1000 || len(b.events) != 1000 {
		t.Fatalf("picked %d rows", len(b.waiting))
	}
}

func (b *backlog) disable(t testing.TB, db *pgtest.DB) {
	t.Helper()
	b.disabled = b.endpoints[backlogEndpoints/2:]
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false WHERE id = ANY($1)`, b.disabled)
}

func (b *backlog) records(n int, status webhook.Status, attempts int) []webhook.Record {
	rs := make([]webhook.Record, n)
	for i := range rs {
		rs[i] = webhook.Record{ID: b.waiting[i], EventID: b.events[i], EndpointID: b.endpoints[0], OrganizationID: "org_1", EventType: "payment.failed"}
		rs[i] = outcome(rs[i], status, attempts, 500)
	}
	return rs
}

// fresh is records of events of now.
func (b *backlog) fresh(n int) []webhook.Record {
	rs := b.records(n, webhook.Success, 1)
	for i := range rs {
		rs[i].EventID = uuid.Must(uuid.NewV7())
		rs[i].ID = outbox.DeliveryID(rs[i].EventID, rs[i].EndpointID)
	}
	return rs
}

// backlogPartitions is how many partitions the deliveries have: those of the past, two weeks ahead and the DEFAULT one.
const backlogPartitions = backlogDays + 15 + 1

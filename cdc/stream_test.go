package cdc

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

func TestEventsComeAsTheyWereCommitted(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	s := r.streaming(1)
	if !s.SlotCreated || s.SystemID == "" || s.Timeline != 1 || s.ServerVersion < 140000 || s.Confirmed == 0 {
		t.Errorf("session %+v", s)
	}
	endpoints := newUUIDs(2)
	id := newUUIDs(1)[0]
	d.exec(`INSERT INTO webhook_outbox (id, organization_id, event_type, payload, created_at, endpoint_ids)
		VALUES ($1, 'örg', 'org.created', '{"b": 1, "a": "é"}', '2026-11-23 15:16:17.123456+03', $2)`, id, endpoints)
	r.wantPayloads(`{"a": "é", "b": 1}`)
	events, _, _ := r.snapshot()
	e := events[0]
	if e.ID != id || e.OrganizationID != "örg" || e.Type != "org.created" || !slices.Equal(e.EndpointIDs, endpoints) ||
		!e.CreatedAt.Equal(time.Date(2026, 11, 23, 12, 16, 17, 123456000, time.UTC)) {
		t.Errorf("got %+v", e)
	}
	r.eventually("the confirmation", func() bool {
		_, _, ends := r.snapshot()
		return len(ends) > 0 && d.confirmed() >= ends[0]
	})
	if got := r.Status(); got.Role != Streaming || got.Err != "" || got.LastMessage.IsZero() {
		t.Errorf("status %+v", got)
	}
	if err := r.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestOnlyCommitsInCommitOrder(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	ctx := context.Background()

	const insert = `INSERT INTO webhook_outbox (payload) VALUES (jsonb_build_object('n', $1::int))`
	first, err := d.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Exec(ctx, insert, 2); err != nil {
		t.Fatal(err)
	}
	d.insert(1) // commits before the transaction that began before
	if err := first.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	d.exec(`DO $$ BEGIN
		INSERT INTO webhook_outbox (payload) VALUES ('{"n": 3}');
		BEGIN INSERT INTO webhook_outbox (payload) VALUES ('"savepoint"'); RAISE 'back'; EXCEPTION WHEN raise_exception THEN END;
		INSERT INTO webhook_outbox (payload) VALUES ('{"n": 4}');
	END $$`)
	rolledBack, err := d.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rolledBack.Exec(ctx, insert, 99); err != nil {
		t.Fatal(err)
	}
	if err := rolledBack.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	d.insert(5)
	r.wantPayloads(number(1), number(2), number(3), number(4), number(5))
}

func TestALargeTransactionComesInPieces(t *testing.T) {
	t.Parallel()
	d := newDatabase(t)
	r := start(t, d.config())
	r.streaming(1)
	const rows = 100_000
	d.exec(`INSERT INTO webhook_outbox (payload) SELECT jsonb_build_object('n', n, 'x', repeat('x', 500)) FROM generate_series(1, $1::int) n`, rows)
	d.insert(0)
	r.eventually("all events", func() bool { return r.count() == rows+1 })
	for i, p := range r.payloads()[:rows] {
		if want := fmt.Sprintf(`{"n": %d,`, i+1); p[:len(want)] != want {
			t.Fatalf("event %d is %.40s", i, p)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.largest != batchEvents {
		t.Errorf("largest batch %d", r.largest)
	}
	withEnd := 0
	for _, b := range r.batches {
		if b.End != 0 && !b.CommitTime.IsZero() {
			withEnd++
		}
		if b.Session == nil && b.End == 0 && b.CommitTime.IsZero() {
			t.Fatalf("batch without commit time: %+v", b)
		}
	}
	if withEnd != 2 {
		t.Errorf("%d transactions ended", withEnd)
	}
}

func TestTheSchemaAsItIs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	d := &database{TB: t, url: db.URL, slot: db.Slot, pool: db.Pool}
	r := start(t, d.config())
	r.streaming(1)
	d.exec(`INSERT INTO webhook_endpoints (organization_id, url, event_types) VALUES ('org_1', 'https://example.com/hook', '{payment.*}')`)
	d.exec(`INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ('org_1', 'payment.succeeded', '{"amount": 1}')`)
	r.wantPayloads(`{"amount": 1}`)
	events, _, _ := r.snapshot()
	e := events[0]
	if len(e.EndpointIDs) != 1 || e.EndpointIDs[0].String() != d.value(`SELECT id FROM webhook_endpoints`) ||
		e.ID.String() != d.value(`SELECT id FROM webhook_outbox`) || e.OrganizationID != "org_1" || e.Type != "payment.succeeded" {
		t.Errorf("got %+v", e)
	}
}

// BenchmarkStream is a backlog of committed events on its way through the stream.
func BenchmarkStream(b *testing.B) {
	const rows = 100_000
	d := newDatabase(b)
	ids := newUUIDs(2)
	made := start(b, d.config()) // makes the slot
	made.streaming(1)
	if err := made.end(); err != nil {
		b.Fatal(err)
	}
	d.exec(`DO $$ BEGIN
		FOR i IN 1 .. 100000 LOOP
			INSERT INTO webhook_outbox (payload, endpoint_ids) VALUES (jsonb_build_object('x', repeat('x', 1000)), '{` + ids[0].String() + `,` + ids[1].String() + `}');
			COMMIT;
		END LOOP;
	END $$`)
	for b.Loop() {
		s := New(d.config())
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		n := 0
		for batch := range s.Batches() {
			if n += len(batch.Events); n == rows {
				cancel()
			}
		}
		if err := <-done; err != nil || n != rows {
			b.Fatalf("%d events: %v", n, err)
		}
		cancel()
	}
	b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "events/s")
}

package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/outbox"
)

const (
	strayEvents = 40_000
	strayDays   = 29
)

// dropDays leaves no day with partitions, as after weeks without walhook.
const dropDays = `
DO $$
DECLARE part regclass;
BEGIN
    FOR part IN SELECT i.inhrelid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent IN ('webhook_outbox'::regclass, 'webhook_deliveries'::regclass) AND c.relname NOT LIKE '%default' LOOP
        EXECUTE format('DROP TABLE %s', part);
    END LOOP;
END $$`

// The events are of many days. Their deliveries have failed once and are due again.
const (
	insertStrays = `
INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
SELECT webhook_delivery_id(webhook_uuid_at(now() - (1 + n % $1::int) * interval '24 hours'), gen_random_uuid()), '` + tallied + `stray', 'payment.succeeded', '{}'
FROM generate_series(1, $2::int) AS n`
	insertStrayRows = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, error, next_attempt_at)
SELECT webhook_delivery_id(o.id, e.id), o.id, e.id, o.organization_id, o.event_type, 'retrying', 1, 'answered 500', now()
FROM webhook_outbox o CROSS JOIN unnest(o.endpoint_ids) AS e(id) WHERE o.organization_id = '` + tallied + `stray'`
)

// movedRows has the upkeep move the rows of four weeks into new partitions, while their
// deliveries are due and applications insert events of the same days.
func movedRows(t *testing.T, s Setup) {
	const clients, waitsAtMost, movedWithin = 8, time.Second, 4 * time.Minute
	x := newTrial(t, s)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(sink.Close)
	p := x.start()
	x.ready()
	x.stopped(p)
	x.exec(dropDays)
	x.exec(`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('`+tallied+`stray', $1)`, sink.URL)
	x.exec(insertStrays, strayDays, strayEvents)
	x.exec(insertStrayRows)

	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var writing sync.WaitGroup
	var mu sync.Mutex
	var slowest time.Duration
	for range clients {
		writing.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				_, err := x.pool.Exec(context.WithoutCancel(ctx), `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, '`+tallied+`nobody', 'payment.succeeded', '{}')`,
					outbox.DeliveryID(outbox.TimeID(time.Now().AddDate(0, 0, -rand.N(strayDays))), newID(0)))
				mu.Lock()
				slowest = max(slowest, time.Since(began))
				x.expect(err == nil, "an INSERT of an application failed: %v", err)
				mu.Unlock()
				time.Sleep(rand.N(20 * time.Millisecond))
			}
		})
	}
	began := time.Now()
	x.start()
	x.eventually(movedWithin, "no row is left in the DEFAULT partitions", func() bool {
		var strays bool
		err := x.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM webhook_outbox_default) OR EXISTS (SELECT FROM webhook_deliveries_default)`).Scan(&strays)
		return err == nil && !strays
	})
	moved := time.Since(began)
	leave()
	writing.Wait()
	stop()
	x.expect(slowest <= waitsAtMost, "an INSERT took %s", slowest)
	x.drain(time.Minute)
	var delivered, cancelled int
	if err := x.pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status = 'cancelled')
		FROM webhook_deliveries WHERE organization_id = '`+tallied+`stray'`).Scan(&delivered, &cancelled); err != nil {
		t.Fatal(err)
	}
	x.expect(delivered == strayEvents && cancelled == 0, "%d of %d deliveries of past days are a success, and %d were cancelled", delivered, strayEvents, cancelled)
	x.finish(time.Minute, fmt.Sprintf("strays=%d moved=%.1fs slowest INSERT=%s", strayEvents, moved.Seconds(), slowest.Round(time.Millisecond)))
}

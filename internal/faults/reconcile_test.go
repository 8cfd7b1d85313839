package faults

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

// comparedWithin bounds a comparison of events with deliveries.
const comparedWithin = time.Minute

// The comparison is between many endpoints of one organization and many events for all
// of them.
const (
	comparedEndpoints = 1000
	comparedEvents    = 2500
)

// The endpoints get almost nothing, because the scenario measures the comparison and not
// two million requests.
const insertCompared = `
WITH organization AS (SELECT '` + tallied + `compared' AS id), endpoints AS (
    INSERT INTO webhook_endpoints (organization_id, url, rate_per_second)
    SELECT id, $1, 0.01 FROM organization, generate_series(1, $2::int) RETURNING organization_id
)
SELECT count(*) FROM endpoints`

const insertComparedEvents = `
INSERT INTO webhook_outbox (organization_id, event_type, payload)
SELECT '` + tallied + `compared', 'payment.succeeded', jsonb_build_object('n', n) FROM generate_series(1, $1::int) AS n`

// reconcileMany loses the slot while very many owed deliveries have no row, and again when
// they all have one.
func reconcileMany(t *testing.T, s Setup) {
	const events = comparedEvents
	endpoints := either(comparedEndpoints, comparedEndpoints/slower)
	x := newTrial(t, s)
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(sink.Close)
	p := x.start()
	x.ready()
	x.monitor.pause(true) // the new slot's position is beyond what has rows
	x.stopped(p)
	x.dropSlot()
	x.exec(insertCompared, sink.URL, endpoints)
	x.exec(insertComparedEvents, events)

	began := time.Now()
	p = x.start()
	x.eventually(20*time.Second, "the metric says that there is something to compare", func() bool { return x.pending(p) == 1 })
	missing := x.compared(began)
	x.expect(x.recorded() == events*endpoints, "there are %d rows, want %d", x.recorded(), events*endpoints)
	x.stopped(p)
	x.dropSlot()

	began = time.Now()
	p = x.start()
	whole := x.compared(began)
	x.stopped(p)
	x.exec(`DELETE FROM webhook_outbox WHERE starts_with(organization_id, '` + tallied + `')`)
	x.exec(`TRUNCATE webhook_deliveries`)
	x.start()
	x.monitor.pause(false)
	<-x.drive(Load{Rate: *rate, Duration: 3 * time.Second})
	x.finish(time.Minute, fmt.Sprintf("owed=%d missing=%.1fs whole=%.1fs", events*endpoints, missing.Seconds(), whole.Seconds()))
}

func (x *Trial) stopped(p *Process) {
	x.Helper()
	if _, err := p.stop(timeout + exitMargin); err != nil {
		x.Fatal(err)
	}
}

// pending is the metric's value; -1: none.
func (x *Trial) pending(p *Process) float64 {
	value, there := p.metric(x.Context(), "walhook_reconcile_pending")
	if !there {
		return -1
	}
	return value
}

// compared waits until a walhook that has recreated its slot has compared all events.
func (x *Trial) compared(began time.Time) time.Duration {
	x.Helper()
	x.eventually(3*comparedWithin, "walhook has compared everything", func() bool {
		var done bool
		err := x.pool.QueryRow(x.Context(), `SELECT s.reconcile_from IS NULL AND r.active FROM webhook_state s JOIN pg_replication_slots r ON r.slot_name = s.slot
			WHERE s.slot = $1`, slotName).Scan(&done)
		return err == nil && done
	})
	took := time.Since(began)
	x.expect(took <= comparedWithin, "the comparison took %s", took)
	return took
}

// reconcileAtTheHead loses the slot while there is always something in flight.
func reconcileAtTheHead(t *testing.T, s Setup) {
	const perSecond, before, slow = 50, 3 * time.Second, 300 * time.Millisecond
	x := newTrial(t, s)
	x.receiver.does(func(*oracle.Request) { time.Sleep(slow) })
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: perSecond})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true)
	over := x.crash(nil)
	x.dropSlot()
	took := x.compared(time.Now())
	over()
	x.eventually(5*time.Second, "the metric says that there is nothing to compare", func() bool { return x.pending(p) == 0 })
	x.monitor.pause(false)
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("compared=%.1fs", took.Seconds()))
}

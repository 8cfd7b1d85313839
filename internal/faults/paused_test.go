package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/oracle"
)

// paused pauses the first endpoint under load, and kills walhook meanwhile. Ten thousand
// deliveries wait in the table, the others' are sent, the slot moves on, and nothing is
// counted. After the pause the rows come in due order.
func paused(t *testing.T, s Setup) {
	const (
		settles   = 3 * time.Second // what had begun before the pause was in force has arrived
		outOfLine = 512             // places by which requests overtake each other: all that may be prefetched, and under way
	)
	rows := either(10_000, 1_000)
	x := newTrial(t, s)
	x.receiver.failShare = 0
	id := x.endpoints[0].ID
	p := x.start()
	x.ready()
	<-x.drive(Load{Rate: *rate / 2, Duration: lasting(5 * time.Second)})
	stop := x.driveOn(Load{Rate: *rate / 2})
	x.exec(`SELECT webhook_pause($1)`, id)
	<-time.After(settles)
	before := len(x.requestsTo(0))
	stop()
	if err := x.driver.copy(x.Context(), x.driver.newEvents(rows), false); err != nil {
		x.Fatal(err)
	}
	waiting := func() int {
		return x.count(`SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL AND endpoint_id = (SELECT id FROM webhook_endpoints WHERE paused_at IS NOT NULL)`)
	}
	x.eventually(x.patient(time.Minute), "what a pause holds waits in the table", func() bool { return waiting() >= rows })

	over := x.crash(p)
	if err := p.kill(); err != nil {
		x.Fatal(err)
	}
	over()
	x.start()
	x.ready()
	end := insertLSN(x.Context(), x.pool)
	x.eventually(x.patient(time.Minute), "the slot moves on", func() bool { return x.slot().Confirmed >= end })
	x.eventually(x.patient(time.Minute), "the others get theirs", func() bool {
		return x.count(`SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL`) == waiting()
	})
	x.expect(len(x.requestsTo(0)) == before, "%d requests were sent to a paused endpoint", len(x.requestsTo(0))-before)
	n := x.count(`SELECT count(*) FROM webhook_deliveries WHERE status IN ('failed', 'cancelled') OR status IN ('pending', 'retrying') AND attempts > 0`)
	x.expect(n == 0, "%d deliveries are charged or given up", n)
	n = x.count(`SELECT count(*) FROM webhook_status WHERE oldest_due_at IS NOT NULL`)
	x.expect(n == 0, "what a pause holds is overdue")

	line := x.dueInLine(id)
	x.exec(`SELECT webhook_resume($1)`, id)
	took := x.drain(2 * time.Minute)
	x.expect(len(line) >= rows, "%d waited", len(line))
	most := 0
	for i, r := range x.requestsTo(0)[before:] {
		place, waited := line[r.Delivery]
		if !waited {
			x.expect(false, "delivery %s was sent, and did not wait", r.Delivery)
			break
		}
		most = max(most, i-place, place-i)
	}
	x.expect(most <= outOfLine, "one came %d places out of line", most)
	x.finish(time.Minute, fmt.Sprintf("waited=%d drained=%.1fs out of line=%d", len(line), took.Seconds(), most))
}

// requestsTo returns the requests that an endpoint has got, in order of arrival.
func (x *Trial) requestsTo(endpoint int) (to []oracle.Request) {
	_, all := x.journal.Copy()
	for _, r := range all {
		if r.Endpoint == endpoint {
			to = append(to, r)
		}
	}
	return to
}

// dueInLine returns an endpoint's waiting deliveries, each with its place in due order.
func (x *Trial) dueInLine(endpoint uuid.UUID) map[uuid.UUID]int {
	x.Helper()
	found, err := x.pool.Query(x.Context(), `SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND next_attempt_at IS NOT NULL ORDER BY next_attempt_at, id`, endpoint)
	if err != nil {
		x.Fatal(err)
	}
	defer found.Close()
	line := map[uuid.UUID]int{}
	for found.Next() {
		var id uuid.UUID
		if err := found.Scan(&id); err != nil {
			x.Fatal(err)
		}
		line[id] = len(line)
	}
	return line
}

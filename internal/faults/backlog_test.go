package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/walhook/walhook/internal/oracle"
)

// passWithin bounds how long a backlog may take: 2,000 events a second, a quarter of what
// two cores do that PostgreSQL and the receivers share.
func passWithin() time.Duration {
	const perSecond, beside = 2000, time.Minute
	return beside + time.Duration(*many)*time.Second/perSecond
}

// crowd is the number of organizations in a tally. Each has one endpoint.
const crowd = 50

// newCrowd makes a trial with a crowd, a tally for all of it, and the setup's endpoints.
func newCrowd(t *testing.T, s Setup, hanging bool) (*Trial, *Tally) {
	t.Helper()
	y := newTally(*many, hanging)
	t.Cleanup(y.close)
	var endpoints []oracle.Endpoint
	for i := range crowd {
		endpoints = append(endpoints, oracle.Endpoint{Org: fmt.Sprintf("%s%d", tallied, i), Types: []string{"*"}, URL: y.url(i)})
	}
	s.Endpoints = append(endpoints, s.Endpoints...)
	x := newTrial(t, s)
	y.serve(x.endpoints[:crowd])
	return x, y
}

const insertMany = `
WITH inserted AS (
    INSERT INTO webhook_outbox (organization_id, event_type, payload)
    SELECT '` + tallied + `' || n % $1::int, 'payment.succeeded', jsonb_build_object('n', n, 'pad', $2::text)
    FROM generate_series($3::int, $4::int - 1) AS n
    RETURNING id, endpoint_ids
)
SELECT array_agg(webhook_delivery_id(id, endpoint_ids[1])) FROM (SELECT * FROM inserted ORDER BY id DESC LIMIT $5) AS last`

// insertMany inserts the tally's events, perTransaction at a time.
func (x *Trial) insertMany(perTransaction int) (took time.Duration) {
	x.Helper()
	const sampled = 500 // the last ones of each transaction, for the monitor
	began := time.Now()
	for first := 0; first < *many; first += perTransaction {
		var c Chunk
		if err := x.pool.QueryRow(x.Context(), insertMany, crowd, padding, first, min(first+perTransaction, *many), sampled).Scan(&c.deliveries); err != nil {
			x.Fatal(err)
		}
		c.bound = insertLSN(x.Context(), x.pool)
		x.monitor.add(c)
		x.tallied += min(perTransaction, *many-first)
	}
	return time.Since(began)
}

// Deliveries that are owed and have no row: there must be none. If the numbers agree,
// there is then no row beyond.
const (
	selectTalliedRows = `
SELECT count(*), count(*) FILTER (WHERE status = 'success'), count(*) FILTER (WHERE status IN ('pending', 'retrying'))
FROM webhook_deliveries WHERE starts_with(organization_id, '` + tallied + `')`
	selectTalliedRowless = `
SELECT count(*) FROM webhook_outbox o CROSS JOIN unnest(o.endpoint_ids) AS owed(endpoint_id)
LEFT JOIN webhook_deliveries d ON d.id = webhook_delivery_id(o.id, owed.endpoint_id)
WHERE starts_with(o.organization_id, '` + tallied + `') AND d.id IS NULL`
)

// talliedRows expects a row for each of the tally's events, and returns how many are a
// success and how many wait.
func (x *Trial) talliedRows() (success, waiting int) {
	x.Helper()
	var rows, missing int
	if err := x.pool.QueryRow(x.Context(), selectTalliedRows).Scan(&rows, &success, &waiting); err != nil {
		x.Fatal(err)
	}
	if err := x.pool.QueryRow(x.Context(), selectTalliedRowless).Scan(&missing); err != nil {
		x.Fatal(err)
	}
	x.expect(rows == *many && missing == 0, "there are %d rows, want %d; %d deliveries have none", rows, *many, missing)
	return success, waiting
}

// judge expects that every event was sent and recorded, and that no process repeated more
// than the crash before it allows.
func (y *Tally) judge(x *Trial) {
	x.Helper()
	success, _ := x.talliedRows()
	x.expect(success == *many, "%d of %d rows are a success", success, *many)
	x.expect(y.lost() == 0, "no request came for %d events", y.lost())
	for _, found := range y.tooMany(x.crashes, x.began()) {
		x.expect(false, "%s", found)
	}
	y.judgeRequests(x)
}

func (y *Tally) judgeRequests(x *Trial) {
	x.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.wrong) > 0 {
		x.expect(false, "%d requests are wrong: %s", len(y.wrong), y.wrong[0])
	}
}

// perTransaction is the size of a busy application's transactions.
const perTransaction = 1000

// backlogHealthy starts walhook with far more waiting events than fit into memory.
func backlogHealthy(t *testing.T, s Setup) {
	x, y := newCrowd(t, s, false)
	inserted := x.insertMany(perTransaction)
	began := time.Now()
	x.start()
	x.ready()
	x.eventually(passWithin(), "every event has arrived", func() bool { return y.lost() == 0 })
	came := time.Since(began)
	x.drain(time.Minute)
	y.judge(x)
	x.finish(time.Minute, fmt.Sprintf("many=%d inserted=%.0fs came=%.1fs per second=%.0f duplicates=%d", *many, inserted.Seconds(), came.Seconds(),
		float64(*many)/came.Seconds(), y.beyond.Load()))
}

// movesWithin bounds how long the slot may take to pass a backlog that nobody answers:
// two minutes for a million events, and the time of a start.
func movesWithin() time.Duration {
	const aMillion, million, start = 2 * time.Minute, 1_000_000, 20 * time.Second
	return max(start, aMillion*time.Duration(*many)/million)
}

// backlogHanging expects that the slot passes a backlog whose endpoints never answer. In
// the end, what waits in the table is cancelled.
func backlogHanging(t *testing.T, s Setup) {
	const stoodAtMost = time.Minute
	s.Schedule = "1h" // so that nothing fails for good meanwhile
	x, y := newCrowd(t, s, true)
	inserted := x.insertMany(perTransaction)
	end := insertLSN(t.Context(), x.pool)
	began := time.Now()
	x.start()
	x.ready()
	stood := x.passes(end)
	passed := time.Since(began)
	x.expect(passed <= movesWithin(), "the slot has passed every event after %s", passed)
	x.expect(stood <= stoodAtMost, "the slot stood for %s", stood)
	success, waiting := x.talliedRows()
	x.expect(success == 0 && waiting == *many, "%d rows are a success and %d wait, of %d", success, waiting, *many)
	sent := y.heard.Load() + y.beyond.Load()
	close(y.hanging)
	x.exec(`UPDATE webhook_endpoints SET enabled = false`)
	cancelled := x.drain(5 * time.Minute)
	y.judgeRequests(x)
	x.finish(time.Minute, fmt.Sprintf("many=%d inserted=%.0fs passed=%.1fs per second=%.0f stood=%.1fs sent=%d cancelled=%.1fs", *many, inserted.Seconds(), passed.Seconds(),
		float64(*many)/passed.Seconds(), stood.Seconds(), sent, cancelled.Seconds()))
}

// passes waits until the slot has passed a position, and returns the longest time without
// a move: the echo that proves the first rows durable lies in the WAL behind the whole
// backlog.
func (x *Trial) passes(end pglogrepl.LSN) (stood time.Duration) {
	x.Helper()
	confirmed, moved := x.slot().Confirmed, time.Now()
	x.eventually(passWithin(), "the slot has passed every event", func() bool {
		if now := x.slot().Confirmed; now > confirmed {
			stood = max(stood, time.Since(moved))
			confirmed, moved = now, time.Now()
		}
		return confirmed >= end
	})
	return stood
}

// hugeTransaction kills walhook in the middle of a transaction of a million rows. Each
// new process reads it from its beginning.
func hugeTransaction(t *testing.T, s Setup) {
	x, y := newCrowd(t, s, false)
	p := x.start()
	x.ready()
	inserted := x.insertMany(*many)
	began := time.Now()
	var killed []string
	for _, percent := range []int{10, 50, 90} {
		x.eventually(passWithin(), fmt.Sprintf("%d%% are recorded", percent), func() bool { return x.recorded() >= *many/100*percent })
		at := x.recorded()
		x.expect(at < *many, "all were recorded before walhook was killed at %d%%", percent)
		over := x.crash(p)
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
		over()
		p = x.start()
		killed = append(killed, fmt.Sprintf("%.0f%%", float64(at)*100/float64(*many)))
	}
	x.eventually(passWithin(), "every event has arrived", func() bool { return y.lost() == 0 })
	came := time.Since(began)
	x.drain(time.Minute)
	y.judge(x)
	x.finish(time.Minute, fmt.Sprintf("many=%d inserted=%.0fs killed at %v came=%.1fs duplicates=%d", *many, inserted.Seconds(), killed, came.Seconds(), y.beyond.Load()))
}

// recorded is the number of deliveries that have a row.
func (x *Trial) recorded() (rows int) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), `SELECT count(*) FROM webhook_deliveries`).Scan(&rows); err != nil {
		x.Fatal(err)
	}
	return rows
}

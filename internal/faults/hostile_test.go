package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/outbox"
)

// hostileReceivers has receivers of other organizations answer as none should.
// Their rows say what it was; the good ones hardly feel it.
func hostileReceivers(t *testing.T, s Setup) {
	const healthy, lag = 6, 3 * time.Second
	const perSecond = 100 // what a receiver holds until the timeout, eight at a time, has to end within a drain
	lasts := either(8*time.Second, 5*time.Second)
	kinds := hostilities()
	for i := range healthy {
		s.Endpoints = append(s.Endpoints, Endpoint{Org: fmt.Sprintf("org_%d", i), Types: []string{"*"}})
	}
	for i, k := range kinds {
		s.Endpoints = append(s.Endpoints, Endpoint{Org: fmt.Sprintf("hostile_%d", i), Types: []string{"*"}, Secure: k.https})
	}
	s.Schedule = "1s,1s" // the last attempt comes soon
	s.Env = append(s.Env, "WALHOOK_TIMEOUT=2s")
	x := newTrial(t, s)
	x.receiver.failShare = 0
	x.start()
	x.ready()
	<-x.drive(Load{Rate: perSecond, Duration: lasts})
	<-time.After(lag)
	calm := x.latencies(0, healthy)
	answers := map[int]answer{}
	for i, k := range kinds {
		answers[healthy+i] = k.answer
	}
	from := x.journal.count()
	x.receiver.turn(answers)
	<-x.drive(Load{Rate: perSecond, Duration: lasts})
	<-time.After(lag)
	hostile := x.latencies(from, healthy)
	x.drain(2 * time.Minute)
	failed := x.expectClasses(healthy, kinds)
	const generous, noise = 5, 200 * time.Millisecond
	x.expect(hostile.at(0.99) <= generous*calm.at(0.99)+noise, "the others' p99 is %s, and was %s", hostile.at(0.99), calm.at(0.99))
	x.finish(time.Minute, fmt.Sprintf("failed as they should=%d p50=%s then %s, p99=%s then %s: %.2f times", failed, calm.at(0.5), hostile.at(0.5),
		calm.at(0.99), hostile.at(0.99), float64(hostile.at(0.99))/float64(max(1, calm.at(0.99)))))
}

// latencies are those of first attempts to the first endpoints, from the n-th request on.
func (x *Trial) latencies(n, endpoints int) (found latencies) {
	events, _ := x.journal.copy()
	began := map[uuid.UUID]time.Time{}
	for _, e := range events {
		began[e.ID] = e.Began
	}
	for _, r := range x.journal.since(n) {
		if r.Endpoint < endpoints && r.Retry == 0 {
			found = append(found, r.At.Sub(began[r.Event]))
		}
	}
	slices.Sort(found)
	return found
}

const selectClasses = `
SELECT endpoint_id, status, coalesce(error_class, ''), count(*), coalesce(bool_and(response IS NOT NULL), false)
FROM webhook_deliveries GROUP BY 1, 2, 3`

// expectClasses compares the rows of hostile receivers with what they did. It
// returns how many deliveries have failed for it.
func (x *Trial) expectClasses(first int, kinds []hostility) (total int) {
	x.Helper()
	rows, err := x.pool.Query(x.Context(), selectClasses)
	if err != nil {
		x.Fatal(err)
	}
	failed := make([]int, len(kinds))
	var endpoint uuid.UUID
	var status outbox.Status
	var class outbox.ErrorClass
	var n int
	var said bool
	_, err = pgx.ForEachRow(rows, []any{&endpoint, &status, &class, &n, &said}, func() error {
		i := slices.IndexFunc(x.endpoints, func(e Endpoint) bool { return e.ID == endpoint }) - first
		switch {
		case i < 0:
			x.expect(status == outbox.Success, "%d deliveries to a good receiver are %s", n, status)
		case status == outbox.Failed:
			failed[i] += n
			x.expect(class == kinds[i].class, "%d deliveries failed by %q as %q, want %q", n, kinds[i].name, class, kinds[i].class)
			if said != strings.HasPrefix(string(class), "http_") && class != outbox.ErrRedirect {
				x.expect(false, "response of deliveries failed by %q kept: %t", kinds[i].name, said)
			}
		}
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
	for i, k := range kinds {
		x.expect(failed[i] > 0 == (k.class != ""), "%d deliveries failed by %q", failed[i], k.name)
		total += failed[i]
	}
	return total
}

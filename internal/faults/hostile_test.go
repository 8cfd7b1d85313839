package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/webhook"
)

// hostileReceivers has receivers of other organizations answer as none should. Their rows
// must name the fault, and the good ones must hardly be slowed down. Calm and hostile
// windows take turns, so that other load on the machine affects both.
func hostileReceivers(t *testing.T, s Setup) {
	const healthy = 6
	impostor := newImpostor()
	t.Cleanup(impostor.server.Close)
	kinds := hostilities(impostor.server.URL)
	for i := range healthy {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: fmt.Sprintf("org_%d", i), Types: []string{"*"}})
	}
	for i, k := range kinds {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: fmt.Sprintf("hostile_%d", i), Types: []string{"*"}, Secure: k.https, URL: k.url})
	}
	s.Schedule = "1s,1s" // so that the last attempt comes soon
	s.Env = append(s.Env, "WALHOOK_TIMEOUT=2s")
	x := newTrial(t, s)
	x.receiver.failShare = 0
	x.start()
	x.ready()
	w := windows{trial: x, healthy: healthy, kinds: kinds}
	w.run()
	x.drain(2 * time.Minute)
	felt := w.judge()
	failed := x.expectClasses(healthy, kinds)
	came := impostor.requests.Load()
	x.expect(came == 0, "%d requests were sent to a receiver with an untrusted certificate", came)
	x.finish(time.Minute, fmt.Sprintf("failed as they should=%d %s", failed, felt))
}

// A windows is spans of load, in turns with calm and with hostile receivers.
type windows struct {
	trial   *Trial
	healthy int // how many endpoints are healthy: the first ones
	kinds   []hostility

	calm, hostile [][2]time.Time // from when to when
}

// run runs each kind of window several times. A calm one begins when no hostile delivery
// is left; the last hostile one goes on until all have failed.
func (w *windows) run() {
	const lasts = 2 * time.Second
	rounds := either(9, 3) // odd, for the median
	x := w.trial
	x.Helper()
	answers := map[int]answer{}
	for i, k := range w.kinds {
		answers[w.healthy+i] = k.answer
	}
	for range rounds {
		x.receiver.turn(nil)
		x.drain(time.Minute)
		w.calm = append(w.calm, w.one(lasts, false))
		x.receiver.turn(answers)
		w.hostile = append(w.hostile, w.one(lasts, true))
	}
}

// one runs one window.
func (w *windows) one(lasts time.Duration, hostile bool) (window [2]time.Time) {
	w.trial.driver.orgs = w.organizations(hostile)
	window[0] = time.Now()
	<-w.trial.drive(Load{Rate: either[float64](250, 150), Duration: lasts})
	window[1] = time.Now()
	return window
}

// organizations returns those that get events. Most are healthy ones, because the drain
// waits for the deliveries that hostile receivers hold until the timeout, eight at a time.
func (w *windows) organizations(hostile bool) (orgs []string) {
	more := either(4, 2)
	for i := range w.healthy {
		orgs = append(orgs, slices.Repeat([]string{w.trial.endpoints[i].Org}, more)...)
	}
	for i, k := range w.kinds {
		if hostile || !k.always() {
			orgs = append(orgs, w.trial.endpoints[w.healthy+i].Org)
		}
	}
	return orgs
}

// judge compares each hostile window with the calm one before it, when the machine was as
// busy with other things, and bounds the median of the differences. In production hostile
// receivers use their own CPU; here their floods and handshakes take the two cores on which
// everything runs. So an event may have to wait for a time slice of the kernel, which is
// some milliseconds. With -faults.quick other scenarios run at the same time, and may fall
// into one window of a pair.
func (w *windows) judge() string {
	times := either(1.2, 5)
	slice := either(5*time.Millisecond, 200*time.Millisecond)
	enough := either(2000, 200)
	x := w.trial
	x.Helper()
	var calm, hostile, p99, p99Hostile, excess latencies
	for i := range w.calm {
		before, after := x.latencies(w.calm[i], w.healthy), x.latencies(w.hostile[i], w.healthy)
		calm, hostile = append(calm, before...), append(hostile, after...)
		p99, p99Hostile = append(p99, before.at(0.99)), append(p99Hostile, after.at(0.99))
		excess = append(excess, after.at(0.99)-time.Duration(times*float64(before.at(0.99))))
	}
	for _, l := range []latencies{calm, hostile, p99, p99Hostile, excess} {
		slices.Sort(l)
	}
	x.expect(len(calm) >= enough && len(hostile) >= enough, "there are %d and %d latencies, want %d of each", len(calm), len(hostile), enough)
	x.expect(excess.at(0.5) <= slice, "the others' p99 is %s, and was %s: in the median pair of windows %s more than %.1f times, want %s at the most",
		p99Hostile.at(0.5), p99.at(0.5), excess.at(0.5), times, slice)
	return fmt.Sprintf("p50=%s then %s, median p99=%s then %s, in the median pair %s beyond %.1f times, of %d and %d", calm.at(0.5), hostile.at(0.5),
		p99.at(0.5), p99Hostile.at(0.5), excess.at(0.5), times, len(calm), len(hostile))
}

// latencies returns the times from before the commit to the first request, for the healthy
// endpoints' events in a window.
func (x *Trial) latencies(window [2]time.Time, endpoints int) (found latencies) {
	events, requests := x.journal.Copy()
	began := map[uuid.UUID]time.Time{}
	for _, e := range events {
		if e.Fate == oracle.Committed && !e.Began.Before(window[0]) && e.Began.Before(window[1]) {
			began[e.ID] = e.Began
		}
	}
	for _, r := range requests {
		if at, in := began[r.Event]; in && r.Endpoint < endpoints && r.Retry == 0 {
			found = append(found, r.At.Sub(at))
		}
	}
	slices.Sort(found)
	return found
}

const selectClasses = `
SELECT endpoint_id, status, coalesce(error_class, ''), coalesce(CASE WHEN status = 'failed' THEN response END, ''), count(*)
FROM webhook_deliveries GROUP BY 1, 2, 3, 4`

// expectClasses compares the rows of hostile receivers with their behaviour. It returns
// how many deliveries have failed.
func (x *Trial) expectClasses(first int, kinds []hostility) (total int) {
	x.Helper()
	rows, err := x.pool.Query(x.Context(), selectClasses)
	if err != nil {
		x.Fatal(err)
	}
	failed := make([]int, len(kinds))
	var endpoint uuid.UUID
	var status webhook.Status
	var class webhook.ErrorClass
	var text string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&endpoint, &status, &class, &text, &n}, func() error {
		i := slices.IndexFunc(x.endpoints, func(e oracle.Endpoint) bool { return e.ID == endpoint }) - first
		switch {
		case i < 0:
			x.expect(status == webhook.Success, "%d deliveries to a good receiver are %s", n, status)
		case status == webhook.Failed:
			failed[i] += n
			x.expect(class == kinds[i].class, "%d deliveries failed by %q as %q, want %q", n, kinds[i].name, class, kinds[i].class)
			if text == "" && kinds[i].text != "" {
				x.expect(false, "response of deliveries failed by %q kept: false", kinds[i].name)
			} else {
				x.expect(text == kinds[i].text, "response of deliveries failed by %q is %q, want %q", kinds[i].name, text, kinds[i].text)
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

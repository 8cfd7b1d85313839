package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// attemptTime is so long that what is said a moment after an attempt has ended was
// said while it was under way, however busy the machine is.
const attemptTime = 10 * time.Second

// outcome is of an attempt that has just ended.
func outcome(r webhook.Record, status webhook.Status, attempts int) webhook.Record {
	a := &webhook.Attempt{EndedAt: time.Now(), Duration: attemptTime, StatusCode: 200}
	if status != webhook.Success {
		a.StatusCode, a.Class = 500, webhook.ErrHTTP5xx
	}
	r.Status, r.Attempts, r.Attempt, r.Wait = status, attempts, a, 0
	if status == webhook.Retrying {
		r.Wait = -time.Second // due, so that Due finds it
	}
	return r
}

func insertsOnce(b *bench) {
	endpoint := b.NewEndpoint(organization)
	first, second := b.owed(endpoint), b.owed(endpoint)
	fresh, err := b.Insert(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{first})
	b.ok(err)
	if !fresh {
		b.Error("a new row is said to be there")
	}
	if row, _ := b.Row(first.ID); !near(row.DueAt, time.Now().Add(-time.Minute)) {
		b.Errorf("due at %s", row.DueAt)
	}
	fresh, err = b.Insert(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{outcome(first, webhook.Success, 1), outcome(second, webhook.Success, 1)})
	b.ok(err)
	if fresh {
		b.Error("a row that was there is said to be new")
	}
	b.has(first.ID, "pending 0")
	b.has(second.ID, "success 1")
	known := map[uuid.UUID]bool{}
	b.ok(b.Existing(b.Context(), []uuid.UUID{first.ID, second.ID, uuid.New()}, known))
	if len(known) != 2 || !known[first.ID] || !known[second.ID] {
		b.Errorf("known: %v", known)
	}
}

func updatesLater(b *bench) {
	endpoint := b.NewEndpoint(organization)
	for _, c := range []struct {
		row   webhook.Status
		end   webhook.Status
		later int // attempts more than the row has
		want  string
	}{
		{webhook.Pending, webhook.Success, 1, "success 4"},
		{webhook.Retrying, webhook.Retrying, 1, "retrying 4"},
		{webhook.Retrying, webhook.Failed, 2, "failed 5"},
		{webhook.Failed, webhook.Success, 1, "success 4"},
		{webhook.Retrying, webhook.Success, 0, "retrying 3"},
		{webhook.Retrying, webhook.Success, -1, "retrying 3"},
		{webhook.Success, webhook.Failed, 1, "success 3"},
	} {
		r := b.owed(endpoint)
		b.insert(outcome(r, c.row, 3))
		end := outcome(r, c.end, 3+c.later)
		end.SeriesStart = 2
		locked, replayed, err := b.Update(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{end})
		b.ok(err)
		if len(locked)+len(replayed) > 0 {
			b.Errorf("%+v: locked %v, replayed %v", c, locked, replayed)
		}
		if got := b.text(r.ID); got != c.want {
			b.Errorf("%s, and %s %d later: %q, want %q", c.row, c.end, c.later, got, c.want)
		}
		if row, _ := b.Row(r.ID); c.later > 0 && c.row != webhook.Success && row.SeriesStart != 2 {
			b.Errorf("%+v: the series starts at %d", c, row.SeriesStart)
		}
	}
	gone := b.owed(endpoint)
	locked, replayed, err := b.Update(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{outcome(gone, webhook.Success, 1)})
	b.ok(err)
	if len(locked)+len(replayed) > 0 {
		b.Errorf("without a row: locked %v, replayed %v", locked, replayed)
	}
	b.has(gone.ID, "none")
}

// A word is what an operator does to a row during an attempt, and what the attempt's
// outcome then makes of it.
type word struct {
	said     webhook.Status // "": nothing
	due      time.Duration  // from now
	end      webhook.Status // of the attempt
	want     webhook.Status
	replayed bool
	quick    bool // the case holds only if it takes less time than the clocks may differ by
}

// lateWords are for rows that the process has seen, unseenWords for those it has not.
var lateWords, unseenWords = []word{
	{end: webhook.Success, want: webhook.Success},
	{end: webhook.Retrying, want: webhook.Retrying},
	{end: webhook.Failed, want: webhook.Failed},
	{said: webhook.Pending, end: webhook.Success, want: webhook.Pending, replayed: true},
	{said: webhook.Pending, end: webhook.Retrying, want: webhook.Pending, replayed: true},
	{said: webhook.Pending, end: webhook.Failed, want: webhook.Pending, replayed: true},
	{said: webhook.Pending, due: time.Hour, end: webhook.Success, want: webhook.Pending, replayed: true},
	{said: webhook.Pending, due: -30 * time.Second, end: webhook.Success, want: webhook.Success}, // before the attempt began: it has had it
	{said: webhook.Pending, due: -30 * time.Second, end: webhook.Failed, want: webhook.Pending, replayed: true},
	{said: webhook.Pending, due: -attemptTime - 100*time.Millisecond, end: webhook.Success, want: webhook.Pending, replayed: true, quick: true}, // the clocks cannot tell
	{said: webhook.Cancelled, end: webhook.Success, want: webhook.Success},
	{said: webhook.Cancelled, end: webhook.Retrying, want: webhook.Cancelled},
	{said: webhook.Cancelled, end: webhook.Failed, want: webhook.Cancelled},
}, []word{
	{said: webhook.Pending, end: webhook.Success, want: webhook.Success},
	{said: webhook.Pending, end: webhook.Failed, want: webhook.Failed},
	{said: webhook.Cancelled, end: webhook.Failed, want: webhook.Cancelled},
}

func laterWordCounts(b *bench) {
	const lease = 20 * time.Second
	leased := func(r webhook.Record) webhook.Record {
		r.Wait = lease
		b.insert(r)
		r.Seen.Lease = lease
		return r
	}
	parked := func(r webhook.Record) webhook.Record {
		r.Wait = -webhook.ParkedDue
		b.insert(r)
		r.Seen.Lease = lease // it was taken in before its row was there
		return r
	}
	fetched := func(r webhook.Record) webhook.Record {
		b.insert(outcome(r, webhook.Retrying, 1))
		d := b.one(r.EndpointID)
		r.Attempts, r.Seen = d.Attempts, webhook.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	unseen := func(r webhook.Record) webhook.Record {
		b.insert(r)
		return r
	}
	for _, w := range lateWords {
		w.check(b, "leased", leased)
		w.check(b, "parked", parked)
		w.check(b, "fetched", fetched)
	}
	for _, w := range unseenWords {
		w.check(b, "unseen", unseen)
	}
}

func (w word) check(b *bench, name string, row func(webhook.Record) webhook.Record) {
	r, said, locked, replayed, in := w.say(b, row)
	for w.quick && in >= 100*time.Millisecond {
		r, said, locked, replayed, in = w.say(b, row)
	}
	what := fmt.Sprintf("%s, said %q due in %s, then %s", name, w.said, w.due, w.end)
	got, _ := b.Row(r.ID)
	if got.Status != w.want || got.Attempts != r.Attempts+1 || len(replayed) == 1 != w.replayed || len(locked) > 0 {
		b.Errorf("%s: %s %d, replayed %v, locked %v; want %s %d, replayed %t", what, got.Status, got.Attempts, replayed, locked, w.want, r.Attempts+1, w.replayed)
	}
	if w.replayed && (!got.DueAt.Equal(said) || got.SeriesStart != got.Attempts) {
		b.Errorf("%s: due at %s, series from %d; want %s, %d", what, got.DueAt, got.SeriesStart, said, got.Attempts)
	}
}

// say says the word of a new row, and writes the outcome.
func (w word) say(b *bench, row func(webhook.Record) webhook.Record) (r webhook.Record, said time.Time, locked, replayed []uuid.UUID, in time.Duration) {
	r = row(b.owed(b.NewEndpoint(organization)))
	end := outcome(r, w.end, r.Attempts+1)
	if w.said == webhook.Pending {
		said = time.Now().Add(w.due).Truncate(time.Microsecond)
	}
	if w.said != "" {
		b.Say(r.ID, w.said, said)
	}
	locked, replayed, err := b.Update(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{end})
	b.ok(err)
	return r, said, locked, replayed, time.Since(end.Attempt.EndedAt)
}

func givesBack(b *bench) {
	const lease = time.Hour
	for _, c := range []struct {
		what string
		row  webhook.Status
		said webhook.Status // "": nothing
		want string
		due  bool
	}{
		{"a lease", webhook.Pending, "", "pending 0", true},
		{"a row with an outcome", webhook.Success, "", "success 1", false},
		{"a row that was replayed", webhook.Pending, webhook.Pending, "pending 0", false},
		{"a row that was cancelled", webhook.Pending, webhook.Cancelled, "cancelled 0", false},
	} {
		r := b.owed(b.NewEndpoint(organization))
		row := r
		if row.Wait = lease; c.row != webhook.Pending {
			row = outcome(r, c.row, 1)
		}
		b.insert(row)
		if c.said != "" {
			b.Say(r.ID, c.said, time.Now().Add(lease))
		}
		r.Wait, r.Seen.Lease = -webhook.ParkedDue, lease
		locked, replayed, err := b.Update(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{r})
		b.ok(err)
		got, _ := b.Row(r.ID)
		if due := near(got.DueAt, time.Now().Add(-webhook.ParkedDue)); b.text(r.ID) != c.want || due != c.due || len(locked)+len(replayed) > 0 {
			b.Errorf("%s: %s, due %s, locked %v, replayed %v", c.what, b.text(r.ID), got.DueAt, locked, replayed)
		}
	}
}

func writesNoErased(b *bench) {
	erased := b.NewEndpoint(organization)
	gone, missing := b.owed(erased), b.owed(erased)
	b.Erase(organization)
	stays := b.owed(b.NewEndpoint(organization)) // the customer is back
	fresh, err := b.Insert(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{outcome(gone, webhook.Failed, 1), stays})
	b.ok(err)
	if fresh {
		b.Error("all rows are said to be new")
	}
	if n, err := b.InsertMissing(b.Context(), b.fence, []webhook.Record{missing}); err != nil || n != 0 {
		b.Errorf("the comparison inserted %d, %v", n, err)
	}
	locked, replayed, err := b.Update(b.Context(), b.fence, webhook.Mark{}, []webhook.Record{outcome(gone, webhook.Failed, 1)})
	b.ok(err)
	if len(locked)+len(replayed) > 0 {
		b.Errorf("locked %v, replayed %v", locked, replayed)
	}
	b.has(gone.ID, "none")
	b.has(missing.ID, "none")
	b.has(stays.ID, "pending 0")
	b.GiveAgain(erased, "org_2")
	b.insert(outcome(gone, webhook.Failed, 1))
	b.has(gone.ID, "failed 1")
}

func returnsLocked(b *bench) {
	endpoint := b.NewEndpoint(organization)
	held, free := b.owed(endpoint), b.owed(endpoint)
	b.insert(held, free)
	release := b.Lock(held.ID)
	both := []webhook.Record{outcome(held, webhook.Success, 1), outcome(free, webhook.Success, 1)}
	locked, _, err := b.Update(b.Context(), b.fence, webhook.Mark{}, both)
	b.ok(err)
	if !slices.Equal(locked, []uuid.UUID{held.ID}) {
		b.Errorf("locked: %v, want the one that is held", locked)
	}
	b.has(held.ID, "pending 0")
	b.has(free.ID, "success 1")
	release()
	locked, _, err = b.Update(b.Context(), b.fence, webhook.Mark{}, both[:1])
	b.ok(err)
	if len(locked) > 0 {
		b.Errorf("locked: %v, when nobody holds it", locked)
	}
	b.has(held.ID, "success 1")
}

func hasConsequences(b *bench) {
	write := map[string]func(mark webhook.Mark, r webhook.Record){
		"Insert": func(mark webhook.Mark, r webhook.Record) {
			_, err := b.Insert(b.Context(), b.fence, mark, []webhook.Record{r})
			b.ok(err)
		},
		"Update": func(mark webhook.Mark, r webhook.Record) {
			row := r
			row.Status, row.Attempts, row.Attempt, row.Wait, row.Gone, row.Exhausted = webhook.Pending, 0, nil, 0, false, false
			b.insert(row)
			_, _, err := b.Update(b.Context(), b.fence, mark, []webhook.Record{r})
			b.ok(err)
		},
	}
	for name, write := range write {
		for _, c := range []struct {
			what            string
			gone, exhausted bool
			own, alone      bool
			off             bool
			disabled, told  int
		}{
			{what: "a failure"},
			{what: "the last attempt", exhausted: true, told: 1},
			{what: "410", gone: true, off: true, disabled: 1},
			{what: "the last attempt of walhook's own", exhausted: true, own: true},
			{what: "410 to walhook's own", gone: true, own: true, off: true},
			{what: "410, the rows alone", gone: true, exhausted: true, alone: true},
		} {
			endpoint := b.NewEndpoint(organization)
			e := event(endpoint)
			if c.own {
				e.Type = outbox.TypeTest
			}
			b.Begin(e)()
			disabled, told := b.OwnEvents(outbox.TypeEndpointDisabled), b.OwnEvents(outbox.TypeDeliveryExhausted)
			r := outcome(record(e, endpoint), webhook.Failed, 1)
			r.Gone, r.Exhausted = c.gone, c.exhausted
			write(webhook.Mark{Alone: c.alone}, r)
			found, err := b.Endpoints(b.Context(), []uuid.UUID{endpoint})
			b.ok(err)
			disabled, told = b.OwnEvents(outbox.TypeEndpointDisabled)-disabled, b.OwnEvents(outbox.TypeDeliveryExhausted)-told
			if len(found) != 1 || found[0].Enabled == c.off || disabled != c.disabled || told != c.told {
				b.Errorf("%s, %s: %+v, told of %d endpoints and %d deliveries; want off %t, %d, %d", name, c.what, found, disabled, told, c.off, c.disabled, c.told)
			}
		}
	}
	endpoint := b.NewEndpoint(organization)
	r := outcome(b.owed(endpoint), webhook.Failed, 1)
	r.Gone = true
	_, err := b.WriteConsequence(b.Context(), b.fence, store.Consequences(nil, []webhook.Record{r})[0])
	b.ok(err)
	if found, err := b.Endpoints(b.Context(), []uuid.UUID{endpoint}); err != nil || len(found) != 1 || found[0].Enabled {
		b.Errorf("told apart from its row: %+v, %v; want it off", found, err)
	}
}

func stands(b *bench) {
	endpoint, off := b.NewEndpoint(organization), b.NewEndpoint(organization)
	b.Enable(off, false)
	open := func() (open []bool) {
		b.Helper()
		found, err := b.Endpoints(b.Context(), []uuid.UUID{endpoint, off, uuid.New()})
		b.ok(err)
		slices.SortFunc(found, func(x, y webhook.Endpoint) int { return map[bool]int{true: -1, false: 1}[x.ID == endpoint] })
		for _, e := range found {
			open = append(open, e.BreakerOpen)
		}
		return open
	}
	for i, c := range []struct {
		health    webhook.EndpointHealth
		want      bool
		failing   int // events so far
		recovered int
	}{
		{webhook.EndpointHealth{Failing: true, Tell: true}, false, 0, 0},
		{webhook.EndpointHealth{Failing: true, Open: true, Tell: true}, true, 1, 0},
		{webhook.EndpointHealth{Failing: true, Open: true, Tell: true}, true, 1, 0}, // a commit that was not heard of
		{webhook.EndpointHealth{Failing: true, Open: true}, true, 1, 0},             // from a process that knows of no other event
		{webhook.EndpointHealth{Failing: true}, false, 1, 1},                        // webhook_retry_now
		{webhook.EndpointHealth{Failing: true}, false, 1, 1},
		{webhook.EndpointHealth{Failing: true, Open: true}, true, 1, 1}, // by walhook's own events alone
		{webhook.EndpointHealth{Failing: true, Open: true, Tell: true}, true, 2, 1},
		{webhook.EndpointHealth{Recovered: true}, false, 2, 2},
		{webhook.EndpointHealth{Recovered: true}, false, 2, 2},
		{webhook.EndpointHealth{Failing: true, Open: true}, true, 2, 2},
		{webhook.EndpointHealth{Recovered: true}, false, 2, 2},
		{webhook.EndpointHealth{Recovered: true, Failing: true, Open: true, Tell: true}, true, 3, 2},
		{webhook.EndpointHealth{Recovered: true, Failing: true, Open: true, Tell: true}, true, 4, 3}, // and both in between
	} {
		var health []webhook.EndpointHealth
		for _, id := range []uuid.UUID{endpoint, off} {
			h := c.health
			h.EndpointID, h.At = id, time.Now()
			health = append(health, h)
		}
		b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Health: health}))
		// Of one that is disabled nothing is noted, and nothing told.
		if failing, recovered := b.OwnEvents(outbox.TypeEndpointFailing), b.OwnEvents(outbox.TypeEndpointRecovered); failing != c.failing || recovered != c.recovered {
			b.Errorf("step %d: %d were told to fail and %d to have recovered, want %d and %d", i, failing, recovered, c.failing, c.recovered)
		}
		if got, want := open(), []bool{c.want, false}; !slices.Equal(got, want) {
			b.Errorf("step %d: open %v, want %v", i, got, want)
		}
	}
	b.Delete(endpoint)
	if got := open(); !slices.Equal(got, []bool{false}) {
		b.Errorf("when one is deleted: open %v, want the other's", got)
	}
}

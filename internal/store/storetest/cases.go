package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// A World is a store, with what others do to its database.
type World interface {
	Statements

	// Endpoint makes an endpoint; it is enabled, disabled, deleted, and its id
	// given to another organization's.
	NewEndpoint(organization string) uuid.UUID
	Enable(endpoint uuid.UUID, enabled bool)
	Delete(endpoint uuid.UUID)
	GiveAgain(endpoint uuid.UUID, organization string)

	// Begin inserts an event that other sessions see only once it is committed.
	// Forget deletes one.
	Begin(outbox.Event) (commit func())
	Forget(event uuid.UUID)

	// Say is an operator's UPDATE of a delivery. The zero time is no next attempt.
	Say(delivery uuid.UUID, status store.Status, due time.Time)
	// Lock holds a delivery's row.
	Lock(delivery uuid.UUID) (release func())

	// Row is what a delivery's row says, if there is one.
	Row(delivery uuid.UUID) (row Line, found bool)
	// Position is the one that is noted as durable, and when it was committed.
	Position() (pglogrepl.LSN, time.Time)
	// Listen returns what returns the echoes since.
	Listen() func() []string
	// Told is how many of walhook's own events there are of a type.
	Told(eventType string) int
}

// Statements are the store's that the simulation relies on.
type Statements interface {
	Acquire(context.Context, uuid.UUID, *store.Session, uint64) (store.Fence, error)
	AwaitSlot(context.Context) error
	Existing(context.Context, []uuid.UUID, map[uuid.UUID]bool) error
	Insert(context.Context, store.Fence, store.Mark, []store.Record) (bool, error)
	Update(context.Context, store.Fence, store.Mark, []store.Record) (busy, again []uuid.UUID, err error)
	Tell(context.Context, store.Fence, store.Consequence) ([]store.Consequence, error)
	Owe(context.Context, store.Fence, time.Time) (time.Time, error)
	NewlyDue(context.Context, time.Time) ([]uuid.UUID, time.Time, bool, error)
	Waiting(context.Context, uuid.UUID, int) ([]store.Waiting, error)
	Due(context.Context, []store.Page, func(*store.Due)) error
	CancelRows(context.Context, store.Fence, uuid.UUID, string) (int, bool, error)
	CancelStrangers(context.Context, store.Fence, []uuid.UUID) error
	CancelOrphans(context.Context, store.Fence, []uuid.UUID) error
	Endpoints(context.Context, []uuid.UUID) ([]store.Endpoint, error)
	Missing(context.Context, store.Position, uuid.UUID, int) (store.Compared, error)
	InsertMissing(context.Context, store.Fence, []store.Record) (int, error)
	Mark(context.Context, store.Fence, store.Mark) error
	Settled(context.Context, store.Fence) (bool, error)
	Reconciled(context.Context, store.Fence) (time.Time, error)
}

// A Line is a delivery's row.
type Line struct {
	Status                store.Status
	Attempts, SeriesStart int
	DueAt                 time.Time // of one that waits
}

// Run holds what open opens to every promise, each in a world of its own.
func Run(t *testing.T, open func(*testing.T) World) {
	for _, c := range []struct {
		promise string
		holds   func(*bench)
	}{
		{"Insert writes what has no row, and leaves what has one", insertsOnce},
		{"Update applies what is later than the row", updatesLater},
		{"Update counts the attempt, and leaves an operator's word", laterWordCounts},
		{"Update returns rows that somebody holds", returnsBusy},
		{"Due hands out what is due, those that have waited longest first", handsOutDue},
		{"Due tells events that were deleted from those that are not visible yet", tellsOrphans},
		{"Due and CancelStrangers know endpoints whose id was given again", knowsStrangers},
		{"NewlyDue and Waiting find who has rows", findsWaiting},
		{"CancelRows cancels what is owed to an endpoint that is disabled or deleted", cancelsRows},
		{"CancelRows waits for what is not visible yet", cancelsWhatIsSettled},
		{"Missing finds what is owed without a row, in pages", findsMissing},
		{"Missing does not see what is not visible yet", missesInvisible},
		{"InsertMissing inserts what still has no row", insertsMissing},
		{"whoever has lost the slot writes nothing", fences},
		{"Mark moves the position forwards, and ends with an echo", marks},
		{"Acquire says what is to be reconciled", saysWhatToReconcile},
		{"Reconciled ends one cause and no later one", endsOneCause},
		{"Settled waits for the transactions that were open at the claim", settles},
		{"outcomes disable endpoints and tell organizations", hasConsequences},
		{"an endpoint stands as it was told of last", stands},
	} {
		t.Run(c.promise, func(t *testing.T) {
			t.Parallel()
			b := &bench{T: t, World: open(t)}
			b.fence = b.claim(&store.Session{})
			c.holds(b)
		})
	}
}

// A bench is where one case works.
type bench struct {
	*testing.T
	World
	fence store.Fence
}

const organization = "org_1"

// settledWithin bounds how long other tests' transactions are waited for, which
// are open on the same server: none lasts for longer than a minute.
const settledWithin = time.Minute

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) claim(s *store.Session) store.Fence {
	b.Helper()
	s.SystemID, s.Timeline = "system 1", 1
	fence, err := b.Acquire(b.Context(), uuid.New(), s, 1)
	b.ok(err)
	return fence
}

// event is one that is owed to endpoints, of now.
func event(endpoints ...uuid.UUID) outbox.Event {
	return outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: organization, Type: "payment.failed", Payload: []byte(`{"a": 1}`), EndpointIDs: endpoints}
}

func record(e outbox.Event, endpoint uuid.UUID) store.Record {
	return store.Record{ID: outbox.DeliveryID(e.ID, endpoint), EventID: e.ID, EndpointID: endpoint, OrganizationID: e.OrganizationID, EventType: e.Type,
		Status: store.Pending, Wait: -time.Minute}
}

// owed commits an event, and returns its delivery as a row that is due.
func (b *bench) owed(endpoint uuid.UUID) store.Record {
	e := event(endpoint)
	b.Begin(e)()
	return record(e, endpoint)
}

// attemptTime is so long that what is said a moment after an attempt has ended was
// said while it was under way, however busy the machine is.
const attemptTime = 10 * time.Second

// outcome is of an attempt that has just ended.
func outcome(r store.Record, status store.Status, attempts int) store.Record {
	a := &store.Attempt{EndedAt: time.Now(), Duration: attemptTime, StatusCode: 200}
	if status != store.Success {
		a.StatusCode, a.Class = 500, store.ErrHTTP5xx
	}
	r.Status, r.Attempts, r.Attempt, r.Wait = status, attempts, a, 0
	if status == store.Retrying {
		r.Wait = -time.Second // due, so that Due finds it
	}
	return r
}

func (b *bench) insert(records ...store.Record) {
	b.Helper()
	_, err := b.Insert(b.Context(), b.fence, store.Mark{}, records)
	b.ok(err)
}

// has compares rows with what they are to be: status and attempts.
func (b *bench) has(id uuid.UUID, want string) {
	b.Helper()
	if got := b.text(id); got != want {
		b.Errorf("the row is %q, want %q", got, want)
	}
}

func (b *bench) text(id uuid.UUID) string {
	row, found := b.Row(id)
	if !found {
		return "none"
	}
	return fmt.Sprint(row.Status, " ", row.Attempts)
}

func (b *bench) page(p store.Page) (due []store.Due) {
	b.Helper()
	b.ok(b.Due(b.Context(), []store.Page{p}, func(d *store.Due) { due = append(due, *d) }))
	return due
}

// one is the only delivery that is due to an endpoint.
func (b *bench) one(endpoint uuid.UUID) store.Due {
	b.Helper()
	due := b.page(store.Page{EndpointID: endpoint, Limit: 2})
	if len(due) != 1 {
		b.Fatalf("%d deliveries are due, want 1", len(due))
	}
	return due[0]
}

func (b *bench) eventually(what string, is func() bool) {
	b.Helper()
	for end := time.Now().Add(settledWithin); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("not within %s: %s", settledWithin, what)
		}
	}
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < 10*time.Second } // a busy machine

func insertsOnce(b *bench) {
	endpoint := b.NewEndpoint(organization)
	first, second := b.owed(endpoint), b.owed(endpoint)
	fresh, err := b.Insert(b.Context(), b.fence, store.Mark{}, []store.Record{first})
	b.ok(err)
	if !fresh {
		b.Error("a new row is said to be there")
	}
	if row, _ := b.Row(first.ID); !near(row.DueAt, time.Now().Add(-time.Minute)) {
		b.Errorf("due at %s", row.DueAt)
	}
	fresh, err = b.Insert(b.Context(), b.fence, store.Mark{}, []store.Record{outcome(first, store.Success, 1), outcome(second, store.Success, 1)})
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
		row   store.Status
		end   store.Status
		later int // attempts more than the row has
		want  string
	}{
		{store.Pending, store.Success, 1, "success 4"},
		{store.Retrying, store.Retrying, 1, "retrying 4"},
		{store.Retrying, store.Failed, 2, "failed 5"},
		{store.Failed, store.Success, 1, "success 4"},
		{store.Retrying, store.Success, 0, "retrying 3"},
		{store.Retrying, store.Success, -1, "retrying 3"},
		{store.Success, store.Failed, 1, "success 3"},
	} {
		r := b.owed(endpoint)
		b.insert(outcome(r, c.row, 3))
		end := outcome(r, c.end, 3+c.later)
		end.SeriesStart = 2
		busy, again, err := b.Update(b.Context(), b.fence, store.Mark{}, []store.Record{end})
		b.ok(err)
		if len(busy)+len(again) > 0 {
			b.Errorf("%+v: busy %v, again %v", c, busy, again)
		}
		if got := b.text(r.ID); got != c.want {
			b.Errorf("%s, and %s %d later: %q, want %q", c.row, c.end, c.later, got, c.want)
		}
		if row, _ := b.Row(r.ID); c.later > 0 && c.row != store.Success && row.SeriesStart != 2 {
			b.Errorf("%+v: the series starts at %d", c, row.SeriesStart)
		}
	}
	gone := b.owed(endpoint)
	busy, again, err := b.Update(b.Context(), b.fence, store.Mark{}, []store.Record{outcome(gone, store.Success, 1)})
	b.ok(err)
	if len(busy)+len(again) > 0 {
		b.Errorf("without a row: busy %v, again %v", busy, again)
	}
	b.has(gone.ID, "none")
}

func laterWordCounts(b *bench) {
	const lease = 20 * time.Second
	leased := func(r store.Record) store.Record {
		r.Wait = lease
		b.insert(r)
		r.Seen.Lease = lease
		return r
	}
	parked := func(r store.Record) store.Record {
		r.Wait = -store.ParkedDue
		b.insert(r)
		r.Seen.Lease = lease // it was taken in before its row was there
		return r
	}
	fetched := func(r store.Record) store.Record {
		b.insert(outcome(r, store.Retrying, 1))
		d := b.one(r.EndpointID)
		r.Attempts, r.Seen = d.Attempts, store.Seen{Status: d.Status, DueAt: d.DueAt}
		return r
	}
	unseen := func(r store.Record) store.Record {
		b.insert(r)
		return r
	}
	rows := map[string]func(store.Record) store.Record{"leased": leased, "parked": parked, "fetched": fetched}
	for _, c := range []struct {
		row   string // "": each
		said  store.Status
		due   time.Duration // from now
		end   store.Status
		want  store.Status
		again bool
	}{
		{end: store.Success, want: store.Success},
		{end: store.Retrying, want: store.Retrying},
		{end: store.Failed, want: store.Failed},
		{said: store.Pending, end: store.Success, want: store.Pending, again: true},
		{said: store.Pending, end: store.Retrying, want: store.Pending, again: true},
		{said: store.Pending, end: store.Failed, want: store.Pending, again: true},
		{said: store.Pending, due: time.Hour, end: store.Success, want: store.Pending, again: true},
		{said: store.Pending, due: -30 * time.Second, end: store.Success, want: store.Success}, // before the attempt began: it has had it
		{said: store.Pending, due: -30 * time.Second, end: store.Failed, want: store.Pending, again: true},
		{said: store.Cancelled, end: store.Success, want: store.Success},
		{said: store.Cancelled, end: store.Retrying, want: store.Cancelled},
		{said: store.Cancelled, end: store.Failed, want: store.Cancelled},
		{row: "unseen", said: store.Pending, end: store.Success, want: store.Success},
		{row: "unseen", said: store.Pending, end: store.Failed, want: store.Failed},
		{row: "unseen", said: store.Cancelled, end: store.Failed, want: store.Cancelled},
	} {
		each := rows
		if c.row != "" {
			each = map[string]func(store.Record) store.Record{c.row: unseen}
		}
		for name, row := range each {
			r := row(b.owed(b.NewEndpoint(organization)))
			end := outcome(r, c.end, r.Attempts+1)
			var said time.Time
			if c.said == store.Pending {
				said = time.Now().Add(c.due).Truncate(time.Microsecond)
			}
			if c.said != "" {
				b.Say(r.ID, c.said, said)
			}
			busy, again, err := b.Update(b.Context(), b.fence, store.Mark{}, []store.Record{end})
			b.ok(err)
			what := fmt.Sprintf("%s, said %q due in %s, then %s", name, c.said, c.due, c.end)
			got, _ := b.Row(r.ID)
			if got.Status != c.want || got.Attempts != r.Attempts+1 || len(again) == 1 != c.again || len(busy) > 0 {
				b.Errorf("%s: %s %d, again %v, busy %v; want %s %d, again %t", what, got.Status, got.Attempts, again, busy, c.want, r.Attempts+1, c.again)
			}
			if c.again && (!got.DueAt.Equal(said) || got.SeriesStart != got.Attempts) {
				b.Errorf("%s: due at %s, series from %d; want %s, %d", what, got.DueAt, got.SeriesStart, said, got.Attempts)
			}
		}
	}
}

func returnsBusy(b *bench) {
	endpoint := b.NewEndpoint(organization)
	held, free := b.owed(endpoint), b.owed(endpoint)
	b.insert(held, free)
	release := b.Lock(held.ID)
	both := []store.Record{outcome(held, store.Success, 1), outcome(free, store.Success, 1)}
	busy, _, err := b.Update(b.Context(), b.fence, store.Mark{}, both)
	b.ok(err)
	if !slices.Equal(busy, []uuid.UUID{held.ID}) {
		b.Errorf("busy: %v, want the one that is held", busy)
	}
	b.has(held.ID, "pending 0")
	b.has(free.ID, "success 1")
	release()
	busy, _, err = b.Update(b.Context(), b.fence, store.Mark{}, both[:1])
	b.ok(err)
	if len(busy) > 0 {
		b.Errorf("busy: %v, when nobody holds it", busy)
	}
	b.has(held.ID, "success 1")
}

func handsOutDue(b *bench) {
	endpoint, other := b.NewEndpoint(organization), b.NewEndpoint(organization)
	var want []uuid.UUID
	for _, minutes := range []int{9, 7, 5, 3} {
		r := b.owed(endpoint)
		r.Wait = -time.Duration(minutes) * time.Minute
		want = append(want, r.ID)
		b.insert(r)
	}
	later, elsewhere := b.owed(endpoint), b.owed(other)
	later.Wait = time.Minute
	b.insert(later, elsewhere, outcome(b.owed(endpoint), store.Success, 1), outcome(b.owed(endpoint), store.Failed, 1))

	ids := func(due []store.Due) (ids []uuid.UUID) {
		for _, d := range due {
			ids = append(ids, d.ID)
		}
		return ids
	}
	if got := ids(b.page(store.Page{EndpointID: endpoint, Limit: 10})); !slices.Equal(got, want) {
		b.Errorf("due: %v, want %v", got, want)
	}
	page := b.page(store.Page{EndpointID: endpoint, Limit: 3})
	if !slices.Equal(ids(page), want[:3]) {
		b.Fatalf("first page: %v, want %v", ids(page), want[:3])
	}
	if got := ids(b.page(store.Page{EndpointID: endpoint, Limit: 3, After: page[2].End()})); !slices.Equal(got, want[3:]) {
		b.Errorf("next page: %v, want %v", got, want[3:])
	}
	d := b.one(other)
	if d.ID != elsewhere.ID || d.Status != store.Pending || d.Attempts != 0 || d.Orphaned || d.Unseen || d.Stranger ||
		d.Event.ID != elsewhere.EventID || d.Event.OrganizationID != organization || d.Event.Type != elsewhere.EventType || string(d.Event.Payload) != `{"a": 1}` {
		b.Errorf("handed out: %+v", d)
	}
}

func tellsOrphans(b *bench) {
	endpoint := b.NewEndpoint(organization)
	e := event(endpoint)
	commit := b.Begin(e)
	r := record(e, endpoint)
	b.insert(r) // the stream is faster than visibility
	if d := b.one(endpoint); !d.Unseen || d.Orphaned {
		b.Errorf("before it is visible: unseen %t, orphaned %t", d.Unseen, d.Orphaned)
	}
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")
	commit()
	if d := b.one(endpoint); d.Unseen || d.Orphaned || d.Event.Payload == nil {
		b.Errorf("when it is visible: unseen %t, orphaned %t, payload %q", d.Unseen, d.Orphaned, d.Event.Payload)
	}
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")

	b.Forget(e.ID)
	b.eventually("it is orphaned", func() bool { return b.one(endpoint).Orphaned })
	release := b.Lock(r.ID)
	b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
	b.has(r.ID, "pending 0")
	release()
	b.eventually("it is cancelled", func() bool {
		b.ok(b.CancelOrphans(b.Context(), b.fence, []uuid.UUID{r.ID}))
		return b.text(r.ID) == "cancelled 0"
	})
}

func knowsStrangers(b *bench) {
	endpoint := b.NewEndpoint(organization)
	r, done := b.owed(endpoint), b.owed(endpoint)
	b.insert(r, outcome(done, store.Success, 1))
	ids := []uuid.UUID{r.ID, done.ID}
	b.ok(b.CancelStrangers(b.Context(), b.fence, ids))
	if d := b.one(endpoint); d.Stranger {
		b.Error("its own organization's is a stranger")
	}
	b.GiveAgain(endpoint, "org_2")
	if d := b.one(endpoint); !d.Stranger {
		b.Error("another organization's is none")
	}
	b.ok(b.CancelStrangers(b.Context(), b.fence, ids))
	b.has(r.ID, "cancelled 0")
	b.has(done.ID, "success 1")
}

func findsWaiting(b *bench) {
	var all []store.Waiting
	for i := range 4 {
		id := b.NewEndpoint(organization)
		r := b.owed(id)
		r.Wait = -time.Duration(i+1) * time.Hour
		b.insert(r)
		all = append(all, store.Waiting{EndpointID: id, Enabled: true})
	}
	b.NewEndpoint(organization) // has none
	b.insert(outcome(b.owed(b.NewEndpoint(organization)), store.Success, 1))

	found, now, complete, err := b.NewlyDue(b.Context(), time.Now().Add(-150*time.Minute))
	b.ok(err)
	want := []uuid.UUID{all[0].EndpointID, all[1].EndpointID}
	slices.SortFunc(want, compareIDs)
	if slices.SortFunc(found, compareIDs); !slices.Equal(found, want) || !complete || !near(now, time.Now()) {
		b.Errorf("newly due: %v at %s, all %t; want %v", found, now, complete, want)
	}

	b.Enable(all[1].EndpointID, false)
	b.Delete(all[2].EndpointID)
	all[1].Enabled, all[2].Enabled = false, false
	slices.SortFunc(all, func(a, o store.Waiting) int { return compareIDs(a.EndpointID, o.EndpointID) })
	waiting, err := b.Waiting(b.Context(), uuid.Nil, 3)
	b.ok(err)
	if !slices.Equal(waiting, all[:3]) {
		b.Errorf("waiting: %v, want %v", waiting, all[:3])
	}
	waiting, err = b.Waiting(b.Context(), all[2].EndpointID, 3)
	b.ok(err)
	if !slices.Equal(waiting, all[3:]) {
		b.Errorf("waiting behind the third: %v, want %v", waiting, all[3:])
	}
}

func cancelsRows(b *bench) {
	for what, off := range map[string]func(uuid.UUID){"disabled": func(id uuid.UUID) { b.Enable(id, false) }, "deleted": b.Delete} {
		endpoint, other := b.NewEndpoint(organization), b.NewEndpoint(organization)
		due, later, held, done, elsewhere := b.owed(endpoint), b.owed(endpoint), b.owed(endpoint), b.owed(endpoint), b.owed(other)
		later.Wait = time.Hour
		b.insert(due, later, held, outcome(done, store.Failed, 2), elsewhere)
		cancelled, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
		b.ok(err)
		if cancelled != 0 || more {
			b.Errorf("enabled: %d cancelled, more %t", cancelled, more)
		}
		off(endpoint)
		release := b.Lock(held.ID)
		b.eventually(what+": what is owed is cancelled", func() bool {
			_, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
			b.ok(err)
			return !more && b.text(due.ID) == "cancelled 0" && b.text(later.ID) == "cancelled 0"
		})
		b.has(held.ID, "pending 0")
		release()
		if cancelled, _, err := b.CancelRows(b.Context(), b.fence, endpoint, "off"); err != nil || cancelled != 1 {
			b.Errorf("%s: %d of what was held are cancelled, %v", what, cancelled, err)
		}
		b.has(done.ID, "failed 2")
		b.has(elsewhere.ID, "pending 0")
	}
}

func cancelsWhatIsSettled(b *bench) {
	endpoint := b.NewEndpoint(organization)
	b.Enable(endpoint, false)
	commit := b.Begin(event()) // which may make or enable an endpoint, too
	e := event(endpoint)
	r := record(e, endpoint)
	b.insert(r)
	cancelled, more, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
	b.ok(err)
	if cancelled != 0 || !more {
		b.Errorf("%d cancelled, more %t, while a transaction is open", cancelled, more)
	}
	b.has(r.ID, "pending 0")
	commit()
	b.eventually("it is cancelled when that has ended", func() bool {
		_, _, err := b.CancelRows(b.Context(), b.fence, endpoint, "off")
		b.ok(err)
		return b.text(r.ID) == "cancelled 0"
	})
}

// within is a bound for ids that are all there.
func within() uuid.UUID { return outbox.TimeID(time.Now().Add(time.Hour)) }

func findsMissing(b *bench) {
	var endpoints []uuid.UUID
	for range 3 {
		endpoints = append(endpoints, b.NewEndpoint(organization))
	}
	want := map[uuid.UUID]bool{}
	for i, owed := range [][]uuid.UUID{endpoints, {}, endpoints[:1], endpoints[1:], {}} {
		e := event(owed...)
		e.EndpointIDs = append([]uuid.UUID{}, owed...) // nobody is not the default
		b.Begin(e)()
		for _, id := range owed {
			r := record(e, id)
			if want[r.ID] = i != 2; i == 2 {
				b.insert(r)
			}
		}
	}
	for limit := 1; limit < 10; limit++ {
		got := map[uuid.UUID]bool{}
		looks, events := 0, 0
		for from, end := (store.Position{}), false; !end && looks < 10; looks++ {
			c, err := b.Missing(b.Context(), from, within(), limit)
			b.ok(err)
			for _, m := range c.Missing {
				if got[m.ID] || !want[m.ID] || m.ID != outbox.DeliveryID(m.EventID, m.EndpointID) || m.OrganizationID != organization || m.EventType != "payment.failed" {
					b.Errorf("limit %d: %+v, found before: %t", limit, m, got[m.ID])
				}
				got[m.ID] = true
			}
			from, end, events = c.Upto, c.End, events+c.Events
		}
		// Three, one, two, and one for each that is owed to nobody; the last look has room.
		if n := 8/limit + 1; len(got) != 5 || looks != n || events != 5 {
			b.Errorf("limit %d: %d found in %d looks at %d events, want 5 in %d at 5", limit, len(got), looks, events, n)
		}
	}
	if c, err := b.Missing(b.Context(), store.Position{}, outbox.TimeID(time.Now().Add(-time.Hour)), 10); err != nil || len(c.Missing) > 0 || !c.End {
		b.Errorf("before all of them: %+v, %v", c, err)
	}
}

func missesInvisible(b *bench) {
	e := event(b.NewEndpoint(organization))
	commit := b.Begin(e)
	for _, want := range []int{0, 1} {
		c, err := b.Missing(b.Context(), store.Position{}, within(), 10)
		b.ok(err)
		if len(c.Missing) != want {
			b.Errorf("%d missing, want %d", len(c.Missing), want)
		}
		if want == 0 {
			commit()
		}
	}
}

func insertsMissing(b *bench) {
	endpoint := b.NewEndpoint(organization)
	there, missing := b.owed(endpoint), b.owed(endpoint)
	b.insert(outcome(there, store.Success, 1))
	both := []store.Record{there, missing}
	for _, want := range []int{1, 0} {
		n, err := b.InsertMissing(b.Context(), b.fence, both)
		b.ok(err)
		if n != want {
			b.Errorf("%d inserted, want %d", n, want)
		}
	}
	b.has(there.ID, "success 1")
	b.has(missing.ID, "pending 0")
	if row, _ := b.Row(missing.ID); !near(row.DueAt, time.Now().Add(-time.Minute)) {
		b.Errorf("due at %s", row.DueAt)
	}
}

func fences(b *bench) {
	endpoint, off := b.NewEndpoint(organization), b.NewEndpoint(organization)
	r, owed, anew := b.owed(endpoint), b.owed(off), b.owed(endpoint)
	b.insert(r, owed)
	b.Enable(off, false)
	listen := b.Listen()
	former := b.fence
	b.fence = b.claim(&store.Session{})
	if b.fence.Epoch != former.Epoch+1 || b.fence.LastWrite.IsZero() {
		b.Errorf("epoch %d after %d, last write %s", b.fence.Epoch, former.Epoch, b.fence.LastWrite)
	}
	ctx, ids, mark := b.Context(), []uuid.UUID{r.ID, owed.ID}, store.Mark{Seq: 7, Durable: 1 << 40}
	gone := outcome(r, store.Failed, 1)
	gone.Gone = true
	for what, write := range map[string]func() error{
		"Insert": func() error { _, err := b.Insert(ctx, former, mark, []store.Record{anew}); return err },
		"Update": func() error { _, _, err := b.Update(ctx, former, mark, []store.Record{gone}); return err },
		"Mark":   func() error { return b.Mark(ctx, former, mark) },
		"Tell": func() error {
			_, err := b.Tell(ctx, former, store.Consequences(nil, []store.Record{gone})[0])
			return err
		},
		"Owe":             func() error { _, err := b.Owe(ctx, former, time.Now()); return err },
		"CancelRows":      func() error { _, _, err := b.CancelRows(ctx, former, off, ""); return err },
		"CancelOrphans":   func() error { return b.CancelOrphans(ctx, former, ids) },
		"CancelStrangers": func() error { return b.CancelStrangers(ctx, former, ids) },
		"InsertMissing":   func() error { _, err := b.InsertMissing(ctx, former, []store.Record{anew}); return err },
	} {
		if err := write(); !errors.Is(err, store.ErrFenced) {
			b.Errorf("%s: %v, want ErrFenced", what, err)
		}
	}
	since, err := b.Reconciled(ctx, former)
	b.ok(err)
	if !since.IsZero() {
		b.Errorf("the former holder has to compare since %s", since)
	}
	b.has(r.ID, "pending 0")
	b.has(owed.ID, "pending 0")
	b.has(anew.ID, "none")
	if at, _ := b.Position(); at != 0 {
		b.Errorf("position %s", at)
	}
	if got, want := listen(), []string{b.fence.Echo(1)}; !slices.Equal(got, want) {
		b.Errorf("echoes %q, want the newcomer's", got)
	}
	if f := b.claim(&store.Session{Start: 1}); !f.Reconcile {
		b.Error("the former holder has ended what was to be reconciled")
	}
}

func marks(b *bench) {
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	position := func(want pglogrepl.LSN, wantAt time.Time) {
		b.Helper()
		if got, gotAt := b.Position(); got != want || !gotAt.Equal(wantAt) {
			b.Errorf("position %s of %s, want %s of %s", got, gotAt, want, wantAt)
		}
	}
	listen := b.Listen()
	b.ok(b.Mark(b.Context(), b.fence, store.Mark{Seq: 2, Durable: 100, CommitAt: at}))
	position(100, at)
	b.ok(b.Mark(b.Context(), b.fence, store.Mark{Durable: 50, CommitAt: at.Add(time.Minute)})) // backwards, and without an echo
	position(100, at)
	b.ok(b.Mark(b.Context(), b.fence, store.Mark{Durable: 110}))
	position(110, at)
	r := b.owed(b.NewEndpoint(organization))
	_, err := b.Insert(b.Context(), b.fence, store.Mark{Seq: 3, Durable: 120, CommitAt: at.Add(time.Second)}, []store.Record{r})
	b.ok(err)
	position(120, at.Add(time.Second))
	_, _, err = b.Update(b.Context(), b.fence, store.Mark{Seq: 4}, []store.Record{outcome(r, store.Success, 1)})
	b.ok(err)
	position(120, at.Add(time.Second))
	before := b.fence
	before.Server = before.Server.Add(-time.Minute) // the server was started again since
	b.ok(b.Mark(b.Context(), before, store.Mark{Seq: 5, Durable: 200}))
	position(120, at.Add(time.Second))
	if got, want := listen(), []string{b.fence.Echo(2), b.fence.Echo(3), b.fence.Echo(4), b.fence.Echo(5)}; !slices.Equal(got, want) {
		b.Errorf("echoes %q, want %q", got, want)
	}
	if seq, ours := b.fence.ParseEcho(b.fence.Echo(4)); seq != 4 || !ours {
		b.Errorf("the echo of 4 is of %d, ours %t", seq, ours)
	}
}

func saysWhatToReconcile(b *bench) {
	if !b.fence.Reconcile || b.fence.Epoch != 1 {
		b.Errorf("the first claim: epoch %d, reconcile %t", b.fence.Epoch, b.fence.Reconcile)
	}
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	for what, c := range map[string]struct {
		session   *store.Session
		reconcile bool
		durable   pglogrepl.LSN
	}{
		"goes on":                     {&store.Session{Start: 200, Confirmed: 150}, false, 100},
		"goes on from before":         {&store.Session{Start: 60, Confirmed: 50}, false, 60},
		"goes on from what it told":   {&store.Session{Start: 60, Confirmed: 70, Told: 70}, false, 60},
		"from the slot's position":    {&store.Session{Confirmed: 50}, true, 0},
		"the slot was made":           {&store.Session{Start: 100, Confirmed: 100, SlotCreated: true}, true, 0},
		"somebody has moved the slot": {&store.Session{Start: 60, Confirmed: 70}, true, 0},
	} {
		b.ok(b.Mark(b.Context(), b.fence, store.Mark{Durable: 100, CommitAt: at}))
		_, err := b.Reconciled(b.Context(), b.fence)
		b.ok(err)
		b.fence = b.claim(c.session)
		if got, _ := b.Position(); got != c.durable || b.fence.Reconcile != c.reconcile {
			b.Errorf("%s: position %s, reconcile %t; want %s, %t", what, got, b.fence.Reconcile, c.durable, c.reconcile)
		}
		if c.reconcile && !b.fence.ReconcileFrom.Before(at) { // how long before depends on what was open
			b.Errorf("%s: since %s, want from before %s", what, b.fence.ReconcileFrom, at)
		}
	}
}

func endsOneCause(b *bench) {
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	reconciled := func(what string, f store.Fence, want time.Time) {
		b.Helper()
		since, err := b.Reconciled(b.Context(), f)
		b.ok(err)
		if !since.Equal(want) {
			b.Errorf("%s: there is more since %s, want %s", what, since, want)
		}
	}
	b.ok(b.Mark(b.Context(), b.fence, store.Mark{Durable: 100, CommitAt: at}))
	reconciled("the first", b.fence, time.Time{})
	reconciled("once more, where the answer was lost", b.fence, time.Time{})
	b.fence = b.claim(&store.Session{Start: 100})
	if b.fence.Reconcile {
		b.Errorf("what was reconciled is to be, since %s", b.fence.ReconcileFrom)
	}
	noted, err := b.Owe(b.Context(), b.fence, at)
	b.ok(err)
	if want := at.Add(-time.Microsecond); !noted.Equal(want) {
		b.Errorf("owed since %s, want %s", noted, want)
	}
	reconciled("with what is owed", b.fence, noted)
	again, err := b.Owe(b.Context(), b.fence, at.Add(time.Minute))
	b.ok(err)
	if want := noted.Add(-time.Microsecond); !again.Equal(want) {
		b.Errorf("owed once more since %s, want another value, %s", again, want)
	}
	b.fence = b.claim(&store.Session{Start: 100})
	if !b.fence.Reconcile || !b.fence.ReconcileFrom.Equal(again) {
		b.Errorf("the next holder compares since %s, want %s", b.fence.ReconcileFrom, again)
	}
	b.ok(b.AwaitSlot(b.Context()))
	if since, err := b.Reconciled(b.Context(), b.fence); err != nil || since.IsZero() || !since.Before(again) {
		b.Errorf("when the slot is about to be made there is more since %s, %v; want from before %s", since, err, again)
	}
	if got, _ := b.Position(); got != 0 {
		b.Errorf("position %s, though the slot is lost", got)
	}
}

func settles(b *bench) {
	commit := b.Begin(event(b.NewEndpoint(organization)))
	settled := func(f store.Fence) bool {
		b.Helper()
		settled, err := b.Settled(b.Context(), f)
		b.ok(err)
		return settled
	}
	if !settled(b.claim(&store.Session{SlotCreated: true})) {
		b.Error("whoever makes a slot has waited for them")
	}
	moved, first := b.claim(&store.Session{Start: 100, Confirmed: 101}), b.claim(&store.Session{Confirmed: 101})
	if settled(moved) || settled(first) {
		b.Errorf("settled while a transaction is open: moved %t, first %t", settled(moved), settled(first))
	}
	commit()
	b.eventually("settled when it has ended", func() bool { return settled(moved) && settled(first) })
}

func hasConsequences(b *bench) {
	write := map[string]func(mark store.Mark, r store.Record){
		"Insert": func(mark store.Mark, r store.Record) {
			_, err := b.Insert(b.Context(), b.fence, mark, []store.Record{r})
			b.ok(err)
		},
		"Update": func(mark store.Mark, r store.Record) {
			row := r
			row.Status, row.Attempts, row.Attempt, row.Wait, row.Gone, row.Exhausted = store.Pending, 0, nil, 0, false, false
			b.insert(row)
			_, _, err := b.Update(b.Context(), b.fence, mark, []store.Record{r})
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
			disabled, told := b.Told(outbox.TypeEndpointDisabled), b.Told(outbox.TypeDeliveryExhausted)
			r := outcome(record(e, endpoint), store.Failed, 1)
			r.Gone, r.Exhausted = c.gone, c.exhausted
			write(store.Mark{Alone: c.alone}, r)
			found, err := b.Endpoints(b.Context(), []uuid.UUID{endpoint})
			b.ok(err)
			disabled, told = b.Told(outbox.TypeEndpointDisabled)-disabled, b.Told(outbox.TypeDeliveryExhausted)-told
			if len(found) != 1 || found[0].Enabled == c.off || disabled != c.disabled || told != c.told {
				b.Errorf("%s, %s: %+v, told of %d endpoints and %d deliveries; want off %t, %d, %d", name, c.what, found, disabled, told, c.off, c.disabled, c.told)
			}
		}
	}
	endpoint := b.NewEndpoint(organization)
	r := outcome(b.owed(endpoint), store.Failed, 1)
	r.Gone = true
	_, err := b.Tell(b.Context(), b.fence, store.Consequences(nil, []store.Record{r})[0])
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
		slices.SortFunc(found, func(x, y store.Endpoint) int { return map[bool]int{true: -1, false: 1}[x.ID == endpoint] })
		for _, e := range found {
			open = append(open, e.BreakerOpen)
		}
		return open
	}
	for i, c := range []struct {
		health store.EndpointHealth
		want   bool
	}{
		{store.EndpointHealth{Failing: true}, false},
		{store.EndpointHealth{Failing: true, Open: true}, true},
		{store.EndpointHealth{Failing: true}, false},
		{store.EndpointHealth{Failing: true, Open: true}, true},
		{store.EndpointHealth{Recovered: true}, false},
		{store.EndpointHealth{Recovered: true, Failing: true, Open: true}, true},
	} {
		var health []store.EndpointHealth
		for _, id := range []uuid.UUID{endpoint, off} {
			h := c.health
			h.EndpointID, h.At = id, time.Now()
			health = append(health, h)
		}
		b.ok(b.Mark(b.Context(), b.fence, store.Mark{Health: health}))
		// Of one that is disabled nothing is noted.
		if got, want := open(), []bool{c.want, false}; !slices.Equal(got, want) {
			b.Errorf("step %d: open %v, want %v", i, got, want)
		}
	}
	b.Delete(endpoint)
	if got := open(); !slices.Equal(got, []bool{false}) {
		b.Errorf("when one is deleted: open %v, want the other's", got)
	}
}

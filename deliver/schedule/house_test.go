package schedule

import (
	"cmp"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A house is a Scheduler with everything around it that is not under test, in
// synctest's time: receivers that a test scripts, a table in memory, and the
// loops that go to and fro between them. Only the Scheduler is real.
// The test has its mutex but while it sleeps, so that it may look at
// everything.
type house struct {
	*rig
	endpoints map[uuid.UUID]*webhook.Endpoint
	receivers map[uuid.UUID]answering
	table     map[uuid.UUID]*row
	due       map[uuid.UUID][]*row      // those that wait, by endpoint, in order
	sent      map[uuid.UUID][]time.Time // requests, by endpoint
	underWay  map[uuid.UUID]int
	most      map[uuid.UUID]int // at once
	delay     map[uuid.UUID]time.Duration
	order     map[uuid.UUID][]uuid.UUID // the deliveries of the requests, by endpoint
	pages     int                       // that were asked for
	lookUps   int
	health    []webhook.EndpointHealth // that was recorded
}

// An answering says what a receiver answers to a request, and after how long.
type answering func(at time.Time) (status int, after time.Duration)

// A row is a delivery in the table.
type row struct {
	webhook.Record
	due time.Time
}

func always(status int, after time.Duration) answering {
	return func(time.Time) (int, time.Duration) { return status, after }
}

// until answers like one receiver until a time, and then like another.
func until(t time.Time, before, after answering) answering {
	return func(at time.Time) (int, time.Duration) {
		if at.Before(t) {
			return before(at)
		}
		return after(at)
	}
}

var usual = Limits{ParkAfter: 500 * time.Millisecond, MaxInFlight: 1024, EndpointInFlight: 32, Window: 8192, MaxMemory: 64 << 20, Timeout: 10 * time.Second}

func newHouse(t *testing.T, limits Limits) *house {
	return newHouseWithPoll(t, limits, 100*time.Millisecond)
}

// newHouseWithPoll sets how often the retrier polls for due rows. A slow poll wakes no lane
// that the Scheduler has forgotten.
func newHouseWithPoll(t *testing.T, limits Limits, poll time.Duration) *house {
	h := &house{rig: newRig(t, limits), endpoints: map[uuid.UUID]*webhook.Endpoint{}, receivers: map[uuid.UUID]answering{}, table: map[uuid.UUID]*row{}, due: map[uuid.UUID][]*row{},
		sent: map[uuid.UUID][]time.Time{}, underWay: map[uuid.UUID]int{}, most: map[uuid.UUID]int{}, delay: map[uuid.UUID]time.Duration{}, order: map[uuid.UUID][]uuid.UUID{}}
	h.w.fence.Epoch = 1
	h.w.onStart = func(d *Delivery) { go h.attempt(d) }
	h.w.mu.Lock()
	t.Cleanup(h.w.mu.Unlock)
	go h.clock()
	go h.every(time.Hour, h.w.ToLookUp, h.lookUp)
	go h.every(50*time.Millisecond, nil, h.record)
	go h.every(poll, nil, h.look)
	go h.every(time.Hour, h.w.ToFetch, h.fetch)
	return h
}

// sleep lets the others go on, until nothing more happens at that time.
func (h *house) sleep(d time.Duration) {
	h.w.mu.Unlock()
	defer h.w.mu.Lock()
	time.Sleep(d)
	synctest.Wait()
}

// clock turns as deliver's does.
func (h *house) clock() {
	timer := time.NewTimer(ParkEvery)
	defer timer.Stop()
	for {
		select {
		case <-h.t.Context().Done():
			return
		case <-timer.C:
		case <-h.w.ToPace:
		}
		timer.Reset(h.w.Tick(time.Now()))
	}
}

// every turns a loop, also at a signal.
func (h *house) every(d time.Duration, s Signal, turn func(now time.Time)) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-h.t.Context().Done():
			return
		case <-tick.C:
		case <-s:
		}
		h.w.mu.Lock()
		turn(time.Now())
		h.w.dispatch(time.Now())
		h.w.mu.Unlock()
	}
}

// open makes an endpoint.
func (h *house) open(r answering, changes ...func(*webhook.Endpoint)) uuid.UUID {
	id := uuid.New()
	h.endpoints[id] = &webhook.Endpoint{ID: id, Enabled: true}
	h.receivers[id] = r
	h.change(id, changes...)
	return id
}

// change is an UPDATE of an endpoint's row.
func (h *house) change(id uuid.UUID, changes ...func(*webhook.Endpoint)) {
	e := *h.endpoints[id]
	for _, c := range changes {
		c(&e)
	}
	h.endpoints[id] = &e
}

// event commits an event for endpoints, and waits until it is taken in.
func (h *house) event(endpoints ...uuid.UUID) {
	h.t.Helper()
	h.eventOf("payment.succeeded", endpoints...)
}

func (h *house) eventOf(typ string, endpoints ...uuid.UUID) {
	h.t.Helper()
	e := &outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: h.endpoints[endpoints[0]].OrganizationID, Type: typ, Payload: []byte(`{}`), EndpointIDs: endpoints}
	h.w.mu.Unlock()
	admitted := takeIn(h.t.Context(), h.w, e)
	h.w.mu.Lock()
	if !admitted {
		h.t.Fatal("not taken in")
	}
	h.w.ledger.end(h.w.ledger.recorded.lsn+100, time.Now())
}

// load commits so many events a second for an endpoint, for so long.
func (h *house) load(perSecond int, d time.Duration, endpoints ...uuid.UUID) {
	for range int(d.Seconds() * float64(perSecond)) {
		h.event(endpoints...)
		h.sleep(time.Second / time.Duration(perSecond))
	}
}

// waiting puts rows into the table that are due.
func (h *house) waiting(endpoint uuid.UUID, n, attempts int) {
	for range n {
		r := webhook.Record{ID: uuid.New(), EventID: uuid.New(), EndpointID: endpoint, Status: webhook.Pending, Attempts: attempts, EventType: "payment.failed"}
		if attempts > 0 {
			r.Status = webhook.Retrying
		}
		h.store(&row{Record: r, due: time.Now()})
	}
	h.w.hasRows(h.w.lane(endpoint, time.Now()))
}

// store writes a row.
func (h *house) store(r *row) {
	order := func(a, b *row) int { return cmp.Or(a.due.Compare(b.due), slices.Compare(a.ID[:], b.ID[:])) }
	due := h.due[r.EndpointID]
	if old := h.table[r.ID]; old != nil {
		if i, found := slices.BinarySearchFunc(due, old, order); found {
			due = slices.Delete(due, i, i+1)
		}
	}
	if r.Status == webhook.Pending || r.Status == webhook.Retrying {
		i, _ := slices.BinarySearchFunc(due, r, order)
		due = slices.Insert(due, i, r)
	}
	h.table[r.ID], h.due[r.EndpointID] = r, due
}

func (h *house) attempt(d *Delivery) {
	endpoint := d.lane.id
	begun := time.Now()
	h.w.mu.Lock()
	h.sent[endpoint] = append(h.sent[endpoint], begun)
	h.order[endpoint] = append(h.order[endpoint], d.id)
	h.underWay[endpoint]++
	h.most[endpoint] = max(h.most[endpoint], h.underWay[endpoint])
	if !d.fetched {
		h.delay[endpoint] = max(h.delay[endpoint], begun.Sub(d.received))
	}
	status, after := h.receivers[endpoint](begun)
	h.w.mu.Unlock()
	select {
	case <-h.t.Context().Done():
		return // the test is over
	case <-time.After(after):
	}
	a := webhook.Attempt{StatusCode: status, EndedAt: time.Now(), Duration: time.Since(begun)}
	switch {
	case status == ownFaulted:
		a.StatusCode, a.OwnFault = 0, webhook.FaultProxy
	case status == 0:
		a.Class = webhook.ErrTimeout
	case status > 299:
		a.Class = webhook.ErrHTTP5xx
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.underWay[endpoint]--
	if a.OwnFault != "" {
		h.w.unsent(d, time.Now())
		h.w.met(d.lane, &a, time.Now())
	} else {
		h.w.finish(d, a, time.Now())
	}
	h.w.dispatch(time.Now())
}

// ownFaulted is the status of an attempt that met a fault of ours.
const ownFaulted = -1

// stuck is Stuck, for who has the mutex.
func (h *house) stuck() (Fault, bool) {
	h.w.mu.Unlock()
	defer h.w.mu.Lock()
	return h.w.Stuck()
}

func (h *house) lookUp(now time.Time) {
	for _, l := range h.w.lookUpNext(len(h.w.lanes), now) {
		h.lookUps++
		h.w.lookedUp(l, h.endpoints[l.id], h.target, now, now)
	}
}

func (h *house) record(now time.Time) {
	inserts, updates := h.commit()
	for _, r := range slices.Concat(inserts, updates) {
		h.store(&row{Record: r, due: now.Add(r.Wait)})
	}
	h.health = append(h.health, h.w.takeHealth()...)
}

// look is the retrier's look at what has become due.
func (h *house) look(now time.Time) {
	for id, due := range h.due {
		if len(due) > 0 && !due[0].due.After(now) {
			h.w.hasRows(h.w.lane(id, now))
		}
	}
}

// fetch is the retrier's fetching, of one round of pages.
func (h *house) fetch(now time.Time) {
	for _, p := range h.w.toAsk(32, now) {
		h.pages++
		for _, r := range h.due[p.lane.id] {
			if p.got == p.size || r.due.After(now) {
				break
			}
			if h.w.deliveries[r.ID] != nil {
				continue // the real pages begin behind it
			}
			p.got++
			h.w.admitDue(&webhook.Due{ID: r.ID, EndpointID: r.EndpointID, Status: r.Status, Attempts: r.Attempts, SeriesStart: r.SeriesStart,
				Event: outbox.Event{ID: r.EventID, OrganizationID: h.endpoints[r.EndpointID].OrganizationID, Type: r.EventType, Payload: []byte(`{}`)}}, now)
		}
		h.w.paged(p)
		h.w.ToFetch.Raise()
	}
}

// requests is how many an endpoint got within the last so long.
func (h *house) requests(endpoint uuid.UUID, within time.Duration) int {
	n := 0
	for _, at := range h.sent[endpoint] {
		if time.Since(at) < within {
			n++
		}
	}
	return n
}

// statuses counts an endpoint's rows.
func (h *house) statuses(endpoint uuid.UUID) map[webhook.Status]int {
	n := map[webhook.Status]int{}
	for _, r := range h.table {
		if r.EndpointID == endpoint {
			n[r.Status]++
		}
	}
	return n
}

func (h *house) is(what string, got, least, most int) {
	h.t.Helper()
	if got < least || got > most {
		h.t.Errorf("%s: %d, want %d to %d", what, got, least, most)
	}
}

// idle ends the test with nothing under way.
func (h *house) idle() {
	h.t.Helper()
	h.sleep(time.Minute)
	h.wantEmpty()
}

package deliver

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store/storetest"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// The world around the pipeline: an application, its operators, the receivers, and
// faults.

// A faultRates has the faults that may happen in a run. Each is on in half of the runs, so
// that faults come alone, together, and not at all. Percentages are per call, unless
// noted otherwise.
type faultRates struct {
	refused, lost, slow float64 // statements: not committed, committed without an answer, late
	lag                 float64 // the WAL and visibility are behind
	strikes             float64 // per step: one of the faults
	faults              []fault
	operator            bool // changes endpoints, locks rows, replays
	hints               bool // walhook gets change hints
}

// A fault may happen at any moment.
type fault struct {
	name   string
	strike func(*simulation)
}

var faults = []fault{
	{"crash", func(s *simulation) { s.bury(pick(s, s.processes)) }},
	{"freeze", (*simulation).freeze},
	{"graceful stop", func(s *simulation) {
		if p := pick(s, s.processes); !p.stopped {
			p.stop()
		}
	}},
	{"cut", func(s *simulation) {
		if s.db.slot != nil {
			s.db.slot.connection = nil
		}
	}},
	{"outage", func(s *simulation) { s.db.fail(s.within(3 * time.Second)) }},
	{"failover", func(s *simulation) {
		s.db.fail(s.within(3 * time.Second))
		s.db.fallBack(true)
	}},
	{"restore", func(s *simulation) {
		s.db.fail(s.within(3 * time.Second))
		s.db.fallBack(false)
	}},
	{"slot lost", func(s *simulation) { s.db.slot = nil }},
	{"rows moved", func(s *simulation) {
		s.db.Moves++
		for _, e := range s.db.Events {
			s.db.Moved[e.ID] = s.db.Moves
		}
		for _, r := range s.db.Order {
			if s.chance(50) {
				s.db.Moved[r.ID] = s.db.Moves
			}
		}
	}},
	{"slot moved", (*simulation).moveSlot},
	{"rows locked", func(s *simulation) {
		for _, r := range s.db.Order {
			if s.chance(30) {
				s.db.Locked[r.ID] = time.Now().Add(s.within(2 * time.Second))
			}
		}
	}},
	{"rows refused", func(s *simulation) {
		for _, d := range s.journal.order {
			switch {
			case s.chance(20):
				s.db.Refused[d.id] = time.Now().Add(s.within(3 * time.Second))
			case s.chance(20):
				s.db.Picky[d.id] = time.Now().Add(s.within(3 * time.Second))
			}
		}
	}},
	{"own fault", func(s *simulation) {
		s.ownFault = ownFault{pick(s, webhook.OwnFaults[1:]), uuid.Nil, time.Now().Add(s.within(5 * time.Second))}
		if s.chance(30) {
			s.ownFault.only = pick(s, s.db.EndpointRows).ID
		}
	}},
	{"consequences refused", func(s *simulation) { s.db.RefuseConsequences = time.Now().Add(s.within(3 * time.Second)) }},
}

// An ownFault keeps walhook from sending for a while.
type ownFault struct {
	kind  webhook.OwnFault
	only  uuid.UUID // to this endpoint; Nil: to all
	until time.Time
}

// met reports whether an attempt meets it.
func (f *ownFault) met(endpoint uuid.UUID) bool {
	return time.Now().Before(f.until) && (f.only == uuid.Nil || f.only == endpoint)
}

func (s *simulation) drawFaultRates() faultRates {
	w := faultRates{operator: s.chance(50), hints: s.chance(50), strikes: pick(s, []float64{0.05, 0.2, 1})}
	for _, v := range []*float64{&w.refused, &w.lost, &w.slow, &w.lag} {
		if s.chance(50) {
			*v = pick(s, []float64{1, 5, 20})
		}
	}
	for _, f := range faults {
		if s.chance(35) {
			w.faults = append(w.faults, f)
		}
	}
	return w
}

// strike lets a fault happen, now and then.
func (s *simulation) strike() {
	if len(s.faultRates.faults) == 0 || !s.chance(s.faultRates.strikes) {
		return
	}
	f := pick(s, s.faultRates.faults)
	s.note("fault: %s", f.name)
	f.strike(s)
}

// moveSlot recreates or advances the slot while nobody holds it. The stream does not
// bring the events in between.
func (s *simulation) moveSlot() {
	db := s.db
	if db.slot == nil {
		return
	}
	to := db.End()
	if s.chance(50) {
		to = pick(s, db.WAL).End
	}
	if to <= db.slot.confirmed {
		return
	}
	s.note("slot moved from %d to %d", db.slot.confirmed, to)
	db.slot.connection = nil
	db.slot.confirmed, db.slot.saved, db.slot.moved = to, to, max(db.slot.moved, to)
}

// freeze stops a process for a while, beside a second one. If the server does not hear
// from the frozen one for long enough, the second one gets the slot.
func (s *simulation) freeze() {
	p := pick(s, s.processes)
	p.watch()
	p.thaws = time.Now().Add(s.within(5 * time.Second))
	if len(s.processes) == 1 {
		s.start()
	}
	if c := p.connection(); c != nil && s.chance(80) {
		s.spawn("walsender", nil, func() {
			s.pass(simulatedPatience + s.within(time.Second))
			if p.frozen() && p.connection() == c {
				s.db.slot.connection = nil
			}
		})
	}
}

// populate makes the endpoints and starts the tasks of the world.
func (s *simulation) populate() {
	c := &storetest.Commit{Visible: true}
	for range 1 + s.rng.IntN(5) {
		c.Endpoints = append(c.Endpoints, s.newEndpoint())
	}
	s.db.Write(c)
	s.db.makeSlot()
	s.db.replicated = s.db.End()
	s.db.serve()
	s.start()
	s.spawn("application", nil, s.application)
	if s.faultRates.operator {
		s.spawn("operator", nil, s.operator)
	}
}

func (s *simulation) newEndpoint() *storetest.Endpoint {
	e := &storetest.Endpoint{Own: s.chance(30)}
	forAll := s.chance(15)
	e.Endpoint = webhook.Endpoint{ID: s.id(time.Now()), OrganizationID: fmt.Sprint("org_", s.rng.IntN(2)), URL: "https://example.com/",
		ForAll: forAll, Enabled: true, Secrets: []webhook.Secret{"a secret of sixteen"}, MaxInFlight: s.rng.IntN(3)}
	if s.chance(20) {
		e.RatePerSecond = 5
	}
	s.journal.belongs(e)
	s.journal.receivers[e.ID] = s.newReceiver()
	return e
}

// application commits events, and rolls some back.
func (s *simulation) application() {
	pause := pick(s, []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, time.Second})
	for time.Since(s.began) < faultTime {
		s.pass(s.within(2 * pause))
		c := &storetest.Commit{Visible: !s.chance(50)}
		if s.chance(5) {
			c.Endpoints = append(c.Endpoints, s.newEndpoint())
		}
		for range s.rng.IntN(4) {
			c.Events = append(c.Events, s.newEvent(c.Endpoints...))
		}
		for _, e := range c.Events {
			s.journal.committed(e)
		}
		s.db.Write(c)
	}
}

func (s *simulation) newEvent(made ...*storetest.Endpoint) *outbox.Event {
	at := time.Now().Add(-s.within(200 * time.Millisecond))
	if s.chance(5) {
		at = at.Add(-2 * time.Minute) // a long transaction
	}
	e := &outbox.Event{ID: s.id(at), OrganizationID: fmt.Sprint("org_", s.rng.IntN(2)), Type: "payment.succeeded", CreatedAt: at}
	e.Payload = fmt.Appendf(nil, `{"n":%q}`, fmt.Sprintf("%0*d", 1+s.rng.IntN(400), 0))
	e.EndpointIDs = s.db.Owed(e.OrganizationID, e.Type, made...)
	return e
}

// operator changes endpoints, and replays and cancels deliveries.
func (s *simulation) operator() {
	for time.Since(s.began) < faultTime {
		s.pass(s.within(4 * time.Second))
		if s.chance(40) {
			s.changeEndpoint(*pick(s, s.db.EndpointRows))
		} else if len(s.db.Order) > 0 {
			s.replay(*pick(s, s.db.Order))
		}
		for _, p := range s.processes {
			if s.faultRates.hints {
				p.engine.finder.changeHint.Raise()
			}
		}
	}
}

func (s *simulation) changeEndpoint(e storetest.Endpoint) {
	if e.Deleted {
		if !e.Erased && s.chance(50) {
			s.giveAway(e)
		}
		return
	}
	switch s.rng.IntN(10) {
	case 9:
		e.ForAll = !e.ForAll
	case 0:
		e.Deleted = true
	case 1, 2:
		e.Enabled = !e.Enabled
	case 3:
		e.MaxInFlight = s.rng.IntN(3)
	case 4:
		if e.Sealed = ""; s.chance(70) && time.Since(s.began) < faultTime {
			e.Sealed = "its secret was sealed with another key"
		}
	case 5, 6:
		e.Paused = !e.Paused && time.Since(s.began) < faultTime
	default:
		e.RatePerSecond = float64(s.rng.IntN(20))
	}
	if e.Deleted || !e.Enabled {
		s.journal.refused[e.ID] = true
	}
	s.journal.stands(&e)
	s.journal.belongs(&e)
	s.note("endpoint %s: enabled %v, deleted %v, paused %v, for all %v", e.ID, e.Enabled, e.Deleted, e.Paused, e.ForAll)
	c := &storetest.Commit{Visible: true, Endpoints: []*storetest.Endpoint{&e}}
	if e.Erased = e.Deleted && s.chance(50); e.Erased {
		for _, r := range s.db.Order {
			if r.EndpointID == e.ID {
				c.Gone = append(c.Gone, r.ID)
			}
		}
		s.note("endpoint %s is erased, with %d rows", e.ID, len(c.Gone))
	}
	s.db.Write(c)
	if e.Deleted && !e.Erased && s.chance(50) { // before anybody has noticed
		s.giveAway(e)
	}
}

// giveAway gives a deleted endpoint's id to one of another organization, as the tables' owner
// may. What is owed to the deleted one must not reach that.
func (s *simulation) giveAway(e storetest.Endpoint) {
	e.Deleted, e.Enabled, e.Sealed, e.Paused = false, true, "", false
	e.OrganizationID = map[string]string{"org_0": "org_1", "org_1": "org_0"}[e.OrganizationID]
	s.note("endpoint %s belongs to %s", e.ID, e.OrganizationID)
	s.journal.belongs(&e)
	s.journal.stands(&e)
	s.db.Write(&storetest.Commit{Visible: true, Endpoints: []*storetest.Endpoint{&e}})
}

// replay replays a delivery in any state, also while its attempt is under way. Now and
// then it cancels the delivery by hand instead.
func (s *simulation) replay(r storetest.Row) {
	if s.db.IsLocked(r.ID) {
		return
	}
	r.Said = true
	if s.chance(20) && r.Waits() {
		s.note("cancel %s", r.ID)
		r.Status = webhook.Cancelled
		s.journal.cancelled(r.ID)
	} else {
		s.note("replay %s", r.ID)
		r.Status, r.DueAt = webhook.Pending, time.Now()
		s.journal.replayed(r.ID)
	}
	s.db.Write(&storetest.Commit{Visible: true, Rows: []*storetest.Row{&r}})
}

// mendEndpoints makes all endpoints' secrets readable again, and has the paused ones go on.
func (s *simulation) mendEndpoints() {
	c := &storetest.Commit{Visible: true}
	for _, e := range s.db.EndpointRows {
		if e.Sealed != "" || e.Paused {
			mended := *e
			mended.Sealed, mended.Paused = "", false
			s.journal.stands(&mended)
			c.Endpoints = append(c.Endpoints, &mended)
		}
	}
	if len(c.Endpoints) > 0 {
		s.db.Write(c)
	}
}

package deliver

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// settled reports whether nothing is left to do.
func (s *simulation) settled() bool { return s.unsettled() == "" }

// unsettled names something that is left to do, or returns "".
func (s *simulation) unsettled() string {
	for _, d := range s.journal.order {
		r, by := s.db.Rows[d.id], s.db.Inserted[d.event.ID]
		switch {
		case by == nil: // the database lost it
		case s.db.Erased(d.endpoint) != nil:
		case r == nil:
			return fmt.Sprintf("delivery %s (event at %d, endpoint %s) has no row", d.id, by.End, d.endpoint)
		case r.Waits():
			return fmt.Sprintf("delivery %s (endpoint %s) is %s after %d attempts, due %v", d.id, d.endpoint, r.Status, r.Attempts, r.DueAt.Sub(s.began))
		}
	}
	p := s.active()
	switch {
	case p == nil:
		return "no process has the slot"
	case p.engine.scheduler.Fence().Epoch == 0 || !s.db.State.ReconcileFrom.IsZero():
		return "the reconciler has not ended"
	case s.db.slot.confirmed != s.db.End():
		return fmt.Sprintf("confirmed is %d, of %d", s.db.slot.confirmed, s.db.End())
	case p.inMemory() > 0:
		return fmt.Sprintf("%d deliveries in memory", p.inMemory())
	}
	return ""
}

// judge compares owed deliveries with the receivers' requests and the table.
func (s *simulation) judge() {
	active := s.active()
	for _, p := range s.processes {
		if p != active { // it has lost the slot, and may not have noticed
			p.excuse()
		}
	}
	owed := 0 // with a row: erased ones have none
	for _, d := range s.journal.order {
		if s.db.Inserted[d.event.ID] != nil && s.db.Erased(d.endpoint) == nil {
			s.judgeDelivery(d)
			owed++
		}
	}
	if len(s.db.Rows) != owed {
		s.violate("%d rows for %d owed deliveries", len(s.db.Rows), owed)
	}
	s.judgeMemory(active)
	s.judgeOperators()
	for _, e := range s.db.EndpointRows {
		if !s.journal.refused[e.ID] {
			s.judgeTold(e.ID)
		}
	}
}

// judgeOperators checks that nothing was told about endpoints that were operators' all along, and
// so got nothing but what walhook itself tells: however they fail, they cause no events.
func (s *simulation) judgeOperators() {
	operators := map[string]bool{}
	for _, e := range s.db.EndpointRows {
		operators[fmt.Sprintf(`{"about":%q}`, e.ID)] = !s.journal.customers[e.ID]
	}
	for _, d := range s.journal.order {
		operators[fmt.Sprintf(`{"about":%q}`, d.id)] = !s.journal.customers[d.endpoint]
	}
	for _, c := range s.db.WAL {
		for _, e := range c.Events {
			if operators[string(e.Payload)] {
				s.violate("%s tells %s about operators", e.Type, e.Payload)
			}
		}
	}
}

// judgeTold checks that each opening of an endpoint's breaker was told once, and each
// closing of one that was told.
func (s *simulation) judgeTold(endpoint uuid.UUID) {
	var told []string
	for _, c := range s.db.WAL {
		for _, e := range c.Events {
			about := string(e.Payload) == fmt.Sprintf(`{"about":%q}`, endpoint)
			if about && (e.Type == outbox.TypeEndpointFailing || e.Type == outbox.TypeEndpointRecovered) {
				told = append(told, e.Type)
			}
		}
	}
	for i, typ := range told {
		if want := []string{outbox.TypeEndpointFailing, outbox.TypeEndpointRecovered}[i%2]; typ != want {
			s.violate("endpoint %s was told %q", endpoint, told)
			return
		}
	}
	if failing := len(told)%2 == 1; failing != s.db.Failing[endpoint].Told {
		s.violate("endpoint %s was told %q, and its breaker is told to be open: %t", endpoint, told, !failing)
	}
}

func (s *simulation) judgeDelivery(d *journaled) {
	r := s.db.Rows[d.id]
	if d.good > 1+d.excused {
		s.violate("delivery %s was delivered %d times, %d may be for crashes", d.id, d.good, d.excused)
	}
	switch r.Status {
	case webhook.Success:
		if d.good == 0 {
			s.violate("delivery %s is success and was never answered with 2xx", d.id)
		}
		if d.goodAt.Before(d.anew) {
			s.violate("delivery %s was replayed at %v, and is success by a request of %v", d.id, d.anew.Sub(s.began), d.goodAt.Sub(s.began))
		}
	case webhook.Failed:
		if n := r.Attempts - r.SeriesStart; n != len(simulatedSchedule)+1 && d.gone == 0 {
			s.violate("delivery %s failed after %d attempts", d.id, n)
		}
		if d.byHand && !d.unsure {
			s.violate("delivery %s was cancelled by hand, and is failed", d.id)
		}
	case webhook.Cancelled:
		if !s.journal.refused[d.endpoint] && !s.journal.withdrawn(d) && !d.byHand && !d.unsure {
			s.violate("delivery %s is cancelled, and neither by hand nor was its endpoint ever disabled", d.id)
		}
	}
	if r.Attempts > d.requests {
		s.violate("delivery %s counts %d attempts, and the receiver %d", d.id, r.Attempts, d.requests)
	}
}

// judgeMemory checks that nothing is left behind in memory.
func (s *simulation) judgeMemory(p *process) {
	if p.inMemory() != 0 || !p.engine.scheduler.Drained(true) {
		s.violate("%d deliveries are left in memory, or positions that wait for an echo", p.inMemory())
	}
	if attempts := slices.ContainsFunc(s.tasks, func(t *task) bool { return t.process == p && t.name == "attempt" }); attempts {
		s.violate("an attempt has not ended")
	}
}

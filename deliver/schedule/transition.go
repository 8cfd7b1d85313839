package schedule

import (
	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/webhook"
)

// What operators want to hear of: an endpoint that stands differently than before, and
// deliveries that are given up.

// A Change is how an endpoint stands differently.
type Change int

// The changes.
const (
	BreakerOpened Change = iota
	BreakerClosed
	Disabled
	Deleted
	Paused
	Resumed
)

// A Transition is one change of one endpoint.
type Transition struct {
	Change       Change
	Endpoint     uuid.UUID
	Organization string
	Host         string // scheme and host of its URL
	Reason       string // "": none is known
}

// maxTransitions bounds those that nobody has taken, at some 200 bytes each. They are taken
// ten times a second.
const maxTransitions = 4096

// changed notes that an endpoint stands differently.
func (s *Scheduler) changed(l *lane, c Change, reason string) {
	if len(s.transitions) < maxTransitions {
		s.transitions = append(s.transitions, Transition{Change: c, Endpoint: l.id, Organization: l.organization, Host: l.host(), Reason: reason})
	}
}

// host returns scheme and host of a lane's endpoint.
func (l *lane) host() string {
	if l.target == nil {
		return ""
	}
	return l.target.String()
}

// Exhausted are deliveries whose last attempt has failed, and the first of them.
type Exhausted struct {
	Count        int
	Delivery     uuid.UUID
	Endpoint     uuid.UUID
	Organization string
	Host         string
	Reason       string
}

// exhaust notes that a delivery's last attempt has failed.
func (s *Scheduler) exhaust(d *Delivery) {
	if s.exhausted.Count++; s.exhausted.Count == 1 {
		s.exhausted.Delivery, s.exhausted.Endpoint, s.exhausted.Organization = d.id, d.lane.id, d.event.organization
		s.exhausted.Host, s.exhausted.Reason = d.lane.host(), d.attempt.Error
	}
}

// TakeChanges takes what has changed since it was last called.
func (s *Scheduler) TakeChanges() ([]Transition, Exhausted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, e := s.transitions, s.exhausted
	s.transitions, s.exhausted = nil, Exhausted{}
	return t, e
}

// noteLookUp notes what a look-up tells that the one before did not: knew is whether there
// was one.
func (s *Scheduler) noteLookUp(l *lane, knew bool, e *webhook.Endpoint, refused, paused bool) {
	switch {
	case !knew:
	case refused && !l.refused && e == nil:
		s.changed(l, Deleted, "")
	case refused && !l.refused:
		s.changed(l, Disabled, e.DisabledReason)
	case !refused && paused && !l.paused:
		s.changed(l, Paused, "")
	case !refused && !paused && l.paused:
		s.changed(l, Resumed, "")
	}
}

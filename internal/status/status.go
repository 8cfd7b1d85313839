// Package status says on one screen, or in one JSON object, how walhook stands. It reads the
// database alone, so it also tells of a walhook that is down.
//
//	status  what is read, and the JSON
//	screen  the same for people
package status

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
)

// listed bounds the failing endpoints that are read, each with some of its rows.
const listed = 20

// overdueLooks bounds how often the oldest due delivery is looked for, at 16 endpoints each time:
// everything that has been due for longest may be held by a breaker.
const overdueLooks = 3

// The roles, in the words of /readyz. A walhook that stands by is not seen from the database.
const (
	active  = "active"  // a walhook is connected to the slot, and delivers
	down    = "down"    // none is
	unknown = "unknown" // the slot could not be looked at
)

// A Status is how walhook stands. A part that could not be read is null.
type Status struct {
	Role          string `json:"role"`
	Version       string `json:"version"` // of this program
	SchemaVersion *int   `json:"schema_version"`
	Environment   string `json:"environment"`

	Slot         string `json:"slot"`
	SlotExists   bool   `json:"slot_exists"`
	WALStatus    string `json:"wal_status"`
	LagBytes     *int64 `json:"lag_bytes"`      // null without a slot
	SafeWALBytes *int64 `json:"safe_wal_bytes"` // null: no limit is set, or the slot is lost

	Pending          *int64   `json:"pending"`
	Retrying         *int64   `json:"retrying"`
	WaitingEstimated bool     `json:"waiting_estimated"` // Pending and Retrying are PostgreSQL's estimates
	OverdueSeconds   *float64 `json:"overdue_seconds"`

	Endpoints   *Endpoints `json:"endpoints"`
	Failing     []Failing  `json:"failing"`      // the worst first
	FailingMore int64      `json:"failing_more"` // that are not in the list
	Stopped     []Failing  `json:"stopped"`      // paused or disabled, after those that fail: listed at most of both

	PartitionsAhead *int   `json:"partitions_ahead"`
	StrayRows       *int64 `json:"stray_rows"`
}

// Endpoints counts them by how they stand, each once.
type Endpoints struct {
	OK       int64 `json:"ok"`
	Failing  int64 `json:"failing"`
	Open     int64 `json:"open"`
	Paused   int64 `json:"paused"`
	Disabled int64 `json:"disabled"`
}

// A Failing is an endpoint with nothing but failures, or one that is stopped.
type Failing struct {
	Endpoint     string    `json:"endpoint"`
	Organization string    `json:"organization"`
	ForAll       bool      `json:"all_organizations"` // operators are told by it
	URL          string    `json:"url"`               // scheme and host
	State        string    `json:"state"`
	Since        time.Time `json:"since"`
	Error        string    `json:"error"` // the last one; of a disabled endpoint, why it is
	Waiting      int       `json:"waiting"`
	WaitingMore  bool      `json:"waiting_more"` // and more than is counted
}

// Take reads how walhook stands. Its error joins those of the parts that could not be read.
func Take(ctx context.Context, st *store.Store, version, slot string) (*Status, error) {
	s := &Status{Role: unknown, Version: version, Slot: slot, Failing: []Failing{}, Stopped: []Failing{}}
	overview, err := st.Overview(ctx)
	for look := 1; look < overdueLooks && overview.Overdue != nil && *overview.Overdue == 0 && st.OverdueUnknown(); look++ {
		if again, err := st.Overdue(ctx); err == nil {
			overview.Overdue = &again
		}
	}
	s.fill(overview)
	installed, errVersion := st.Installed(ctx)
	if errVersion == nil && installed > 0 {
		s.SchemaVersion = &installed
	}
	troubled, _, errTroubled := st.EndpointViews(ctx, "", listed)
	s.list(troubled)
	return s, errors.Join(err, errVersion, errTroubled)
}

func (s *Status) fill(o store.Overview) {
	if slot := o.Slot; slot != nil {
		s.Environment, s.Slot, s.SlotExists, s.WALStatus = slot.Environment, cmp.Or(slot.Slot, s.Slot), slot.Exists, slot.WALStatus
		if s.Role = down; slot.Active {
			s.Role = active
		}
		if slot.Exists {
			s.LagBytes, s.SafeWALBytes = &slot.LagBytes, slot.SafeBytes
		}
	}
	if w := o.Waiting; w != nil {
		s.Pending, s.Retrying, s.WaitingEstimated = &w.Pending, &w.Retrying, w.Estimated()
	}
	if o.Overdue != nil {
		s.OverdueSeconds = new(o.Overdue.Seconds())
	}
	if e := o.Endpoints; e != nil {
		s.Endpoints = &Endpoints{OK: e.OK, Failing: e.Failing, Open: e.Open, Paused: e.Paused, Disabled: e.Disabled}
	}
	s.PartitionsAhead, s.StrayRows = o.Ahead, o.Strays
}

// list takes the endpoints in trouble in.
func (s *Status) list(troubled []store.EndpointView) {
	for _, e := range troubled {
		f := Failing{Endpoint: e.ID.String(), Organization: e.OrganizationID, ForAll: e.ForAll, URL: terminal.Printable(e.Host), Waiting: int(e.Waiting), WaitingMore: e.WaitingMore}
		since := e.FailingSince
		if e.Last != nil {
			f.Error = cmp.Or(e.Last.Error, e.Last.Class)
		}
		switch {
		case !e.Enabled:
			f.State, f.Error, since = "disabled", e.DisabledReason, e.DisabledAt
		case e.PausedAt != nil:
			f.State, since = "paused", e.PausedAt
		case e.BreakerOpenedAt != nil:
			f.State = "open"
		default:
			f.State = "failing"
		}
		if since != nil {
			f.Since = since.UTC()
		}
		if !e.Enabled || e.PausedAt != nil {
			s.Stopped = append(s.Stopped, f)
		} else {
			s.Failing = append(s.Failing, f)
		}
	}
	if e := s.Endpoints; e != nil {
		s.FailingMore = max(e.Failing+e.Open-int64(len(s.Failing)), 0)
	}
}

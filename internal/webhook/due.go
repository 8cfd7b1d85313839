package webhook

import (
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// A Due is a delivery whose next attempt is due.
type Due struct {
	ID          uuid.UUID
	EndpointID  uuid.UUID
	Status      Status
	Attempts    int
	SeriesStart int
	Event       outbox.Event // EndpointIDs is not read
	Orphaned    bool         // the event was deleted, so there is nothing to send
	Unseen      bool         // the event is missing, but may be about to become visible
	Reassigned  bool         // the endpoint is another organization's now, see Endpoint.Gets
	DueAt       DueTime
}

// End returns the end of a page whose last row this is.
func (d *Due) End() PageEnd { return PageEnd{DueAt: d.DueAt, ID: d.ID} }

// A PageEnd is the position after which the next page begins. The zero PageEnd is before
// the first row.
type PageEnd struct {
	DueAt DueTime
	ID    uuid.UUID
}

// A Page asks for due deliveries of one endpoint, oldest due first.
type Page struct {
	EndpointID uuid.UUID
	After      PageEnd
	Limit      int
}

// A DueTime is the next_attempt_at of a delivery's row. PostgreSQL has a time before all
// others, too. The zero DueTime is of no row.
type DueTime struct {
	Time     time.Time
	Infinite bool // -infinity: Time is not set
	Valid    bool
}

// A Waiting is an endpoint with unfinished deliveries.
type Waiting struct {
	EndpointID uuid.UUID
	Enabled    bool // false: disabled or deleted
}

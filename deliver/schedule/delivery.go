package schedule

import (
	"container/list"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

type stage uint8

const (
	queued  stage = iota
	running       // an attempt is under way
	ended         // the attempt's outcome waits to be committed
	parked        // a pending row waits to be committed; the body is released
)

// A Delivery is one event owed to one endpoint, while it is in memory.
type Delivery struct {
	id        uuid.UUID
	event     *event
	lane      *lane
	stage     stage
	attempts  int // that have ended, as the row says
	series    int // how many had ended when the present series began
	fetched   bool
	seen      webhook.Seen  // fetched: the row as it was then
	low       bool          // no first attempt: it comes after what the stream brings
	target    *send.Target  // running: the endpoint as of the start
	lease     time.Duration // of a row that is written meanwhile
	attempt   *webhook.Attempt
	gone      bool           // the attempt was answered with 410
	outcome   webhook.Status // ended, and taken to be recorded: what the attempt means for it
	exhausted bool           // likewise: it was the schedule's last

	received time.Time
	age      *list.Element // in Scheduler.aging
	tx       *transaction  // that cannot be confirmed before this is recorded; nil: the table or a taken batch has it
	inTable  bool          // a row is committed
	writing  bool          // a row is being written
	enlisted bool          // in newRows or existing
}

// Request returns the request of the attempt under way.
func (d *Delivery) Request() send.Request {
	return send.Request{Endpoint: d.target, DeliveryID: d.id, EventType: d.event.typ, Retry: d.attempts, Body: d.event.body}
}

// fromStream reports whether the stream brought the delivery, and not the table.
func (d *Delivery) fromStream() bool { return !d.event.committed.IsZero() }

// An event is kept once for all endpoints that are owed it.
type event struct {
	id           uuid.UUID
	organization string
	typ          string
	committed    time.Time // by PostgreSQL's clock; zero: the table brought it
	body         []byte    // of the request; nil when no queued or running delivery needs it
	size         int64     // of the body, while it counts
	users        int
	pinned       bool // the fan-out may have further users for it
}

func newEvent(e *outbox.Event) *event {
	return &event{id: e.ID, organization: e.OrganizationID, typ: e.Type, body: send.Body(e)}
}

// use counts an event's body, once for all users.
func (s *Scheduler) use(e *event) {
	if e.users == 0 {
		e.size = int64(len(e.body))
		s.bytes += e.size
	}
	e.users++
}

// unuse releases the body with its last user.
func (s *Scheduler) unuse(e *event) {
	e.users--
	if e.users == 0 {
		s.bytes -= e.size
		e.unused()
	}
}

// unused releases a body that nobody needs or will need.
func (e *event) unused() {
	if e.users == 0 && !e.pinned {
		e.body = nil
	}
}

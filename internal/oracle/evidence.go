package oracle

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/webhook"
)

// Evidence is what the oracle judges: the journal and the tables.
type Evidence struct {
	Endpoints []Endpoint
	Events    []Event
	Requests  []Request
	Outbox    map[uuid.UUID]Stored // by the event's id
	Rows      []Row
	Replays   map[uuid.UUID]int // how often each delivery was replayed: each excuses one request
	Online    []string          // what was seen to be wrong while walhook ran

	Crashes     []Crash // in the order of their beginning
	PerCrash    int     // W: how many duplicates each may cause
	LastAttempt int     // after how many attempts a delivery may be failed
}

// A Crash is a fault that may cause requests to be repeated: a kill, a freeze, a cut.
type Crash struct {
	From, Until time.Time // before it began and when it was over; Until is zero where nobody noted its end
	Agent       string    // the walhook that it befell; "": any of them
	Ended       bool      // that walhook is no more: what arrives of it later was under way
}

// excuses reports whether a request may be repeated for the crash: it lies between the
// two requests, and befell one of their senders.
func (c *Crash) excuses(before, again *Request) bool {
	sentBefore := !before.At.After(c.Until.Add(seenWithin)) || c.Ended && c.Agent == before.Agent
	return sentBefore && !again.At.Before(c.From) &&
		(c.Agent == "" || c.Agent == before.Agent || c.Agent == again.Agent)
}

// seenWithin bounds how long a request may be under way until its receiver reads the
// clock, on a busy machine: one that arrives so soon after a crash may be from before it.
const seenWithin = 500 * time.Millisecond

// A Row is one of webhook_deliveries.
type Row struct {
	ID, Event, Endpoint uuid.UUID
	Org                 string
	Status              webhook.Status
	Attempts            int
}

// Stored is an event as webhook_outbox has it.
type Stored struct {
	Org, Type string
	Endpoints []uuid.UUID       // that it is owed to
	Data      [sha256.Size]byte // of the payload as PostgreSQL prints it
}

// own reports whether walhook wrote the event.
func (s *Stored) own() bool { return strings.HasPrefix(s.Type, "webhook.") }

const selectOutbox = `
SELECT id, organization_id, event_type, endpoint_ids, sha256(convert_to(payload::text, 'UTF8'))
FROM webhook_outbox WHERE NOT EXISTS (SELECT FROM unnest($1::text[]) AS prefix WHERE starts_with(organization_id, prefix))`

const selectRows = `
SELECT id, event_id, endpoint_id, organization_id, status, attempts FROM webhook_deliveries
WHERE NOT EXISTS (SELECT FROM unnest($1::text[]) AS prefix WHERE starts_with(organization_id, prefix))`

// A Querier is a connection, a transaction or a pool.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ReadTables reads what the tables say, but for organizations whose names begin with
// a prefix that is left out. The events that walhook wrote itself are known from the
// table alone.
func (e *Evidence) ReadTables(ctx context.Context, db Querier, leftOut ...string) error {
	rows, err := db.Query(ctx, selectOutbox, leftOut)
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	e.Outbox = map[uuid.UUID]Stored{}
	var id uuid.UUID
	var s Stored
	var sum []byte
	if _, err := pgx.ForEachRow(rows, []any{&id, &s.Org, &s.Type, &s.Endpoints, &sum}, func() error {
		copy(s.Data[:], sum)
		e.Outbox[id] = s
		if s.own() {
			e.Events = append(e.Events, Event{ID: id, Org: s.Org, Type: s.Type, Fate: Committed})
		}
		return nil
	}); err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	if rows, err = db.Query(ctx, selectRows, leftOut); err != nil {
		return fmt.Errorf("read the deliveries: %w", err)
	}
	if e.Rows, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Row]); err != nil {
		return fmt.Errorf("read the deliveries: %w", err)
	}
	return nil
}

package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/webhook"
)

// Evidence is what the oracle judges: the journal and the tables.
type Evidence struct {
	Endpoints []Endpoint
	Events    []Event
	Requests  []Request
	Outbox    map[uuid.UUID][]uuid.UUID // event → endpoints that the table says it is owed to
	Rows      []Row
	Online    []string // what was seen to be wrong while running

	Crashes     []Crash // in the order of their beginning
	PerCrash    int     // W: how many duplicates each may cause
	LastAttempt int     // after how many attempts a delivery may be failed
}

// A Crash is a fault that may have requests repeated: a kill, a freeze, a cut.
type Crash struct {
	From, Until time.Time // before it began and when it was over; Until is zero where nobody has said so
	Agent       string    // the walhook that it befell; "": whichever there is
}

// excuses says whether a request may be repeated for the crash: it lies between the
// two, and befell one of their senders.
func (c *Crash) excuses(before, again *Request) bool {
	return !before.At.After(c.Until.Add(seenWithin)) && !again.At.Before(c.From) &&
		(c.Agent == "" || c.Agent == before.Agent || c.Agent == again.Agent)
}

// seenWithin is how long a request may be on its way until its receiver looks at
// it, on a busy machine: so much later than a crash is one from before it.
const seenWithin = 500 * time.Millisecond

// A Row is one of webhook_deliveries.
type Row struct {
	ID, Event, Endpoint uuid.UUID
	Status              webhook.Status
	Attempts            int
}

// walhook's own events tell of failures, and are owed to no endpoint of a trial.
const selectOutbox = `
SELECT id, endpoint_ids FROM webhook_outbox WHERE event_type NOT LIKE 'webhook.%' AND NOT starts_with(organization_id, '` + tallied + `')`

// What happens to endpoints that come and go, or of which there are too many, is judged apart.
const selectRows = `
SELECT id, event_id, endpoint_id, status, attempts FROM webhook_deliveries
WHERE NOT starts_with(organization_id, '` + comingAndGoing + `') AND NOT starts_with(organization_id, '` + tallied + `')`

// readTables reads what the tables say.
func (e *Evidence) readTables(ctx context.Context, pool *pgxpool.Pool) error {
	rows, err := pool.Query(ctx, selectOutbox)
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	e.Outbox = map[uuid.UUID][]uuid.UUID{}
	var id uuid.UUID
	var endpoints []uuid.UUID
	if _, err := pgx.ForEachRow(rows, []any{&id, &endpoints}, func() error {
		e.Outbox[id] = endpoints
		return nil
	}); err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	if rows, err = pool.Query(ctx, selectRows); err != nil {
		return fmt.Errorf("read the deliveries: %w", err)
	}
	if e.Rows, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Row]); err != nil {
		return fmt.Errorf("read the deliveries: %w", err)
	}
	return nil
}

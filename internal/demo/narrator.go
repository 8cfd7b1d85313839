package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// gather is how long equal changes are collected into one line. Jitter spreads the
// first retries over 200 ms.
const gather = 400 * time.Millisecond

// A narrator reports changes in webhook_deliveries. Each row of the followed event
// gets its own line; equal changes of other rows share one.
type narrator struct {
	page   *page
	follow uuid.UUID

	told   map[uuid.UUID]change // the last report of each row
	groups []*group             // in order of their first row
}

// A row is a row of webhook_deliveries.
type row struct {
	ID, EventID        uuid.UUID
	Organization, Type string
	DueIn              float64 // seconds
	change
}

// A change is the part of a row that a line reports.
type change struct {
	Receiver string
	OwnType  string // the event's type, if walhook wrote the event
	Status   string
	Attempts int
	Outcome  string // of the last attempt
}

// A group is rows with the same change.
type group struct {
	change
	since   time.Time
	dueIn   float64
	members map[string]int // by organization
}

const selectRows = `
SELECT d.id, d.event_id, d.organization_id, d.event_type, coalesce(extract(epoch FROM d.next_attempt_at - clock_timestamp()), 0)::float8,
       coalesce(split_part(e.url, '/', 4), '?'), CASE WHEN starts_with(d.event_type, 'webhook.') THEN d.event_type ELSE '' END,
       d.status, d.attempts, CASE WHEN d.status = 'pending' AND d.attempts = 0 THEN 'no answer yet: parked'
                                  WHEN d.status = 'pending' THEN 'waits to be replayed'
                                  ELSE coalesce(d.error, d.status_code::text, '') END
FROM webhook_deliveries AS d LEFT JOIN webhook_endpoints AS e ON e.id = d.endpoint_id
ORDER BY d.id`

// tell reports what is new.
func (n *narrator) tell(ctx context.Context, db *pgx.Conn) error {
	rows, err := db.Query(ctx, selectRows)
	if err != nil {
		return fmt.Errorf("look at webhook_deliveries: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return fmt.Errorf("look at webhook_deliveries: %w", err)
	}
	for _, r := range all {
		switch {
		case n.told[r.ID] == r.change:
			continue
		case r.EventID == n.follow:
			n.page.change(r.change, r.DueIn, r.Type+" of "+r.Organization, true)
		default:
			n.gather(r)
		}
		n.told[r.ID] = r.change
	}
	n.say(gather)
	return nil
}

func (n *narrator) gather(r row) {
	i := slices.IndexFunc(n.groups, func(g *group) bool { return g.change == r.change })
	if i < 0 {
		i = len(n.groups)
		n.groups = append(n.groups, &group{change: r.change, since: time.Now(), dueIn: r.DueIn, members: map[string]int{}})
	}
	g := n.groups[i]
	g.members[r.Organization]++
	g.dueIn = min(g.dueIn, r.DueIn)
}

// say reports the groups that are at least so old.
func (n *narrator) say(since time.Duration) {
	n.groups = slices.DeleteFunc(n.groups, func(g *group) bool {
		if time.Since(g.since) < since {
			return false
		}
		var parts []string
		for _, organization := range slices.Sorted(maps.Keys(g.members)) {
			parts = append(parts, fmt.Sprintf("%d of %s", g.members[organization], organization))
		}
		n.page.change(g.change, g.dueIn, strings.TrimSuffix(strings.Join(parts, ", ")+": "+g.OwnType, ": "), false)
		return true
	})
}

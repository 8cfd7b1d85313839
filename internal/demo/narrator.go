package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// gather is how long rows that say the same are collected into one line. Jitter
// spreads the first retries, a second after the attempt, over a fifth of that.
const gather = 400 * time.Millisecond

// A narrator tells what has changed in webhook_deliveries: of the event that is
// followed every row by itself, of the others how many say the same.
type narrator struct {
	page     *page
	evidence *evidence
	follow   uuid.UUID

	told   map[uuid.UUID]change // what was said last of each row
	groups []*group             // in order of their first row
}

// A change is what a line says of a row.
type change struct {
	receiver string
	own      bool // an event of walhook's own
	status   string
	attempts int
	outcome  string // of the last attempt
}

// A group is rows that changed in the same way.
type group struct {
	change
	since   time.Time
	dueIn   float64
	members map[string]int // by organization
}

func newNarrator(page *page, e *evidence) *narrator {
	return &narrator{page: page, evidence: e, told: map[uuid.UUID]change{}}
}

// tell looks at the rows as they are now.
func (n *narrator) tell(now time.Time) {
	for i := range n.evidence.deliveries {
		d := &n.evidence.deliveries[i]
		c := n.changeOf(d)
		if n.told[d.ID] == c {
			continue
		}
		n.told[d.ID] = c
		if d.EventID == n.follow {
			n.page.change(c, d.DueIn, d.Type+" of "+d.OrganizationID, true)
			continue
		}
		n.gather(c, d, now)
	}
	n.say(func(g *group) bool { return now.Sub(g.since) >= gather })
}

// flush says what is still being gathered.
func (n *narrator) flush() { n.say(func(*group) bool { return true }) }

func (n *narrator) changeOf(d *delivery) change {
	c := change{own: outbox.IsOwnType(d.Type), status: d.Status, attempts: d.Attempts, receiver: "?"}
	if e := n.evidence.endpoints[d.EndpointID]; e != nil {
		c.receiver = e.receiver
	}
	switch {
	case d.Status == string(store.Pending) && d.Attempts == 0:
		c.outcome = "no answer yet: parked"
	case d.Status == string(store.Pending):
		c.outcome = "waits to be replayed"
	case d.Error != "":
		c.outcome = d.Error
	default:
		c.outcome = fmt.Sprint(d.StatusCode)
	}
	return c
}

func (n *narrator) gather(c change, d *delivery, now time.Time) {
	i := slices.IndexFunc(n.groups, func(g *group) bool { return g.change == c })
	if i < 0 {
		i = len(n.groups)
		n.groups = append(n.groups, &group{change: c, since: now, dueIn: d.DueIn, members: map[string]int{}})
	}
	g := n.groups[i]
	g.members[d.OrganizationID]++
	g.dueIn = min(g.dueIn, d.DueIn)
}

func (n *narrator) say(ripe func(*group) bool) {
	n.groups = slices.DeleteFunc(n.groups, func(g *group) bool {
		if ripe(g) {
			n.page.change(g.change, g.dueIn, g.who(), false)
			return true
		}
		return false
	})
}

// who counts deliveries by organization.
func (g *group) who() string {
	var parts []string
	for _, organization := range slices.Sorted(maps.Keys(g.members)) {
		parts = append(parts, fmt.Sprintf("%d of %s", g.members[organization], organization))
	}
	text := strings.Join(parts, ", ")
	if g.own {
		text += ": webhook.delivery.exhausted"
	}
	return text
}

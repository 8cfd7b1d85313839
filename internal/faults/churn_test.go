package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Churn is endpoints that come and go, in organizations of their own, with a
// driver, a journal and receivers beside those of the trial: who is owed what
// changes all the time, so that the oracle cannot know it.
type Churn struct {
	trial    *Trial
	journal  *Journal
	receiver *Receiver
	driver   *Driver

	ends []*churned // by the receiver's index
	done [4]int     // operations, by kind
}

// churned is one endpoint that comes and goes.
type churned struct {
	id      uuid.UUID
	org     string
	off     time.Time      // since when it is disabled or deleted; zero: it is not
	offs    [][2]time.Time // from when to when it was before
	deleted bool
}

const (
	churnOrgs  = 4
	churnEvery = 100 * time.Millisecond

	// inForce is how soon a change holds, and onTheWay what a request may need to
	// be seen by a receiver on a busy machine.
	inForce  = time.Second
	onTheWay = 250 * time.Millisecond
)

// endpointsComeAndGo creates, disables, enables and deletes endpoints and rotates
// their secrets, ten times a second, beside the usual load.
func endpointsComeAndGo(t *testing.T, s Setup) {
	lasts := lasting(30 * time.Second)
	x := newTrial(t, s)
	c := newChurn(t, x)
	x.start()
	x.ready()
	x.load.Go(func() { c.driver.drive(t.Context(), Load{Rate: *rate / 2, Duration: lasts}) })
	done := x.drive(Load{Rate: *rate / 2, Duration: lasts})
	ticker := time.NewTicker(churnEvery)
	defer ticker.Stop()
	for changing := true; changing; {
		select {
		case <-done:
			changing = false
		case <-ticker.C:
			c.change()
		}
	}
	x.drain(time.Minute)
	late, requests := c.judge()
	c.receiver.server.CloseClientConnections() // as those of the trial's own
	x.finish(time.Minute, fmt.Sprintf("created=%d switched=%d deleted=%d rotated=%d requests to them=%d latest after a disable=%s",
		c.done[0], c.done[1], c.done[2], c.done[3], requests, late.Round(time.Millisecond)))
}

func newChurn(t *testing.T, x *Trial) *Churn {
	t.Helper()
	c := &Churn{trial: x, journal: &Journal{}}
	receiver, err := newReceiver(c.journal, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(receiver.close)
	c.receiver = receiver
	pool, err := pgxpool.New(t.Context(), x.url())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c.driver = &Driver{journal: c.journal, pool: pool}
	for i := range churnOrgs {
		org := fmt.Sprintf("%s%d", comingAndGoing, i)
		c.driver.orgs = append(c.driver.orgs, org)
		for range 3 {
			c.create(org)
		}
	}
	return c
}

// change does one thing to some endpoint.
func (c *Churn) change() {
	var living []int
	for i, e := range c.ends {
		if !e.deleted {
			living = append(living, i)
		}
	}
	switch roll := rand.N(4); {
	case roll == 0 || len(living) < churnOrgs:
		c.create(c.driver.orgs[rand.N(churnOrgs)])
	case roll == 1:
		c.switchOver(living[rand.N(len(living))])
	case roll == 2:
		c.remove(living[rand.N(len(living))])
	default:
		c.rotate(living[rand.N(len(living))])
	}
}

// create makes an endpoint. Its receiver knows it before others can see it.
func (c *Churn) create(org string) {
	x := c.trial
	x.Helper()
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(x.Context()))
	e := Endpoint{Org: org, Types: []string{"*"}}
	err = tx.QueryRow(x.Context(), `SELECT endpoint_id, secret FROM webhook_create_endpoint($1, $2)`, org, c.receiver.url(len(c.ends))).Scan(&e.ID, &e.Secret)
	if err != nil {
		x.Fatal(err)
	}
	c.receiver.add(e)
	c.ends = append(c.ends, &churned{id: e.ID, org: org})
	if err := tx.Commit(x.Context()); err != nil {
		x.Fatal(err)
	}
	c.done[0]++
}

// switchOver disables an endpoint, or enables it again.
func (c *Churn) switchOver(i int) {
	e := c.ends[i]
	on := !e.off.IsZero()
	before := time.Now()
	c.trial.exec(`UPDATE webhook_endpoints SET enabled = $2 WHERE id = $1`, e.id, on)
	if on {
		e.offs = append(e.offs, [2]time.Time{e.off, before})
		e.off = time.Time{}
	} else {
		e.off = time.Now()
	}
	c.done[1]++
}

// remove deletes an endpoint.
func (c *Churn) remove(i int) {
	e := c.ends[i]
	c.trial.exec(`DELETE FROM webhook_endpoints WHERE id = $1`, e.id)
	if e.off.IsZero() {
		e.off = time.Now()
	}
	e.deleted = true
	c.done[2]++
}

// rotate gives an endpoint a new secret.
func (c *Churn) rotate(i int) {
	x := c.trial
	x.Helper()
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(x.Context()))
	var secret string
	if err := tx.QueryRow(x.Context(), `SELECT webhook_rotate_secret($1)`, c.ends[i].id).Scan(&secret); err != nil {
		x.Fatal(err)
	}
	c.receiver.rotate(i, secret)
	if err := tx.Commit(x.Context()); err != nil {
		x.Fatal(err)
	}
	c.done[3]++
}

// judge looks at what the endpoints got, and at the rows. It returns how long
// after an endpoint was switched off it got its last request.
func (c *Churn) judge() (latest time.Duration, n int) {
	x := c.trial
	x.Helper()
	events, requests := c.journal.copy()
	byID := map[uuid.UUID]*Event{}
	for i := range events {
		byID[events[i].ID] = &events[i]
	}
	for _, r := range requests {
		e, event := c.ends[r.Endpoint], byID[r.Event]
		x.expect(r.Malformed == "", "to endpoint %d: %s", r.Endpoint, r.Malformed)
		if event == nil || event.Fate == RolledBack {
			x.expect(false, "endpoint %d got event %s, which was not committed", r.Endpoint, r.Event)
			continue
		}
		x.expect(event.Org == e.org && event.N == r.N, "endpoint %d of %s got event %s of %s", r.Endpoint, e.org, r.Event, event.Org)
		latest = max(latest, e.after(r.At))
	}
	x.expect(latest <= inForce+onTheWay, "a request came %s after its endpoint was switched off", latest)
	c.judgeRows()
	return latest, len(requests)
}

// after is how long an endpoint has been off at a time; 0: it is on.
func (e *churned) after(at time.Time) time.Duration {
	if !e.off.IsZero() && at.After(e.off) {
		return at.Sub(e.off)
	}
	for _, off := range e.offs {
		if at.After(off[0]) && at.Before(off[1]) {
			return at.Sub(off[0])
		}
	}
	return 0
}

// What must not be: a delivery that is owed and has no row, one that has not
// ended, one that is cancelled at an endpoint that was never switched off, and
// one of another organization than its event.
const (
	selectRowless = `
SELECT count(*) FROM webhook_outbox o CROSS JOIN unnest(o.endpoint_ids) AS owed(endpoint_id)
LEFT JOIN webhook_deliveries d ON d.id = webhook_delivery_id(o.id, owed.endpoint_id)
WHERE o.event_type NOT LIKE 'webhook.%' AND starts_with(o.organization_id, '` + comingAndGoing + `') AND d.id IS NULL`
	selectUnended = `
SELECT count(*) FROM webhook_deliveries WHERE starts_with(organization_id, '` + comingAndGoing + `') AND status NOT IN ('success', 'failed', 'cancelled')`
	selectCancelled = `
SELECT count(*) FROM webhook_deliveries
WHERE starts_with(organization_id, '` + comingAndGoing + `') AND status = 'cancelled' AND endpoint_id <> ALL($1)`
	selectMixed = `
SELECT count(*) FROM webhook_deliveries d JOIN webhook_outbox o ON o.id = d.event_id
JOIN unnest($1::uuid[], $2::text[]) AS e(id, organization_id) ON e.id = d.endpoint_id
WHERE o.organization_id <> e.organization_id OR d.organization_id <> e.organization_id`
)

func (c *Churn) judgeRows() {
	x := c.trial
	x.Helper()
	var ids, switched []uuid.UUID
	var orgs []string
	for _, e := range c.ends {
		ids, orgs = append(ids, e.id), append(orgs, e.org)
		if !e.off.IsZero() || len(e.offs) > 0 {
			switched = append(switched, e.id)
		}
	}
	for _, q := range []struct {
		what, sql string
		args      []any
	}{
		{"deliveries without a row", selectRowless, nil},
		{"deliveries that have not ended", selectUnended, nil},
		{"deliveries cancelled at an endpoint that was never off", selectCancelled, []any{switched}},
		{"deliveries of another organization's event", selectMixed, []any{ids, orgs}},
	} {
		var n int
		if err := x.pool.QueryRow(x.Context(), q.sql, q.args...).Scan(&n); err != nil {
			x.Fatalf("%s: %v", q.what, err)
		}
		x.expect(n == 0, "%d %s", n, q.what)
	}
}

package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A Churn is endpoints that come and go. They have organizations, a driver, a journal and
// a receiver of their own, because the oracle cannot judge them: who is owed what changes
// all the time.
type Churn struct {
	trial    *Trial
	journal  *oracle.Journal
	receiver *Receiver
	driver   *Driver

	ends   []*churned // by the receiver's index
	done   [4]int     // operations, by kind
	reused int        // ids of deleted endpoints
}

// churned is one of the endpoints.
type churned struct {
	id        uuid.UUID
	org       string
	offs      []off
	rotations []rotation // each made a new secret
	deleted   bool
}

// An off is a time in which an endpoint is disabled or deleted. Its beginning and its end
// each lie between two noted moments.
type off struct {
	begins, begun time.Time
	ends, ended   time.Time // zero: not yet
}

// A rotation was committed between two noted moments. The secret before it is valid until
// expires.
type rotation struct{ begins, committed, expires time.Time }

// isOff reports whether the endpoint is disabled or deleted now.
func (e *churned) isOff() bool { return len(e.offs) > 0 && e.offs[len(e.offs)-1].ended.IsZero() }

const (
	churnOrgs  = 4
	churnEvery = 100 * time.Millisecond

	// churnFailShare of the requests fail, and one endpoint of narrowEvery gets one request
	// at a time: deliveries then wait for a retry or in the lane, and could be sent after a
	// disable.
	churnFailShare = 0.2
	narrowEvery    = 3

	// inForce bounds how long after the commit of a change something may be sent without
	// knowledge of it.
	inForce = time.Second
)

// overlaps are how long two secrets are valid. Many of them end during the load.
var overlaps = []time.Duration{0, time.Second, 3 * time.Second, 24 * time.Hour}

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
	figures := c.judge()
	c.receiver.server.CloseClientConnections() // as those of the trial's own
	x.expect(c.reused > 0, "no id was used again")
	x.finish(time.Minute, fmt.Sprintf("created=%d switched=%d deleted=%d ids used again=%d rotated=%d %s", c.done[0], c.done[1], c.done[2], c.reused, c.done[3], figures))
}

func newChurn(t *testing.T, x *Trial) *Churn {
	t.Helper()
	c := &Churn{trial: x, journal: &oracle.Journal{}}
	receiver, err := newReceiver(c.journal, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(receiver.close)
	receiver.failShare = churnFailShare
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
			c.create(org, uuid.Nil)
		}
	}
	return c
}

// change changes an endpoint at random.
func (c *Churn) change() {
	var living []int
	for i, e := range c.ends {
		if !e.deleted {
			living = append(living, i)
		}
	}
	switch roll := rand.N(4); {
	case roll == 0 || len(living) < churnOrgs:
		c.create(c.driver.orgs[rand.N(churnOrgs)], uuid.Nil)
	case roll == 1:
		c.switchOver(living[rand.N(len(living))])
	case roll == 2:
		c.remove(living[rand.N(len(living))])
	default:
		c.rotate(living[rand.N(len(living))])
	}
}

// create creates an endpoint, with an id of its own or a given one. The receiver knows it
// before it is visible to others.
func (c *Churn) create(org string, id uuid.UUID) {
	x := c.trial
	x.Helper()
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(x.Context()))
	e := oracle.Endpoint{ID: id, Org: org, Types: []string{"*"}}
	if id == uuid.Nil {
		err = tx.QueryRow(x.Context(), `SELECT endpoint_id, secret FROM webhook_create_endpoint($1, $2)`, org, c.receiver.url(len(c.ends))).Scan(&e.ID, &e.Secret)
	} else if _, err = tx.Exec(x.Context(), `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ($1, $2, $3)`, id, org, c.receiver.url(len(c.ends))); err == nil {
		err = tx.QueryRow(x.Context(), `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id).Scan(&e.Secret)
	}
	if err != nil {
		x.Fatal(err)
	}
	if len(c.ends)%narrowEvery == 0 {
		if _, err := tx.Exec(x.Context(), `UPDATE webhook_endpoints SET max_in_flight = 1 WHERE id = $1`, e.ID); err != nil {
			x.Fatal(err)
		}
	}
	c.receiver.Add(path(len(c.ends)), e.Secret)
	c.ends = append(c.ends, &churned{id: e.ID, org: org})
	if err := tx.Commit(x.Context()); err != nil {
		x.Fatal(err)
	}
	c.done[0]++
}

// switchOver disables an endpoint, or enables it again.
func (c *Churn) switchOver(i int) {
	e := c.ends[i]
	on, began := e.isOff(), time.Now()
	c.trial.exec(`UPDATE webhook_endpoints SET enabled = $2 WHERE id = $1`, e.id, on)
	if on {
		last := &e.offs[len(e.offs)-1]
		last.ends, last.ended = began, time.Now()
	} else {
		e.offs = append(e.offs, off{begins: began, begun: time.Now()})
	}
	c.done[1]++
}

// remove deletes an endpoint. The tables' owner, who may choose ids, gives every other one's id
// to an endpoint of another organization: what is owed to the old one must not reach that.
func (c *Churn) remove(i int) {
	e := c.ends[i]
	began := time.Now()
	c.trial.exec(`DELETE FROM webhook_endpoints WHERE id = $1`, e.id)
	if !e.isOff() {
		e.offs = append(e.offs, off{begins: began, begun: time.Now()})
	}
	e.deleted = true
	if c.done[2]++; c.done[2]%2 == 0 {
		c.giveAway(e.id)
	}
}

// giveAway gives a deleted endpoint's id to an organization that has not had it, so that id
// and organization tell whose a row is.
func (c *Churn) giveAway(id uuid.UUID) {
	had := func(org string) bool {
		return slices.ContainsFunc(c.ends, func(e *churned) bool { return e.id == id && e.org == org })
	}
	if at := slices.IndexFunc(c.driver.orgs, func(org string) bool { return !had(org) }); at >= 0 {
		c.create(c.driver.orgs[at], id)
		c.reused++
	}
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
	r := rotation{begins: time.Now()}
	err = tx.QueryRow(x.Context(), `SELECT webhook_rotate_secret($1, $2), now() + $2`, c.ends[i].id, overlaps[rand.N(len(overlaps))]).Scan(&secret, &r.expires)
	if err != nil {
		x.Fatal(err)
	}
	c.receiver.Rotate(i, secret)
	if err := tx.Commit(x.Context()); err != nil {
		x.Fatal(err)
	}
	r.committed = time.Now()
	c.ends[i].rotations = append(c.ends[i].rotations, r)
	c.done[3]++
}

// Rules like the oracle's, for these organizations.
const (
	mixed          = "a request for an event that was not committed, or is another organization's"
	otherwise      = "a request that is signed otherwise than the rotations say"
	again          = "a delivery that was sent again, and nobody had crashed"
	undelivered    = "a delivery that got no 2xx, and its endpoint was on all the time"
	strangeOutcome = "a row that does not tell what became of the delivery"
)

// judge judges requests and rows, and returns the figures.
func (c *Churn) judge() string {
	x := c.trial
	x.Helper()
	events, requests := c.journal.Copy()
	byID := map[uuid.UUID]*oracle.Event{}
	for i := range events {
		byID[events[i].ID] = &events[i]
	}
	var latest time.Duration
	var kept signatures
	var verdict oracle.Verdict
	byDelivery := map[uuid.UUID][]*oracle.Request{}
	for i := range requests {
		r := &requests[i]
		e, event := c.ends[r.Endpoint], byID[r.Event]
		if r.Malformed != "" {
			verdict.Found(oracle.MalformedRequest, "to endpoint %d: %s", r.Endpoint, r.Malformed)
		}
		if event == nil || event.Fate == oracle.RolledBack || event.Org != e.org || event.N != r.N {
			verdict.Found(mixed, "event %s to endpoint %d of %s", r.Event, r.Endpoint, e.org)
			continue
		}
		if r.Delivery != outbox.DeliveryID(r.Event, e.id) {
			verdict.Found(oracle.DeliveryDiffers, "event %s to endpoint %d as %s", r.Event, r.Endpoint, r.Delivery)
		}
		if wrong := kept.judge(e.rotations, r); wrong != "" {
			verdict.Found(otherwise, "to endpoint %d, %s", r.Endpoint, wrong)
		}
		latest = max(latest, e.after(r.At))
		byDelivery[r.Delivery] = append(byDelivery[r.Delivery], r)
	}
	x.expect(latest <= inForce, "a request came %s after its endpoint was switched off", latest)
	x.expect(kept.newest > 0 && kept.both > 0 && kept.expired > 0, "too little was seen of rotations: %+v", kept)
	x.expectWhole(c.receiver, false)
	c.judgeRows()
	delivered, cancelled := c.judgeDeliveries(&verdict, byID, byDelivery)
	x.expect(cancelled > 0, "nothing waited at an endpoint that was switched off")
	if err := verdict.Err(); err != nil {
		x.expect(false, "of what comes and goes, %v", err)
	}
	return fmt.Sprintf("requests to them=%d delivered=%d cancelled=%d latest after a disable=%s signed: newest=%d both=%d after the overlap=%d, latest with what had expired=%s",
		len(requests), delivered, cancelled, latest.Round(time.Millisecond), kept.newest, kept.both, kept.expired, kept.late.Round(time.Millisecond))
}

// after returns for how long the endpoint has been off at a time; 0: it may be on.
func (e *churned) after(at time.Time) time.Duration {
	for _, o := range e.offs {
		if at.After(o.begun) && (o.ended.IsZero() || at.Before(o.ends)) {
			return at.Sub(o.begun)
		}
	}
	return 0
}

// wasOff reports whether the endpoint may have been off at some time in an interval.
func (e *churned) wasOff(from, to time.Time) bool {
	return slices.ContainsFunc(e.offs, func(o off) bool { return o.begins.Before(to) && (o.ended.IsZero() || o.ended.After(from)) })
}

// signatures counts requests by the secrets that had to sign them.
type signatures struct {
	newest  int           // by a secret that is not the endpoint's first
	both    int           // also by the one before it
	expired int           // by one alone, because the one before it had expired
	late    time.Duration // how long after its expiry a secret still signed
}

// judge returns what is wrong with a request's signatures; "": nothing. The present
// secret may be any from the newest whose rotation must be in force to the newest whose
// rotation had begun. It signs webhook-signature. Until the secret before it expires,
// that one signs webhook-signature too, and alone signs X-Webhook-Signature.
func (s *signatures) judge(rotations []rotation, r *oracle.Request) (wrong string) {
	oldest, newest := 0, 0
	for i, o := range rotations {
		if !r.At.Before(o.committed.Add(inForce)) {
			oldest = i + 1
		}
		if !r.At.Before(o.begins) {
			newest = i + 1
		}
	}
	for k := oldest; k <= newest; k++ {
		switch {
		case k == 0 && slices.Equal(r.Signed, []int{0}) && slices.Equal(r.SignedBody, r.Signed):
			return ""
		case k == 0:
		case slices.Equal(r.Signed, []int{k - 1, k}) && slices.Equal(r.SignedBody, []int{k - 1}) && r.At.Before(rotations[k-1].expires.Add(inForce)):
			s.newest++
			s.both++
			s.late = max(s.late, r.At.Sub(rotations[k-1].expires))
			return ""
		case slices.Equal(r.Signed, []int{k}) && slices.Equal(r.SignedBody, r.Signed) && !r.At.Before(rotations[k-1].expires):
			s.newest++
			s.expired++
			return ""
		}
	}
	wrong = fmt.Sprintf("for which a secret from %d to %d is the newest, is signed by %v, and its body by %v", oldest, newest, r.Signed, r.SignedBody)
	if newest > 0 {
		wrong += fmt.Sprintf("; the last came %s before, and the one before it expired after %s", r.At.Sub(rotations[newest-1].committed),
			rotations[newest-1].expires.Sub(rotations[newest-1].committed))
	}
	return wrong
}

const selectChurned = `
SELECT id, event_id, endpoint_id, organization_id, status, attempts, coalesce(completed_at, now()), coalesce(error, '') FROM webhook_deliveries WHERE starts_with(organization_id, '` + comingAndGoing + `')`

// judgeDeliveries compares requests and rows. Nobody has crashed, so nothing may be sent
// twice; and a delivery without a 2xx was switched off, or has had its last attempt. A row's
// completed_at is the begin of the transaction that wrote it, which may have waited. It
// returns how many were delivered and how many were cancelled.
func (c *Churn) judgeDeliveries(v *oracle.Verdict, events map[uuid.UUID]*oracle.Event, requests map[uuid.UUID][]*oracle.Request) (delivered, cancelled int) {
	x := c.trial
	x.Helper()
	rows, err := x.pool.Query(x.Context(), selectChurned)
	if err != nil {
		x.Fatal(err)
	}
	type owner struct { // one id may have been several organizations'
		id  uuid.UUID
		org string
	}
	ends := map[owner]*churned{}
	for _, e := range c.ends {
		ends[owner{e.id, e.org}] = e
	}
	var id, event, endpoint uuid.UUID
	var org, why string
	var status webhook.Status
	var attempts int
	var completed time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &event, &endpoint, &org, &status, &attempts, &completed, &why}, func() error {
		answered, twice := outcome(requests[id])
		if twice {
			v.Found(again, "delivery %s: %d requests", id, len(requests[id]))
		}
		if answered {
			delivered++
		}
		if status == webhook.Cancelled {
			cancelled++
		}
		good := answered && status == webhook.Success || !answered && (status == webhook.Cancelled || status == webhook.Failed && attempts == lastAttempt)
		end, committed := ends[owner{endpoint, org}], events[event]
		switch {
		case end == nil || committed == nil || !good:
			v.Found(strangeOutcome, "delivery %s of event %s is %s after %d attempts; %d requests, with a 2xx %t", id, event, status, attempts, len(requests[id]), answered)
		case status == webhook.Cancelled && !end.wasOff(committed.Began, completed.Add(inForce)):
			v.Found(undelivered, "delivery %s of %s is cancelled at %s, committed at %s: %s", id, org, oracle.Clock(completed), oracle.Clock(committed.Began), why)
		}
		delete(requests, id)
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
	for id := range requests {
		v.Found(oracle.RowMissing, "delivery %s, which was sent", id)
	}
	return delivered, cancelled
}

// outcome reports whether one of a delivery's requests got a 2xx, and whether any came
// after that, or twice; a request that the receiver broke may come twice.
func outcome(requests []*oracle.Request) (answered, twice bool) {
	seen, resent := map[int]*oracle.Request{}, map[int]bool{}
	for _, r := range requests {
		switch before := seen[r.Retry]; {
		case before != nil && !resent[r.Retry] && oracle.Resends(before, r):
			resent[r.Retry] = true
		default:
			twice = twice || answered || before != nil
		}
		answered = answered || r.Succeeded()
		seen[r.Retry] = r
	}
	return answered, twice
}

// What must not exist: a delivery that is owed and has no row; one that has not ended; one
// that was cancelled at an endpoint that was never switched off; and one of another
// organization than its event's.
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
WHERE starts_with(d.organization_id, '` + comingAndGoing + `') AND (o.organization_id <> d.organization_id OR NOT EXISTS (
    SELECT FROM unnest($1::uuid[], $2::text[]) AS e(id, organization_id) WHERE e.id = d.endpoint_id AND e.organization_id = d.organization_id))`
)

func (c *Churn) judgeRows() {
	x := c.trial
	x.Helper()
	var ids, switched []uuid.UUID
	var orgs []string
	for _, e := range c.ends {
		ids, orgs = append(ids, e.id), append(orgs, e.org)
		if len(e.offs) > 0 {
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

func TestSignaturesAreJudged(t *testing.T) {
	t.Parallel()
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	rotations := []rotation{ // the second one falls into the first one's overlap, and has none
		{at(10), at(10.1), at(13)},
		{at(20), at(20.1), at(20)},
	}
	for _, tc := range []struct {
		name         string
		at           float64
		signed, body []int
		good         bool
	}{
		{"the first secret, before any rotation", 9, []int{0}, []int{0}, true},
		{"a rotation is not known at once", 11, []int{0}, []int{0}, true},
		{"both in the overlap, the body by the older", 12, []int{0, 1}, []int{0}, true},
		{"the body by the newer", 12, []int{0, 1}, []int{1}, false},
		{"a rotation that is never picked up", 11.2, []int{0}, []int{0}, false},
		{"the newer alone before the overlap is over", 12, []int{1}, []int{1}, false},
		{"an overlap's end is not known at once", 13.9, []int{0, 1}, []int{0}, true},
		{"an overlap without an end", 14.1, []int{0, 1}, []int{0}, false},
		{"the newer alone afterwards", 13.1, []int{1}, []int{1}, true},
		{"a secret that has no overlap", 20.05, []int{2}, []int{2}, true},
		{"the one before, for a moment", 21, []int{1}, []int{1}, true},
		{"and no longer", 21.2, []int{1}, []int{1}, false},
		{"three at once", 21.2, []int{0, 1, 2}, []int{0}, false},
		{"a secret that is not made yet", 19, []int{2}, []int{2}, false},
	} {
		var s signatures
		wrong := s.judge(rotations, &oracle.Request{At: at(tc.at), Signed: tc.signed, SignedBody: tc.body})
		if good := wrong == ""; good != tc.good {
			t.Errorf("%s: good %t, want %t: %s", tc.name, good, tc.good, wrong)
		}
	}
}

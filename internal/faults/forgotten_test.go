package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/oracle"
)

// A Gone is a customer that is erased, again and again. It has a driver, a journal and a
// receiver of its own, because the oracle would miss what is erased.
type Gone struct {
	trial    *Trial
	journal  *oracle.Journal
	receiver *Receiver
	driver   *Driver
	walhook  *Process

	erased []time.Time // by the receiver's index: after the commit of the first call
	calls  int
}

const (
	goneOrg = forgotten + "1"

	// Of the customer's endpoints one works, one fails and one hangs, so that deliveries of
	// every kind are erased.
	goneEndpoints = 3
)

// forgottenCustomer erases a customer under load, and kills walhook or PostgreSQL between the
// calls or in the midst of one, and again right after the last one. A second after the first
// call nothing more is sent. After the last one nothing is left, and nothing comes back.
func forgottenCustomer(t *testing.T, s Setup) {
	s.Durable = true
	x := newTrial(t, s)
	g := newGone(t, x)
	g.walhook = x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate / 4})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	x.load.Go(func() { g.driver.drive(ctx, Load{Rate: *rate / 4}) })
	kills := []func(){g.killWalhook, g.killPostgres, g.killInTheMidst}
	for round := range 2 * len(kills) {
		g.subscribe()
		x.eventually(20*time.Second, "each endpoint gets requests", func() bool { return g.reached() == len(g.erased) })
		g.call()
		kills[round%len(kills)]()
		x.eventually(time.Minute, "the customer is erased", func() bool { return g.call() == 0 })
		kills[round/len(kills)]()
		end := insertLSN(t.Context(), x.pool)
		x.eventually(20*time.Second, "walhook has read on", func() bool { return x.slot().Confirmed >= end })
		n := x.count(`SELECT count(*) FROM webhook_deliveries WHERE organization_id = '` + goneOrg + `'`)
		x.expect(n == 0, "%d deliveries are left of what was erased", n)
	}
	leave()
	stop()
	x.load.Wait()
	x.eventually(20*time.Second, "nothing is left", func() bool { return g.call() == 0 })
	x.drain(time.Minute)
	g.judge()
	g.receiver.server.CloseClientConnections() // as those of the trial's own
	x.finish(time.Minute, fmt.Sprintf("erased=%d calls=%d", len(g.erased)/goneEndpoints, g.calls))
}

func newGone(t *testing.T, x *Trial) *Gone {
	t.Helper()
	g := &Gone{trial: x, journal: &oracle.Journal{}}
	var err error
	if g.receiver, err = newReceiver(g.journal, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.receiver.close)
	pool, err := pgxpool.New(t.Context(), x.url())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	g.driver = &Driver{journal: g.journal, pool: pool, orgs: []string{goneOrg}}
	return g
}

// subscribe creates the customer's endpoints. The receiver knows them before anything is
// sent.
func (g *Gone) subscribe() {
	x := g.trial
	x.Helper()
	first := len(g.erased)
	g.receiver.turn(map[int]answer{first + 1: says(500, "")})
	g.receiver.hang(first + 2)
	tx, err := x.pool.Begin(x.Context())
	if err != nil {
		x.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(x.Context()))
	for range goneEndpoints {
		var secret string
		i := len(g.erased)
		if err := tx.QueryRow(x.Context(), `SELECT secret FROM webhook_create_endpoint($1, $2)`, goneOrg, g.receiver.url(i)).Scan(&secret); err != nil {
			x.Fatal(err)
		}
		g.receiver.Add(path(i), secret)
		g.erased = append(g.erased, time.Time{})
	}
	if err := tx.Commit(x.Context()); err != nil {
		x.Fatal(err)
	}
}

// reached counts the customer's endpoints that have got a request.
func (g *Gone) reached() int {
	_, requests := g.journal.Copy()
	to := map[int]bool{}
	for _, r := range requests {
		to[r.Endpoint] = true
	}
	return len(to)
}

// call returns how much is left; -1: PostgreSQL was away.
func (g *Gone) call() (left int64) {
	x := g.trial
	if err := x.pool.QueryRow(x.Context(), `SELECT webhook_forget($1)`, goneOrg).Scan(&left); err != nil {
		return -1
	}
	g.calls++
	for i := len(g.erased) - goneEndpoints; i < len(g.erased); i++ {
		if g.erased[i].IsZero() {
			g.erased[i] = time.Now()
		}
	}
	return left
}

// killInTheMidst kills PostgreSQL while it erases.
func (g *Gone) killInTheMidst() {
	const takes = 100 * time.Millisecond // a call
	done := make(chan struct{})
	go func() { defer close(done); g.call() }()
	<-time.After(rand.N(takes))
	g.killPostgres()
	<-done
}

func (g *Gone) killWalhook() {
	x := g.trial
	x.Helper()
	over := x.crash(g.walhook)
	if err := g.walhook.kill(); err != nil {
		x.Fatal(err)
	}
	over()
	g.walhook = x.start()
}

func (g *Gone) killPostgres() {
	x := g.trial
	x.Helper()
	over := x.crash(nil)
	if err := x.server.Kill(); err != nil {
		x.Fatal(err)
	}
	if err := x.server.Restart(x.Context()); err != nil {
		x.Fatal(err)
	}
	over()
	x.monitor.forget()
	x.eventually(20*time.Second, "walhook streams again", func() bool { return x.slot().PID != 0 })
}

const selectGone = `
SELECT (SELECT count(*) FROM webhook_outbox WHERE organization_id = '` + goneOrg + `') + (SELECT count(*) FROM webhook_deliveries WHERE organization_id = '` + goneOrg + `')
     + (SELECT count(*) FROM webhook_endpoints WHERE organization_id = '` + goneOrg + `') + (SELECT count(*) FROM webhook_forgetting)
     + (SELECT count(*) FROM webhook_secrets AS s WHERE NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = s.endpoint_id))
     + (SELECT count(*) FROM webhook_endpoint_failures AS f WHERE NOT EXISTS (SELECT FROM webhook_endpoints AS e WHERE e.id = f.endpoint_id))`

// judge judges what was sent to the customer, and what is left of them.
func (g *Gone) judge() {
	x := g.trial
	x.Helper()
	n := x.count(selectGone)
	x.expect(n == 0, "%d rows are left", n)
	events, requests := g.journal.Copy()
	fates := map[string]oracle.Fate{}
	for _, e := range events {
		fates[fmt.Sprint(e.ID, e.N)] = e.Fate
	}
	for _, r := range requests {
		fate, known := fates[fmt.Sprint(r.Event, r.N)]
		x.expect(r.Malformed == "" && known && fate != oracle.RolledBack, "a request for event %s: %s, known %t, fate %d", r.Event, r.Malformed, known, fate)
		late := r.At.Sub(g.erased[r.Endpoint])
		x.expect(late <= inForce, "a request came to endpoint %d %s after it was erased", r.Endpoint, late)
	}
	x.expectWhole(g.receiver, true)
}

package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// The two organizations.
const (
	acme   = "acme"
	globex = "globex"
)

// The receivers.
const (
	steady = "steady"
	flaky  = "flaky"
	silent = "silent"
)

// A role is how a receiver behaves, and what a delivery's row has to say at the end.
type role struct {
	name     string
	does     string // for people
	fails    int    // so many requests of each delivery get 500 first
	status   webhook.Status
	attempts int
}

func roleOf(roles []role, name string) role {
	return roles[slices.IndexFunc(roles, func(r role) bool { return r.name == name })]
}

// forever is the number of failures of who never answers at all.
const forever = -1

var roles = []role{
	{steady, "verifies both signatures, answers 204", 0, webhook.Success, 1},
	{flaky, "answers 500 to every delivery 2 times, then 204", 2, webhook.Success, 3},
	{silent, "takes every request, and never answers", forever, webhook.Failed, waits + 1},
}

// A subscription is an endpoint to be made: an organization's, at a receiver.
type subscription struct {
	organization string
	receiver     string
	types        []string
}

// compare holds a row against what the receiver deserves and takes.
func (s *subscription) compare(v *oracle.Verdict, row oracle.Row) {
	r := roleOf(roles, s.receiver)
	if row.Status != r.status {
		v.Found(undeserved, "a delivery of %s to %s is %s, want %s", row.Org, r.name, row.Status, r.status)
	}
	if row.Attempts != r.attempts {
		v.Found(miscounted, "a delivery of %s to %s counts %d attempts, want %d", row.Org, r.name, row.Attempts, r.attempts)
	}
}

// Every receiver has an endpoint of each organization, and both organizations
// want everything at the one that is well: were they mixed, it would show.
var subscriptions = []subscription{
	{acme, steady, []string{"*", outbox.TypeDeliveryExhausted}},
	{globex, steady, []string{"*", outbox.TypeDeliveryExhausted}},
	{acme, flaky, []string{"payment.*", "subscription.*"}},
	{globex, flaky, []string{"api_key.*"}},
	{acme, silent, []string{"payment.failed"}},
	{globex, silent, []string{"security.*"}},
}

// A transaction is one of the application's, with an event of each type that
// matches.
type transaction struct {
	organization string
	types        []string
	rollBack     bool
}

// The first event is the one that is followed to its end: every receiver gets
// it. What is rolled back would have reached all of them too.
var transactions = []transaction{
	{organization: acme, types: []string{"payment.failed"}},
	{organization: globex, types: []string{"org.*"}},
	{organization: acme, types: []string{"payment.*"}, rollBack: true},
	{organization: acme, types: []string{"payment.*", "subscription.*"}},
	{organization: globex, types: []string{"api_key.*", "security.*"}},
}

// errRollBack ends a transaction that is rolled back.
var errRollBack = errors.New("rolled back, as the script says")

// perform runs a transaction, and returns its events in the order of their names.
// They are numbered from a number on. One that is rolled back ends with a given error.
func (t transaction) perform(ctx context.Context, db *pgx.Conn, number int, rollBack error) (events []*oracle.Event, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for i, name := range t.names() {
			e := &oracle.Event{Org: t.organization, Type: name, N: int64(number + i), Fate: oracle.Committed}
			payload := fmt.Appendf(nil, `{"n": %d, "for": %q, "demo": true}`, e.N, e.Org)
			if e.ID, err = outbox.Enqueue(ctx, tx, outbox.Event{OrganizationID: e.Org, Type: e.Type, Payload: payload}); err != nil {
				return err
			}
			events = append(events, e)
		}
		if t.rollBack {
			for _, e := range events {
				e.Fate = oracle.RolledBack
			}
			return rollBack
		}
		return nil
	})
	if err != nil && !errors.Is(err, errRollBack) {
		return nil, fmt.Errorf("a transaction of %s: %w", t.organization, err)
	}
	return events, nil
}

func (t transaction) names() (names []string) {
	for _, one := range outbox.EventTypes {
		if slices.ContainsFunc(t.types, func(pattern string) bool { return strings.HasPrefix(one.Name, strings.TrimSuffix(pattern, "*")) }) {
			names = append(names, one.Name)
		}
	}
	return names
}

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

// A role is a receiver's behaviour, and what its deliveries' rows must say at the end.
type role struct {
	name     string
	does     string // for people
	fails    int    // the first so many requests of each delivery get 500
	status   webhook.Status
	attempts int
}

func roleOf(roles []role, name string) role {
	return roles[slices.IndexFunc(roles, func(r role) bool { return r.name == name })]
}

// forever, as a number of failures, means that the receiver never answers.
const forever = -1

var roles = []role{
	{steady, "verifies both signatures, answers 204", 0, webhook.Success, 1},
	{flaky, "answers 500 to every delivery 2 times, then 204", 2, webhook.Success, 3},
	{silent, "takes every request, and never answers", forever, webhook.Failed, waits + 1},
}

// A subscription is an organization's endpoint at a receiver.
type subscription struct {
	organization string
	receiver     string
	types        []string
}

// compare compares a row with the receiver's role.
func (s *subscription) compare(v *oracle.Verdict, row oracle.Row) {
	r := roleOf(roles, s.receiver)
	if row.Status != r.status {
		v.Found(undeserved, "a delivery of %s to %s is %s, want %s", row.Org, r.name, row.Status, r.status)
	}
	if row.Attempts != r.attempts {
		v.Found(miscounted, "a delivery of %s to %s counts %d attempts, want %d", row.Org, r.name, row.Attempts, r.attempts)
	}
}

// Each organization has an endpoint at every receiver. Both want everything at the
// steady one: if walhook mixed them up, it would show there.
var subscriptions = []subscription{
	{acme, steady, []string{"*", outbox.TypeDeliveryExhausted}},
	{globex, steady, []string{"*", outbox.TypeDeliveryExhausted}},
	{acme, flaky, []string{"payment.*", "subscription.*"}},
	{globex, flaky, []string{"api_key.*"}},
	{acme, silent, []string{"payment.failed"}},
	{globex, silent, []string{"security.*"}},
}

// A transaction of the application inserts an event of each matching type.
type transaction struct {
	organization string
	types        []string
	rollBack     bool
}

// The first event is the followed one: every receiver gets it. The events that are
// rolled back would have reached every receiver too.
var transactions = []transaction{
	{organization: acme, types: []string{"payment.failed"}},
	{organization: globex, types: []string{"org.*"}},
	{organization: acme, types: []string{"payment.*"}, rollBack: true},
	{organization: acme, types: []string{"payment.*", "subscription.*"}},
	{organization: globex, types: []string{"api_key.*", "security.*"}},
}

// errRollBack ends a transaction that is rolled back.
var errRollBack = errors.New("rolled back, as the script says")

// perform runs the transaction and returns its events, numbered from a number on. The
// error rollBack ends a transaction that is rolled back.
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

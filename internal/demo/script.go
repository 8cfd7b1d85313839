package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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
	status   string
	attempts int
}

// forever is the number of failures of who never answers at all.
const forever = -1

var roles = []role{
	{steady, "verifies both signatures, answers 204", 0, "success", 1},
	{flaky, "answers 500 to every delivery 2 times, then 204", 2, "success", 3},
	{silent, "takes every request, and never answers", forever, "failed", waits + 1},
}

// A subscription is an endpoint to be made: an organization's, at a receiver.
type subscription struct {
	organization string
	receiver     string
	types        []string
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

// perform runs a transaction, and returns its events' ids in the order of their
// names. One that is rolled back ends with a given error.
func (t transaction) perform(ctx context.Context, db *pgx.Conn, rollBack error) (ids []uuid.UUID, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for i, name := range t.names() {
			payload, err := json.Marshal(map[string]any{"number": i + 1, "for": t.organization, "demo": true})
			if err != nil {
				return err
			}
			id, err := outbox.Enqueue(ctx, tx, outbox.Event{OrganizationID: t.organization, Type: name, Payload: payload})
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		if t.rollBack {
			return rollBack
		}
		return nil
	})
	if err != nil && !errors.Is(err, errRollBack) {
		return nil, fmt.Errorf("a transaction of %s: %w", t.organization, err)
	}
	return ids, nil
}

func (t transaction) names() (names []string) {
	for _, one := range outbox.EventTypes {
		if slices.ContainsFunc(t.types, func(pattern string) bool { return strings.HasPrefix(one.Name, strings.TrimSuffix(pattern, "*")) }) {
			names = append(names, one.Name)
		}
	}
	return names
}

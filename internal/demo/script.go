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

// wants says what the trigger of webhook_outbox has to decide.
func (s subscription) wants(eventType string) bool {
	return slices.ContainsFunc(s.types, func(pattern string) bool {
		prefix, open := strings.CutSuffix(pattern, "*")
		return pattern == eventType ||
			open && strings.HasPrefix(eventType, prefix) && (prefix != "" || !outbox.IsOwnType(eventType))
	})
}

// A transaction is one of the application's.
type transaction struct {
	organization string
	types        []string
	rollBack     bool
}

// The first event is the one that is followed to its end: every receiver gets
// it. What is rolled back would have reached all of them too.
var transactions = []transaction{
	{organization: acme, types: []string{"payment.failed"}},
	{organization: globex, types: ofCategory("organization")},
	{organization: acme, types: []string{"payment.failed", "payment.refunded", "subscription.cancelled"}, rollBack: true},
	{organization: acme, types: append(ofCategory("subscription"), "payment.succeeded", "payment.refunded")},
	{organization: globex, types: append(ofCategory("api_key"), ofCategory("security")...)},
}

func ofCategory(category string) []string {
	var names []string
	for _, t := range outbox.EventTypes {
		if t.Category == category {
			names = append(names, t.Name)
		}
	}
	return names
}

// An enqueued event is one that the application's transaction contained.
type enqueued struct {
	id           uuid.UUID
	organization string
	eventType    string
}

// perform runs a transaction and returns the events that were in it.
func (t transaction) perform(ctx context.Context, db *pgx.Conn, rollBack func(context.Context, pgx.Tx) error) ([]enqueued, error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin a transaction of %s: %w", t.organization, err)
	}
	var events []enqueued
	for i, name := range t.types {
		payload, err := json.Marshal(map[string]any{"number": i + 1, "for": t.organization, "demo": true})
		if err != nil {
			return nil, errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
		}
		id, err := outbox.Enqueue(ctx, tx, outbox.Event{OrganizationID: t.organization, Type: name, Payload: payload})
		if err != nil {
			return nil, errors.Join(err, tx.Rollback(context.WithoutCancel(ctx)))
		}
		events = append(events, enqueued{id, t.organization, name})
	}
	end := func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }
	if t.rollBack {
		end = rollBack
	}
	if err := end(ctx, tx); err != nil {
		return nil, fmt.Errorf("end a transaction of %s: %w", t.organization, err)
	}
	return events, nil
}

// summary names the types of a transaction, family by family.
func (t transaction) summary() string {
	if len(t.types) == 1 {
		return t.types[0]
	}
	var families []string
	count := map[string]int{}
	for _, name := range t.types {
		family, _, _ := strings.Cut(name, ".")
		if count[family]++; count[family] == 1 {
			families = append(families, family)
		}
	}
	for i, family := range families {
		families[i] = fmt.Sprintf("%d %s.*", count[family], family)
	}
	return strings.Join(families, ", ")
}

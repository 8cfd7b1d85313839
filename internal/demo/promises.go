package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
)

// The story's own rules, beside the oracle's.
const (
	undeserved oracle.Rule = "a row with another status than its receiver deserves"
	miscounted oracle.Rule = "a row with more or fewer attempts than its receiver takes"
	unlisted   oracle.Rule = "webhook_attempts lists more or fewer attempts than the row counts"
	untold     oracle.Rule = "webhook.delivery.exhausted does not tell exactly of what failed"
)

// A promise has to be true at the end. It was kept where none of its rules was broken
// and there was something to look at. As an error it was not kept.
type promise struct {
	says   string
	rules  []oracle.Rule
	unit   string // of what was looked at
	looked func(*oracle.Verdict) int
}

func (p *promise) Error() string { return p.says }

func events(v *oracle.Verdict) int     { return v.Events }
func deliveries(v *oracle.Verdict) int { return v.Deliveries }
func requests(v *oracle.Verdict) int   { return v.Requests }

var promises = []*promise{
	{"what was committed, and nothing else, is in the outbox", []oracle.Rule{oracle.OutboxDiffers}, "events", events},
	{"an event is owed to who subscribes to it, and to nobody else", []oracle.Rule{oracle.OwedDiffers}, "deliveries", deliveries},
	{"nothing came that is not owed: what was rolled back to nobody, and no event to another organization",
		[]oracle.Rule{oracle.Phantom, oracle.RowBeyond, oracle.Online}, "requests", requests},
	{"every owed delivery has its row, with the status that its receiver deserves",
		[]oracle.Rule{oracle.RowMissing, oracle.NotFinal, oracle.Lost, undeserved}, "deliveries", deliveries},
	{"the steady receiver took one attempt, the flaky three, the silent all four", []oracle.Rule{miscounted, unlisted}, "deliveries", deliveries},
	{"every attempt was one request, and no delivery came again",
		[]oracle.Rule{oracle.AttemptsWrong, oracle.Repeated, oracle.TooMany}, "requests", requests},
	{"both signatures of every request verify", []oracle.Rule{oracle.MalformedRequest}, "requests", requests},
	{"every request brought the event as it was committed, each time the same bytes",
		[]oracle.Rule{oracle.ContentWrong, oracle.BytesDiffer, oracle.DeliveryDiffers}, "requests", requests},
	{"whose delivery failed for good was told so by webhook.delivery.exhausted", []oracle.Rule{untold}, "deliveries", deliveries},
}

// problemsShown bounds the list: when everything is wrong, the first few say why.
const problemsShown = 3

// judge names the first of what broke the promise; nil: it was kept.
func (p *promise) judge(v *oracle.Verdict) error {
	problems := v.Problems(p.rules...)
	switch more := len(problems) - problemsShown; {
	case len(problems) == 0 && p.looked(v) > 0:
		return nil
	case len(problems) == 0:
		problems = []string{"there was nothing to look at"}
	case more > 0:
		problems = append(problems[:problemsShown], fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w: %s", p, strings.Join(problems, "; "))
}

// What the oracle does not compare, as queries for problems.
var queries = map[oracle.Rule]string{
	unlisted: `
		SELECT format('%s of %s: webhook_attempts lists %s of %s attempts', d.event_type, d.organization_id, count(a.delivery_id), d.attempts)
		FROM webhook_deliveries AS d LEFT JOIN webhook_attempts AS a ON a.delivery_id = d.id
		GROUP BY d.id, d.event_type, d.organization_id, d.attempts HAVING count(a.delivery_id) <> d.attempts`,
	untold: `
		WITH told AS (SELECT payload ->> 'deliveryId' AS id FROM webhook_outbox WHERE event_type = 'webhook.delivery.exhausted')
		SELECT format('%s of %s, %s: told %s times', d.event_type, d.organization_id, coalesce(d.status, 'no delivery'), count(t.id))
		FROM webhook_deliveries AS d FULL JOIN told AS t ON t.id = d.id::text
		GROUP BY d.id, d.event_type, d.organization_id, d.status, t.id HAVING count(t.id) <> coalesce((d.status = 'failed')::int, 0)`,
}

// judge compares what everyone knows. The rows are read before the requests, so that
// each attempt that is recorded has arrived.
func (s *story) judge(ctx context.Context, tx pgx.Tx) (*oracle.Verdict, error) {
	e := &oracle.Evidence{Endpoints: s.endpoints, LastAttempt: waits + 1}
	if err := e.ReadTables(ctx, tx); err != nil {
		return nil, err
	}
	committed, came := s.receivers.Journal.Copy()
	e.Events, e.Requests = append(e.Events, committed...), came
	strays, _ := s.receivers.Unread()
	for _, path := range strays {
		e.Online = append(e.Online, "a request came to "+path)
	}
	v := oracle.Judge(e)
	for _, row := range e.Rows {
		if i := slices.IndexFunc(s.endpoints, func(e oracle.Endpoint) bool { return e.ID == row.Endpoint }); i >= 0 {
			subscriptions[i].compare(v, row)
		}
	}
	return v, query(ctx, tx, v)
}

// query asks for what the oracle does not compare.
func query(ctx context.Context, tx pgx.Tx, v *oracle.Verdict) error {
	for rule, sql := range queries {
		rows, err := tx.Query(ctx, sql)
		if err != nil {
			return fmt.Errorf("look for %s: %w", rule, err)
		}
		problems, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("look for %s: %w", rule, err)
		}
		for _, problem := range problems {
			v.Found(rule, "%s", problem)
		}
	}
	return nil
}

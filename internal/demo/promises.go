package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
)

// The demo's own rules, beside the oracle's.
const (
	undeserved oracle.Rule = "a row whose status is not what its receiver deserves"
	miscounted oracle.Rule = "a row whose number of attempts is not what its receiver takes"
	unlisted   oracle.Rule = "a row whose attempts are not all in webhook_attempts"
	untold     oracle.Rule = "a delivery that failed without one webhook.delivery.exhausted, or did not fail and has one"
)

// A promise must be true at the end. It is kept if none of its rules was broken and
// there was something to judge. As an error it means that it was not kept.
type promise struct {
	says   string
	rules  []oracle.Rule
	unit   string // of what was judged
	judged func(*oracle.Verdict) int
}

func (p *promise) Error() string { return p.says }

func events(v *oracle.Verdict) int     { return v.Events }
func deliveries(v *oracle.Verdict) int { return v.Deliveries }
func requests(v *oracle.Verdict) int   { return v.Requests }

var promises = []*promise{
	{"the outbox holds exactly what was committed", []oracle.Rule{oracle.OutboxDiffers}, "events", events},
	{"every event is owed to its subscribers, and to nobody else", []oracle.Rule{oracle.OwedDiffers}, "deliveries", deliveries},
	{"no receiver got what it is not owed: nothing rolled back, nothing of another organization",
		[]oracle.Rule{oracle.Phantom, oracle.RowBeyond, oracle.Online}, "requests", requests},
	{"every delivery has its row, with the status that its receiver deserves",
		[]oracle.Rule{oracle.RowMissing, oracle.NotFinal, oracle.Lost, undeserved}, "deliveries", deliveries},
	{"the steady receiver took one attempt, the flaky three, the silent all four", []oracle.Rule{miscounted, unlisted}, "deliveries", deliveries},
	{"every attempt was one request, and no delivery was repeated",
		[]oracle.Rule{oracle.AttemptsWrong, oracle.Repeated, oracle.TooMany}, "requests", requests},
	{"both signatures of every request verify", []oracle.Rule{oracle.MalformedRequest}, "requests", requests},
	{"every request carried the event as committed, and every retry the same bytes",
		[]oracle.Rule{oracle.ContentWrong, oracle.BytesDiffer, oracle.DeliveryDiffers}, "requests", requests},
	{"every delivery that failed was announced once by webhook.delivery.exhausted", []oracle.Rule{untold}, "deliveries", deliveries},
}

// problemsShown bounds the list: if everything is wrong, the first few say why.
const problemsShown = 3

// judge returns the first problems that broke the promise; nil: it was kept.
func (p *promise) judge(v *oracle.Verdict) error {
	problems := v.Problems(p.rules...)
	switch more := len(problems) - problemsShown; {
	case len(problems) == 0 && p.judged(v) > 0:
		return nil
	case len(problems) == 0:
		problems = []string{"there was nothing to judge"}
	case more > 0:
		problems = append(problems[:problemsShown], fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w: %s", p, strings.Join(problems, "; "))
}

// queries find the problems that the oracle does not look for.
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

// judge compares the application's events, the tables and the requests. It reads the
// rows first: the request of each recorded attempt has then arrived.
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

// query adds what the queries find.
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

package demo

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// remember makes room for what the database cannot know by itself: what the
// application did, what the receivers are there for, and what they got. The JIT
// would compile for seconds what runs for milliseconds.
const remember = `
SET jit = off;
CREATE TEMP TABLE enqueued (id uuid, organization text, event_type text, rolled_back boolean);
CREATE TEMP TABLE expected (endpoint_id uuid, organization text, receiver text, types text[], status text, attempts int);
CREATE TEMP TABLE arrived (n int, endpoint_id uuid, delivery_id uuid, retry int, event_id uuid, event_type text,
                           organization text, data text, body text, status int, problem text);
CREATE FUNCTION pg_temp.wants(types text[], name text) RETURNS boolean LANGUAGE sql RETURN EXISTS (
    SELECT FROM unnest(types) AS pattern
    WHERE name = pattern OR right(pattern, 2) = '.*' AND starts_with(name, left(pattern, -1))
       OR pattern = '*' AND NOT starts_with(name, 'webhook.'));
CREATE TEMP VIEW owed AS
SELECT x.*, webhook_delivery_id(o.id, x.endpoint_id) AS id, d.status AS got, coalesce(d.attempts, 0) AS made,
       format('%s of %s to %s', o.event_type, o.organization_id, x.receiver) AS what
FROM webhook_outbox AS o CROSS JOIN unnest(o.endpoint_ids) AS e (id)
JOIN expected AS x ON x.endpoint_id = e.id
LEFT JOIN webhook_deliveries AS d ON d.event_id = o.id AND d.endpoint_id = x.endpoint_id`

// atRest reports that nothing more is to be expected.
const atRest = `SELECT NOT EXISTS (SELECT FROM owed WHERE got IS NULL OR got IN ('pending', 'retrying'))`

// A promise is something that has to be true at the end. Its checks are rows: what
// they found, and how that reads when it is not true. As an error it was not kept.
type promise struct{ says, checks string }

func (p *promise) Error() string { return p.says }

var promises = []*promise{
	{"what was committed, and nothing else, is in the outbox, of every type that there is", `
		SELECT e.id IS NOT NULL, format('%s of %s is in webhook_outbox, and nobody committed it', o.event_type, o.organization_id)
		FROM webhook_outbox AS o LEFT JOIN enqueued AS e
		     ON e.id = o.id AND e.organization = o.organization_id AND e.event_type = o.event_type AND NOT e.rolled_back
		WHERE o.event_type <> 'webhook.delivery.exhausted'
		UNION ALL
		SELECT o.id IS NOT NULL, format('%s of %s was committed, and is not in webhook_outbox', e.event_type, e.organization)
		FROM enqueued AS e LEFT JOIN webhook_outbox AS o ON o.id = e.id WHERE NOT e.rolled_back
		UNION ALL
		SELECT EXISTS (SELECT FROM enqueued AS e WHERE e.event_type = t.name AND NOT e.rolled_back), format('no %s was committed', t.name)
		FROM webhook_event_types AS t WHERE t.category <> 'webhook'`},
	{"what was rolled back arrived nowhere", `
		SELECT found.place IS NULL, format('%s of %s was rolled back, and is in %s', e.event_type, e.organization, found.place)
		FROM enqueued AS e LEFT JOIN (
		    SELECT id, 'webhook_outbox' FROM webhook_outbox
		    UNION ALL SELECT event_id, 'webhook_deliveries' FROM webhook_deliveries
		    UNION ALL SELECT event_id, 'a receiver' FROM arrived) AS found (id, place) ON found.id = e.id
		WHERE e.rolled_back`},
	{"an event is owed to who subscribes to it, and to nobody else", `
		SELECT (x.endpoint_id = ANY (o.endpoint_ids)) = (x.organization = o.organization_id AND pg_temp.wants(x.types, o.event_type)),
		       format('%s of %s is owed to %s at %s, or should be', o.event_type, o.organization_id, x.organization, x.receiver)
		FROM webhook_outbox AS o CROSS JOIN expected AS x
		UNION ALL
		SELECT x.endpoint_id IS NOT NULL, format('%s of %s is owed to an unknown endpoint', o.event_type, o.organization_id)
		FROM webhook_outbox AS o CROSS JOIN unnest(o.endpoint_ids) AS e (id) LEFT JOIN expected AS x ON x.endpoint_id = e.id`},
	{"every owed delivery has its row, with the status that its receiver deserves", `
		SELECT got = status, format('%s: its row says %s, want %s', what, coalesce(got, 'nothing'), status) FROM owed
		UNION ALL
		SELECT d.id IN (SELECT id FROM owed), format('there is a row of %s that is owed to nobody', d.event_type)
		FROM webhook_deliveries AS d`},
	{"the steady receiver took one attempt, the flaky three, the silent all four", `
		SELECT made = attempts, format('%s: its row counts %s attempts, want %s', what, made, attempts) FROM owed
		UNION ALL
		SELECT made = count(a.delivery_id), format('%s: webhook_attempts lists %s of %s attempts', what, count(a.delivery_id), made)
		FROM owed AS o LEFT JOIN webhook_attempts AS a ON a.delivery_id = o.id GROUP BY o.id, what, made`},
	{"every attempt was one request, and no delivery came again", `
		SELECT came = made OR came = made + 1 AND got IN ('pending', 'retrying'),
		       format('%s: %s requests came, and %s attempts were recorded', what, came, made)
		FROM owed AS o CROSS JOIN LATERAL (SELECT count(*) AS came FROM arrived AS a WHERE a.delivery_id = o.id) AS c
		UNION ALL
		SELECT retry = nth AND coalesce(before, 0) NOT BETWEEN 200 AND 299,
		       format('%s: request %s says X-Webhook-Retry: %s, and the one before got %s', event_type, nth + 1, retry, before)
		FROM (SELECT *, row_number() OVER w - 1 AS nth, lag(status) OVER w AS before
		      FROM arrived WINDOW w AS (PARTITION BY delivery_id ORDER BY n)) AS a
		UNION ALL
		SELECT a.delivery_id IN (SELECT id FROM owed), format('%s came to where it is not owed', coalesce(a.event_type, 'a request'))
		FROM arrived AS a`},
	{"both signatures of every request verify", `
		SELECT problem IS NULL, format('a request for %s: %s', organization, problem) FROM arrived WHERE endpoint_id IS NOT NULL`},
	{"every request brought the event as it was committed, each time the same bytes", `
		SELECT a.data = o.payload::text AND a.event_type = o.event_type AND a.organization = o.organization_id,
		       format('a request of %s of %s differs from what was committed', a.event_type, a.organization)
		FROM arrived AS a LEFT JOIN webhook_outbox AS o ON o.id = a.event_id WHERE a.endpoint_id IS NOT NULL
		UNION ALL
		SELECT body = before, format('a request of %s has other bytes than the attempt before', event_type)
		FROM (SELECT *, lag(body) OVER (PARTITION BY delivery_id ORDER BY n) AS before FROM arrived) AS a WHERE before IS NOT NULL`},
	{"no organization received another's event", `
		SELECT a.organization = x.organization, format('%s of %s came to %s at %s', a.event_type, a.organization, x.organization, x.receiver)
		FROM arrived AS a JOIN expected AS x ON x.endpoint_id = a.endpoint_id
		UNION ALL
		SELECT d.organization_id = x.organization, format('a row of %s stands at an endpoint of another organization', d.organization_id)
		FROM webhook_deliveries AS d LEFT JOIN expected AS x ON x.endpoint_id = d.endpoint_id`},
	{"whose delivery failed for good was told so by webhook.delivery.exhausted", `
		WITH told AS (SELECT payload ->> 'deliveryId' AS id FROM webhook_outbox WHERE event_type = 'webhook.delivery.exhausted')
		SELECT count(t.id) = (d.status = 'failed')::int, format('%s, %s: told %s times', d.event_type, d.status, count(t.id))
		FROM webhook_deliveries AS d LEFT JOIN told AS t ON t.id = d.id::text GROUP BY d.id, d.event_type, d.status
		UNION ALL
		SELECT d.id IS NOT NULL, format('told of %s, which is no delivery', t.id) FROM told AS t LEFT JOIN webhook_deliveries AS d ON d.id::text = t.id`},
}

const judge = `
SELECT count(*), coalesce(array_agg(problem) FILTER (WHERE ok IS NOT TRUE), '{}') FROM (%s) AS checks (ok, problem)`

// problemsShown bounds the list: when everything is wrong, the first few say why.
const problemsShown = 3

// judge counts the checks, or names the first of what is wrong. Where there was
// nothing to look at nothing was found out, which is wrong too.
func (p *promise) judge(ctx context.Context, db pgx.Tx) (looked int, err error) {
	var problems []string
	if err := db.QueryRow(ctx, fmt.Sprintf(judge, p.checks)).Scan(&looked, &problems); err != nil {
		return 0, fmt.Errorf("look whether %s: %w", p.says, err)
	}
	if looked == 0 {
		problems = []string{"there was nothing to look at"}
	}
	switch more := len(problems) - problemsShown; {
	case len(problems) == 0:
		return looked, nil
	case more > 0:
		problems = append(problems[:problemsShown], fmt.Sprintf("and %d more", more))
	}
	return looked, fmt.Errorf("%w: %s", p, strings.Join(problems, "; "))
}

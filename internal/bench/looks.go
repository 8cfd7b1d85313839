//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A look is something that an operator looks at.
type look struct {
	name, aim string
	take      func(context.Context) error
}

// An operator looks at one installation.
type operator struct {
	*bench
	db    *database
	admin string // the address of walhook's admin server
}

// A looked is what a look came to.
type looked struct {
	took     time.Duration
	postgres time.Duration // CPU of PostgreSQL
}

const (
	looksDays         = 30
	looksPerEndpoint  = 1000                    // deliveries, of which one endpoint in ten has all waiting
	endpointsTogether = 10                      // endpoints of one organization, which get the same events
	looksEach         = 5                       // times that each is looked at
	looksApart        = 1200 * time.Millisecond // longer than walhook keeps what it has looked up
)

// looks measures what operators look at beside a month of deliveries, a tenth of which wait.
func (b *bench) looks(ctx context.Context) error {
	rounds := map[string][]looked{}
	var all []look
	err := b.inTurns("looks", []arm{{"a month of deliveries", func(int) error {
		return b.fresh(ctx, func(db *database) (err error) {
			all, err = b.runLooks(ctx, db, rounds)
			return err
		})
	}}})
	if err != nil {
		return err
	}
	r := b.report
	r.title("looks: %d deliveries of %d days for %d endpoints, a tenth of which fail; each from its begin to its end, in ms", b.looked, looksDays, b.looksEndpoints())
	for _, l := range all {
		r.row(l.name, each(rounds[l.name], func(x looked) float64 { return millis(x.took) }), "%.1f", l.aim)
		if l.name == scrape {
			r.row("  CPU of PostgreSQL, as far as walhook's own pace lets see", each(rounds[l.name], func(x looked) float64 { return millis(x.postgres) }), "%.1f", "<= 20")
		}
	}
	r.flush()
	return nil
}

const scrape = "GET /metrics"

func (b *bench) looksEndpoints() int {
	return max(endpointsTogether, b.looked/looksPerEndpoint/endpointsTogether*endpointsTogether)
}

func (b *bench) runLooks(ctx context.Context, db *database, rounds map[string][]looked) ([]look, error) {
	if err := b.settle(ctx, db); err != nil {
		return nil, fmt.Errorf("settle: %w", err)
	}
	if err := b.insertMonth(ctx, db); err != nil {
		return nil, fmt.Errorf("insert a month: %w", err)
	}
	if err := b.calm(ctx); err != nil {
		return nil, err
	}
	o := operator{b, db, adminAddress()}
	w, err := b.startWalhook(db, "", "WALHOOK_ADMIN_ADDR="+o.admin)
	if err != nil {
		return nil, err
	}
	defer w.kill()
	if err := awaitStreaming(ctx, db, w); err != nil {
		return nil, err
	}
	all, err := o.looks(ctx)
	if err != nil {
		return nil, err
	}
	for range looksEach {
		if err := pause(ctx, looksApart); err != nil {
			return nil, err
		}
		for _, l := range all {
			began, cpu := now(), b.server.cpu()
			if err := l.take(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			rounds[l.name] = append(rounds[l.name], looked{now() - began, b.server.cpu() - cpu})
		}
	}
	return all, w.stop()
}

// The ids that the pages use, and the ones that take their place.
const (
	pagesEndpoint     = "44444444-4444-4444-8444-444444444444"
	pagesDelivery     = "01999999-9999-7999-8999-999999999999"
	pagesOrganization = "'org_1'"

	selectExamples = `
SELECT d.endpoint_id::text, d.id::text, d.event_id::text FROM webhook_deliveries AS d
WHERE d.organization_id = $1 AND d.status = 'success' AND d.id >= webhook_uuid_at(now() - interval '2 days') ORDER BY d.id LIMIT 1`
)

// looks returns the scrape, status, the page, and each query of the pages of docs.
func (o operator) looks(ctx context.Context) ([]look, error) {
	organization := others + "_0"
	var endpoint, delivery, event string
	if err := o.db.QueryRow(ctx, selectExamples, organization).Scan(&endpoint, &delivery, &event); err != nil {
		return nil, err
	}
	all := []look{
		{scrape, "", o.get("/metrics")},
		{"walhook status", "<= 100", o.status},
		{"GET /", "", o.get("/")},
		{"GET /?organization=", "", o.get("/?organization=" + organization)},
		{"GET /?status=failed", "", o.get("/?status=failed")},
		{"GET /endpoints/…", "", o.get("/endpoints/" + endpoint)},
		{"GET /deliveries/…", "", o.get("/deliveries/" + delivery)},
	}
	of := strings.NewReplacer(pagesEndpoint, endpoint, "webhook_ops_explain('"+pagesDelivery, "webhook_explain('"+event, pagesDelivery, delivery, pagesOrganization, "'"+organization+"'")
	for _, page := range []string{"questions", "settings-page"} {
		queries, err := queriesOf(filepath.Join("docs", page+".md"))
		if err != nil {
			return nil, err
		}
		for _, q := range queries {
			all = append(all, look{page + ": " + q.title, "", o.rolledBack(organization, of.Replace(q.sql))})
		}
	}
	return all, nil
}

type query struct{ title, sql string }

// queriesOf returns the first statement below each heading of a page.
func queriesOf(file string) (found []query, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for section := range slices.Values(regexp.MustCompile(`(?m)^## `).Split(string(text), -1)[1:]) {
		title, rest, _ := strings.Cut(section, "\n")
		block := regexp.MustCompile("(?s)```sql\n(.*?);\n").FindStringSubmatch(rest)
		if block == nil {
			return nil, fmt.Errorf("%s: %s has no query", file, title)
		}
		found = append(found, query{title, block[1]})
	}
	return found, nil
}

// rolledBack runs a statement for an organization, as the pages say, and leaves nothing behind.
func (o operator) rolledBack(organization, sql string) func(context.Context) error {
	return func(ctx context.Context) error {
		tx, err := o.db.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, "SELECT set_config('walhook.organization', $1, true), set_config('jit', 'off', true)", organization); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sql)
		return err
	}
}

func (o operator) get(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+o.admin+path, nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if text, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s, %w", answer.Status, text, err)
		}
		return nil
	}
}

func (o operator) status(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, o.binary, "status", "--json")
	cmd.Env = environment(o.db)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

// The events are owed to nobody, so that the stream brings nothing; the rows of
// insertMonthsDeliveries make them deliveries. One in a hundred of the others has failed.
const (
	insertMonthsEvents = `
WITH events AS (
    INSERT INTO webhook_outbox (id, organization_id, event_type, payload, endpoint_ids)
    SELECT webhook_delivery_id(webhook_uuid_at(now() - @days::int * interval '1 day' * (1 - i::float8 / @n::int)), gen_random_uuid()),
           @organization::text || '_' || i % @organizations::int, @type::text, '{"amount": 4200, "currency": "EUR"}', '{}'
    FROM generate_series(@first::int, @last::int) AS i
    RETURNING id, organization_id
)`

	insertMonthsDeliveries = `
INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts, duration_ms,
                                next_attempt_at, status_code, error_class, error, response, completed_at, created_at, updated_at)
SELECT webhook_delivery_id(v.id, e.id), v.id, e.id, v.organization_id, @type::text, s.status, 1, 10,
       CASE WHEN s.status = 'retrying' THEN now() + interval '1 hour' + random() * interval '9 hours' END,
       CASE WHEN s.status = 'success' THEN 200 ELSE 503 END,
       CASE WHEN s.status <> 'success' THEN 'http_5xx' END,
       CASE WHEN s.status <> 'success' THEN 'answered 503' END,
       'ok', CASE WHEN s.status <> 'retrying' THEN t.at END, t.at, t.at
FROM events AS v JOIN webhook_endpoints AS e USING (organization_id)
CROSS JOIN LATERAL (SELECT webhook_uuid_time(v.id) AS at) AS t
CROSS JOIN LATERAL (SELECT CASE WHEN f.endpoint_id IS NOT NULL THEN 'retrying' WHEN random() < 0.01 THEN 'failed' ELSE 'success' END AS status
                    FROM (SELECT) AS one LEFT JOIN webhook_endpoint_failures AS f ON f.endpoint_id = e.id) AS s`

	insertMonthsEndpoints = `
WITH endpoints AS (
    INSERT INTO webhook_endpoints (organization_id, url)
    SELECT @organization::text || '_' || i % @organizations::int, @url::text || '/' || i / @organizations::int FROM generate_series(0, @endpoints::int - 1) AS i
    RETURNING id, url
)
INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since, breaker_opened_at)
SELECT id, now() - interval '1 hour', now() - interval '59 minutes' FROM endpoints WHERE url LIKE '%/0'`

	addPartitions = `
SELECT webhook_add_partition(t.name, (now() AT TIME ZONE 'UTC')::date - day)
FROM generate_series(0, @days::int) AS day, (VALUES ('webhook_outbox'), ('webhook_deliveries')) AS t(name)`
)

// insertMonth inserts a month of events and deliveries, with the slot behind it.
func (b *bench) insertMonth(ctx context.Context, db *database) error {
	events := max(1, b.looked/endpointsTogether)
	args := pgx.NamedArgs{
		"organization": others, "organizations": b.looksEndpoints() / endpointsTogether, "endpoints": b.looksEndpoints(), "url": b.receiver.url(pathCount),
		"type": eventType, "days": looksDays, "n": events,
	}
	if _, err := db.Exec(ctx, "SET synchronous_commit = off"); err != nil { // as for a backlog
		return err
	}
	for _, sql := range []string{addPartitions, insertMonthsEndpoints} {
		if _, err := db.Exec(ctx, sql, args); err != nil {
			return err
		}
	}
	for first := 0; first < events; first += historyChunk / endpointsTogether {
		args["first"], args["last"] = first, min(first+historyChunk/endpointsTogether, events)-1
		if _, err := db.Exec(ctx, insertMonthsEvents+insertMonthsDeliveries, args); err != nil {
			return err
		}
	}
	if err := db.vacuum(ctx, "webhook_outbox, webhook_deliveries, webhook_endpoints, webhook_endpoint_failures"); err != nil {
		return err
	}
	return db.skip(ctx)
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/outbox"
)

// The naive poller: one loop, a batch of 100 rows locked in a transaction, POST,
// UPDATE, COMMIT, without a pause while batches are full. It has it easier than a real
// one: the endpoint's URL and secret are in memory, there is no fan-out, and its table
// has only one partial index.
//
// "one by one" is the usual loop: it sends and updates one row after the other. "in
// parallel" sends a batch's rows 32 at a time and updates them with one statement.
const (
	createJobs = `
CREATE TABLE jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text NOT NULL, event_type text NOT NULL,
    payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    status text NOT NULL DEFAULT 'pending', attempts int NOT NULL DEFAULT 0, status_code int, updated_at timestamptz
);
CREATE INDEX ON jobs (created_at) WHERE status = 'pending'`

	selectJobs = `
SELECT id, organization_id, event_type, payload::text, created_at FROM jobs
WHERE status = 'pending' ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED`

	updateJobs = `
UPDATE jobs SET status = 'success', attempts = attempts + 1, status_code = 200, updated_at = now() WHERE id = ANY ($1)`

	pollerBatch = 100
)

// poll is the poller's process.
func poll(j job, ready func(string) error) error {
	ctx := context.Background()
	p, err := newPoster(j)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, j.DatabaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return timed(j, ready, func() error {
		for {
			n := 0
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				n, err = pollOnce(ctx, tx, p, j.Parallel)
				return err
			})
			if err != nil || n < pollerBatch {
				return err
			}
		}
	})
}

func pollOnce(ctx context.Context, tx pgx.Tx, p *poster, parallel bool) (int, error) {
	rows, err := tx.Query(ctx, selectJobs, pollerBatch)
	if err != nil {
		return 0, err
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e outbox.Event, err error) {
		var text string
		err = row.Scan(&e.ID, &e.OrganizationID, &e.Type, &text, &e.CreatedAt)
		e.Payload = []byte(text)
		return e, err
	})
	if err != nil {
		return 0, err
	}
	ids := make([]uuid.UUID, len(events))
	for i := range events {
		ids[i] = events[i].ID
	}
	if parallel {
		if err := together(len(events), inFlight, func(i int) error { return p.post(ids[i], send.Body(&events[i])) }); err != nil {
			return 0, err
		}
		_, err := tx.Exec(ctx, updateJobs, ids)
		return len(events), err
	}
	for i := range events {
		if err := p.post(ids[i], send.Body(&events[i])); err != nil {
			return 0, err
		}
		if _, err := tx.Exec(ctx, updateJobs, ids[i:i+1]); err != nil {
			return 0, err
		}
	}
	return len(events), nil
}

// A polled is the result of one round of a poller.
type polled struct {
	took        time.Duration
	cpu, server time.Duration
}

// runPoller drains the same events with a poller, on a fresh database.
func (b *bench) runPoller(ctx context.Context, parallel bool) (polled, error) {
	db, err := b.server.newDatabase(ctx)
	if err != nil {
		return polled{}, err
	}
	defer db.drop()
	if _, err := db.Exec(ctx, createJobs); err != nil {
		return polled{}, err
	}
	if _, err := (backlog{events: b.n, organizations: 1, perTx: b.perTx}).insert(ctx, db.Conn, "jobs"); err != nil {
		return polled{}, err
	}
	if _, err := db.Exec(ctx, "ANALYZE jobs"); err != nil {
		return polled{}, err
	}
	p, err := startChild(ctx, "poller", job{URL: b.receiver.url(pathCount), DatabaseURL: db.url, Secret: clientSecret, Parallel: parallel})
	if err != nil {
		return polled{}, err
	}
	defer p.stop()
	if err := b.calm(ctx); err != nil {
		return polled{}, err
	}
	before := b.server.cpu()
	o, err := p.run()
	if err != nil {
		return polled{}, err
	}
	after := b.server.cpu()
	var sent int
	if err := db.QueryRow(ctx, "SELECT count(*) FROM jobs WHERE status = 'success'").Scan(&sent); err != nil {
		return polled{}, err
	}
	if sent != b.n {
		return polled{}, fmt.Errorf("the poller sent %d of %d", sent, b.n)
	}
	return polled{took: o.Took, cpu: o.CPU, server: after - before}, nil
}

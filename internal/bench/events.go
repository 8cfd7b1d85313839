//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/outbox"
)

// These are the same for every event.
const (
	eventType    = "payment.succeeded"
	organization = "org_bench"
	payloadBytes = 1024
)

// organizationOf is the i-th endpoint's, if each has one of its own.
func organizationOf(endpoint int) string { return fmt.Sprintf("%s_%d", organization, endpoint) }

// payload is the i-th event's, written as PostgreSQL prints jsonb, so that all arms send
// the same bytes.
func payload(i, size int) []byte {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	random := rand.New(rand.NewPCG(1, uint64(i)))
	text := fmt.Appendf(make([]byte, 0, size), `{"n": %d, "note": "`, i)
	for len(text) < size-len(`"}`) {
		text = append(text, letters[random.IntN(len(letters))])
	}
	return append(text, `"}`...)
}

// event is the i-th event for the arms without a database.
func event(i, size int) *outbox.Event {
	return &outbox.Event{
		ID: uuid.Must(uuid.NewV7()), OrganizationID: organizationOf(0), Type: eventType,
		Payload: payload(i, size), CreatedAt: time.Now(),
	}
}

// A backlog is events that are committed before anybody delivers them.
type backlog struct {
	events        int
	organizations int // that they belong to, in rotation
	perTx         int // events per transaction
	size          int // bytes of a payload; 0: payloadBytes
}

// insert fills a table that has the outbox's first columns. It returns a position inside
// the last transaction: a slot that is confirmed beyond it is confirmed beyond them all.
// The session does not wait for the disk, because a CHECKPOINT precedes the measurement.
func (l backlog) insert(ctx context.Context, conn *pgx.Conn, table string) (pglogrepl.LSN, error) {
	if _, err := conn.Exec(ctx, "SET synchronous_commit = off"); err != nil {
		return 0, err
	}
	insert := "INSERT INTO " + table + ` (organization_id, event_type, payload)
SELECT e.organization_id, $1, e.payload::jsonb FROM unnest($2::text[], $3::text[]) AS e (organization_id, payload)`
	var last pglogrepl.LSN
	for i := 0; i < l.events; {
		organizations, texts := make([]string, 0, l.perTx), make([]string, 0, l.perTx)
		for ; len(texts) < l.perTx && i < l.events; i++ {
			organizations = append(organizations, organizationOf(i%l.organizations))
			texts = append(texts, string(payload(i, cmp.Or(l.size, payloadBytes))))
		}
		var b pgx.Batch // one implicit transaction
		b.Queue(insert, eventType, organizations, texts)
		if i == l.events {
			b.Queue("SELECT pg_current_wal_insert_lsn()::text").QueryRow(func(row pgx.Row) (err error) {
				last, err = scanLSN(row)
				return err
			})
		}
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return 0, fmt.Errorf("insert events: %w", err)
		}
	}
	return last, nil
}

func scanLSN(row pgx.Row) (pglogrepl.LSN, error) {
	var text string
	if err := row.Scan(&text); err != nil {
		return 0, err
	}
	return pglogrepl.ParseLSN(text)
}

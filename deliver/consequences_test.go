package deliver

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// A refusingConsequences database refuses consequences, if it is told to, or does not answer.
type refusingConsequences struct {
	Store
	refused bool
	hangs   func(try int) bool // nil: never
	tries   int
	written int
}

// Mark is Store's.
func (r *refusingConsequences) Mark(context.Context, webhook.Fence, webhook.Mark) error { return nil }

// WriteConsequence is Store's.
func (r *refusingConsequences) WriteConsequence(ctx context.Context, _ webhook.Fence, c store.Consequence) ([]store.Consequence, error) {
	if r.tries++; r.hangs != nil && r.hangs(r.tries) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.refused {
		return nil, &pgconn.PgError{Code: "P0001"}
	}
	r.written += c.Len()
	return nil, nil
}

// emptyStream is a stream that brings nothing.
type emptyStream chan webhook.Batch

// Batches is Source's.
func (s emptyStream) Batches() <-chan webhook.Batch { return s }

// Stop is Source's.
func (s emptyStream) Stop() { close(s) }

// deferring returns an engine with deferred consequences of n deliveries, and where it logs.
// Its session is not live, so nothing else is asked of the database.
func deferring(db *refusingConsequences, n int) (*Engine, *bytes.Buffer) {
	var text bytes.Buffer
	e := New(Config{Limits: small, Store: db, Sender: send.NewSender(send.SenderConfig{Timeout: time.Second}), Log: slog.New(slog.NewTextHandler(&text, nil))})
	e.scheduler.BeginSession(&webhook.Session{Lease: time.Nanosecond}, webhook.Fence{Epoch: 1}, 0, time.Now())
	e.recorder.deferred.active = true
	for range n {
		e.recorder.deferred.kept = append(e.recorder.deferred.kept,
			store.Consequences(nil, []webhook.Record{{ID: uuid.New(), EventType: "payment.failed", Exhausted: true, Attempt: &webhook.Attempt{}}})...)
	}
	return e, &text
}

func TestDeferredConsequencesAreWrittenAtAGracefulStop(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]bool{"accepted again": false, "still refused": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := &refusingConsequences{refused: refused}
			e, text := deferring(db, 1)
			e.recorder.deferred.tried = time.Now()
			ctx, stop := context.WithCancel(t.Context())
			stop()
			if err := e.Run(ctx, make(emptyStream)); err != nil {
				t.Fatal(err)
			}
			if logged := strings.Contains(text.String(), "level=ERROR") && strings.Contains(text.String(), "count=1"); (db.written == 1) == refused || logged != refused {
				t.Errorf("%d written, loss logged: %t; refused: %t: %s", db.written, logged, refused, text.String())
			}
		})
	}
}

func TestDeferredConsequencesThatAreBeingWrittenAtAStopAreKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := make(chan bool)
		db := &refusingConsequences{hangs: func(try int) bool {
			if try == 1 {
				close(began)
			}
			return try == 1
		}}
		e, text := deferring(db, 3)
		ctx, stop := context.WithCancel(t.Context())
		go func() {
			<-began
			stop()
		}()
		if err := e.Run(ctx, make(emptyStream)); err != nil {
			t.Fatal(err)
		}
		if db.written != 3 {
			t.Errorf("%d of 3 deferred consequences were written: %s", db.written, text)
		}
	})
}

func TestASlowDatabaseThatRefusesConsequencesDoesNotHoldUpRecording(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &refusingConsequences{hangs: func(int) bool { return true }}
		e, _ := deferring(db, 100)
		begun := time.Now()
		if err := e.recorder.deferred.retry(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > consequencesFor+statementTimeout {
			t.Errorf("nothing was recorded for %s", took)
		}
		if kept := len(e.recorder.deferred.kept); kept != 100 {
			t.Errorf("%d of 100 are kept", kept)
		}
	})
}

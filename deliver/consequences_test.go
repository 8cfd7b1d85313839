package deliver

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// A refusingConsequences database refuses consequences, if it is told to.
type refusingConsequences struct {
	Store
	refused bool
	written int
}

// Mark is Store's.
func (r *refusingConsequences) Mark(context.Context, webhook.Fence, webhook.Mark) error { return nil }

// WriteConsequence is Store's.
func (r *refusingConsequences) WriteConsequence(_ context.Context, _ webhook.Fence, c store.Consequence) ([]store.Consequence, error) {
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

func TestDeferredConsequencesAreWrittenAtAGracefulStop(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]bool{"accepted again": false, "still refused": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text bytes.Buffer
			db := &refusingConsequences{refused: refused}
			e := New(Config{Limits: small, Store: db, Sender: send.NewSender(send.SenderConfig{Timeout: time.Second}), Log: slog.New(slog.NewTextHandler(&text, nil))})
			e.scheduler.BeginSession(&webhook.Session{}, webhook.Fence{Epoch: 1}, 0, time.Now())
			e.recorder.deferred.active, e.recorder.deferred.tried = true, time.Now()
			e.recorder.deferred.kept = store.Consequences(nil, []webhook.Record{{ID: uuid.New(), EventType: "payment.failed", Exhausted: true, Attempt: &webhook.Attempt{}}})
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

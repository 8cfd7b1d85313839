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
)

// A mute database takes no news for as long as it is refused.
type mute struct {
	Store
	refused bool
	told    int
}

// Mark is Store's.
func (m *mute) Mark(context.Context, store.Fence, store.Mark) error { return nil }

// Tell is Store's.
func (m *mute) Tell(_ context.Context, _ store.Fence, c store.Consequence) ([]store.Consequence, error) {
	if m.refused {
		return nil, &pgconn.PgError{Code: "P0001"}
	}
	m.told += c.Len()
	return nil, nil
}

// emptyStream is a stream that brings nothing.
type emptyStream chan store.Batch

// Batches is Source's.
func (s emptyStream) Batches() <-chan store.Batch { return s }

// Stop is Source's.
func (s emptyStream) Stop() { close(s) }

func TestNewsThatIsOwedIsToldAtAGracefulStop(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string]bool{"where it is taken again": false, "where it is still refused": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var text bytes.Buffer
			db := &mute{refused: refused}
			e := New(Config{Limits: small, Store: db, Sender: send.NewSender(send.SenderConfig{Timeout: time.Second}), Log: slog.New(slog.NewTextHandler(&text, nil))})
			e.scheduler.Begin(&store.Session{}, store.Fence{Epoch: 1}, 0, time.Now())
			e.recorder.deferring, e.recorder.deferredTried = true, time.Now()
			e.recorder.deferred = store.Consequences(nil, []store.Record{{ID: uuid.New(), EventType: "payment.failed", Exhausted: true, Attempt: &store.Attempt{}}})
			ctx, stop := context.WithCancel(t.Context())
			stop()
			if err := e.Run(ctx, make(emptyStream)); err != nil {
				t.Fatal(err)
			}
			if said := strings.Contains(text.String(), "level=ERROR") && strings.Contains(text.String(), "count=1"); (db.told == 1) == refused || said != refused {
				t.Errorf("told %d, said %t that it is lost; refused %t: %s", db.told, said, refused, text.String())
			}
		})
	}
}

package webhook_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/webhook"
)

func TestSessionConfirm(t *testing.T) {
	t.Parallel()
	s := &webhook.Session{Confirmed: 100}
	for _, c := range []struct{ confirm, want pglogrepl.LSN }{
		{0, 100}, {50, 100}, {100, 100}, {200, 200}, {150, 200}, {1<<64 - 1, 1<<64 - 1}, {7, 1<<64 - 1},
	} {
		s.Confirm(c.confirm)
		if got := s.Flushed(); got != c.want {
			t.Errorf("after %s: flushed %s, want %s", c.confirm, got, c.want)
		}
	}

	t.Run("from several goroutines keeps the largest", func(t *testing.T) {
		var s webhook.Session
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 1000 {
					s.Confirm(pglogrepl.LSN(i*8 + g))
				}
			})
		}
		wg.Wait()
		if got := s.Flushed(); got != 7999 {
			t.Errorf("flushed %d, want 7999", got)
		}
	})
}

func TestSessionLive(t *testing.T) {
	t.Parallel()
	live := func(t *testing.T, s *webhook.Session, want bool) {
		t.Helper()
		if got := s.Live(time.Now()); got != want {
			t.Errorf("live: %t, want %t", got, want)
		}
	}
	t.Run("until it ends, without a lease", func(t *testing.T) {
		t.Parallel()
		var s webhook.Session
		live(t, &s, true)
		s.End()
		live(t, &s, false)
	})
	t.Run("a void one never", func(t *testing.T) {
		t.Parallel()
		var s webhook.Session
		s.Void()
		live(t, &s, false)
		if !s.IsVoid() {
			t.Error("not void")
		}
	})
	t.Run("for its lease after it was both seen and heard", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := webhook.Session{Lease: 5 * time.Second}
			live(t, &s, false)
			s.Seen(time.Now())
			live(t, &s, false)
			asked := time.Now()
			time.Sleep(4 * time.Second)
			s.Heard(time.Now())
			live(t, &s, true)
			time.Sleep(time.Second)
			s.Heard(time.Now())
			s.Seen(asked) // an answer that comes late says nothing of now
			live(t, &s, false)
			s.Seen(time.Now())
			live(t, &s, true)
			s.End()
			live(t, &s, false)
		})
	})
}

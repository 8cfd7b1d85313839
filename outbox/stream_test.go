package outbox_test

import (
	"sync"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/outbox"
)

func TestSessionConfirm(t *testing.T) {
	t.Parallel()
	s := &outbox.Session{Confirmed: 100}
	for _, c := range []struct{ confirm, want pglogrepl.LSN }{
		{0, 100}, {50, 100}, {100, 100}, {200, 200}, {150, 200}, {1<<64 - 1, 1<<64 - 1}, {7, 1<<64 - 1},
	} {
		s.Confirm(c.confirm)
		if got := s.Flushed(); got != c.want {
			t.Errorf("after %s: flushed %s, want %s", c.confirm, got, c.want)
		}
	}

	t.Run("from several goroutines keeps the largest", func(t *testing.T) {
		var s outbox.Session
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

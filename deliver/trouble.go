package deliver

import (
	"fmt"
	"sync/atomic"
	"time"
)

// troubleAfter is how long something may fail before walhook is not ready: longer
// than a restart of PostgreSQL's, or a lock, may take.
const troubleAfter = 5 * time.Second

// A trouble is what a loop cannot do just now. The zero trouble is none.
type trouble struct{ now atomic.Pointer[failingSince] }

type failingSince struct {
	since time.Time
	err   error
}

// note keeps why it fails, and since when.
func (t *trouble) note(begun time.Time, err error) {
	if was := t.now.Load(); was != nil {
		begun = was.since
	}
	t.now.Store(&failingSince{begun, err})
}

// clear is called when it works.
func (t *trouble) clear() {
	if t.now.Load() != nil {
		t.now.Store(nil)
	}
}

// lasting returns why something cannot be done, if that is so for long enough to
// say it.
func (t *trouble) lasting(what string) error {
	f := t.now.Load()
	if f == nil || time.Since(f.since) < troubleAfter {
		return nil
	}
	return fmt.Errorf("%s since %s: %w", what, f.since.UTC().Format(time.RFC3339), f.err)
}

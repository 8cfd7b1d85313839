package deliver

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// notReadyAfter is how long something may fail before walhook reports that it is not
// ready: longer than a restart of PostgreSQL or a lock should take.
const notReadyAfter = 5 * time.Second

// A failure remembers since when an operation of a loop has failed, and why. The zero
// failure is none.
type failure struct{ ongoing atomic.Pointer[failingSince] }

type failingSince struct {
	since time.Time
	err   error
}

// observe takes the result of an operation that begun at that time. It logs the first
// error and the end of a failure.
func (f *failure) observe(log *slog.Logger, begun time.Time, err error, fails, resumed string) {
	failing := f.ongoing.Load() != nil
	switch {
	case err != nil:
		if f.note(begun, err); !failing {
			log.Warn(fails, "error", err)
		}
	case failing:
		f.clear()
		log.Info(resumed)
	}
}

// note keeps the newest error; the time of the first one stays.
func (f *failure) note(begun time.Time, err error) {
	if was := f.ongoing.Load(); was != nil {
		begun = was.since
	}
	f.ongoing.Store(&failingSince{begun, err})
}

// clear ends the failure: the operation works again.
func (f *failure) clear() {
	if f.ongoing.Load() != nil {
		f.ongoing.Store(nil)
	}
}

// lasting returns the failure once it has lasted for notReadyAfter.
func (f *failure) lasting(what string) error {
	ongoing := f.ongoing.Load()
	if ongoing == nil || time.Since(ongoing.since) < notReadyAfter {
		return nil
	}
	return fmt.Errorf("%s since %s: %w", what, ongoing.since.UTC().Format(time.RFC3339), ongoing.err)
}

package schedule

import (
	"time"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// A known holds the last look-up of a lane's endpoint.
type known struct {
	organization string            // once it was looked up
	endpoint     *webhook.Endpoint // as of asOf; nil: it does not exist
	target       *send.Target
	asOf         time.Time     // before the look-up; zero: never
	ask          bool          // it has to be looked up, whatever its age
	asked        bool          // it is just being
	refused      bool          // disabled or deleted: what is owed is cancelled
	paused       bool          // what is owed waits in the table
	timeout      time.Duration // of an attempt
	backoff      Backoff
	gone         bool      // answered 410, which is not committed yet: nothing more is sent
	notBefore    time.Time // a look-up from before is not to be relied on
}

// fresh reports whether attempts may rely on the last look-up; stale, whether it is
// time for another.
func (k *known) fresh(now time.Time) bool { return !k.asOf.IsZero() && now.Sub(k.asOf) < staleAfter }
func (k *known) stale(now time.Time) bool {
	return k.asOf.IsZero() || now.Sub(k.asOf) >= refreshAfter
}

// gets reports whether an event may be sent to the endpoint.
func (k *known) gets(e *event) bool {
	return k.endpoint != nil && k.endpoint.Gets(e.organization, e.typ)
}

func (k *known) refusal() string {
	if k.endpoint == nil {
		return "the endpoint was deleted"
	}
	return "the endpoint is disabled"
}

package send

import (
	"net/http"

	"github.com/walhook/walhook/internal/store"
)

// A Verdict is what an attempt means for its delivery.
type Verdict int

// The verdicts. Whether a Retry is followed by another attempt is the
// Schedule's to say.
const (
	Retry     Verdict = iota // it failed, and may succeed later
	Delivered                // a 2xx status line came
	Gone                     // 410: the receiver wants nothing more, from this endpoint
)

// String returns the verdict's name.
func (v Verdict) String() string {
	switch v {
	case Delivered:
		return "delivered"
	case Gone:
		return "gone"
	default:
		return "retry"
	}
}

// Judge says what an attempt means. The status line alone decides: 2xx is
// success, 410 is the end, and everything else, a blocked address and a
// redirect included, is worth another attempt, because operators mend
// addresses, certificates and routes while the schedule lasts.
func Judge(a store.Attempt) Verdict {
	switch {
	case a.StatusCode >= 200 && a.StatusCode <= 299:
		return Delivered
	case a.StatusCode == http.StatusGone:
		return Gone
	default:
		return Retry
	}
}

// StatusClass returns the class of a final status line.
func StatusClass(status int) store.ErrorClass {
	switch {
	case status < 200: // 101, which nobody asked for, and numbers that HTTP does not know
		return store.ErrProtocol
	case status <= 299:
		return ""
	case status <= 399:
		return store.ErrRedirect
	case status <= 499:
		return store.ErrHTTP4xx
	default:
		return store.ErrHTTP5xx
	}
}

package send

import (
	"net/http"

	"github.com/walhook/walhook/internal/webhook"
)

// A Verdict is the meaning of an attempt for its delivery.
type Verdict int

// The verdicts. The retry schedule decides whether a Retry is followed by another
// attempt.
const (
	Retry     Verdict = iota // the attempt failed; a later one may succeed
	Delivered                // a 2xx status line came
	Gone                     // 410: the receiver wants no more deliveries at this endpoint
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

// Judge returns an attempt's verdict. The status line alone decides: 2xx is a success,
// and 410 ends the delivery. Everything else is retried, including blocked addresses and
// redirects: operators can fix addresses, certificates and routes while the schedule
// lasts.
func Judge(a webhook.Attempt) Verdict {
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
func StatusClass(status int) webhook.ErrorClass {
	switch {
	case status < 200: // 101, which no request asked for, and numbers below 100
		return webhook.ErrProtocol
	case status <= 299:
		return ""
	case status <= 399:
		return webhook.ErrRedirect
	case status <= 499:
		return webhook.ErrHTTP4xx
	default:
		return webhook.ErrHTTP5xx
	}
}

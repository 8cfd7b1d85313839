package deliver

import (
	"testing"

	"github.com/walhook/walhook/outbox"
)

func TestTheStatusLineDecides(t *testing.T) {
	t.Parallel()
	for status := range 1000 {
		verdict, class := Retry, outbox.ErrorClass("")
		switch {
		case status == 410:
			verdict, class = Gone, outbox.ErrHTTP4xx
		case status < 200:
			class = outbox.ErrProtocol
		case status < 300:
			verdict = Delivered
		case status < 400:
			class = outbox.ErrRedirect
		case status < 500:
			class = outbox.ErrHTTP4xx
		default:
			class = outbox.ErrHTTP5xx
		}
		if got := statusClass(status); got != class {
			t.Errorf("class of %d = %q, want %q", status, got, class)
		}
		if got := Judge(outbox.Attempt{StatusCode: status, Class: class}); got != verdict {
			t.Errorf("Judge of %d = %v, want %v", status, got, verdict)
		}
	}
}

func TestAnAttemptWithoutAStatusLineIsRetried(t *testing.T) {
	t.Parallel()
	for _, class := range []outbox.ErrorClass{
		outbox.ErrDNS, outbox.ErrConnect, outbox.ErrTLS, outbox.ErrTimeout, outbox.ErrReset,
		outbox.ErrProtocol, outbox.ErrBlocked, outbox.ErrBadRequest,
	} {
		if got := Judge(outbox.Attempt{Class: class}); got != Retry {
			t.Errorf("Judge of %s = %v, want %v", class, got, Retry)
		}
	}
}

package send

import (
	"testing"

	"github.com/walhook/walhook/internal/store"
)

func TestTheStatusLineDecides(t *testing.T) {
	t.Parallel()
	for status := range 1000 {
		verdict, class := Retry, store.ErrorClass("")
		switch {
		case status == 410:
			verdict, class = Gone, store.ErrHTTP4xx
		case status < 200:
			class = store.ErrProtocol
		case status < 300:
			verdict = Delivered
		case status < 400:
			class = store.ErrRedirect
		case status < 500:
			class = store.ErrHTTP4xx
		default:
			class = store.ErrHTTP5xx
		}
		if got := StatusClass(status); got != class {
			t.Errorf("class of %d = %q, want %q", status, got, class)
		}
		if got := Judge(store.Attempt{StatusCode: status, Class: class}); got != verdict {
			t.Errorf("Judge of %d = %v, want %v", status, got, verdict)
		}
	}
}

func TestAnAttemptWithoutAStatusLineIsRetried(t *testing.T) {
	t.Parallel()
	for _, class := range []store.ErrorClass{
		store.ErrDNS, store.ErrConnect, store.ErrTLS, store.ErrTimeout, store.ErrReset,
		store.ErrProtocol, store.ErrBlocked, store.ErrBadRequest,
	} {
		if got := Judge(store.Attempt{Class: class}); got != Retry {
			t.Errorf("Judge of %s = %v, want %v", class, got, Retry)
		}
	}
}

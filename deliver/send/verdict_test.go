package send

import (
	"testing"

	"github.com/walhook/walhook/internal/webhook"
)

func TestTheStatusLineDecides(t *testing.T) {
	t.Parallel()
	for status := range 1000 {
		verdict, class := Retry, webhook.ErrorClass("")
		switch {
		case status == 410:
			verdict, class = Gone, webhook.ErrHTTP4xx
		case status < 200:
			class = webhook.ErrProtocol
		case status < 300:
			verdict = Delivered
		case status < 400:
			class = webhook.ErrRedirect
		case status < 500:
			class = webhook.ErrHTTP4xx
		default:
			class = webhook.ErrHTTP5xx
		}
		if got := StatusClass(status); got != class {
			t.Errorf("class of %d = %q, want %q", status, got, class)
		}
		if got := Judge(webhook.Attempt{StatusCode: status, Class: class}); got != verdict {
			t.Errorf("Judge of %d = %v, want %v", status, got, verdict)
		}
	}
}

func TestAnAttemptWithoutAStatusLineIsRetried(t *testing.T) {
	t.Parallel()
	for _, class := range []webhook.ErrorClass{
		webhook.ErrDNS, webhook.ErrConnect, webhook.ErrTLS, webhook.ErrTimeout, webhook.ErrReset,
		webhook.ErrProtocol, webhook.ErrBlocked, webhook.ErrBadRequest,
	} {
		if got := Judge(webhook.Attempt{Class: class}); got != Retry {
			t.Errorf("Judge of %s = %v, want %v", class, got, Retry)
		}
	}
}

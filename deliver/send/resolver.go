package send

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// A resolver knows whose fault it is that a name did not resolve. A resolver that is
// away or refuses, and a tenant's name whose own servers are broken, fail a look-up in
// the same way. So the resolver is asked for something that is no tenant's, and that any
// resolver has: the name servers of the root.
type resolver struct {
	*net.Resolver
	lacked atomic.Pointer[lack] // the last time that a question could not even be sent

	mu    sync.Mutex
	asked time.Time // when the last such question was
	fault webhook.OwnFault
}

// A lack is what this machine had used up when the resolver was dialled. The resolver's
// own error does not tell.
type lack struct {
	at    time.Time
	fault webhook.OwnFault
}

const (
	// askWithin bounds the question, which may come when an attempt's time is over. A
	// resolver has the answer at hand.
	askWithin = time.Second / 2

	// askAgain is how long a resolver counts as away without another question.
	askAgain = time.Second
)

func newResolver(r *net.Resolver) *resolver {
	if r == nil { // that of libc does not find a name with a final dot in /etc/hosts
		r = &net.Resolver{PreferGo: true}
	}
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	x := &resolver{}
	x.Resolver = &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if fault := ownFault(err); fault != "" {
			x.lacked.Store(&lack{time.Now(), fault})
		}
		return c, err
	}}
	return x
}

// blame returns the fault of ours for which a name did not resolve, if it was one.
func (r *resolver) blame(ctx context.Context, err *net.DNSError, begun time.Time) webhook.OwnFault {
	if err.IsNotFound || errors.Is(ctx.Err(), context.Canceled) {
		return ""
	}
	if lacked := r.lacked.Load(); lacked != nil && !lacked.at.Before(begun) {
		return lacked.fault
	}
	failed := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if away := r.fault != "" && failed.Sub(r.asked) < askAgain; away || r.asked.After(failed) {
		return r.fault
	}
	r.asked = time.Now()
	r.fault = r.ask(context.WithoutCancel(ctx))
	return r.fault
}

func (r *resolver) ask(ctx context.Context) webhook.OwnFault {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	_, err := r.LookupNS(ctx, ".")
	if dns, ok := errors.AsType[*net.DNSError](err); err == nil || ok && dns.IsNotFound {
		return ""
	}
	return webhook.FaultResolver
}

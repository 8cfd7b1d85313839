package send

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/walhook/walhook/internal/webhook"
)

// A failure tells why an attempt has no status line. Whoever meets it decides its class,
// because where an attempt broke tells more than its error.
type failure struct {
	class webhook.ErrorClass
	fault webhook.OwnFault
	err   error

	// unanswered: a reused connection broke before any byte of an answer came, and
	// not by our own doing.
	unanswered bool
}

// Reasons why our side ends an attempt.
const (
	errTimeout = words("no response within the timeout")
	errNotLive = words("another process may hold the slot")
	errClosed  = words("the receiver closed the connection before its response was complete")
)

// notLive reports whether this process may not send.
func (f *failure) notLive() bool { return f != nil && errors.Is(f.err, errNotLive) }

// timeout is the failure of an attempt whose time is over.
func timeout() *failure { return &failure{class: webhook.ErrTimeout, err: errTimeout} }

// dialFailure classifies an error of a dialler.
func dialFailure(ctx context.Context, err error) *failure {
	if _, ok := errors.AsType[*BlockedError](err); ok {
		return &failure{class: webhook.ErrBlocked, err: err}
	}
	if timedOut(ctx) {
		return timeout()
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return &failure{class: webhook.ErrDNS, err: err}
	}
	if isTimeout(err) { // the kernel's own, or one address's share of the time
		return &failure{class: webhook.ErrTimeout, err: err}
	}
	return &failure{class: webhook.ErrConnect, fault: ownFault(err), err: err}
}

// ownFault returns what this machine has used up, if that is why it cannot connect.
func ownFault(err error) webhook.OwnFault {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS):
		return webhook.FaultDescriptors
	case errors.Is(err, syscall.EADDRNOTAVAIL) && !overIPv6(err):
		return webhook.FaultPorts
	default:
		return ""
	}
}

// overIPv6 reports whether an error is of dialling an IPv6 address. A machine without
// IPv6 says of all of them that no local address is left.
func overIPv6(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok {
		return false
	}
	to, ok := op.Addr.(*net.TCPAddr)
	return ok && to.IP.To4() == nil
}

// handshakeFailure classifies an error of a TLS handshake.
func handshakeFailure(ctx context.Context, err error) *failure {
	if timedOut(ctx) || isTimeout(err) {
		return timeout()
	}
	return &failure{class: webhook.ErrTLS, err: err}
}

// brokenFailure classifies an error of reading or writing on a connection.
func (c *conn) brokenFailure(err error) *failure {
	switch {
	case isTimeout(err):
		return timeout()
	case isEnd(err):
		return &failure{class: webhook.ErrReset, err: errClosed}
	case !c.wire.broke.Load(): // so what came over it was no TLS, or an alert
		return &failure{class: webhook.ErrTLS, err: err}
	default:
		return &failure{class: webhook.ErrReset, err: err}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// timedOut reports whether a context's time is over. A connection's deadline may end a
// moment before its context does.
func timedOut(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

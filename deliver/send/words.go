package send

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"syscall"

	"github.com/walhook/walhook/internal/webhook"
)

// Words are a text of ours, which a tenant may read: see inWords.
type words string

// Error returns the text.
func (w words) Error() string { return string(w) }

// A proxyError is an error of the proxy, or of the connection to it.
type proxyError struct{ err error }

func (e *proxyError) Error() string { return "the proxy: " + e.err.Error() }
func (e *proxyError) Unwrap() error { return e.err }

// inWords puts a failure into our own words, because tenants read an attempt's error.
// They tell what the receiver did. They have no address: neither one that a name resolved
// to nor ours, the resolver's or the proxy's. They have nothing that others wrote, such
// as a certificate's names. So no error's text is passed on, unless it is ours.
func inWords(class webhook.ErrorClass, err error) string {
	if p, ok := errors.AsType[*proxyError](err); ok {
		return "the proxy: " + inWords(class, p.err)
	}
	if own, ok := errors.AsType[words](err); ok {
		return string(own)
	}
	if refusal, ok := errors.AsType[*BlockedError](err); ok {
		return refusal.text
	}
	switch class {
	case webhook.ErrDNS:
		return dnsInWords(err)
	case webhook.ErrTLS:
		return tlsInWords(err)
	case webhook.ErrTimeout:
		return string(errTimeout)
	case webhook.ErrReset:
		return systemInWords(err, "the connection broke before the response")
	default:
		return systemInWords(err, "no connection could be made")
	}
}

func dnsInWords(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "the host's name does not exist, or has no address"
	}
	return "the host's name could not be resolved"
}

// systemInWords has words for what the operating system says of a connection.
func systemInWords(err error, otherwise string) string {
	errno, _ := errors.AsType[syscall.Errno](err)
	switch errno {
	case syscall.ECONNREFUSED:
		return "the connection was refused"
	case syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED:
		return "the connection was reset"
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return "there is no route to the host"
	case syscall.ENETUNREACH, syscall.ENETDOWN:
		return "the host's network cannot be reached"
	case syscall.EMFILE, syscall.ENFILE:
		return "no file descriptors are left"
	case syscall.EADDRNOTAVAIL:
		return "no local ports are left"
	default:
		return otherwise
	}
}

// tlsInWords has words for a handshake, and for what breaks TLS later on. Of the errors'
// texts only an alert's is passed on: it is one of the fixed list of crypto/tls.
func tlsInWords(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the certificate is from no trusted authority: WALHOOK_CA_FILE would add one"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the certificate is for another name"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "the certificate has expired, or is not valid yet"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the certificate is not valid"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "what came is not TLS"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return "the other side ended TLS with an alert: " + strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	if isEnd(err) {
		return "the connection was closed during the TLS handshake"
	}
	return systemInWords(err, "the TLS handshake failed")
}

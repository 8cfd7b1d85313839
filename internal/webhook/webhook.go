// Package webhook has the words that the rooms share: what is sent and to whom, what came
// of it, and the right to act. It has no SQL and does no I/O.
//
//	webhook   an endpoint as it is now; an attempt and what it came to
//	due       a delivery whose next attempt is due, and pages of them
//	record    a delivery's row to be written, and what its transaction writes besides
//	session   what the stream brings, and one acquisition of the slot
//	progress  how far something is that takes long
//	fence     the right to write that one acquisition gives; its messages in the WAL
package webhook

import (
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/outbox"
)

// An Endpoint is a URL of an organization, as in the database now, with everything that
// sending needs.
type Endpoint struct {
	ID             uuid.UUID
	OrganizationID string
	ForAll         bool // all_organizations: it gets walhook's own events of every organization
	URL            string
	Headers        map[string]string
	Enabled        bool
	DisabledReason string          // why it is not, if somebody said so
	Paused         bool            // nothing is sent to it, and what is owed waits
	MaxInFlight    int             // 0: the deployment's WALHOOK_ENDPOINT_IN_FLIGHT
	Timeout        time.Duration   // of one attempt; 0: the deployment's WALHOOK_TIMEOUT
	RetrySchedule  []time.Duration // nil: the deployment's WALHOOK_RETRY_SCHEDULE; empty: one attempt, and no other
	RatePerSecond  float64         // 0: no limit
	Secrets        []Secret        // live ones, oldest first
	BreakerOpen    bool            // as last recorded: it failed many times in a row
	RetriedAt      time.Time       // the last webhook_retry_now, while the breaker is open
	Problem        string          // why nothing can be sent to it; "": no problem
	Sealed         string          // why walhook cannot open its secrets; "": it can
}

// Gets reports whether an event of an organization that is owed to the endpoint may be sent to
// it. Its own organization's may: who is owed an event was decided when it was inserted.
func (e *Endpoint) Gets(organization, eventType string) bool {
	return organization == e.OrganizationID || e.ForAll && outbox.IsOwnType(eventType)
}

// A Secret is the text of a signing secret. It prints as a placeholder.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[secret]" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "[secret]" }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// Status is the state of a delivery's row.
type Status string

// The states of a delivery. Pending and Retrying wait for next_attempt_at; the
// others are final until an operator replays the row.
const (
	Pending   Status = "pending"   // no attempt has ended yet, or a replay waits
	Retrying  Status = "retrying"  // the last attempt failed and another will follow
	Success   Status = "success"   // an attempt was answered with 2xx
	Failed    Status = "failed"    // the last attempt of the schedule failed, or the endpoint is gone (410)
	Cancelled Status = "cancelled" // the endpoint was disabled or deleted meanwhile
)

// ErrorClass is the class of an attempt's failure; "" is success.
type ErrorClass string

// The classes of failure, as operators group by them.
const (
	ErrDNS        ErrorClass = "dns"             // the host name did not resolve
	ErrConnect    ErrorClass = "connect"         // no connection: refused, unreachable
	ErrTLS        ErrorClass = "tls"             // handshake or certificate
	ErrTimeout    ErrorClass = "timeout"         // the attempt exceeded its timeout, in any phase
	ErrReset      ErrorClass = "reset"           // the connection broke before the status line
	ErrProtocol   ErrorClass = "protocol"        // the response is not HTTP, or exceeds our bounds
	ErrRedirect   ErrorClass = "redirect"        // 3xx: redirects are not followed
	ErrHTTP4xx    ErrorClass = "http_4xx"        //
	ErrHTTP5xx    ErrorClass = "http_5xx"        // and every status above
	ErrBlocked    ErrorClass = "blocked_address" // the address guard refused
	ErrBadRequest ErrorClass = "bad_request"     // no request could be built from the endpoint's row
)

// An Attempt is the result of one HTTP request. A failed attempt is data, not a Go error.
// Every text in it is storable (valid UTF-8, no NUL, cut) and free of secrets and URL
// queries. Tenants read Error, so it has no addresses either.
type Attempt struct {
	EndedAt    time.Time     // with Go's monotonic clock; the database converts the age into its own time
	Duration   time.Duration // from dialling to the end of the response, or to the failure
	StatusCode int           // 0: no status line was received
	Class      ErrorClass
	Error      string        // at most 512 bytes
	Response   string        // at most 4 KiB of the body
	RetryAfter time.Duration // from the receiver's Retry-After header; 0: none
	OwnFault   OwnFault      // why it failed, if that says nothing about the endpoint; "": none
}

// An OwnFault keeps walhook from sending, and is not the endpoint's.
type OwnFault string

// The own faults.
const (
	FaultSecret      OwnFault = "secret"      // it cannot be opened
	FaultProxy       OwnFault = "proxy"       // away, no proxy at all, or it refuses
	FaultDescriptors OwnFault = "descriptors" // the process or the machine has none left
	FaultPorts       OwnFault = "ports"       // the machine has none left towards the address
	FaultResolver    OwnFault = "resolver"    // it is away or refuses, and not only for the endpoint's name
)

// OwnFaults lists them.
var OwnFaults = []OwnFault{FaultSecret, FaultProxy, FaultDescriptors, FaultPorts, FaultResolver}

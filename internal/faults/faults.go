// Package faults runs the built walhook against a real PostgreSQL and real
// receivers, breaks something under load, and lets an oracle judge what came of it.
//
//	file      responsibility
//	trial     one scenario's parts: database, receivers, driver, walhook processes
//	standby   a second PostgreSQL that follows the first, and copies of one
//	report    what a scenario measured, and the table of all
//	driver    the application: commits events and rolls others back, at a rate
//	receiver  the endpoints: answer, fail now and then, or hang
//	hostile   answers that no good receiver gives
//	tally     the endpoints of a million events: counts them
//	process   one walhook: start, kill, freeze, stop
//	usage     goroutines, memory and CPU time of one, before and after
//	monitor   every 200 ms: what is confirmed has its rows
//	journal   what the driver and the receivers saw
//	evidence  the journal and the tables, side by side
//	oracle    pure: evidence → verdict
//
// The scenarios are tests. A plain `go test` runs the short ones; all of them:
//
//	go test ./internal/faults -run TestFaults -faults -v -timeout 180m
//	go test ./internal/faults -run TestFaults -faults.quick -v -timeout 20m
//	go test ./internal/faults -run TestFaults/KillMinus9 -faults -faults.duration 5m -faults.rate 500 -v
package faults

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// An Endpoint is a row of webhook_endpoints, and a path of the receiver.
type Endpoint struct {
	ID     uuid.UUID
	Org    string
	Types  []string // as in the table
	Secret string
	URL    string // "": a path of the receiver
	Secure bool   // its URL says https, and the receiver does not
}

// owed says whether an event is owed to the endpoint. It is the oracle's own
// reading of the contract, beside the trigger's.
func (e *Endpoint) owed(org, eventType string) bool {
	category, _, _ := strings.Cut(eventType, ".")
	return e.Org == org && (slices.Contains(e.Types, eventType) || slices.Contains(e.Types, category+".*") ||
		slices.Contains(e.Types, "*") && category != "webhook")
}

// reached says whether each attempt ends with a request at the receiver.
func (e *Endpoint) reached() bool { return e.URL == "" && !e.Secure }

// The names of organizations whose deliveries the oracle leaves to their scenario
// begin with these: their endpoints come and go, or they have too many.
const (
	comingAndGoing = "churn_"
	tallied        = "tally_"
)

const (
	// timeout is WALHOOK_TIMEOUT: half of the default, so that leases end sooner.
	timeout = 5 * time.Second

	// maxInFlight is WALHOOK_MAX_IN_FLIGHT, its default. unrecorded is what walhook
	// may have answered and not yet recorded beside that. Together they are W: how
	// many duplicates one crash may cause.
	maxInFlight = 1024
	unrecorded  = 2048

	// retrySchedule heals the failures that receivers make within seconds, and is
	// long enough that 2 % of failures never use it up.
	retrySchedule = "1s,1s,2s,2s,5s,5s,5s,5s,5s,5s,5s,5s,5s,5s"
	lastAttempt   = 15

	// exitMargin is what a SIGTERM may take beyond the timeout.
	exitMargin = 5 * time.Second

	// maxMemory bounds the resident memory of a walhook at any time of any scenario.
	maxMemory = 256 << 20
)

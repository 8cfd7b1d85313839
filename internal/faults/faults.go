// Package faults runs the built walhook against a real PostgreSQL and real
// receivers, breaks something under load, and lets internal/oracle judge the result.
//
//	file      responsibility
//	trial     one scenario's parts: database, receivers, driver, walhook processes
//	standby   a second PostgreSQL that follows the first, and copies of one
//	report    what a scenario measured, and the table of all
//	figures   the table in docs/faults.md
//	driver    the application: commits events and rolls others back, at a rate
//	receiver  the endpoints: answer, fail now and then, or hang
//	hostile   answers that no good receiver gives
//	tally     the endpoints of a million events: counts them
//	process   one walhook: start, kill, freeze, stop
//	usage     goroutines, memory and CPU time of one, before and after
//	monitor   every 200 ms: what is confirmed has its rows
//
// The scenarios are tests. A plain `go test` runs the short ones; all of them:
//
//	go test ./internal/faults -run TestFaults -faults -v -timeout 180m
//	go test ./internal/faults -run TestFaults -faults.quick -v -timeout 20m
//	go test ./internal/faults -run TestFaults/KillMinus9 -faults -faults.duration 5m -faults.rate 500 -v
package faults

import "time"

// The names of organizations whose deliveries the oracle leaves to their scenario
// begin with these: their endpoints come and go, or they have too many.
const (
	comingAndGoing = "churn_"
	tallied        = "tally_"
)

var judgedApart = []string{comingAndGoing, tallied}

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

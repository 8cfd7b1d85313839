// Package faults runs the built walhook against a real PostgreSQL and real
// receivers, breaks something under load, and lets internal/oracle judge the result.
//
//	file      responsibility
//	trial     the parts of one scenario: database, receivers, driver, walhook processes
//	running   what its walhook processes are told, and their start and end
//	finish    how a scenario ends: drained, and judged
//	standby   a second PostgreSQL that follows the first; backups
//	report    the figures of a scenario, and the table of them all
//	figures   the table in docs/faults.md
//	driver    the application: commits events and rolls others back, at a rate
//	receiver  the endpoints: they answer, fail now and then, or hang
//	hostile   answers that no honest receiver gives
//	tally     the endpoints of a million events, which only count
//	process   a walhook process: start, kill, freeze, stop
//	usage     its goroutines, memory and CPU time before and after
//	monitor   checks every 200 ms that everything confirmed has its rows
//
// The scenarios are tests. A plain `go test` runs the short ones. To run the others:
//
//	go test ./internal/faults -run TestFaults -faults -v -timeout 180m
//	go test ./internal/faults -run TestFaults -faults.quick -v -timeout 40m
//	go test ./internal/faults -run TestFaults/KillMinus9 -faults -faults.duration 5m -faults.rate 500 -v
package faults

import "time"

// Prefixes of organizations whose deliveries the scenario judges, and not the oracle:
// their endpoints come and go, they have too many events, or they are erased.
const (
	comingAndGoing = "churn_"
	tallied        = "tally_"
	forgotten      = "gone_"
)

var judgedApart = []string{comingAndGoing, tallied, forgotten}

const (
	// timeout is WALHOOK_TIMEOUT: half of the default, so that leases end sooner.
	timeout = 5 * time.Second

	// maxInFlight is WALHOOK_MAX_IN_FLIGHT, its default. unrecorded bounds the answered
	// attempts whose outcomes are not recorded yet. Their sum W bounds the duplicates of
	// one crash.
	maxInFlight = 1024
	unrecorded  = 2048

	// retrySchedule retries the receivers' failures within seconds. With 2 % of failures
	// no delivery ever gets to its end.
	retrySchedule = "1s,1s,2s,2s,5s,5s,5s,5s,5s,5s,5s,5s,5s,5s"
	lastAttempt   = 15

	// exitMargin bounds how much longer than the timeout a graceful stop may take.
	exitMargin = 5 * time.Second

	// maxMemory bounds a walhook's resident memory at any time in any scenario.
	maxMemory = 256 << 20
)

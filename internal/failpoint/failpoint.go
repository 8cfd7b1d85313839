// Package failpoint has the failpoints of test builds: a fault suite that has never gone
// red proves nothing. Each switch breaks one rule of the design, each point is a moment at
// which a process dies, and each loop can be made to stand still.
//
// No product package imports it. Its program, overlay, writes the calls into copies
// of the product's files, and only builds with those copies compile it in.
//
// The environment chooses what breaks. It has no part in the configuration:
// internal/config passes over names that begin so.
package failpoint

const (
	// Variable lists, by comma, what is broken: a Switch, or what Kill or Wedge
	// makes of a point or a loop.
	Variable = "WALHOOK_FAULTS_FAILPOINTS"

	// Armed is a file without which no point and no loop does anything, so that a
	// test chooses the moment; none: from the start.
	Armed = "WALHOOK_FAULTS_FAILPOINTS_ARMED"
)

// A Switch breaks a rule.
type Switch string

// The switches.
const (
	ConfirmOnReceipt Switch = "confirm-on-receipt" // what has no row yet is confirmed
	ConfirmBegin     Switch = "confirm-begin"      // a transaction is confirmed with its first piece, by the position in its Begin and one
	SkipEcho         Switch = "skip-echo"          // what is recorded is confirmed at its commit
	SlotsPosition    Switch = "slots-position"     // a session begins at the slot's own position, whatever is known to be recorded
	SkipLookUp       Switch = "skip-look-up"       // what the stream repeats is taken for new
	NoFence          Switch = "no-fence"           // whoever writes is the holder
	NoWatchdog       Switch = "no-watchdog"        // the server is answered although a loop no longer turns
	NoRoom           Switch = "no-reserved-room"   // a request is sent whether or not there is room for its outcome
	NoLease          Switch = "no-lease"           // a row whose attempt is under way is due
	StayOn           Switch = "stay-at-shutdown"   // a server that shuts down is answered like any other
	NoReconciler     Switch = "no-reconciler"      // what was committed before the slot was made is not looked for
	KeepText         Switch = "keep-text"          // response text goes to the database as it came
	IgnoreCheck      Switch = "ignore-publication" // what the check says does not stop confirming
	CancelUnseen     Switch = "cancel-unseen"      // a delivery whose event cannot be seen yet is taken for one whose event is gone
	TrustSlot        Switch = "trust-slot"         // wherever the slot is found, everything before has its rows
	NoLiveness       Switch = "no-liveness"        // who once had the slot acts as if it were still so
	EarlierWord      Switch = "earlier-word"       // an outcome overwrites what an operator has said meanwhile
	ChargeOwnFaults  Switch = "charge-own-faults"  // our own faults are the endpoint's failures
)

// Switches are all of them.
var Switches = []Switch{
	ConfirmOnReceipt, ConfirmBegin, SkipEcho, SlotsPosition, SkipLookUp, NoFence, NoWatchdog, NoRoom, NoLease, StayOn,
	NoReconciler, KeepText, IgnoreCheck, CancelUnseen, TrustSlot, NoLiveness, EarlierWord, ChargeOwnFaults,
}

// A Point is a moment at which a process can be made to die, as by kill -9.
type Point string

// The points.
const (
	Answered Point = "answered" // a response is there, and not handed to the recorder
	Recorded Point = "recorded" // a batch of new rows is committed, and its echo not awaited
	Updated  Point = "updated"  // a batch of outcomes of rows that were there is committed
	Echoed   Point = "echoed"   // its echo has come, and nothing is confirmed by it
	Parking  Point = "parking"  // a delivery has left the queue, and its row is not written
	TakeOver Point = "takeover" // the slot is claimed, and nothing done with it
)

// Points are all of them.
var Points = []Point{Answered, Recorded, Updated, Echoed, Parking, TakeOver}

// Kill is the value of Variable that kills at a point.
func Kill(p Point) string { return "kill:" + string(p) }

// Wedge is the value of Variable that has a loop stand still at its next turn.
func Wedge(loop string) string { return "wedge:" + loop }

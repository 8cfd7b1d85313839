package webhook

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// MessagePrefix marks walhook's own logical messages in the WAL.
const MessagePrefix = "walhook"

// ChangeHint is the text of the message that triggers emit when somebody else has updated
// deliveries, or disabled or deleted an endpoint. Any role can emit it, so it is only a
// hint.
const ChangeHint = "look"

// A Fence is the right to write that one acquisition of the slot gives. Every statement
// that writes deliveries carries it.
type Fence struct {
	Holder uuid.UUID // this process
	Epoch  int64

	// LastWrite is when the last holder last wrote, by PostgreSQL's clock, and no earlier than
	// what it wrote of was committed: what was committed later can have no rows. Zero: never.
	LastWrite time.Time

	// Server is when the server was started. What this process knows to be recorded is
	// valid for that start only: afterwards the database may have been set back.
	Server time.Time

	// Moved says that somebody else may have moved the slot: see Session.Moved.
	Moved bool

	// Reconcile says that events inserted since ReconcileFrom may be owed without a row,
	// and that the stream will not bring them.
	Reconcile     bool
	ReconcileFrom time.Time

	// ClaimXID is the id of the transaction that claimed the slot; "": this session has
	// just created the slot, and creation waits for older transactions. If somebody else
	// has moved or created the slot, a commit before its position may not be visible yet.
	// So a comparison counts only if it began when every transaction up to this id was
	// visible.
	ClaimXID string

	Session *Session // the acquired one: durable positions are positions of it
	Nonce   string   // of this process, in no table
}

// Echo returns the text of the logical message that ends batch number seq. Every role may
// emit messages, and a role may read webhook_state if that is granted. Only the nonce,
// which is in no table, keeps it from confirming what is not durable.
func (f Fence) Echo(seq uint64) string {
	return fmt.Sprintf("%s/%d/%s/%d", f.Holder, f.Epoch, f.Nonce, seq)
}

// ParseEcho returns the number of the batch that an echo proves durable, and whether the
// echo is this fence's own.
func (f Fence) ParseEcho(message string) (uint64, bool) {
	number := message[strings.LastIndexByte(message, '/')+1:]
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || f.Echo(seq) != message {
		return 0, false
	}
	return seq, true
}

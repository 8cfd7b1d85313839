package webhook

import (
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"
)

// A Record is one delivery's row to be written: an outcome (Attempt is set), or a parked or
// leased delivery (Pending).
type Record struct {
	ID, EventID, EndpointID uuid.UUID
	OrganizationID          string
	EventType               string
	Status                  Status
	Attempts                int           // how many have ended, this one included
	SeriesStart             int           // how many had ended when the present series began
	Wait                    time.Duration // Pending, Retrying: from the end of the attempt (or from now) until the next
	Attempt                 *Attempt      // nil: no attempt
	Exhausted               bool          // the schedule is used up: tell the organization
	Gone                    bool          // answered 410: disable the endpoint
	Seen                    Seen          // Update: tells whether somebody else has changed the row since
}

// Seen is what walhook expects a delivery's row to say when an outcome is recorded. If the
// row says something else, an operator has replayed or cancelled the delivery during the
// attempt. The zero Seen is not compared.
type Seen struct {
	Status Status        // of the row when it was fetched; not compared unless DueAt is valid
	DueAt  DueTime       // likewise
	Lease  time.Duration // if the row was not fetched: walhook wrote it as parked, or with this lease
}

// A Mark is what a recording transaction writes besides its rows.
type Mark struct {
	Seq      uint64           // the batch's number, which its echo proves durable; 0: no echo
	Durable  pglogrepl.LSN    // with this batch, every transaction up to here is recorded; 0: unknown
	CommitAt time.Time        // when the last of them was committed; zero: unknown
	Health   []EndpointHealth // of the endpoints whose health has changed
	Alone    bool             // write the rows alone: WriteConsequence writes their consequences and Health
}

// EndpointHealth is the health of an endpoint after all attempts that have ended, whichever
// batch their outcomes are in. It is written when it changes, not per attempt.
type EndpointHealth struct {
	EndpointID   uuid.UUID
	Recovered    bool       // it has succeeded since its health was last written
	Failing      bool       // its last attempt failed
	Open         bool       // and its breaker is open
	CheckDisable bool       // it was failing before: disable it if it has been for WALHOOK_DISABLE_AFTER
	At           time.Time  // end of the last attempt
	Own          bool       // that attempt was for one of walhook's own events
	Tell         bool       // a delivery of another event has failed since the last success: an open breaker is told
	Class        ErrorClass // of the last attempt that failed
}

// ParkedDue is how far in the past a parked delivery's next_attempt_at is set. So first
// attempts come before retries, unless those have waited as long themselves; and NewlyDue
// is not crowded with rows that their lane knows already.
const ParkedDue = 10 * time.Minute

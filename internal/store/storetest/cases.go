package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// A World is a store, with what others do to its database.
type World interface {
	Statements

	// Endpoint makes an endpoint; it is enabled, disabled, deleted, erased with its
	// organization, and its id given to another organization's.
	NewEndpoint(organization string) uuid.UUID
	Enable(endpoint uuid.UUID, enabled bool)
	Delete(endpoint uuid.UUID)
	Erase(organization string)
	GiveAgain(endpoint uuid.UUID, organization string)
	// ForAll makes it an endpoint of operators, or no longer.
	ForAll(endpoint uuid.UUID, forAll bool)

	// Begin inserts an event that other sessions see only once it is committed.
	// Forget deletes one.
	Begin(outbox.Event) (commit func())
	Forget(event uuid.UUID)

	// Say is an operator's UPDATE of a delivery. The zero time is no next attempt.
	Say(delivery uuid.UUID, status webhook.Status, due time.Time)
	// Lock holds a delivery's row.
	Lock(delivery uuid.UUID) (release func())

	// Row is what a delivery's row says, if there is one.
	Row(delivery uuid.UUID) (row Line, found bool)
	// Position is the one that is noted as durable, and when it was committed.
	Position() (pglogrepl.LSN, time.Time)
	// Listen returns what returns the echoes since.
	Listen() func() []string
	// OwnEvents is how many of walhook's own events there are of a type.
	OwnEvents(eventType string) int
}

// Statements are the store's that the simulation relies on.
type Statements interface {
	Acquire(context.Context, uuid.UUID, *webhook.Session, uint64) (webhook.Fence, error)
	AwaitSlot(context.Context) error
	Existing(context.Context, []uuid.UUID, map[uuid.UUID]bool) error
	Insert(context.Context, webhook.Fence, webhook.Mark, []webhook.Record) (bool, error)
	Update(context.Context, webhook.Fence, webhook.Mark, []webhook.Record) (locked, replayed []uuid.UUID, err error)
	WriteConsequence(context.Context, webhook.Fence, store.Consequence) ([]store.Consequence, error)
	NoteMissing(context.Context, webhook.Fence, time.Time) (time.Time, error)
	NewlyDue(context.Context, time.Time) ([]uuid.UUID, time.Time, bool, error)
	Waiting(context.Context, uuid.UUID, int) ([]webhook.Waiting, error)
	Due(context.Context, []webhook.Page, func(*webhook.Due)) error
	CancelRows(context.Context, webhook.Fence, uuid.UUID, string) (int, bool, error)
	CancelReassigned(context.Context, webhook.Fence, []uuid.UUID) error
	CancelOrphans(context.Context, webhook.Fence, []uuid.UUID) error
	Endpoints(context.Context, []uuid.UUID) ([]webhook.Endpoint, error)
	Missing(context.Context, store.Position, uuid.UUID, int) (store.Compared, error)
	InsertMissing(context.Context, webhook.Fence, []webhook.Record) (int, error)
	Mark(context.Context, webhook.Fence, webhook.Mark) error
	ClaimVisible(context.Context, webhook.Fence) (bool, error)
	Reconciled(context.Context, webhook.Fence) (time.Time, error)
}

// A Line is a delivery's row.
type Line struct {
	Status                webhook.Status
	Attempts, SeriesStart int
	DueAt                 time.Time // of one that waits
}

// Run holds what open opens to every promise, each in a world of its own.
func Run(t *testing.T, open func(*testing.T) World) {
	for _, c := range []struct {
		promise string
		holds   func(*bench)
	}{
		{"Insert writes what has no row, and leaves what has one", insertsOnce},
		{"Update applies what is later than the row", updatesLater},
		{"Update counts the attempt, and leaves an operator's word", laterWordCounts},
		{"Update returns rows that somebody holds", returnsLocked},
		{"Update gives a lease back, and leaves an operator's word", givesBack},
		{"Insert and InsertMissing write no row of an endpoint that is erased", writesNoErased},
		{"Due hands out what is due, those that have waited longest first", handsOutDue},
		{"Due tells events that were deleted from those that are not visible yet", tellsOrphans},
		{"Due and CancelReassigned know endpoints whose id was given again", knowsReassigned},
		{"operators are owed what walhook itself tells of any organization, and get it while they are operators", operatorsHear},
		{"NewlyDue and Waiting find who has rows", findsWaiting},
		{"CancelRows cancels what is owed to an endpoint that is disabled or deleted", cancelsRows},
		{"CancelRows waits for what is not visible yet", cancelsWhatIsSettled},
		{"Missing finds what is owed without a row, in pages", findsMissing},
		{"Missing does not see what is not visible yet", missesInvisible},
		{"InsertMissing inserts what still has no row", insertsMissing},
		{"whoever has lost the slot writes nothing", fences},
		{"Mark moves the position forwards, and ends with an echo", marks},
		{"Acquire says what is to be reconciled", saysWhatToReconcile},
		{"Reconciled ends one cause and no later one", endsOneCause},
		{"Reconciled ends nothing on a server that was started since", endsNothingElsewhere},
		{"ClaimVisible waits for the transactions that were open at the claim", settles},
		{"outcomes disable endpoints and tell organizations", hasConsequences},
		{"an endpoint stands as it was told of last", stands},
	} {
		t.Run(c.promise, func(t *testing.T) {
			t.Parallel()
			b := &bench{T: t, World: open(t)}
			b.fence = b.claim(&webhook.Session{})
			c.holds(b)
		})
	}
}

// A bench is where one case works.
type bench struct {
	*testing.T
	World
	fence webhook.Fence
}

const organization = "org_1"

// settledWithin bounds how long other tests' transactions are waited for, which
// are open on the same server: none lasts for longer than a minute.
const settledWithin = time.Minute

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) claim(s *webhook.Session) webhook.Fence {
	b.Helper()
	s.SystemID, s.Timeline = "system 1", 1
	fence, err := b.Acquire(b.Context(), uuid.New(), s, 1)
	b.ok(err)
	return fence
}

// event is one that is owed to endpoints, of now.
func event(endpoints ...uuid.UUID) outbox.Event {
	return outbox.Event{ID: uuid.Must(uuid.NewV7()), OrganizationID: organization, Type: "payment.failed", Payload: []byte(`{"a": 1}`), EndpointIDs: endpoints}
}

func record(e outbox.Event, endpoint uuid.UUID) webhook.Record {
	return webhook.Record{ID: outbox.DeliveryID(e.ID, endpoint), EventID: e.ID, EndpointID: endpoint, OrganizationID: e.OrganizationID, EventType: e.Type,
		Status: webhook.Pending, Wait: -time.Minute}
}

// owed commits an event, and returns its delivery as a row that is due.
func (b *bench) owed(endpoint uuid.UUID) webhook.Record {
	e := event(endpoint)
	b.Begin(e)()
	return record(e, endpoint)
}

func (b *bench) insert(records ...webhook.Record) {
	b.Helper()
	_, err := b.Insert(b.Context(), b.fence, webhook.Mark{}, records)
	b.ok(err)
}

// has compares rows with what they are to be: status and attempts.
func (b *bench) has(id uuid.UUID, want string) {
	b.Helper()
	if got := b.text(id); got != want {
		b.Errorf("the row is %q, want %q", got, want)
	}
}

func (b *bench) text(id uuid.UUID) string {
	row, found := b.Row(id)
	if !found {
		return "none"
	}
	return fmt.Sprint(row.Status, " ", row.Attempts)
}

func (b *bench) page(p webhook.Page) (due []webhook.Due) {
	b.Helper()
	b.ok(b.Due(b.Context(), []webhook.Page{p}, func(d *webhook.Due) { due = append(due, *d) }))
	return due
}

// one is the only delivery that is due to an endpoint.
func (b *bench) one(endpoint uuid.UUID) webhook.Due {
	b.Helper()
	due := b.page(webhook.Page{EndpointID: endpoint, Limit: 2})
	if len(due) != 1 {
		b.Fatalf("%d deliveries are due, want 1", len(due))
	}
	return due[0]
}

func (b *bench) eventually(what string, is func() bool) {
	b.Helper()
	for end := time.Now().Add(settledWithin); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("not within %s: %s", settledWithin, what)
		}
	}
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < 10*time.Second } // a busy machine

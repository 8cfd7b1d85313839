package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func TestMissing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	begun := time.Now()
	from, until := outbox.TimeID(begun.Add(-40*24*time.Hour)), outbox.TimeID(begun.Add(time.Hour))
	all := func(limit int) (found []store.Candidate, pages, events int) {
		t.Helper()
		at := store.Position{Event: from}
		for end := false; !end; pages++ {
			page, err := st.Missing(t.Context(), at, until, limit)
			if err != nil {
				t.Fatal(err)
			}
			if c := strings.Compare(page.Upto.Event.String(), at.Event.String()); !page.End && (c < 0 || c == 0 && page.Upto.Owed <= at.Owed) {
				t.Fatalf("a page from %v ends at %v", at, page.Upto)
			}
			if len(page.Missing) > limit {
				t.Fatalf("a page of %d has %d", limit, len(page.Missing))
			}
			found, at, end, events = append(found, page.Missing...), page.Upto, page.End, events+page.Events
		}
		return found, pages, events
	}
	if got, _, _ := all(10); len(got) != 0 {
		t.Errorf("an empty outbox: %v", got)
	}

	// Events of several days, the DEFAULT partition included, owed to none, one or three.
	var endpoints []string
	for range 3 {
		endpoints = append(endpoints, newEndpoint(t, db.Pool, "org_1", "payment.*"))
	}
	one := newEndpoint(t, db.Pool, "org_2")
	var want []store.Candidate
	owedBy := func(organization, eventType string, age time.Duration, to ...string) {
		t.Helper()
		id := outbox.DeliveryID(outbox.TimeID(begun.Add(-age)), uuid.New())
		exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, $2, $3, '{}')`, id, organization, eventType)
		for _, e := range to {
			want = append(want, store.Candidate{ID: outbox.DeliveryID(id, uuid.MustParse(e)), EventID: id, EndpointID: uuid.MustParse(e), OrganizationID: organization, EventType: eventType})
		}
	}
	for _, age := range []time.Duration{0, time.Hour, 26 * time.Hour, 30 * 24 * time.Hour} {
		owedBy("org_1", "payment.failed", age, endpoints...)
		owedBy("org_1", "org.created", age+time.Minute)
		owedBy("org_2", "org.created", age+2*time.Minute, one)
		owedBy("org_3", "org.created", age+3*time.Minute)
	}
	owedBy("org_1", "payment.failed", 41*24*time.Hour)               // before the range
	owedBy("org_1", "payment.failed", -59*time.Minute, endpoints...) // an id that is ahead
	byID := func(a, b store.Candidate) int { return strings.Compare(a.ID.String(), b.ID.String()) }
	slices.SortFunc(want, byID)

	for _, limit := range []int{1, 2, 3, 17, 1000} {
		got, pages, events := all(limit)
		slices.SortFunc(got, byID)
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %d candidates, want %d", limit, len(got), len(want))
		}
		if events != 17 {
			t.Errorf("in pages of %d: %d events, want 17", limit, events)
		}
		if most := (len(want)+9)/limit + 2; pages > most { // and nine are owed to nobody
			t.Errorf("in pages of %d: %d pages, want at most %d", limit, pages, most)
		}
	}

	t.Run("leaves out what has a row", func(t *testing.T) {
		for i, c := range want {
			if i%2 == 0 {
				insert(t, st, fence, webhook.Record{ID: c.ID, EventID: c.EventID, EndpointID: c.EndpointID, OrganizationID: c.OrganizationID, EventType: c.EventType, Status: webhook.Pending})
			}
		}
		var rest []store.Candidate
		for i, c := range want {
			if i%2 == 1 {
				rest = append(rest, c)
			}
		}
		got, _, _ := all(3)
		slices.SortFunc(got, byID)
		if !slices.Equal(got, rest) {
			t.Errorf("%d candidates, want %d", len(got), len(rest))
		}
	})
}

func TestAnyMissing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := uuid.MustParse(newEndpoint(t, db.Pool, "org_1", "payment.*"))
	at := time.Now().Add(-10 * 24 * time.Hour).Truncate(time.Millisecond)
	event := func(at time.Time, eventType string) uuid.UUID {
		t.Helper()
		id := outbox.DeliveryID(outbox.TimeID(at), uuid.New())
		exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', $2, '{}')`, id, eventType)
		return id
	}
	is := func(what string, after, until time.Time, want bool) {
		t.Helper()
		if got, err := st.AnyMissing(t.Context(), after, until); err != nil || got != want {
			t.Errorf("%s, from %s until %s: %t, %v, want %t", what, after, until, got, err, want)
		}
	}
	event(at.Add(-time.Hour), "org.created")
	owed := event(at, "payment.failed")
	is("owed", at, at.Add(time.Millisecond), true)
	is("before", at.Add(-2*time.Hour), at, false)
	is("after", at.Add(time.Millisecond), time.Now(), false)
	is("before the first id", time.Unix(-3600, 0), time.Now(), true)
	insert(t, st, fence, webhook.Record{ID: outbox.DeliveryID(owed, endpoint), EventID: owed, EndpointID: endpoint,
		OrganizationID: "org_1", EventType: "payment.failed", Status: webhook.Pending})
	is("with a row", time.Unix(0, 0), time.Now(), false)
}

func TestTimeID(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{time.UnixMilli(0), time.UnixMilli(1), time.Now(), time.UnixMilli(1<<48 - 1)} {
		at = at.Truncate(time.Millisecond)
		got := outbox.TimeID(at)
		if want := query[string](t, db.Pool, `SELECT webhook_uuid_at(to_timestamp($1::bigint / 1000.0))::text`, at.UnixMilli()); got.String() != want {
			t.Errorf("%s: %s, want %s", at, got, want)
		}
		if !outbox.IDTime(got).Equal(at) {
			t.Errorf("%s: back again %s", at, outbox.IDTime(got))
		}
	}
}

func TestNow(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	before := query[time.Time](t, db.Pool, `SELECT now()`)
	now, err := st.Now(t.Context())
	if after := query[time.Time](t, db.Pool, `SELECT now()`); err != nil || now.Before(before) || now.After(after) {
		t.Errorf("now %s, %v; want from %s to %s", now, err, before, after)
	}
}

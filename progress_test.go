package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// The log gets a line at most each ten seconds, and fewer the longer a task takes.
func TestTasksAreToldLessOftenTheLongerTheyTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var noted []webhook.Progress
		teller := teller{said: map[string]time.Time{}, log: slog.New(slog.NewTextHandler(&log, nil)),
			note: func(_ context.Context, p webhook.Progress) error { noted = append(noted, p); return nil }}
		teller.tell(t.Context(), webhook.Progress{Task: webhook.Reconciling, Ended: true})
		if len(noted) != 0 {
			t.Error("the end of a task that nobody heard of is noted")
		}
		var meter webhook.Meter
		meter.Due(time.Now())
		for range 3600 {
			time.Sleep(time.Second)
			if now := time.Now(); meter.Due(now) {
				teller.tell(t.Context(), meter.Progress(webhook.Reconciling, now, float64(now.Sub(meter.Began))/float64(time.Hour)))
			}
		}
		teller.tell(t.Context(), webhook.Progress{Task: webhook.Reconciling, Ended: true})
		if lines := strings.Count(log.String(), "reconciling goes on"); lines < 20 || lines > 60 {
			t.Errorf("%d lines in an hour", lines)
		}
		if len(noted) != 361 || !noted[360].Ended || noted[179].Percent != 50 || noted[179].Left != 1800 {
			t.Errorf("noted %d times; half way %+v, at last %+v", len(noted), noted[179], noted[len(noted)-1])
		}
		if !strings.Contains(log.String(), " percent=") || strings.Contains(log.String(), "inserted=") || strings.Contains(log.String(), "position=") {
			t.Errorf("figures that are unknown are told:\n%.300s", log.String())
		}
	})
}

func TestATaskDoesNotWaitForItsNoteForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		teller := teller{said: map[string]time.Time{}, log: slog.New(slog.DiscardHandler),
			note: func(ctx context.Context, _ webhook.Progress) error { <-ctx.Done(); return ctx.Err() }}
		if teller.tell(ctx, webhook.Progress{Task: webhook.Reconciling}); ctx.Err() != nil {
			t.Error("it waited for as long as it could")
		}
	})
}

// A backlog is told while it drains: how much waits, how fast it goes, how long still.
func TestABacklogIsToldWhileItDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var told []webhook.Progress
		due, fetched, counted := int64(0), uint64(0), 0
		b := backlog{tell: func(_ context.Context, p webhook.Progress) { told = append(told, p) },
			fetched: func() uint64 { return fetched }, due: func(context.Context) (int64, error) { counted++; return due, nil }}
		look := func() {
			t.Helper()
			time.Sleep(webhook.TellEvery)
			if err := b.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		due = 50_000 // of a dead endpoint
		look()
		look()
		if counted != 0 {
			t.Error("it counts although nothing comes out of the table")
		}
		due, fetched = 95_000, fetched+5000
		look()
		due, fetched = 90_000, fetched+5000
		look()
		if want := (webhook.Progress{Task: webhook.Replaying, Began: told[0].Began, Waiting: 90_000, PerSecond: 500, Left: 180}); len(told) != 2 || told[1] != want {
			t.Errorf("told %+v, want %+v at last", told, want)
		}
		fetched++ // a probe: the rest is of a dead endpoint, and would take weeks
		look()
		if n := len(told); n != 3 || !told[2].Ended {
			t.Errorf("told %+v, want the end at last", told)
		}
		due, fetched = 500, fetched+1000
		look()
		if len(told) != 3 {
			t.Errorf("a few are told: %+v", told[3:])
		}
		b.due = func(context.Context) (int64, error) { return 0, errors.New("refused") }
		fetched += 1000
		time.Sleep(webhook.TellEvery)
		if err := b.look(t.Context()); err == nil {
			t.Error("a count that fails is no error")
		}
	})
}

// What takes long is in webhook_status while it goes on, and no longer.
func TestProgressInWebhookStatus(t *testing.T) {
	w := newWorld(t)
	st := store.New(w.db.Pool, w.db.Slot, 0)
	w.exec(`INSERT INTO webhook_state (slot) VALUES ($1)`, w.db.Slot)
	note := func(p webhook.Progress) {
		t.Helper()
		if err := st.NoteProgress(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	shown := func() []string {
		t.Helper()
		return query[[]string](w, `SELECT coalesce(array(SELECT jsonb_object_keys(progress) FROM webhook_status ORDER BY 1), '{}')`)
	}
	if got := shown(); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	began := time.Now().Add(-time.Minute)
	note(webhook.Progress{Task: webhook.Reconciling, Began: began, Percent: 40, Left: 90, Position: time.Now(), Inserted: 7})
	note(webhook.Progress{Task: webhook.Replaying, Began: began, Waiting: 1 << 40, PerSecond: 12, Left: 9})
	note(webhook.Progress{Task: webhook.Reconciling, Began: began, Percent: 41, Left: 80, Position: time.Now(), Inserted: 7})
	if got := shown(); !slices.Equal(got, []string{"reconciling", "replaying"}) {
		t.Errorf("two tasks: %v", got)
	}
	if got := query[string](w, `SELECT concat_ws(' ', progress #>> '{reconciling,percent}', progress #>> '{reconciling,seconds_left}', progress #>> '{reconciling,inserted}',
		(progress #>> '{reconciling,position}')::timestamptz > now() - interval '1 minute', progress #>> '{replaying,waiting}', progress #>> '{replaying,per_second}') FROM webhook_status`); got != "41 80 7 t 1099511627776 12" {
		t.Errorf("figures: %s", got)
	}
	note(webhook.Progress{Task: webhook.Reconciling, Ended: true})
	if got := shown(); !slices.Equal(got, []string{"replaying"}) {
		t.Errorf("after one has ended: %v", got)
	}
	w.exec(`UPDATE webhook_state SET progress = jsonb_set(progress, '{replaying,at}', to_jsonb(now() - interval '6 minutes'))`)
	if got := shown(); len(got) != 0 {
		t.Errorf("of a process that has died: %v", got)
	}
	note(webhook.Progress{Task: webhook.Replaying, Ended: true})
	if !query[bool](w, `SELECT progress IS NULL FROM webhook_state`) {
		t.Error("nothing is left")
	}
	if n, err := st.DueNow(t.Context()); n != 0 || err != nil {
		t.Errorf("%d are due, %v", n, err)
	}
	id, _ := w.endpoint("http://127.0.0.1:9/")
	w.exec(`INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		SELECT webhook_delivery_id(e, $1), e, $1, 'org_1', 'payment.failed', CASE WHEN n % 2 = 0 THEN 'pending' ELSE 'retrying' END, now() + CASE WHEN n > 3 THEN interval '1 hour' ELSE '0' END
		FROM generate_series(1, 5) AS n, LATERAL (SELECT webhook_uuidv7() AS e WHERE n > 0) AS e`, id)
	if n, err := st.DueNow(t.Context()); n != 3 || err != nil {
		t.Errorf("%d are due, %v; want 3", n, err)
	}
}

// A pass over the secrets knows how many there are.
func TestResealingKnowsItsLength(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.endpoint("http://127.0.0.1:9/")
	}
	w.exec(`UPDATE webhook_endpoints SET headers = '{"X-A": "1", "X-B": "2"}' WHERE id = (SELECT min(id::text)::uuid FROM webhook_endpoints)`)
	cfg := load(t, append([]string{"WALHOOK_SECRET_KEY=" + base64.StdEncoding.EncodeToString(make([]byte, 32))}, w.env...)...)
	st, err := newStore(cfg, w.db.Pool)
	if err != nil {
		t.Fatal(err)
	}
	total, err := st.Sealable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var walk store.Resealing
	var told []webhook.Progress
	err = resealAll(t.Context(), st, &walk, func(_ context.Context, p webhook.Progress) { told = append(told, p) }, slog.New(slog.DiscardHandler))
	if err != nil || total != 4 || walk.Rows != total || walk.Seen != 5 || !walk.Done {
		t.Errorf("%d rows of %d, %d texts, %v", walk.Rows, total, walk.Seen, err)
	}
	if len(told) != 1 || !told[0].Ended {
		t.Errorf("told %+v", told)
	}
}

package store_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// drops runs rounds of upkeep, and walhook's progress between them, until one drops days. It can take a while: tests in
// other databases of the same server have transactions open too.
func drops(t testing.TB, p *store.Partitions, progress func()) []string {
	t.Helper()
	var dropped []string
	pgtest.Eventually(t, 30*time.Second, "a day is dropped", func() bool {
		progress()
		dropped = upkeep(t, p).Dropped
		return len(dropped) > 0
	})
	return dropped
}

func TestUpkeepDropsOldDays(t *testing.T) {
	t.Parallel()

	t.Run("as pairs, when confirmed", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		oldest, edge := addDay(t, db.Pool, 9*day), addDay(t, db.Pool, 7*day)
		event, delivery := eventAt(t, db.Pool, 9*day, "success")
		kept, _ := eventAt(t, db.Pool, 7*day, "success")
		p := newPartitions(t, db, 7*day)
		for range 3 {
			if u := upkeep(t, p); len(u.Dropped) != 0 {
				t.Fatalf("dropped %q before the confirmed position passed", u.Dropped)
			}
		}
		if got := drops(t, p, func() { catchUp(t, db) }); !slices.Equal(got, []string{oldest}) {
			t.Errorf("dropped %q, want %s and not %s", got, oldest, edge)
		}
		if got := where(t, db.Pool, "webhook_outbox", event) + where(t, db.Pool, "webhook_deliveries", delivery); got != "" {
			t.Errorf("still in %s", got)
		}
		if where(t, db.Pool, "webhook_outbox", kept) == "" {
			t.Error("a day that is not over for as long as the retention was dropped")
		}
	})

	t.Run("also where only the slot moves", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
		addDay(t, db.Pool, 9*day)
		p := newPartitions(t, db, 7*day)
		drops(t, p, func() { exec(t, db.Pool, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, db.Slot) })
	})

	for _, status := range []string{"pending", "retrying"} {
		t.Run("never with work left: "+status, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			addDay(t, db.Pool, 9*day)
			event, delivery := eventAt(t, db.Pool, 9*day, status)
			p := newPartitions(t, db, 7*day)
			addDay(t, db.Pool, 10*day)
			drops(t, p, func() { catchUp(t, db) }) // the day before, which has nothing in it
			if where(t, db.Pool, "webhook_outbox", event) == "" || where(t, db.Pool, "webhook_deliveries", delivery) == "" {
				t.Fatal("unfinished work was dropped")
			}
			exec(t, db.Pool, `UPDATE webhook_deliveries SET status = 'success'`)
			drops(t, p, func() { catchUp(t, db) })
		})
	}

	t.Run("never while a transaction from before is open", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		tx := begin(t, db.Pool)
		exec(t, tx, `SELECT pg_current_xact_id()`) // and no lock that the drop would wait for
		p := newPartitions(t, db, 7*day)
		for range 5 {
			catchUp(t, db)
			if u := upkeep(t, p); len(u.Dropped) != 0 {
				t.Fatalf("dropped %q", u.Dropped)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		drops(t, p, func() { catchUp(t, db) })
	})

	for name, restored := range map[string]struct {
		ids uint64
		wal pglogrepl.LSN
	}{
		"with smaller ids":     {ids: 1 << 40},
		"with less of the WAL": {wal: 1 << 40},
	} {
		t.Run("also after the database was restored to a time "+name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			addDay(t, db.Pool, 9*day)
			p := newPartitions(t, db, 7*day)
			pgtest.Eventually(t, 30*time.Second, "the looks that are noted", func() bool {
				upkeep(t, p)
				return p.Restored(restored.ids, restored.wal)
			})
			drops(t, p, func() { catchUp(t, db) })
		})
	}

	t.Run("never before a lost slot's events are compared", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		p := newPartitions(t, db, 7*day)
		if err := store.New(db.Pool, db.Slot, 0).AwaitSlot(t.Context()); err != nil {
			t.Fatal(err)
		}
		exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
		advance := func() { exec(t, db.Pool, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, db.Slot) }
		for range 20 {
			advance()
			if u := upkeep(t, p); len(u.Dropped) != 0 {
				t.Fatalf("dropped %q", u.Dropped)
			}
		}
		exec(t, db.Pool, `UPDATE webhook_state SET reconcile_from = NULL`)
		drops(t, p, advance)
	})

	t.Run("never with an event that has no row yet, whose id was late", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		older := addDay(t, db.Pool, 10*day)
		younger := addDay(t, db.Pool, 8*day)
		endpoint := uuid.MustParse(newEndpoint(t, db.Pool, "org_1", "payment.*"))
		p := newPartitions(t, db, 7*day)
		event := uuid.MustParse(query[string](t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}') RETURNING id::text`,
			outbox.DeliveryID(outbox.TimeID(time.Now().Add(-9*day)), uuid.New())))
		var kept []store.KeptDay
		var dropped []string
		pgtest.Eventually(t, 30*time.Second, "the other days are dropped", func() bool {
			catchUp(t, db)
			u := upkeep(t, p)
			kept, dropped = append(kept, u.Kept...), append(dropped, u.Dropped...)
			return slices.Contains(dropped, older) && slices.Contains(dropped, younger)
		})
		if where(t, db.Pool, "webhook_outbox", event.String()) == "" {
			t.Fatal("an event went that was never recorded")
		}
		if len(kept) == 0 || !strings.Contains(kept[0].Why, event.String()) {
			t.Errorf("kept %v, want the day of event %s", kept, event)
		}
		if query[bool](t, db.Pool, `SELECT webhook_drop_day($1)`, outbox.IDTime(event).UTC()) {
			t.Error("by hand it is dropped")
		}
		newDelivery(t, db.Pool, event.String(), endpoint.String(), "success")
		drops(t, p, func() { catchUp(t, db) })
	})

	t.Run("never with an event that came after the others were compared", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		at := time.Now().Add(-9 * day)
		tx := begin(t, db.Pool)
		exec(t, tx, `SELECT set_config('walhook.compared', '0', true)`) // as walhook says that has compared an empty day
		exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`,
			outbox.DeliveryID(outbox.TimeID(at), uuid.New()))
		if query[bool](t, tx, `SELECT webhook_drop_day($1)`, at.UTC()) {
			t.Error("it was dropped")
		}
	})

	t.Run("the others too where something depends on one, and says what", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		oldest, next := addDay(t, db.Pool, 10*day), addDay(t, db.Pool, 9*day)
		exec(t, db.Pool, `CREATE VIEW report AS SELECT id FROM webhook_outbox_p`+strings.ReplaceAll(oldest, "-", ""))
		p := newPartitions(t, db, 7*day)
		var kept []store.KeptDay
		var dropped []string
		pgtest.Eventually(t, 30*time.Second, "the next day is dropped", func() bool {
			catchUp(t, db)
			u := upkeep(t, p)
			kept, dropped = append(kept, u.Kept...), append(dropped, u.Dropped...)
			return slices.Contains(dropped, next)
		})
		if len(kept) == 0 || kept[0].Day != oldest || !strings.Contains(kept[0].Why, "view report") || !strings.Contains(kept[0].Why, "DETACH PARTITION") {
			t.Fatalf("kept %+v, want %s, with the view's name and what to do", kept, oldest)
		}
		_, statements, _ := strings.Cut(kept[0].Why, "of your own: ")
		exec(t, db.Pool, statements)
		if slices.Contains(column[string](t, db.Pool, `SELECT inhrelid::regclass::text FROM pg_inherits`), "webhook_outbox_p"+strings.ReplaceAll(oldest, "-", "")) {
			t.Error("what it says to do does not help")
		}
	})

	t.Run("the others too where somebody has one in use for days", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		oldest, next := addDay(t, db.Pool, 10*day), addDay(t, db.Pool, 9*day)
		tx := begin(t, db.Pool)
		exec(t, tx, `SELECT FROM webhook_deliveries_p`+strings.ReplaceAll(oldest, "-", ""))
		p := newPartitions(t, db, 7*day)
		if got := drops(t, p, func() { catchUp(t, db) }); !slices.Equal(got, []string{next}) {
			t.Errorf("dropped %q, want %s", got, next)
		}
	})

	for _, code := range []string{"55P03", "40P01", "40001", "42P01"} {
		t.Run("later, and says nothing, where others are in the way: "+code, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			addDay(t, db.Pool, 9*day)
			exec(t, db.Pool, `ALTER FUNCTION webhook_drop_day(date) RENAME TO drops_day`)
			exec(t, db.Pool, `CREATE FUNCTION webhook_drop_day(day date) RETURNS boolean LANGUAGE plpgsql AS $fn$
				BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '`+code+`'; END $fn$`)
			p := newPartitions(t, db, 7*day)
			pgtest.Eventually(t, 30*time.Second, "the day is tried", func() bool {
				catchUp(t, db)
				u := upkeep(t, p)
				if len(u.Kept) > 0 {
					t.Fatalf("kept %+v, as if somebody had to act", u.Kept)
				}
				return u.LockNotAvailable
			})
			exec(t, db.Pool, `DROP FUNCTION webhook_drop_day(date)`)
			exec(t, db.Pool, `ALTER FUNCTION drops_day(date) RENAME TO webhook_drop_day`)
			drops(t, p, func() { catchUp(t, db) })
		})
	}

	t.Run("gives way to a reader, and holds no INSERT up", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		p := newPartitions(t, db, 7*day)
		upkeep(t, p)
		pgtest.Eventually(t, 30*time.Second, "the confirmed position has passed", func() bool {
			catchUp(t, db)
			tx := begin(t, db.Pool)
			exec(t, tx, `SELECT FROM webhook_outbox LIMIT 1`)
			u := upkeep(t, p)
			if len(u.Dropped) != 0 {
				t.Fatalf("dropped %q under a reader", u.Dropped)
			}
			newEvent(t, db.Pool, "org_1", "payment.failed")
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			return u.LockNotAvailable
		})
		drops(t, p, func() { catchUp(t, db) })
	})

	t.Run("nothing without a retention", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		addDay(t, db.Pool, 9*day)
		p := newPartitions(t, db, 0)
		for range 3 {
			catchUp(t, db)
			if u := upkeep(t, p); len(u.Dropped) != 0 {
				t.Fatalf("dropped %q", u.Dropped)
			}
		}
	})
}

func TestUpkeepDeletesFromDefault(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	done, doneDelivery := eventAt(t, db.Pool, 100*day, "failed")
	open, openDelivery := eventAt(t, db.Pool, 101*day, "retrying")
	young, _ := eventAt(t, db.Pool, 40*day, "success")
	exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
		SELECT overlay(webhook_uuid_at(now() - interval '200 days' + n * interval '1 ms')::text placing '7000-8' from 15)::uuid, 'o', 'payment.failed', '{}' FROM generate_series(1, 2500) n`)

	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures VALUES ($1, now()), (gen_random_uuid(), now())`, newEndpoint(t, db.Pool, "org_1"))

	p := newPartitions(t, db, 50*day)
	var deleted int64
	pgtest.Eventually(t, 30*time.Second, "the old rows are gone", func() bool {
		catchUp(t, db)
		deleted += upkeep(t, p).Deleted
		return deleted > 0
	})
	if deleted != 2502 {
		t.Errorf("deleted %d rows, want 2502", deleted)
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoint_failures`); n != 1 {
		t.Errorf("%d failing endpoints, want the one that exists", n)
	}
	for table, ids := range map[string][2][]string{
		"webhook_outbox":     {{done}, {open, young}},
		"webhook_deliveries": {{doneDelivery}, {openDelivery}},
	} {
		for _, id := range ids[0] {
			if where(t, db.Pool, table, id) != "" {
				t.Errorf("%s: an old finished row is still there", table)
			}
		}
		for _, id := range ids[1] {
			if where(t, db.Pool, table, id) == "" {
				t.Errorf("%s: a row was deleted that is not old or not finished", table)
			}
		}
	}
}

// What comes late for a day that is gone is in the DEFAULT partition, and stays there until it is recorded.
func TestUpkeepDeletesNothingThatIsNotRecorded(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1", "payment.*")
	event := query[string](t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}') RETURNING id::text`,
		outbox.DeliveryID(outbox.TimeID(time.Now().Add(-100*day)), uuid.New()))
	remove := func() int64 {
		return query[int64](t, db.Pool, `SELECT events FROM webhook_delete_old(now() - interval '50 days', 1000)`)
	}
	if n := remove(); n != 0 {
		t.Errorf("deleted %d events that have no row", n)
	}
	newDelivery(t, db.Pool, event, endpoint, "success")
	if n := remove(); n != 1 {
		t.Errorf("deleted %d events, want the one that has its row", n)
	}
}

// A DEFAULT partition with some rows of a day keeps the day's other partition: they go as a pair.
func TestDropDayAsAPair(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	event, delivery := eventAt(t, db.Pool, 9*day, "success")
	exec(t, db.Pool, `SELECT webhook_add_partition('webhook_deliveries', (now() AT TIME ZONE 'UTC' - interval '9 days')::date)`)
	drop := `SELECT webhook_drop_day((now() AT TIME ZONE 'UTC' - interval '9 days')::date)`
	if query[bool](t, db.Pool, drop) || where(t, db.Pool, "webhook_deliveries", delivery) == "" {
		t.Error("the deliveries were dropped before their events")
	}
	exec(t, db.Pool, `DELETE FROM webhook_outbox WHERE id = $1`, event)
	if !query[bool](t, db.Pool, drop) {
		t.Error("without events, the day was not dropped")
	}
	if query[bool](t, db.Pool, drop) {
		t.Error("a day that is not there was dropped")
	}

	// Somebody keeps a day's deliveries, and not its events.
	addDay(t, db.Pool, 9*day)
	exec(t, db.Pool, `DO $do$ BEGIN EXECUTE 'ALTER TABLE webhook_deliveries DETACH PARTITION webhook_deliveries_p' || to_char(now() AT TIME ZONE 'UTC' - interval '9 days', 'YYYYMMDD'); END $do$`)
	for _, want := range []bool{true, false} {
		if got := query[bool](t, db.Pool, drop); got != want {
			t.Errorf("webhook_drop_day says %t", got)
		}
	}
	// Or the other way round.
	addDay(t, db.Pool, 10*day)
	eventAt(t, db.Pool, 10*day, "success")
	exec(t, db.Pool, `DO $do$ BEGIN EXECUTE 'ALTER TABLE webhook_outbox DETACH PARTITION webhook_outbox_p' || to_char(now() AT TIME ZONE 'UTC' - interval '10 days', 'YYYYMMDD'); END $do$`)
	if !query[bool](t, db.Pool, `SELECT webhook_drop_day((now() AT TIME ZONE 'UTC' - interval '10 days')::date)`) {
		t.Error("the deliveries of a day whose events were detached stay")
	}
	if n := query[int](t, db.Pool, `SELECT count(to_regclass(format('webhook_%s_p%s', t, to_char(now() AT TIME ZONE 'UTC' - n * interval '1 day', 'YYYYMMDD'))))
		FROM (VALUES ('deliveries', 9), ('outbox', 10)) AS v(t, n)`); n != 2 {
		t.Errorf("%d of the tables that were detached are left", n)
	}
}

package store_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

const day = 24 * time.Hour

// newPartitions returns the upkeep of a database, with a state row that is nowhere yet.
func newPartitions(t testing.TB, db *pgtest.DB, retention time.Duration) *store.Partitions {
	t.Helper()
	exec(t, db.Pool, `INSERT INTO webhook_state (slot, durable_lsn) VALUES ($1, '0/1')`, db.Slot)
	return store.NewPartitions(store.New(db.Pool, db.Slot, 0), retention)
}

func upkeep(t testing.TB, p *store.Partitions) store.Upkeep {
	t.Helper()
	u, err := p.Upkeep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// catchUp moves the durable position to the end of the WAL.
func catchUp(t testing.TB, db *pgtest.DB) {
	t.Helper()
	exec(t, db.Pool, `UPDATE webhook_state SET durable_lsn = pg_current_wal_insert_lsn() WHERE slot = $1`, db.Slot)
}

// eventAt inserts an event of a time, for one endpoint, and its delivery.
func eventAt(t testing.TB, pool *pgxpool.Pool, age time.Duration, status string) (event, delivery string) {
	t.Helper()
	event = query[string](t, pool, `
		INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
		VALUES (overlay(overlay(webhook_uuidv7()::text placing left(webhook_uuid_at(now() - $1::interval)::text, 13) from 1) placing '7' from 15)::uuid, 'org_1', 'payment.failed', '{}')
		RETURNING id::text`, age)
	endpoint := query[string](t, pool, `SELECT gen_random_uuid()::text`)
	return event, newDelivery(t, pool, event, endpoint, status)
}

// addDay makes both partitions of the day of an age, and returns the day.
func addDay(t testing.TB, pool *pgxpool.Pool, age time.Duration) string {
	t.Helper()
	exec(t, pool, `SELECT webhook_add_partition(p, (now() AT TIME ZONE 'UTC' - $1::interval)::date) FROM unnest('{webhook_outbox,webhook_deliveries}'::text[]) p`, age)
	return query[string](t, pool, `SELECT to_char(now() AT TIME ZONE 'UTC' - $1::interval, 'YYYY-MM-DD')`, age)
}

func where(t testing.TB, q querier, table, id string) string {
	t.Helper()
	return query[string](t, q, fmt.Sprintf(`SELECT coalesce((SELECT tableoid::regclass::text FROM %s WHERE id = $1), '')`, table), id)
}

func TestPartitionRouting(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)

	if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_inherits WHERE inhparent IN ('webhook_outbox'::regclass, 'webhook_deliveries'::regclass)`); n != 2*(1+1+1+14) {
		t.Errorf("%d partitions, want yesterday to two weeks ahead and a DEFAULT, of both tables", n)
	}
	today := query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	event, delivery := eventAt(t, db.Pool, 0, "success")
	if got, want := where(t, db.Pool, "webhook_outbox", event), "webhook_outbox_p"+today; got != want {
		t.Errorf("an event of today is in %s", got)
	}
	if got, want := where(t, db.Pool, "webhook_deliveries", delivery), "webhook_deliveries_p"+today; got != want {
		t.Errorf("its delivery is in %s", got)
	}
	event, delivery = eventAt(t, db.Pool, 10*day, "success")
	if got := where(t, db.Pool, "webhook_outbox", event) + " " + where(t, db.Pool, "webhook_deliveries", delivery); got != "webhook_outbox_default webhook_deliveries_default" {
		t.Errorf("those of a day without partitions are in %s", got)
	}
	for edge, want := range map[string]string{"0 seconds": today, "-1 millisecond": "default"} {
		// The first millisecond of yesterday's partition, and the last before it.
		got := query[string](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
			VALUES (webhook_uuid_at(date_trunc('day', now(), 'UTC') - interval '24 hours' + $1::text::interval), webhook_uuidv7(), gen_random_uuid(), 'o', 't', 'success')
			RETURNING tableoid::regclass::text`, edge)
		if want != "default" {
			want = query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' - interval '1 day', 'YYYYMMDD')`)
			want = "p" + want
		}
		if got != "webhook_deliveries_"+want {
			t.Errorf("at the edge %s: %s, want %s", edge, got, want)
		}
	}

	// A partition made later is like those made at install.
	addDay(t, db.Pool, 10*day)
	for _, table := range []string{"webhook_outbox", "webhook_deliveries"} {
		if kinds := column[string](t, db.Pool, `
			SELECT DISTINCT format('%s indexes, triggers %s, checks %s',
			           (SELECT count(*) FROM pg_index x WHERE x.indrelid = i.inhrelid AND EXISTS (SELECT FROM pg_inherits p WHERE p.inhrelid = x.indexrelid)),
			           (SELECT string_agg(format('%s %s', tgname, tgenabled), ' ' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = i.inhrelid),
			           (SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE conrelid = i.inhrelid AND contype = 'c'))
			FROM pg_inherits i WHERE i.inhparent = $1::text::regclass`, table); len(kinds) != 1 {
			t.Errorf("%s has different partitions: %q", table, kinds)
		}
	}
	old := query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' - interval '10 days', 'YYYYMMDD')`)
	if got := where(t, db.Pool, "webhook_outbox", event); got != "webhook_outbox_p"+old {
		t.Errorf("the event is now in %s", got)
	}
	refused(t, db.Pool, "not a table of walhook", `SELECT webhook_add_partition('pg_class', '2026-01-01')`)
}

func TestUpkeepMakesDaysAhead(t *testing.T) {
	t.Parallel()

	t.Run("both tables, two weeks", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		p := newPartitions(t, db, 0)
		if u := upkeep(t, p); len(u.Made) != 0 || u.LockNotAvailable {
			t.Errorf("on a new database: %+v", u)
		}
		last := query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' + interval '14 days', 'YYYYMMDD')`)
		exec(t, db.Pool, `DROP TABLE webhook_outbox_p`+last+`, webhook_deliveries_p`+last)
		want := []string{"webhook_deliveries_p" + last, "webhook_outbox_p" + last}
		if u := upkeep(t, p); !slices.Equal(u.Made, want) {
			t.Errorf("made %q, want %q", u.Made, want)
		}
	})

	t.Run("moves what it finds in the DEFAULT partitions, and nothing is published again", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		today := query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
		exec(t, db.Pool, `DROP TABLE webhook_outbox_p`+today+`, webhook_deliveries_p`+today)
		event, delivery := eventAt(t, db.Pool, 0, "pending")
		oldEvent, oldDelivery := eventAt(t, db.Pool, 5*day, "success")
		ancient, _ := eventAt(t, db.Pool, 400*day, "success")
		exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)

		u := upkeep(t, newPartitions(t, db, 0))
		if len(u.Made) != 4 || u.Moved != 4 || len(u.Stuck) != 0 {
			t.Errorf("got %+v, want two days of two tables, and four rows moved", u)
		}
		for table, id := range map[string]string{"webhook_outbox": event, "webhook_deliveries": delivery} {
			if got := where(t, db.Pool, table, id); got != table+"_p"+today {
				t.Errorf("%s: the row is in %q", table, got)
			}
		}
		for table, id := range map[string]string{"webhook_outbox": oldEvent, "webhook_deliveries": oldDelivery} {
			if got := where(t, db.Pool, table, id); got == "" || got == table+"_default" {
				t.Errorf("%s: the old row is in %q", table, got)
			}
		}
		if got := where(t, db.Pool, "webhook_outbox", ancient); got != "webhook_outbox_default" {
			t.Errorf("an import of long ago is in %s", got)
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook') WHERE get_byte(data, 0) = ascii('I')`, db.Slot); n != 0 {
			t.Errorf("the move published %d events again", n)
		}
	})

	t.Run("leaves a day in DEFAULT that is too much to move at once", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
			SELECT webhook_uuid_at(now() - interval '3 days' + n * interval '1 millisecond'), webhook_uuidv7(), gen_random_uuid(), 'o', 't', 'success' FROM generate_series(1, 20001) n`)
		days := query[int](t, db.Pool, `SELECT count(DISTINCT webhook_uuid_time(id)::date) FROM webhook_deliveries`)
		u := upkeep(t, newPartitions(t, db, 0))
		if days == 1 && len(u.Stuck) != 1 {
			t.Errorf("got %+v", u)
		}
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries`); n != 20001 {
			t.Errorf("%d rows are left", n)
		}
	})

	t.Run("leaves days in DEFAULT where that is too much to look through", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
			SELECT webhook_uuid_at(date_trunc('day', now(), 'UTC') - interval '40 days' + n * interval '1 millisecond'), webhook_uuid_at(now()), webhook_uuid_at(now()), 'o', 't', 'success'
			FROM generate_series(1, 200000) n`)
		stray := query[string](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status)
			VALUES (webhook_uuid_at(now() - interval '3 days'), webhook_uuid_at(now()), webhook_uuid_at(now()), 'o', 't', 'success') RETURNING id::text`)
		if u := upkeep(t, newPartitions(t, db, 0)); len(u.Stuck) != 1 || u.Moved != 0 {
			t.Errorf("got %+v", u)
		}
		if got := where(t, db.Pool, "webhook_deliveries", stray); got != "webhook_deliveries_default" {
			t.Errorf("the stray row is in %q", got)
		}
	})

	t.Run("gives way to an open transaction in the DEFAULT partition", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		p := newPartitions(t, db, 0)
		last := query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' + interval '14 days', 'YYYYMMDD')`)
		exec(t, db.Pool, `DROP TABLE webhook_outbox_p`+last)
		tx := begin(t, db.Pool)
		exec(t, tx, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ('01800000-0000-7000-8000-000000000000', 'o', 'payment.failed', '{}')`)
		if u := upkeep(t, p); !u.LockNotAvailable || len(u.Made) != 0 {
			t.Errorf("got %+v", u)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if u := upkeep(t, p); u.LockNotAvailable || len(u.Made) != 1 {
			t.Errorf("afterwards: got %+v", u)
		}
	})
}

// A row that is committed while the partition of its day is being made must end up in it.
func TestUpkeepBesideAnInsertOfThatDay(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	p := newPartitions(t, db, 0)
	exec(t, db.Pool, `DROP TABLE webhook_outbox_p`+query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`))

	var made bool
	for !made {
		tx := begin(t, db.Pool)
		newEvent(t, tx, "org_1", "payment.failed")
		var u store.Upkeep
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			u, err = p.Upkeep(t.Context())
		}()
		pgtest.Eventually(t, 30*time.Second, "the upkeep waits for the INSERT, or has given way", func() bool {
			select {
			case <-done:
				return true
			default:
				return query[bool](t, db.Pool, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation IN ('webhook_outbox'::regclass, 'webhook_outbox_default'::regclass)
					AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
			}
		})
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-done
		if err != nil {
			t.Fatal(err)
		}
		made = len(u.Made) == 1
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_outbox_default`); n != 0 {
		t.Errorf("%d events are still in the DEFAULT partition", n)
	}
}

func TestPartitionsAhead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	want := func(n int) {
		t.Helper()
		if got, err := st.PartitionsAhead(t.Context()); err != nil || got != n {
			t.Errorf("%d days, %v, want %d", got, err, n)
		}
	}
	want(14)
	exec(t, db.Pool, `DROP TABLE webhook_deliveries_p`+query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' + interval '5 days', 'YYYYMMDD')`))
	want(4)
	exec(t, db.Pool, `ALTER TABLE webhook_outbox DETACH PARTITION webhook_outbox_p`+query[string](t, db.Pool, `SELECT to_char(now() AT TIME ZONE 'UTC' + interval '3 days', 'YYYYMMDD')`))
	want(2)

	// Without the right to make more, it is said who needs which.
	if _, err := db.Pool.Exec(t.Context(), `CREATE ROLE `+pgx.Identifier{db.Slot + "_owner"}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	owner := pgx.Identifier{db.Slot + "_owner"}.Sanitize()
	t.Cleanup(func() {
		_, _ = db.Pool.Exec(context.Background(), `DROP OWNED BY `+owner+`; DROP ROLE `+owner)
	})
	exec(t, db.Pool, `ALTER FUNCTION webhook_add_partition(text, date) OWNER TO `+owner)
	exec(t, db.Pool, `REVOKE CREATE ON SCHEMA public FROM PUBLIC`)
	_, err := store.NewPartitions(st, 0).Upkeep(t.Context())
	if err == nil || !strings.Contains(err.Error(), "GRANT CREATE ON SCHEMA public TO "+strings.Trim(owner, `"`)) {
		t.Errorf("%v, want the GRANT that mends it", err)
	}
}

// An old and a new walhook, or an operator beside them, keep the same days at the same time. One of them makes or drops a
// day; the others find nothing to do, or try again.
func TestDaysAreKeptByTwoAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	atOnce := func(want, sql string, args ...any) {
		t.Helper()
		results := make(chan string)
		const sessions = 4
		for range sessions {
			go func() {
				var result string
				err := db.Pool.QueryRow(t.Context(), sql, args...).Scan(&result)
				for isBusy(err) {
					err = db.Pool.QueryRow(t.Context(), sql, args...).Scan(&result)
				}
				if err != nil {
					result = err.Error()
				}
				results <- result
			}()
		}
		var got []string
		for range sessions {
			got = append(got, <-results)
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != want {
			t.Errorf("%s %v: %q, want %s", sql, args, got, want)
		}
	}
	for age := 10; age < 20; age++ {
		if age%2 == 0 { // moved from the DEFAULT partition
			eventAt(t, db.Pool, time.Duration(age)*day, "success")
		}
		const add = `SELECT made::text || ' ' || moved FROM webhook_add_partition($1, (now() AT TIME ZONE 'UTC')::date - $2::int)`
		one := "true " + strconv.Itoa(1-age%2)
		atOnce("false 0, false 0, false 0, "+one, add, "webhook_outbox", age)
		atOnce("false 0, false 0, false 0, "+one, add, "webhook_deliveries", age)
	}
	for age := 10; age < 20; age++ {
		exec(t, db.Pool, `DELETE FROM webhook_outbox`) // what is owed without a row keeps its day
		atOnce("false, false, false, true", `SELECT webhook_drop_day((now() AT TIME ZONE 'UTC')::date - $1::int)::text`, age)
	}
}

// Nor is a day that is made in the way of another that is dropped, other than by a lock that is not available for a moment.
func TestDaysAreMadeAndDroppedAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var wg sync.WaitGroup
	for age := 10; age < 14; age++ {
		wg.Go(func() {
			for range 15 {
				for _, sql := range []string{
					`SELECT webhook_add_partition('webhook_outbox', (now() AT TIME ZONE 'UTC')::date - $1::int)`,
					`SELECT webhook_add_partition('webhook_deliveries', (now() AT TIME ZONE 'UTC')::date - $1::int)`,
					`SELECT webhook_drop_day((now() AT TIME ZONE 'UTC')::date - $1::int)`,
				} {
					_, err := db.Pool.Exec(t.Context(), sql, age)
					if err != nil && !isBusy(err) {
						t.Errorf("%s, %d: %v", sql, age, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

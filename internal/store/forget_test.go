package store_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

func forget(t testing.TB, db *pgtest.DB, organization string) (left int) {
	t.Helper()
	return query[int](t, db.Pool, `SELECT webhook_forget($1)`, organization)
}

// rowsOf counts what is left of an organization.
func rowsOf(t testing.TB, db *pgtest.DB, organization string) int {
	t.Helper()
	return query[int](t, db.Pool, `SELECT (SELECT count(*) FROM webhook_outbox WHERE organization_id = $1) + (SELECT count(*) FROM webhook_deliveries WHERE organization_id = $1)
		+ (SELECT count(*) FROM webhook_endpoints WHERE organization_id = $1) + (SELECT count(*) FROM webhook_forgetting WHERE organization_id = $1)`, organization)
}

func TestForget(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	customer, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_2")
	deliver := func(endpoint string, n int) {
		rs := owed(t, db, endpoint, n)
		for i := range rs {
			rs[i] = outcome(rs[i], webhook.Success, 1, 200)
		}
		insert(t, st, fence, rs...)
	}
	deliver(customer, 20)
	deliver(other, 20)
	exec(t, db.Pool, `INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since) VALUES ($1, now())`, customer)
	others := rowsOf(t, db, "org_2")

	t.Run("one call ends it where no other transaction is open", func(t *testing.T) {
		if left := forget(t, db, "org_1"); left != 0 {
			t.Errorf("%d are left", left)
		}
		if n := rowsOf(t, db, "org_1"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
		for _, table := range []string{"webhook_secrets", "webhook_endpoint_failures"} {
			if n := query[int](t, db.Pool, `SELECT count(*) FROM `+table+` WHERE endpoint_id = $1`, customer); n != 0 {
				t.Errorf("%d rows of %s are left", n, table)
			}
		}
		if n := rowsOf(t, db, "org_2"); n != others {
			t.Errorf("the others have %d rows, want %d", n, others)
		}
	})

	t.Run("a row of webhook_audit says who erased how many", func(t *testing.T) {
		const audited = `SELECT string_agg(who || ' ' || count || ' ' || coalesce(detail, '-'), ', ') FROM webhook_audit WHERE action = 'organization.forgotten' AND organization_id = 'org_1'`
		me := query[string](t, db.Pool, `SELECT session_user::text`)
		if got := query[string](t, db.Pool, audited); got != me+" 41 -" {
			t.Error(got)
		}
		if left := forget(t, db, "org_1"); left != 0 {
			t.Errorf("%d are left", left)
		}
		if got := query[string](t, db.Pool, audited); got != me+" 41 -" {
			t.Errorf("a call that finds nothing: %s", got)
		}
	})

	for what, wait := range map[string]func(r webhook.Record){
		"no row yet": func(webhook.Record) {},
		"a row that waits": func(r webhook.Record) {
			insert(t, st, fence, outcome(r, webhook.Retrying, 1, 500))
		},
	} {
		t.Run("walhook may hold a delivery with "+what, func(t *testing.T) {
			endpoint := newEndpoint(t, db.Pool, "org_3")
			deliver(endpoint, 3)
			held := owed(t, db, endpoint, 1)[0]
			wait(held)
			if left := forget(t, db, "org_3"); left == 0 {
				t.Fatal("the first call says that nothing is left")
			}
			if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoints WHERE organization_id = 'org_3'`); n != 0 {
				t.Error("the endpoint is there")
			}
			tx := begin(t, db.Pool) // in which the outcome is recorded, and which does not see that
			exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
			if left := forget(t, db, "org_3"); left == 0 {
				t.Error("it does not wait for what is being recorded")
			}
			exec(t, tx, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts)
				VALUES ($1, $2, $3, 'org_3', 'payment.failed', 'success', 1) ON CONFLICT DO NOTHING`, held.ID, held.EventID, held.EndpointID)
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := forget(t, db, "org_3"); left != 0 {
				t.Errorf("%d are left", left)
			}
			if n := rowsOf(t, db, "org_3"); n != 0 {
				t.Errorf("%d rows are left", n)
			}

			done := outcome(held, webhook.Failed, 1, 500)
			done.Exhausted = true
			fresh, err := st.Insert(t.Context(), fence, webhook.Mark{}, []webhook.Record{done})
			if err != nil || fresh {
				t.Errorf("an outcome afterwards: new %t, %v", fresh, err)
			}
			if locked := update(t, st, fence, done); len(locked) != 0 {
				t.Errorf("locked: %v", locked)
			}
			if n, err := st.InsertMissing(t.Context(), fence, []webhook.Record{held}); err != nil || n != 0 {
				t.Errorf("the comparison inserted %d, %v", n, err)
			}
			if n := rowsOf(t, db, "org_3"); n != 0 {
				t.Errorf("%d rows came back", n)
			}
		})
	}

	t.Run("the customer comes back", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_1")
		deliver(endpoint, 2)
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
		forget(t, db, "org_1")
		exec(t, db.Pool, `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ($1, 'org_1', 'https://example.com')`, customer) // a restore
		deliver(customer, 2)
		deliver(newEndpoint(t, db.Pool, "org_1"), 1)
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries WHERE organization_id = 'org_1'`); n != 3 {
			t.Errorf("%d deliveries have rows, want 3", n)
		}
	})

	t.Run("rows that somebody has locked are left", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_4")
		deliver(endpoint, 3)
		for _, lock := range []string{`SELECT FROM webhook_endpoints WHERE organization_id = 'org_4' FOR KEY SHARE`, `SELECT FROM webhook_secrets FOR UPDATE`,
			`SELECT FROM webhook_deliveries WHERE organization_id = 'org_4' LIMIT 1 FOR UPDATE`, `SELECT FROM webhook_outbox WHERE organization_id = 'org_4' LIMIT 1 FOR UPDATE`} {
			tx := begin(t, db.Pool)
			exec(t, tx, lock)
			if left := forget(t, db, "org_4"); left == 0 {
				t.Errorf("%s: nothing is left", lock)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if left := forget(t, db, "org_4"); left != 0 {
			t.Errorf("%d are left", left)
		}
		if n := rowsOf(t, db, "org_4"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})

	t.Run("another organization's endpoint, an operator's, gets its delivery first", func(t *testing.T) {
		deliver(newEndpoint(t, db.Pool, "org_5"), 3)
		tx := begin(t, db.Pool)
		exec(t, tx, `SET LOCAL session_replication_role = replica`) // as the trigger does for all_organizations
		event := query[string](t, tx, `INSERT INTO webhook_outbox (organization_id, event_type, payload, endpoint_ids) VALUES ('org_5', 'webhook.test', '{}', ARRAY[$1::uuid]) RETURNING id::text`, other)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if left := forget(t, db, "org_5"); left == 0 {
				t.Fatal("nothing is left, and the event is under way")
			}
		}
		e := uuid.MustParse(event)
		r := webhook.Record{ID: outbox.DeliveryID(e, uuid.MustParse(other)), EventID: e, EndpointID: uuid.MustParse(other), OrganizationID: "org_5", EventType: "webhook.test"}
		insert(t, st, fence, outcome(r, webhook.Success, 1, 200))
		if left := forget(t, db, "org_5"); left != 0 {
			t.Errorf("%d are left", left)
		}
		if n := rowsOf(t, db, "org_5"); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})

	t.Run("what was owed to an endpoint that was deleted before", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_6")
		held := owed(t, db, endpoint, 1)[0]
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
		calls := 1
		for forget(t, db, "org_6") != 0 && calls < 10 {
			calls++
		}
		insert(t, st, fence, outcome(held, webhook.Cancelled, 1, 500))
		if n := rowsOf(t, db, "org_6"); n != 0 {
			t.Errorf("%d rows are left, after %d calls", n, calls)
		}
	})

	t.Run("what was cancelled at an endpoint that was deleted before, and is read again after a crash", func(t *testing.T) {
		endpoint := newEndpoint(t, db.Pool, "org_7")
		held := outcome(owed(t, db, endpoint, 1)[0], webhook.Cancelled, 1, 500)
		insert(t, st, fence, held)
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = $1`, endpoint)
		if left := forget(t, db, "org_7"); left != 0 {
			t.Errorf("%d are left", left)
		}
		insert(t, st, fence, held)
		if n := rowsOf(t, db, "org_7"); n != 0 {
			t.Errorf("%d rows came back", n)
		}
	})

	t.Run("it is one transaction's own", func(t *testing.T) {
		refused(t, db.Pool, "READ COMMITTED", `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT webhook_forget('org_2')`)
		refused(t, db.Pool, "null, empty", `SELECT webhook_forget(' ')`)
		refused(t, db.Pool, "null, empty", `SELECT webhook_forget(NULL)`)
	})

	t.Run("the notes go with the deliveries of that time", func(t *testing.T) {
		exec(t, db.Pool, `SELECT webhook_delete_old(now() - interval '1 hour', 1000)`)
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_retries WHERE forgotten_at IS NOT NULL`); n == 0 {
			t.Error("they are gone")
		}
		exec(t, db.Pool, `UPDATE webhook_retries SET forgotten_at = forgotten_at - interval '2 hours'`)
		exec(t, db.Pool, `SELECT webhook_delete_old(now() - interval '1 hour', 1000)`)
		if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_retries`); n != 0 {
			t.Errorf("%d are left", n)
		}
	})
}

// However many rows the others have, a call looks at a bounded number of them, and touches none.
func TestForgetAmongAMillionRows(t *testing.T) {
	t.Parallel()
	const rows, events = 1_000_000, 100_000
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	customer, other := newEndpoint(t, db.Pool, "org_1"), newEndpoint(t, db.Pool, "org_2")
	exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
		SELECT webhook_delivery_id(webhook_uuid_at(now() - n * interval '400 ms'), $2), 'org_2', 'payment.failed', '{}' FROM generate_series(1, $1) AS n`, events, other)
	exec(t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, attempts)
		SELECT webhook_delivery_id(webhook_uuid_at(now() - n * interval '40 ms'), $2), $2, $2, 'org_2', 'payment.failed', 'success', 1 FROM generate_series(1, $1) AS n`, rows, other)
	var ages []time.Duration
	for n := range 300 {
		ages = append(ages, time.Duration(n)*2*time.Minute)
	}
	rs := owedOf(t, db, customer, 300, "payment.failed", ages...)
	for i := range rs[:299] {
		rs[i] = outcome(rs[i], webhook.Success, 1, 200)
	}
	insert(t, st, fence, rs[:299]...) // the last one is under way

	// In the first call 20 ranges of 1,000 rows, afterwards 20 of 10,000: each row is looked at five times at most, with a block of an index now and then.
	for _, size := range []int{1000, 10_000} {
		if n := blocks(t, db.Pool, `SELECT webhook_forget('org_1')`); n > 20*size*2*5*2 {
			t.Errorf("it touches %d blocks, with ranges of %d rows", n, size)
		}
		if left := forget(t, db, "org_1"); left < 1000 {
			t.Errorf("%d rows are left to look through", left)
		}
		if got := query[string](t, db.Pool, `SELECT progress->'forgetting'->>'percent' || ' ' || (progress->'forgetting'->'waiting') FROM webhook_status`); !regexp.MustCompile(`^\d{1,2} 1$`).MatchString(got) {
			t.Errorf("the progress is %q", got)
		}
	}
	calls := 2
	for before := rows * 2; ; calls++ {
		left := forget(t, db, "org_1")
		if left == 0 {
			break
		}
		if left > before || calls > 1000 {
			t.Fatalf("call %d: %d rows are left, after %d", calls, left, before)
		}
		before = left
	}
	t.Logf("%d calls", calls)
	if n := rowsOf(t, db, "org_1"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
	if n := rowsOf(t, db, "org_2"); n != rows+events+1 {
		t.Errorf("the others have %d rows", n)
	}
	if got := query[string](t, db.Pool, `SELECT string_agg(count || coalesce(detail, ''), ', ') FROM webhook_audit WHERE action = 'organization.forgotten'`); got != "600" {
		t.Errorf("the audit says %s", got)
	}
}

// idAt returns an id of a time ago.
func idAt(t testing.TB, db *pgtest.DB, ago string) string {
	t.Helper()
	return query[string](t, db.Pool, `SELECT webhook_delivery_id(webhook_uuid_at(now() - $1::interval), gen_random_uuid())::text`, ago)
}

// What was inserted before the first call, and is committed after it, is erased too.
func TestForgetWaitsForOpenTransactions(t *testing.T) {
	t.Parallel()
	for what, write := range map[string]func(db *pgtest.DB, tx pgx.Tx, endpoint string){
		"an application's event": func(db *pgtest.DB, tx pgx.Tx, _ string) {
			exec(t, tx, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`, idAt(t, db, "2 minutes"))
		},
		"an event of walhook's own": func(_ *pgtest.DB, tx pgx.Tx, endpoint string) {
			exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
			exec(t, tx, `INSERT INTO webhook_outbox (organization_id, event_type, payload) SELECT organization_id, 'webhook.endpoint.recovered', '{}' FROM webhook_endpoints WHERE id = $1`, endpoint)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			_, _ = acquired(t, db)
			endpoint := newEndpoint(t, db.Pool, "org_1")
			tx := begin(t, db.Pool)
			write(db, tx, endpoint)
			// So many that a call does not come to the end of them.
			exec(t, db.Pool, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload)
				SELECT webhook_delivery_id(webhook_uuid_at(now() - interval '90 s' + g * interval '1 ms'), gen_random_uuid()), 'org_2', 'payment.failed', '{}' FROM generate_series(1, 25000) AS g`)
			for range 3 {
				if left := forget(t, db, "org_1"); left == 0 {
					t.Fatal("nothing is left, and a transaction is open")
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			for calls := 0; forget(t, db, "org_1") > 0; calls++ {
				if calls == 20 {
					t.Fatal("it does not end")
				}
			}
			if n := rowsOf(t, db, "org_1"); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		})
	}

	t.Run("of its own transaction it says so", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		_, _ = acquired(t, db)
		_ = owed(t, db, newEndpoint(t, db.Pool, "org_1"), 1)
		tx := begin(t, db.Pool)
		if left := query[int](t, tx, `SELECT webhook_forget('org_1')`); left == 0 {
			t.Error("nothing is left of a delivery that walhook may hold")
		}
		refused(t, tx, "commit after each call", `SELECT webhook_forget('org_1')`)
	})
}

// An event that is owed to an erased endpoint gets no row, and keeps no day.
func TestForgottenEventsKeepNoDay(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, fence := acquired(t, db)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	name := addDay(t, db.Pool, 9*day)
	tx := begin(t, db.Pool)
	event := idAt(t, db, "9 days")
	exec(t, tx, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`, event)
	exec(t, tx, `INSERT INTO webhook_outbox (id, organization_id, event_type, payload) VALUES ($1, 'org_1', 'payment.failed', '{}')`, idAt(t, db, "40 days"))
	if left := forget(t, db, "org_1"); left == 0 {
		t.Fatal("nothing is left, and a transaction is open")
	}
	if err := tx.Commit(t.Context()); err != nil { // and nobody calls it again
		t.Fatal(err)
	}
	id := outbox.DeliveryID(uuid.MustParse(event), uuid.MustParse(endpoint))
	insert(t, st, fence, outcome(webhook.Record{ID: id, EventID: uuid.MustParse(event), EndpointID: uuid.MustParse(endpoint), OrganizationID: "org_1", EventType: "payment.failed"}, webhook.Cancelled, 0, 0))
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_deliveries`); n != 0 {
		t.Fatalf("%d rows", n)
	}
	exec(t, db.Pool, `UPDATE webhook_state SET reconcile_from = NULL`)
	p := store.NewPartitions(store.New(db.Pool, db.Slot, 0), 7*day)
	pgtest.Eventually(t, time.Minute, "the day is dropped, and the DEFAULT partition is empty", func() bool {
		catchUp(t, db)
		u := upkeep(t, p)
		if len(u.Kept) > 0 {
			t.Fatalf("%s is kept: %s", name, u.Kept[0].Why)
		}
		return query[bool](t, db.Pool, `SELECT to_regclass('webhook_outbox_p' || replace($1, '-', '')) IS NULL AND NOT EXISTS (SELECT FROM webhook_outbox)`, name)
	})
}

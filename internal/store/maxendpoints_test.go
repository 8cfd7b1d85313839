package store_test

import (
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

const newEndpoints = `INSERT INTO webhook_endpoints (organization_id, url) SELECT $1, 'https://example.com' FROM generate_series(1, $2::int)`

// An organization has no more endpoints than WALHOOK_MAX_ENDPOINTS, however they are made.
// What it has already stays, and can be changed.
func TestMaxEndpoints(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st, other := store.New(db.Pool, db.Slot, disableAfter), store.New(db.Pool, db.Slot+"_2", disableAfter)
	set := func(st *store.Store, most int) {
		t.Helper()
		if err := st.SetMaxEndpoints(t.Context(), most); err != nil {
			t.Fatal(err)
		}
		if got := query[int](t, db.Pool, `SELECT DISTINCT max_endpoints FROM webhook_state`); got != most {
			t.Fatalf("it remembers %d, want %d", got, most)
		}
	}

	t.Run("1000 where no walhook has said another number", func(t *testing.T) {
		exec(t, db.Pool, newEndpoints, "org_full", 999)
		refused(t, db.Pool, "WALHOOK_MAX_ENDPOINTS", newEndpoints, "org_full", 2)
		exec(t, db.Pool, newEndpoints, "org_full", 1)
		refused(t, db.Pool, "organization 'org_full' cannot have more than 1000 endpoints", newEndpoints, "org_full", 1)
	})

	set(st, 3)
	exec(t, db.Pool, newEndpoints, "org_1", 3)
	exec(t, db.Pool, newEndpoints, "org_2", 2)
	t.Run("by INSERT, webhook_create_endpoint and one of many", func(t *testing.T) {
		for _, sql := range []string{
			`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_1', 'https://example.com')`,
			`INSERT INTO webhook_endpoints (organization_id, url, enabled) VALUES ('org_1', 'https://example.com', false)`,
			`INSERT INTO webhook_endpoints (organization_id, url) VALUES ('org_2', 'https://example.com'), ('org_1', 'https://example.com')`,
			`SELECT webhook_create_endpoint('org_1', 'https://example.com')`,
		} {
			refused(t, db.Pool, "organization 'org_1' cannot have more than 3 endpoints", sql)
		}
		refused(t, db.Pool, "organization_id cannot be changed", `UPDATE webhook_endpoints SET organization_id = 'org_1' WHERE organization_id = 'org_2'`)
		exec(t, db.Pool, newEndpoints, "org_2", 1)
	})
	t.Run("and one that is deleted makes room", func(t *testing.T) {
		exec(t, db.Pool, `DELETE FROM webhook_endpoints WHERE id = (SELECT id FROM webhook_endpoints WHERE organization_id = 'org_1' LIMIT 1)`)
		exec(t, db.Pool, newEndpoints, "org_1", 1)
	})
	t.Run("a smaller number takes nothing away", func(t *testing.T) {
		set(other, 2)
		exec(t, db.Pool, `UPDATE webhook_endpoints SET url = 'https://example.org', enabled = NOT enabled WHERE organization_id = 'org_1'`)
		refused(t, db.Pool, "cannot have more than 2", newEndpoints, "org_1", 1)
	})
	t.Run("the last one counts", func(t *testing.T) {
		set(st, 4)
		exec(t, db.Pool, newEndpoints, "org_1", 1)
		refused(t, db.Pool, "cannot have more than 4", newEndpoints, "org_1", 1)
	})
	t.Run("but a restore brings all that were there", func(t *testing.T) {
		conn, err := db.Pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		if _, err := conn.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(strings.Repeat("org_3\thttps://example.com/\n", 5)),
			`COPY webhook_endpoints (organization_id, url) FROM STDIN`); err != nil {
			t.Error(err)
		}
	})
	t.Run("whoever inserts needs no right on webhook_state", func(t *testing.T) {
		role := db.Slot + "_inserts"
		exec(t, db.Pool, `CREATE ROLE `+role)
		tx := begin(t, db.Pool)
		exec(t, tx, `GRANT INSERT ON webhook_endpoints TO `+role)
		exec(t, tx, `SET LOCAL ROLE `+role)
		exec(t, tx, newEndpoints, "org_4", 4)
		refused(t, tx, "cannot have more than 4", newEndpoints, "org_4", 1)
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		exec(t, db.Pool, `DROP ROLE `+role)
	})
}

// A start that changes nothing waits for nobody.
func TestMaxEndpointsAgain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, disableAfter)
	if err := st.SetMaxEndpoints(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, db.Pool)
	exec(t, tx, `UPDATE webhook_state SET updated_at = now()`)
	if err := st.SetMaxEndpoints(t.Context(), 5); err != nil {
		t.Error(err)
	}
	if err := st.SetMaxEndpoints(t.Context(), 6); err == nil || !strings.Contains(err.Error(), "WALHOOK_MAX_ENDPOINTS") {
		t.Errorf("beside somebody who has the row: %v", err)
	}
}

// Versions 1 to 7 had no limit. What an organization had then stays.
func TestMaxEndpointsAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	db, _ := versionInUse(t, "7")
	exec(t, db.Pool, newEndpoints, "org_many", 1001)
	if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET url = 'https://example.org' WHERE organization_id = 'org_many'`)
	refused(t, db.Pool, "cannot have more than 1000", newEndpoints, "org_many", 1)
	exec(t, db.Pool, newEndpoints, "org_few", 1)
}

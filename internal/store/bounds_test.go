package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// What a tenant may choose has bounds, and no error shows a secret, or headers with credentials.
func TestTenantsChooseWithinBounds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	endpoint := newEndpoint(t, db.Pool, "org_1")
	const secret, credentials = "very secret of a tenant", "Bearer of-credentials"
	exec(t, db.Pool, `UPDATE webhook_endpoints SET headers = jsonb_build_object('Authorization', $1::text)`, credentials)

	for _, c := range []struct{ want, sql string }{
		{"has 101 entries, more than 100", `UPDATE webhook_endpoints SET event_types = array_fill('*'::text, '{101}')`},
		{"has 1000000 entries, more than 100", `UPDATE webhook_endpoints SET event_types = array_fill('*'::text, '{1000000}')`},
		{"description is longer than 1 KiB", `UPDATE webhook_endpoints SET description = repeat('x', 1025)`},
		{"description is longer than 1 KiB", `UPDATE webhook_endpoints SET description = repeat('x', 10000000)`},
		{"disabled_reason is longer than 1 KiB", `UPDATE webhook_endpoints SET enabled = false, disabled_reason = repeat('x', 1025)`},
		{"there are more than 32", `UPDATE webhook_endpoints SET headers = (SELECT jsonb_object_agg('h' || n, 'x') FROM generate_series(1, 100000) n)`},
		{"longer than 4 KiB", `UPDATE webhook_endpoints SET headers = jsonb_build_object('h', repeat('x', 10000000))`},
		{"longer than 128 characters", `UPDATE webhook_endpoints SET headers = jsonb_build_object(repeat('x', 10000000), 'x')`},
		{"is not a header name", `UPDATE webhook_endpoints SET headers = jsonb_build_object(repeat(' ', 10000000), 'x')`},
		{"is not text", `UPDATE webhook_endpoints SET headers = jsonb_build_object('h', jsonb_build_array(jsonb_build_array(1)))`},
		{"Expect belongs to the connection", `UPDATE webhook_endpoints SET headers = '{"Expect": "100-continue"}'`},
		{"Content-Encoding is set by walhook", `UPDATE webhook_endpoints SET headers = '{"Content-Encoding": "gzip"}'`},
		{"HTTP2-Settings belongs to the connection", `UPDATE webhook_endpoints SET headers = '{"HTTP2-Settings": "x"}'`},
		{"is out of bounds", `UPDATE webhook_endpoints SET max_in_flight = 0`},
		{"is out of bounds", `UPDATE webhook_endpoints SET max_in_flight = 1001`},
		{"is out of bounds", `UPDATE webhook_endpoints SET rate_per_second = 0`},
		{"is out of bounds", `UPDATE webhook_endpoints SET rate_per_second = 'NaN'`},
		{"is out of bounds", `UPDATE webhook_endpoints SET rate_per_second = 'infinity'`},
		{"is out of bounds", `UPDATE webhook_endpoints SET enabled = NULL`},
		{"timeout is 00:00:00.099: give null, or 100 milliseconds to 60 seconds", `UPDATE webhook_endpoints SET timeout = '99 ms'`},
		{"timeout is 00:01:00.001", `UPDATE webhook_endpoints SET timeout = '60001 ms'`},
		{"timeout is -00:00:01", `UPDATE webhook_endpoints SET timeout = '-1 s'`},
		{"timeout is 1 year -360 days", `UPDATE webhook_endpoints SET timeout = '1 year -360 days 1 s'`}, // no more than 1 s for interval's operators
		{"a wait is 1 year -357 days", `UPDATE webhook_endpoints SET retry_schedule = '{1 s,1 year -357 days}'`},
		{"a wait is -1 years +360 days", `UPDATE webhook_endpoints SET retry_schedule = '{-1 year 360 days 1 s}'`},
		{"retry_schedule is not usable: it has 31 waits", `UPDATE webhook_endpoints SET retry_schedule = array_fill('1 s'::interval, '{31}')`},
		{"a wait is 00:00:00; give at most 30 waits, each more than 0 and at most 7 days", `UPDATE webhook_endpoints SET retry_schedule = '{5s,0s}'`},
		{"a wait is -00:00:05", `UPDATE webhook_endpoints SET retry_schedule = '{-5s}'`},
		{"a wait is 7 days 00:00:00.001", `UPDATE webhook_endpoints SET retry_schedule = '{7 days,7 days 1 ms}'`},
		{"a wait is null", `UPDATE webhook_endpoints SET retry_schedule = '{5s,NULL}'`},
		{"it is a list of lists", `UPDATE webhook_endpoints SET retry_schedule = '{{5s},{5s}}'`},
		{"all_organizations is null: give true or false", `UPDATE webhook_endpoints SET all_organizations = NULL`},
		{"syntax error", `UPDATE webhook_endpoints SET filter = '$.amount >>> 1'`},
		{"organization_id is null, empty or longer", `INSERT INTO webhook_endpoints (organization_id, url, headers) SELECT repeat('x', 10000), url, headers FROM webhook_endpoints`},
		{"longer than 2048 characters", `UPDATE webhook_endpoints SET url = 'https://example.com/' || repeat('x', 10000000)`},
		{"is not 16 to 256 printable", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, '` + secret + `' || E'\n')`},
		{"is not 16 to 256 printable", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, repeat('` + secret + `', 100))`},
		{"begins with sealed:", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, 'sealed:v2:` + secret + `')`},
		{"begins with sealed:", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, 'sealed:v1:' || repeat('AAAA', 1000))`},
		{"it is null", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, NULL)`},
		{"it is null", `UPDATE webhook_secrets SET secret = NULL WHERE endpoint_id = $1`},
		{"endpoint_id is null", `INSERT INTO webhook_secrets (endpoint_id, secret) SELECT nullif($1::uuid, $1::uuid), '` + secret + `'`},
		{"violates foreign key", `INSERT INTO webhook_secrets (endpoint_id, secret) SELECT gen_random_uuid(), '` + secret + `' WHERE $1::uuid IS NOT NULL`},
	} {
		var args []any
		if strings.Contains(c.sql, "$1") {
			args = []any{endpoint}
		}
		_, err := db.Pool.Exec(t.Context(), c.sql, args...)
		checkRefusal(t, err, c.want, c.sql[:min(len(c.sql), 160)])
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
			said := fmt.Sprintf("%+v", *pg)
			if strings.Contains(said, secret) || strings.Contains(said, credentials) || len(said) > 5000 {
				t.Errorf("%s: the error shows too much, or too much of it: %s", c.sql, said[:min(len(said), 500)])
			}
		}
	}

	exec(t, db.Pool, `UPDATE webhook_endpoints SET event_types = array_fill('payment.*'::text, '{100}'), description = repeat('x', 1024), max_in_flight = 1000, rate_per_second = 0.1,
		timeout = '100 ms', retry_schedule = array_fill('7 days'::interval, '{30}'), filter = '$.amount > 1000', paused_at = now()`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET timeout = '1 min', retry_schedule = '{}', filter = NULL, paused_at = NULL`)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET timeout = NULL, retry_schedule = NULL`)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret, created_at) SELECT $1, 'a secret of one''s own', NULL`, endpoint)
	refused(t, db.Pool, "has two live secrets", `INSERT INTO webhook_secrets (endpoint_id, secret) VALUES ($1, 'a secret of one''s own')`, endpoint)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret, expires_at) VALUES ($1, 'a secret of one''s own', now())`, endpoint)
	refused(t, db.Pool, "has two live secrets", `UPDATE webhook_secrets SET expires_at = NULL WHERE endpoint_id = $1`, endpoint)
	exec(t, db.Pool, `SELECT webhook_rotate_secret($1)`, endpoint)
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_secrets WHERE expires_at IS NULL OR expires_at > now()`); n != 2 {
		t.Errorf("after a rotation %d secrets are live", n)
	}
}

// A row of before can be beyond them, and is held to the rules for what is changed.
func TestBoundsOfOldRows(t *testing.T) {
	t.Parallel()
	db, _ := version4(t)
	endpoint := newEndpoint(t, db.Pool, "org_9", slices.Repeat([]string{"payment.*"}, 200)...)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET description = repeat('x', 5000) WHERE id = $1`, endpoint)
	exec(t, db.Pool, `INSERT INTO webhook_secrets (endpoint_id, secret) SELECT $1, 'a secret of one''s own' FROM generate_series(1, 20)`, endpoint)
	if err := apply(t.Context(), db.Pool, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	exec(t, db.Pool, `UPDATE webhook_endpoints SET enabled = false, url = 'https://example.com/other' WHERE id = $1`, endpoint)
	exec(t, db.Pool, `UPDATE webhook_secrets SET secret = 'sealed:v1:AAAA' WHERE endpoint_id = $1`, endpoint)
	exec(t, db.Pool, `UPDATE webhook_secrets SET expires_at = now() + interval '1 hour' WHERE endpoint_id = $1`, endpoint)
	refused(t, db.Pool, "more than 100", `UPDATE webhook_endpoints SET event_types = array_append(event_types, '*') WHERE id = $1`, endpoint)
}

// The id of an endpoint that was deleted would get what is still owed to it.
func TestAnEndpointsIDIsTheDatabases(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	owner := newRole(t, db)
	exec(t, db.Pool, `GRANT CREATE ON DATABASE `+db.Slot+` TO `+owner)
	exec(t, db.Pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+owner)
	owned := newPool(t, db, asRole(owner))
	if err := apply(t.Context(), owned, readSchema(t)); err != nil {
		t.Fatal(err)
	}
	conn := stranger(t, db)
	exec(t, db.Pool, `GRANT USAGE ON SCHEMA public TO `+conn.Config().User)
	exec(t, db.Pool, `GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints TO `+conn.Config().User)

	const insert = `INSERT INTO webhook_endpoints (id, organization_id, url) VALUES ($1, $2, 'https://example.com') RETURNING id::text`
	first := newEndpoint(t, conn, "org_1")
	exec(t, conn, `DELETE FROM webhook_endpoints`)
	if second := query[string](t, conn, insert, first, "org_2"); second == first {
		t.Error("a deleted endpoint's id was given to another organization's")
	}
	if n := query[int](t, db.Pool, `SELECT count(*) FROM webhook_endpoints e JOIN webhook_secrets s ON s.endpoint_id = e.id`); n != 1 {
		t.Errorf("%d secrets", n)
	}
	refused(t, conn, "id and organization_id cannot be changed", `UPDATE webhook_endpoints SET id = $1`, first)

	// A restore gives ids, as the owner or a superuser.
	if restored := query[string](t, owned, insert, first, "org_1"); restored != first {
		t.Errorf("the owner's id became %s", restored)
	}
	exec(t, db.Pool, `DELETE FROM webhook_endpoints`)
	if restored := query[string](t, db.Pool, insert, first, "org_1"); restored != first {
		t.Errorf("a superuser's id became %s", restored)
	}
	tx := begin(t, db.Pool)
	exec(t, tx, `SET LOCAL ROLE `+conn.Config().User)
	if given := query[string](t, tx, insert, "01999999-9999-7999-8999-999999999999", "org_1"); given == "01999999-9999-7999-8999-999999999999" {
		t.Error("a role that a superuser has put on kept its id")
	}
}

// What belongs to every organization is not for whoever writes the endpoints of one, whatever was granted.
func TestAllOrganizationsIsTheOwners(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn := stranger(t, db)
	exec(t, db.Pool, `GRANT USAGE ON SCHEMA public TO `+conn.Config().User)
	exec(t, db.Pool, `GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_endpoints TO `+conn.Config().User)
	const insert = `INSERT INTO webhook_endpoints (organization_id, url, event_types, all_organizations) VALUES ('org_1', 'https://example.com', '{webhook.*}', true) RETURNING id::text`
	const want = "only the owner of the tables"
	own := newEndpoint(t, conn, "org_1")
	refused(t, conn, want, insert)
	refused(t, conn, want, `UPDATE webhook_endpoints SET all_organizations = true WHERE id = $1`, own)

	operators := query[string](t, db.Pool, insert)
	for _, set := range []string{`url = 'https://example.com/mine'`, `event_types = '{webhook.test}'`, `all_organizations = false`} {
		refused(t, conn, want, `UPDATE webhook_endpoints SET `+set+` WHERE id = $1`, operators)
	}
	for _, sql := range []string{
		`UPDATE webhook_endpoints SET enabled = false`, `UPDATE webhook_endpoints SET paused_at = now()`, `UPDATE webhook_endpoints SET filter = '$.a == 1'`,
		`UPDATE webhook_endpoints SET headers = '{}'`, `UPDATE webhook_endpoints SET rate_per_second = 0.0001`, `DELETE FROM webhook_endpoints`,
	} {
		refused(t, conn, want, sql)
		exec(t, conn, sql+` WHERE NOT all_organizations`)
	}
	exec(t, db.Pool, `GRANT UPDATE ON webhook_state TO `+conn.Config().User)
	exec(t, conn, `UPDATE webhook_endpoints SET enabled = false, disabled_reason = 'as walhook does' WHERE id = $1`, operators)
	exec(t, db.Pool, `UPDATE webhook_endpoints SET all_organizations = false, enabled = true WHERE id = $1`, operators)
}

package faults

import (
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	outsider = "faults_outsider" // may connect, and make temporary tables
	creator  = "faults_creator"  // may also create in walhook's schema
)

// createStrangers creates the roles, and a schema that notes what they get hold of.
const createStrangers = `
REVOKE CREATE ON SCHEMA public FROM PUBLIC; -- PostgreSQL 14 grants it
CREATE ROLE ` + outsider + ` LOGIN;
CREATE ROLE ` + creator + ` LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO ` + creator + `;
CREATE SCHEMA lair;
GRANT ALL ON SCHEMA lair TO PUBLIC;
CREATE TABLE lair.loot (as_role text, what text);
GRANT ALL ON lair.loot TO PUBLIC`

// plantedOverloads fit better than pg_catalog's functions, answer like them, and note the
// role that called them.
const plantedOverloads = `
CREATE FUNCTION public.hashtextextended(text, int) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'hashtextextended'); RETURN pg_catalog.hashtextextended($1, $2::bigint); END $$;
CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'quote_ident'); RETURN pg_catalog.quote_ident($1::text); END $$;
CREATE FUNCTION public.to_char(date, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'to_char'); RETURN pg_catalog.to_char($1::timestamp, $2); END $$;
CREATE FUNCTION public.cardinality(uuid[]) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'cardinality'); RETURN pg_catalog.array_length($1, 1); END $$;
CREATE FUNCTION public.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'unnest'); RETURN QUERY SELECT pg_catalog.unnest($1); END $$;
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, 'format'); RETURN pg_catalog.format($1, $2); END $$;
CREATE FUNCTION public.overlaps(text[], text[]) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, '&&'); RETURN $1 OPERATOR(pg_catalog.&&) $2; END $$;
CREATE OPERATOR public.&& (FUNCTION = public.overlaps, LEFTARG = text[], RIGHTARG = text[]);
CREATE FUNCTION public.times(bigint, interval) RETURNS interval LANGUAGE plpgsql AS $$ BEGIN
	INSERT INTO lair.loot VALUES (current_user, '*'); RETURN $1::float8 OPERATOR(pg_catalog.*) $2; END $$;
CREATE OPERATOR public.* (FUNCTION = public.times, LEFTARG = bigint, RIGHTARG = interval)`

// strangers has roles without rights try what they can, under load: one with TEMP only, one
// that may create in walhook's schema. Neither gets a right, neither's code runs as
// walhook, and nothing is lost or late.
func strangers(t *testing.T, s Setup) {
	lasts := lasting(15 * time.Second)
	s.Role = true
	x := newTrial(t, s)
	x.exec(createStrangers)
	created := x.connectAs(t, creator)
	if _, err := created.PgConn().Exec(t.Context(), plantedOverloads).ReadAll(); err != nil {
		t.Fatal(err)
	}
	first := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: lasts})
	tried := 0
	for _, role := range []string{outsider, creator} {
		tried += x.tryEverything(t, role)
	}
	if _, err := first.stop(time.Minute); err != nil {
		t.Fatal(err)
	}
	again := exec.CommandContext(t.Context(), s.Binary, "init") // again, now that the overloads exist
	again.Env = x.env("init")
	if output, err := again.CombinedOutput(); err != nil {
		t.Fatalf("walhook init: %v: %s", err, output)
	}
	x.exec(`SELECT webhook_add_partition(p, '2020-01-01') FROM pg_catalog.unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS p`)
	x.start()
	<-done
	x.drain(time.Minute)
	for _, role := range []string{outsider, creator} {
		tried += x.tryEverything(t, role)
	}
	var loot string
	if err := x.pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(DISTINCT as_role || ': ' || what, ', '), '') FROM lair.loot WHERE as_role = '`+roleName+`'`).Scan(&loot); err != nil {
		t.Fatal(err)
	}
	x.expect(loot == "", "strangers' code ran as walhook's role: %s", loot)
	x.finish(time.Minute, fmt.Sprintf("tried=%d", tried))
}

func (x *Trial) connectAs(t *testing.T, role string) *pgx.Conn {
	t.Helper()
	u, err := url.Parse(x.url())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

// tryEverything has a role try to read and write each table and view, to call each
// SECURITY DEFINER function, and to put each trigger function on a table of its own, with
// casts of its own. It returns the number of tries.
func (x *Trial) tryEverything(t *testing.T, role string) (tried int) {
	t.Helper()
	conn := x.connectAs(t, role)
	names := func(sql string) (names []string) {
		rows, err := x.pool.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(names) == 0 {
			t.Fatalf("%s: %d, %v", sql, len(names), err)
		}
		return names
	}
	attempt := func(sql string) {
		tried++
		_, err := conn.Exec(t.Context(), sql)
		pg, ok := errors.AsType[*pgconn.PgError](err)
		x.expect(ok && pg.Code == "42501", "%s may do %s: %v", role, sql, err) // insufficient_privilege
	}
	for _, table := range names(`SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND relname LIKE 'webhook%'`) {
		attempt(`SELECT * FROM public.` + table)
	}
	for _, table := range names(`SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname LIKE 'webhook%'`) {
		attempt(`DELETE FROM public.` + table)
	}
	for _, call := range names(`SELECT format('%I(%s)', p.proname, (SELECT string_agg('NULL::' || a::regtype, ', ') FROM unnest(p.proargtypes) AS a))
		FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'webhook%' AND p.prosecdef AND p.prorettype <> 'trigger'::regtype`) {
		attempt(`SELECT public.` + call)
	}
	bait := strings.TrimPrefix(role, "faults_") + fmt.Sprint(time.Now().UnixNano())
	for _, sql := range []string{
		`CREATE TYPE lair.` + bait + ` AS (x int)`,
		`CREATE FUNCTION lair.steal(lair.` + bait + `) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO lair.loot VALUES (current_user, 'a cast'); RETURN ''; END $$`,
		`CREATE CAST (lair.` + bait + ` AS text) WITH FUNCTION lair.steal(lair.` + bait + `) AS IMPLICIT`,
		`CREATE TEMP TABLE trap (id lair.` + bait + `, organization_id lair.` + bait + `)`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for _, function := range names(`SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'webhook%' AND prorettype = 'trigger'::regtype`) {
		attempt(`CREATE TRIGGER trap BEFORE INSERT ON trap FOR EACH ROW EXECUTE FUNCTION public.` + function + `()`)
	}
	attempt(`SET ROLE ` + roleName)
	return tried
}

// noisyStrangers has a role that may only connect hold every lock that it can get, notify
// ten thousand times a second, and write as many messages like those of walhook's own
// triggers into the WAL, while walhook starts and delivers.
func noisyStrangers(t *testing.T, s Setup) {
	const perSecond, times, mayGrow, lateAtMost = 10_000, 50, 64 << 20, 10 * time.Second
	x := newTrial(t, s)
	x.exec(`CREATE ROLE ` + outsider + ` LOGIN`)
	holder := x.connectAs(t, outsider)
	for _, key := range []string{"walhook schema", "walhook environment", "walhook", slotName} {
		if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_lock(hashtextextended($1, 0))`, key); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"webhook_state", "webhook_outbox", "webhook_deliveries"} {
		_, err := holder.Exec(t.Context(), `LOCK TABLE `+table+` IN ACCESS SHARE MODE`)
		x.expect(err != nil, "a role that may only connect can lock %s", table)
	}
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: min(*rate, 100)})
	defer stop()
	<-time.After(2 * time.Second)
	idle := x.resident(p)
	before, began, most, said := x.cpu(p), time.Now(), idle, 0
	noise := x.connectAs(t, outsider)
	tick := time.NewTicker(time.Second / times)
	defer tick.Stop()
	for time.Since(began) < lasting(15*time.Second) {
		<-tick.C
		// Of equal notifications of one transaction only one is sent.
		if _, err := noise.Exec(t.Context(), `SELECT pg_notify('walhook', n::text), pg_logical_emit_message(false, 'walhook', 'look') FROM generate_series(1, $1::int) AS n`,
			perSecond/times); err != nil {
			t.Fatal(err)
		}
		said += perSecond / times
		most = max(most, x.resident(p))
	}
	took := time.Since(began)
	cores := (x.cpu(p) - before).Seconds() / took.Seconds()
	stop()
	late := x.drain(lateAtMost)
	x.expect(most-idle < mayGrow, "its memory grew by %d MiB", (most-idle)>>20)
	x.finish(lateAtMost, fmt.Sprintf("said=%.0f/s cores=%.2f memory=%d to %dMiB late=%s", float64(said)/took.Seconds(), cores, idle>>20, most>>20, late.Round(time.Millisecond)))
}

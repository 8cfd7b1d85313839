package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// This file looks at what no start needs, and an operator should know. Preflight has what a
// start needs. Every statement reads catalogues, or a bounded part of a small table; one counts
// the endpoints.

// inspectWithin bounds one look: catalogues answer in milliseconds, unless somebody has them
// locked.
const inspectWithin = 5 * time.Second

// A look is one check of Inspect.
type look struct {
	name string
	at   func(context.Context) (Check, error)
}

// Inspect checks what does not stop a start. A check that could not look is a warning.
func (s *Store) Inspect(ctx context.Context) (checks []Check) {
	looks := []look{{"minor version", s.inspectVersion}, {"clock", s.inspectClock}, {"roles", s.inspectRole}}
	var installed bool
	if err := s.pool.QueryRow(ctx, `SELECT pg_catalog.to_regclass('webhook_outbox') IS NOT NULL`).Scan(&installed); err == nil && installed {
		looks = append(looks, look{"grants", s.inspectGrants}, look{"row security", s.inspectRowSecurity}, look{"objects of others", s.inspectForeign},
			look{"other publications", s.inspectPublications}, look{"unused slots", s.inspectSlots}, look{"partitions ahead", s.inspectPartitions},
			look{"endpoints", s.inspectEndpoints}, look{"sealing", s.inspectSealing}, look{"schema", s.inspectSchema})
	}
	for _, l := range looks {
		checks = append(checks, s.inspect(ctx, l))
	}
	return checks
}

func (s *Store) inspect(ctx context.Context, l look) Check {
	ctx, cancel := context.WithTimeout(ctx, inspectWithin)
	defer cancel()
	c, err := l.at(ctx)
	if err != nil {
		return warn(l.name, "could not look: "+err.Error(), "run walhook doctor as walhook_run or as the owner of the tables")
	}
	return c
}

func (s *Store) inspectVersion(ctx context.Context) (Check, error) {
	var version int
	err := s.pool.QueryRow(ctx, `SELECT pg_catalog.current_setting('server_version_num')::int`).Scan(&version)
	return minorVersion(version), err
}

// goodSkew is far from maxSkew, at which walhook sends nothing. NTP keeps clocks within
// milliseconds.
const goodSkew = 5 * time.Second

func (s *Store) inspectClock(ctx context.Context) (Check, error) {
	conn, err := s.pool.Acquire(ctx) // connecting is no part of the answer's way
	if err != nil {
		return Check{}, err
	}
	defer conn.Release()
	var theirs time.Time
	began := time.Now()
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.clock_timestamp()`).Scan(&theirs); err != nil {
		return Check{}, err
	}
	return clockSkew(began, time.Now(), theirs), nil
}

// clockSkew judges the time that the database told between two times of this machine's.
func clockSkew(began, ended, theirs time.Time) Check {
	const name = "clock"
	way := ended.Sub(began) / 2
	skew := theirs.Sub(began.Add(way))
	if off := skew.Abs(); off > goodSkew+way {
		word := map[bool]string{true: "ahead of", false: "behind"}[skew > 0]
		return warn(name, fmt.Sprintf("the database's is %s %s this machine's", off.Round(time.Second), word), "run NTP on both (timedatectl set-ntp true): from %s on, walhook sends nothing", maxSkew)
	}
	return good(name, "this machine and the database agree")
}

func (s *Store) inspectRole(ctx context.Context) (Check, error) {
	const name = "roles"
	var user string
	var superuser bool
	var missing []string
	err := s.pool.QueryRow(ctx, `
SELECT pg_catalog.quote_ident(current_user::text), (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user),
       array(SELECT w FROM pg_catalog.unnest('{walhook_owner,walhook_run,walhook_app,walhook_backend,walhook_ops,walhook_tenant}'::text[]) AS w WHERE pg_catalog.to_regrole(w) IS NULL)`).
		Scan(&user, &superuser, &missing)
	switch {
	case err != nil:
		return Check{}, err
	case superuser && len(missing) > 0:
		return warn(name, user+" is a superuser, and walhook needs far less", "run `walhook init --roles`, give walhook_run a password (ALTER ROLE walhook_run PASSWORD '...'), and connect as walhook_run"), nil
	case superuser:
		return warn(name, user+" is a superuser, and walhook needs far less", "give walhook_run a password (ALTER ROLE walhook_run PASSWORD '...'), and connect as walhook_run"), nil
	}
	return good(name, user+" is no superuser"), nil
}

// A finding is one thing that is wrong, and the SQL that mends it.
type finding struct{ What, Fix string }

// maxFindings bounds how many findings a check shows: the rest follows after these are mended.
const maxFindings = 10

// findings makes a check of what a statement finds. PostgreSQL sorts them.
func (s *Store) findings(ctx context.Context, name, none, sql string, args pgx.NamedArgs) (Check, error) {
	rows, err := s.pool.Query(ctx, sql, args)
	if err != nil {
		return Check{}, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[finding])
	if err != nil || len(found) == 0 {
		return good(name, none), err
	}
	var what, fix []string
	for _, f := range found[:min(len(found), maxFindings)] {
		what = append(what, f.What)
		if !slices.Contains(fix, f.Fix) {
			fix = append(fix, f.Fix)
		}
	}
	if more := len(found) - maxFindings; more > 0 {
		what = append(what, fmt.Sprintf("and %d more", more))
	}
	return warn(name, strings.Join(what, "; "), "%s", strings.Join(fix, "; ")), nil
}

// A slot does not say which publication it is for, so every unused one of pgoutput in this
// database is a candidate. Those in webhook_state are "other slots".
const selectUnusedSlots = `
SELECT pg_catalog.format('%s%s is unused and keeps %s of WAL; drop it if nobody will read it again', r.slot_name, CASE WHEN r.database <> current_database() THEN ' of database ' || pg_catalog.quote_ident(r.database) ELSE '' END,
                         pg_size_pretty(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, r.restart_lsn))),
       pg_catalog.format('SELECT pg_drop_replication_slot(%L)', r.slot_name::text)
FROM pg_catalog.pg_replication_slots AS r
WHERE NOT r.active AND r.restart_lsn IS NOT NULL AND r.plugin = 'pgoutput'
  AND r.slot_name::text <> @slot::text AND r.slot_name::text <> ALL (@known::text[])
  AND (r.database = current_database() OR starts_with(r.slot_name::text, 'walhook'))
ORDER BY 1`

func (s *Store) inspectSlots(ctx context.Context) (Check, error) {
	var known []string
	if err := s.pool.QueryRow(ctx, `SELECT array(SELECT w.slot FROM webhook_state AS w)`).Scan(&known); err != nil {
		return Check{}, err
	}
	return s.findings(ctx, "unused slots", "none", selectUnusedSlots, pgx.NamedArgs{"slot": s.slot, "known": known})
}

// inspectPartitions warns below a week: see keepPartitions in the command.
func (s *Store) inspectPartitions(ctx context.Context) (Check, error) {
	const name, few = "partitions ahead", 7
	days, err := s.PartitionsAhead(ctx)
	if err != nil {
		return Check{}, err
	}
	found := fmt.Sprintf("%d days", days)
	if days < few {
		return warn(name, found+"; later events go into the DEFAULT partition, which cannot be dropped by day",
			"SELECT p.made FROM generate_series(1, %d) AS n, unnest('{webhook_outbox,webhook_deliveries}'::text[]) AS t, webhook_add_partition(t, (now() AT TIME ZONE 'UTC')::date + n) AS p; "+
				"walhook run does the same every ten minutes, and its log says why it could not", partitionsAhead), nil
	}
	return good(name, found), nil
}

// The limit is the one that the trigger of webhook_endpoints applies. 100,000 endpoints take PostgreSQL 20 ms.
const selectCrowded = `
SELECT e.organization_id, count(*), most.n, count(*) OVER ()
FROM webhook_endpoints AS e CROSS JOIN (SELECT coalesce(max(s.max_endpoints), 1000) AS n FROM webhook_state AS s) AS most
GROUP BY e.organization_id, most.n HAVING count(*) * 10 >= most.n::bigint * 9 ORDER BY 2 DESC, 1 LIMIT @most`

// inspectEndpoints warns of organizations that have nine tenths of WALHOOK_MAX_ENDPOINTS, before
// their next INSERT is refused.
func (s *Store) inspectEndpoints(ctx context.Context) (Check, error) {
	const name = "endpoints"
	rows, err := s.pool.Query(ctx, selectCrowded, pgx.NamedArgs{"most": maxFindings})
	if err != nil {
		return Check{}, err
	}
	var organization string
	var n, most, total int
	var crowded []string
	if _, err := pgx.ForEachRow(rows, []any{&organization, &n, &most, &total}, func() error {
		crowded = append(crowded, fmt.Sprintf("%q has %d of %d", organization, n, most))
		return nil
	}); err != nil {
		return Check{}, err
	}
	if len(crowded) == 0 {
		return good(name, "no organization is near WALHOOK_MAX_ENDPOINTS"), nil
	}
	if more := total - len(crowded); more > 0 {
		crowded = append(crowded, fmt.Sprintf("and %d more", more))
	}
	return warn(name, "organizations at or near WALHOOK_MAX_ENDPOINTS, beyond which an INSERT is refused: "+strings.Join(crowded, ", "),
		"delete endpoints that they no longer need (DELETE FROM webhook_endpoints WHERE id = ...), or restart walhook with a larger WALHOOK_MAX_ENDPOINTS"), nil
}

// Of the secrets that CheckSecrets tries: how many each key has sealed.
const selectSealedWith = `
SELECT CASE WHEN starts_with(secret, 'sealed:v2:') THEN split_part(secret, ':', 3) WHEN starts_with(secret, 'sealed:') THEN 'of an earlier walhook' ELSE '' END, count(*)
FROM ((SELECT * FROM webhook_secrets ORDER BY id LIMIT @limit) UNION (SELECT * FROM webhook_secrets ORDER BY id DESC LIMIT @limit)) AS s
WHERE expires_at IS NULL OR expires_at > now() GROUP BY 1 ORDER BY 1`

func (s *Store) inspectSealing(ctx context.Context) (Check, error) {
	const name = "sealing"
	rows, err := s.pool.Query(ctx, selectSealedWith, pgx.NamedArgs{"limit": checkedSecrets})
	if err != nil {
		return Check{}, err
	}
	var key string
	var n, plain, total int
	var others []string
	ours := ""
	if s.sealer != nil {
		ours = s.sealer.keys[0].id
	}
	_, err = pgx.ForEachRow(rows, []any{&key, &n}, func() error {
		total += n
		switch {
		case key == "":
			plain = n
		case key != ours:
			others = append(others, fmt.Sprintf("%d with the key %s", n, key))
		}
		return nil
	})
	const reseal = "`walhook secret reseal`, with WALHOOK_SECRET_KEY_OLD set to the key that sealed them; walhook run does it too"
	switch {
	case err != nil:
		return Check{}, err
	case s.sealer == nil && plain > 0:
		return warn(name, fmt.Sprintf("%d signing secrets are not sealed: whoever reads the table or a backup can sign", plain), "set WALHOOK_SECRET_KEY to what `openssl rand -base64 32` prints, and keep it as safe as the database"), nil
	case len(others) > 0:
		return warn(name, "sealed: "+strings.Join(others, ", ")+"; "+s.sealer.have(), reseal), nil
	case plain > 0:
		return warn(name, fmt.Sprintf("%d signing secrets are not sealed yet", plain), reseal), nil
	case s.sealer == nil:
		return good(name, "no signing secrets yet; WALHOOK_SECRET_KEY is not set, so they will not be sealed"), nil
	case total == 0:
		return good(name, "no signing secrets yet; the key "+ours+" will seal them"), nil
	}
	return good(name, "the key "+ours+" has sealed them"), nil
}

// What ORMs take for theirs: they read all of a schema, public unless told otherwise, into
// their models, and some drop what their models lack.
const selectNeighbours = `
SELECT pg_catalog.quote_ident(n.nspname), n.nspname = 'public', coalesce(pg_catalog.string_agg(c.relname::text, ', '::text ORDER BY c.relname) FILTER (WHERE c.place <= @most::int), '')
FROM pg_catalog.pg_namespace AS n LEFT JOIN LATERAL (
    SELECT c.relname, row_number() OVER (ORDER BY c.relname) AS place FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname::text <> ALL (@tables::text[])) AS c ON true
WHERE n.nspname = current_schema() GROUP BY n.nspname`

func (s *Store) inspectSchema(ctx context.Context) (Check, error) {
	const name = "schema"
	var schema, neighbours string
	var public bool
	err := s.pool.QueryRow(ctx, selectNeighbours, pgx.NamedArgs{"tables": s.made.tables, "most": maxFindings}).Scan(&schema, &public, &neighbours)
	switch {
	case err != nil:
		return Check{}, err
	case public || neighbours != "":
		return warn(name, fmt.Sprintf("walhook's tables share schema %s with %s: an ORM takes them for its own, and may drop them in a migration", schema, cmp.Or(neighbours, "whatever comes there")),
			"a new installation: WALHOOK_SCHEMA=webhooks; this one: have the ORM leave out webhook_*"), nil
	}
	return good(name, schema+" has walhook's tables alone"), nil
}

package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// This file reads what walhook has to know before it creates anything: a first run that fails
// half way must not leave tables that belong to the wrong role.

const selectServer = `
SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('wal_level'), pg_catalog.current_setting('max_wal_senders')::int,
       (SELECT pg_catalog.count(*)::int FROM pg_catalog.pg_replication_slots), pg_catalog.current_setting('max_replication_slots')::int,
       pg_catalog.current_setting('max_slot_wal_keep_size'), pg_catalog.quote_ident(current_user::text), pg_catalog.quote_ident(pg_catalog.current_database()::text),
       pg_catalog.quote_ident(@schema::text), coalesce(pg_catalog.quote_ident(n.nspname::text), ''),
       pg_catalog.has_database_privilege(pg_catalog.current_database()::text, 'CREATE'::text),
       coalesce(pg_catalog.has_schema_privilege(n.oid, 'CREATE'::text), false),
       pg_catalog.to_regprocedure('webhook_schema_version()') IS NOT NULL
FROM (SELECT coalesce(nullif(@schema::text, ''), pg_catalog.current_schema()::text) AS name) AS here LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname::text = here.name`

// A function counts only if its owner owns tables too: a function of the same name with other
// arguments is somebody else's. A superuser may replace only its own objects here: what it
// created would be its own, unless it applies the schema as the owner (see applyAs).
const selectOwners = `
WITH me AS MATERIALIZED (
    SELECT r.oid, r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user
), made AS MATERIALIZED (
    SELECT CASE c.relkind::text WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind, c.oid::regclass::text AS name, c.relowner AS owner
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema() AND c.relkind::text IN ('r', 'p', 'v')
      AND (c.relname::text = ANY (@tables::text[]) OR c.oid IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i
           WHERE i.inhparent IN (pg_catalog.to_regclass('webhook_outbox')::oid, pg_catalog.to_regclass('webhook_deliveries')::oid)))
)
SELECT o.kind, o.name, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(o.owner)::text), o.owner = me.oid OR NOT me.rolsuper AND pg_catalog.pg_has_role(o.owner, 'USAGE'::text), me.rolsuper
FROM me CROSS JOIN (
    SELECT * FROM made
    UNION ALL
    SELECT 'FUNCTION', p.oid::regprocedure::text, p.proowner
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = pg_catalog.current_schema() AND p.proname::text = ANY (@functions::text[]) AND p.proowner IN (SELECT made.owner FROM made)
) AS o`

// Whether the webhook_outbox that is there can be walhook's. The schema is applied in one
// transaction and never adds these columns, so without them, or without any outbox, what has
// walhook's names is somebody else's.
const selectOutbox = `
SELECT c.relkind::text = 'p' AND NOT EXISTS (
    SELECT FROM pg_catalog.unnest(@columns::text[]) AS name
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname::text = name AND a.attnum > 0 AND NOT a.attisdropped))
FROM pg_catalog.pg_class AS c WHERE c.oid = pg_catalog.to_regclass('webhook_outbox')::oid`

// readTaken reads what keeps the schema from being applied: an object with one of its names.
func (s *Store) readTaken(ctx context.Context, f *facts) error {
	var ours bool
	err := s.pool.QueryRow(ctx, selectOutbox, pgx.NamedArgs{"columns": requiredColumns}).Scan(&ours)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		if f.installed == 0 && len(f.made) > 0 {
			f.taken = f.made[0].name
		}
	case err != nil:
		return fmt.Errorf("read the columns of webhook_outbox: %w", err)
	case !ours:
		f.taken = "webhook_outbox"
	}
	return nil
}

// What the publication includes: all tables, our outbox, others. Schemas (PostgreSQL 15) are
// found as their tables.
const selectPublication = `
SELECT p.puballtables, coalesce(bool_or(t.oid = o.oid AND t.named), false), coalesce(o.oid::regclass::text, ''),
       coalesce(string_agg(t.oid::regclass::text, ', ') FILTER (WHERE t.oid IS DISTINCT FROM o.oid), ''),
       quote_ident(pg_get_userbyid(p.pubowner)::text), pg_has_role(p.pubowner, 'USAGE'::text)
FROM pg_publication p
CROSS JOIN (SELECT to_regclass('webhook_outbox')::oid AS oid) o
LEFT JOIN LATERAL (
    SELECT r.prrelid AS oid, true AS named FROM pg_publication_rel r WHERE r.prpubid = p.oid
    UNION ALL
    SELECT g.relid::oid, false FROM pg_catalog.pg_get_publication_tables(p.pubname::text) g
    WHERE NOT p.puballtables AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid)
) t ON true
WHERE p.pubname = 'walhook' GROUP BY p.oid, p.puballtables, p.pubowner, o.oid`

func (s *Store) readPublication(ctx context.Context) (p publicationFacts, err error) {
	err = s.pool.QueryRow(ctx, selectPublication).Scan(&p.all, &p.carries, &p.outbox, &p.others, &p.owner, &p.ours)
	if errors.Is(err, pgx.ErrNoRows) {
		return publicationFacts{}, nil
	}
	if err != nil {
		return p, fmt.Errorf("read publication %s: %w", Publication, err)
	}
	p.exists = true
	return p, nil
}

// Columns newer than PostgreSQL 14 are read as JSON.
const selectSlot = `
SELECT coalesce(s.active_pid, 0), coalesce(s.plugin::text, 'physical'), coalesce(s.database::text, ''),
       coalesce(s.plugin::text = 'pgoutput' AND s.database = current_database() AND NOT s.temporary, false),
       coalesce(s.wal_status = 'lost', false) OR (pg_catalog.to_jsonb(s) ->> 'invalidation_reason'::text) IS NOT NULL
FROM pg_replication_slots s WHERE s.slot_name::text = $1::text`

func (s *Store) readSlot(ctx context.Context) (f slotFacts, err error) {
	err = s.pool.QueryRow(ctx, selectSlot, s.slot).Scan(&f.pid, &f.plugin, &f.database, &f.ours, &f.lost)
	if errors.Is(err, pgx.ErrNoRows) {
		return slotFacts{}, nil
	}
	if err != nil {
		return f, fmt.Errorf("read slot %s: %w", s.slot, err)
	}
	f.exists = true
	return f, nil
}

const selectOtherSlots = `
SELECT r.slot_name::text, coalesce(r.active_pid, 0), coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), r.restart_lsn)), 'an unknown amount')
FROM webhook_state s JOIN pg_replication_slots r ON r.slot_name::text = s.slot
WHERE s.slot <> @slot::text AND r.database = current_database() AND r.plugin::text = 'pgoutput'
ORDER BY r.active_pid IS NULL, r.slot_name`

// Preflight checks whether walhook can do what the caller intends, and changes nothing. An
// error means that it could not find out.
func (s *Store) Preflight(ctx context.Context, want Intent) ([]Check, error) {
	var f facts
	var installed bool
	err := s.pool.QueryRow(ctx, selectServer, pgx.NamedArgs{"schema": want.Schema}).Scan(&f.version, &f.versionText, &f.recovery, &f.walLevel, &f.maxSenders, &f.slots, &f.maxSlots, &f.walKept,
		&f.user, &f.database, &f.wanted, &f.schema, &f.createDatabase, &f.createSchema, &installed)
	if err != nil {
		return nil, fmt.Errorf("read the server's settings: %w", err)
	}
	if f.version < oldestServer { // the statements below need a newer one
		return []Check{f.server()}, nil
	}
	for _, read := range []func(context.Context, *facts) error{s.readObjects, s.readNames} {
		if err := read(ctx, &f); err != nil {
			return nil, err
		}
	}
	if installed {
		if err := s.readState(ctx, &f); err != nil {
			return nil, err
		}
	}
	if err := s.readTaken(ctx, &f); err != nil {
		return nil, err
	}
	return assess(&f, s.slot, want), nil
}

// readObjects reads which objects of schema.sql exist, and their owners.
func (s *Store) readObjects(ctx context.Context, f *facts) error {
	if f.incomplete = s.compare(ctx, s.made); f.incomplete != nil && !errors.Is(f.incomplete, ErrNotPrepared) {
		return f.incomplete
	}
	found, err := s.extras(ctx, s.made)
	if err != nil {
		return err
	}
	f.quick, f.slow = bySpeed(found)
	if f.applyAs, err = s.applyAs(ctx); err != nil {
		return err
	}
	rows, err := s.pool.Query(ctx, selectOwners, pgx.NamedArgs{"tables": append(s.made.tables, s.made.views...), "functions": s.made.functions})
	if err != nil {
		return fmt.Errorf("read the owners of the tables: %w", err)
	}
	var m madeObject
	_, err = pgx.ForEachRow(rows, []any{&m.kind, &m.name, &m.owner, &m.ours, &f.superuser}, func() error {
		f.made = append(f.made, m)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the owners of the tables: %w", err)
	}
	f.creators, f.revokeCreate, err = s.Makers(ctx)
	return err
}

// readNames reads the publication and the slot that have our names.
func (s *Store) readNames(ctx context.Context, f *facts) (err error) {
	if f.publication, err = s.readPublication(ctx); err != nil {
		return err
	}
	f.slot, err = s.readSlot(ctx)
	return err
}

// readState reads the installed version, the stored environment and other slots.
func (s *Store) readState(ctx context.Context, f *facts) error {
	var err error
	if f.installed, err = s.Installed(ctx); err != nil {
		return err
	}
	if err := s.pool.QueryRow(ctx, selectEnvironment).Scan(&f.environment); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		if hasCode(err, "42P01", "42501", "42703") { // missing, or this role may not read it: CheckSchema reports that
			return nil
		}
		return fmt.Errorf("read the environment in webhook_state: %w", err)
	}
	if f.recovery {
		return nil
	}
	rows, err := s.pool.Query(ctx, selectOtherSlots, pgx.NamedArgs{"slot": s.slot})
	if err != nil {
		return fmt.Errorf("look for other slots: %w", err)
	}
	var o otherSlot
	_, err = pgx.ForEachRow(rows, []any{&o.name, &o.pid, &o.kept}, func() error {
		f.others = append(f.others, o)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for other slots: %w", err)
	}
	return nil
}

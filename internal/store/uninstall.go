package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file drops what init created, and nothing else: a slot, a publication or a table of
// the same name may be somebody else's.

// slotToDrop reports whether the slot exists. It returns an error if the slot is in use, or
// cannot belong to this database's walhook.
func (s *Store) slotToDrop(ctx context.Context) (exists bool, err error) {
	f, err := s.readSlot(ctx)
	switch {
	case err != nil || !f.exists:
		return false, err
	case !f.ours:
		return false, fmt.Errorf("%w: slot %s does not belong to this database's walhook (plugin %s, database %q) and was not dropped. Connect to the database of the walhook that you mean, "+
			"or set WALHOOK_SLOT to its slot", ErrNotPrepared, s.slot, f.plugin, f.database)
	case f.pid != 0:
		return false, fmt.Errorf("slot %s is in use by pid %d: stop that walhook first", s.slot, f.pid)
	}
	return true, nil
}

// DropSlot drops the replication slot, if there is one.
func (s *Store) DropSlot(ctx context.Context) (dropped bool, err error) {
	if exists, err := s.slotToDrop(ctx); !exists || err != nil {
		return false, err
	}
	_, err = s.pool.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, s.slot)
	switch {
	case hasCode(err, "42704"): // undefined_object: another uninstall was faster
		return false, nil
	case err != nil:
		return false, fmt.Errorf("drop slot %s: %w", s.slot, err)
	}
	return true, nil
}

// DropPublication removes the outbox from the publication, and drops the publication if it has
// nothing else. It returns a line about what it did.
func (s *Store) DropPublication(ctx context.Context) (did string, err error) {
	p, err := s.readPublication(ctx)
	do, none := "DROP PUBLICATION "+Publication, "there is no publication "+Publication
	switch {
	case err != nil:
		return "", err
	case !p.exists:
		return none, nil
	case p.all:
		return "publication " + Publication + " was kept: it is FOR ALL TABLES, so it is not walhook's", nil
	case !p.carries && p.others != "":
		return fmt.Sprintf("publication %s was kept: it includes %s and not walhook's outbox", Publication, p.others), nil
	case p.others != "":
		do = fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s", Publication, p.outbox)
		did = fmt.Sprintf("%s removed from publication %s, which also includes %s", p.outbox, Publication, p.others)
	default:
		did = "publication " + Publication + " dropped"
	}
	_, err = s.pool.Exec(ctx, do)
	switch {
	case hasCode(err, "42704"): // likewise
		return none, nil
	case err != nil:
		return "", fmt.Errorf("%s: %w", do, err)
	}
	return did, nil
}

// Every object in walhook's schema that has a name from schema.sql. webhook_schema_version()
// is made last, and its owner is the owner that all must have.
const selectMade = `
WITH home AS MATERIALIZED (
    SELECT p.pronamespace AS schema, p.proowner AS owner FROM pg_proc p WHERE p.oid = to_regprocedure('webhook_schema_version()')::oid
)
SELECT CASE c.relkind::text WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass::text, quote_ident(pg_get_userbyid(c.relowner)::text), quote_ident(pg_get_userbyid(home.owner)::text),
       c.relname::text NOT IN ('webhook_outbox', 'webhook_deliveries') OR c.relkind::text = 'p'
FROM home JOIN pg_class c ON c.relnamespace = home.schema
WHERE c.relname::text = ANY (@tables::text[] OPERATOR(pg_catalog.||) @views::text[]) AND c.relkind::text IN ('r', 'p', 'v', 'f', 'm')
UNION ALL
SELECT 'FUNCTION', p.oid::regprocedure::text, quote_ident(pg_get_userbyid(p.proowner)::text), quote_ident(pg_get_userbyid(home.owner)::text), true
FROM home JOIN pg_proc p ON p.pronamespace = home.schema
WHERE p.proname::text = ANY (@functions::text[]) AND p.proowner = home.owner`

// readTables returns what is to be dropped, by kind. It returns an error if a table with one
// of our names has another owner or shape, because it may not be walhook's.
func (s *Store) readTables(ctx context.Context, schema string) (map[string][]string, error) {
	names := readManifest(schema)
	rows, err := s.pool.Query(ctx, selectMade, pgx.NamedArgs{"tables": names.tables, "views": names.views, "functions": names.functions})
	if err != nil {
		return nil, fmt.Errorf("look for walhook's tables: %w", err)
	}
	made := map[string][]string{}
	var kind, name, owner, expected string
	var shape bool
	_, err = pgx.ForEachRow(rows, []any{&kind, &name, &owner, &expected, &shape}, func() error {
		switch {
		case !shape:
			return fmt.Errorf("%w: %s is not partitioned, so it is not walhook's; nothing was dropped", ErrNotPrepared, name)
		case owner != expected:
			return fmt.Errorf("%w: %s belongs to %s, but walhook's objects to %s; nothing was dropped. If it is walhook's: ALTER TABLE %[2]s OWNER TO %[4]s",
				ErrNotPrepared, name, owner, expected)
		}
		made[kind] = append(made[kind], name)
		return nil
	})
	return made, err
}

// The schema of walhook's tables, if it is not the session's.
const selectElsewhere = `
SELECT quote_ident(n.nspname::text)
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = 'walhook' AND c.relname = 'webhook_outbox' AND to_regclass('webhook_outbox') IS NULL`

// notElsewhere returns an error if the session's schema has no outbox, and the publication
// includes another schema's: the slot would be dropped, and everything else stay.
func (s *Store) notElsewhere(ctx context.Context) error {
	var schema string
	err := s.pool.QueryRow(ctx, selectElsewhere).Scan(&schema)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for walhook's schema: %w", err)
	}
	return fmt.Errorf("%w: walhook's tables are in schema %s; nothing was dropped. Set WALHOOK_SCHEMA to that schema", ErrNotPrepared, schema)
}

// MayUninstall checks, before anything is dropped, that everything that is to be dropped is
// this walhook's and not in use.
func (s *Store) MayUninstall(ctx context.Context, schema string, tables bool) error {
	if _, err := s.slotToDrop(ctx); err != nil {
		return err
	}
	if err := s.notElsewhere(ctx); err != nil {
		return err
	}
	if !tables {
		return nil
	}
	_, err := s.readTables(ctx, schema)
	return err
}

// DropTables drops all objects of the schema, with their contents, in one transaction. It
// returns false if there are none. If an object of the application depends on one of them (a
// view, a column's default), nothing is dropped, and the error names that object. It does not
// wait for transactions of the application, because later ones would queue behind it. each is
// called after each partition, of which years may be there: that is what takes long, and it is
// undone if the rest fails.
func (s *Store) DropTables(ctx context.Context, schema string, each func(done, total int)) (dropped bool, err error) {
	made, err := s.readTables(ctx, schema)
	if err != nil || len(made) == 0 {
		return false, err
	}
	partitions, err := s.partitions(ctx)
	if err != nil {
		return false, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, prepareRead); err != nil {
			return err
		}
		drop := func(kind string, names ...string) error {
			if len(names) == 0 {
				return nil
			}
			_, err := tx.Exec(ctx, "DROP "+kind+" "+strings.Join(names, ", "))
			return err
		}
		if err := drop("VIEW", made["VIEW"]...); err != nil {
			return err
		}
		for i, name := range partitions {
			if err := drop("TABLE", name); err != nil {
				return err
			}
			each(i+1, len(partitions))
		}
		if err := drop("TABLE", made["TABLE"]...); err != nil {
			return err
		}
		return drop("FUNCTION", made["FUNCTION"]...)
	})
	if err == nil {
		return true, nil
	}
	if left, again := s.readTables(ctx, schema); again == nil && len(left) == 0 { // another uninstall was faster
		return false, nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Detail != "" {
		return false, fmt.Errorf("drop walhook's tables: %w: %s", err, pg.Detail)
	}
	return false, fmt.Errorf("drop walhook's tables: %w", err)
}

// Those that readTables drops by their names, the DEFAULT partitions, are left to it.
const selectPartitions = `
SELECT i.inhrelid::regclass::text FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent IN (to_regclass('webhook_outbox')::oid, to_regclass('webhook_deliveries')::oid) AND c.relname::text !~ '_default$' ORDER BY c.relname`

func (s *Store) partitions(ctx context.Context) ([]string, error) {
	rows, err := s.pool.Query(ctx, selectPartitions)
	if err != nil {
		return nil, fmt.Errorf("look for partitions: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for partitions: %w", err)
	}
	return names, nil
}

const selectDatabase = `SELECT current_database()::text`

// Database returns the name of the database.
func (s *Store) Database(ctx context.Context) (name string, err error) {
	if err := s.pool.QueryRow(ctx, selectDatabase).Scan(&name); err != nil {
		return "", fmt.Errorf("read the database's name: %w", err)
	}
	return name, nil
}

package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// This file looks for the extras: what schema.sql makes and delivering does not need. These
// are views, functions for people, triggers that guard or wake walhook, and indexes. If one
// is missing walhook delivers, and warns.

// isLarge is true of a table whose index no start builds: above 64 MiB or 100,000 rows, whoever
// writes there would wait for more than about a second.
const isLarge = `
(SELECT coalesce(pg_catalog.sum(greatest(c.reltuples, 0::real)), 0::real) > 100000::real OR coalesce(pg_catalog.sum(pg_catalog.pg_relation_size(c.oid::regclass)), 0::numeric) > 67108864::numeric
 FROM pg_catalog.pg_class AS c
 WHERE c.relkind::text = 'r' AND (c.oid = pg_catalog.to_regclass(t)::oid OR c.oid IN (SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = pg_catalog.to_regclass(t)::oid)))`

// A newer schema has no missing extras: this code does not know what it makes.
const selectExtras = `
WITH o AS MATERIALIZED (
    SELECT c.relowner, c.relnamespace, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('webhook_outbox')::oid
), tables AS MATERIALIZED (
    SELECT to_regclass(t)::oid AS oid FROM pg_catalog.unnest(@tables::text[]) AS t
    UNION SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent IN (to_regclass('webhook_outbox')::oid, to_regclass('webhook_deliveries')::oid)
), triggers AS MATERIALIZED (
    SELECT g.tgrelid, g.tgname::text AS name, g.tgenabled::text AS enabled
    FROM tables JOIN pg_trigger g ON g.tgrelid = tables.oid WHERE g.tgname::text = ANY (@triggers::text[])
)
SELECT found.what, found.of_table, found.large FROM (
    SELECT v || ' is missing' AS what, '' AS of_table, false AS large FROM pg_catalog.unnest(@views::text[]) AS v WHERE to_regclass(v) IS NULL
    UNION ALL
    SELECT f || ' is missing', '', false FROM o CROSS JOIN pg_catalog.unnest(@functions::text[]) AS f
    WHERE NOT EXISTS (SELECT FROM pg_proc p WHERE p.proname::text = f AND p.pronamespace = o.relnamespace)
    UNION ALL
    SELECT pg_catalog.format('%s searches another schema than its own (%s)', p.oid::regprocedure, setting), '', false
    FROM o JOIN pg_proc p ON p.pronamespace = o.relnamespace AND p.proowner = o.relowner CROSS JOIN LATERAL pg_catalog.unnest(p.proconfig) AS setting
    WHERE p.proname::text = ANY (@functions::text[])
      AND starts_with(setting, 'search_path=') AND strpos(' ' || substr(setting, 13) || ',', ' ' || quote_ident(o.nspname::text) || ',') = 0
    UNION ALL
    SELECT g || ' is missing', '', false FROM pg_catalog.unnest(@triggers::text[]) AS g WHERE NOT EXISTS (SELECT FROM triggers WHERE triggers.name = g)
    UNION ALL
    SELECT pg_catalog.format('the trigger %s of %s is disabled', t.name, t.tgrelid::regclass), '', false FROM triggers t WHERE t.enabled NOT IN ('A', 'O')
    UNION ALL
    SELECT x.name || ' is missing', t, ` + isLarge + ` FROM ROWS FROM (pg_catalog.unnest(@indexes::text[]), pg_catalog.unnest(@indexed::text[])) AS x(name, t) WHERE to_regclass(x.name) IS NULL
) AS found WHERE ` + installedVersion + ` = @version::int`

// An extra is one that is missing or disabled.
type extra struct {
	what  string
	table string // of a missing index
	large bool   // the table is large
}

// extras returns the extras that are missing or disabled.
func (s *Store) extras(ctx context.Context, made manifest) ([]extra, error) {
	needed := made.needed()
	rows, err := s.pool.Query(ctx, selectExtras, pgx.NamedArgs{"tables": made.tables, "views": made.views, "functions": without(made.functions, needed.functions),
		"triggers": without(made.triggers, needed.triggers), "indexes": made.indexes, "indexed": made.indexed, "version": SchemaVersion})
	if err != nil {
		return nil, fmt.Errorf("look for views, functions and indexes: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f extra, err error) {
		err = row.Scan(&f.what, &f.table, &f.large)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for views, functions and indexes: %w", err)
	}
	return found, nil
}

func without(all, some []string) (rest []string) {
	for _, a := range all {
		if !slices.Contains(some, a) {
			rest = append(rest, a)
		}
	}
	return rest
}

// compareExtras returns an error if an extra is missing that can be made quickly.
func (s *Store) compareExtras(ctx context.Context, made manifest) error {
	found, err := s.extras(ctx, made)
	if err != nil {
		return err
	}
	if quick, _ := bySpeed(found); len(quick) > 0 {
		return fmt.Errorf("%w: %s; run `walhook init` with a role that owns the tables", ErrNotPrepared, strings.Join(quick, ", "))
	}
	return nil
}

// bySpeed separates what can be made at once from indexes of large tables.
func bySpeed(found []extra) (quick, slow []string) {
	for _, f := range found {
		if f.large {
			slow = append(slow, f.what+" on "+f.table)
		} else {
			quick = append(quick, f.what)
		}
	}
	return quick, slow
}

// If another role owns an installation in use, whoever may act as that role applies the file as
// it, so that one role owns everything. Tables alone prove nothing: whoever may CREATE in the schema
// could have put them there. The publication is proof, because whoever created it may CREATE
// in the database and owns the outbox. The file itself checks the owner of everything else.
const selectApplyAs = `
SELECT coalesce((
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(o.relowner)::text)
    FROM pg_catalog.pg_class AS o JOIN pg_catalog.pg_roles AS me ON me.rolname = current_user
    WHERE o.oid = pg_catalog.to_regclass('webhook_outbox')::oid AND o.relowner <> me.oid
      AND CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000 THEN pg_catalog.pg_has_role(o.relowner, 'SET'::text)
               ELSE pg_catalog.pg_has_role(o.relowner, 'MEMBER'::text) END
      AND EXISTS (SELECT FROM pg_catalog.pg_publication AS p JOIN pg_catalog.pg_publication_rel AS r ON r.prpubid = p.oid
                  WHERE p.pubname = 'walhook' AND r.prrelid = o.oid)), '')`

func (s *Store) applyAs(ctx context.Context) (role string, err error) {
	if err := s.pool.QueryRow(ctx, selectApplyAs).Scan(&role); err != nil {
		return "", fmt.Errorf("read the owner of the tables: %w", err)
	}
	return role, nil
}

const selectLarge = `
SELECT coalesce(pg_catalog.string_agg(t, ','::text), '') FROM pg_catalog.unnest(@tables::text[]) AS t WHERE ` + isLarge

// schemaBegin is the line with which schema.sql begins each of its transactions.
const schemaBegin = "\nBEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n"

// withPreface adds settings to the file's transactions: the role as which it is applied and,
// if it has to be quick, the tables on which it builds no index.
func (s *Store) withPreface(ctx context.Context, schema string, quick bool) (string, error) {
	role, err := s.applyAs(ctx)
	if err != nil {
		return "", err
	}
	preface := schemaBegin
	if role != "" {
		preface += "SET LOCAL ROLE " + role + ";\n"
	}
	if quick {
		var tables string
		if err := s.pool.QueryRow(ctx, selectLarge, pgx.NamedArgs{"tables": readManifest(schema).indexed}).Scan(&tables); err != nil {
			return "", fmt.Errorf("read the sizes of the tables: %w", err)
		}
		preface += "SET LOCAL walhook.large_tables = " + literal(tables) + ";\n"
	}
	return strings.ReplaceAll(schema, schemaBegin, preface), nil
}

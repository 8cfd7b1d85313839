package store

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// This file looks for what others have done to walhook's tables: rights, row security,
// publications, and objects that are not in schema.sql.

// ourTables are walhook's tables and their partitions, with the names that can be typed
// anywhere.
const ourTables = `
ours AS MATERIALIZED (
    SELECT c.oid, c.relowner, c.relacl, c.relkind::text AS kind, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, c.relforcerowsecurity, c.relrowsecurity, c.relpersistence::text AS persistence
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT pg_catalog.to_regclass(t)::oid FROM pg_catalog.unnest(@tables::text[]) AS t
                    UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits AS i WHERE i.inhparent IN (pg_catalog.to_regclass('webhook_outbox')::oid, pg_catalog.to_regclass('webhook_deliveries')::oid))
)`

// What PUBLIC has of walhook's, and who may read the signing secrets. A backup's role may.
const selectGrants = `
WITH ` + ourTables + `
SELECT pg_catalog.format('PUBLIC may %s %s', pg_catalog.string_agg(DISTINCT a.privilege_type, ', '::text), o.name), pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC', o.name)
FROM ours AS o CROSS JOIN LATERAL pg_catalog.aclexplode(o.relacl) AS a WHERE a.grantee = 0::oid GROUP BY o.name
UNION ALL
SELECT pg_catalog.format('%s may read the signing secrets; only walhook and backups need that', pg_catalog.quote_ident(r.rolname)), pg_catalog.format('REVOKE SELECT ON %s FROM %I', o.name, r.rolname)
FROM ours AS o CROSS JOIN LATERAL pg_catalog.aclexplode(o.relacl) AS a JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
WHERE o.oid = pg_catalog.to_regclass('webhook_secrets')::oid AND a.privilege_type = 'SELECT' AND a.grantee <> o.relowner AND r.rolname NOT IN (current_user, 'walhook_run')
ORDER BY 1`

func (s *Store) inspectGrants(ctx context.Context) (Check, error) {
	return s.findings(ctx, "grants", "PUBLIC has none, and nobody else reads the signing secrets", selectGrants, pgx.NamedArgs{"tables": s.made.tables})
}

// With row_security off, which walhook's sessions and functions set, rows that a policy would
// hide are an error, in the application's INSERT too.
const selectRowSecurity = `
WITH ` + ourTables + `
SELECT pg_catalog.format('%s has %s row level security, so walhook and INSERTs of events fail', o.name, CASE WHEN o.relforcerowsecurity THEN 'FORCE' ELSE 'walhook''s role under' END),
       pg_catalog.format('ALTER TABLE %s %s ROW LEVEL SECURITY', o.name, CASE WHEN o.relforcerowsecurity THEN 'NO FORCE' ELSE 'DISABLE' END)
FROM ours AS o WHERE o.relforcerowsecurity OR pg_catalog.row_security_active(o.oid) ORDER BY 1`

func (s *Store) inspectRowSecurity(ctx context.Context) (Check, error) {
	return s.findings(ctx, "row security", "none hides rows from walhook", selectRowSecurity, pgx.NamedArgs{"tables": s.made.tables})
}

// What others have put on walhook's tables. What a root hands down to its partitions is named
// once.
const selectForeign = `
WITH ` + ourTables + `
SELECT pg_catalog.format('index %I on %s: each write maintains it; drop it unless a query of yours needs it', x.relname, o.name), pg_catalog.format('DROP INDEX %I.%I', n.nspname, x.relname)
FROM ours AS o JOIN pg_catalog.pg_index AS i ON i.indrelid = o.oid JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = x.relnamespace
WHERE NOT i.indisprimary AND NOT x.relispartition AND x.relname::text <> ALL (@indexes::text[]) AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c WHERE c.conindid = i.indexrelid AND c.contype <> 'f')
UNION ALL
SELECT pg_catalog.format('trigger %I on %s: it runs in walhook''s or the application''s transactions, and can fail them', g.tgname, o.name), pg_catalog.format('DROP TRIGGER %I ON %s', g.tgname, o.name)
FROM ours AS o JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = o.oid
WHERE NOT g.tgisinternal AND g.tgparentid = 0::oid AND g.tgname::text <> ALL (@triggers::text[])
UNION ALL
SELECT pg_catalog.format('rule %I on %s: it replaces statements', w.rulename, o.name), pg_catalog.format('DROP RULE %I ON %s', w.rulename, o.name)
FROM ours AS o JOIN pg_catalog.pg_rewrite AS w ON w.ev_class = o.oid
UNION ALL
SELECT pg_catalog.format('policy %I on %s: it can hide rows', p.polname, o.name), pg_catalog.format('DROP POLICY %I ON %s', p.polname, o.name)
FROM ours AS o JOIN pg_catalog.pg_policy AS p ON p.polrelid = o.oid
UNION ALL
SELECT pg_catalog.format('constraint %I on %s: it can refuse rows', c.conname, o.name), pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', o.name, c.conname)
FROM ours AS o JOIN pg_catalog.pg_constraint AS c ON c.conrelid = o.oid
WHERE c.contype IN ('c', 'f', 'u', 'x') AND c.coninhcount = 0 AND c.conparentid = 0::oid AND c.conname::text <> ALL (@constraints::text[])
UNION ALL
SELECT pg_catalog.format('%s refers to %s: days cannot be dropped, nor rows deleted', c.conrelid::regclass, o.name), pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname)
FROM ours AS o JOIN pg_catalog.pg_constraint AS c ON c.confrelid = o.oid
WHERE c.contype = 'f' AND c.conparentid = 0::oid AND c.conrelid NOT IN (SELECT ours.oid FROM ours)
UNION ALL
SELECT pg_catalog.format('%s inherits from %s: its rows are taken for walhook''s', i.inhrelid::regclass, o.name), pg_catalog.format('ALTER TABLE %s NO INHERIT %s', i.inhrelid::regclass, o.name)
FROM ours AS o JOIN pg_catalog.pg_inherits AS i ON i.inhparent = o.oid WHERE o.kind = 'r'
UNION ALL
SELECT pg_catalog.format('%s inherits from %s', o.name, i.inhparent::regclass), pg_catalog.format('ALTER TABLE %s NO INHERIT %s', o.name, i.inhparent::regclass)
FROM ours AS o JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = o.oid WHERE i.inhparent NOT IN (SELECT ours.oid FROM ours)
UNION ALL
SELECT pg_catalog.format('table %s is UNLOGGED: a crash of PostgreSQL empties it', o.name), pg_catalog.format('ALTER TABLE %s SET LOGGED', o.name)
FROM ours AS o WHERE o.persistence = 'u'
UNION ALL
SELECT pg_catalog.format('%I.%I is no partition of %s: %s', n.nspname, c.relname, o.name, CASE WHEN d.suffix = 'default' THEN 'INSERTs for days without one fail' ELSE 'that day goes into the DEFAULT partition' END),
       CASE WHEN d.suffix = 'default' THEN pg_catalog.format('ALTER TABLE %s ATTACH PARTITION %I.%I DEFAULT', o.name, n.nspname, c.relname)
            ELSE pg_catalog.format('ALTER TABLE %I.%I RENAME TO %I', n.nspname, c.relname, 'kept_' || c.relname::text) END
FROM ours AS o JOIN pg_catalog.pg_namespace AS n ON n.nspname = current_schema() JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND NOT c.relispartition
CROSS JOIN LATERAL (SELECT substring(c.relname::text, '^webhook_(?:outbox|deliveries)_p?([0-9]{8}|default)$'::text) AS suffix) AS d
WHERE o.kind = 'p' AND starts_with(c.relname::text, CASE WHEN o.oid = pg_catalog.to_regclass('webhook_outbox')::oid THEN 'webhook_outbox_'::text ELSE 'webhook_deliveries_'::text END)
  AND (d.suffix = 'default' OR d.suffix >= to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD'::text)) -- earlier days are somebody's to keep
UNION ALL
SELECT pg_catalog.format('partition %s of %s is not walhook''s: it is never dropped', c.oid::regclass, o.name), pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s', o.name, c.oid::regclass)
FROM ours AS o JOIN pg_catalog.pg_inherits AS i ON i.inhparent = o.oid JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE o.kind = 'p' AND c.relname::text !~ '^webhook_(outbox|deliveries)_(p[0-9]{8}|default)$'
ORDER BY 1`

func (s *Store) inspectForeign(ctx context.Context) (Check, error) {
	return s.findings(ctx, "objects of others", "none on walhook's tables", selectForeign,
		pgx.NamedArgs{"tables": s.made.tables, "indexes": s.made.indexes, "triggers": s.made.triggers, "constraints": s.made.constraints})
}

// A publication of others sends walhook's rows to its subscribers, the signing secrets among
// them, and has every delivery decoded once more.
const selectPublications = `
WITH ` + ourTables + `, named AS MATERIALIZED (
    SELECT r.prpubid AS pub, pg_catalog.string_agg(o.name, ', '::text ORDER BY o.name) AS names FROM pg_catalog.pg_publication_rel AS r JOIN ours AS o ON o.oid = r.prrelid GROUP BY r.prpubid
)
SELECT pg_catalog.format('publication %I also publishes %s%s', p.pubname,
                         CASE WHEN p.puballtables THEN 'all of walhook''s tables' ELSE coalesce(named.names, 'walhook''s schema') END,
                         CASE WHEN p.puballtables OR named.names IS NULL OR strpos(named.names, 'webhook_secrets') > 0 THEN ', signing secrets included' ELSE '' END),
       CASE WHEN p.puballtables THEN pg_catalog.format('name the tables that its subscribers need: DROP PUBLICATION %I, then CREATE PUBLICATION %1$I FOR TABLE ...', p.pubname)
            WHEN named.names IS NULL THEN pg_catalog.format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %I', p.pubname, current_schema())
            ELSE pg_catalog.format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, named.names) END
FROM pg_catalog.pg_publication AS p LEFT JOIN named ON named.pub = p.oid
WHERE p.pubname <> 'walhook' AND (p.puballtables OR named.pub IS NOT NULL
    OR EXISTS (SELECT FROM pg_catalog.pg_get_publication_tables(p.pubname::text) AS g JOIN ours AS o ON o.oid = g.relid::oid))
ORDER BY 1`

func (s *Store) inspectPublications(ctx context.Context) (Check, error) {
	return s.findings(ctx, "other publications", "none publishes walhook's tables", selectPublications, pgx.NamedArgs{"tables": s.made.tables})
}

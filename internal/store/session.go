package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file sets up walhook's sessions. The defaults of the role and the database are made
// for applications and people, so a session overrides them.

// Settings returns the parameters that a session starts with. They override ALTER ROLE and
// ALTER DATABASE. PostgreSQL knows all of them since version 14, and any role may set them.
func Settings(schema string) map[string]string {
	settings := map[string]string{
		// Every session has to read and write the same bytes.
		"client_encoding":             "UTF8",
		"standard_conforming_strings": "on",
		"DateStyle":                   "ISO, YMD",
		"IntervalStyle":               "postgres",
		"TimeZone":                    "UTC",
		"extra_float_digits":          "1",
		"bytea_output":                "hex",
		"quote_all_identifiers":       "off",
		"array_nulls":                 "on",
		"transform_null_equals":       "off",

		// Each statement needs a snapshot of its own. default_transaction_read_only is not
		// set here: see beginSession.
		"default_transaction_isolation":  "read committed",
		"default_transaction_deferrable": "off",
		"row_security":                   "off", // an error if row security would hide rows

		// walhook bounds every wait itself, and can then say what for. These bound what a
		// dead or frozen process leaves behind.
		"lock_timeout":                        LockTimeout,
		"statement_timeout":                   statementLeft,
		"idle_in_transaction_session_timeout": transactionLeft,
		"idle_session_timeout":                "0", // the pool keeps connections for minutes

		// Statements are short, and would be compiled for one run.
		"jit": "off",
	}
	if schema != "" {
		settings["search_path"] = searchPath(schema)
	}
	return settings
}

// Override replaces parameters by settings. Names of parameters are case-insensitive; if
// one were given twice, PostgreSQL would use the last.
func Override(params, settings map[string]string) {
	for name := range params {
		for ours := range settings {
			if strings.EqualFold(name, ours) {
				delete(params, name)
			}
		}
	}
	maps.Copy(params, settings)
}

// NeverConnects reports whether the server rejected a connection for its parameters, and
// always will: it does not know or allow one, or is a pooler that knows only some. A server
// that is down or full does not count.
func NeverConnects(err error) bool {
	connecting, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](connecting); ok && pg.Code == "08P01" {
		// PgBouncer uses this one code for everything, temporary errors included.
		return strings.HasPrefix(pg.Message, "unsupported startup parameter")
	}
	return hasCode(connecting,
		"42704", // undefined_object: no such parameter
		"22023", // invalid_parameter_value
		"55P02", // cant_change_runtime_param
		"0A000") // feature_not_supported
}

const (
	// statementLeft is longer than any statement of walhook may take, including applying
	// the schema to a large database.
	statementLeft = "5min"

	// transactionLeft is longer than the pause between two statements of a transaction.
	// Only a frozen process exceeds it, and then its locks have to go.
	transactionLeft = "30s"
)

// searchPath returns the search_path for one schema. PostgreSQL searches temporary tables
// first unless pg_temp is named, so it is named last.
func searchPath(schema string) string { return pgx.Identifier{schema}.Sanitize() + ", pg_temp" }

// These can only be set in a session that has begun: settings of newer versions, and the
// search_path if WALHOOK_SCHEMA is not set. A role that is read-only by default was made so
// for people, and is overruled. A database or server that is read-only by default is full
// or being moved, and is waited for.
const beginSession = `
SELECT pg_catalog.getdatabaseencoding()::pg_catalog.text, coalesce(pg_catalog.current_schema()::pg_catalog.text, ''), pg_catalog.current_setting('search_path'),
       CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
            THEN pg_catalog.set_config('transaction_timeout', '0', false) END,
       CASE WHEN pg_catalog.current_setting('default_transaction_read_only') = 'on'
             AND EXISTS (SELECT FROM pg_catalog.pg_settings AS s WHERE s.name = 'default_transaction_read_only' AND s.source IN ('user', 'database user'))
            THEN pg_catalog.set_config('default_transaction_read_only', 'off', false) END`

const pinSession = `SELECT pg_catalog.set_config('search_path', $1, false)`

// ErrNoSchema means that the session has no schema for walhook's tables.
var ErrNoSchema = fmt.Errorf("%w: no schema for walhook's tables", ErrNotPrepared)

// BeginSession completes a session that has started with Settings, and returns its schema:
// the given one, or the first of the session's search_path.
func BeginSession(ctx context.Context, conn *pgx.Conn, schema string) (string, error) {
	var encoding, current, path string
	if err := conn.QueryRow(ctx, beginSession, pgx.QueryExecModeExec).Scan(&encoding, &current, &path, new(*string), new(*string)); err != nil {
		return "", fmt.Errorf("begin a session: %w", err)
	}
	if err := checkEncoding(encoding); err != nil {
		return "", err
	}
	if schema != "" {
		return schema, nil // which may not exist yet
	}
	if current == "" {
		return "", fmt.Errorf("%w: the search_path of this role (%s) names no existing schema that it may use; set WALHOOK_SCHEMA", ErrNoSchema, path)
	}
	if _, err := conn.Exec(ctx, pinSession, pgx.QueryExecModeExec, searchPath(current)); err != nil {
		return "", fmt.Errorf("set the search_path: %w", err)
	}
	return current, nil
}

// ErrEncoding means that the database's encoding is not UTF8.
var ErrEncoding = fmt.Errorf("%w: the encoding of the database is not UTF8", ErrNotPrepared)

// checkEncoding requires UTF8. With SQL_ASCII one row of invalid bytes could never be read,
// and would block the slot for ever. Other encodings cannot store every character of a
// receiver's response.
func checkEncoding(encoding string) error {
	if encoding == "UTF8" {
		return nil
	}
	return fmt.Errorf("%w but %s, and cannot be changed: dump the database, create a new one with CREATE DATABASE another ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0, and restore the dump there",
		ErrEncoding, encoding)
}

// ErrSettings means that a session through a pooler has settings with which walhook cannot
// work, and that somebody has to change the defaults of its role.
var ErrSettings = errors.New("wrong session settings")

// A pooler refuses most parameters, and shares sessions, so a setting would leak to others.
// Therefore the role's own settings have to be right. A timeout of less than a minute would
// end statements of walhook.
const checkShared = `
SELECT pg_catalog.getdatabaseencoding()::pg_catalog.text, coalesce(pg_catalog.current_schema()::pg_catalog.text, ''), pg_catalog.quote_ident(current_user::pg_catalog.text), pg_catalog.quote_ident(pg_catalog.current_database()::pg_catalog.text),
       pg_catalog.to_regnamespace(pg_catalog.quote_ident($1::pg_catalog.text)) IS NOT NULL,
       ARRAY(SELECT s.name FROM pg_catalog.pg_settings AS s
             WHERE s.name IN ('statement_timeout', 'transaction_timeout') AND s.setting::pg_catalog.int8 BETWEEN 1 AND 59999
                OR s.name = 'client_encoding' AND s.setting <> 'UTF8'
                OR s.name = 'standard_conforming_strings' AND s.setting <> 'on'
                OR s.name = 'default_transaction_isolation' AND s.setting <> 'read committed'
                OR s.name = 'default_transaction_read_only' AND s.setting <> 'off' AND s.source IN ('user', 'database user')
             ORDER BY s.name)::pg_catalog.text[]`

// sharedSettings are the settings that a session through a pooler must have.
var sharedSettings = map[string]string{
	"statement_timeout": "0", "transaction_timeout": "0", "client_encoding": "'UTF8'", "standard_conforming_strings": "on",
	"default_transaction_isolation": "'read committed'", "default_transaction_read_only": "off",
}

// CheckShared is BeginSession for a session through a pooler. It changes nothing; if a
// setting is wrong, its error wraps ErrSettings and says what to type.
func CheckShared(ctx context.Context, conn *pgx.Conn, schema string) (string, error) {
	var encoding, current, role, database string
	var exists bool
	var wrong []string
	if err := conn.QueryRow(ctx, checkShared, pgx.QueryExecModeExec, schema).Scan(&encoding, &current, &role, &database, &exists, &wrong); err != nil {
		return "", fmt.Errorf("check the session's settings: %w", err)
	}
	if err := checkEncoding(encoding); err != nil {
		return "", err
	}
	var fix []string
	alter := fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET ", role, database)
	for _, name := range wrong {
		fix = append(fix, alter+name+" = "+sharedSettings[name])
	}
	if schema != "" && current != schema && (exists || current != "") {
		fix = append(fix, alter+"search_path = "+searchPath(schema))
	}
	switch {
	case len(fix) > 0:
		return "", fmt.Errorf("%w: walhook cannot change settings through a pooler, so set them for its role: %s; then make the pooler reconnect",
			ErrSettings, strings.Join(fix, "; "))
	case schema == "" && current == "":
		return "", fmt.Errorf("%w: through a pooler, the role's search_path must begin with that schema, for example %ssearch_path = webhooks, pg_temp", ErrNoSchema, alter)
	}
	return current, nil
}

const createSchema = `
SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident($1::pg_catalog.text)) IS NOT NULL,
       pg_catalog.quote_ident($1::pg_catalog.text), pg_catalog.quote_ident(current_user::pg_catalog.text)`

// CreateSchema creates the schema unless it exists. It checks that first, because CREATE
// SCHEMA IF NOT EXISTS needs the privilege to create in any case.
func (s *Store) CreateSchema(ctx context.Context, schema string) error {
	var exists bool
	var name, role string
	if err := s.pool.QueryRow(ctx, createSchema, schema).Scan(&exists, &name, &role); err != nil || exists {
		return err
	}
	_, err := s.pool.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+name) // another process may be faster
	if hasCode(err, "42501") {                                      // insufficient_privilege
		return fmt.Errorf("%w: WALHOOK_SCHEMA %s does not exist, and this role may not create it: CREATE SCHEMA %s AUTHORIZATION %s (%w)",
			ErrNotPrepared, name, name, role, err)
	}
	if err != nil && !hasCode(err, "23505") { // unique_violation: another process created it at the same time
		return fmt.Errorf("create the schema %s: %w", name, err)
	}
	return nil
}

// The roles, besides the owners of schema and tables, this role and superusers, that may create functions
// and operators in walhook's schema.
const selectMakers = `
SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.string_agg(DISTINCT CASE WHEN a.grantee = 0::pg_catalog.oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END, ', ')
FROM pg_catalog.pg_namespace AS n
CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
WHERE n.nspname = pg_catalog.current_schema() AND a.privilege_type = 'CREATE'
  AND a.grantee NOT IN (n.nspowner, coalesce((SELECT o.relowner FROM pg_catalog.pg_class AS o WHERE o.oid = pg_catalog.to_regclass('webhook_outbox')::pg_catalog.oid), n.nspowner)) AND coalesce(r.rolname <> current_user AND NOT r.rolsuper, true)
GROUP BY n.nspname`

// Makers returns who else may create objects in walhook's schema ("": nobody), and the
// statement that revokes the privilege.
func (s *Store) Makers(ctx context.Context) (who, fix string, err error) {
	var schema string
	err = s.pool.QueryRow(ctx, selectMakers).Scan(&schema, &who)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", "", nil
	}
	if err != nil {
		return "", "", fmt.Errorf("read who may create objects in the schema: %w", err)
	}
	return who, fmt.Sprintf("REVOKE CREATE ON SCHEMA %s FROM %s", schema, who), nil
}

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

// This file says how a session of walhook's is set up, whatever its role's and its
// database's defaults are: those are made for applications and for people.

// Settings are the parameters that a session starts with: they win over ALTER ROLE
// and ALTER DATABASE. All are known from PostgreSQL 14 on, and any role may set them.
func Settings(schema string) map[string]string {
	settings := map[string]string{
		// What is read and written has to be the same bytes in every session.
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

		// Statements are written for a snapshot each. (Whether a database may be written
		// to is not ours to say, see beginSession.)
		"default_transaction_isolation":  "read committed",
		"default_transaction_deferrable": "off",
		"row_security":                   "off", // an error, where rows would be hidden

		// Every wait has its bound in walhook, where it can be told why. These hold for
		// what a process that has died or is frozen leaves behind.
		"lock_timeout":                        LockTimeout,
		"statement_timeout":                   statementLeft,
		"idle_in_transaction_session_timeout": transactionLeft,
		"idle_session_timeout":                "0", // the pool keeps connections for minutes

		// Short statements, of which it would compile what is never run again.
		"jit": "off",
	}
	if schema != "" {
		settings["search_path"] = searchPath(schema)
	}
	return settings
}

// Override puts settings in the place of others. The names of parameters have no case:
// one that is given twice would be whichever comes last.
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

// NeverConnects says that a server refuses a connection for what it was asked for, and
// will refuse it for ever: a parameter that it does not know or allow, or a pooler
// that knows only some. A server that is away, or full, is another matter.
func NeverConnects(err error) bool {
	connecting, ok := errors.AsType[*pgconn.ConnectError](err)
	if !ok {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](connecting); ok && pg.Code == "08P01" {
		// PgBouncer has one code for all that it says, also for what goes by.
		return strings.HasPrefix(pg.Message, "unsupported startup parameter")
	}
	return hasCode(connecting,
		"42704", // undefined_object: no such parameter
		"22023", // invalid_parameter_value
		"55P02", // cant_change_runtime_param
		"0A000") // feature_not_supported
}

const (
	// statementLeft is more than any of walhook's statements may take, applying the
	// schema to a large database included.
	statementLeft = "5min"

	// transactionLeft is more than the pause between two statements of a transaction
	// can be, unless the process is frozen; then its locks have to go.
	transactionLeft = "30s"
)

// searchPath is of one schema. Named last, temporary tables are looked into last.
func searchPath(schema string) string { return pgx.Identifier{schema}.Sanitize() + ", pg_temp" }

// What can only be set in a session that has begun: what newer versions have, and the
// search_path where nobody has said which schema is meant. A role that only reads by
// default was made so for people; a database or a server that does was made so because
// its disk is full, or because it is being moved, and is waited for.
const beginSession = `
SELECT pg_catalog.getdatabaseencoding()::pg_catalog.text, coalesce(pg_catalog.current_schema()::pg_catalog.text, ''), pg_catalog.current_setting('search_path'),
       CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
            THEN pg_catalog.set_config('transaction_timeout', '0', false) END,
       CASE WHEN pg_catalog.current_setting('default_transaction_read_only') = 'on'
             AND EXISTS (SELECT FROM pg_catalog.pg_settings AS s WHERE s.name = 'default_transaction_read_only' AND s.source IN ('user', 'database user'))
            THEN pg_catalog.set_config('default_transaction_read_only', 'off', false) END`

const pinSession = `SELECT pg_catalog.set_config('search_path', $1, false)`

// ErrNoSchema means that there is no schema to look into.
var ErrNoSchema = fmt.Errorf("%w: no schema for walhook's tables", ErrNotPrepared)

// BeginSession makes a session that has started with Settings ready for use, and
// returns its schema. Where none is given it is the first one of the session's search_path.
func BeginSession(ctx context.Context, conn *pgx.Conn, schema string) (string, error) {
	var encoding, current, path string
	if err := conn.QueryRow(ctx, beginSession, pgx.QueryExecModeExec).Scan(&encoding, &current, &path, new(*string), new(*string)); err != nil {
		return "", fmt.Errorf("begin a session: %w", err)
	}
	if err := checkEncoding(encoding); err != nil {
		return "", err
	}
	if schema != "" {
		return schema, nil // which may have to be made first
	}
	if current == "" {
		return "", fmt.Errorf("%w: the search_path of this role (%s) names no existing schema that it may use; set WALHOOK_SCHEMA", ErrNoSchema, path)
	}
	if _, err := conn.Exec(ctx, pinSession, pgx.QueryExecModeExec, searchPath(current)); err != nil {
		return "", fmt.Errorf("set the search_path: %w", err)
	}
	return current, nil
}

// ErrEncoding means that the database's encoding is one that not all texts can be stored
// in, or one that does not know what its bytes are.
var ErrEncoding = fmt.Errorf("%w: the encoding of the database is not UTF8", ErrNotPrepared)

// checkEncoding wants UTF8: with SQL_ASCII one row of other bytes can never be read,
// and holds the slot for ever; in others some characters of a receiver's answer cannot
// be stored.
func checkEncoding(encoding string) error {
	if encoding == "UTF8" {
		return nil
	}
	return fmt.Errorf("%w but %s, and cannot be changed: dump the database, create a new one with CREATE DATABASE another ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0, and restore the dump there",
		ErrEncoding, encoding)
}

// ErrSettings means that a session cannot be set up as it must be, and that somebody
// has to change the defaults of its role.
var ErrSettings = errors.New("wrong session settings")

// A pooler refuses most parameters, and shares sessions: what is set in one is found by
// others. So the role's own settings have to be right. A timeout of less than a minute
// is one that ends statements of ours.
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

// right is what a setting of a shared session has to be.
var sharedSettings = map[string]string{
	"statement_timeout": "0", "transaction_timeout": "0", "client_encoding": "'UTF8'", "standard_conforming_strings": "on",
	"default_transaction_isolation": "'read committed'", "default_transaction_read_only": "off",
}

// CheckShared is BeginSession for a session through a pooler: it changes nothing, and
// returns an error that wraps ErrSettings and says what to type.
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
	var mend []string
	alter := fmt.Sprintf("ALTER ROLE %s IN DATABASE %s SET ", role, database)
	for _, name := range wrong {
		mend = append(mend, alter+name+" = "+sharedSettings[name])
	}
	if schema != "" && current != schema && (exists || current != "") {
		mend = append(mend, alter+"search_path = "+searchPath(schema))
	}
	switch {
	case len(mend) > 0:
		return "", fmt.Errorf("%w: walhook cannot change settings through a pooler, so set them for its role: %s; then make the pooler reconnect",
			ErrSettings, strings.Join(mend, "; "))
	case schema == "" && current == "":
		return "", fmt.Errorf("%w: through a pooler, the role's search_path must begin with that schema, for example %ssearch_path = webhooks, pg_temp", ErrNoSchema, alter)
	}
	return current, nil
}

const createSchema = `
SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident($1::pg_catalog.text)) IS NOT NULL,
       pg_catalog.quote_ident($1::pg_catalog.text), pg_catalog.quote_ident(current_user::pg_catalog.text)`

// CreateSchema makes the schema where there is none. The name of one that exists is
// not asked to be made again: that would need the right to.
func (s *Store) CreateSchema(ctx context.Context, schema string) error {
	var exists bool
	var name, role string
	if err := s.pool.QueryRow(ctx, createSchema, schema).Scan(&exists, &name, &role); err != nil || exists {
		return err
	}
	_, err := s.pool.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+name) // if another process was faster
	if hasCode(err, "42501") {                                      // insufficient_privilege
		return fmt.Errorf("%w: WALHOOK_SCHEMA %s does not exist, and this role may not create it: CREATE SCHEMA %s AUTHORIZATION %s (%w)",
			ErrNotPrepared, name, name, role, err)
	}
	if err != nil && !hasCode(err, "23505") { // unique_violation: another process was as fast
		return fmt.Errorf("create the schema %s: %w", name, err)
	}
	return nil
}

// Who may make functions and operators in walhook's schema, beside its owner, this role
// and superusers.
const selectMakers = `
SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.string_agg(DISTINCT CASE WHEN a.grantee = 0::pg_catalog.oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(r.rolname) END, ', ')
FROM pg_catalog.pg_namespace AS n
CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS a
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
WHERE n.nspname = pg_catalog.current_schema() AND a.privilege_type = 'CREATE'
  AND a.grantee <> n.nspowner AND coalesce(r.rolname <> current_user AND NOT r.rolsuper, true)
GROUP BY n.nspname`

// Makers says who else may create in walhook's schema, and the statement that takes the
// right away; "": nobody.
func (s *Store) Makers(ctx context.Context) (who, mend string, err error) {
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

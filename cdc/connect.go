package cdc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/walhook/walhook/internal/store"
)

// This file makes connections, and runs simple queries on them.

// configure reads the connection settings anew, and adds those of our sessions, which
// override the defaults of the role and the database.
func (s *Stream) configure() (*pgconn.Config, error) {
	config, err := s.config.Server()
	if err != nil {
		return nil, err
	}
	set := store.Settings("")
	set["search_path"] = "pg_catalog" // so that nobody can plant functions or operators
	// A session lasts for months, a standby is idle, and slot creation waits for the
	// transactions of others.
	set["statement_timeout"] = "0"
	set["lock_timeout"] = "0"
	set["idle_in_transaction_session_timeout"] = "0"
	store.Override(config.RuntimeParams, set)
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "walhook"
	}
	return config, nil
}

// connectOrdinary connects to the same server without replication.
func (s *Stream) connectOrdinary(ctx context.Context) (*pgconn.PgConn, error) {
	config, err := s.configure()
	if err != nil {
		return nil, err
	}
	return connect(ctx, config)
}

// connectReplicating connects for replication, and reads through a sieve.
func (s *Stream) connectReplicating(ctx context.Context, through *sieve) (*pgconn.PgConn, error) {
	config, err := s.configure()
	if err != nil {
		return nil, err
	}
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		*through = sieve{from: r} // pgconn may try several hosts, and with and without TLS
		return pgproto3.NewFrontend(through, w)
	}
	config.RuntimeParams["replication"] = "database"
	config.RuntimeParams["wal_sender_timeout"] = strconv.FormatInt(s.walSenderTimeout.Milliseconds(), 10)
	s.user = config.User
	pg, err := connect(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := noTransactionTimeout(ctx, pg); err != nil {
		hangUp(pg)
		return nil, err
	}
	return pg, nil
}

// PostgreSQL 17 added transaction_timeout. It would end a stream that decodes a long
// transaction.
const noTransactionTimeoutSQL = `SELECT CASE WHEN pg_catalog.current_setting('transaction_timeout', true) IS NOT NULL
	THEN pg_catalog.set_config('transaction_timeout', '0', false) END`

func noTransactionTimeout(ctx context.Context, pg *pgconn.PgConn) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if _, err := query(ctx, pg, noTransactionTimeoutSQL); err != nil {
		return fmt.Errorf("set up the session: %w", err)
	}
	return nil
}

func connect(ctx context.Context, config *pgconn.Config) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, withFix(err, config.User)
	}
	return pg, nil
}

// hangUp closes a connection in any state, within closeTimeout.
func hangUp(pg *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = pg.Conn().SetDeadline(time.Now().Add(closeTimeout))
	_ = pg.Close(ctx)
	select {
	case <-pg.CleanupDone():
	case <-ctx.Done():
	}
}

// query runs one statement with the simple protocol, and returns its rows as text, NULL
// as "".
func query(ctx context.Context, pg *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := pg.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 {
		return nil, errors.New("no result")
	}
	rows := make([][]string, len(results[0].Rows))
	for i, row := range results[0].Rows {
		for _, value := range row {
			rows[i] = append(rows[i], string(value))
		}
	}
	return rows, nil
}

// unquoted matches names that need no quotes in SQL, unless they are keywords. A JSON log
// escapes quotes, and then the statement in it could not be pasted.
var unquoted = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

// reservedWords are keywords of SQL that a role might have as its name.
var reservedWords = []string{"all", "analyze", "any", "both", "current_role", "current_user", "default", "end", "grant", "group", "order", "primary", "references",
	"select", "session_user", "table", "to", "user", "when", "where", "window", "with", "public", "none"}

// quoteIfNeeded returns a name for a statement that people paste.
func quoteIfNeeded(name string) string {
	if unquoted.MatchString(name) && !slices.Contains(reservedWords, name) {
		return name
	}
	return quoteIdentifier(name)
}

func quoteIdentifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// quoteLiteral quotes for SQL and for the replication grammar, which knows no E”.
func quoteLiteral(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }

// sleep waits, and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

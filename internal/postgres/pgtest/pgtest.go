// Package pgtest gives every test a PostgreSQL database of its own.
//
// All databases are on one server, which all test processes share: the one that WALHOOK_TEST_DATABASE_URL names (a
// superuser's URL), or one that the first process starts and that ends soon after the last; see shared.go. A test that
// stops or kills its server takes a private one from Server. WALHOOK_TEST_POSTGRES_VERSION, like 17, chooses the major
// version of both.
package pgtest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/container"
)

// DB is a database of one test. It is dropped at the test's end, with whatever is still connected and all its slots.
type DB struct {
	// URL is the superuser's.
	URL string
	// Slot is a name for a replication slot that no other test uses: slots belong to the server, not to a database.
	Slot string
	// Pool is connected to the database, with at most four connections.
	Pool *pgxpool.Pool
}

// These bound what a stuck server can cost a test.
const (
	startWithin   = 5 * time.Minute // the npm source downloads a server first
	createWithin  = time.Minute
	cleanUpWithin = 30 * time.Second
)

// New makes a database with the tables of schema.sql.
func New(t testing.TB) *DB {
	t.Helper()
	schema, err := readSchema()
	if err != nil {
		t.Fatalf("find schema.sql: %v", err)
	}
	return newDB(t, schema)
}

// Empty makes a database without tables.
func Empty(t testing.TB) *DB {
	t.Helper()
	return newDB(t, "")
}

// wantedVersion is empty when any will do.
func wantedVersion() string { return os.Getenv("WALHOOK_TEST_POSTGRES_VERSION") }

// Server starts a server for this test alone, and closes it at the test's end.
func Server(t testing.TB, o postgres.Options) *postgres.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	o.Version = cmp.Or(o.Version, wantedVersion())
	server, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Start starts a server as postgres.Start does, with dockertest for Docker. The caller closes it.
func Start(ctx context.Context, o postgres.Options) (*postgres.Server, error) {
	o.Docker = func(ctx context.Context, tag, script string) (postgres.Container, error) {
		return container.Run(ctx, tag, script)
	}
	return postgres.Start(ctx, o)
}

// Eventually waits until cond holds, and fails the test if it does not in time. It looks at once, then 100 times a
// second.
func Eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// readSchema reads schema.sql from the root of the module that the test is in.
func readSchema() (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			schema, err := os.ReadFile(filepath.Join(folder, "schema.sql"))
			return string(schema), err
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("go.mod: %w", fs.ErrNotExist)
		}
		folder = filepath.Dir(folder)
	}
}

func newDB(t testing.TB, schema string) *DB {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	server, err := sharedURL(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), createWithin)
	defer cancel()
	name := "walhook_test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if err := createDatabase(ctx, server, name, schema); err != nil {
		t.Fatalf("create a test database: %v", err)
	}
	db := &DB{URL: withDatabase(server, name), Slot: name}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanUpWithin)
		defer cancel()
		if err := dropDatabase(ctx, server, name); err != nil {
			t.Errorf("drop the test database: %v", err)
		}
		if err := closePool(ctx, db.Pool); err != nil {
			t.Error(err)
		}
	})
	if db.Pool, err = newPool(ctx, db.URL); err != nil {
		t.Fatalf("connect to the test database: %v", err)
	}
	return db
}

func newPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 4
	return pgxpool.NewWithConfig(ctx, config)
}

// closePool says so when a connection was not given back, where Pool.Close would wait for ever.
func closePool(ctx context.Context, pool *pgxpool.Pool) error {
	if pool == nil {
		return nil
	}
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return errors.New("the test did not give back a connection of its pool")
	}
}

func withDatabase(server, name string) string {
	u, err := url.Parse(server)
	if err != nil {
		panic(err) // sharedURL has parsed it before
	}
	u.Path = "/" + name
	return u.String()
}

func createDatabase(ctx context.Context, server, name, schema string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if schema == "" {
		_, err := conn.Exec(ctx, "CREATE DATABASE "+quote(name)+" TEMPLATE template0")
		return err
	}
	for {
		err := copyTemplate(ctx, conn, name, schema)
		if !errors.Is(err, errNoTemplate) {
			return err
		}
		if err := makeTemplate(ctx, conn, server, schema); err != nil {
			return err
		}
	}
}

const (
	templatePrefix = "walhook_template_"
	// templateLock is the advisory lock on templates: shared while copying one, exclusive while making or dropping one.
	templateLock = 0x77616c686f6f6b
)

var errNoTemplate = errors.New("there is no template database for this schema")

// templateName is another one each day: the schema makes days ahead of the one on which it is applied.
func templateName(schema string, at time.Time) string {
	sum := sha256.Sum256([]byte(at.UTC().Format(time.DateOnly) + schema))
	return templatePrefix + hex.EncodeToString(sum[:8])
}

func copyTemplate(ctx context.Context, conn *pgx.Conn, name, schema string) error {
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock_shared($1)", templateLock); err != nil {
		return err
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock_shared($1)", templateLock)
	template := templateName(schema, time.Now())
	exists, err := databaseExists(ctx, conn, template)
	if err != nil {
		return err
	}
	if !exists {
		return errNoTemplate
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+quote(name)+" TEMPLATE "+quote(template))
	return err
}

// makeTemplate makes the template database of a schema, and drops those of earlier schemas and days: a server that is not
// ours keeps one.
func makeTemplate(ctx context.Context, conn *pgx.Conn, server, schema string) error {
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", templateLock); err != nil {
		return err
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", templateLock)
	name := templateName(schema, time.Now())
	if exists, err := databaseExists(ctx, conn, name); err != nil || exists {
		return err
	}
	if err := dropTemplates(ctx, conn); err != nil {
		return err
	}
	unfinished := templatePrefix + "unfinished"
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+unfinished+" TEMPLATE template0"); err != nil {
		return err
	}
	if err := applySchema(ctx, withDatabase(server, unfinished), schema); err != nil {
		return fmt.Errorf("apply schema.sql: %w", err)
	}
	_, err := conn.Exec(ctx, "ALTER DATABASE "+unfinished+" RENAME TO "+quote(name))
	return err
}

func dropTemplates(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", templatePrefix)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := conn.Exec(ctx, "DROP DATABASE "+quote(name)+" WITH (FORCE)"); err != nil {
			return err
		}
	}
	return nil
}

// applySchema sends the script as psql does, statement by statement where it says so itself. Its session has ended when
// this returns: a template cannot be copied or renamed while somebody is connected.
func applySchema(ctx context.Context, url, schema string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.PgConn().Exec(ctx, schema).ReadAll()
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

func databaseExists(ctx context.Context, conn *pgx.Conn, name string) (exists bool, err error) {
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	return exists, err
}

func dropDatabase(ctx context.Context, server, name string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := dropSlots(ctx, conn, name); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
	return err
}

// Who streams from a slot is terminated, and waited for, before the slot is dropped.
const (
	terminateStreams = `
		SELECT pg_terminate_backend(active_pid, 5000)
		FROM pg_replication_slots
		WHERE database = $1 AND active_pid IS NOT NULL`
	dropInactiveSlots = `
		SELECT pg_drop_replication_slot(slot_name)
		FROM pg_replication_slots
		WHERE database = $1 AND active_pid IS NULL`
	countSlots = `SELECT count(*) FROM pg_replication_slots WHERE database = $1`
)

// SQLSTATEs of pg_drop_replication_slot.
const (
	slotInUse = "55006"
	slotGone  = "42704"
)

// dropSlots looks again when a stream has reconnected, or dropped its slot itself, in between.
func dropSlots(ctx context.Context, conn *pgx.Conn, database string) error {
	for {
		for _, statement := range []string{terminateStreams, dropInactiveSlots} {
			_, err := conn.Exec(ctx, statement, database)
			refused, _ := errors.AsType[*pgconn.PgError](err)
			if err != nil && (refused == nil || refused.Code != slotInUse && refused.Code != slotGone) {
				return fmt.Errorf("drop replication slots: %w", err)
			}
		}
		var left int
		if err := conn.QueryRow(ctx, countSlots, database).Scan(&left); err != nil || left == 0 {
			return err
		}
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

//go:build linux

package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres"
)

// settings keep checkpoints out of the measurement. Everything else is PostgreSQL's
// default, autovacuum included.
var settings = map[string]string{
	"shared_buffers":     "256MB",
	"max_wal_size":       "16GB",
	"checkpoint_timeout": "1h",
}

// A server is the throwaway PostgreSQL.
type server struct {
	*postgres.Server
	admin     *pgx.Conn
	about     string
	walStats  bool  // pg_walinspect is installed
	databases int   // created so far
	own       []int // backends of the measurement itself, whose CPU does not count as PostgreSQL's
}

func startServer(ctx context.Context, version string) (_ *server, err error) {
	s := &server{}
	if s.Server, err = postgres.Start(ctx, postgres.Options{Durable: true, Settings: settings, Version: version}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.admin, err = s.connect(ctx, s.URL()); err != nil {
		return nil, err
	}
	_, extErr := s.admin.Exec(ctx, "CREATE EXTENSION pg_walinspect") // a contrib module, from PostgreSQL 15 on
	s.walStats = extErr == nil
	err = s.admin.QueryRow(ctx, `SELECT 'PostgreSQL ' || current_setting('server_version') || ', fsync ' || current_setting('fsync')
		|| ', synchronous_commit ' || current_setting('synchronous_commit')`).Scan(&s.about)
	return s, err
}

func (s *server) close() {
	if s.admin != nil {
		_ = s.admin.Close(context.Background())
	}
	_ = s.Server.Close()
}

// connections opens connections of the measurement itself.
func (s *server) connections(ctx context.Context, url string, n int) (conns []*pgx.Conn, hangUp func(), err error) {
	hangUp = func() {
		for _, conn := range conns {
			s.hangUp(conn)
		}
	}
	for range n {
		conn, err := s.connect(ctx, url)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		conns = append(conns, conn)
	}
	return conns, hangUp, nil
}

// connect opens a connection of the measurement itself.
func (s *server) connect(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		s.own = append(s.own, int(conn.PgConn().PID()))
	}
	return conn, err
}

// hangUp closes a connection of the measurement. Its backend's CPU time then counts as
// the server's, so no measurement may span this.
func (s *server) hangUp(conn *pgx.Conn) {
	for i, pid := range s.own {
		if pid == int(conn.PgConn().PID()) {
			s.own = append(s.own[:i], s.own[i+1:]...)
			break
		}
	}
	_ = conn.Close(context.Background())
}

// cpu is the CPU time of PostgreSQL so far, without the backends that serve the
// measurement; 0 if the server runs in a container.
func (s *server) cpu() time.Duration {
	if s.PID() == 0 {
		return 0
	}
	return familyCPU(s.PID(), s.own)
}

// lsn is the end of the WAL.
func (s *server) lsn(ctx context.Context) (pglogrepl.LSN, error) {
	return scanLSN(s.admin.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text"))
}

// A wal is the WAL between two positions.
type wal struct {
	bytes      int64
	pageImages int64 // bytes of full page images among them, if the server can tell
}

func (s *server) wal(ctx context.Context, from, to pglogrepl.LSN) (wal, error) {
	w := wal{bytes: int64(to - from)}
	if !s.walStats {
		return w, nil
	}
	// The WAL must be flushed to be read: this commit flushes it.
	if _, err := s.admin.Exec(ctx, "SELECT pg_logical_emit_message(true, 'bench', '')"); err != nil {
		return w, err
	}
	err := s.admin.QueryRow(ctx, "SELECT coalesce(sum(fpi_size), 0)::bigint FROM pg_get_wal_stats($1::text::pg_lsn, $2::text::pg_lsn)",
		from.String(), to.String()).Scan(&w.pageImages)
	return w, err
}

// A database is a fresh database, with a connection of the measurement.
type database struct {
	*pgx.Conn
	server *server
	name   string
	url    string
}

func (s *server) newDatabase(ctx context.Context) (*database, error) {
	s.databases++
	db := &database{server: s, name: fmt.Sprintf("bench_%d", s.databases)}
	if _, err := s.admin.Exec(ctx, "CREATE DATABASE "+db.name); err != nil {
		return nil, err
	}
	u, err := url.Parse(s.URL())
	if err != nil {
		return nil, err
	}
	u.Path = "/" + db.name
	db.url = u.String()
	if db.Conn, err = s.connect(ctx, db.url); err != nil {
		return nil, err
	}
	return db, nil
}

const (
	dropSlots = `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active`

	countSlots = `SELECT count(*) FROM pg_replication_slots WHERE database = $1`
)

// dropWithin bounds how long dropping a database of some gigabytes may take.
const dropWithin = time.Minute

// drop drops the database with its slot, which would keep all WAL from then on. If that
// fails, the rest goes with the server.
func (db *database) drop() {
	ctx, cancel := context.WithTimeout(context.Background(), dropWithin)
	defer cancel()
	s := db.server
	s.hangUp(db.Conn)
	for left := 1; left > 0 && ctx.Err() == nil; { // PostgreSQL takes a moment to notice that walhook is gone
		_, _ = s.admin.Exec(ctx, dropSlots, db.name)
		if s.admin.QueryRow(ctx, countSlots, db.name).Scan(&left) != nil || left > 0 && pause(ctx, 50*time.Millisecond) != nil {
			break
		}
	}
	_, _ = s.admin.Exec(ctx, "DROP DATABASE "+db.name+" WITH (FORCE)")
}

// fresh calls f with a database of its own, after walhook init.
func (b *bench) fresh(ctx context.Context, f func(*database) error) error {
	db, err := b.server.newDatabase(ctx)
	if err != nil {
		return err
	}
	defer db.drop()
	if err := b.prepare(ctx, db); err != nil {
		return err
	}
	return f(db)
}

// vacuum does what autovacuum would have done by now.
func (db *database) vacuum(ctx context.Context, tables string) error {
	if _, err := db.Exec(ctx, "VACUUM (ANALYZE) "+tables); err != nil {
		return fmt.Errorf("vacuum %s: %w", tables, err)
	}
	return nil
}

// calm writes out dirty pages, so that the next measurement does not pay for them.
func (b *bench) calm(ctx context.Context) error {
	if _, err := b.server.admin.Exec(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	if err := b.receiver.reset(ctx); err != nil {
		return err
	}
	return pause(ctx, 500*time.Millisecond)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

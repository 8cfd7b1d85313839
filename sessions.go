package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// sessions make all of walhook's connections: those of the pool, the
// stream's. All of them have the same settings and look into the same schema, and
// each is made with the credentials of its moment.
type sessions struct {
	cfg *config.Config

	mu     sync.Mutex
	schema string // "": nobody has said it, and the first session has not looked yet
}

func newSessions(cfg *config.Config) *sessions { return &sessions{cfg: cfg, schema: cfg.Schema} }

func (s *sessions) pinned() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.schema
}

// pin keeps the schema of the first session that was made: that of a later one may
// be another, where somebody has made one meanwhile.
func (s *sessions) pin(schema string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schema = cmp.Or(s.schema, schema)
}

const (
	// connectTimeout bounds one try to connect, where the connection string does not.
	connectTimeout = 5 * time.Second

	// poolConns bounds the SQL connections: one each for the recorder, the retrier,
	// the directory and the fan-out, one for upkeep, checks and reconciling, one for
	// the admin server. With the replication connection and its witness they are 8.
	poolConns = 6
)

// pool makes the pool without connecting: the database may not be up yet.
func (s *sessions) pool(ctx context.Context) (*pgxpool.Pool, error) {
	pc, err := s.cfg.SQL()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	pc.MaxConns, pc.MinConns, pc.MinIdleConns = poolConns, 0, 0
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.BeforeConnect = s.beforeConnect
	pc.AfterConnect = s.begin
	if s.cfg.Pooled() {
		pc.AfterConnect = s.check
	}
	s.setUp(pc.ConnConfig)
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), pc)
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_DATABASE_URL: %w", errConfig, err)
	}
	return pool, nil
}

// beforeConnect takes what the connection string, the password file and the service
// file say now.
func (s *sessions) beforeConnect(_ context.Context, cc *pgx.ConnConfig) error {
	now, err := s.cfg.SQL()
	if err != nil {
		return err
	}
	s.setUp(now.ConnConfig)
	*cc = *now.ConnConfig
	return nil
}

// setUp adds what an SQL connection of walhook's needs. A pooler refuses most
// parameters, and forgets prepared statements.
func (s *sessions) setUp(cc *pgx.ConnConfig) {
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	if s.cfg.Pooled() {
		store.Override(cc.RuntimeParams, map[string]string{"client_encoding": "UTF8"})
		if !strings.Contains(string(s.cfg.DatabaseURL), "default_query_exec_mode") {
			cc.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return
	}
	s.direct(cc)
}

// direct adds what every connection to PostgreSQL itself starts with.
func (s *sessions) direct(cc *pgx.ConnConfig) {
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	store.Override(cc.RuntimeParams, store.Settings(s.pinned()))
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "walhook"
	}
}

func (s *sessions) begin(ctx context.Context, conn *pgx.Conn) error {
	schema, err := store.BeginSession(ctx, conn, s.pinned())
	if err == nil {
		s.pin(schema)
	}
	return err
}

func (s *sessions) check(ctx context.Context, conn *pgx.Conn) error {
	schema, err := store.CheckShared(ctx, conn, s.pinned())
	if err == nil {
		s.pin(schema)
	}
	return err
}

// replication says how to connect for replication now.
func (s *sessions) replication() (*pgconn.Config, error) {
	cc, err := s.cfg.Replication()
	if err != nil {
		return nil, err
	}
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	return cc.Config.Copy(), nil
}

// refused tells a server that is away from one that will not have us, ever. What was
// wrong stands in the variable.
func refused(err error, variable string, conn config.Secret) error {
	pg, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrSettings):
		return fmt.Errorf("%w: %w", errConfig, err)
	case errors.Is(err, cdc.ErrNoReplication):
		return fmt.Errorf("%w: %s: %w", errConfig, variable, err)
	case store.NeverConnects(err) && !conn.ShowsParameters():
		return fmt.Errorf("%w: %s: the server does not take one of the parameters; a value with blanks, such as a password, has to stand in ' '", errConfig, variable)
	case store.NeverConnects(err):
		return fmt.Errorf("%w: %s: take the parameter out that the server refuses (or, where a pooler answers, let WALHOOK_REPLICATION_URL name PostgreSQL itself): %s",
			errConfig, variable, pg.Message)
	case pg == nil:
		return err
	}
	switch pg.Code {
	case "28P01", "28000": // invalid_password, invalid_authorization_specification
		return fmt.Errorf("%w: %s: %w", errConfig, variable, err)
	case "3D000": // invalid_catalog_name
		return fmt.Errorf("%w: %w; CREATE DATABASE it, or mend %s", store.ErrNotPrepared, err, variable)
	}
	return err
}

// refusedSQL is refused for SQL connections.
func (s *sessions) refusedSQL(err error) error {
	return refused(err, "WALHOOK_DATABASE_URL", s.cfg.DatabaseURL)
}

// refusedReplication is refused for the replication connection.
func (s *sessions) refusedReplication(err error) error {
	return refused(err, s.cfg.ReplicationVariable(), s.cfg.ReplicationURL)
}

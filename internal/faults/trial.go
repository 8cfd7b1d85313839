package faults

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

const slotName = "walhook"

// roleName is walhook's role if it is not to be a superuser.
const roleName = "walhook"

// createRole creates it as the docs advise.
const createRole = `
CREATE ROLE ` + roleName + ` LOGIN REPLICATION;
GRANT CREATE ON DATABASE postgres TO ` + roleName + `;
GRANT CREATE, USAGE ON SCHEMA public TO ` + roleName

// A Setup configures a trial.
type Setup struct {
	Binary    string
	Version   string // of PostgreSQL; "": the first one found
	Broken    bool   // walhook breaks a rule on purpose: shorter waits suffice
	ParkAfter time.Duration
	Durable   bool              // PostgreSQL itself is killed
	Settings  map[string]string // more for PostgreSQL
	Local     bool              // the commits of walhook and of the trial wait for no standby
	Role      bool              // walhook is not a superuser, but owns its tables
	Address   string            // where the receivers listen; "": 127.0.0.1
	Endpoints []oracle.Endpoint // without ids and secrets; nil: threeEndpoints
	Schedule  string            // WALHOOK_RETRY_SCHEDULE; "": retrySchedule
	Env       []string          // more for walhook

	// Standby is the settings of a standby, to which everybody connects when the server
	// is away; nil: there is no standby.
	Standby map[string]string

	Report *Report // nil: none is wanted

	// Line returns an address that leads to PostgreSQL's: walhook connects to it; nil:
	// walhook connects directly.
	Line func(upstream string) (string, error)
}

// threeEndpoints subscribe to all, a half and a half of eventTypes.
func threeEndpoints() []oracle.Endpoint {
	return []oracle.Endpoint{
		{Org: "org_1", Types: []string{"*"}},
		{Org: "org_1", Types: []string{"payment.*"}},
		{Org: "org_1", Types: []string{"payment.succeeded", "subscription.*"}},
	}
}

// A Trial is the parts of one scenario. Its methods end the test if the trial cannot go
// on. walhook's mistakes are for the oracle, and do not end it.
type Trial struct {
	testing.TB
	setup     Setup
	server    *postgres.Server
	standby   *postgres.Server // nil: there is none
	pool      *pgxpool.Pool
	journal   *oracle.Journal
	receiver  *Receiver
	driver    *Driver
	monitor   *Monitor
	endpoints []oracle.Endpoint
	folder    string
	line      string // Setup.Line's address, or ""
	crashes   []oracle.Crash
	faults    []string                 // failed expectations
	judged    bool                     // finish has reported them
	tallied   int                      // events that are in no journal
	replays   func() map[uuid.UUID]int // of each delivery; nil: nobody replays

	mu        sync.Mutex
	processes []*Process
	load      sync.WaitGroup
}

// newTrial prepares everything but walhook and the load.
func newTrial(t testing.TB, s Setup) *Trial {
	t.Helper()
	x := &Trial{TB: t, setup: s, journal: &oracle.Journal{}, folder: t.ArtifactDir()}
	settings := map[string]string{
		"max_prepared_transactions": "20",
		"checkpoint_timeout":        "30min", // so that a crash is always minutes after the last checkpoint
		"max_wal_size":              "4GB",
		"track_commit_timestamp":    "on", // for the monitor
	}
	maps.Copy(settings, s.Settings)
	x.server = pgtest.Server(t, postgres.Options{Version: s.Version, Durable: s.Durable, Settings: settings})
	if s.Standby != nil {
		x.standby = follow(t, x.server, s.Standby)
	}
	pool, err := pgxpool.New(t.Context(), x.url()+"&pool_max_conns=24")
	if err != nil {
		t.Fatal(err)
	}
	x.pool = pool
	t.Cleanup(pool.Close)
	var version string
	if err := pool.QueryRow(t.Context(), `SHOW server_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	s.Report.on(version)
	x.receiver, err = newReceiver(x.journal, s.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.receiver.close)
	if s.Line != nil {
		if x.line, err = s.Line(net.JoinHostPort(pool.Config().ConnConfig.Host, strconv.Itoa(int(pool.Config().ConnConfig.Port)))); err != nil {
			t.Fatal(err)
		}
	}
	x.initialize()
	x.driver = &Driver{journal: x.journal, pool: pool}
	for _, e := range x.endpoints {
		if !slices.Contains(x.driver.orgs, e.Org) {
			x.driver.orgs = append(x.driver.orgs, e.Org)
		}
	}
	x.monitor = newMonitor(x)
	watching, stop := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { x.monitor.run(watching) })
	t.Cleanup(func() {
		stop()
		watch.Wait()
		x.load.Wait()
		x.end()
	})
	return x
}

// recordAudit makes the database note who writes deliveries, and whether walhook changes
// a success, which it must never do (an operator may: that is a replay). It also keeps
// the transaction that inserted each row, because an update changes xmin.
const recordAudit = `
ALTER TABLE webhook_deliveries ADD COLUMN faults_inserted xid8 DEFAULT pg_current_xact_id();

CREATE TABLE faults_changed_success (delivery uuid, status text, application text);
CREATE FUNCTION faults_changed_success() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.faults_changed_success VALUES (new.id, new.status, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER faults_changed_success AFTER UPDATE ON webhook_deliveries
    FOR EACH ROW WHEN (old.status = 'success' AND starts_with(current_setting('application_name'), 'walhook-')) EXECUTE FUNCTION faults_changed_success();

CREATE TABLE faults_writes (at timestamptz DEFAULT clock_timestamp(), application text, rows bigint);
CREATE FUNCTION faults_writes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.faults_writes (application, rows) SELECT current_setting('application_name'), count(*) FROM written HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER faults_inserts AFTER INSERT ON webhook_deliveries REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION faults_writes();
CREATE TRIGGER faults_updates AFTER UPDATE ON webhook_deliveries REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION faults_writes()`

// initialize runs walhook init, and adds endpoints and the audit.
func (x *Trial) initialize() {
	x.Helper()
	if x.setup.Role {
		x.exec(createRole)
	}
	prepare := exec.CommandContext(x.Context(), x.setup.Binary, "init")
	prepare.Env = x.env("init")
	if output, err := prepare.CombinedOutput(); err != nil {
		x.Fatalf("walhook init: %v: %s", err, output)
	}
	x.endpoints = x.setup.Endpoints
	if x.endpoints == nil {
		x.endpoints = threeEndpoints()
	}
	for i := range x.endpoints {
		e := &x.endpoints[i]
		at := cmp.Or(e.URL, x.receiver.url(i))
		if e.Secure {
			at = strings.Replace(at, "http:", "https:", 1)
		}
		err := x.pool.QueryRow(x.Context(), `SELECT endpoint_id, secret FROM webhook_create_endpoint($1, $2, $3)`, e.Org, at, e.Types).
			Scan(&e.ID, &e.Secret)
		if err != nil {
			x.Fatalf("create an endpoint at %s: %v", at, err)
		}
		if e.ForAll {
			x.exec(`UPDATE webhook_endpoints SET all_organizations = true WHERE id = $1`, e.ID)
		}
		x.receiver.Add(path(i), e.Secret)
	}
	x.exec(recordAudit)
	x.exec(`GRANT INSERT ON faults_changed_success, faults_writes TO PUBLIC`)
}

func (x *Trial) exec(sql string, args ...any) {
	x.Helper()
	if _, err := x.pool.Exec(x.Context(), sql, args...); err != nil {
		x.Fatalf("%s: %v", sql, err)
	}
}

// slot reads the slot, and waits until the database answers.
func (x *Trial) slot() (s Slot) {
	x.Helper()
	x.eventually(20*time.Second, "the slot can be read", func() bool {
		var err error
		s, err = readSlot(x.Context(), x.pool)
		return err == nil
	})
	return s
}

func (x *Trial) eventually(within time.Duration, what string, cond func() bool) {
	x.Helper()
	pgtest.Eventually(x, x.patient(within), what, cond)
}

// patient returns how long to wait for something that has to happen within a time. From
// a walhook that breaks a rule it will not come at all.
func (x *Trial) patient(within time.Duration) time.Duration {
	const hopeless = 20 * time.Second
	if x.setup.Broken {
		return min(within, hopeless)
	}
	return within
}

// ready waits until a walhook that was just started holds the slot. If there is nothing
// to do yet, ready measures what the idle walhook uses.
func (x *Trial) ready() {
	x.Helper()
	before := x.slot().Epoch
	x.eventually(20*time.Second, "walhook holds the slot", func() bool {
		s := x.slot()
		return s.PID != 0 && s.Epoch > 0 && s.Epoch >= before
	})
	var events bool
	if err := x.pool.QueryRow(x.Context(), `SELECT EXISTS (SELECT FROM webhook_outbox)`).Scan(&events); err != nil {
		x.Fatal(err)
	}
	for _, p := range x.living() {
		if !events {
			x.idles(p)
		}
	}
}

// drive runs a load in the background, and returns a channel that is closed at
// its end.
func (x *Trial) drive(load Load) <-chan struct{} {
	done := make(chan struct{})
	x.load.Go(func() {
		defer close(done)
		x.driver.drive(x.Context(), load)
	})
	return done
}

// driveOn runs a load until stop is called.
func (x *Trial) driveOn(load Load) (stop func()) {
	ctx, stop := context.WithCancel(x.Context())
	x.load.Go(func() { x.driver.drive(ctx, load) })
	return stop
}

// expect notes a failed expectation, and goes on.
func (x *Trial) expect(good bool, format string, args ...any) {
	if !good {
		x.faults = append(x.faults, fmt.Sprintf(format, args...))
	}
}

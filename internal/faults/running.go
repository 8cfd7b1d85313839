package faults

// The walhook processes of a trial: what they are told, and their start and end.

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/process"
)

func (x *Trial) url() string {
	if x.setup.Local {
		return x.applicationURL() + "&synchronous_commit=local"
	}
	return x.applicationURL()
}

// applicationURL leads to the server; with a standby, to the primary of the two.
func (x *Trial) applicationURL() string {
	if x.standby == nil {
		return x.server.URL()
	}
	standby, err := url.Parse(x.standby.URL())
	if err != nil {
		x.Fatal(err)
	}
	return strings.Replace(x.server.URL(), "/postgres?", ","+standby.Host+"/postgres?", 1) + "&target_session_attrs=read-write"
}

// walhookURL is the URL for a walhook whose connections have a name.
func (x *Trial) walhookURL(name string) string {
	u, err := url.Parse(x.url())
	if err != nil {
		x.Fatal(err)
	}
	u.Host = cmp.Or(x.line, u.Host)
	if x.setup.Role {
		u.User = url.User(roleName)
	}
	query := u.Query()
	query.Set("application_name", name)
	u.RawQuery = query.Encode()
	return u.String()
}

// env is the environment of a walhook whose connections have a name.
func (x *Trial) env(name string) []string {
	return append([]string{
		"WALHOOK_DATABASE_URL=" + x.walhookURL(name),
		"WALHOOK_SLOT=" + slotName,
		"WALHOOK_PARK_AFTER=" + x.setup.ParkAfter.String(),
		"WALHOOK_TIMEOUT=" + timeout.String(),
		"WALHOOK_RETRY_SCHEDULE=" + cmp.Or(x.setup.Schedule, retrySchedule),
		"WALHOOK_MAX_IN_FLIGHT=" + strconv.Itoa(maxInFlight),
		"WALHOOK_ALLOW_HTTP=true",
		"WALHOOK_ALLOW_NETS=127.0.0.0/8",
		"WALHOOK_LOG_FORMAT=text",
	}, x.setup.Env...)
}

// start starts a walhook with more variables in its environment.
func (x *Trial) start(more ...string) *Process {
	x.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	name := fmt.Sprintf("walhook-%d", len(x.processes)+1)
	p, err := startProcess(x.setup.Binary, x.folder, name, adminAddress(x), append(x.env(name), more...))
	if err != nil {
		x.Fatalf("start walhook: %v", err)
	}
	x.processes = append(x.processes, p)
	return p
}

// adminAddress returns a free address for an admin server.
func adminAddress(t testing.TB) string {
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// living returns the processes that run.
func (x *Trial) living() []*Process {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(x.processes), func(p *Process) bool { return !p.Running() })
}

// began returns when each process was started.
func (x *Trial) began() map[string]time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	began := map[string]time.Time{}
	for _, p := range x.processes {
		began[p.Name] = p.began
	}
	return began
}

// end kills the processes that still run. After a failure it shows the logs.
func (x *Trial) end() {
	for _, p := range x.living() {
		_ = p.Signal(syscall.SIGCONT)
		if err := p.kill(); err != nil {
			x.Error(err)
		}
	}
	if !x.Failed() {
		return
	}
	if !x.judged {
		for _, f := range x.faults {
			x.Log(f)
		}
	}
	for _, p := range x.processes[max(0, len(x.processes)-3):] {
		x.Logf("%s (%v):\n%s", p.Name, p.Err, p.tail())
	}
}

package faults

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/walhook/walhook/internal/failpoint"
	"github.com/walhook/walhook/internal/oracle"
)

var switches = flag.Bool("faults.switches", false, "break each rule in turn, and want a scenario to go red for it")

// A breach is a rule that walhook breaks, and the scenario that detects it.
type breach struct {
	how      failpoint.Switch
	scenario string
	park     time.Duration // WALHOOK_PARK_AFTER: mostly the one with which more deliveries have no row yet
	says     string        // a part of the finding: red for another reason proves nothing
	postgres string        // the major version that the scenario needs; "": any
	flags    []string      // that shorten it
}

var breaches = []breach{
	{failpoint.ConfirmOnReceipt, "KillMinus9", direct, "is confirmed, and event", "", []string{"-faults.duration=5s"}},
	{failpoint.ConfirmOnReceipt, "KillMinus9", 0, "is confirmed, and event", "", []string{"-faults.duration=5s"}},
	{failpoint.ConfirmBegin, "KillMinus9Mixed", direct, "is confirmed, and event", "", []string{"-faults.duration=5s"}},
	{failpoint.SkipEcho, "UnechoedOutcome", direct, "and the standby has not got what was recorded", "17", nil},
	{failpoint.SkipEcho, "FailoverBehind", direct, "the standby's slot is beyond what has rows there", "17", nil},
	{failpoint.SlotsPosition, "RepeatedEvents", direct, "came by the stream once more", "", nil},
	{failpoint.SkipLookUp, "Failpoints", direct, "requests were sent for them again", "", nil},
	{failpoint.NoFence, "Thawed", direct, "the zombie wrote", "", nil},
	{failpoint.NoWatchdog, "Wedged", direct, "walhook-2 sends", "", nil},
	{failpoint.NoRoom, "ReadOnly", direct, "attempts were made while nothing could be recorded", "", nil},
	{failpoint.NoLease, "Lease", direct, "after an attempt that may take", "", nil},
	{failpoint.StayOn, "StopPostgresWhileHanging", direct, "PostgreSQL stopped after", "", nil},
	{failpoint.NoReconciler, "DroppedSlot", direct, "everything that was committed before has its rows", "", nil},
	{failpoint.CancelUnseen, "InvisibleCommit", direct, string(oracle.Lost), "", nil},
	{failpoint.KeepText, "HostileReceivers", direct, `response of deliveries failed by "NUL" kept: false`, "", nil},
	{failpoint.TrustSlot, "AdvancedSlot", direct, "everything that was committed before has its rows", "", nil},
	{failpoint.NoLiveness, "CutHolder", direct, "requests are the former holder's", "", nil},
	{failpoint.IgnoreCheck, "UnpublishedTable", direct, "in the meantime", "", nil},
	{failpoint.EarlierWord, "TheLaterWord", direct, "webhook_replay", "", nil},
	{failpoint.EarlierWord, "TheLaterWord", 0, "webhook_replay", "", nil},
	{failpoint.ChargeOwnFaults, "Keys", direct, "the log says 0 times that secrets cannot be opened", "", nil},
	{failpoint.ChargeOwnFaults, "OwnFaults", direct, "proxy: attempts of", "", nil},
}

// direct is the WALHOOK_PARK_AFTER with which deliveries go straight from the stream.
var direct = parkAfter[0]

// TestSwitches shows that the suite can fail: if a rule is broken, its scenario goes red
// for that reason.
func TestSwitches(t *testing.T) {
	if !*switches {
		t.Skip("-faults.switches runs it: make faults-switches")
	}
	for _, s := range failpoint.Switches {
		if !slices.ContainsFunc(breaches, func(b breach) bool { return b.how == s }) {
			t.Errorf("no scenario is named for %s", s)
		}
	}
	path := breakable(t)
	results, whys := make([]string, len(breaches)), make([]string, len(breaches))
	t.Run("goes red", func(t *testing.T) {
		for i, b := range breaches {
			t.Run(fmt.Sprintf("%s with %s and park=%s", b.scenario, b.how, b.park), func(t *testing.T) {
				t.Parallel()
				results[i] = "not run to its end"
				output := b.run(t, path)
				results[i], whys[i] = b.judge(output)
				if results[i] != "red" {
					t.Errorf("it is %s: %s\n%s", results[i], whys[i], output)
				}
			})
		}
	})
	fmt.Print(redAndGreen(results, whys))
}

// run runs the scenario in a process of its own, with a walhook that breaks the rule.
func (b *breach) run(t *testing.T, walhook string) []byte {
	t.Helper()
	const atMost = 3 * time.Minute
	i := slices.IndexFunc(scenarios, func(s Scenario) bool { return s.name == b.scenario })
	if i < 0 {
		t.Fatalf("there is no scenario %s", b.scenario)
	}
	kind := []string{"-faults", "-faults.rate=100"}
	if scenarios[i].how&inQuick != 0 {
		kind = []string{"-faults.quick"}
	}
	names := []string{"^TestFaults$", "^" + b.scenario + "$", "^park=" + b.park.String() + "$"}
	version := cmp.Or(b.postgres, os.Getenv(versionVariable))
	if version != "" {
		names = slices.Insert(names, 2, "^pg"+version+"$")
	}
	ctx, cancel := context.WithTimeout(t.Context(), atMost+time.Minute)
	defer cancel()
	runtime.LockOSThread() // Pdeathsig is bound to this thread
	defer runtime.UnlockOSThread()
	child := exec.CommandContext(ctx, os.Args[0], slices.Concat(kind, b.flags, []string{
		"-test.run=" + strings.Join(names, "/"), "-test.v", "-test.timeout=" + atMost.String(),
		"-faults.failpoint=" + string(b.how), "-faults.binary=" + walhook,
	})...)
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	child.Env = append(os.Environ(), versionVariable+"="+version)
	output, err := child.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return output
}

// judge reads the scenario's output. The result is red if it failed for the breach's
// reason; why quotes that.
func (b *breach) judge(output []byte) (result, why string) {
	ended := ""
	for line := range bytes.Lines(output) {
		text := string(bytes.TrimSpace(line))
		if fields := strings.Fields(text); strings.HasPrefix(text, "fault ") && slices.Contains(fields, b.scenario) {
			ended = fields[slices.Index(fields, b.scenario)+3] // behind version and mode
		}
		if why == "" && strings.Contains(text, b.says) {
			why = text
		}
	}
	switch {
	case ended == "FAIL" && why != "":
		return "red", why
	case ended == "FAIL":
		return "red for another reason", fmt.Sprintf("nothing says %q", b.says)
	case ended == "pass":
		return "green", ""
	}
	return "not run to its end", ended
}

func TestBreachIsJudged(t *testing.T) {
	t.Parallel()
	b := breach{scenario: "Lease", says: "sent again"}
	for _, c := range []struct{ output, want string }{
		{"    a_test.go:1: x was sent again\nfault  Lease 15.18 park=500ms FAIL events=5\n", "red"},
		{"    a_test.go:1: x was sent again\nfault  Lease 15.18 park=500ms FAIL \n", "red"},
		{"    a_test.go:1: not drained\nfault  Lease 15.18 park=500ms FAIL events=5\n", "red for another reason"},
		{"fault  Lease 15.18 park=500ms pass sent again=0\n", "green"},
		{"fault  Lease 15.18 park=500ms skip\n", "not run to its end"},
		{"panic: sent again\n", "not run to its end"},
	} {
		if got, _ := b.judge([]byte(c.output)); got != c.want {
			t.Errorf("%q is %s, want %s", c.output, got, c.want)
		}
	}
}

// redAndGreen is the table of results.
func redAndGreen(results, whys []string) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "switch\tscenario\tmode\tresult\tit says")
	for i, b := range breaches {
		fmt.Fprintf(w, "%s\t%s\tpark=%s\t%s\t%s\n", b.how, b.scenario, b.park, results[i], whys[i])
	}
	_ = w.Flush() // to a strings.Builder
	return text.String()
}

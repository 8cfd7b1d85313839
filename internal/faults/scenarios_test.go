package faults

import (
	"testing"
	"time"
)

// A Scenario is one fault. It runs with both values of WALHOOK_PARK_AFTER.
type Scenario struct {
	number string // docs and reports name faults so
	name   string // in -run
	how    how
	run    func(*testing.T, Setup)
}

// A how is what is special about running a scenario.
type how int

const (
	inQuick how = 1 << iota // it runs with -faults.quick too
	alone                   // its modes run one after the other: it takes all of the machine, or compares latencies
)

var scenarios = []Scenario{
	{"1", "NoFault", inQuick, noFault},
	{"2", "KillMinus9", inQuick, killMinus9},
	{"3", "KillMinus9Mixed", inQuick | alone, killMinus9Mixed},
	{"4", "Failpoints", inQuick, failpoints},
	{"5", "RollingRestart", inQuick, rollingRestart},
	{"6", "KillPostgres", 0, killPostgres},
	{"7", "ImmediateStops", 0, immediateStops},
	{"8", "StopPostgresWhileHanging", inQuick, stopPostgresWhileHanging},
	{"9", "PostgresDown", 0, postgresDown},
	{"10", "LineResets", 0, lineResets},
	{"10", "LineLatency", 0, lineLatency},
	{"10", "LineNarrow", 0, lineNarrow},
	{"10", "LineBlackHole", 0, lineBlackHole},
	{"11", "LockedDeliveries", inQuick, lockedDeliveries},
	{"12", "BacklogHealthy", alone, backlogHealthy},
	{"12", "BacklogHanging", alone, backlogHanging},
	{"13", "Takeover", inQuick, takeover},
	{"14", "Freeze", 0, freeze},
	{"14", "Thawed", 0, thawed},
	{"15", "Wedged", 0, wedged},
	{"16", "DroppedSlot", inQuick, droppedSlot},
	{"17", "InvalidatedSlot", 0, invalidatedSlot},
	{"18", "HugeTransaction", alone, hugeTransaction},
	{"19", "FailoverWithoutSlot", 0, failoverWithoutSlot},
	{"19", "FailoverWithSlot", 0, failoverWithSlot},
	{"19", "FailoverBehind", 0, failoverBehind},
	{"20", "RestoredSnapshot", 0, restoredSnapshot},
	{"20", "RestoredToAPoint", 0, restoredToAPoint},
	{"21", "BlockedCreation", 0, blockedCreation},
	{"22", "DroppedPublication", 0, droppedPublication},
	{"22", "UnpublishedTable", 0, unpublishedTable},
	{"22", "RenamedTable", 0, renamedTable},
	{"23", "Columns", 0, columns},
	{"23", "RenamedColumn", 0, renamedColumn},
	{"23", "Rewritten", 0, rewritten},
	{"23", "Truncated", 0, truncated},
	{"24", "HostileReceivers", inQuick | alone, hostileReceivers},
	{"25", "CallingBack", alone, callingBack},
	{"26", "ReadOnly", inQuick, readOnly},
	{"26", "DiskFull", inQuick, diskFull},
	{"26", "Revoked", inQuick, revoked},
	{"27", "ClockOff", 0, clockOff},
	{"28", "ComingAndGoing", 0, endpointsComeAndGo},
	{"29", "Deadlocks", 0, deadlocks},
	{"29", "RepeatableRead", 0, repeatableRead},
	{"29", "Serializable", 0, serializable},
	{"29", "MassReplay", alone, massReplay},
	{"30", "Addresses", inQuick, addresses},
	{"", "InvisibleCommit", 0, invisibleCommit},
	{"", "Lease", 0, lease},
	{"", "UnechoedOutcome", 0, unechoedOutcome},
	{"", "OneOfFiftyHangs", alone, oneOfFiftyHangs},
}

var parkAfter = []time.Duration{500 * time.Millisecond, 0}

func TestFaults(t *testing.T) {
	if !*faults && !*quick {
		t.Skip("-faults, -faults.quick or WALHOOK_FAULTS=1 runs them; TestKilledAgainAndAgain is the short one")
	}
	chosen := 0
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			chosen++
			if *quick && s.how&inQuick == 0 {
				t.Skipf("not of the quick ones: make faults RUN=%s", s.name)
			}
			for _, park := range parkAfter {
				t.Run("park="+park.String(), func(t *testing.T) {
					if *quick || s.how&alone == 0 {
						t.Parallel() // both modes at once: a scenario mostly waits
					}
					s.in(t, park)
				})
			}
		})
	}
	if chosen == 0 {
		t.Error("no scenario has that name")
	}
}

// in runs a scenario in one mode, and reports what came of it.
func (s *Scenario) in(t *testing.T, park time.Duration) {
	stand := setup(t, park)
	report := stand.Report
	report.Number, report.Name, report.Mode = s.number, s.name, "park="+park.String()
	defer func() {
		switch {
		case t.Failed():
			report.Result = "FAIL"
		case t.Skipped():
			report.Result = "skip"
		default:
			report.Result = "pass"
		}
		report.keep()
	}()
	s.run(t, stand)
}

func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	if *faults || *quick {
		t.Skip("TestFaults/KillMinus9 does more")
	}
	if testing.Short() {
		t.Skip("takes about 15 s")
	}
	for _, park := range parkAfter {
		t.Run("loses nothing with park="+park.String(), func(t *testing.T) {
			t.Parallel()
			x := newTrial(t, setup(t, park))
			kills(x, Load{Rate: 100, Duration: 7 * time.Second}, 1500*time.Millisecond)
		})
	}
}

package faults

import (
	"testing"
	"time"
)

// A Scenario is one fault. It runs with both values of WALHOOK_PARK_AFTER.
type Scenario struct {
	number string // docs and reports name faults so
	name   string // in -run
	quick  bool   // also with -faults.quick
	run    func(*testing.T, Setup)
}

var scenarios = []Scenario{
	{"1", "NoFault", true, noFault},
	{"2", "KillMinus9", true, killMinus9},
	{"3", "KillMinus9Mixed", true, killMinus9Mixed},
	{"4", "Failpoints", true, failpoints},
	{"5", "RollingRestart", true, rollingRestart},
	{"6", "KillPostgres", false, killPostgres},
	{"7", "ImmediateStops", false, immediateStops},
	{"8", "StopPostgresWhileHanging", true, stopPostgresWhileHanging},
	{"9", "PostgresDown", false, postgresDown},
	{"10", "LineResets", false, lineResets},
	{"10", "LineLatency", false, lineLatency},
	{"10", "LineNarrow", false, lineNarrow},
	{"10", "LineBlackHole", false, lineBlackHole},
	{"11", "LockedDeliveries", true, lockedDeliveries},
	{"12", "BacklogHealthy", false, backlogHealthy},
	{"12", "BacklogHanging", false, backlogHanging},
	{"13", "Takeover", true, takeover},
	{"14", "Freeze", false, freeze},
	{"14", "Thawed", false, thawed},
	{"15", "Wedged", false, wedged},
	{"16", "DroppedSlot", true, droppedSlot},
	{"17", "InvalidatedSlot", false, invalidatedSlot},
	{"18", "HugeTransaction", false, hugeTransaction},
	{"19", "FailoverWithoutSlot", false, failoverWithoutSlot},
	{"19", "FailoverWithSlot", false, failoverWithSlot},
	{"19", "FailoverBehind", false, failoverBehind},
	{"20", "RestoredSnapshot", false, restoredSnapshot},
	{"20", "RestoredToAPoint", false, restoredToAPoint},
	{"21", "BlockedCreation", false, blockedCreation},
	{"22", "DroppedPublication", false, droppedPublication},
	{"22", "UnpublishedTable", false, unpublishedTable},
	{"22", "RenamedTable", false, renamedTable},
	{"23", "Columns", false, columns},
	{"23", "RenamedColumn", false, renamedColumn},
	{"23", "Rewritten", false, rewritten},
	{"23", "Truncated", false, truncated},
	{"24", "HostileReceivers", true, hostileReceivers},
	{"25", "CallingBack", false, callingBack},
	{"26", "ReadOnly", true, readOnly},
	{"26", "DiskFull", true, diskFull},
	{"26", "Revoked", true, revoked},
	{"27", "ClockOff", false, clockOff},
	{"28", "ComingAndGoing", false, endpointsComeAndGo},
	{"29", "Deadlocks", false, deadlocks},
	{"29", "RepeatableRead", false, repeatableRead},
	{"29", "Serializable", false, serializable},
	{"29", "MassReplay", false, massReplay},
	{"30", "Addresses", true, addresses},
	{"", "InvisibleCommit", false, invisibleCommit},
	{"", "Lease", false, lease},
	{"", "UnechoedOutcome", false, unechoedOutcome},
	{"", "OneOfFiftyHangs", false, oneOfFiftyHangs},
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
			if *quick && !s.quick {
				t.Skipf("not of the quick ones: make faults RUN=%s", s.name)
			}
			for _, park := range parkAfter {
				t.Run("park="+park.String(), func(t *testing.T) {
					if *quick {
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

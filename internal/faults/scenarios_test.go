package faults

import (
	"cmp"
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// A Scenario is one fault. It runs with both values of WALHOOK_PARK_AFTER on the
// PostgreSQL that is found, and on other versions if these matter.
type Scenario struct {
	number string // of the fault, in docs and reports
	name   string // in -run
	how    how
	run    func(*testing.T, Setup)
}

// A how is a set of flags for running a scenario.
type how int

const (
	inQuick how = 1 << iota // it runs with -faults.quick too
	alone                   // its modes run one after the other: it needs all of the machine, or compares latencies
	on14                    // it runs on PostgreSQL 14 too
	on17
	on18
	from17 // it needs PostgreSQL 17, and runs on that alone
	from18 // the same for 18
)

var scenarios = []Scenario{
	{"1", "NoFault", inQuick, noFault},
	{"2", "KillMinus9", inQuick, killMinus9},
	{"3", "KillMinus9Mixed", inQuick | alone, killMinus9Mixed},
	{"4", "Failpoints", inQuick, failpoints},
	{"5", "RollingRestart", inQuick, rollingRestart},
	{"6", "KillPostgres", 0, killPostgres},
	{"6", "RepeatedEvents", 0, repeatedEvents},
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
	{"15", "Wedged", inQuick, wedged},
	{"15", "FencedWhileWedged", 0, fencedWhileWedged},
	{"16", "DroppedSlot", inQuick, droppedSlot},
	{"17", "InvalidatedSlot", on18, invalidatedSlot},
	{"17", "IdleSlot", from18, idleSlot},
	{"18", "HugeTransaction", alone, hugeTransaction},
	{"19", "FailoverWithoutSlot", on17, failoverWithoutSlot},
	{"19", "FailoverWithSlot", from17, failoverWithSlot},
	{"19", "FailoverBehind", from17, failoverBehind},
	{"20", "RestoredSnapshot", on17, restoredSnapshot},
	{"20", "RestoredToAPoint", on17, restoredToAPoint},
	{"21", "BlockedCreation", 0, blockedCreation},
	{"22", "DroppedPublication", on14 | on18, droppedPublication},
	{"22", "UnpublishedTable", on14 | on18, unpublishedTable},
	{"22", "RenamedTable", on14 | on18, renamedTable},
	{"23", "Columns", 0, columns},
	{"23", "RenamedColumn", 0, renamedColumn},
	{"23", "Rewritten", 0, rewritten},
	{"23", "Truncated", 0, truncated},
	{"24", "HostileReceivers", inQuick | alone, hostileReceivers},
	{"25", "CallingBack", alone, callingBack},
	{"26", "ReadOnly", inQuick, readOnly},
	{"26", "DiskFull", inQuick, diskFull},
	{"26", "Revoked", inQuick, revoked},
	{"26", "InsertRevoked", 0, insertRevoked},
	{"27", "ClockOff", 0, clockOff},
	{"28", "ComingAndGoing", 0, endpointsComeAndGo},
	{"29", "Deadlocks", 0, deadlocks},
	{"29", "RepeatableRead", 0, repeatableRead},
	{"29", "Serializable", 0, serializable},
	{"29", "MassReplay", alone, massReplay},
	{"30", "Addresses", inQuick, addresses},
	{"31", "AdvancedSlot", on14 | on18, advancedSlot},
	{"31", "RemadeSlot", on14 | on18, remadeSlot},
	{"32", "MovedRows", alone | on14 | on18, movedRows},
	{"33", "ReconcileMany", alone | on14 | on18, reconcileMany},
	{"33", "ReconcileAtTheHead", on14 | on18, reconcileAtTheHead},
	{"34", "CutHolder", on14 | on18, cutHolder},
	{"34", "FrozenHolder", on14 | on18, frozenHolder},
	{"35", "TheLaterWord", on14 | on18, theLaterWord},
	{"36", "RefusedConsequences", on14 | on18, refusedConsequences},
	{"37", "HugeMessage", alone | on14 | on18, hugeMessage},
	{"37", "Strangers", on14 | on18, strangers},
	{"37", "NoisyStrangers", on14 | on18, noisyStrangers},
	{"38", "Defaults", on14 | on18, defaults},
	{"39", "SecondSlot", on14 | on18, secondSlot},
	{"39", "SecondInstallation", on14 | on18, secondInstallation},
	{"40", "PasswordRotated", on14 | on18, passwordRotated},
	{"40", "Keys", on14 | on18, keys},
	{"41", "Moved", on14 | on18, movedDatabase},
	{"42", "AdminFlood", alone, adminFlood},
	{"43", "Redaction", inQuick | on14 | on18, redaction},
	{"44", "OwnFaults", 0, ownFaults},
	{"44", "ResolverAway", 0, resolverAway},
	{"45", "Paused", 0, paused},
	{"46", "UpgradeFrom1", 0, upgradeFrom(1)},
	{"46", "UpgradeFrom2", 0, upgradeFrom(2)},
	{"46", "UpgradeFrom3", 0, upgradeFrom(3)},
	{"46", "UpgradeFrom4", 0, upgradeFrom(4)},
	{"46", "UpgradeFrom5", 0, upgradeFrom(5)},
	{"46", "UpgradeFrom6", 0, upgradeFrom(6)},
	{"46", "UpgradeFrom7", 0, upgradeFrom(7)},
	{"46", "UpgradeFrom8", inQuick, upgradeFrom(8)},
	{"47", "Forgotten", on14 | on18, forgottenCustomer},
	{"48", "DeadOperators", inQuick, deadOperators},
	{"", "InvisibleCommit", 0, invisibleCommit},
	{"", "Lease", 0, lease},
	{"", "UnechoedOutcome", from17, unechoedOutcome},
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
				t.Skipf("not one of the quick ones: make faults RUN=%s", s.name)
			}
			if *quick && s.how&alone == 0 {
				t.Parallel() // with as many others as -parallel allows: at a fifth of the rate both modes take a third of a core
			}
			for _, version := range s.versions() {
				if version == "" {
					s.inBothModes(t, version)
					continue
				}
				t.Run("pg"+version, func(t *testing.T) { s.inBothModes(t, version) })
			}
		})
	}
	if chosen == 0 {
		t.Error("no scenario has that name")
	}
}

// versions returns the major versions of PostgreSQL that a scenario runs on; "" is the
// first one found. A version in the environment is the only one.
func (s *Scenario) versions() []string {
	if wanted := os.Getenv(versionVariable); wanted != "" {
		return []string{wanted}
	}
	if s.how&from17 != 0 {
		return []string{"17"}
	}
	if s.how&from18 != 0 {
		return []string{"18"}
	}
	versions := []string{""}
	for _, v := range []struct {
		how   how
		major string
	}{{on14, "14"}, {on17, "17"}, {on18, "18"}} {
		if s.how&v.how != 0 && !*quick {
			versions = append(versions, v.major)
		}
	}
	return versions
}

// versionVariable chooses the major version for all tests of this module.
const versionVariable = "WALHOOK_TEST_POSTGRES_VERSION"

func (s *Scenario) inBothModes(t *testing.T, version string) {
	for _, park := range parkAfter {
		t.Run("park="+park.String(), func(t *testing.T) {
			if *quick || s.how&alone == 0 {
				t.Parallel() // both modes at once, because a scenario mostly waits
			}
			s.in(t, version, park)
		})
	}
}

// in runs a scenario in one mode, and reports the result.
func (s *Scenario) in(t *testing.T, version string, park time.Duration) {
	stand := setup(t, park)
	stand.Version = version
	report := stand.Report
	report.Number, report.Name, report.Postgres, report.Mode = s.number, s.name, cmp.Or(version, "-"), "park="+park.String()
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
	if version != "" && os.Getenv(versionVariable) == "" {
		if err := canHave(version); err != nil {
			t.Skipf("there is no PostgreSQL %s: %v", version, err)
		}
	}
	s.run(t, stand)
}

// had holds the requested versions of PostgreSQL, and why they are not available.
var had = struct {
	mu  sync.Mutex
	why map[string]error
}{why: map[string]error{}}

// canHave returns why there is no PostgreSQL of a version; nil: there is one now.
func canHave(version string) error {
	const within = 5 * time.Minute // it may have to be downloaded
	had.mu.Lock()
	defer had.mu.Unlock()
	err, asked := had.why[version]
	if asked {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	server, err := pgtest.Start(ctx, postgres.Options{Version: version})
	if err == nil {
		err = server.Close()
	}
	had.why[version] = err
	return err
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
			kills(x, Load{Rate: 100, Duration: 7 * time.Second}, func() time.Duration { return 1500 * time.Millisecond })
		})
	}
}

package failpoint

import (
	"os"
	"slices"
	"strings"
	"syscall"
)

var (
	chosen = strings.Split(os.Getenv(Variable), ",")
	armed  = os.Getenv(Armed)
)

// On says whether a rule is broken.
func On(s Switch) bool { return slices.Contains(chosen, string(s)) }

// Reach kills the process where the point is chosen.
func Reach(p Point) {
	if slices.Contains(chosen, Kill(p)) && isArmed() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal is there
	}
}

// Turn never returns where the loop is chosen.
func Turn(loop string) {
	if slices.Contains(chosen, Wedge(loop)) && isArmed() {
		select {}
	}
}

func isArmed() bool {
	if armed == "" {
		return true
	}
	_, err := os.Stat(armed)
	return err == nil
}

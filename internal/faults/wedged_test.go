package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/failpoint"
)

// wedged stops each of walhook's loops in turn, while the rest of the process lives and
// another walhook stands by. walhook must give up the slot and exit, so that its supervisor
// restarts it. If the stream's own goroutine is wedged, PostgreSQL takes the slot away.
func wedged(t *testing.T, s Setup) {
	const givenUpAtMost = 30 * time.Second
	loops := []string{"fan-out", "recorder", "retrier", "directory", "clock", "stream"}
	if *quick {
		loops = loops[:1]
	}
	s.Binary = breakable(t)
	x := newTrial(t, s)
	active, arm := x.startWedging(loops[0])
	x.ready()
	stop := x.driveOn(Load{Rate: *rate / 3})
	defer stop()
	var took []string
	for i, loop := range loops {
		standby, armNext := x.startWedging(append(loops, "none")[i+1])
		x.standingBy(standby)
		<-time.After(time.Second)
		began, over := time.Now(), x.crash(active)
		arm()
		given := x.firstRequest(standby, began, 2*givenUpAtMost)
		x.expect(given <= givenUpAtMost, "with the %s wedged, the slot was given up after %s", loop, given)
		x.ends(active, loop)
		over()
		x.expect(active.logged("the "+loop+" has not turned") > 0, "with the %s wedged, the log does not say so", loop)
		took = append(took, fmt.Sprintf("%s=%s/%s", loop, given.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond)))
		active, arm = standby, armNext
	}
	stop()
	x.finish(time.Minute, "sends/ended: "+strings.Join(took, " "))
}

// ends waits until a process has ended by itself.
func (x *Trial) ends(p *Process, loop string) {
	x.Helper()
	const within = timeout + exitMargin + time.Second
	select {
	case <-p.Exited:
		x.expect(p.Err != nil, "with the %s wedged, %s ended as if nothing were wrong", loop, p.Name)
	case <-time.After(within):
		x.expect(false, "with the %s wedged, %s still runs %s after it gave up the slot", loop, p.Name, within)
		if err := p.kill(); err != nil {
			x.Fatal(err)
		}
	}
}

// startWedging starts a walhook of which one loop stops once it is armed.
func (x *Trial) startWedging(loop string) (p *Process, arm func()) {
	x.Helper()
	file := filepath.Join(x.folder, "wedge-"+loop)
	p = x.start(breaking(failpoint.Wedge(loop)), failpoint.Armed+"="+file)
	return p, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			x.Fatal(err)
		}
	}
}

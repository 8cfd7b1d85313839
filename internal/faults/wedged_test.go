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
	loops := []string{"fan-out", "recorder", "retrier", "finder", "directory", "clock", "stream"}
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
		x.ends(active, loop, timeout+exitMargin+time.Second)
		over()
		x.expect(active.logged("the "+loop+" has made no progress") > 0, "with the %s wedged, the log does not say so", loop)
		took = append(took, fmt.Sprintf("%s=%s/%s", loop, given.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond)))
		active, arm = standby, armNext
	}
	stop()
	x.finish(time.Minute, "sends/ended: "+strings.Join(took, " "))
}

// ends waits until a process has ended by itself.
func (x *Trial) ends(p *Process, loop string, within time.Duration) {
	x.Helper()
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
func (x *Trial) startWedging(loop string, env ...string) (p *Process, arm func()) {
	x.Helper()
	file := filepath.Join(x.folder, "wedge-"+loop)
	p = x.start(append(env, breaking(failpoint.Wedge(loop)), failpoint.Armed+"="+file)...)
	return p, func() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			x.Fatal(err)
		}
	}
}

// fencedWhileWedged returns the slot to a walhook that had lost it to another and whose
// clock has stopped. Such a process cannot start another pipeline, so it must exit.
func fencedWhileWedged(t *testing.T, s Setup) {
	const loop, takeover = "clock", 20 * time.Second
	s.Binary = breakable(t)
	x := newTrial(t, s)
	line := &Line{t: t}
	former, arm := x.startWedging(loop, x.replicationThrough(line, "walhook-1"))
	x.ready()
	other := x.start()
	x.standingBy(other)
	events := func() {
		if err := x.driver.copy(t.Context(), x.driver.newEvents(100), false); err != nil {
			t.Fatal(err)
		}
	}
	events()
	x.drain(time.Minute) // or a write would tell it at once that the slot is another's

	line.proxy.Stop()
	x.holds(other, takeover)
	if err := line.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	x.standingBy(former)
	arm()
	began, over := time.Now(), x.crash(other)
	if err := other.kill(); err != nil {
		t.Fatal(err)
	}
	over()
	x.ends(former, loop, takeover+timeout+exitMargin)
	took := time.Since(began)
	x.expect(former.logged("did not stop in time") == 1, "the log does not say why it ended")
	x.expect(former.logged("has made no progress") == 0, "it was not the fence that ended it")
	x.start()
	events()
	x.finish(time.Minute, fmt.Sprintf("ended=%s", took.Round(100*time.Millisecond)))
}

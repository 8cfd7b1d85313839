package faults

import (
	"os/exec"
	"testing"

	"github.com/walhook/walhook/internal/process"
)

func TestUsageComesBack(t *testing.T) {
	t.Parallel()
	before := Usage{goroutines: 30, resident: 40 << 20}
	for _, c := range []struct {
		what    string
		now     Usage
		returns bool
	}{
		{"the same", before, true},
		{"some connections more", Usage{before.goroutines + moreGoroutines, before.resident}, true},
		{"a goroutine beyond", Usage{before.goroutines + moreGoroutines + 1, before.resident}, false},
		{"garbage of a full window", Usage{before.goroutines, before.resident + moreResident}, true},
		{"memory beyond", Usage{before.goroutines, before.resident + moreResident + 1}, false},
	} {
		if more := c.now.more(before); c.returns != (more == "") {
			t.Errorf("%s: %q", c.what, more)
		}
	}
}

func TestWhatHasEndedIsNotMeasuredAsNothing(t *testing.T) {
	t.Parallel()
	ended, err := process.Start(exec.Command("true"))
	if err != nil {
		t.Fatal(err)
	}
	<-ended.Exited
	p := &Process{Process: ended}
	if s, err := p.measure(); err == nil {
		t.Errorf("it uses %+v", s)
	}
}

package process

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestStart(t *testing.T) {
	t.Parallel()
	p, err := Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if !p.Running() {
		t.Error("it does not run")
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	<-p.Exited
	if p.Running() || p.Err == nil {
		t.Errorf("after its end: running %t, %v", p.Running(), p.Err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal after its end: %v", err)
	}
}

func TestStartNamesWhatIsNotThere(t *testing.T) {
	t.Parallel()
	if _, err := Start(exec.Command("/nonexistent/program")); err == nil || !strings.Contains(err.Error(), "/nonexistent/program") {
		t.Errorf("got %v", err)
	}
}

func TestFreePort(t *testing.T) {
	t.Parallel()
	for _, r := range []Range{ForPostgres, ForWalhook} {
		if port, err := r.FreePort(); err != nil || port < r.lowest || port >= r.lowest+r.count {
			t.Errorf("%v: port %d, %v", r, port, err)
		}
	}
}

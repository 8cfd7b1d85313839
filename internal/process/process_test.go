package process

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
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

func TestReadStat(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("/proc is Linux's")
	}
	p, err := Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ReadStat(p.PID)
	for began := time.Now(); err == nil && s.Resident == 0 && time.Since(began) < time.Minute; { // it is only just starting
		s, err = ReadStat(p.PID)
	}
	if err != nil || s.PID != p.PID || s.Parent != os.Getpid() || s.Resident <= 0 {
		t.Errorf("got %+v, %v", s, err)
	}
	own, err := ReadStat(os.Getpid())
	for began := time.Now(); err == nil && own.CPU == 0 && time.Since(began) < time.Minute; { // until it has used a tick
		own, err = ReadStat(os.Getpid())
	}
	if err != nil || own.CPU == 0 {
		t.Errorf("of this process: %+v, %v", own, err)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-p.Exited
	if s, err := ReadStat(p.PID); err == nil {
		t.Errorf("after its end: %+v", s)
	}
}

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
)

// folder holds the walhook that the tests run.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "walhook-demo-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := os.RemoveAll(folder); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	program := filepath.Join(folder, "walhook")
	return program, process.Build(context.Background(), program)
})

// start runs walhook as a process of its own: the demo itself runs it in its own process.
func start(ctx context.Context, environ []string, log io.Writer) error {
	program, err := build()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "run")
	cmd.Env, cmd.Stdout, cmd.Stderr = environ, log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopWithin
	err = cmd.Run()
	if ctx.Err() != nil && cmd.ProcessState != nil && cmd.ProcessState.Success() {
		return nil // a graceful stop
	}
	return err
}

// rehearse returns a story on a database of its own.
func rehearse(t *testing.T) (*story, *bytes.Buffer) {
	t.Helper()
	db := pgtest.Empty(t)
	s, out := rehearseOn(t, db.URL)
	s.slot = db.Slot
	return s, out
}

func rehearseOn(t *testing.T, url string) (*story, *bytes.Buffer) {
	t.Helper()
	if _, err := build(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	t.Cleanup(func() { t.Log("\n" + out.String()) })
	return newStory(Config{Start: start}, &page{out: &out, begun: time.Now()}, inSchema(url)), &out
}

func TestTheStoryComesTrue(t *testing.T) {
	t.Parallel()
	if _, err := build(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := Run(t.Context(), Config{Start: start, Out: &out})
	t.Log("\n" + out.String())
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"ROLLBACK", "no answer yet: parked", "attempt 3  204", "owed: failed for good after attempt 4 (timeout)", "psql 'postgres://", "/api/test-webhook"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the story does not say %q", want)
		}
	}
	if got := strings.Count(out.String(), "✓"); got != len(promises) {
		t.Errorf("%d promises were kept, want %d", got, len(promises))
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("there is colour where no terminal is")
	}
	nothingIsLeft(t, out.String())
}

// nothingIsLeft tries the addresses in the output.
func nothingIsLeft(t *testing.T, out string) {
	t.Helper()
	url := regexp.MustCompile(`postgres://\S+`).FindString(out)
	if db, err := pgx.Connect(t.Context(), url); err == nil {
		db.Close(context.Background())
		t.Errorf("the database at %s is still there", url)
	}
	for _, url := range regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindAllString(out, -1) {
		if resp, err := http.Get(url); err == nil {
			resp.Body.Close()
			t.Errorf("somebody still answers at %s", url)
		}
	}
}

func TestWhatGoesWrongIsNamed(t *testing.T) {
	t.Parallel()
	s, _ := rehearse(t)
	s.rollBack = nil
	s.roles = slices.Clone(roles)
	for i, r := range s.roles {
		switch r.name {
		case steady:
			s.roles[i].fails = 1
		case flaky:
			s.roles[i].fails = waits + 1
		}
	}
	err := s.tell(t.Context())
	wantBroken(t, err, isThere, nowhere, endWell, took)
}

func TestTimeIsUp(t *testing.T) {
	t.Parallel()
	// On a server of its own: on a shared one another test's open transaction could delay the slot.
	s, _ := rehearseOn(t, pgtest.Server(t, postgres.Options{Settings: map[string]string{"wal_level": "logical"}}).URL())
	s.within = 5 * time.Second
	err := s.tell(t.Context())
	if !errors.Is(err, errTooLong) {
		t.Errorf("got %v, want %v", err, errTooLong)
	}
	wantBroken(t, err, endWell, took)
}

func TestWalhookEndsByItself(t *testing.T) {
	t.Parallel()
	s, out := rehearse(t)
	cause := errors.New("no more disk")
	s.cfg.Start = func(_ context.Context, _ []string, log io.Writer) error {
		fmt.Fprintln(log, "what it said last")
		return cause
	}
	if err := s.tell(t.Context()); !errors.Is(err, errEnded) || !errors.Is(err, cause) {
		t.Errorf("got %v, want %v and %v", err, errEnded, cause)
	}
	if !strings.Contains(out.String(), "what it said last") {
		t.Error("the end of the log is not shown")
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	if _, err := build(); err != nil {
		t.Fatal(err)
	}
	for _, moment := range []string{"starting PostgreSQL", "runs at", "COMMIT", "no answer yet"} {
		t.Run("while it says "+moment, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &trigger{word: moment, pull: cancel}
			if err := Run(ctx, Config{Start: start, Out: out}); !errors.Is(err, ErrInterrupted) {
				t.Errorf("got %v, want %v", err, ErrInterrupted)
			}
			if ctx.Err() == nil {
				t.Errorf("the demo never says %q", moment)
			}
			nothingIsLeft(t, out.String())
		})
	}
}

func TestStaysUntilInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, _ := rehearse(t)
	out := &trigger{word: "waits to be replayed", pull: cancel}
	replay := &trigger{word: "Everything keeps running", pull: func() {
		go s.replay(t)
	}}
	s.cfg.Stay, s.page.out = true, io.MultiWriter(out, replay)
	if err := s.tell(ctx); err != nil {
		t.Error(err)
	}
	if ctx.Err() == nil {
		t.Error("it did not stay")
	}
	t.Log("\n" + out.String())
}

// replay does what the page suggests.
func (s *story) replay(t *testing.T) {
	db, err := pgx.Connect(t.Context(), s.url)
	if err != nil {
		t.Error(err)
		return
	}
	defer db.Close(context.Background())
	if _, err := db.Exec(t.Context(), `UPDATE webhook_deliveries SET status = 'pending', next_attempt_at = now() WHERE status = 'failed'`); err != nil {
		t.Error(err)
	}
}

// A trigger is pulled when its word is written.
type trigger struct {
	bytes.Buffer
	word string
	pull func()
	once sync.Once
}

func (w *trigger) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.word) {
		w.once.Do(w.pull)
	}
	return n, err
}

//go:build linux

package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/process"
)

// profiling is added to walhook's package main for -profile alone: it profiles the
// release's code, and the release has no switch for it.
//
//go:embed profiling.txt
var profiling string

// build builds the release binary of the module in the working directory.
func build(ctx context.Context, folder string, profiled bool) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	binary := filepath.Join(folder, "walhook")
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", binary}
	if profiled {
		overlay, err := profilingOverlay(folder, string(bytes.TrimSpace(root)))
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Dir = string(bytes.TrimSpace(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build walhook: %w\n%s", err, output)
	}
	return binary, nil
}

func profilingOverlay(folder, root string) (string, error) {
	source, overlay := filepath.Join(folder, "profiling.go"), filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(source, []byte(profiling), 0o600); err != nil {
		return "", err
	}
	replace := map[string]map[string]string{"Replace": {filepath.Join(root, "zz_bench_profiling.go"): source}}
	text, err := json.Marshal(replace)
	if err != nil {
		return "", err
	}
	return overlay, os.WriteFile(overlay, text, 0o600)
}

// A walhook is a running walhook.
type walhook struct {
	*process.Process
	began time.Duration // by now(), before the process was started
	log   bytes.Buffer  // to be read after Exited
	file  string        // of the profile
}

// environment leaves walhook almost all its defaults, allows receivers on this machine, and passes
// on our own WALHOOK_ and GO variables.
func environment(db *database, more ...string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"WALHOOK_DATABASE_URL=" + db.url, "WALHOOK_SLOT=" + db.name,
		"WALHOOK_ALLOW_HTTP=true", "WALHOOK_ALLOW_NETS=127.0.0.0/8", "WALHOOK_ADMIN_ADDR=" + adminAddress(),
		"WALHOOK_MAX_ENDPOINTS=100000", // fan-out gives them all to one organization
	}
	for _, variable := range os.Environ() {
		if strings.HasPrefix(variable, "WALHOOK_") || strings.HasPrefix(variable, "GO") {
			env = append(env, variable)
		}
	}
	return append(env, more...)
}

// adminAddress returns a free address; without a free port it is empty, and there is no
// admin server.
func adminAddress() string {
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// prepare applies the schema and creates the slot.
func (b *bench) prepare(ctx context.Context, db *database) error {
	cmd := exec.CommandContext(ctx, b.binary, "init")
	cmd.Env = environment(db)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("walhook init: %w\n%s", err, output)
	}
	return nil
}

// startWalhook starts walhook on a prepared database.
func (b *bench) startWalhook(db *database, profile string, env ...string) (*walhook, error) {
	w := &walhook{began: now(), file: profile}
	cmd := exec.Command(b.binary, "run")
	cmd.Env = environment(db, append(env, "BENCH_PROFILE="+profile)...)
	cmd.Stderr = &w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	w.Process, err = process.Start(cmd)
	return w, err
}

// await polls every 10 ms until the answer is true, while walhook lives.
func await(ctx context.Context, conn *pgx.Conn, w *walhook, question string, args ...any) error {
	for {
		var yes bool
		err := conn.QueryRow(ctx, question, args...).Scan(&yes)
		if err != nil || yes {
			return err
		}
		if err := errors.Join(w.gone(), pause(ctx, 10*time.Millisecond)); err != nil {
			return err
		}
	}
}

// soon bounds what should take walhook a moment.
const soon = 30 * time.Second

// awaitSoon polls a question about the database's slot.
func awaitSoon(ctx context.Context, db *database, w *walhook, question string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, soon, errors.New("timed out waiting for walhook"))
	defer cancel()
	return await(ctx, db.Conn, w, question, db.name)
}

// stopWithin bounds a graceful stop: the timeout of an attempt, and five seconds.
const stopWithin = 15 * time.Second

// stop stops walhook as an operator would, and prints its warnings and errors.
func (w *walhook) stop() error {
	if w.file != "" {
		w.signal(syscall.SIGUSR1) // the profile ends here
		time.Sleep(300 * time.Millisecond)
	}
	w.signal(syscall.SIGTERM)
	select {
	case <-w.Exited:
	case <-time.After(stopWithin):
		w.kill()
	}
	for line := range strings.Lines(w.log.String()) {
		if !strings.Contains(line, `"level":"INFO"`) {
			fmt.Fprint(os.Stderr, "  walhook: ", line)
		}
	}
	if w.Err != nil {
		return fmt.Errorf("stop walhook: %w", w.Err)
	}
	return nil
}

// kill kills walhook after a failure. If walhook has ended, it does nothing.
func (w *walhook) kill() {
	w.signal(syscall.SIGKILL)
	<-w.Exited
}

// signal ignores errors: the process may just have ended.
func (w *walhook) signal(s syscall.Signal) { _ = w.Signal(s) }

// gone returns an error if walhook has ended by itself.
func (w *walhook) gone() error {
	select {
	case <-w.Exited:
		return fmt.Errorf("walhook ended by itself: %w\n%s", w.Err, w.log.String())
	default:
		return nil
	}
}

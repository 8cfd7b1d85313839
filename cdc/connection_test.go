package cdc

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"pgregory.net/rapid"

	"github.com/walhook/walhook/internal/webhook"
	"github.com/walhook/walhook/outbox"
)

// TestPositionsStayInOrder plays any sequence of what a server can send, and holds
// what is handed on against what may be confirmed then.
func TestPositionsStayInOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := New(Config{})
		s.batches = make(chan webhook.Batch, 1000)
		c := newConnection(s, nil, nil, &webhook.Session{Start: 50, Confirmed: pglogrepl.LSN(rapid.IntRange(1, 60).Draw(t, "confirmed"))})
		ctx := context.Background()
		check := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		wal, events := pglogrepl.LSN(1), 0
		committed := map[pglogrepl.LSN]int{} // how many events are at or before a position
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"transaction", "foreign", "echo", "keepalive", "keepalive within", "tick", "stop"}).Draw(t, "step") {
			case "transaction":
				wal += 10
				c.decoder.inTx = true
				if wal <= c.pushed { // before Start: the server skips it
					c.decoder.inTx = false
					continue
				}
				for range rapid.IntRange(1, 3).Draw(t, "pieces") - 1 {
					events++
					check(c.handleBatch(ctx, webhook.Batch{Events: make([]outbox.Event, 1)}))
					if c.tail > c.pushed {
						t.Fatal("a position waits in the middle of a transaction")
					}
				}
				events++
				c.decoder.inTx = false
				check(c.handleBatch(ctx, webhook.Batch{Events: make([]outbox.Event, 1), End: wal}))
			case "foreign":
				if wal += 10; wal > c.pushed {
					check(c.handleBatch(ctx, webhook.Batch{End: wal}))
				}
			case "echo":
				if wal += 10; wal > c.pushed {
					check(c.handleBatch(ctx, webhook.Batch{Echoes: []string{"x"}, End: wal}))
				}
			case "keepalive":
				wal++
				check(c.handleKeepalive(pglogrepl.PrimaryKeepaliveMessage{ServerWALEnd: wal}))
			case "keepalive within":
				c.decoder.inTx = true
				check(c.handleKeepalive(pglogrepl.PrimaryKeepaliveMessage{ServerWALEnd: wal + 5}))
				c.decoder.inTx = false
			case "tick":
				if c.tail > c.pushed {
					check(c.pushTail(ctx))
				}
			case "stop":
				if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
					s.Stop()
				}
			}
			committed[wal] = events
		}
		close(s.batches)
		got, newest := 0, max(c.session.Start, c.session.Confirmed)
		for b := range s.batches {
			got += len(b.Events)
			if b.End == 0 {
				continue
			}
			if b.End <= newest {
				t.Fatalf("position %d after %d", b.End, newest)
			}
			newest = b.End
			if want, ok := committed[b.End]; !ok || got != want {
				t.Fatalf("position %d with %d events handed on, %d committed (known: %v)", b.End, got, want, ok)
			}
		}
		if c.stream.stopped.Err() == nil && got != events {
			t.Fatalf("%d events of %d", got, events)
		}
	})
}

func TestOnlyWhatWasHandedOnIsConfirmed(t *testing.T) {
	t.Parallel()
	c := newConnection(New(Config{}), nil, nil, &webhook.Session{Confirmed: 100})
	steps := []struct {
		name             string
		checked          bool
		handed, confirms pglogrepl.LSN
		want             pglogrepl.LSN
	}{
		{"nothing yet", true, 100, 0, 100},
		{"before the first check", false, 200, 150, 100},
		{"handed on and confirmed", true, 200, 150, 150},
		{"a smaller one", true, 200, 120, 150},
		{"more than was handed on", true, 200, 999, 200},
		{"while the check fails", false, 300, 999, 200},
		{"again", true, 300, 0, 300},
	}
	for _, step := range steps {
		c.checkPassed.Store(step.checked)
		c.pushed = step.handed
		c.session.Confirm(step.confirms)
		c.flushed = c.confirmable()
		if c.flushed != step.want {
			t.Errorf("%s: got %s, want %s", step.name, c.flushed, step.want)
		}
	}
}

func TestStatusUpdateOnTheWire(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 10, 0, 0, 123456000, time.UTC)
	want := wire("d").u32(4 + 34).byte('r').u64(300).u64(200).u64(200).time(at).byte(1)
	if got := statusUpdate(300, 200, at, true); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestABurstOfPingsIsAShutdown(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		lsns []pglogrepl.LSN
		want bool
	}{
		"at one position":        {[]pglogrepl.LSN{7, 7, 7, 7, 7}, true},
		"not quite":              {[]pglogrepl.LSN{7, 7, 7, 7}, false},
		"at positions that move": {[]pglogrepl.LSN{7, 8, 9, 10, 11, 12, 13}, false},
		"after others":           {[]pglogrepl.LSN{6, 7, 7, 7, 7, 7}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var p pings
			now, got := time.Now(), false
			for _, lsn := range c.lsns {
				got = p.burst(lsn, now) || got
				now = now.Add(time.Millisecond)
			}
			if got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
	t.Run("not when they are seconds apart", func(t *testing.T) {
		t.Parallel()
		var p pings
		for i := range 20 {
			if p.burst(7, time.Unix(int64(i)*5, 0)) {
				t.Fatal("a burst")
			}
		}
	})
}

func TestNamesToPaste(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"walhook": "walhook", "user": `"user"`, "Wal": `"Wal"`, "a-b": `"a-b"`, `a"b`: `"a""b"`, "1a": `"1a"`, "": `""`} {
		if got := quoteIfNeeded(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

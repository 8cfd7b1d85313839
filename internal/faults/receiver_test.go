package faults

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// Requests that go into no journal are counted, because the oracle does not see them.
func TestReceiverCountsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	r, err := newReceiver(&oracle.Journal{}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.Add(path(0), "")
	for _, path := range []string{"/1", "/-1", "/0/x", "/"} {
		resp, err := http.Post(r.server.URL+path, "application/json", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /0 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	conn.Close()
	x := &Trial{TB: t}
	pgtest.Eventually(t, 5*time.Second, "the half request is counted", func() bool {
		x.faults = nil
		x.expectWhole(r, false)
		return len(x.faults) == 2
	})
	want := []string{"4 requests came to no endpoint: /1", "1 requests broke off, and nobody was killed: /0 after 4 bytes: unexpected EOF"}
	if !slices.Equal(x.faults, want) {
		t.Errorf("faults are %q, want %q", x.faults, want)
	}
	x.faults = nil
	if x.expectWhole(r, true); len(x.faults) != 1 {
		t.Errorf("where somebody was killed, faults are %q", x.faults)
	}
	if n := r.Journal.Count(); n != 0 {
		t.Errorf("%d requests are in the journal", n)
	}
}

//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestReceiverSaysWhatArrives(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- watchReceived(ctx, "127.0.0.1:0", w) }()
	lines := bufio.NewScanner(r)
	next := func() string { lines.Scan(); return lines.Text() }
	url := strings.TrimPrefix(next(), "receiving at ")
	for _, body := range []string{
		`{"data": {"sent_at": %f}}`, `{"columns": [{"value": "{\"sent_at\": %f}"}]}`, `without`,
	} {
		if strings.Contains(body, "%f") {
			body = fmt.Sprintf(body, float64(time.Now().Add(-time.Hour).UnixMicro())/1e6)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/any/path", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("it answers %s", resp.Status)
		}
	}
	seen := ""
	for !strings.Contains(seen, "3 in all") {
		seen += next()
	}
	if !strings.Contains(seen, "since sent_at: p50 360") {
		t.Errorf("the age of an hour is not there: %s", seen)
	}
	stop()
	if got := next(); !strings.HasPrefix(got, "3 requests in ") {
		t.Errorf("at the end it says %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("it ends with %v", err)
	}
}

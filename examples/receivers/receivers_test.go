package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/sign"
)

const (
	oldSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	newSecret = "a secret that is not base64"
	oddSecret = "abcdefghijklmnopqr==" // base64 whose last character has bits that do not count
	body      = `{"id":"1","event":"payment.succeeded","data":{"amount": 42},"organizationId":"org_1","timestamp":"2026-11-23T12:00:00.000Z"}`
	received  = `received payment.succeeded of org_1: {"amount":42}`
)

// A request is a webhook as walhook sends it, perhaps tampered with.
type request struct {
	what     string
	delivery string
	secrets  []string // that it is signed with, oldest first
	age      time.Duration
	tamper   func(h http.Header, body *string)
	want     int
}

func TestReceivers(t *testing.T) {
	t.Parallel()
	t.Run("Go", func(t *testing.T) {
		t.Parallel()
		program := filepath.Join(t.TempDir(), "receiver")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		testReceiver(t, exec.CommandContext(t.Context(), program))
	})
	for _, script := range []struct{ language, interpreter, file string }{
		{"Node", "node", "receiver.mjs"},
		{"Python", "python3", "receiver.py"},
	} {
		t.Run(script.language, func(t *testing.T) {
			t.Parallel()
			interpreter, err := exec.LookPath(script.interpreter)
			if err != nil {
				t.Skipf("there is no %s here", script.interpreter)
			}
			testReceiver(t, exec.CommandContext(t.Context(), interpreter, script.file))
		})
	}
}

// testReceiver starts a receiver, and has it judge requests good and bad.
func testReceiver(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	addr := freeAddr(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PORT="+port, "WEBHOOK_SECRETS="+oldSecret+","+newSecret+","+oddSecret)
	cmd.Stderr = t.Output()
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
	pgtest.Eventually(t, 20*time.Second, "the receiver listens", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			err = conn.Close()
		}
		return err == nil
	})

	onlyBody := func(h http.Header, _ *string) {
		for _, name := range []string{sign.HeaderID, sign.HeaderTimestamp, sign.HeaderSignature} {
			h.Del(name)
		}
	}
	leave(t, addr)
	for _, r := range []request{
		{"a webhook", "d1", []string{oldSecret}, 0, nil, 204},
		{"the same again", "d1", []string{oldSecret}, 0, nil, 204},
		{"the other secret", "d2", []string{newSecret}, 0, nil, 204},
		{"both, in a rotation", "d3", []string{"an older secret", newSecret}, 0, nil, 204},
		{"a secret that is odd base64", "d4", []string{oddSecret}, 0, nil, 204},
		{"the body's signature alone", "x", []string{oldSecret}, 0, onlyBody, 401},
		{"a stranger's secret", "x", []string{"a stranger's secret"}, 0, nil, 401},
		{"an old request", "x", []string{oldSecret}, 10 * time.Minute, nil, 401},
		{"a request of the future", "x", []string{oldSecret}, -10 * time.Minute, nil, 401},
		{"another body", "x", []string{oldSecret}, 0, func(_ http.Header, b *string) { *b = strings.Replace(*b, "42", "43", 1) }, 401},
		{"another id", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Set(sign.HeaderID, "another") }, 401},
		{"another time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) {
			h.Set(sign.HeaderTimestamp, strconv.FormatInt(time.Now().Unix()+1, 10))
		}, 401},
		{"no time", "x", []string{oldSecret}, 0, func(h http.Header, _ *string) { h.Del(sign.HeaderTimestamp) }, 401},
		{"not signed", "x", []string{oldSecret}, 0, func(h http.Header, b *string) {
			onlyBody(h, b)
			h.Del(sign.HeaderBodySignature)
		}, 401},
	} {
		if got := deliver(t, "http://"+addr+"/", r); got != r.want {
			t.Errorf("%s: answered with %d, want %d", r.what, got, r.want)
		}
	}

	// Of the five that verify, one came twice.
	lines := bufio.NewScanner(stdout)
	for n := range 4 {
		if !lines.Scan() || strings.ReplaceAll(lines.Text(), `": `, `":`) != received {
			t.Fatalf("line %d is %q, want %q", n, lines.Text(), received)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(stdout); lines.Scan() || len(rest) > 0 {
		t.Errorf("it received more: %q %q", lines.Text(), rest)
	}
}

// leave sends half a request and closes the connection, which must not end the receiver.
func leave(t *testing.T, addr string) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\nhalf"); err != nil {
		t.Error(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("the receiver's end of the connection: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// deliver signs and sends a request, and returns the status.
func deliver(t *testing.T, url string, r request) int {
	t.Helper()
	signer, err := sign.New(r.secrets...)
	if err != nil {
		t.Fatal(err)
	}
	const id = "0193a1f0-7c00-7abc-8def-0123456789ab"
	unix, sent := time.Now().Add(-r.age).Unix(), body
	h := http.Header{}
	h.Set("X-Webhook-Delivery-ID", r.delivery)
	h.Set(sign.HeaderBodySignature, signer.Body([]byte(body)))
	h.Set(sign.HeaderID, id)
	h.Set(sign.HeaderTimestamp, strconv.FormatInt(unix, 10))
	h.Set(sign.HeaderSignature, signer.Standard(id, unix, []byte(body)))
	if r.tamper != nil {
		r.tamper(h, &sent)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", r.what, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// freeAddr returns an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

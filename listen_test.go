package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/walhook/walhook/sign"
)

// Bad flags end it before it listens, and no secret is quoted.
func TestListenRefuses(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\r\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		says string
		args []string
	}{
		{"--addr", []string{"--addr", "3000"}},
		{"--fail", []string{"--fail", "-1"}},
		{"-fail", []string{"--fail", "hunter"}},
		{"--delay", []string{"--delay", "-1s"}},
		{"--status", []string{"--status", "0"}},
		{"--status", []string{"--status", "199"}},
		{"--status", []string{"--status", "600", "--fail", "1"}},
		{"--status needs --fail", []string{"--status", "500", "--forward", "http://127.0.0.1:1"}},
		{"--forward", []string{"--forward", "hunter2:4000"}},
		{"--forward", []string{"--forward", ""}},
		{"without a user", []string{"--forward", "http://u:hunter2@127.0.0.1:4000/"}},
		{"--secret is empty", []string{"--secret", ""}},
		{"secret 2 of 2", []string{"--secret", "hunter2 hunter2 hunter2", "--secret", "whpk_hunter2"}},
		{"no such file", []string{"--secret", "@/nowhere"}},
		{"no line", []string{"--secret", "@" + empty}},
		{"takes no argument", []string{"now"}},
	} {
		code, stdout, stderr := typed(t, append([]string{"listen"}, tt.args...)...)
		if code != exitConfig || stdout != "" || !strings.Contains(stderr, tt.says) || strings.Contains(stderr, "hunter2") {
			t.Errorf("%q: exit %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
}

// It needs no setting, listens where it says, and a signal ends it cleanly.
func TestListenNeedsNoSetting(t *testing.T) {
	unset(t)
	t.Setenv("WALHOOK_DATABASE_URL", "mysql://nobody:looks@here")
	const secret, second = "a secret in a file, with blanks", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	file := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(file, []byte(secret+"\r\n\n"+second), 0o600); err != nil {
		t.Fatal(err)
	}
	public := "whpk_" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	printed, w := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- command(ctx, []string{"listen", "--addr=127.0.0.1:0", "--secret", "@" + file, "--secret", public}, w, io.Discard)
		w.Close()
	}()
	lines := bufio.NewScanner(printed)
	lines.Scan()
	url := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text())
	lines.Scan()
	lines.Scan()
	for _, one := range []string{secret, second, public} {
		if !strings.Contains(lines.Text(), sign.Fingerprint(one)) {
			t.Errorf("it says %q, without the fingerprint of %s", lines.Text(), one)
		}
	}
	rest := make(chan struct{})
	go func() { defer close(rest); _, _ = io.Copy(io.Discard, printed) }()
	if code, _, stderr := typed(t, "listen", "--addr", strings.TrimPrefix(url, "http://")); code != exitFailure || !strings.Contains(stderr, "is taken") {
		t.Errorf("a taken port: exit %d, %s", code, stderr)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("answered %s", resp.Status)
	}
	stop()
	if code := <-ended; code != exitClean {
		t.Errorf("exit %d", code)
	}
	<-rest
}

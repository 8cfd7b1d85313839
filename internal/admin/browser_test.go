package admin

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

// A browser is a headless Chromium, and what it complained of.
type browser struct {
	ctx context.Context
	url string

	mu       sync.Mutex
	problems []string
}

// browserPatience is for a machine that does other things too.
const browserPatience = 3 * time.Minute

func newBrowser(t *testing.T, url string) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium; on Debian: apt-get install --no-install-recommends chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := context.WithTimeout(t.Context(), browserPatience)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop)
	ctx, leave := chromedp.NewContext(ctx)
	t.Cleanup(leave)
	b := &browser{ctx: ctx, url: url}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return // the browser has gone
			}
			if (m.Type == "error" || m.Type == chromedp.ConsoleException) && !strings.Contains(m.URL, "/favicon.ico") {
				b.mu.Lock()
				b.problems = append(b.problems, m.Text+" "+m.URL)
				b.mu.Unlock()
			}
		}
	}()
	return b
}

// do runs actions.
func (b *browser) do(t *testing.T, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatalf("%s: %v; the page says: %s", what, err, value(t, b, chromedp.Text(chromedp.CSS("body"))))
	}
}

// value runs an action that has a result.
func value[T any](t *testing.T, b *browser, action chromedp.Action[T]) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, action)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// open shows a page.
func (b *browser) open(t *testing.T, path string) {
	t.Helper()
	b.do(t, path, chromedp.Navigate(b.url+path), chromedp.WaitVisible(chromedp.CSS("#main")))
}

// press presses the button of an id, and waits for what the next page says.
func (b *browser) press(t *testing.T, id, says string) {
	t.Helper()
	b.do(t, id, chromedp.Click(chromedp.CSS("#"+id)), chromedp.WaitVisible(chromedp.CSS(".done")))
	if said := value(t, b, chromedp.Text(chromedp.CSS(".done"))); !strings.Contains(said, says) {
		t.Errorf("%s: it says %q, want %q", id, said, says)
	}
}

// shoot keeps screenshots of the page: wide and narrow, light and dark. None is wider than the
// window.
func (b *browser) shoot(t *testing.T, name string) {
	t.Helper()
	for _, width := range []int64{1280, 390} {
		for _, scheme := range []string{"light", "dark"} {
			b.do(t, "screenshot", chromedp.EmulateViewport(width, 800), func(ctx context.Context, _ *chromedp.Target) (chromedp.Void, error) {
				_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
				return chromedp.Void{}, err
			})
			if over := value(t, b, chromedp.Evaluate[int](`document.documentElement.scrollWidth - document.documentElement.clientWidth`)); over > 0 {
				t.Errorf("%s, %d px: it is %d px too wide", name, width, over)
			}
			file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
			if err := os.WriteFile(file, value(t, b, chromedp.FullScreenshot(100)), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	b.do(t, "window", chromedp.EmulateViewport(1280, 800))
}

// busyHour are samples as of a process that is busy, with a dip and a burst of failures.
func busyHour() *Samples {
	var stats schedule.Stats
	s := NewSamples(func() schedule.Stats { return stats })
	now := time.Now().Add(-samplesKept * sampleEvery)
	failed := uint64(0)
	for i := range uint64(samplesKept + 1) {
		stats.Delivered += 200 + 30*(i%7)/3 + i/2
		stats.ToAttempt.Add(time.Duration(1+i%3) * time.Millisecond)
		if i > 100 && i < 125 {
			failed += 90 - (i-100)*3
			stats.Delivered -= 100
			stats.ToAttempt.Add(time.Second)
		}
		stats.Errors = map[webhook.ErrorClass]uint64{webhook.ErrHTTP5xx: failed}
		s.take(now)
		now = now.Add(sampleEvery)
	}
	return s
}

// Every button, pressed in a browser, does to the database what it says; the page looks again by
// itself; and a keyboard reaches it.
func TestPageInABrowser(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	o := options(t, s.db.Pool)
	o.Tokens, o.Samples = []string{"t0ken"}, busyHour()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t, "http://operator:t0ken@"+l.Addr().String())
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, nil, New(o), o.Log) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	changes := func(what, sql string, press func()) {
		t.Helper()
		if one[bool](t, s.db, sql) {
			t.Fatalf("%s: it was so before", what)
		}
		press()
		if !one[bool](t, s.db, sql) {
			t.Errorf("%s: nothing has changed", what)
		}
	}

	b.open(t, "/")
	b.shoot(t, "overview")
	b.open(t, "/endpoints/"+s.failing.String())
	b.shoot(t, "endpoint")
	b.open(t, "/deliveries/"+s.retrying.String())
	b.shoot(t, "delivery")

	b.open(t, "/")
	changes("retry now", `SELECT next_attempt_at <= now() FROM webhook_deliveries WHERE id = '`+s.retrying.String()+`'`, func() {
		b.press(t, "retry-"+s.failing.String(), "is due now: 1 delivery.")
	})
	b.open(t, "/")
	changes("replay in a list", `SELECT status = 'pending' FROM webhook_deliveries WHERE id = '`+s.failed.String()+`'`, func() {
		b.press(t, "replay-"+s.failed.String(), "This delivery is sent again.")
	})
	b.open(t, "/deliveries/"+s.success.String())
	changes("replay", `SELECT status = 'pending' FROM webhook_deliveries WHERE id = '`+s.success.String()+`'`, func() {
		b.press(t, "replay-"+s.success.String(), "This delivery is sent again.")
	})
	for _, paused := range []string{"pause", "resume"} {
		b.open(t, "/")
		changes(paused, fmt.Sprintf(`SELECT (paused_at IS NOT NULL) = %t FROM webhook_endpoints WHERE id = '%s'`, paused == "pause", s.failing), func() {
			b.press(t, paused+"-"+s.failing.String(), "This endpoint ")
		})
	}
	b.open(t, "/endpoints/"+s.healthy.String())
	changes("test", `SELECT EXISTS (SELECT FROM webhook_outbox WHERE event_type = 'webhook.test' AND endpoint_ids = ARRAY['`+s.healthy.String()+`'::uuid])`, func() {
		b.press(t, "test-"+s.healthy.String(), "A test event is on its way")
	})

	b.open(t, "/")
	b.do(t, "filter", chromedp.SetValue(chromedp.CSS("#status"), "cancelled"), chromedp.Click(chromedp.CSS("#show")), chromedp.WaitVisible(chromedp.CSS("#replay-"+s.orphan.String())))
	if listed := value(t, b, chromedp.Location()); !strings.Contains(listed, "status=cancelled") {
		t.Errorf("the filter leads to %s", listed)
	}

	b.open(t, "/")
	b.do(t, "keyboard", chromedp.KeyEvent(kb.Tab))
	if focused := value(t, b, chromedp.Evaluate[string](`document.activeElement.textContent`)); focused != "Skip to the content" {
		t.Errorf("the first thing that Tab reaches is %q", focused)
	}
	button := "retry-" + s.failing.String()
	b.do(t, "focus", chromedp.Focus(chromedp.CSS("#"+button)))
	value(t, b, chromedp.Evaluate[bool](`document.getElementById("figures").open = true`))
	one[string](t, s.db, `UPDATE webhook_endpoint_failures SET breaker_opened_at = NULL WHERE endpoint_id = $1 RETURNING ''`, s.failing)
	pgtest.Eventually(t, time.Minute, "the page shows the change by itself", func() bool {
		return !strings.Contains(value(t, b, chromedp.Text(chromedp.CSS("#live"))), "breaker open")
	})
	if focused := value(t, b, chromedp.Evaluate[string](`document.activeElement.id`)); focused != button {
		t.Errorf("after it has looked again, the focus is on %q", focused)
	}
	if !value(t, b, chromedp.Evaluate[bool](`document.getElementById("figures").open`)) {
		t.Error("after it has looked again, the figures are closed")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.problems) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.problems, "\n"))
	}
}

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
	"github.com/chromedp/cdproto/network"
	dialogs "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/internal/webhook"
)

// A browser is a headless Chromium, and what it complained of.
type browser struct {
	ctx context.Context
	url string

	mu       sync.Mutex
	problems []string
}

// nowhere is a path without a page: the browser complains of the 404.
const nowhere = "/endpoints/x"

// browserPatience is for a machine that does other things too.
const browserPatience = 3 * time.Minute

func newBrowser(t *testing.T, url string) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium; on Debian: apt-get install --no-install-recommends chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")) // whatever it asks for, nobody else hears of it
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
			if (m.Type == "error" || m.Type == chromedp.ConsoleException) && !strings.Contains(m.URL, "/favicon.ico") && !strings.HasSuffix(m.URL, nowhere) {
				b.complain(m.Text + " " + m.URL)
			}
		}
	}()
	_, host, _ := strings.Cut(url, "@")
	err = chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			asked := strings.Replace(e.Request.URL, url+"/", "http://"+host+"/", 1)
			if !strings.HasPrefix(asked, "http://"+host+"/") && !strings.HasPrefix(asked, "data:") { // with which it draws a calendar
				b.complain("the page asks somebody else: " + asked)
			}
		case *dialogs.EventJavascriptDialogOpening:
			b.complain("a dialog says " + e.Message)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *browser) complain(of string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, of)
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

// open shows a page, which does not look again by itself: that would replace what is just being pressed.
func (b *browser) open(t *testing.T, path string) {
	t.Helper()
	b.do(t, path, chromedp.Navigate(b.url+path), chromedp.WaitVisible(chromedp.CSS("#main")))
	b.looksAgain(t, false)
}

// looksAgain has a page that can look again by itself do so, or not.
func (b *browser) looksAgain(t *testing.T, itself bool) {
	t.Helper()
	value(t, b, chromedp.Evaluate[bool](fmt.Sprintf(`document.querySelectorAll("#refreshing").forEach(box => box.checked = %t) === undefined`, itself)))
}

// press presses the button of an id, and waits for what the next page says.
func (b *browser) press(t *testing.T, id, says string) {
	t.Helper()
	b.do(t, id, chromedp.Click(chromedp.CSS("#"+id)), chromedp.WaitVisible(chromedp.CSS(".done")))
	if said := value(t, b, chromedp.Text(chromedp.CSS(".done"))); !strings.Contains(said, says) {
		t.Errorf("%s: it says %q, want %q", id, said, says)
	}
}

// lookOver is what every page has to keep, in every width and scheme. It returns what is wrong.
const lookOver = `(() => {
	const wrong = [], root = document.documentElement, all = (which) => [...document.querySelectorAll(which)];
	const name = (e) => (e.getAttribute('aria-label') || e.textContent).trim();
	if (root.scrollWidth > root.clientWidth)
		wrong.push('it is ' + (root.scrollWidth - root.clientWidth) + ' px too wide: ' + all('body *').filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.tagName + '.' + e.className).slice(0, 5));
	if (!root.lang || !document.title) wrong.push('it has no language, or no title');
	if (all('h1').length !== 1 || all('main').length !== 1) wrong.push('it needs one h1 and one main');
	for (const e of all('input:not([type=hidden]), select, textarea')) if (!e.labels.length) wrong.push('a field has no label: ' + e.outerHTML);
	for (const e of all('button, a, summary, h1, h2, h3, th, label')) if (!name(e)) wrong.push('nobody can name ' + e.outerHTML);
	for (const e of all('svg')) if (e.getAttribute('aria-hidden') !== 'true' && !(e.getAttribute('role') === 'img' && name(e))) wrong.push('a drawing says nothing: ' + e.outerHTML.slice(0, 80));
	for (const e of all('form')) if (new URL(e.action).origin !== location.origin) wrong.push('a form leads elsewhere: ' + e.action);
	for (const e of all('[aria-labelledby], label[for]')) if (!document.getElementById(e.getAttribute('aria-labelledby') ?? e.htmlFor)) wrong.push('a name points nowhere: ' + e.outerHTML.slice(0, 80));
	for (const e of all('#live :is(a, button, input:not([type=hidden]), select, summary)')) if (!e.id) wrong.push('it loses the focus when the page looks again: ' + e.outerHTML.slice(0, 80));
	const ids = all('[id]').map(e => e.id);
	for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) wrong.push('an id is there twice: ' + id);
	// WCAG wants a contrast of 4.5 for text of this size.
	const parts = (color) => color.match(/[\d.]+/g).map(Number);
	const light = (color) => { const [r, g, b] = parts(color).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
	const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if ((parts(c)[3] ?? 1) > 0) return c; } return 'rgb(255, 255, 255)'; };
	for (const e of all('body *')) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
		const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((a, b) => b - a), contrast = (a + .05) / (b + .05);
		if (contrast < 4.5) wrong.push('a text is hard to read, contrast ' + contrast.toFixed(2) + ': ' + e.outerHTML.slice(0, 80));
	}
	return wrong;
})()`

// A look is a width of the window, and whether its owner likes it dark.
type look struct {
	width  int64
	scheme string
}

var looks = []look{{1280, "light"}, {1280, "dark"}, {390, "light"}, {390, "dark"}}

// shoot looks over the page that is open, and keeps screenshots of it.
func (b *browser) shoot(t *testing.T, name string, looks ...look) {
	t.Helper()
	for _, l := range looks {
		b.do(t, "look", chromedp.EmulateViewport(l.width, 800), func(ctx context.Context, _ *chromedp.Target) (chromedp.Void, error) {
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}}})
			return chromedp.Void{}, err
		})
		for _, wrong := range value(t, b, chromedp.Evaluate[[]string](lookOver)) {
			t.Errorf("%s, %d px, %s: %s", name, l.width, l.scheme, wrong)
		}
		file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%d-%s.png", name, l.width, l.scheme))
		if err := os.WriteFile(file, value(t, b, chromedp.FullScreenshot(100)), 0o600); err != nil {
			t.Error(err)
		}
	}
	b.do(t, "window", chromedp.EmulateViewport(1280, 800))
}

// inert checks what a stranger's text, which is on the page that is open, has become of: text.
func (b *browser) inert(t *testing.T, path string, shows ...string) {
	t.Helper()
	text := value(t, b, chromedp.Evaluate[string](`document.body.textContent`))
	for _, part := range shows {
		if !strings.Contains(text, part) {
			t.Errorf("%s: it does not show %q", path, part)
		}
	}
	if strings.ContainsAny(text, "\u202e\x1b") {
		t.Errorf("%s: a character that nobody sees is in it", path)
	}
	const can = `[...document.querySelectorAll('script:not([type=module]), img, iframe, object, embed, link, base, b:not(.legend b)'),
		...[...document.querySelectorAll('*')].filter(e => e.getAttributeNames().some(a => a.startsWith('on') || a === 'style'))].map(e => e.outerHTML.slice(0, 80))`
	if able := value(t, b, chromedp.Evaluate[[]string](can)); len(able) > 0 {
		t.Errorf("%s: it has elements of strangers: %s", path, able)
	}
}

// tab presses Tab until an element has the focus, each of which has to be seen.
func (b *browser) tab(t *testing.T, id string) {
	t.Helper()
	// A field for a time has parts, which the browser marks itself.
	const focused = `(() => { const e = document.activeElement, s = getComputedStyle(e), box = e.getBoundingClientRect();
		return [e.id, e.type === 'datetime-local' || s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 && box.right > 0 && box.width > 1 ? '' : e.outerHTML] })()`
	for range value(t, b, chromedp.Evaluate[int](`document.querySelectorAll('a, button, input, select, summary, pre').length`)) + 10 {
		b.do(t, "Tab", chromedp.KeyEvent(kb.Tab))
		at := value(t, b, chromedp.Evaluate[[]string](focused))
		if at[1] != "" {
			t.Errorf("nobody sees that the focus is on %s", at[1])
		}
		if at[0] == id {
			return
		}
	}
	t.Fatalf("Tab does not reach #%s", id)
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
// itself; a keyboard is enough; it can be read in every width and scheme; and what strangers wrote
// stays text.
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

	overview, ofFailing, ofDisabled, ofRetrying := "/", "/endpoints/"+s.failing.String(), "/endpoints/"+s.disabled.String(), "/deliveries/"+s.retrying.String()
	for path, name := range map[string]string{overview: "overview", ofFailing: "endpoint", ofDisabled: "disabled", ofRetrying: "delivery", nowhere: "refusal"} {
		b.open(t, path)
		b.shoot(t, name, looks...)
	}
	t.Run("what strangers wrote stays text", func(t *testing.T) {
		shown := strings.Split(terminal.Printable(hostile), `\n`)
		for path, shows := range map[string][]string{
			overview:   append(shown, "org_<b>2</b>"),
			ofFailing:  append(shown, terminal.Printable(hostile)), // the description, and the answer
			ofDisabled: append(shown, "org_<b>2</b>"),
			ofRetrying: shown,
		} {
			b.open(t, path)
			b.inert(t, path, shows...)
		}
	})
	t.Run("the filter filters", func(t *testing.T) {
		b.open(t, "/")
		b.do(t, "filter", chromedp.SetValue(chromedp.CSS("#status"), "cancelled"), chromedp.Click(chromedp.CSS("#show")), chromedp.WaitVisible(chromedp.CSS("#replay-"+s.orphan.String())))
		if listed := value(t, b, chromedp.Location()); !strings.Contains(listed, "status=cancelled") {
			t.Errorf("the filter leads to %s", listed)
		}
	})
	t.Run("a keyboard is enough", func(t *testing.T) { b.keyboard(t, s) })
	t.Run("each button does what it says", func(t *testing.T) { b.buttons(t, s) })
	t.Run("it looks again by itself", func(t *testing.T) { b.refreshes(t, s) })
	t.Run("on a phone a row is two lines, until it is opened", func(t *testing.T) { b.phone(t, s) })
	t.Run("it can be read with five thousand endpoints, and with none", func(t *testing.T) {
		for _, organization := range []struct {
			name string
			sql  string
		}{
			{"many", `WITH e AS (
				INSERT INTO webhook_endpoints (organization_id, url, event_types)
				SELECT 'customer_' || n % 700, 'https://hooks-' || n || '.a-customer-with-a-long-name.example.com/hook', '{*}' FROM generate_series(1, 5000) AS n RETURNING id)
			INSERT INTO webhook_endpoint_failures (endpoint_id, failing_since, breaker_opened_at)
			SELECT id, now() - n * interval '7 minutes', CASE WHEN n % 3 = 0 THEN now() END FROM (SELECT id, row_number() OVER () AS n FROM e) AS e WHERE n % 4 = 0`},
			{"none", `DELETE FROM webhook_endpoints`},
		} {
			if _, err := s.db.Pool.Exec(t.Context(), organization.sql); err != nil {
				t.Fatal(err)
			}
			b.open(t, "/")
			b.shoot(t, organization.name, look{1280, "light"}, look{390, "dark"})
			b.do(t, "phone", chromedp.EmulateViewport(390, 800))
			if high := value(t, b, chromedp.Evaluate[int](`document.documentElement.scrollHeight`)); high > phoneHigh {
				t.Errorf("%s: on a phone the page is %d px high", organization.name, high)
			}
		}
	})

	b.mu.Lock()
	if len(b.problems) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.problems, "\n"))
	}
	b.mu.Unlock()

	b.looksAgain(t, true)
	stop()
	pgtest.Eventually(t, time.Minute, "it says that walhook does not answer", func() bool { return b.stale(t) })
}

// phoneHigh bounds the page on a phone: 25 endpoints at 60 px, and all that stands around them.
const phoneHigh = 3500

func (b *browser) phone(t *testing.T, s *shop) {
	b.open(t, "/")
	b.do(t, "phone", chromedp.EmulateViewport(390, 800))
	defer b.do(t, "window", chromedp.EmulateViewport(1280, 800))
	for button, row := range map[string]string{"retry-" + s.failing.String(): "more-" + s.failing.String(), "replay-" + s.retrying.String(): "more-" + s.retrying.String()} {
		shown := func() bool {
			return value(t, b, chromedp.Evaluate[bool](`document.getElementById("`+button+`").checkVisibility()`))
		}
		if shown() {
			t.Errorf("%s shows in a row that is closed", button)
		}
		b.do(t, row, chromedp.Click(chromedp.CSS("#"+row+" summary")))
		if !shown() {
			t.Errorf("%s does not show in a row that is open", button)
		}
	}
	b.shoot(t, "opened", look{390, "light"})
}

// changes checks that something changes in the database.
func (s *shop) changes(t *testing.T, what, sql string, press func()) {
	t.Helper()
	if one[bool](t, s.db, sql) {
		t.Fatalf("%s: it was so before", what)
	}
	press()
	if !one[bool](t, s.db, sql) {
		t.Errorf("%s: nothing has changed", what)
	}
}

func (b *browser) buttons(t *testing.T, s *shop) {
	b.open(t, "/")
	s.changes(t, "retry now", `SELECT next_attempt_at <= now() FROM webhook_deliveries WHERE id = '`+s.retrying.String()+`'`, func() {
		b.press(t, "retry-"+s.failing.String(), "is due now: 1 delivery.")
	})
	b.open(t, "/")
	s.changes(t, "replay in a list", `SELECT status = 'pending' FROM webhook_deliveries WHERE id = '`+s.failed.String()+`'`, func() {
		b.press(t, "replay-"+s.failed.String(), "This delivery is sent again.")
	})
	b.open(t, "/deliveries/"+s.success.String())
	s.changes(t, "replay", `SELECT status = 'pending' FROM webhook_deliveries WHERE id = '`+s.success.String()+`'`, func() {
		b.press(t, "replay-"+s.success.String(), "This delivery is sent again.")
	})
	b.open(t, "/endpoints/"+s.failing.String())
	s.changes(t, "replay all", `SELECT status = 'pending' FROM webhook_deliveries WHERE id = '`+s.orphan.String()+`'`, func() {
		b.press(t, "replay-failed", "Sent again: 1 delivery.")
	})
	b.open(t, "/")
	s.changes(t, "enable", `SELECT enabled FROM webhook_endpoints WHERE id = '`+s.disabled.String()+`'`, func() {
		b.press(t, "enable-"+s.disabled.String(), "This endpoint is enabled.")
	})
	for _, paused := range []string{"pause", "resume"} {
		b.open(t, "/")
		s.changes(t, paused, fmt.Sprintf(`SELECT (paused_at IS NOT NULL) = %t FROM webhook_endpoints WHERE id = '%s'`, paused == "pause", s.failing), func() {
			b.press(t, paused+"-"+s.failing.String(), "This endpoint ")
		})
	}
	b.open(t, "/endpoints/"+s.healthy.String())
	s.changes(t, "test", `SELECT EXISTS (SELECT FROM webhook_outbox WHERE event_type = 'webhook.test' AND endpoint_ids = ARRAY['`+s.healthy.String()+`'::uuid])`, func() {
		b.press(t, "test-"+s.healthy.String(), "A test event is on its way")
	})
}

// keyboard goes to a button, presses it, opens details, and filters, without a mouse.
func (b *browser) keyboard(t *testing.T, s *shop) {
	b.open(t, "/")
	b.do(t, "keyboard", chromedp.KeyEvent(kb.Tab))
	if focused := value(t, b, chromedp.Evaluate[string](`document.activeElement.textContent`)); focused != "Skip to the content" {
		t.Errorf("the first thing that Tab reaches is %q", focused)
	}
	b.tab(t, "figures-summary")
	b.do(t, "open", chromedp.KeyEvent(kb.Enter))
	if !value(t, b, chromedp.Evaluate[bool](`document.getElementById("figures").open`)) {
		t.Error("Enter does not open the figures")
	}
	b.tab(t, "status")
	b.do(t, "filter", chromedp.KeyEvent("c")) // the first option that begins with it
	b.tab(t, "show")
	b.do(t, "show", chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(chromedp.CSS("#replay-"+s.orphan.String())))
	for _, paused := range []string{"pause", "resume"} {
		b.open(t, "/")
		b.tab(t, paused+"-"+s.failing.String())
		s.changes(t, paused, fmt.Sprintf(`SELECT (paused_at IS NOT NULL) = %t FROM webhook_endpoints WHERE id = '%s'`, paused == "pause", s.failing), func() {
			b.do(t, paused, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(chromedp.CSS(".done")))
		})
	}
}

func (b *browser) refreshes(t *testing.T, s *shop) {
	b.open(t, "/")
	b.looksAgain(t, true)
	if b.stale(t) {
		t.Error("it says that walhook does not answer, and has not asked yet")
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
	if b.stale(t) {
		t.Error("it says that walhook does not answer")
	}
}

// stale reports whether the page says that walhook does not answer.
func (b *browser) stale(t *testing.T) bool {
	t.Helper()
	return value(t, b, chromedp.Evaluate[bool](`document.getElementById("stale").checkVisibility()`))
}

package listen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/sign"
)

// The bounds of what is printed.
const (
	maxShown  = 16 << 10 // bytes of a body
	maxLines  = 400      // of a body: some screens
	maxIndent = 64 << 10 // bytes of a body that is indented: what is deep grows by its depth in each line
	maxDepth  = 32       // of the values in it
	maxValue  = 200      // characters of a header, a path or a reason
)

// A page is the output. What belongs together is written at once, because requests come side by
// side. Write errors are ignored: whoever closed the pipe has seen enough.
type page struct {
	mu    sync.Mutex
	out   io.Writer
	paint terminal.Paint
}

func newPage(out io.Writer, paint terminal.Paint) *page { return &page{out: out, paint: paint} }

func (p *page) write(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.out, text)
}

// begin says what will happen.
func (p *page) begin(cfg Config, addr net.Addr) {
	var b strings.Builder
	fmt.Fprintf(&b, "listening on http://%s until Ctrl-C\n", addr)
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		b.WriteString("  walhook reaches it with WALHOOK_ALLOW_HTTP=true WALHOOK_ALLOW_NETS=" + tcp.IP.String() + "\n")
	}
	verifies := "verifies nothing: no --secret"
	if len(cfg.Secrets) > 0 {
		var names []string
		for _, secret := range cfg.Secrets {
			names = append(names, name(secret))
		}
		verifies = "verifies with " + strings.Join(names, ", ")
	}
	b.WriteString("  " + verifies + "\n")
	if cfg.Fail > 0 {
		fmt.Fprintf(&b, "  answers %d to the first %d attempts of each delivery\n", cfg.Status, cfg.Fail)
	}
	switch {
	case cfg.Forward != nil:
		b.WriteString("  passes on to " + terminal.Site(cfg.Forward.String()) + ", and answers as it does\n")
	case cfg.Fail == 0 && cfg.Status != http.StatusOK:
		fmt.Fprintf(&b, "  answers %d to everything\n", cfg.Status)
	}
	if cfg.Delay > 0 {
		fmt.Fprintf(&b, "  waits %s before each answer\n", cfg.Delay)
	}
	p.write(b.String() + "\n")
}

// shownHeaders are walhook's own, and what the body is. Values of other headers are not shown,
// because an endpoint's own ones often hold credentials.
var shownHeaders = []string{
	"X-Webhook-Event", "X-Webhook-Delivery-ID", "X-Webhook-Retry", sign.HeaderID, sign.HeaderTimestamp, "Content-Type", "User-Agent",
}

// plumbing is what HTTP needs, and nobody asks for. The signatures have their verdicts.
var plumbing = []string{"Accept", "Accept-Encoding", "Connection", "Content-Length", sign.HeaderBodySignature, sign.HeaderSignature}

// request prints what arrived.
func (p *page) request(in *request, judged []verdict) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  %s\n", p.number(in), in.at.Format("15:04:05.000"), p.paint.Text(terminal.Bold, line(in)))
	row := func(name, value string, c terminal.Color) {
		fmt.Fprintf(&b, "    %-21s  %s\n", name, p.paint.Text(c, value))
	}
	for _, name := range shownHeaders {
		if values := in.Header.Values(name); len(values) > 0 {
			row(name, short(headerText(name, values)), terminal.Plain)
		}
	}
	if others := otherHeaders(in.Header); others != "" {
		row("other headers", short(others), terminal.Plain)
	}
	for _, v := range judged {
		row(v.header, v.says, v.color)
	}
	p.body(&b, in.body)
	p.write(b.String())
}

// refused prints a request whose body could not be taken.
func (p *page) refused(in *request, status int) {
	why := "its body did not arrive"
	if status == http.StatusRequestEntityTooLarge {
		why = fmt.Sprintf("its body is larger than %d KiB", maxBody>>10)
	}
	p.write(fmt.Sprintf("%s  %s  %s\n    %s: answered %d\n\n", p.number(in), in.at.Format("15:04:05.000"), line(in), why, status))
}

// left prints that nobody waits for the answer any more.
func (p *page) left(in *request) {
	p.write(fmt.Sprintf("%s  not answered: the sender has left, or walhook listen ends\n\n", p.number(in)))
}

// answer prints what a request was answered with.
func (p *page) answer(in *request, a answer) {
	c := terminal.Green
	if a.status < 200 || a.status > 299 {
		c = terminal.Red
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  answered %s", p.number(in), p.paint.Text(c, strings.TrimSpace(strconv.Itoa(a.status)+" "+http.StatusText(a.status))))
	if a.why != "" {
		b.WriteString(": " + short(a.why))
	}
	b.WriteString("\n")
	if a.header != nil {
		p.body(&b, a.body)
	}
	p.write(b.String() + "\n")
}

func (p *page) number(in *request) string {
	return p.paint.Text(terminal.Dim, "#"+strconv.FormatInt(in.number, 10))
}

// line returns method and path. A query may hold a credential.
func line(in *request) string {
	path := in.URL.EscapedPath()
	if in.URL.RawQuery != "" {
		path += "?…"
	}
	return short(in.Method) + " " + short(path)
}

// headerText adds to a timestamp what it means.
func headerText(name string, values []string) string {
	text := strings.Join(values, ", ")
	if unix, err := strconv.ParseInt(text, 10, 64); err == nil && name == sign.HeaderTimestamp {
		text += time.Unix(unix, 0).UTC().Format(" (2006-01-02T15:04:05Z)")
	}
	return text
}

// otherHeaders names the headers that are not shown.
func otherHeaders(h http.Header) string {
	var names []string
	for name := range h {
		same := func(known string) bool { return strings.EqualFold(known, name) }
		if !slices.ContainsFunc(shownHeaders, same) && !slices.ContainsFunc(plumbing, same) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// body prints a body, indented where it is JSON.
func (p *page) body(b *strings.Builder, body []byte) {
	if len(body) == 0 {
		return
	}
	shown, lines := body, 0
	if pretty, ok := indented(body); ok {
		shown = pretty
	}
	rest := len(shown)
	for text := range bytes.Lines(shown[:cut(shown, maxShown)]) {
		if lines++; lines > maxLines {
			break
		}
		rest -= len(text)
		b.WriteString("    " + terminal.Printable(string(bytes.TrimSuffix(text, []byte("\n")))) + "\n")
	}
	if rest > 0 {
		fmt.Fprintf(b, "    … and %d bytes more\n", rest)
	}
}

// cut returns where a text ends that may have so many bytes, and no piece of a character.
func cut(text []byte, most int) int {
	if len(text) <= most {
		return len(text)
	}
	for end := most; end > most-utf8.UTFMax; end-- {
		if utf8.RuneStart(text[end]) {
			return end
		}
	}
	return most // it is no UTF-8
}

// indented returns JSON as people read it, unless that would be too much.
func indented(body []byte) ([]byte, bool) {
	if len(body) > maxIndent || depth(body) > maxDepth {
		return nil, false
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, body, "", "  "); err != nil {
		return nil, false
	}
	return bytes.TrimSpace(pretty.Bytes()), true
}

// depth returns how deep brackets are nested, those in strings among them.
func depth(body []byte) int {
	now, deepest := 0, 0
	for _, c := range body {
		switch c {
		case '{', '[':
			now++
			deepest = max(deepest, now)
		case '}', ']':
			now--
		}
	}
	return deepest
}

// short makes a stranger's text one line of bounded length.
func short(text string) string { return terminal.Cut(terminal.Printable(text), maxValue) }

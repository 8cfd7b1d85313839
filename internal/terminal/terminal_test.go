package terminal_test

import (
	"bytes"
	"testing"

	"github.com/walhook/walhook/internal/terminal"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Zürich 東京 ok":              "Zürich 東京 ok",
		"\x1b[2J\x1b]0;title\a":     `\x1b[2J\x1b]0;title\a`,
		"a\r\nb\tc\x00\x7f":         `a\r\nb\tc\x00\x7f`,
		"\u009b31m":                 `\u009b31m`,                 // CSI in one character
		"admin\u202egpj.exe":        `admin\u202egpj.exe`,        // right to left
		"\u2066a\u2069\u200b\u2028": `\u2066a\u2069\u200b\u2028`, // isolates, no width, a line of its own
		"\xff\xfe":                  `\xff\xfe`,
		"\uFFFD":                    "\uFFFD",
		`\x1b`:                      `\x1b`,
	} {
		if got := terminal.Printable(text); got != want {
			t.Errorf("Printable(%q) = %q, want %q", text, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b\u202e\xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := terminal.Printable(text)
		if again := terminal.Printable(got); again != got {
			t.Errorf("%q becomes %q, and that %q", text, got, again)
		}
	})
}

func TestSite(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://u:hunter2@example.com:8443/hunter2?k=hunter2#hunter2": "https://example.com:8443", "http://[::1]:80/": "http://[::1]:80", "": "(no URL)", "%": "(no URL)",
	} {
		if got := terminal.Site(text); got != want {
			t.Errorf("Site(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "äöüß": "äöüß", "äöüßx": "äöü…"} {
		if got := terminal.Cut(text, 4); got != want {
			t.Errorf("Cut(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestNoColorButOnATerminal(t *testing.T) {
	t.Parallel()
	if got := terminal.PaintFor(new(bytes.Buffer)).Text(terminal.Red, "red"); got != "red" {
		t.Errorf("not a terminal: %q", got)
	}
	if got := terminal.Paint(true).Text(terminal.Red, "red"); got != "\x1b[31mred\x1b[0m" {
		t.Errorf("a terminal: %q", got)
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1: "-1", -123: "-123", -1234: "-1,234"} {
		if got := terminal.Number(n); got != want {
			t.Errorf("%d is written %s, want %s", n, got, want)
		}
	}
}

// Package terminal knows whether a person reads along, paints, and keeps what strangers wrote
// from being more than text.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/walhook/walhook/internal/webhook"
)

// Attended reports whether a person types the input and reads the output.
func Attended(in *os.File, out io.Writer) bool { return Is(in) && Is(out) }

// Is asks for the window's size, which only terminals have. A check for a character device
// would accept /dev/null.
func Is(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// A Color is the number of an ANSI colour or style.
type Color int

// The colours in use.
const (
	Plain  Color = 0
	Bold   Color = 1
	Dim    Color = 2
	Red    Color = 31
	Green  Color = 32
	Yellow Color = 33
	Cyan   Color = 36
)

// A Paint colours text, or leaves it as it is.
type Paint bool

// PaintFor colours what a terminal shows, unless colour is switched off.
func PaintFor(out io.Writer) Paint {
	return Paint(Is(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// Text colours a text that is already padded to its width.
func (p Paint) Text(c Color, text string) string {
	if !bool(p) || c == Plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// Printable returns a stranger's text with what is no letter, mark, number, punctuation, symbol or
// blank written as Go writes it in a string: control characters, which a terminal obeys, characters
// that turn the direction of what follows, and bytes that are no UTF-8.
func Printable(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == '\uFFFD' && text[i] != 0xEF: // a byte that is no UTF-8
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// Site returns a URL's scheme, host and port.
func Site(url string) string { return Printable(webhook.Site(url)) }

// Cut returns the first characters of a text, the last of them an ellipsis where that is not all.
func Cut(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most-1]) + "…"
}

// Number writes thousands apart: 1,234,567.
func Number[N int | int64](n N) string {
	text := strconv.FormatInt(int64(n), 10)
	for at := len(text) - 3; at > 0 && text[at-1] != '-'; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}

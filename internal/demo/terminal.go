package demo

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal reports whether a person types the input and reads the output.
func Terminal(in *os.File, out io.Writer) bool { return isTerminal(in) && isTerminal(out) }

// Color reports whether a writer is a terminal, and colour is not switched off.
func Color(out io.Writer) bool {
	return isTerminal(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isTerminal asks for the window's size, which only terminals have. A check for a
// character device would accept /dev/null.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// A color is the number of an ANSI colour or style.
type color int

const (
	plain  color = 0
	bold   color = 1
	dim    color = 2
	red    color = 31
	green  color = 32
	yellow color = 33
	cyan   color = 36
)

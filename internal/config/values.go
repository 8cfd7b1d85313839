package config

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A wrongValue says what is wrong with a text.
type wrongValue string

func (w wrongValue) Error() string { return string(w) }

func wrongf(format string, args ...any) error { return wrongValue(fmt.Sprintf(format, args...)) }

const redacted = "[secret]"

// A Secret is a text that is never printed: convert it to a string to use it.
type Secret string

// String hides the secret, but not that there is none.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Key is a symmetric key, or nil. It is never printed.
type Key []byte

// keyBytes is the length of a key of AES-256 or ChaCha20.
const keyBytes = 32

// EnvDecode reads base64, with or without padding.
func (k *Key) EnvDecode(text string) error {
	if text == "" {
		return nil
	}
	key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	switch {
	case err != nil:
		return wrongf("not base64")
	case len(key) != keyBytes:
		return wrongf("%d bytes, and has to be %d", len(key), keyBytes)
	}
	*k = key
	return nil
}

// String hides the key, but not that there is none.
func (k Key) String() string {
	if len(k) == 0 {
		return ""
	}
	return redacted
}

// GoString hides the key from %#v.
func (k Key) GoString() string { return strconv.Quote(k.String()) }

// LogValue hides the key from slog.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText hides the key from encoders.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// A Size is a number of bytes.
type Size int64

// EnvDecode reads plain bytes, or a number of KiB, MiB or GiB.
func (s *Size) EnvDecode(text string) error {
	digits, shift := text, 0
	for unit, n := range map[string]int{"KiB": 10, "MiB": 20, "GiB": 30} {
		if before, ok := strings.CutSuffix(text, unit); ok {
			digits, shift = before, n
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63-shift) // so that the shift does not overflow
	if err != nil {
		return wrongf("not a size: a number of bytes, or with a unit, KiB, MiB or GiB")
	}
	*s = Size(n << shift)
	return nil
}

// String is what EnvDecode reads, in the largest unit that divides it.
func (s Size) String() string {
	for _, unit := range []struct {
		name  string
		shift int
	}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if s != 0 && s&(1<<unit.shift-1) == 0 {
			return strconv.FormatInt(int64(s>>unit.shift), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// A Schedule is the waits between attempts; it may be empty.
type Schedule []time.Duration

// EnvDecode reads durations, separated by commas.
func (s *Schedule) EnvDecode(text string) error {
	for _, entry := range entries(text) {
		wait, err := time.ParseDuration(entry)
		if err != nil {
			return wrongf("%q is not a duration: a number with a unit, ms, s, m or h", entry)
		}
		*s = append(*s, wait)
	}
	return nil
}

// Ports is a list of TCP ports; it may be empty.
type Ports []uint16

// EnvDecode reads ports, separated by commas.
func (p *Ports) EnvDecode(text string) error {
	*p = Ports{}
	for _, entry := range entries(text) {
		port, err := strconv.ParseUint(entry, 10, 16)
		if err != nil || port == 0 {
			return wrongf("%q is not a port: a number from 1 to 65535", entry)
		}
		*p = append(*p, uint16(port))
	}
	return nil
}

// Nets is a list of networks; it may be empty.
type Nets []netip.Prefix

// EnvDecode reads CIDRs and addresses, which are networks of one, separated by commas.
func (n *Nets) EnvDecode(text string) error {
	for _, entry := range entries(text) {
		if addr, err := netip.ParseAddr(entry); err == nil && addr.Zone() == "" {
			*n = append(*n, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		network, err := netip.ParsePrefix(entry)
		if err != nil {
			return wrongf("%q is neither a CIDR nor an IP address", entry)
		}
		*n = append(*n, network.Masked())
	}
	return nil
}

// entries splits a list; an empty text has none, an entry may be empty.
func entries(text string) []string {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	list := strings.Split(text, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

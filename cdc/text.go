package cdc

import (
	"bytes"
	"time"

	"github.com/google/uuid"
)

// This file parses values as PostgreSQL prints them with our session's settings:
// DateStyle ISO, TimeZone UTC, UTF-8.

// postgresEpoch is 2000-01-01 in microseconds since 1970.
const postgresEpoch = 946_684_800_000_000

// hexValue maps a hexadecimal digit to its value, and everything else to 0xff.
var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range byte(10) {
		t['0'+i] = i
	}
	for i := range byte(6) {
		t['a'+i], t['A'+i] = 10+i, 10+i
	}
	return t
}()

// uuidDigits are the offsets of the sixteen pairs of digits in a UUID's text.
var uuidDigits = [16]int{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34}

const uuidLen = 36

// parseUUID reads the 36-byte form.
func parseUUID(b []byte) (id uuid.UUID, ok bool) {
	if len(b) != uuidLen {
		return uuid.UUID{}, false
	}
	text := (*[uuidLen]byte)(b)
	if text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return uuid.UUID{}, false
	}
	var bad byte
	for i, at := range uuidDigits {
		hi, lo := hexValue[text[at]], hexValue[text[at+1]]
		bad |= hi | lo
		id[i] = hi<<4 | lo
	}
	if bad&0xf0 != 0 {
		return uuid.UUID{}, false
	}
	return id, true
}

// parseUUIDs reads a uuid[]. It ignores bounds and dimensions ([2:3]={…}, {{…},{…}}) and
// NULLs, so that no odd array can block the slot.
func parseUUIDs(b []byte) ([]uuid.UUID, bool) {
	if len(b) > 0 && b[0] == '[' {
		_, b, _ = bytes.Cut(b, []byte("="))
	}
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return nil, false
	}
	if len(b) == 2 {
		return nil, true
	}
	ids := make([]uuid.UUID, 0, len(b)/(uuidLen+1))
	for len(b) > 0 {
		switch {
		case b[0] == '{' || b[0] == '}' || b[0] == ',':
			b = b[1:]
		case bytes.HasPrefix(b, []byte("NULL")):
			b = b[len("NULL"):]
		case len(b) < uuidLen:
			return nil, false
		default:
			id, ok := parseUUID(b[:uuidLen])
			if !ok {
				return nil, false
			}
			ids = append(ids, id)
			b = b[uuidLen:]
		}
	}
	return ids, true
}

// parseTimestamp reads "2026-11-23 14:57:59.123456+00". It returns the zero time for
// those outside the years 1 to 9999 (infinity, BC): such a row must not block the slot.
func parseTimestamp(b []byte) (time.Time, bool) {
	if unreadableTime(b) {
		return time.Time{}, true
	}
	const dateAndTime = "2006-01-02 15:04:05"
	zone, ok := bytes.CutSuffix(b, []byte("+00"))
	if !ok || len(zone) < len(dateAndTime) || b[4] != '-' || b[7] != '-' || b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return time.Time{}, false
	}
	nanos, ok := parseFraction(zone[len(dateAndTime):])
	n := digits{ok: ok}
	year, month, day := n.parse(b[0:4]), n.parse(b[5:7]), n.parse(b[8:10])
	hour, minute, second := n.parse(b[11:13]), n.parse(b[14:16]), n.parse(b[17:19])
	if !n.ok || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return time.Time{}, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, nanos, time.UTC), true
}

// unreadableTime recognizes infinity, -infinity, BC, and years of five digits and more.
func unreadableTime(b []byte) bool {
	return bytes.HasSuffix(b, []byte("infinity")) || bytes.HasSuffix(b, []byte(" BC")) || bytes.IndexByte(b, '-') > 4
}

// parseFraction reads a point and up to six digits, or nothing.
func parseFraction(b []byte) (nanos int, ok bool) {
	if len(b) == 0 {
		return 0, true
	}
	if b[0] != '.' || len(b) < 2 || len(b) > 7 {
		return 0, false
	}
	n := digits{ok: true}
	nanos = n.parse(b[1:])
	for range 9 - (len(b) - 1) {
		nanos *= 10
	}
	return nanos, n.ok
}

// digits parses decimal numbers. Its ok turns false at the first character that is no
// digit.
type digits struct{ ok bool }

func (d *digits) parse(b []byte) (n int) {
	for _, c := range b {
		if c < '0' || c > '9' {
			d.ok = false
		}
		n = n*10 + int(c-'0')
	}
	return n
}

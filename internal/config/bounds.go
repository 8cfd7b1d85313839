package config

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The bounds say what cannot be meant. They are wide: what is merely unusual is
// the operator's to decide.
const (
	// A delivery is held in memory for at most this long without being written down.
	// Longer, and a slow endpoint keeps WAL for hours, which parking is there to avoid.
	maxParkAfter = time.Hour

	// Below a tenth of a second a TLS handshake around the world cannot end; an
	// attempt of more than minutes holds its place, and a stop waits for it.
	minTimeout = 100 * time.Millisecond
	maxTimeout = 5 * time.Minute

	// One wait; longer is an endpoint that is disabled and replayed by hand.
	maxWait = 10 * 24 * time.Hour

	// Attempts are listed in the delivery's row, so their number bounds its size.
	maxWaits = 100

	// Each attempt takes a goroutine, a connection and a file descriptor.
	maxMaxInFlight = 65536

	// A delivery takes about a kilobyte beside its payload.
	maxWindow = 1 << 20

	// Every event of the organization looks at all of them: 100,000 take its INSERT a tenth
	// of a second.
	maxMaxEndpoints = 100_000

	// Rows are fetched while less than half is taken, and then the largest body, of some more
	// than 256 KiB, has to fit into the rest: else it would wait until nothing is in memory,
	// so for ever. Beyond a terabyte is a typing error.
	minMaxMemory = 1 << 20
	maxMaxMemory = 1 << 40

	// 0 could be taken for "for ever" or "at once". Ten years is for ever.
	minRetention = time.Second
	maxAge       = 10 * 365 * 24 * time.Hour

	// A name for people; it stands in a row and in error messages.
	maxEnvironment = 64

	// What HTTP servers are sure to take as one header.
	maxHeaderValue = 256

	// What nobody guesses over HTTP: 64 bits as hexadecimal digits.
	minToken = 16

	// The old one and the new one, while a token is changed.
	maxTokens = 2
)

// maxName is how long a name of PostgreSQL's can be, in bytes; a longer one would be cut.
const maxName = 63

// wrongSchema says why a name cannot be that of walhook's schema.
func wrongSchema(name string) string {
	switch {
	case len(name) > maxName:
		return fmt.Sprintf("longer than the %d bytes that PostgreSQL takes", maxName)
	case !printable(name, maxName):
		return "has to be printable, without blanks around it: the bare name, without quotes"
	case strings.HasPrefix(name, "pg_"), name == "information_schema":
		return "is a schema of PostgreSQL's own"
	case name == "$user":
		return "has to be the name itself"
	}
	return ""
}

// slotName is PostgreSQL's own rule.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// bounds checks each value by itself.
func (l *loader) bounds(c *Config) {
	if !slotName.MatchString(c.Slot) {
		l.wrong("WALHOOK_SLOT", "PostgreSQL takes only lower-case letters, digits and underscores, 1 to 63 of them")
	}
	if wrong := wrongSchema(c.Schema); c.Schema != "" && wrong != "" {
		l.wrong("WALHOOK_SCHEMA", "%s", wrong)
	}
	l.adminAddr(c)
	l.adminTokens(c)
	l.adminTLS(c)
	l.between("WALHOOK_PARK_AFTER", c.ParkAfter, 0, maxParkAfter)
	l.between("WALHOOK_TIMEOUT", c.Timeout, minTimeout, maxTimeout)
	l.between("WALHOOK_DISABLE_AFTER", c.DisableAfter, 0, maxAge)
	l.between("WALHOOK_RETENTION", c.Retention, minRetention, maxAge)
	l.between("WALHOOK_RECOVERY_WINDOW", c.RecoveryWindow, 0, maxAge)
	l.count("WALHOOK_MAX_IN_FLIGHT", c.MaxInFlight, maxMaxInFlight)
	l.count("WALHOOK_ENDPOINT_IN_FLIGHT", c.EndpointInFlight, maxMaxInFlight)
	l.count("WALHOOK_WINDOW", c.Window, maxWindow)
	l.count("WALHOOK_MAX_ENDPOINTS", c.MaxEndpoints, maxMaxEndpoints)
	if c.MaxMemory < minMaxMemory || c.MaxMemory > maxMaxMemory {
		l.wrong("WALHOOK_MAX_MEMORY", "has to be from %s to %s", Size(minMaxMemory), Size(maxMaxMemory))
	}
	l.schedule(c.RetrySchedule)
	if !printable(c.UserAgent, maxHeaderValue) || !isASCII(c.UserAgent) {
		l.wrong("WALHOOK_USER_AGENT", "has to be printable ASCII, at most %d characters, without blanks around it", maxHeaderValue)
	}
	if c.Environment != "" && !printable(c.Environment, maxEnvironment) {
		l.wrong("WALHOOK_ENVIRONMENT", "has to be printable, at most %d characters, without blanks around it", maxEnvironment)
	}
	l.authorities(c)
	l.proxy(c)
	if len(c.OldKey) > 0 && len(c.SecretKey) == 0 {
		l.wrong("WALHOOK_SECRET_KEY_OLD", "what it sealed is sealed anew with WALHOOK_SECRET_KEY, which is not given")
	}
	if !slices.Contains([]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}, c.LogLevel) {
		l.wrong("WALHOOK_LOG_LEVEL", "not a level: debug, info, warn or error")
	}
	if c.LogFormat != "json" && c.LogFormat != "text" {
		l.wrong("WALHOOK_LOG_FORMAT", "neither json nor text")
	}
}

func (l *loader) between(name string, got, low, high time.Duration) {
	if got < low || got > high {
		l.wrong(name, "has to be from %s to %s", short(low), short(high))
	}
}

// short prints a duration without the units that are zero.
func short(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d >= time.Minute && d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	default:
		return d.String()
	}
}

func (l *loader) count(name string, got, high int) {
	if got < 1 || got > high {
		l.wrong(name, "has to be from 1 to %d", high)
	}
}

func (l *loader) schedule(waits Schedule) {
	if len(waits) > maxWaits {
		l.wrong("WALHOOK_RETRY_SCHEDULE", "%d waits, and at most %d are possible", len(waits), maxWaits)
	}
	for _, wait := range waits {
		if wait <= 0 || wait > maxWait {
			l.wrong("WALHOOK_RETRY_SCHEDULE", "%s: a wait has to be longer than 0 and at most %s", wait, short(maxWait))
		}
	}
}

// adminTokens are split here; a comma is no part of one.
func (l *loader) adminTokens(c *Config) {
	const name = "WALHOOK_ADMIN_TOKEN"
	tokens := c.AdminTokens()
	if len(tokens) > maxTokens {
		l.wrong(name, "%d tokens, and at most %d are possible: the old and the new", len(tokens), maxTokens)
	}
	for _, token := range tokens {
		switch {
		case !isASCII(token), strings.Contains(token, " "), token != "" && !printable(token, maxHeaderValue):
			l.wrong(name, "has to be printable ASCII without blanks, at most %d characters", maxHeaderValue)
		case len(token) < minToken:
			l.wrong(name, "a token of %d characters can be guessed: it has to have %d at least", len(token), minToken)
		}
	}
}

// AdminTokens are the tokens of which each will do.
func (c *Config) AdminTokens() []string { return entries(string(c.AdminToken)) }

// adminAddr allows port 0, for tests: the system chooses one.
func (l *loader) adminAddr(c *Config) {
	if c.AdminAddr == "" {
		return
	}
	host, port, err := net.SplitHostPort(c.AdminAddr)
	if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil {
		l.wrong("WALHOOK_ADMIN_ADDR", "not an address with a port")
		return
	}
	if c.AdminToken == "" && !l.isWrong("WALHOOK_ADMIN_TOKEN") && !isLoopback(host) {
		l.wrong("WALHOOK_ADMIN_TOKEN", "required, because WALHOOK_ADMIN_ADDR %q is not a loopback address: who reaches it could send test webhooks", c.AdminAddr)
	}
}

// adminTLS reads the files: a certificate that cannot be used now would not be used later.
func (l *loader) adminTLS(c *Config) {
	const cert, key = "WALHOOK_ADMIN_TLS_CERT_FILE", "WALHOOK_ADMIN_TLS_KEY_FILE"
	switch {
	case c.AdminTLSCertFile == "" && c.AdminTLSKeyFile == "":
	case c.AdminTLSKeyFile == "":
		l.wrong(key, "required, because %s is given", cert)
	case c.AdminTLSCertFile == "":
		l.wrong(cert, "required, because %s is given", key)
	default:
		if _, err := tls.LoadX509KeyPair(c.AdminTLSCertFile, c.AdminTLSKeyFile); err != nil {
			l.wrong(cert, "it and %s cannot be used: %s", key, err)
		}
	}
}

func isLoopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}

func (l *loader) proxy(c *Config) {
	if c.ProxyURL == "" {
		return
	}
	u, err := url.Parse(string(c.ProxyURL))
	switch {
	case err != nil || u.Hostname() == "":
		l.wrong("WALHOOK_PROXY_URL", "not a URL with a host")
	case !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme):
		l.wrong("WALHOOK_PROXY_URL", "the scheme has to be http, https or socks5")
	}
}

// printable says whether a text is 1 to most visible characters, with blanks
// between them only: one that looks the same is the same.
func printable(s string, most int) bool {
	return s != "" && strings.TrimSpace(s) == s && utf8.ValidString(s) && utf8.RuneCountInString(s) <= most &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

// together checks values against each other. Where only one of two was chosen,
// the other's default gives way.
func (l *loader) together(c *Config) {
	window, inFlight, endpoint := l.chosen("WALHOOK_WINDOW"), l.chosen("WALHOOK_MAX_IN_FLIGHT"), l.chosen("WALHOOK_ENDPOINT_IN_FLIGHT")
	if c.MaxInFlight > c.Window { // an attempt needs its delivery in memory
		switch {
		case window && inFlight:
			l.wrong("WALHOOK_WINDOW", "smaller than WALHOOK_MAX_IN_FLIGHT, which is %d", c.MaxInFlight)
		case window:
			c.MaxInFlight = c.Window
		default:
			c.Window = c.MaxInFlight
		}
	}
	if c.EndpointInFlight > c.MaxInFlight {
		switch {
		case endpoint && (inFlight || window && c.EndpointInFlight > c.Window):
			l.wrong("WALHOOK_ENDPOINT_IN_FLIGHT", "larger than the %d that WALHOOK_MAX_IN_FLIGHT and WALHOOK_WINDOW leave", c.MaxInFlight)
		case endpoint:
			c.MaxInFlight = c.EndpointInFlight
			c.Window = max(c.Window, c.MaxInFlight)
		default:
			c.EndpointInFlight = c.MaxInFlight
		}
	}
}

// chosen says whether a variable has a value of its own that can be used.
func (l *loader) chosen(name string) bool {
	_, set := l.env.set(name)
	return set && !l.isWrong(name)
}

// pgVariables are those of libpq's that say where a database is.
var pgVariables = []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"}

// connections finds out which database is meant.
func (l *loader) connections(c *Config) {
	source := "WALHOOK_DATABASE_URL"
	if c.DatabaseURL == "" && !l.isWrong(source) {
		url, found := l.env.set("DATABASE_URL")
		switch {
		case found:
			source = "DATABASE_URL"
			c.DatabaseURL = Secret(url)
		case slices.ContainsFunc(pgVariables, func(name string) bool { _, found := l.env.set(name); return found }):
			source = "PG*"
		default:
			l.wrong(source, "no database is named: set it, or DATABASE_URL, or libpq's %s", strings.Join(pgVariables, ", "))
		}
	}
	c.databaseFile, _ = l.env.set("WALHOOK_DATABASE_URL" + fileSuffix)
	c.replicationFile, _ = l.env.set("WALHOOK_REPLICATION_URL" + fileSuffix)
	l.connection(c, source, c.DatabaseURL)
	if c.ReplicationURL == "" {
		c.ReplicationURL = c.DatabaseURL
		return
	}
	l.connection(c, "WALHOOK_REPLICATION_URL", c.ReplicationURL)
}

// connection checks a connection string.
func (l *loader) connection(c *Config, source string, conn Secret) {
	if l.isWrong(source) {
		return
	}
	_, dropped, err := parseConnection(string(conn))
	if err != nil {
		l.wrongConnection(source, err.Error())
	}
	c.dropped = append(c.dropped, dropped...)
}

func (l *loader) wrongConnection(source, wrong string) {
	v, _ := variable("WALHOOK_DATABASE_URL")
	l.problems = append(l.problems, Problem{Variable: source, Wrong: wrong, Example: v.Example})
}

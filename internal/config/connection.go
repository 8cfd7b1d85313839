package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// This file makes of a connection string what pgx connects with. Strings are
// written for applications and their frameworks, whose parameters PostgreSQL would
// refuse, and they hold passwords: no piece of one is ever part of an error.

// meaningless are parameters of other drivers and of libpq, by what they say:
// nothing that a session of walhook's would do otherwise. All of the server's own
// are left to the server.
var meaningless = []string{
	// Prisma
	"schema", "pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "single_use_connections",
	// ActiveRecord, Django, SQLAlchemy, asyncpg, Laravel, Doctrine
	"pool", "checkout_timeout", "reaping_frequency", "idle_timeout", "prepared_statements", "advisory_locks", "encoding", "charset",
	"schema_search_path", "min_messages", "conn_max_age", "conn_health_checks", "prepared_statement_cache_size", "async_fallback",
	"command_timeout", "serverversion", "pool_size", "max_overflow", "pool_recycle", "pool_pre_ping", "timeout",
	// node-postgres, postgres.js, Supabase
	"uselibpqcompat", "max", "idletimeoutmillis", "connectiontimeoutmillis", "supa", "workaround", "prepare",
	// JDBC
	"currentschema", "prepareThreshold", "applicationname", "logintimeout", "sockettimeout", "connecttimeout", "tcpkeepalive",
	"rewritebatchedinserts", "stringtype", "loadbalancehosts", "targetservertype",
	// lib/pq, sqlx
	"binary_parameters", "fallback_application_name", "disable_prepared_binary_result", "statement-cache-capacity",
	// libpq: keepalives are walhook's own, compression is never used, and TLS is 1.2 or newer in any case
	"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout", "gsslib", "gssdelegation",
	"sslcompression", "ssl_min_protocol_version", "ssl_max_protocol_version", "load_balance_hosts", "hostorder", "sslkeylogfile",
}

// refused are parameters that ask for something, mostly for security, that walhook
// would not do: passing over them in silence would be worse than ending.
var refused = map[string]string{
	"hostaddr":      "walhook does not know hostaddr: give the address as host, and the name that its certificate has as sslmode=verify-ca",
	"ssl":           "of ssl only true is known, which is sslmode=require: say with sslmode what is meant",
	"sslaccept":     "walhook does not know sslaccept: sslmode=verify-full is strict, sslmode=require accepts any certificate",
	"sslidentity":   "walhook does not know sslidentity: give sslcert and sslkey",
	"sslfactory":    "walhook does not know sslfactory: sslmode says what is checked",
	"sslcrl":        "walhook reads no revocation lists: take sslcrl out",
	"sslcrldir":     "walhook reads no revocation lists: take sslcrldir out",
	"requirepeer":   "walhook does not check the server's user: take requirepeer out",
	"requiressl":    "requiressl is sslmode=require nowadays",
	"authtype":      "authtype is of no use any more: take it out",
	"oauth_issuer":  "walhook does not know OAuth: give a password",
	"replication":   "walhook decides itself which of its connections replicates: take replication out",
	"pool_max_conn": "take pool_max_conn out: walhook takes at most 9 connections",
}

// parameterName is what a parameter may be called. Anything else is a piece of
// something that was not escaped, perhaps of a password, and is not shown.
var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)

const escapeIt = "in a user or password, characters such as @ : / ? # % have to be percent-encoded"

// parseConnection returns what pgx makes of a connection string, and which of its
// parameters mean nothing to walhook and were left out.
func parseConnection(text string) (*pgxpool.Config, []string, error) {
	scheme, rest, isURL := strings.Cut(text, "://")
	isURL = isURL && !strings.Contains(scheme, "=")
	if isURL {
		if err := checkURL(scheme, rest, text); err != nil {
			return nil, nil, err
		}
	}
	parsed, err := pgxpool.ParseConfig(text)
	if err != nil {
		return nil, nil, whyNot(err, isURL)
	}
	dropped, err := ownParameters(parsed.ConnConfig, isURL)
	if err != nil {
		return nil, nil, err
	}
	parsed.ConnConfig.DialFunc = dialer.DialContext // ConnectTimeout bounds it
	onlyPrimary(parsed.ConnConfig)
	return parsed, dropped, nil
}

// onlyPrimary has a list of hosts mean the primary among them, unless the string says otherwise.
// While that has no connection left, a standby would answer, which is behind: what it shows as
// due may have been delivered, and would be sent again.
func onlyPrimary(cc *pgx.ConnConfig) {
	another := func(f *pgconn.FallbackConfig) bool { return f.Host != cc.Host || f.Port != cc.Port }
	if cc.ValidateConnect == nil && slices.ContainsFunc(cc.Fallbacks, another) {
		cc.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
	}
}

// dialer makes all connections to PostgreSQL. If the host is gone without a word, the kernel
// ends idle ones within 15 s, not 150 as by Go's default. Else each of the pool's would take a
// statement of its own to be found dead, of which every one waits until its timeout.
var dialer = net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 5}}

// checkURL finds what url.Parse takes for something else than was meant. A / ? or #
// in a password ends what it takes for the host, and the @ is then somewhere behind.
func checkURL(scheme, rest, text string) error {
	if scheme != "postgres" && scheme != "postgresql" {
		return wrongf("the scheme has to be postgres or postgresql")
	}
	if strings.Contains(rest, "#") {
		return wrongf("it has a #, which begins nothing here; %s", escapeIt)
	}
	u, err := url.Parse(text)
	if err != nil && !severalHosts(rest) { // url.Parse does not know of several, pgx does
		return wrongf("not a URL; %s", escapeIt)
	}
	authority, behind := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, behind = rest[:i], rest[i:]
	}
	path, query, _ := strings.Cut(behind, "?")
	if strings.Contains(path, "@") {
		return wrongf("it has an @ behind the host; %s", escapeIt)
	}
	if err == nil && u.User == nil && !strings.Contains(authority, "@") && strayAt(query) {
		return wrongf("it has an @ behind the host; %s", escapeIt)
	}
	return nil
}

// severalHosts says whether the host part is a list, as in host1:5432,host2:5432.
func severalHosts(rest string) bool {
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	hosts := rest[strings.LastIndex(rest[:end], "@")+1 : end]
	return strings.Contains(hosts, ",")
}

// strayAt says whether a query has an @ where none belongs.
func strayAt(query string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if strings.Contains(key, "@") || strings.Contains(value, "@") && !slices.Contains([]string{"user", "password", "application_name", "options"}, key) {
			return true
		}
	}
	return false
}

// sayable is what pgx says is wrong, without what it quotes: a piece of a password
// can be anywhere in a string that is broken.
var sayable = []string{
	"sslmode is invalid", `both "sslcert" and "sslkey" are required`, "unable to add CA to cert pool", "failed to decode sslkey",
	"unable to find sslpassword", "failed to read service", "failed to configure TLS", "forbidden NUL byte", "unterminated quoted string",
	"could not match", "invalid port", "invalid connect_timeout", "invalid sslcertmode", "invalid require_auth", "invalid min_protocol_version",
	"invalid max_protocol_version", "unknown target_session_attrs value", "unknown channel_binding value", "invalid default_query_exec_mode",
	"cannot parse statement_cache_capacity", "cannot parse description_cache_capacity", "cannot parse pool_max_conn_lifetime_jitter",
	"cannot parse pool_max_conn_lifetime", "cannot parse pool_max_conn_idle_time", "cannot parse pool_max_conns", "pool_max_conns too small",
	"cannot parse pool_min_idle_conns", "cannot parse pool_min_conns", "cannot parse pool_health_check_period", "cannot parse pool_ping_timeout",
}

// whyNot puts pgx's refusal into words.
func whyNot(err error, isURL bool) error {
	for _, phrase := range sayable {
		if strings.Contains(err.Error(), phrase) {
			return wrongf("not a connection string: %s", phrase)
		}
	}
	if isURL {
		return wrongf("not a URL that names a database; %s", escapeIt)
	}
	return wrongf("not a connection string: neither postgres://user@host/database nor pairs of keyword=value, where a value with blanks stands in ' '")
}

// ownParameters takes out what means nothing, and refuses what cannot be done.
func ownParameters(cc *pgx.ConnConfig, isURL bool) (dropped []string, err error) {
	for name, value := range cc.RuntimeParams {
		lower := strings.ToLower(name)
		switch {
		case !parameterName.MatchString(name):
			wrong := "one of its parameters has a name that cannot be one"
			if isURL {
				wrong += "; " + escapeIt
			}
			return nil, wrongf("%s", wrong)
		case lower == "gssencmode" && value == "require":
			return nil, wrongf("walhook does not encrypt by GSSAPI: say sslmode=require, and take gssencmode out")
		case refused[lower] != "":
			return nil, wrongf("%s", refused[lower])
		case lower == "gssencmode" || slices.ContainsFunc(meaningless, func(m string) bool { return strings.EqualFold(m, name) }):
			delete(cc.RuntimeParams, name)
			dropped = append(dropped, name)
		}
	}
	slices.Sort(dropped)
	return dropped, nil
}

// ShowsParameters says whether the name of a parameter that the server refused can
// be shown: of pairs of keyword=value it may be the rest of a password with a blank.
func (s Secret) ShowsParameters() bool {
	return strings.Contains(string(s), "://") || !strings.Contains(string(s), "pass")
}

// SQL returns how to connect for SQL, as it is now: passwords may be rotated, so
// what stands in a file (NAME_FILE, PGPASSFILE, a service file) is read again.
func (c *Config) SQL() (*pgxpool.Config, error) {
	return connectionNow("WALHOOK_DATABASE_URL", c.DatabaseURL, c.databaseFile)
}

// Replication is SQL for the replication connection, and for what else has to
// reach PostgreSQL itself.
func (c *Config) Replication() (*pgx.ConnConfig, error) {
	name, url, file := "WALHOOK_DATABASE_URL", c.DatabaseURL, c.databaseFile
	if c.Pooled() {
		name, url, file = "WALHOOK_REPLICATION_URL", c.ReplicationURL, c.replicationFile
	}
	parsed, err := connectionNow(name, url, file)
	if err != nil {
		return nil, err
	}
	return parsed.ConnConfig, nil
}

// Pooled says that SQL may go through a pooler, which is why there is another
// string for the replication connection.
func (c *Config) Pooled() bool { return c.ReplicationURL != c.DatabaseURL }

// ReplicationVariable is the variable that says where to replicate from.
func (c *Config) ReplicationVariable() string {
	if c.Pooled() {
		return "WALHOOK_REPLICATION_URL"
	}
	return "WALHOOK_DATABASE_URL"
}

// Dropped are the parameters of the connection strings that mean nothing to walhook.
func (c *Config) Dropped() []string { return c.dropped }

func connectionNow(name string, text Secret, file string) (*pgxpool.Config, error) {
	if file != "" {
		now, err := readSecret(file)
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", name, fileSuffix, err)
		}
		text = Secret(now)
	}
	parsed, _, err := parseConnection(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return parsed, nil
}

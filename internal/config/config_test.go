package config

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const someURL = "WALHOOK_DATABASE_URL=postgres://walhook:hunter2@db.internal/app"

func load(t *testing.T, env ...string) *Config {
	t.Helper()
	c, err := Load(append(Environ{someURL}, env...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// problems loads an environment that cannot be used.
func problems(t *testing.T, env ...string) Problems {
	t.Helper()
	_, err := Load(env)
	ps, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("%q: got error %v, want Problems", env, err)
	}
	return ps
}

// The defaults are a contract with users.
func TestDefaults(t *testing.T) {
	t.Parallel()
	url := Secret("postgres://walhook:hunter2@db.internal/app")
	want := &Config{
		DatabaseURL: url, ReplicationURL: url,
		Slot: "walhook", AutoInit: true,
		AdminAddr: "127.0.0.1:8080",
		ParkAfter: 500 * time.Millisecond, MaxInFlight: 1024, Window: 8192, MaxMemory: 64 << 20, EndpointInFlight: 32, Timeout: 10 * time.Second,
		RetrySchedule: Schedule{
			5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
			10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
		},
		DisableAfter: 120 * time.Hour,
		UserAgent:    "Fabrk-Webhooks/1.0",
		AllowPorts:   Ports{80, 443},
		MaxEndpoints: 1000, Retention: 720 * time.Hour, RecoveryWindow: 72 * time.Hour,
		LogLevel: slog.LevelInfo, LogFormat: "json",
	}
	if got := load(t); !reflect.DeepEqual(got, want) {
		t.Errorf("defaults:\n got %+v\nwant %+v", got, want)
	}
}

func TestEveryVariableHasItsField(t *testing.T) {
	t.Parallel()
	var names []string
	for field := range reflect.TypeFor[Config]().Fields() {
		if field.IsExported() {
			names = append(names, field.Tag.Get("env"))
		}
	}
	for _, v := range Variables {
		if !slices.Contains(names, v.Name) {
			t.Errorf("%s has no field of Config", v.Name)
		}
		if v.Meaning == "" || v.Example == "" || (v.Default == "") == (v.Shown == "") {
			t.Errorf("%s lacks its meaning, its example or its one default", v.Name)
		}
	}
	if len(names) != len(Variables) {
		t.Errorf("Config has %d fields, Variables has %d rows", len(names), len(Variables))
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	nets := func(s ...string) (n Nets) {
		for _, p := range s {
			n = append(n, netip.MustParsePrefix(p))
		}
		return n
	}
	for _, tt := range []struct {
		env  string
		got  func(*Config) any
		want any
	}{
		{"WALHOOK_AUTO_INIT=false", func(c *Config) any { return c.AutoInit }, false},
		{"WALHOOK_SCHEMA=Web.hooks \u00fc", func(c *Config) any { return c.Schema }, "Web.hooks \u00fc"},
		{"WALHOOK_SCHEMA=", func(c *Config) any { return c.Schema }, ""},
		{"WALHOOK_SLOT=walhook_2", func(c *Config) any { return c.Slot }, "walhook_2"},
		{"WALHOOK_ADMIN_ADDR=", func(c *Config) any { return c.AdminAddr }, ""},
		{"WALHOOK_ADMIN_ADDR=[::1]:0", func(c *Config) any { return c.AdminAddr }, "[::1]:0"},
		{"WALHOOK_ADMIN_ADDR=localhost:9000", func(c *Config) any { return c.AdminAddr }, "localhost:9000"},
		{"WALHOOK_PARK_AFTER=0", func(c *Config) any { return c.ParkAfter }, time.Duration(0)},
		{"WALHOOK_DISABLE_AFTER=0", func(c *Config) any { return c.DisableAfter }, time.Duration(0)},
		{"WALHOOK_TIMEOUT=1m30s", func(c *Config) any { return c.Timeout }, 90 * time.Second},
		{"WALHOOK_TIMEOUT=", func(c *Config) any { return c.Timeout }, 10 * time.Second},
		{"WALHOOK_MAX_ENDPOINTS=100000", func(c *Config) any { return c.MaxEndpoints }, 100000},
		{"WALHOOK_MAX_ENDPOINTS=", func(c *Config) any { return c.MaxEndpoints }, 1000},
		{"WALHOOK_MAX_MEMORY=1GiB", func(c *Config) any { return c.MaxMemory }, Size(1 << 30)},
		{"WALHOOK_MAX_MEMORY=1024KiB", func(c *Config) any { return c.MaxMemory }, Size(1 << 20)},
		{"WALHOOK_MAX_MEMORY=2000000", func(c *Config) any { return c.MaxMemory }, Size(2000000)},
		{"WALHOOK_RETRY_SCHEDULE=", func(c *Config) any { return len(c.RetrySchedule) }, 0},
		{"WALHOOK_RETRY_SCHEDULE=1s, 240h", func(c *Config) any { return c.RetrySchedule }, Schedule{time.Second, 240 * time.Hour}},
		{"WALHOOK_ALLOW_PORTS=", func(c *Config) any { return c.AllowPorts }, Ports{}},
		{"WALHOOK_ALLOW_PORTS=443, 8443,65535", func(c *Config) any { return c.AllowPorts }, Ports{443, 8443, 65535}},
		{"WALHOOK_ALLOW_HTTP=true", func(c *Config) any { return c.AllowHTTP }, true},
		{
			"WALHOOK_ALLOW_NETS=10.1.2.3/8,127.0.0.1, ::1,fd00::/8",
			func(c *Config) any { return c.AllowNets },
			nets("10.0.0.0/8", "127.0.0.1/32", "::1/128", "fd00::/8"),
		},
		{"WALHOOK_DENY_NETS=10.1.2.3/8, ::1", func(c *Config) any { return c.DenyNets }, nets("10.0.0.0/8", "::1/128")},
		{"WALHOOK_CA_FILE=", func(c *Config) any { return c.RootCAs() }, (*x509.CertPool)(nil)},
		{"WALHOOK_ENVIRONMENT=production eu", func(c *Config) any { return c.Environment }, "production eu"},
		{"WALHOOK_LOG_LEVEL=debug", func(c *Config) any { return c.LogLevel }, slog.LevelDebug},
		{"WALHOOK_LOG_FORMAT=text", func(c *Config) any { return c.LogFormat }, "text"},
		{"WALHOOK_PROXY_URL=socks5://u:p@proxy:1080", func(c *Config) any { return c.Proxy().Host }, "proxy:1080"},
		{"WALHOOK_TEST_ANYTHING=1", func(c *Config) any { return c.Slot }, "walhook"},
		// What Kubernetes puts into every container beside a service that is called walhook.
		{"WALHOOK_SERVICE_HOST=10.0.0.1", func(c *Config) any { return c.Slot }, "walhook"},
		{"WALHOOK_SERVICE_PORT_HTTP=80", func(c *Config) any { return c.Slot }, "walhook"},
		{"WALHOOK_PORT=tcp://10.0.0.1:80", func(c *Config) any { return c.Slot }, "walhook"},
		{"WALHOOK_METRICS_PORT_80_TCP_ADDR=10.0.0.1", func(c *Config) any { return c.Slot }, "walhook"},
	} {
		if got := tt.got(load(t, tt.env)); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.env, got, tt.want)
		}
	}
}

// Each of these is refused, with the variable's name and a text that says why.
func TestWrongValues(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ env, says string }{
		{"WALHOOK_DATABASE_URL=mysql://u:hunter2@h/db", "scheme"},
		{"WALHOOK_DATABASE_URL=postgres://u:hunter2/x@h/db", "percent-encoded"},
		{"WALHOOK_DATABASE_URL=postgres://u:hunter2@h/db?sslmode=maybe", "sslmode is invalid"},
		{"WALHOOK_DATABASE_URL=hunter2", "not a connection string"},
		{"WALHOOK_REPLICATION_URL=mysql://u:hunter2@h/db", "scheme"},
		{"WALHOOK_SLOT=Wal-hook", "lower-case"},
		{"WALHOOK_SLOT=" + strings.Repeat("a", 64), "1 to 63"},
		{"WALHOOK_AUTO_INIT=yes", "neither true nor false"},
		{"WALHOOK_ADMIN_ADDR=8080", "not an address with a port"},
		{"WALHOOK_ADMIN_ADDR=127.0.0.1:http", "not an address with a port"},
		{"WALHOOK_ADMIN_ADDR=127.0.0.1:65536", "not an address with a port"},
		{"WALHOOK_PARK_AFTER=-1s", "from 0s to 1h"},
		{"WALHOOK_PARK_AFTER=2h", "from 0s to 1h"},
		{"WALHOOK_TIMEOUT=10", "not a duration"},
		{"WALHOOK_TIMEOUT=0", "from 100ms to 5m"},
		{"WALHOOK_TIMEOUT=6m", "from 100ms to 5m"},
		{"WALHOOK_MAX_IN_FLIGHT=0", "from 1 to 65536"},
		{"WALHOOK_MAX_IN_FLIGHT=many", "not a whole number"},
		{"WALHOOK_ENDPOINT_IN_FLIGHT=-1", "from 1"},
		{"WALHOOK_WINDOW=0", "from 1 to"},
		{"WALHOOK_MAX_ENDPOINTS=0", "from 1 to 100000"},
		{"WALHOOK_MAX_ENDPOINTS=100001", "from 1 to 100000"},
		{"WALHOOK_MAX_ENDPOINTS=none", "not a whole number"},
		{"WALHOOK_MAX_MEMORY=64MB", "KiB, MiB or GiB"},
		{"WALHOOK_MAX_MEMORY=9999999999GiB", "not a size"},
		{"WALHOOK_MAX_MEMORY=1023KiB", "from 1MiB to 1024GiB"},
		{"WALHOOK_RETRY_SCHEDULE=5s,", `"" is not a duration`},
		{"WALHOOK_RETRY_SCHEDULE=5s,10", `"10" is not a duration`},
		{"WALHOOK_RETRY_SCHEDULE=5s,0s", "longer than 0"},
		{"WALHOOK_RETRY_SCHEDULE=241h", "at most 240h"},
		{"WALHOOK_RETRY_SCHEDULE=" + strings.Repeat("1s,", 100) + "1s", "at most 100"},
		{"WALHOOK_DISABLE_AFTER=-1h", "from 0s"},
		{"WALHOOK_USER_AGENT=a\nb", "printable"},
		{"WALHOOK_USER_AGENT=ümlaut", "printable"},
		{"WALHOOK_ALLOW_HTTP=2", "neither true nor false"},
		{"WALHOOK_ALLOW_PORTS=80,0", `"0" is not a port`},
		{"WALHOOK_ALLOW_PORTS=80-90", `"80-90" is not a port`},
		{"WALHOOK_ALLOW_PORTS=65536", `"65536" is not a port`},
		{"WALHOOK_ALLOW_NETS=10.0.0.0/8,10.0.0.0/33", `"10.0.0.0/33" is neither a CIDR nor an IP address`},
		{"WALHOOK_ALLOW_NETS=internal", "neither a CIDR"},
		{"WALHOOK_DENY_NETS=10.0.0.0/33", `"10.0.0.0/33" is neither a CIDR nor an IP address`},
		{"WALHOOK_CA_FILE=/nowhere", "the file cannot be read: no such file"},
		{"WALHOOK_CA_FILE=/", "the file cannot be read: is a directory"},
		{"WALHOOK_CA_FILE=/dev/zero", "larger than 1024 KiB"},
		{"WALHOOK_CA_FILE=/dev/null", "there is no certificate in it"},
		{"WALHOOK_PROXY_URL=ftp://u:hunter2@proxy", "http, https or socks5"},
		{"WALHOOK_PROXY_URL=proxy:3128", "not a URL with a host"},
		{"WALHOOK_SECRET_KEY=hunter2!", "not base64"},
		{"WALHOOK_SECRET_KEY=" + base64.StdEncoding.EncodeToString(make([]byte, 31)), "31 bytes, and has to be 32"},
		{"WALHOOK_SECRET_KEY_OLD=hunter2!", "not base64"},
		{"WALHOOK_SECRET_KEY_OLD=" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "WALHOOK_SECRET_KEY, which is not given"},
		{"WALHOOK_ADMIN_TOKEN=hunter2 and many more", "without blanks"},
		{"WALHOOK_ADMIN_TOKEN=hunter2hunter2a", "a token of 15 characters can be guessed"},
		{"WALHOOK_ADMIN_TOKEN=hunter2hunter2ab,", "a token of 0 characters"},
		{"WALHOOK_ADMIN_TOKEN=hunter2hunter2ab,hunter2hunter2cd,hunter2hunter2ef", "at most 2"},
		{"WALHOOK_SCHEMA=pg_walhook", "PostgreSQL's own"},
		{"WALHOOK_SCHEMA=information_schema", "PostgreSQL's own"},
		{"WALHOOK_SCHEMA=$user", "the name itself"},
		{"WALHOOK_SCHEMA= webhooks", "without blanks around it"},
		{"WALHOOK_SCHEMA=" + strings.Repeat("\u00e4", 32), "longer than the 63 bytes"},
		{"WALHOOK_RETENTION=0", "from 1s to 87600h"},
		{"WALHOOK_RECOVERY_WINDOW=-1s", "from 0s"},
		{"WALHOOK_ENVIRONMENT=" + strings.Repeat("x", 65), "at most 64"},
		{"WALHOOK_ENVIRONMENT=a\x00b", "printable"},
		{"WALHOOK_LOG_LEVEL=loud", "debug, info, warn or error"},
		{"WALHOOK_LOG_LEVEL=info+2", "debug, info, warn or error"},
		{"WALHOOK_LOG_FORMAT=xml", "neither json nor text"},
		{"WALHOOK_SLOT_FILE=/tmp/slot", "only a secret can be in a file"},
		{"WALHOOK_ADMIN_TOKEN_FILE=/nowhere", "no such file"},
	} {
		ps := problems(t, tt.env, someURL)
		name, value, _ := strings.Cut(tt.env, "=")
		if len(ps) != 1 || ps[0].Variable != name || !strings.Contains(ps[0].Wrong, tt.says) {
			t.Errorf("%s: got %+v, want one problem that says %q", tt.env, ps, tt.says)
		}
		v, _ := variable(name)
		if shown := strings.Contains(ps.Error(), fmt.Sprintf("%q", value)); shown == v.Secret || strings.Contains(ps.Error(), "hunter2") {
			t.Errorf("%s: the value has to be shown, unless it is a secret: %s", tt.env, ps)
		}
		if !strings.HasSuffix(name, fileSuffix) && !strings.Contains(ps.Error(), "for example: "+v.Example) {
			t.Errorf("%s: no example: %s", tt.env, ps)
		}
	}
}

func TestAllProblemsAreNamedAtOnce(t *testing.T) {
	t.Parallel()
	ps := problems(t, "WALHOOK_SLOT=X", "WALHOOK_TIMEOUT=fast", "WALHOOK_WINDOWS=1", "WALHOOK_ADMIN_ADDR=:8080")
	var got []string
	for _, p := range ps {
		got = append(got, p.Variable)
	}
	want := []string{"WALHOOK_TIMEOUT", "WALHOOK_DATABASE_URL", "WALHOOK_SLOT", "WALHOOK_ADMIN_TOKEN", "WALHOOK_WINDOWS"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if lines := strings.Count(ps.Error(), "\n"); lines != len(want) {
		t.Errorf("%d lines in %s", lines, ps)
	}
}

func TestUnknownVariablesNameTheClosest(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"WALHOOK_DATABASE_ULR": "WALHOOK_DATABASE_URL",
		"WALHOOK_ALLOW_PORT":   "WALHOOK_ALLOW_PORTS",
		"WALHOOK_PORT":         "WALHOOK_SLOT",
		"WALHOOK_RETRIES":      "WALHOOK_RETENTION",
	} {
		ps := problems(t, someURL, name+"=80")
		if len(ps) != 1 || ps[0].Variable != name || !strings.HasSuffix(ps[0].Wrong, want) {
			t.Errorf("%s: got %v, want the closest to be %s", name, ps, want)
		}
	}
}

func TestWhichDatabase(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what             string
		env              Environ
		sql, replication Secret
	}{
		{"ours goes first", Environ{"WALHOOK_DATABASE_URL=postgres://a/x", "DATABASE_URL=postgres://b/x", "PGHOST=c"}, "postgres://a/x", "postgres://a/x"},
		{"then DATABASE_URL", Environ{"DATABASE_URL=postgres://b/x", "PGHOST=c"}, "postgres://b/x", "postgres://b/x"},
		{"an empty one is none", Environ{"WALHOOK_DATABASE_URL=", "DATABASE_URL=postgres://b/x"}, "postgres://b/x", "postgres://b/x"},
		{"then libpq's", Environ{"PGHOST=c"}, "", ""},
		{"replication elsewhere", Environ{"DATABASE_URL=postgres://pooler/x", "WALHOOK_REPLICATION_URL=host=direct"}, "postgres://pooler/x", "host=direct"},
	} {
		c, err := Load(tt.env)
		if err != nil || c.DatabaseURL != tt.sql || c.ReplicationURL != tt.replication {
			t.Errorf("%s: got %#v, %v", tt.what, c, err)
		}
	}
	if ps := problems(t); len(ps) != 1 || !strings.Contains(ps[0].Wrong, "no database is named: set it, or DATABASE_URL, or libpq's PGHOST") {
		t.Errorf("no database: got %v", ps)
	}
	if ps := problems(t, "DATABASE_URL=mysql://u:hunter2@h/x"); len(ps) != 1 || ps[0].Variable != "DATABASE_URL" || strings.Contains(ps.Error(), "hunter2") {
		t.Errorf("wrong DATABASE_URL: got %v", ps)
	}
}

func TestPgxReadsLibpqsVariablesItself(t *testing.T) {
	t.Setenv("PGHOST", "db.internal")
	t.Setenv("PGDATABASE", "app")
	c, err := Load(Environ(os.Environ()))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.ParseConfig(string(c.DatabaseURL))
	if err != nil || pool.ConnConfig.Host != "db.internal" || pool.ConnConfig.Database != "app" {
		t.Errorf("got %+v, %v", pool, err)
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	t.Parallel()
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := make([]byte, 32)
	key[0] = 0xff
	c, err := Load(Environ{
		"WALHOOK_DATABASE_URL_FILE=" + file("postgres://a/x\n"),
		"WALHOOK_REPLICATION_URL_FILE=" + file("postgres://b/x\r\n"),
		"WALHOOK_ADMIN_TOKEN_FILE=" + file("a-token-of-a-file,the-one-after-that\n"),
		"WALHOOK_SECRET_KEY_FILE=" + file(base64.StdEncoding.EncodeToString(key)+"\n"),
		"WALHOOK_SECRET_KEY_OLD_FILE=" + file(base64.StdEncoding.EncodeToString(make([]byte, 32))),
		"WALHOOK_PROXY_URL_FILE=" + file("http://proxy:1"),
		"WALHOOK_ADMIN_TOKEN=", // an empty one is none
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.DatabaseURL != "postgres://a/x" || c.ReplicationURL != "postgres://b/x" || !slices.Equal(c.AdminTokens(), []string{"a-token-of-a-file", "the-one-after-that"}) ||
		string(c.SecretKey) != string(key) || len(c.OldKey) != 32 || c.Proxy().String() != "http://proxy:1" {
		t.Errorf("got %+v", *c)
	}
	for content, says := range map[string]string{"": "empty", "\n": "empty", strings.Repeat("x", maxSecretFile+1): "larger than 64 KiB"} {
		ps := problems(t, someURL, "WALHOOK_ADMIN_TOKEN_FILE="+file(content))
		if len(ps) != 1 || !strings.Contains(ps.Error(), says) {
			t.Errorf("a file of %d bytes: got %v, want %q", len(content), ps, says)
		}
	}
	ps := problems(t, someURL, "WALHOOK_ADMIN_TOKEN=hunter2", "WALHOOK_ADMIN_TOKEN_FILE="+file("hunter2"))
	if len(ps) != 1 || !strings.Contains(ps.Error(), "one of the two has to go") || strings.Contains(ps.Error(), "hunter2") {
		t.Errorf("both: got %v", ps)
	}
}

// Off loopback, whoever reaches the port could send test webhooks.
func TestTokenIsRequiredOffLoopback(t *testing.T) {
	t.Parallel()
	for addr, required := range map[string]bool{
		"127.0.0.1:80": false, "127.9.9.9:80": false, "[::1]:80": false, "LOCALHOST:80": false, "": false,
		":80": true, "0.0.0.0:80": true, "[::]:80": true, "10.0.0.1:80": true, "admin.internal:80": true, "localhost.evil.example:80": true,
	} {
		_, err := Load(Environ{someURL, "WALHOOK_ADMIN_ADDR=" + addr})
		if got := err != nil; got != required {
			t.Errorf("%s: required is %v, want %v: %v", addr, got, required, err)
		}
		if _, err := Load(Environ{someURL, "WALHOOK_ADMIN_ADDR=" + addr, "WALHOOK_ADMIN_TOKEN=hunter2hunter2ab"}); err != nil {
			t.Errorf("%s with a token: %v", addr, err)
		}
	}
}

// A certificate that cannot be used is told at the start.
func TestAdminTLSNeedsBothFiles(t *testing.T) {
	t.Parallel()
	const cert, key = "WALHOOK_ADMIN_TLS_CERT_FILE", "WALHOOK_ADMIN_TLS_KEY_FILE"
	broken := filepath.Join(t.TempDir(), "tls.crt")
	if err := os.WriteFile(broken, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env      []string
		variable string
		says     string
	}{
		{[]string{cert + "=" + broken}, key, "required, because WALHOOK_ADMIN_TLS_CERT_FILE is given"},
		{[]string{key + "=" + broken}, cert, "required, because WALHOOK_ADMIN_TLS_KEY_FILE is given"},
		{[]string{cert + "=/nowhere", key + "=" + broken}, cert, "no such file"},
		{[]string{cert + "=" + broken, key + "=" + broken}, cert, "failed to find any PEM data"},
	} {
		ps := problems(t, append(tt.env, someURL)...)
		if len(ps) != 1 || ps[0].Variable != tt.variable || !strings.Contains(ps[0].Wrong, tt.says) || strings.Contains(ps.Error(), "hunter2") {
			t.Errorf("%q: got %v, want one problem of %s that says %q", tt.env, ps, tt.variable, tt.says)
		}
	}
}

func TestLimitsFitTogether(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env                        []string
		window, inFlight, endpoint int
	}{
		{nil, 8192, 1024, 32},
		{[]string{"WALHOOK_WINDOW=16"}, 16, 16, 16},
		{[]string{"WALHOOK_MAX_IN_FLIGHT=8"}, 8192, 8, 8},
		{[]string{"WALHOOK_MAX_IN_FLIGHT=10000"}, 10000, 10000, 32},
		{[]string{"WALHOOK_ENDPOINT_IN_FLIGHT=20000"}, 20000, 20000, 20000},
		{[]string{"WALHOOK_WINDOW=5000", "WALHOOK_ENDPOINT_IN_FLIGHT=2000"}, 5000, 2000, 2000},
		{[]string{"WALHOOK_WINDOW=100", "WALHOOK_ENDPOINT_IN_FLIGHT=64"}, 100, 100, 64},
	} {
		c := load(t, tt.env...)
		if c.Window != tt.window || c.MaxInFlight != tt.inFlight || c.EndpointInFlight != tt.endpoint {
			t.Errorf("%v: got %d, %d, %d", tt.env, c.Window, c.MaxInFlight, c.EndpointInFlight)
		}
	}
	for _, env := range [][]string{
		{"WALHOOK_WINDOW=100", "WALHOOK_MAX_IN_FLIGHT=200"},
		{"WALHOOK_ENDPOINT_IN_FLIGHT=64", "WALHOOK_MAX_IN_FLIGHT=32"},
		{"WALHOOK_WINDOW=32", "WALHOOK_ENDPOINT_IN_FLIGHT=64"},
	} {
		if ps := problems(t, append(env, someURL)...); len(ps) != 1 {
			t.Errorf("%v: got %v, want one problem", env, ps)
		}
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString([]byte("hunter2 hunter2 hunter2 hunter2!"))
	c := load(t, "WALHOOK_ADMIN_TOKEN=hunter2hunter2ab", "WALHOOK_PROXY_URL=http://u:hunter2@proxy", "WALHOOK_SECRET_KEY="+key)
	var out strings.Builder
	slog.New(slog.NewJSONHandler(&out, nil)).Info("start", "config", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("start", "token", c.AdminToken, "key", c.SecretKey)
	fmt.Fprintf(&out, "%v %+v %#v %s %x", *c, *c, *c, c.AdminToken, c.SecretKey)
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(encoded)
	for _, secret := range []string{"hunter2", key, fmt.Sprintf("%x", "hunter2"), fmt.Sprint([]byte("hunter2"))} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("printed %q: %s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), `"WALHOOK_WINDOW":"8192"`) {
		t.Errorf("the log lacks what is no secret: %s", out.String())
	}
}

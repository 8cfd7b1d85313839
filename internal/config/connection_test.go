package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What frameworks write into a DATABASE_URL must not keep walhook from connecting.
func TestParametersOfFrameworksAreDropped(t *testing.T) {
	t.Parallel()
	for query, want := range map[string][]string{
		"schema=app&connection_limit=5&pool_timeout=10&pgbouncer=true&socket_timeout=3": {"connection_limit", "pgbouncer", "pool_timeout", "schema", "socket_timeout"},
		"connect_timeout=3&sslmode=disable&application_name=x&target_session_attrs=any": nil,
		"keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3":      {"keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"},
		"gssencmode=prefer&tcp_user_timeout=1000":                                       {"gssencmode", "tcp_user_timeout"},
		"sslmode=require&channel_binding=require":                                       nil,
		"pool=5&prepared_statements=false&schema_search_path=app":                       {"pool", "prepared_statements", "schema_search_path"},
		"currentSchema=app&ApplicationName=x&reWriteBatchedInserts=true":                {"ApplicationName", "currentSchema", "reWriteBatchedInserts"},
		"pool_max_conns=3&default_query_exec_mode=exec&statement_cache_capacity=1":      nil,
		"statement_timeout=5000&work_mem=1MB":                                           nil, // the server's
	} {
		c, err := Load(Environ{"DATABASE_URL=postgres://u:hunter2@db.internal/app?" + query})
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		if !slices.Equal(c.Dropped(), want) {
			t.Errorf("%s: dropped %q, want %q", query, c.Dropped(), want)
		}
		for _, connect := range []func() (map[string]string, error){
			func() (map[string]string, error) { p, err := c.SQL(); return p.ConnConfig.RuntimeParams, err },
			func() (map[string]string, error) { r, err := c.Replication(); return r.RuntimeParams, err },
		} {
			params, err := connect()
			if err != nil {
				t.Fatal(err)
			}
			for name := range params {
				if !slices.Contains([]string{"application_name", "statement_timeout", "work_mem"}, name) {
					t.Errorf("%s: the server is sent %s", query, name)
				}
			}
		}
	}
}

// What asks for security that walhook would not give, or for what it cannot do, ends it.
func TestParametersThatCannotBeKeptAreRefused(t *testing.T) {
	t.Parallel()
	for query, says := range map[string]string{
		"gssencmode=require": "GSSAPI", "sslaccept=strict": "sslmode=verify-full", "sslcrl=/x": "revocation", "requirepeer=postgres": "requirepeer",
		"hostaddr=10.0.0.1": "hostaddr", "ssl=no-verify": "sslmode", "replication=database": "replication", "sslmode=no-verify": "sslmode is invalid",
		"target_session_attrs=best": "target_session_attrs", "connect_timeout=soon": "connect_timeout", "pool_max_conns=many": "pool_max_conns",
	} {
		ps := problems(t, "DATABASE_URL=postgres://u:hunter2@db.internal/app?"+query)
		if len(ps) != 1 || ps[0].Variable != "DATABASE_URL" || !strings.Contains(ps[0].Wrong, says) || strings.Contains(ps.Error(), "hunter2") {
			t.Errorf("%s: got %v, want one that says %q", query, ps, says)
		}
	}
}

// broken are connection strings around a password that is not escaped, or not quoted.
var broken = []string{
	"postgres://u:%s@db.internal/app", "postgres://u:%s@db.internal:5432/app?sslmode=disable", "postgres://%s@db.internal/app", "postgres://%s",
	"postgres://u:%s", "postgresql://u:%s@a,b:1/app", "postgres://u@h/app?password=%s", "postgres://h/app?user=u&password=%s", "postgres://u:x@h/%s",
	"host=h user=u password=%s dbname=app", "host=h user=u password='%s dbname=app", "password=%s", "user=u password = %s host=h", "host=h password=x%s", "%s",
	"postgres:/u:%s@h/app", "postgres//u:%s@h/app", "jdbc:postgresql://h/app?password=%s", "mysql://u:%s@h/x",
}

func TestNoPieceOfAPasswordIsPrinted(t *testing.T) {
	t.Parallel()
	for _, form := range broken {
		for _, password := range []string{
			"hunter2", "hun/ter2", "hun#ter2", "hun?ter2", "hun%%ter2", "hun%%zzter2", "hun ter2", "hun ter2=x", "hun@ter2", "hun:ter2", "12#ter2", "12/ter2", "12?ter2=hun",
			"hun'ter2", `hun\ter2`, "hun&ter2", "hun=ter2", "hun[ter2", "hun]ter2", "hun\tter2", "12/hun@ter2", "12?a@ter2", "hun,ter2", "12,ter2", "hun\nter2", "hun\x00ter2",
		} {
			text := strings.ReplaceAll(form, "%s", strings.ReplaceAll(password, "%%", "%"))
			noPieceIsPrinted(t, text)
		}
	}
}

func noPieceIsPrinted(t *testing.T, text string) {
	t.Helper()
	for _, name := range []string{"WALHOOK_DATABASE_URL", "DATABASE_URL", "WALHOOK_REPLICATION_URL"} {
		_, err := Load(Environ{name + "=" + text, someURL})
		if err == nil {
			continue
		}
		for _, piece := range []string{"hun", "ter2", "hunter2"} {
			if strings.Contains(err.Error(), piece) {
				t.Errorf("%s=%q: printed %q: %v", name, text, piece, err)
			}
		}
	}
}

// A standby of a list is behind: what it shows as due may have been delivered.
func TestOfSeveralHostsOnlyThePrimaryWillDo(t *testing.T) {
	t.Parallel()
	for url, checked := range map[string]bool{
		"postgres://u@a/app": false, "postgres://u@a/app?sslmode=disable": false, // whatever it is, preflight tells
		"postgres://u@a,b/app": true, "postgres://u@a:1,a:2/app?sslmode=disable": true, "host=a,b user=u dbname=app": true,
		"postgres://u@a,b/app?target_session_attrs=any": true, "postgres://u@a,b/app?target_session_attrs=read-write": true,
	} {
		if parsed, _, err := parseConnection(url); err != nil || parsed.ConnConfig.ValidateConnect != nil != checked {
			t.Errorf("%s: a server is checked: %t, want %t; %v", url, !checked, checked, err)
		}
	}
}

func FuzzNoPieceOfAPasswordIsPrinted(f *testing.F) {
	f.Add(0, "", "")
	f.Add(3, "%", "@")
	f.Add(9, "'", " x=")
	f.Fuzz(func(t *testing.T, form int, middle, after string) {
		if form < 0 || strings.Contains(middle+after, "hun") || strings.Contains(middle+after, "ter2") {
			return
		}
		noPieceIsPrinted(t, strings.ReplaceAll(broken[form%len(broken)], "%s", "hun"+middle+"ter2"+after))
	})
}

// A string that is read as something else than was meant would be dialled, and logged.
func TestAPasswordIsNeverTakenForAHost(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://u:12#ter2@h/app", "postgres://u:12/ter2@h/app", "postgres://u:12?ter2@h/app", "postgres://u:12?a=ter2@h/app", "postgres://u#ter2@h/app",
	} {
		if ps := problems(t, "DATABASE_URL="+url); len(ps) != 1 || !strings.Contains(ps[0].Wrong, "percent-encoded") {
			t.Errorf("%s: got %v", url, ps)
		}
	}
	for _, url := range []string{
		"postgres://u:a%40b%2F@h/app", "postgres://u:a@b@h/app", "postgres://h/app?user=me@azure&password=p@ss", "postgres:///app?host=/run/postgresql&user=u",
		"postgres://u:x@a:1,b:2/app", "postgresql://u:x@[::1]:5432/app", "host=h user=u password='a b' dbname=app", "host=h password=a@b#c/",
	} {
		if _, err := Load(Environ{"DATABASE_URL=" + url}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A rotated password is found by the next connection.
func TestFilesAreReadAgainBeforeEachConnection(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sql, replication := write("sql", "postgres://u:old@h/app\n"), write("replication", "host=h user=u passfile="+write("pass", "h:*:*:u:old\n"))
	service := write("service", "[app]\nhost=h\nuser=u\npassword=old\n")
	c, err := Load(Environ{"WALHOOK_DATABASE_URL_FILE=" + sql, "WALHOOK_REPLICATION_URL_FILE=" + replication})
	if err != nil {
		t.Fatal(err)
	}
	byService, err := Load(Environ{"DATABASE_URL=service=app servicefile=" + service})
	if err != nil {
		t.Fatal(err)
	}
	passwords := func() [3]string {
		t.Helper()
		p, err := c.SQL()
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Replication()
		if err != nil {
			t.Fatal(err)
		}
		s, err := byService.Replication()
		if err != nil {
			t.Fatal(err)
		}
		return [3]string{p.ConnConfig.Password, r.Password, s.Password}
	}
	if got := passwords(); got != [3]string{"old", "old", "old"} {
		t.Errorf("at first: %q", got)
	}
	write("sql", "postgres://u:new@h/app\n")
	write("pass", "h:*:*:u:new\n")
	write("service", "[app]\nhost=h\nuser=u\npassword=new\n")
	if got := passwords(); got != [3]string{"new", "new", "new"} {
		t.Errorf("when they were rotated: %q", got)
	}
	write("sql", "")
	if _, err := c.SQL(); err == nil || !strings.Contains(err.Error(), "WALHOOK_DATABASE_URL_FILE: the file is empty") {
		t.Errorf("a file that is being written: %v", err)
	}
}

func TestWhereTheAdminServerIsNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]string{
		"":                             "http://127.0.0.1:8080",
		"WALHOOK_ADMIN_ADDR=":          "",
		"WALHOOK_ADMIN_ADDR=:9000":     "http://localhost:9000",
		"WALHOOK_ADMIN_ADDR=[::]:9000": "http://localhost:9000",
		"WALHOOK_ADMIN_ADDR=[::1]:80":  "http://[::1]:80",
		"WALHOOK_ADMIN_TLS_CERT_FILE=/etc/tls.crt": "https://127.0.0.1:8080",
	} {
		if got, err := AdminURL(Environ{env, "WALHOOK_DATABASE_URL_FILE=/nowhere"}); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", env, got, err, want)
		}
	}
	if _, err := AdminURL(Environ{"WALHOOK_ADMIN_ADDR=8080"}); err == nil || !strings.Contains(err.Error(), "WALHOOK_ADMIN_ADDR") {
		t.Errorf("got %v", err)
	}
}

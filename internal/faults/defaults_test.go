package faults

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// roleDefaults are settings that somebody has set on the role for other purposes.
var roleDefaults = []string{
	"client_encoding = 'LATIN1'", "standard_conforming_strings = off", "statement_timeout = '1ms'", "lock_timeout = '1ms'",
	"idle_in_transaction_session_timeout = '1ms'", "idle_session_timeout = '1s'", "default_transaction_isolation = 'serializable'",
	"default_transaction_read_only = on", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'",
	"extra_float_digits = -15", "bytea_output = 'escape'", "quote_all_identifiers = on", "array_nulls = off", "transform_null_equals = on",
	"jit = on", "jit_above_cost = 0", "search_path = nowhere, public", "plpgsql.extra_errors = 'all'", "synchronous_commit = off",
}

// databaseDefaults are settings that an application has set on the database for itself.
var databaseDefaults = []string{
	"standard_conforming_strings = off", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Asia/Kathmandu'",
	"extra_float_digits = -15", "bytea_output = 'escape'", "default_transaction_isolation = 'repeatable read'", "array_nulls = off",
	"transform_null_equals = on", "plpgsql.extra_errors = 'all'", "quote_all_identifiers = on",
}

// defaults runs walhook with such settings, and hides each table's rows for a while, even
// from the owner: walhook must treat that as an error, and not as an empty table.
func defaults(t *testing.T, s Setup) {
	const hiddenFor, across = 4 * time.Second, 6 * time.Second
	s.Role = true
	x := newTrial(t, s)
	for _, setting := range roleDefaults {
		x.exec(`ALTER ROLE ` + roleName + ` SET ` + setting)
	}
	for _, setting := range databaseDefaults {
		x.exec(`ALTER DATABASE postgres SET ` + setting)
	}
	x.pool.Reset() // so that the application has the settings too
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate, Mixed: true})
	defer stop()
	<-time.After(across)
	for _, table := range []string{"webhook_endpoints", "webhook_deliveries", "webhook_outbox"} {
		x.exec(`ALTER TABLE ` + table + ` ENABLE ROW LEVEL SECURITY`)
		x.exec(`ALTER TABLE ` + table + ` FORCE ROW LEVEL SECURITY`)
		<-time.After(hiddenFor)
		x.exec(`ALTER TABLE ` + table + ` NO FORCE ROW LEVEL SECURITY`)
		x.exec(`ALTER TABLE ` + table + ` DISABLE ROW LEVEL SECURITY`)
		<-time.After(hiddenFor)
	}
	stop()
	x.load.Wait()
	x.expect(p.Running(), "%s has ended by itself: %v", p.Name, p.Err)
	nobody, cancelled := 0, 0
	x.look(`SELECT count(*) FROM webhook_outbox WHERE endpoint_ids = '{}'`, &nobody)
	x.look(`SELECT count(*) FROM webhook_deliveries WHERE status = 'cancelled'`, &cancelled)
	x.expect(nobody == 0, "%d events are owed to nobody", nobody)
	x.expect(cancelled == 0, "%d deliveries were cancelled", cancelled)
	x.finish(time.Minute, fmt.Sprintf("settings=%d", len(roleDefaults)+len(databaseDefaults)))
}

// look queries one value.
func (x *Trial) look(sql string, into any) {
	x.Helper()
	if err := x.pool.QueryRow(x.Context(), sql).Scan(into); err != nil {
		x.Fatalf("%s: %v", sql, err)
	}
}

// passwordRotated changes the password of walhook's role under load and ends its sessions.
// Only later does the new password reach walhook, by the file with the connection string
// or by the password file. The last time it reaches walhook first.
func passwordRotated(t *testing.T, s Setup) {
	const across, unknownFor, backAtMost = 4 * time.Second, 4 * time.Second, 10 * time.Second
	s.Role = true
	x := newTrial(t, s)
	x.receiver.failShare = 0
	x.wantPassword("first")
	inURL, passFile := filepath.Join(x.folder, "url"), filepath.Join(x.folder, "passwords")
	urlWith := func(password string) string {
		return strings.Replace(x.walhookURL("walhook-1"), roleName+"@", roleName+":"+password+"@", 1)
	}
	write := func(path, text string) {
		x.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			x.Fatal(err)
		}
	}
	write(inURL, urlWith("first"))
	p := x.start("WALHOOK_DATABASE_URL=", "WALHOOK_DATABASE_URL_FILE="+inURL)
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	slowest := time.Duration(0)
	rotate := func(password string, before func(), tell func()) {
		x.Helper()
		<-time.After(across)
		before()
		over := x.crash(p) // sessions may end between an answer and its record
		x.exec(`ALTER ROLE ` + roleName + ` PASSWORD '` + password + `'`)
		x.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '` + roleName + `'`)
		<-time.After(unknownFor)
		end := insertLSN(x.Context(), x.pool)
		tell()
		over()
		began := time.Now()
		x.eventually(time.Minute, "what was committed meanwhile is delivered", func() bool { return x.slot().Confirmed >= end })
		slowest = max(slowest, time.Since(began))
	}
	nothing := func() {}
	rotate("second", nothing, func() { write(inURL, urlWith("second")) })
	x.expect(p.logged("password authentication failed") > 0, "the log does not say that the password is wrong")
	rotate("third", nothing, func() { // from the string into the password file
		write(passFile, "*:*:*:"+roleName+":third\n")
		write(inURL, x.walhookURL("walhook-1")+"&passfile="+url.QueryEscape(passFile))
	})
	rotate("fourth", nothing, func() { write(passFile, "*:*:*:"+roleName+":fourth\n") })
	rotate("fifth", func() { write(passFile, "*:*:*:"+roleName+":fifth\n") }, nothing)
	stop()
	x.expect(slowest <= backAtMost, "caught up %s after the new password was in place", slowest)
	x.expect(p.Running(), "%s has ended by itself: %v", p.Name, p.Err)
	x.finish(time.Minute, fmt.Sprintf("back=%s", slowest.Round(time.Millisecond)))
	charged := 0
	x.look(`SELECT count(*) FROM webhook_deliveries WHERE attempts <> 1 OR error_class IS NOT NULL`, &charged)
	if charged != 0 {
		x.Errorf("%d deliveries were charged with an attempt that the password was to blame for", charged)
	}
}

// wantPassword makes PostgreSQL ask walhook's role for a password.
func (x *Trial) wantPassword(password string) {
	x.Helper()
	x.exec(`ALTER ROLE ` + roleName + ` PASSWORD '` + password + `'`)
	x.exec(fmt.Sprintf(`DO $do$ BEGIN
    EXECUTE format('COPY (SELECT * FROM unnest(%%L::text[])) TO %%L',
        ARRAY['host all,replication %[1]s all scram-sha-256', 'local all,replication %[1]s scram-sha-256']
            || string_to_array(pg_read_file(current_setting('hba_file')), E'\n'), current_setting('hba_file'));
    PERFORM pg_reload_conf();
END $do$`, roleName))
	x.eventually(5*time.Second, "walhook's role is asked for its password", func() bool {
		var asked bool
		err := x.pool.QueryRow(x.Context(), `SELECT auth_method = 'scram-sha-256' FROM pg_hba_file_rules WHERE line_number = 1 AND error IS NULL`).Scan(&asked)
		return err == nil && asked
	})
}

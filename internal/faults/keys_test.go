package faults

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"
)

// keyIDs counts the keys of sealed:v2:<id>:… texts; the oldest form has none.
const keyIDs = `
SELECT count(DISTINCT split_part(sealed, ':', 3))
FROM (SELECT secret FROM webhook_secrets UNION ALL SELECT h.value #>> '{}' FROM webhook_endpoints, jsonb_each(headers) h) s(sealed)`

// keys changes WALHOOK_SECRET_KEY wrongly, and as docs/operations.md says, under load and from
// one process to the next. It also makes a secret unreadable while walhook runs.
func keys(t *testing.T, s Setup) {
	const deliversWithin, exitsWithin = 10 * time.Second, 10 * time.Second
	key := func(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }
	x := newTrial(t, s)
	sealed := func() (n int) {
		if err := x.pool.QueryRow(t.Context(), `SELECT count(*) FROM webhook_secrets WHERE NOT starts_with(secret, 'sealed:')`).Scan(&n); err != nil {
			x.Fatal(err)
		}
		return n
	}
	begin := func(env ...string) (*Process, func()) {
		p := x.start(env...)
		x.ready()
		return p, x.driveOn(Load{Rate: *rate / 2})
	}
	end := func(p *Process, stop func()) {
		stop()
		x.load.Wait()
		_, err := p.stop(timeout + exitMargin)
		x.expect(err == nil, "%v", err)
	}
	p, stop := begin("WALHOOK_SECRET_KEY=" + key(1))
	x.eventually(30*time.Second, "the secrets are sealed", func() bool { return sealed() == 0 })
	end(p, stop)

	for _, env := range [][]string{nil, {"WALHOOK_SECRET_KEY=" + key(2)}} {
		from, wrong := x.journal.Count(), x.start(env...)
		select {
		case <-wrong.Exited:
			exit, ok := errors.AsType[*exec.ExitError](wrong.Err)
			x.expect(ok && exit.ExitCode() == 2, "with the wrong key it ended with %v, want exit code 2", wrong.Err)
		case <-time.After(exitsWithin):
			x.expect(false, "with the wrong key it runs")
			x.expect(wrong.kill() == nil, "and cannot be killed")
		}
		x.expect(x.journal.Count() == from, "with the wrong key something was sent")
	}

	old, stop := begin("WALHOOK_SECRET_KEY=" + key(1))
	p = x.start("WALHOOK_SECRET_KEY="+key(2), "WALHOOK_SECRET_KEY_OLD="+key(1))
	x.standingBy(p)
	_, err := old.stop(timeout + exitMargin)
	x.expect(err == nil, "%v", err)
	x.eventually(30*time.Second, "all secrets are resealed", func() bool { return p.logged("resealed signing secrets") > 0 })
	var ids int
	if err := x.pool.QueryRow(t.Context(), keyIDs).Scan(&ids); err != nil {
		x.Fatal(err)
	}
	x.expect(ids == 1, "what is sealed has %d key ids, want that of the new key alone", ids)
	end(p, stop)

	p, stop = begin("WALHOOK_SECRET_KEY=" + key(2))
	const victim = 0
	id := x.endpoints[victim].ID
	x.exec(`CREATE TABLE faults_secrets AS SELECT id, secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
	x.exec(`UPDATE webhook_secrets SET secret = 'sealed:v1:' || encode(sha256(secret::bytea), 'base64') WHERE endpoint_id = $1`, id)
	<-time.After(inForceAfter)
	attempts := func() (n int) {
		if err := x.pool.QueryRow(t.Context(), `SELECT coalesce(sum(attempts), 0) FROM webhook_deliveries WHERE endpoint_id = $1 AND status <> 'success'`, id).Scan(&n); err != nil {
			x.Fatal(err)
		}
		return n
	}
	before := attempts()
	from, failing := x.journal.Count(), 0
	<-time.After(3 * time.Second)
	for _, r := range x.journal.Since(from) {
		if r.Endpoint == victim {
			failing++
		}
	}
	x.expect(failing == 0, "%d requests were sent to an endpoint whose secret cannot be opened", failing)
	x.expect(attempts() == before, "%d attempts were charged, and %d before", attempts(), before)
	x.expect(p.logged("signing secrets or headers cannot be opened") == 1, "the log says %d times that secrets cannot be opened", p.logged("signing secrets or headers cannot be opened"))
	x.exec(`UPDATE webhook_secrets s SET secret = f.secret FROM faults_secrets f WHERE f.id = s.id`)
	stop()
	x.load.Wait()
	took := x.drain(deliversWithin)
	x.expect(took <= deliversWithin, "delivered %s after the secret was mended", took)
	x.finish(time.Minute, fmt.Sprintf("mended=%s", took.Round(time.Millisecond)))
}

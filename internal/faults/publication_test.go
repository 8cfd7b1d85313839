package faults

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// droppedPublication drops the publication.
func droppedPublication(t *testing.T, s Setup) {
	blinded(t, s, `DROP PUBLICATION walhook`,
		`CREATE PUBLICATION walhook FOR TABLE webhook_outbox WITH (publish = 'insert', publish_via_partition_root = true)`)
}

// unpublishedTable takes the outbox out of the publication.
func unpublishedTable(t *testing.T, s Setup) {
	blinded(t, s, `ALTER PUBLICATION walhook DROP TABLE webhook_outbox`, `ALTER PUBLICATION walhook ADD TABLE webhook_outbox`)
}

// renamedTable renames the outbox. The application's transactions fail meanwhile.
func renamedTable(t *testing.T, s Setup) {
	blinded(t, s, `ALTER TABLE webhook_outbox RENAME TO webhook_outbox_elsewhere`, `ALTER TABLE webhook_outbox_elsewhere RENAME TO webhook_outbox`)
}

// blinded takes away, under load, something without which PostgreSQL streams nothing, and
// gives it back. The stream never brings the events that are committed meanwhile.
func blinded(t *testing.T, s Setup, take, giveBack string) {
	const before, saidAtMost, blindFor, resyncAtMost = 4 * time.Second, 30 * time.Second, 10 * time.Second, 30 * time.Second
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	x.monitor.pause(true) // the confirmed position means nothing until walhook notices
	logged := func() int {
		return p.logged("confirming suspended") + p.logged("stream interrupted")
	}
	known := logged()
	over := x.crash(nil) // the stream may be cut
	x.exec(take)
	began := time.Now()
	says := ""
	x.eventually(2*saidAtMost, "readyz and the log say what is missing", func() bool {
		var status int
		status, says = p.ready(t.Context())
		return status == http.StatusServiceUnavailable && logged() > known
	})
	said := time.Since(began)
	x.expect(said <= saidAtMost, "readyz and the log said so after %s", said)
	<-time.After(2 * time.Second) // for confirmations that were on their way
	stood := x.slot().Confirmed
	<-time.After(blindFor)
	moved := x.slot().Confirmed
	x.expect(moved == stood, "the slot was confirmed from %s to %s in the meantime", stood, moved)
	x.exec(giveBack)
	took := x.resynchronised(time.Now(), resyncAtMost)
	over()
	x.eventually(resyncAtMost, "readyz says 200 again", func() bool {
		status, _ := p.ready(t.Context())
		return status == http.StatusOK
	})
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("said=%s (%s) resync=%s", said.Round(time.Millisecond), says, took.Round(time.Millisecond)))
}

package main

import "github.com/walhook/walhook/internal/failpoint"

// A patch replaces old, which is in the file exactly once, by with, in which $ stands
// for old. The best old is a few words of code that have their own reasons to stay.
type patch struct{ file, old, with string }

// patches are all calls of package failpoint.
func patches() []patch {
	return []patch{
		{"deliver/schedule/ledger.go", `t.pending > 0 {`, `t.pending > 0 && !` + on(failpoint.ConfirmOnReceipt) + ` {`},
		{"cdc/decoder.go", `begin(r *reader) (webhook.Batch, bool, error) {`, `$ start := *r`},
		{"cdc/decoder.go", `d.batch = webhook.Batch{CommitTime: committed}`, `$; if ` + on(failpoint.ConfirmBegin) + ` { d.batch.End = pglogrepl.LSN(start.uint64()) + 1 }`}, // as the protocol counts: the last byte that is flushed, and one
		{"deliver/schedule/batch.go", `stuck = s.inserted(`, `if ` + on(failpoint.SkipEcho) + ` { s.ledger.echo(b.Mark.Seq); s.confirm() }; $`},
		{"cdc/slot.go", `sieve.outbox = session.Outbox`, `if ` + on(failpoint.SlotsPosition) + ` { session.Start = min(session.Start, slot.confirmed) }; $`},
		{"deliver/fanout.go", `mayHaveRows(b *webhook.Batch) bool {`, `$ if ` + on(failpoint.SkipLookUp) + ` { return false }`},
		{"internal/store/record.go", `b.Queue(advanceState, args)`, `if ` + on(failpoint.NoFence) + ` { b.Queue("UPDATE webhook_state SET holder = @holder::uuid, epoch = @epoch::bigint WHERE slot = @slot", args) }; $`},
		{"cdc/connection.go", `err := alive(); err != nil`, `$ && !` + on(failpoint.NoWatchdog)},
		{"deliver/schedule/start.go", `s.running+s.ended < s.limits.MaxInFlight+unrecordedRoom`, `($ || ` + on(failpoint.NoRoom) + `)`},
		{"deliver/schedule/batch.go", `case d.stage == parked:`, `case d.stage == parked || ` + on(failpoint.NoLease) + `:`},
		{"cdc/status.go", `c.pings.burst(k.ServerWALEnd, now)`, `$ && !` + on(failpoint.StayOn)},
		{"cdc/connection.go", `c.shuttingDown.Load()`, `$ && !` + on(failpoint.StayOn)},
		{"deliver/reconciler.go", `!fence.Reconcile`, `$ || ` + on(failpoint.NoReconciler)},
		{"deliver/send/response.go", `bytes.IndexByte(b, 0) < 0`, `$ || ` + on(failpoint.KeepText)},
		{"cdc/connection.go", `c.checkPassed.Store(err == nil)`, `c.checkPassed.Store(err == nil || ` + on(failpoint.IgnoreCheck) + `)`},
		{"internal/store/due.go", `d.Status, d.Event.Payload, d.DueAt =`, `d.Orphaned = d.Orphaned || d.Unseen && ` + on(failpoint.CancelUnseen) + `; $`},
		{"internal/store/cancel.go", `b.Queue(orphans+eventGone+cancelMissing, args)`, `if ` + on(failpoint.CancelUnseen) + ` { b.Queue(orphans+cancelMissing, args) } else { $ }`},
		{"internal/webhook/session.go", `max(s.Confirmed, confirmed) > known`, `$ && !` + on(failpoint.TrustSlot)},
		{"internal/webhook/session.go", `Live(now time.Time) bool {`, `$ if ` + on(failpoint.NoLiveness) + ` { return true }`},
		{"deliver/writer.go", `err := w.try(ctx, b, m, part)`, `for i := range part { if ` + on(failpoint.EarlierWord) + ` { part[i].Seen = webhook.Seen{} } }; $`},
		{"deliver/schedule/lookup.go", `e.Sealed != ""`, `$ && !` + on(failpoint.ChargeOwnFaults)},
		{"deliver/workers.go", `a.OwnFault != ""`, `$ && !` + on(failpoint.ChargeOwnFaults)},

		{"deliver/workers.go", `a, completed := e.send(ctx, r)`, `$; ` + reach(failpoint.Answered)},
		{"deliver/recorder.go", `r.refused = append(r.refused, r.scheduler.Inserted(`, reach(failpoint.Recorded) + `; $`},
		{"deliver/recorder.go", `locked, refused := r.scheduler.Updated(`, reach(failpoint.Updated) + `; $`},
		{"deliver/schedule/scheduler.go", `s.ledger.echo(seq)`, `$; ` + reach(failpoint.Echoed)},
		{"deliver/schedule/window.go", `s.counts.Parked++`, `$; ` + reach(failpoint.Parking)},
		{"deliver/fanout.go", `fence, err := f.acquire(ctx, s, marker)`, `$; ` + reach(failpoint.TakeOver)},

		{"deliver/heartbeat.go", `h.at.Store(int64(time.Since(started)))`, `failpoint.Turn(h.name); $`},
		{"cdc/connection.go", `c.stream.lastAlive.Store(new(now))`, `failpoint.Turn("stream"); $`},
	}
}

func on(s failpoint.Switch) string { return `failpoint.On("` + string(s) + `")` }

func reach(p failpoint.Point) string { return `failpoint.Reach("` + string(p) + `")` }

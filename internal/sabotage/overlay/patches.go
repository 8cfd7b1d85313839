package main

import "github.com/walhook/walhook/internal/sabotage"

// A patch replaces old, which is in the file exactly once, by with, in which $ stands
// for old. The best old is a few words of code that have their own reasons to stay.
type patch struct{ file, old, with string }

// patches are all calls of package sabotage.
func patches() []patch {
	return []patch{
		{"deliver/schedule/ledger.go", `t.pending > 0 {`, `t.pending > 0 && !` + on(sabotage.ConfirmOnReceipt) + ` {`},
		{"cdc/decoder.go", `begin(r *reader) (store.Batch, bool, error) {`, `$ start := *r`},
		{"cdc/decoder.go", `d.batch = store.Batch{CommitTime: committed}`, `$; if ` + on(sabotage.ConfirmBegin) + ` { d.batch.End = pglogrepl.LSN(start.uint64()) + 1 }`}, // as the protocol counts: the last byte that is flushed, and one
		{"deliver/schedule/batch.go", `stuck = s.inserted(`, `if ` + on(sabotage.SkipEcho) + ` { s.ledger.echo(b.Mark.Seq); s.confirm() }; $`},
		{"cdc/slot.go", `sieve.outbox = session.Outbox`, `if ` + on(sabotage.SlotsPosition) + ` { session.Start = min(session.Start, slot.confirmed) }; $`},
		{"deliver/fanout.go", `mayHaveRows(b *store.Batch) bool {`, `$ if ` + on(sabotage.SkipLookUp) + ` { return false }`},
		{"internal/store/record.go", `b.Queue(advanceState, args)`, `if ` + on(sabotage.NoFence) + ` { b.Queue("UPDATE webhook_state SET holder = @holder::uuid, epoch = @epoch::bigint WHERE slot = @slot", args) }; $`},
		{"cdc/connection.go", `err := alive(); err != nil`, `$ && !` + on(sabotage.NoWatchdog)},
		{"deliver/schedule/start.go", `s.running+s.ended < s.limits.MaxInFlight+unrecordedRoom`, `($ || ` + on(sabotage.NoRoom) + `)`},
		{"deliver/schedule/batch.go", `case d.stage == parked:`, `case d.stage == parked || ` + on(sabotage.NoLease) + `:`},
		{"cdc/connection.go", `c.pings.burst(k.ServerWALEnd, now)`, `$ && !` + on(sabotage.StayOn)},
		{"cdc/connection.go", `c.shuttingDown.Load()`, `$ && !` + on(sabotage.StayOn)},
		{"deliver/reconciler.go", `!fence.Reconcile`, `$ || ` + on(sabotage.NoReconciler)},
		{"deliver/send/response.go", `bytes.IndexByte(b, 0) < 0`, `$ || ` + on(sabotage.KeepText)},
		{"cdc/connection.go", `c.checkPassed.Store(err == nil)`, `c.checkPassed.Store(err == nil || ` + on(sabotage.IgnoreCheck) + `)`},
		{"internal/store/due.go", `d.Status, d.Event.Payload =`, `d.Orphaned = d.Orphaned || d.Unseen && ` + on(sabotage.CancelUnseen) + `; $`},
		{"internal/store/cancel.go", `b.Queue(orphans+eventGone+cancelMissing, args)`, `if ` + on(sabotage.CancelUnseen) + ` { b.Queue(orphans+cancelMissing, args) } else { $ }`},
		{"internal/store/stream.go", `max(s.Confirmed, confirmed) > known`, `$ && !` + on(sabotage.TrustSlot)},
		{"internal/store/stream.go", `Live(now time.Time) bool {`, `$ if ` + on(sabotage.NoLiveness) + ` { return true }`},
		{"deliver/recorder.go", `err := r.try(ctx, b, m, part)`, `for i := range part { if ` + on(sabotage.EarlierWord) + ` { part[i].Seen = store.Seen{} } }; $`},
		{"deliver/schedule/lookup.go", `e.Sealed != ""`, `$ && !` + on(sabotage.ChargeOwnFaults)},

		{"deliver/workers.go", `a, completed := e.send(ctx, r)`, `$; ` + reach(sabotage.Answered)},
		{"deliver/recorder.go", `r.refused = append(r.refused, r.scheduler.Inserted(`, reach(sabotage.Recorded) + `; $`},
		{"deliver/recorder.go", `locked, refused := r.scheduler.Updated(`, reach(sabotage.Updated) + `; $`},
		{"deliver/schedule/scheduler.go", `s.ledger.echo(seq)`, `$; ` + reach(sabotage.Echoed)},
		{"deliver/schedule/window.go", `s.counts.Parked++`, `$; ` + reach(sabotage.Parking)},
		{"deliver/fanout.go", `fence, err := f.acquire(ctx, s, marker)`, `$; ` + reach(sabotage.TakeOver)},

		{"deliver/heartbeat.go", `h.at.Store(int64(time.Since(started)))`, `sabotage.Turn(h.name); $`},
		{"cdc/connection.go", `c.stream.lastAlive.Store(new(now))`, `sabotage.Turn("stream"); $`},
	}
}

func on(s sabotage.Switch) string { return `sabotage.On("` + string(s) + `")` }

func reach(p sabotage.Point) string { return `sabotage.Reach("` + string(p) + `")` }

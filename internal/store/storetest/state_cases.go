package storetest

import (
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

func fences(b *bench) {
	endpoint, off := b.NewEndpoint(organization), b.NewEndpoint(organization)
	r, owed, anew := b.owed(endpoint), b.owed(off), b.owed(endpoint)
	b.insert(r, owed)
	b.Enable(off, false)
	listen := b.Listen()
	former := b.fence
	ahead := time.Now().Add(time.Hour) // the clock was, when this was committed
	b.ok(b.Mark(b.Context(), former, webhook.Mark{Durable: 50, CommitAt: ahead}))
	b.fence = b.claim(&webhook.Session{})
	if b.fence.Epoch != former.Epoch+1 || b.fence.LastWrite.Before(ahead.Truncate(time.Second)) {
		b.Errorf("epoch %d after %d, last write %s, want none before what is recorded, %s", b.fence.Epoch, former.Epoch, b.fence.LastWrite, ahead)
	}
	ctx, ids, mark := b.Context(), []uuid.UUID{r.ID, owed.ID}, webhook.Mark{Seq: 7, Durable: 1 << 40}
	gone := outcome(r, webhook.Failed, 1)
	gone.Gone = true
	for what, write := range map[string]func() error{
		"Insert": func() error { _, err := b.Insert(ctx, former, mark, []webhook.Record{anew}); return err },
		"Update": func() error { _, _, err := b.Update(ctx, former, mark, []webhook.Record{gone}); return err },
		"Mark":   func() error { return b.Mark(ctx, former, mark) },
		"WriteConsequence": func() error {
			_, err := b.WriteConsequence(ctx, former, store.Consequences(nil, []webhook.Record{gone})[0])
			return err
		},
		"NoteMissing":      func() error { _, err := b.NoteMissing(ctx, former, time.Now()); return err },
		"CancelRows":       func() error { _, _, err := b.CancelRows(ctx, former, off, ""); return err },
		"CancelOrphans":    func() error { return b.CancelOrphans(ctx, former, ids) },
		"CancelReassigned": func() error { return b.CancelReassigned(ctx, former, ids) },
		"InsertMissing":    func() error { _, err := b.InsertMissing(ctx, former, []webhook.Record{anew}); return err },
	} {
		if err := write(); !errors.Is(err, store.ErrFenced) {
			b.Errorf("%s: %v, want ErrFenced", what, err)
		}
	}
	since, err := b.Reconciled(ctx, former)
	b.ok(err)
	if !since.IsZero() {
		b.Errorf("the former holder has to compare since %s", since)
	}
	b.has(r.ID, "pending 0")
	b.has(owed.ID, "pending 0")
	b.has(anew.ID, "none")
	if at, _ := b.Position(); at != 0 {
		b.Errorf("position %s", at)
	}
	if got, want := listen(), []string{b.fence.Echo(1)}; !slices.Equal(got, want) {
		b.Errorf("echoes %q, want the newcomer's", got)
	}
	if f := b.claim(&webhook.Session{Start: 1}); !f.Reconcile {
		b.Error("the former holder has ended what was to be reconciled")
	}
}

func marks(b *bench) {
	at := time.Now().Add(-time.Hour).Truncate(time.Second)
	position := func(want pglogrepl.LSN, wantAt time.Time) {
		b.Helper()
		if got, gotAt := b.Position(); got != want || !gotAt.Equal(wantAt) {
			b.Errorf("position %s of %s, want %s of %s", got, gotAt, want, wantAt)
		}
	}
	listen := b.Listen()
	b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Seq: 2, Durable: 100, CommitAt: at}))
	position(100, at)
	b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Durable: 50, CommitAt: at.Add(time.Minute)})) // backwards, and without an echo
	position(100, at)
	b.ok(b.Mark(b.Context(), b.fence, webhook.Mark{Durable: 110}))
	position(110, at)
	r := b.owed(b.NewEndpoint(organization))
	_, err := b.Insert(b.Context(), b.fence, webhook.Mark{Seq: 3, Durable: 120, CommitAt: at.Add(time.Second)}, []webhook.Record{r})
	b.ok(err)
	position(120, at.Add(time.Second))
	_, _, err = b.Update(b.Context(), b.fence, webhook.Mark{Seq: 4}, []webhook.Record{outcome(r, webhook.Success, 1)})
	b.ok(err)
	position(120, at.Add(time.Second))
	before := b.fence
	before.Server = before.Server.Add(-time.Minute) // the server was started again since
	b.ok(b.Mark(b.Context(), before, webhook.Mark{Seq: 5, Durable: 200}))
	position(120, at.Add(time.Second))
	if got, want := listen(), []string{b.fence.Echo(2), b.fence.Echo(3), b.fence.Echo(4), b.fence.Echo(5)}; !slices.Equal(got, want) {
		b.Errorf("echoes %q, want %q", got, want)
	}
	if seq, ours := b.fence.ParseEcho(b.fence.Echo(4)); seq != 4 || !ours {
		b.Errorf("the echo of 4 is of %d, ours %t", seq, ours)
	}
}

func settles(b *bench) {
	commit := b.Begin(event(b.NewEndpoint(organization)))
	settled := func(f webhook.Fence) bool {
		b.Helper()
		settled, err := b.ClaimVisible(b.Context(), f)
		b.ok(err)
		return settled
	}
	if !settled(b.claim(&webhook.Session{SlotCreated: true})) {
		b.Error("whoever makes a slot has waited for them")
	}
	moved, first := b.claim(&webhook.Session{Start: 100, Confirmed: 101}), b.claim(&webhook.Session{Confirmed: 101})
	if settled(moved) || settled(first) {
		b.Errorf("settled while a transaction is open: moved %t, first %t", settled(moved), settled(first))
	}
	commit()
	b.eventually("settled when it has ended", func() bool { return settled(moved) && settled(first) })
}

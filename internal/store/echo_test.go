package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pglogrepl"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// With what pgoutput streams: the messages of a recording transaction that
// committed, and of no other.
func TestEchoesAreInTheWAL(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db.Pool, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, db.Slot)
	st, fence := acquired(t, db)
	rs := owed(t, db, newEndpoint(t, db.Pool, "org_1"), 3)
	for i := range rs {
		rs[i] = outcome(rs[i], webhook.Success, 1, 200)
	}
	write := func(mark webhook.Mark, r webhook.Record) {
		if _, err := st.Insert(t.Context(), fence, mark, []webhook.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	write(webhook.Mark{Seq: 2}, rs[0])
	write(webhook.Mark{}, rs[1]) // no echo
	rs[2].Attempt.Response = "\x00"
	if _, err := st.Insert(t.Context(), fence, webhook.Mark{Seq: 3}, rs[2:]); err == nil {
		t.Fatal("a NUL was stored")
	}
	if _, _, err := st.Update(t.Context(), fence, webhook.Mark{Seq: 4}, rs[:1]); err != nil {
		t.Fatal(err)
	}
	if err := st.Mark(t.Context(), fence, webhook.Mark{Seq: 5}); err != nil {
		t.Fatal(err)
	}
	acquire(t, st) // its marker is the newcomer's
	if err := st.Mark(t.Context(), fence, webhook.Mark{Seq: 6}); !errors.Is(err, store.ErrFenced) {
		t.Fatal(err)
	}

	var got []uint64
	others := 0
	for _, data := range column[[]byte](t, db.Pool, `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'walhook', 'messages', 'true')`, db.Slot) {
		m, err := pglogrepl.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		message, ok := m.(*pglogrepl.LogicalDecodingMessage)
		if !ok {
			continue
		}
		if !message.Transactional || message.Prefix != webhook.MessagePrefix {
			t.Errorf("message %+v", message)
		}
		if seq, ours := fence.ParseEcho(string(message.Content)); ours {
			got = append(got, seq)
		} else {
			others++
		}
	}
	if want := []uint64{1, 2, 4, 5}; !slices.Equal(got, want) || others != 1 {
		t.Errorf("echoes %v, want %v; %d others, want 1", got, want, others)
	}
}

func FuzzParseEcho(f *testing.F) {
	fence := webhook.Fence{Holder: uuid.MustParse("0189d0d0-0000-7000-8000-000000000001"), Epoch: 12}
	for _, m := range []string{"", "/", fence.Echo(0), fence.Echo(1<<64 - 1), fence.Echo(7) + " ", fence.Holder.String() + "/12/+7",
		fence.Holder.String() + "/12/007", fence.Holder.String() + "/12/7/8", fence.Holder.String() + "/1/27", strings.ToUpper(fence.Echo(3)),
		fence.Holder.String() + "/12/18446744073709551616", fence.Holder.String() + "/12/-1"} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, message string) {
		seq, ours := fence.ParseEcho(message)
		if ours != (fence.Echo(seq) == message) {
			t.Errorf("%q: batch %d, ours %t", message, seq, ours)
		}
	})
}

func TestParseEcho(t *testing.T) {
	t.Parallel()
	fence := webhook.Fence{Holder: uuid.New(), Epoch: 12}
	for _, want := range []uint64{0, 1, 1<<64 - 1} {
		if got, ours := fence.ParseEcho(fence.Echo(want)); got != want || !ours {
			t.Errorf("%d, %t, want %d", got, ours, want)
		}
	}
	for _, m := range []string{
		"", fence.Echo(7) + "x", fence.Echo(7) + "/1", fence.Holder.String() + "/12/007", fence.Holder.String() + "/12/+7", fence.Holder.String() + "/12/",
		webhook.Fence{Holder: fence.Holder, Epoch: 11}.Echo(7), webhook.Fence{Holder: fence.Holder, Epoch: 1}.Echo(27), webhook.Fence{Holder: uuid.New(), Epoch: 12}.Echo(7),
	} {
		if seq, ours := fence.ParseEcho(m); ours {
			t.Errorf("%q counts as batch %d", m, seq)
		}
	}
}

func TestAnEchoCannotBeForged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, db.Slot, 0)
	fence, err := st.Acquire(t.Context(), uuid.New(), testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	if seq, ours := fence.ParseEcho(fence.Echo(7)); !ours || seq != 7 {
		t.Errorf("its own: %d, %t", seq, ours)
	}
	var holder uuid.UUID
	var epoch int64
	if err := db.Pool.QueryRow(t.Context(), `SELECT holder, epoch FROM webhook_state`).Scan(&holder, &epoch); err != nil {
		t.Fatal(err)
	}
	if forged := (webhook.Fence{Holder: holder, Epoch: epoch}).Echo(7); holder != fence.Holder || epoch != fence.Epoch {
		t.Errorf("holder %s, epoch %d", holder, epoch)
	} else if _, ours := fence.ParseEcho(forged); ours {
		t.Errorf("%q, made of what webhook_state tells, counts", forged)
	}
	var told bool
	if err := db.Pool.QueryRow(t.Context(), `SELECT to_jsonb(s)::text LIKE '%' || $1 || '%' FROM webhook_state s`, strings.Split(fence.Echo(7), "/")[2]).Scan(&told); err != nil || told {
		t.Errorf("webhook_state tells the nonce: %t, %v", told, err)
	}
	another, err := store.New(db.Pool, db.Slot, 0).Acquire(t.Context(), holder, testSession, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ours := another.ParseEcho(fence.Echo(7)); ours || another.Epoch != fence.Epoch {
		t.Errorf("another process's echo counts (epochs %d and %d)", fence.Epoch, another.Epoch)
	}
}

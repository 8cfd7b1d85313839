package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/config"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

func key(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

// sealWith seals all secrets that are not sealed.
func (w *world) sealWith(b byte) {
	w.t.Helper()
	sealer, err := store.NewSealer(bytes.Repeat([]byte{b}, 32), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	st := store.New(w.db.Pool, w.db.Slot, 0)
	st.Sealing(sealer)
	if _, err := st.SealAll(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// Every delivery would fail, or wait, for the lack of a signature: a start with a wrong
// key, or none, ends, and says what mends it.
func TestAStartWithTheWrongKeyIsRefused(t *testing.T) {
	w := newWorld(t)
	id, _ := w.endpoint("https://example.com/")
	w.sealWith(1)
	for name, env := range map[string][]string{
		"none": nil, "another": {"WALHOOK_SECRET_KEY=" + key(2)}, "two others": {"WALHOOK_SECRET_KEY=" + key(2), "WALHOOK_SECRET_KEY_OLD=" + key(3)},
	} {
		cfg, err := config.Load(append(env, w.env...))
		if err != nil {
			t.Fatal(err)
		}
		err = run(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if exitCode(err) != exitConfig || !strings.Contains(err.Error(), "WALHOOK_SECRET_KEY_OLD") {
			t.Errorf("%s: exit %d, %v", name, exitCode(err), err)
		}
	}
	w.run("WALHOOK_SECRET_KEY="+key(2), "WALHOOK_SECRET_KEY_OLD="+key(1))
	began := time.Now()
	new2, err := store.NewSealer(bytes.Repeat([]byte{2}, 32), nil)
	if err != nil {
		t.Fatal(err)
	}
	st := store.New(w.db.Pool, w.db.Slot, 0)
	st.Sealing(new2)
	pgtest.Eventually(t, patience, "the secret is sealed anew with the first key", func() bool { return st.CheckSecrets(context.Background()) == nil })
	w.endpoint("https://example.com/")
	w.eventually("a new one is sealed", `SELECT bool_and(starts_with(secret, 'sealed:')) FROM webhook_secrets`)
	if took := time.Since(began); took > 2*sealRetry {
		t.Errorf("sealing anew and sealing took %s", took)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_secrets WHERE endpoint_id = $1`, id); n != 1 {
		t.Errorf("%d secrets", n)
	}
}

// A secret that cannot be opened is our own fault: the delivery waits, nothing is
// counted, and others are served.
func TestASecretThatCannotBeOpenedWaits(t *testing.T) {
	for _, park := range []string{"500ms", "0"} {
		t.Run("park="+park, func(t *testing.T) {
			w := newWorld(t, "WALHOOK_PARK_AFTER="+park)
			r := newReceiver(t, always(200))
			closed, _ := w.endpoint(r.URL + "/closed")
			w.sealWith(2)
			open, _ := w.endpoint(r.URL + "/open")
			w.sealWith(1)
			w.run("WALHOOK_SECRET_KEY=" + key(1))
			for range 30 {
				w.insert("payment.succeeded")
			}
			w.eventually("the others are served", `SELECT count(*) = 30 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'success'`, open)
			w.eventually("the rest waits", `SELECT count(*) = 30 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'pending' AND attempts = 0 AND error IS NULL`, closed)
			if n := query[int](w, `SELECT count(*) FROM webhook_endpoint_failures`); n != 0 {
				t.Error("the endpoint counts as failing")
			}
			w.exec(`SELECT webhook_rotate_secret($1, '0')`, closed)
			w.eventually("with a secret that can be opened it is delivered", `SELECT count(*) = 30 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'success' AND attempts = 1`, closed)
			if n := len(r.requests()); n != 60 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/sign"
)

func TestSecretArguments(t *testing.T) {
	unset(t)
	for says, args := range map[string][]string{
		"the id of an endpoint":        {"secret", "show"},
		"is not the id of an endpoint": {"secret", "show", "x"},
		"show, check or reseal":        {"secret", "steal"},
	} {
		if code, _, stderr := typed(t, args...); code != exitConfig || !strings.Contains(stderr, says) {
			t.Errorf("%v: exit %d, %s; want %d, %q", args, code, stderr, exitConfig, says)
		}
	}
	if code, stdout, _ := typed(t, "secret", "show", "--help"); code != exitClean || !strings.Contains(stdout, "show ENDPOINT") {
		t.Errorf("help: exit %d, %s", code, stdout)
	}
}

func TestSecretCommands(t *testing.T) {
	w := newWorld(t)
	id, _ := w.endpoint("https://example.com/")
	w.exec(`UPDATE webhook_endpoints SET headers = '{"Authorization": "Bearer me"}' WHERE id = $1`, id)
	older := query[string](w, `SELECT secret FROM webhook_secrets WHERE endpoint_id = $1`, id)
	newer := query[string](w, `SELECT webhook_rotate_secret($1)`, id)
	w.sealWith(1)
	with := func(keys ...byte) *store.Store {
		st := store.New(w.db.Pool, w.db.Slot, 0)
		if keys = append(keys, 0, 0); keys[0] != 0 {
			var old []byte
			if keys[1] != 0 {
				old = bytes.Repeat(keys[1:2], 32)
			}
			sealer, err := store.NewSealer(bytes.Repeat(keys[:1], 32), old)
			if err != nil {
				t.Fatal(err)
			}
			st.Sealing(sealer)
		}
		return st
	}
	show := func(id uuid.UUID) func(*store.Store, *bytes.Buffer) error {
		return func(st *store.Store, out *bytes.Buffer) error { return showSecrets(t.Context(), st, id, out) }
	}
	check := func(st *store.Store, out *bytes.Buffer) error { return resealNow(t.Context(), st, true, out) }
	reseal := func(st *store.Store, out *bytes.Buffer) error { return resealNow(t.Context(), st, false, out) }
	for _, c := range []struct {
		name string
		keys []byte
		run  func(*store.Store, *bytes.Buffer) error
		err  error
		says []string
	}{
		{"show with another key", []byte{2}, show(id), errUnopened, []string{"the key 72cd6e84 has sealed it"}},
		{"check with another key", []byte{2}, check, errUnopened, []string{"3 signing secrets and headers: 0 not sealed with this key, 3 cannot be opened"}},
		{"reseal without a key", nil, reseal, errConfig, []string{"needs WALHOOK_SECRET_KEY"}},
		{"check with both", []byte{2, 1}, check, nil, []string{"3 not sealed with this key, 0 cannot be opened", "WALHOOK_SECRET_KEY is the key 75877bb4, WALHOOK_SECRET_KEY_OLD the key 72cd6e84"}},
		{"reseal with both", []byte{2, 1}, reseal, nil, []string{"3 sealed anew, 0 cannot be opened"}},
		{"check afterwards", []byte{2}, check, nil, []string{"0 not sealed with this key, 0 cannot be opened"}},
		{"show", []byte{2}, show(id), nil, []string{older + "\n    fingerprint " + sign.Fingerprint(older), "signs X-Webhook-Signature and webhook-signature\n" + newer}},
		{"show a stranger", []byte{2}, show(uuid.New()), errConfig, []string{"there is no endpoint"}},
	} {
		var out bytes.Buffer
		err := c.run(with(c.keys...), &out)
		all := out.String()
		if err != nil {
			all += err.Error()
		}
		for _, text := range c.says {
			if !errors.Is(err, c.err) || !strings.Contains(all, text) {
				t.Errorf("%s: %s; want %q, error %v", c.name, all, text, c.err)
			}
		}
		if shown := c.name == "show"; strings.Contains(all, older) != shown {
			t.Errorf("%s: a secret is shown: %t", c.name, !shown)
		}
	}
}

// A header that walhook has sealed reaches its receiver as it was given.
func TestSealedHeadersAreSent(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, always(200))
	id, _ := w.endpoint(r.URL)
	w.exec(`UPDATE webhook_endpoints SET headers = '{"Authorization": "Bearer me"}' WHERE id = $1`, id)
	w.sealWith(1)
	w.run("WALHOOK_SECRET_KEY=" + key(1))
	w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'success'`, id)
	if got := r.requests()[0].header.Get("Authorization"); got != "Bearer me" {
		t.Errorf("the receiver got %q", got)
	}
}

// A receiver with the public key alone verifies what it gets, also where the key is sealed.
func TestRequestsVerifyByThePublicKey(t *testing.T) {
	w := newWorld(t)
	r := newReceiver(t, always(200))
	id, _ := w.endpoint(r.URL)
	secret := "whsk_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	public, err := sign.PublicKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	w.exec(`SELECT webhook_set_secret($1, $2)`, id, secret)
	w.sealWith(1)
	w.run("WALHOOK_SECRET_KEY=" + key(1))
	w.insert("payment.succeeded")
	w.eventually("it is delivered", `SELECT count(*) = 1 FROM webhook_deliveries WHERE endpoint_id = $1 AND status = 'success'`, id)
	if got := r.requests()[0]; sign.Verify(got.header, []byte(got.body), public) != nil {
		t.Errorf("it does not verify: %s", got.header.Get(sign.HeaderSignature))
	}
}

package oracle

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

func TestRead(t *testing.T) {
	t.Parallel()
	const secret, other = "a secret that is long enough", "another secret that is as long"
	id := uuid.New()
	for name, c := range map[string]struct {
		spoil func(http.Header, *[]byte)
		fine  bool
	}{
		"as promised":              {func(http.Header, *[]byte) {}, true},
		"another delivery":         {func(h http.Header, _ *[]byte) { h.Set("X-Webhook-Delivery-ID", uuid.NewString()) }, false},
		"no delivery":              {func(h http.Header, _ *[]byte) { h.Del("X-Webhook-Delivery-ID") }, false},
		"no retry":                 {func(h http.Header, _ *[]byte) { h.Del("X-Webhook-Retry") }, false},
		"a retry before the first": {func(h http.Header, _ *[]byte) { h.Set("X-Webhook-Retry", "-1") }, false},
		"another event":            {func(h http.Header, _ *[]byte) { h.Set("X-Webhook-Event", "org.deleted") }, false},
		"another body":             {func(_ http.Header, b *[]byte) { *b = bytes.Replace(*b, []byte("1"), []byte("2"), 1) }, false},
		"no JSON":                  {func(_ http.Header, b *[]byte) { *b = (*b)[1:] }, false},
		"no standard signature":    {func(h http.Header, _ *[]byte) { h.Del(sign.HeaderSignature) }, false},
		"no body signature":        {func(h http.Header, _ *[]byte) { h.Del(sign.HeaderBodySignature) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signer, err := sign.New(secret)
			if err != nil {
				t.Fatal(err)
			}
			body := []byte(`{"id":"` + id.String() + `","event":"org.created","data":{"n":1},"organizationId":"acme"}`)
			at := time.Now().Unix()
			h := http.Header{}
			for name, value := range map[string]string{
				"X-Webhook-Delivery-ID": id.String(), "X-Webhook-Retry": "3", "X-Webhook-Event": "org.created",
				sign.HeaderID: id.String(), sign.HeaderTimestamp: strconv.FormatInt(at, 10),
				sign.HeaderSignature: signer.Standard(id.String(), at, body), sign.HeaderBodySignature: signer.Body(body),
			} {
				h.Set(name, value)
			}
			c.spoil(h, &body)
			r := Read(h, body, other, secret)
			if fine := r.Malformed == ""; fine != c.fine {
				t.Errorf("fine %t, want %t: %s", fine, c.fine, r.Malformed)
			}
			if c.fine && (r.Delivery != id || r.Retry != 3 || r.Event != id || r.Org != "acme" || r.Data != sha256.Sum256([]byte(`{"n":1}`)) || r.N != 1 ||
				!slices.Equal(r.Signed, []int{1}) || !slices.Equal(r.SignedBody, []int{1})) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

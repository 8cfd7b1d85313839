package sign_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/walhook/walhook/sign"
)

// A receiver reads the raw body, bounded, verifies it, and answers quickly.
func Example_receiver() {
	verifier := sign.Verifier{
		Secrets: []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, // during a rotation: the old and the new one
	}
	receive := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "body too large", http.StatusRequestEntityTooLarge)
			return
		}
		if err := verifier.Verify(r.Header, body); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		// Work on it later: put it into a queue of yours, keyed by the delivery id,
		// which is the same when a delivery comes twice.
		fmt.Println("received", r.Header.Get("X-Webhook-Delivery-ID"), string(body))
		w.WriteHeader(http.StatusNoContent)
	}

	fmt.Println(deliver(receive, `{"event":"payment.succeeded"}`, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
	fmt.Println(deliver(receive, `{"event":"payment.succeeded"}`, "the secret of somebody else"))
	// Output:
	// received 0193a1f0-7c00-7abc-8def-0123456789ab {"event":"payment.succeeded"}
	// 204
	// 401
}

// deliver sends a signed request as walhook does and returns the status.
func deliver(receive http.HandlerFunc, body, secret string) int {
	const id = "0193a1f0-7c00-7abc-8def-0123456789ab"
	signer, err := sign.New(secret)
	if err != nil {
		panic(err)
	}
	now := time.Now().Unix()
	r := httptest.NewRequest(http.MethodPost, "/webhooks", strings.NewReader(body))
	r.Header.Set("X-Webhook-Delivery-ID", id)
	r.Header.Set(sign.HeaderBodySignature, signer.Body([]byte(body)))
	r.Header.Set(sign.HeaderID, id)
	r.Header.Set(sign.HeaderTimestamp, strconv.FormatInt(now, 10))
	r.Header.Set(sign.HeaderSignature, signer.Standard(id, now, []byte(body)))
	w := httptest.NewRecorder()
	receive(w, r)
	return w.Code
}

// Verify is enough where nothing has to be configured.
func ExampleVerify() {
	err := sign.Verify(http.Header{}, []byte(`{}`), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	fmt.Println(err)
	// Output: request is not signed
}

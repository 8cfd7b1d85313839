// Package received takes a request apart as its receiver got it, and says what about it is not as walhook promises.
package received

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

// A Request is what headers and body say.
type Request struct {
	Delivery uuid.UUID
	Retry    int
	Message  Message
	Problem  error // why it is not as promised

	// Which of the secrets webhook-signature and X-Webhook-Signature verify with.
	Standard, Body []int
}

// A Message is the body of a webhook.
type Message struct {
	ID             uuid.UUID       `json:"id"`
	Event          string          `json:"event"`
	Data           json.RawMessage `json:"data"`
	OrganizationID string          `json:"organizationId"`
}

// Read takes a request apart. Both signatures have to verify with one of the secrets.
func Read(h http.Header, body []byte, secrets ...string) (r Request) {
	var wrong [6]error
	r.Delivery, wrong[0] = uuid.Parse(h.Get("X-Webhook-Delivery-ID"))
	if r.Retry, wrong[1] = strconv.Atoi(h.Get("X-Webhook-Retry")); r.Retry < 0 {
		wrong[1] = fmt.Errorf("X-Webhook-Retry is %d", r.Retry)
	}
	wrong[2] = json.Unmarshal(body, &r.Message)
	if event, id := h.Get("X-Webhook-Event"), h.Get(sign.HeaderID); event != r.Message.Event || id != r.Delivery.String() {
		wrong[3] = fmt.Errorf("X-Webhook-Event is %q and %s %q, want %q and %q", event, sign.HeaderID, id, r.Message.Event, r.Delivery)
	}
	r.Standard, wrong[4] = verifying(secrets, func(secret string) error {
		return sign.Verifier{Secrets: []string{secret}, StandardOnly: true}.Verify(h, body)
	})
	alone := http.Header{sign.HeaderBodySignature: h.Values(sign.HeaderBodySignature)} // one is enough for sign.Verify
	r.Body, wrong[5] = verifying(secrets, func(secret string) error { return sign.Verify(alone, body, secret) })
	r.Problem = errors.Join(wrong[:]...)
	return r
}

// verifying returns which of the secrets verify, or why the last does not.
func verifying(secrets []string, verify func(secret string) error) (found []int, why error) {
	for i, secret := range secrets {
		if err := verify(secret); err != nil {
			why = err
		} else {
			found = append(found, i)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return nil, why
}

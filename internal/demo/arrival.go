package demo

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

// An arrival is one request as its receiver saw it.
type arrival struct {
	endpoint *endpoint // at whose URL it came in
	delivery uuid.UUID
	retry    int // X-Webhook-Retry
	body     [sha256.Size]byte
	event    message
	status   int   // what was answered; 0: nothing, or nothing yet
	problem  error // why it was not what walhook promises to send
}

// A message is the body of a webhook.
type message struct {
	ID             uuid.UUID       `json:"id"`
	Event          string          `json:"event"`
	Data           json.RawMessage `json:"data"`
	OrganizationID string          `json:"organizationId"`
}

// readArrival takes a request apart and checks its signatures. What is wrong
// with it is in the arrival.
func readArrival(e *endpoint, h http.Header, body []byte) *arrival {
	a := &arrival{endpoint: e, body: sha256.Sum256(body)}
	a.problem = a.read(h, body)
	return a
}

func (a *arrival) read(h http.Header, body []byte) (err error) {
	if err := verify(h, body, a.endpoint.secret); err != nil {
		return err
	}
	if a.delivery, err = uuid.Parse(h.Get("X-Webhook-Delivery-ID")); err != nil {
		return fmt.Errorf("X-Webhook-Delivery-ID: %w", err)
	}
	if a.retry, err = strconv.Atoi(h.Get("X-Webhook-Retry")); err != nil {
		return fmt.Errorf("X-Webhook-Retry: %w", err)
	}
	if err := json.Unmarshal(body, &a.event); err != nil {
		return fmt.Errorf("the body: %w", err)
	}
	if got := h.Get("X-Webhook-Event"); got != a.event.Event {
		return fmt.Errorf("X-Webhook-Event is %s, and the body says %s", got, a.event.Event)
	}
	if got := h.Get(sign.HeaderID); got != a.delivery.String() {
		return fmt.Errorf("%s is %s, and X-Webhook-Delivery-ID %s", sign.HeaderID, got, a.delivery)
	}
	return nil
}

// verify checks both schemes. One is enough for sign.Verify, which is what
// receivers call, so it is asked twice.
func verify(h http.Header, body []byte, secret string) error {
	standard := sign.Verifier{Secrets: []string{secret}, StandardOnly: true}
	if err := standard.Verify(h, body); err != nil {
		return fmt.Errorf("%s: %w", sign.HeaderSignature, err)
	}
	other := h.Clone()
	other.Del(sign.HeaderSignature)
	if err := sign.Verify(other, body, secret); err != nil {
		return fmt.Errorf("%s: %w", sign.HeaderBodySignature, err)
	}
	return nil
}

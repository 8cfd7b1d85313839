package oracle

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/sign"
)

// A Request is one HTTP request that a receiver got.
type Request struct {
	Endpoint int // its index at the receiver
	At       time.Time

	// What the headers say.
	Delivery uuid.UUID
	Type     string
	Retry    int
	Agent    string // which walhook sent it

	// What the body says.
	Event uuid.UUID
	Org   string
	Data  [sha256.Size]byte
	N     int64 // in the data; 0: none
	Body  [sha256.Size]byte

	Malformed string // why headers, body and signatures are not as walhook promises; "": they are

	// Which of its endpoint's secrets, in the order of their making, webhook-signature
	// and X-Webhook-Signature verify with.
	Signed, SignedBody []int

	Status int       // the answer; 0: none, yet or ever
	Broken bool      // the receiver broke the connection without one
	Whole  time.Time // when the answer had been written to the end; zero: never, or nobody knows
}

// Succeeded reports whether the answer was a 2xx.
func (r *Request) Succeeded() bool { return r.Status >= 200 && r.Status < 300 }

// message is the body of a webhook.
type message struct {
	ID             uuid.UUID       `json:"id"`
	Event          string          `json:"event"`
	Data           json.RawMessage `json:"data"`
	OrganizationID string          `json:"organizationId"`
}

// Read takes a request apart. Both signatures have to verify with one of the secrets.
func Read(h http.Header, body []byte, secrets ...string) *Request {
	r := &Request{Type: h.Get("X-Webhook-Event"), Agent: h.Get("User-Agent"), Body: sha256.Sum256(body)}
	var m message
	var data struct{ N int64 }
	var wrong [7]error
	r.Delivery, wrong[0] = uuid.Parse(h.Get("X-Webhook-Delivery-ID"))
	if r.Retry, wrong[1] = strconv.Atoi(h.Get("X-Webhook-Retry")); r.Retry < 0 {
		wrong[1] = fmt.Errorf("X-Webhook-Retry is %d", r.Retry)
	}
	wrong[2] = json.Unmarshal(body, &m)
	if id := h.Get(sign.HeaderID); r.Type != m.Event || id != r.Delivery.String() {
		wrong[3] = fmt.Errorf("X-Webhook-Event is %q and %s %q, want %q and %q", r.Type, sign.HeaderID, id, m.Event, r.Delivery)
	}
	wrong[4] = json.Unmarshal(m.Data, &data)
	r.Event, r.Org, r.Data, r.N = m.ID, m.OrganizationID, sha256.Sum256(m.Data), data.N
	r.Signed, wrong[5] = verifying(secrets, func(secret string) error { return sign.Verify(h, body, secret) })
	r.SignedBody, wrong[6] = verifying(secrets, func(secret string) error {
		return sign.Verifier{Secrets: []string{secret}}.VerifyBody(h, body)
	})
	if err := errors.Join(wrong[:]...); err != nil {
		r.Malformed = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return r
}

// verifying returns which of the secrets verify, or why the last one does not.
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

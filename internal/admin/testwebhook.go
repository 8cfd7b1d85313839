package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/outbox"
)

// maxTestBody bounds the request: the largest payload that the outbox takes, and
// room for the rest and for some white space.
const maxTestBody = outbox.MaxPayloadBytes + 64<<10

// A testRequest is the body of POST /api/test-webhook. Only event is required.
type testRequest struct {
	Event          string          `json:"event"`
	OrganizationID string          `json:"organizationId"`
	EndpointID     string          `json:"endpointId"`
	Data           json.RawMessage `json:"data"`
}

type testResponse struct {
	EventID     uuid.UUID   `json:"eventId"`
	DeliveryIDs []uuid.UUID `json:"deliveryIds"`
}

// testWebhook sends an event through the outbox like any other.
func testWebhook(db *database) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		webhook, err := readTestWebhook(r.Body)
		if err != nil {
			status := http.StatusBadRequest
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				status = http.StatusRequestEntityTooLarge
			}
			refuse(w, status, err.Error())
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
		defer cancel()
		event, deliveries, err := db.sendTest(ctx, webhook)
		if err != nil {
			status, reason := testRefusal(err)
			refuse(w, status, reason)
			return
		}
		if deliveries == nil {
			deliveries = []uuid.UUID{} // [], not null
		}
		answer(w, http.StatusAccepted, testResponse{event, deliveries})
	})
}

// readTestWebhook reads one JSON object, whatever the content type says.
func readTestWebhook(body io.Reader) (store.TestWebhook, error) {
	var request testRequest
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return store.TestWebhook{}, readable(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return store.TestWebhook{}, errors.New("the body has to be one JSON object and nothing else")
	}
	if request.Event == "" {
		return store.TestWebhook{}, errors.New(`event is required, for example {"event":"payment.succeeded"}`)
	}
	webhook := store.TestWebhook{EventType: request.Event, OrganizationID: request.OrganizationID}
	if request.EndpointID != "" {
		id, err := uuid.Parse(request.EndpointID)
		if err != nil || id == uuid.Nil {
			return store.TestWebhook{}, fmt.Errorf("endpointId %q is not the id of an endpoint, which is a UUID", request.EndpointID)
		}
		webhook.EndpointID = id
	}
	if string(request.Data) != "null" {
		webhook.Data = request.Data
	}
	return webhook, nil
}

// readable turns what encoding/json says into what the sender of the body can use.
func readable(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return fmt.Errorf("the body is larger than %d KiB: %w", maxTestBody>>10, tooLarge)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if wrong.Field == "" {
			return fmt.Errorf("the body is JSON, but not an object (a %s)", wrong.Value)
		}
		return fmt.Errorf("%s has to be a string, not a %s", wrong.Field, wrong.Value)
	}
	if errors.Is(err, io.EOF) {
		return errors.New(`the body is empty; for example {"event":"payment.succeeded"}`)
	}
	return fmt.Errorf("the body is not as expected: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// testRefusal tells what the request has wrong from what the database has.
func testRefusal(err error) (status int, reason string) {
	if errors.Is(err, store.ErrWhichOrganization) {
		return http.StatusBadRequest, err.Error() + ": organizationId is required"
	}
	if why, refused := store.RefusedEvent(err); refused {
		return http.StatusUnprocessableEntity, why
	}
	return http.StatusServiceUnavailable, "the database did not take the event: " + err.Error()
}

func onlyPost() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "only POST")
	})
}
